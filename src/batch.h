/*-------------------------------------------------------------------------
 *
 * batch.h
 *	  The batch log, and the transaction that stores a batch of records.
 *
 * All functions run in a transaction with SPI connected (worker_run) and raise
 * errors as SQL does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_BATCH_H
#define EVSTREAM_BATCH_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "pgtime.h"
#include "utils/date.h"
#include "utils/uuid.h"

#include "event.h"
#include "outbox.h"

#define LOG_EMBEDDED 1
#define LOG_RETRY    2

/* Raised when a partition has another generation or position than we think. */
#define ERRCODE_EVSTREAM_MOVED MAKE_SQLSTATE('E', 'V', '0', '0', '1')

/* Raised when the stats are of the days of another zone than ours. */
#define ERRCODE_EVSTREAM_ZONE MAKE_SQLSTATE('E', 'V', '0', '0', '2')

typedef struct OffsetRange
{
	int64 from; /* inclusive */
	int64 to;   /* exclusive */
} OffsetRange;

/* A partition of a log, as its owner knows it.  Lives in the owner's memory. */
typedef struct LogPartition
{
	int32 log_id;
	int32 partition;
	char *topic;    /* NULL: a local log */
	char *log_name; /* for derived ids: "<cluster>/<topic>/<n>" */
	bool exists;    /* in evstream.partitions */
	int32 generation;
	bool forced;    /* by a forced seek: consumed records count again */
	int64 seek_id;  /* the last seek that was applied */
	int64 position; /* next offset */
	/* the last record that was consumed in this generation, if has_last */
	bool has_last;
	int64 last_offset;
	int64 last_timestamp; /* ms, -1 = none */
	uint32 last_crc;
	TimestampTz last_received_at; /* 0 = none */
	/* what other generations consumed, in order; records in it are passed over */
	OffsetRange *consumed;
	int nconsumed;
	int slot; /* for batch.c, during a batch */
} LogPartition;

/* One record on its way into the tables. */
typedef struct BatchRecord
{
	LogPartition *part;
	int64 offset;
	int64 timestamp_us; /* since 1970; the record's own time */
	const char *key;
	size_t key_len;
	const char *value; /* NULL: tombstone */
	size_t value_len;
	EventText traceparent; /* of the record's header */
	bool pass_over;        /* consumed before, or read locally */
	bool tracked;          /* out of our outbox: its time was checked, by the clock of then */
	bool has_id;           /* id is given (retried dead letters) */
	pg_uuid_t id;
	const void *source;          /* for the headers function */
	OutboxPosition outbox_after; /* embedded log: the position behind it */
	/* found to be at fault by what the server said when it was alone */
	EventReason condemned;
	char *condemned_detail;

	/* filled by batch_parse() */
	EventReason reason;
	char *detail; /* of a refused one */
	Event event;
	TimestampTz occurred_at;
	TimestampTz received_at;
	DateADT day;
	bool duplicate;
} BatchRecord;

/* Counts, as far as batch_store() has got: a good event, not seen before. */
static inline bool
batch_is_new(const BatchRecord *record)
{
	return !record->pass_over && record->value != NULL && record->reason == EVENT_OK &&
		   !record->duplicate;
}

/* Headers of a record as JSON text for a dead letter, palloc'd, or NULL. */
typedef char *(*BatchHeaders)(const BatchRecord *record);

typedef struct Batch
{
	BatchRecord *records; /* in the order of offsets within a partition */
	int nrecords;
	BatchHeaders headers; /* NULL: there are none */
	int writer;           /* index of the consumer, for daily_totals */
	EventArena *arena;
	pg_tz *zone;
	/* results */
	int64 nstored;
	int64 nduplicates;
	int64 ndead;
	int64 ntombstones;
	int64 only_days; /* for batch.c, until batch_stored() */
} Batch;

/* Finds the log of a topic (the newest incarnation), or makes one. */
extern int32 batch_log_id(const char *cluster_id, const char *topic);
/*
 * Begins a new incarnation, as the topic was made again; does nothing if
 * log_id is not the newest any more.
 */
extern void batch_log_renew(int32 log_id);
/*
 * How many partitions the topic had when its log was first consumed; sets it
 * to npartitions where it is not known.  Partitions behind them were added
 * later, and begin at their start.
 */
extern int batch_log_first_partitions(int32 log_id, int npartitions);
/* Have all npartitions of the log a position?  Before that "latest" would pass over what is sent. */
extern bool batch_log_has_positions(int32 log_id, int npartitions);
/* "<cluster>/<topic>/<n>" of a log; palloc'd. */
extern char *batch_log_name(int32 log_id);

/* Fills *part from the tables, with memory from context; exists = false if it is new. */
extern void batch_load_partition(LogPartition *part, int32 log_id, int32 partition,
								 MemoryContext context);
/* Makes the partition's row, to begin at start_offset with all seeks applied. */
extern void batch_create_partition(LogPartition *part, int64 start_offset, int64 seek_id);
/* Applies a seek: a new generation that begins at start_offset. */
extern void batch_seek_partition(LogPartition *part, int64 start_offset, bool forced,
								 int64 seek_id);

/* Was this offset consumed in an earlier generation? */
extern bool batch_was_consumed(const LogPartition *part, int64 offset);

/* What tells a record from another at the same offset. */
extern uint32 batch_record_crc(const BatchRecord *record);

/*
 * Parses all records, in a transaction (ids are hashed).  Texts point into the
 * records and batch->arena; other memory is of the current context.
 */
extern void batch_parse(Batch *batch);

/*
 * Stores the batch in the present transaction: batch log (position and fence),
 * ids, events, stats, dead letters.  The LogPartitions are not changed; after
 * the commit the caller calls batch_stored().  False if consumption is paused:
 * then nothing was done.
 */
extern bool batch_store(Batch *batch);
extern void batch_stored(Batch *batch);

/*
 * Was this database restored from a dump, and not resumed since?  Then its
 * data may not be complete: workers leave all of it alone.
 */
extern bool batch_is_restored(void);

/* Is consumption stopped by evstream_pause(), or not yet resumed after a restore? */
extern bool batch_is_paused(void);

#endif /* EVSTREAM_BATCH_H */
