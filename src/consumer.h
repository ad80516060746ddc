/*-------------------------------------------------------------------------
 *
 * consumer.h
 *	  The consumer worker: what its two sources, the local logs and Kafka, share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_CONSUMER_H
#define EVSTREAM_CONSUMER_H

#include "postgres.h"

#include "batch.h"
#include "compat.h"

/* Zone of the days, and the arena of the batch in hand */
typedef struct ConsumerState
{
	pg_tz *zone;
	EventArena *arena;
	MemoryContext batch_context; /* reset for each batch */
	MemoryContext long_context;  /* of the process */
} ConsumerState;

extern ConsumerState consumer;

/*
 * Stores records in transactions of their own until all are stored: waits
 * while paused or while the dead letters are at their limit, tries again
 * with growing delay on the world's faults, and halves a batch that keeps failing
 * until the record at fault is alone.  Returns false if a partition has been
 * moved by somebody else; then what is not stored is to be read again.
 */
extern bool consumer_store(BatchRecord *records, int nrecords, BatchHeaders headers);

/* Stores what waits in evstream.retries (consumer 0); true if there was any. */
extern bool consumer_retries(void);

/* What others may ask of a consumer between two batches */
typedef struct ConsumerWishes
{
	bool paused;
	bool retries;  /* wait for this consumer */
	int64 seek_id; /* the last seek, 0 = none */
} ConsumerWishes;

/* In a transaction. */
extern void consumer_wishes(ConsumerWishes *wishes);

/* The two main loops; they do not return. */
pg_noreturn extern void consumer_local_loop(void);
pg_noreturn extern void consumer_kafka_loop(void);

#endif /* EVSTREAM_CONSUMER_H */
