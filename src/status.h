/*-------------------------------------------------------------------------
 *
 * status.h
 *	  Shared memory: databases, workers' slots, counters, lag, wake-ups.
 *
 * All of it works without the library being preloaded: then there is no
 * shared memory, status_available() is false, setters do nothing and the
 * functions behind the views return no rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_STATUS_H
#define EVSTREAM_STATUS_H

#include "postgres.h"

#include "datatype/timestamp.h"

typedef enum WorkerRole
{
	ROLE_LAUNCHER,
	ROLE_SCOUT, /* a short look into a database */
	ROLE_MAINTENANCE,
	ROLE_CONSUMER,
	ROLE_RELAY,
	ROLE_NOTIFIER
} WorkerRole;

typedef enum StatusComponent
{
	COMPONENT_WORKERS,
	COMPONENT_KAFKA,
	COMPONENT_REDIS,
	COMPONENT_OUTBOX,
	COMPONENT_DEAD_LETTERS,
	COMPONENT_COUNT
} StatusComponent;

typedef enum StatusLevel
{
	LEVEL_OK,
	LEVEL_DEGRADED, /* counting goes on, or will by itself */
	LEVEL_DOWN      /* counting has stopped */
} StatusLevel;

extern bool status_available(void);

/*
 * Wake whoever reads this database's outbox (relay, or the consumer of the
 * embedded log) or another role.  Never raises: callable from a transaction
 * callback.
 */
extern void status_wake_reader(Oid dboid);
extern void status_wake(Oid dboid, WorkerRole role);

/*
 * A commit that does not wait for its flush, from before its record is written until all can
 * see it.  Never raises: callable from a transaction callback.
 *
 * Whoever reads rows and then finds that as many have begun as had ended before it flushed the
 * last time, has read nothing that a crash could take back.
 */
extern void status_unflushed_begin(void);
extern void status_unflushed_end(void);
extern uint64 status_unflushed_begun(void);
extern uint64 status_unflushed_ended(void);

/* Wakes the launcher to look at this database again (workers start anew if restart). */
extern void status_look_again(Oid dboid, bool restart);

/* ---- for the worker that runs: its own slot ---- */

extern void status_count(int64 events, int64 batches);
/* A short constant word: "starting", "running", "idle", "paused", "waiting". */
extern void status_state(const char *state);
extern void status_error(const char *message);

/*
 * A standing problem of this worker with one component, shown by health until
 * it is taken back by message = NULL.  Logged once (as WARNING, with hint) when it comes or
 * changes its code, and once (LOG) when it goes.  code is a short constant word by which
 * a state is recognised ("away", "denied", "foreign_mark", "gap", ...).
 */
extern void status_problem(StatusComponent component, StatusLevel level, const char *code,
						   const char *message, const char *hint);

/* ---- lag: one entry for each partition that is followed ---- */

extern void status_lag(int32 log_id, const char *topic /* NULL: embedded */, int32 partition,
					   int64 position, int64 end_offset, TimestampTz last_record_at);
/* Forget the entries of this worker (on a new assignment). */
extern void status_lag_clear(void);

/* ---- fan-out: how far the notifier is, for evstream_wait() and evstream_backfill() ---- */

/* Are events of this database sent to Redis? */
extern bool status_fans_out(Oid dboid);

/* All events of a partition that were received until then are in Redis. */
extern void status_notified(int32 log_id, int32 partition, TimestampTz passed_at);

/*
 * From now on events that were received until then may be in Redis, whatever
 * becomes of the call that sends them.  It makes the entry, so that with
 * DT_NOBEGIN it says that the partition was compared with Redis.
 */
extern void status_notifying(int32 log_id, int32 partition, TimestampTz until);

/* Forget the entries of a database. */
extern void status_notified_clear(Oid dboid);

/* 0: not known. */
extern TimestampTz status_notified_at(Oid dboid, int32 log_id, int32 partition);

/*
 * Events after status_notified_at() and until then may be in Redis, or not; later
 * ones are not.  DT_NOEND: nothing was compared with Redis since the server's start.
 */
extern TimestampTz status_notifying_until(Oid dboid, int32 log_id, int32 partition);

/* The latest of all partitions that were compared. */
extern TimestampTz status_notifying_last(Oid dboid);

/* ---- dead letters: an upper bound of their number; negative = not known ---- */

extern int64 status_dead_letters(Oid dboid);
/*
 * They were counted.  before is what status_dead_letters() gave before that:
 * where some were added meanwhile, the number stays as it is.
 */
extern void status_dead_letters_counted(Oid dboid, int64 before, int64 count);
/* After the commit that adds or removes them.  Never raises. */
extern void status_dead_letters_add(Oid dboid, int64 count);

/* ---- received_at ---- */

/*
 * The latest time that events of this database were received at, by any of its
 * partitions, or `at` where that is later: then it is that from now on.
 * 0: not known since the server's start.
 */
extern TimestampTz status_received(Oid dboid, TimestampTz at);

#endif /* EVSTREAM_STATUS_H */
