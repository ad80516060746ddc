/*-------------------------------------------------------------------------
 *
 * outbox.h
 *	  The outbox: rows written by evstream_track(), read by snapshot pairs.
 *
 * Reading is in ticks.  A tick is a snapshot kept in evstream.ticks; it covers
 * the rows that are visible in it and not in the tick before.  A position is
 * (last tick that is read to its end, and (xid, id) of the last row read of
 * the next one, or 0, 0).  Ticks are shared by all readers, so that positions of
 * the relay and of the embedded log compare.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_OUTBOX_H
#define EVSTREAM_OUTBOX_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

typedef struct OutboxPosition
{
	int64 tick; /* read to its end */
	uint64 xid; /* within tick + 1 */
	int64 id;
} OutboxPosition;

typedef struct OutboxRow
{
	uint64 xid;
	int64 id;
	pg_uuid_t event_id;
	TimestampTz tracked_at;
	char *user_id; /* the key; not NUL-terminated */
	int user_id_len;
	char *value; /* the event's JSON */
	int value_len;
	char *traceparent; /* or NULL */
	int traceparent_len;
} OutboxRow;

typedef struct OutboxBatch
{
	int nrows;
	OutboxRow *rows;      /* in the order of (xid, id) */
	OutboxPosition after; /* position behind the last row; behind the
								 * tick if tick_done */
	bool tick_done;       /* this was the last of the tick */
} OutboxBatch;

/* An event on its way into the outbox */
typedef struct OutboxNew
{
	pg_uuid_t event_id;
	Datum user_id;     /* text */
	Datum traceparent; /* text, or 0 */
	Datum value;       /* text */
} OutboxNew;

/*
 * Adds a row to the outbox as part of the present transaction, whoever's it is,
 * and wakes the reader at its commit.  The table is locked against its emptying
 * until then.  Raises errors as an INSERT does.
 */
extern void outbox_write(const OutboxNew *row, TimestampTz tracked_at);

/*
 * The same for many, in pieces of at most max_rows, of which OUTBOX_WRITE_ROWS are
 * enough.  The writer is in the present memory context, and what it has open is
 * closed by an error's rollback.
 */
#define OUTBOX_WRITE_ROWS 100
typedef struct OutboxWriter OutboxWriter;
extern OutboxWriter *outbox_write_begin(int max_rows, TimestampTz tracked_at);
extern void outbox_write_rows(OutboxWriter *writer, const OutboxNew *rows, int nrows);
extern void outbox_write_end(OutboxWriter *writer);

/*
 * All of these run inside a transaction with SPI connected (worker_run), in
 * READ COMMITTED, and raise errors as SQL does.
 */

/*
 * Up to max rows (and about max_bytes of values) behind *position; 0 rows with
 * tick_done = false when there is nothing to read.  Makes a new tick where
 * the last one is exhausted and there are rows (made_tick is set).  A caller that sends rows out
 * of the server calls outbox_flush_at_commit() before it commits that, so that nothing leaves the
 * server that a crash could take back.  Memory: in `context`.
 */
extern void outbox_read(const OutboxPosition *position, int max, Size max_bytes,
						MemoryContext context, OutboxBatch *batch, bool *made_tick);

/*
 * What has been flushed of the commits of trackers.  Most of them wait for their own flush,
 * and for their synchronous standbys: the commit that makes a tick of them need not.
 * begin: before the rows are read.  at_commit: behind that; has this transaction's commit
 * flushed, and replicated, where there may be rows that were not.  done: once it is committed,
 * outside of it.  A new one is all zero.
 */
typedef struct OutboxFlush
{
	uint64 flushed; /* commits without a flush that were seen to have ended before one */
	uint64 ended;
	bool known;
	bool flushes;
} OutboxFlush;
extern void outbox_flush_begin(OutboxFlush *flush);
extern void outbox_flush_at_commit(OutboxFlush *flush);
extern void outbox_flush_done(OutboxFlush *flush);

/*
 * Position from which the relay, or the embedded log, goes on.  log_id is that
 * of the write topic now: where it is another one than before, the relay goes
 * back to what is stored.
 */
extern OutboxPosition outbox_relay_position(int32 log_id);
extern OutboxPosition outbox_local_position(void);

/* Compare: < 0, 0, > 0. */
extern int outbox_position_cmp(const OutboxPosition *a, const OutboxPosition *b);

/*
 * The position up to which all rows are known to be stored: through the
 * embedded log, or relayed and consumed.
 */
extern OutboxPosition outbox_stored_position(void);

/* Records the relay's progress: position, and the next offset of each
 * partition of log_id (offsets[nparts]; 0 where nothing was delivered yet). */
extern void outbox_relay_advance(const OutboxPosition *position, int32 log_id, const int64 *offsets,
								 int nparts);

/* The uuid and so on that relayed records carry in the header "evstream-origin":
 * "<uuid>/<tick>/<xid>/<id>"; tick is that of the row (position.tick + 1).  Written to buf, of
 * OUTBOX_ORIGIN_SIZE bytes; returns its length. */
#define OUTBOX_ORIGIN_SIZE 128
extern pg_uuid_t outbox_origin(void);
extern int outbox_origin_text(const pg_uuid_t *origin, int64 tick, uint64 xid, int64 id, char *buf);

/* A record with this origin header was read locally (while Kafka was off), and is to be passed over? */
extern bool outbox_was_read_locally(const char *origin, Size len);

/* Loads what outbox_was_read_locally() needs, into memory of the process; called at the
 * start of a consumer that reads Kafka, in a transaction; also ends an open local range. */
extern void outbox_local_ranges_load(void);

/*
 * Makes the outbox ours, if it was written on another system or in another
 * database (a restore, pg_upgrade, a copied database): each reader calls it at
 * its start, before it asks for its position.
 */
extern void outbox_adopt(void);

/* Maintenance: rotate, empty what is stored, prune ticks and relay_log. */
extern void outbox_rotate(void *unused);
extern void outbox_empty(void *unused);

/* Set at commit: register the wake-up of the reader for this transaction. */
extern void outbox_wake_at_commit(void);
/* Set at commit: so many dead letters more were written by this transaction. */
extern void outbox_count_at_commit(int64 dead_letters);

#endif /* EVSTREAM_OUTBOX_H */
