/*-------------------------------------------------------------------------
 *
 * consumer_kafka.h
 *	  The Kafka source of a consumer, for the files that make it up:
 *	  consumer_client.c, consumer_assign.c and consumer_kafka.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_CONSUMER_KAFKA_H
#define EVSTREAM_CONSUMER_KAFKA_H

#include "postgres.h"

#include "batch.h"
#include "compat.h"
#include "kafka.h"
#include "owner.h"

#define UNIX_EPOCH_OFFSET_US ((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* A question to a broker holds up a SIGTERM for at most so long */
#define ASK_MS  1000
#define IDLE_MS 1000

/* A partition that this worker reads */
typedef struct KafkaPart
{
	LogPartition log;
	int64 fetch_from; /* where fetching begins at the next assignment */
	bool verify;      /* the record at last_offset is to be compared */
	bool unsure;      /* there is no such record: others tell */
	bool lost;        /* position out of range: look again */
	bool mirrored;    /* the group had an offset of it */
	int64 end;        /* end offset as last known */
	int64 last_timestamp_us;
} KafkaPart;

typedef struct KafkaSource
{
	KafkaClient *client;
	MemoryContext context; /* of this client and its parts */
	char cluster[128];
	List *topics;
	int *counts; /* partitions of each topic, -1 = unknown */
	KafkaPart **parts;
	KafkaAssignment *assignment;
	int nparts;
	bool assigned; /* the client fetches from where it should */
	KafkaRecord *fetched;
	int nfetched;
	/* by clock_us() */
	int64 next_upkeep;
	int64 next_look;     /* at partitions that are lost */
	char origin[37];     /* of our outbox, in the headers of what it sent */
	Owner owner;         /* this database, as last read */
	bool foreign;        /* somebody else owns the group */
	int64 missing_since; /* a topic is not there; 0 = all are */
	bool away;           /* the last question had no answer */
	int64 away_since;
} KafkaSource;

extern KafkaSource source;

/* What can stand at one time, the gravest first: that one is shown */
typedef enum KafkaProblem
{
	PROBLEM_CONFIGURATION,
	PROBLEM_FOREIGN_MARK,
	PROBLEM_DENIED,
	PROBLEM_AWAY,
	PROBLEM_NO_TOPIC,
	PROBLEM_GAP,
	PROBLEM_COUNT
} KafkaProblem;

/* ---- consumer_client.c ---- */

/* Begins or ends (message = NULL) a standing problem. */
extern void source_problem(KafkaProblem problem, const char *message);

/*
 * A question had no answer, or all of them had one.  A first connection or a
 * slow answer is no outage yet: it is one after some seconds, or when the client says so.
 */
extern void source_away(const char *what, KafkaStatus status);
extern void source_reached(void);

/* Opens the client; tries until it can.  It is closed at the process's end. */
extern void source_open(void);
/* Gives all fetched records back. */
extern void source_close_fetched(void);

/*
 * Reads the marks of the partitions and writes ours where it is missing, with
 * our positions; claim = wait until they are written.  False: somebody else owns
 * the group, and it has waited a bit, or Kafka does not answer.  Restarts the
 * worker where offsets of the group have gone, as they do with their topic.
 */
extern bool source_check_owner(bool claim);

/* ---- consumer_assign.c ---- */

/*
 * Looks which partitions there are, and takes those of ours that are new;
 * false: Kafka does not answer.  Restarts the worker where a topic was made again.
 */
extern bool source_find_partitions(void);

/* Fetches all partitions from fetch_from on; false: not possible now. */
extern bool source_assign(void);

/* Applies a pending seek to a partition that has a position; false: try later. */
extern bool source_apply_seek(KafkaPart *part);

/*
 * Position out of range, or no such partition: find out why.  KAFKA_OK if it
 * can be fetched again, KAFKA_UNKNOWN_TOPIC if it is not there.
 */
extern KafkaStatus source_look_at_range(KafkaPart *part);

/* Is this the record that was consumed last, as the batch log knows it? */
extern bool source_same_record(const KafkaRecord *kafka, int64 timestamp_ms, uint32 crc);

/* Begins the topic anew, and ends the process. */
pg_noreturn extern void source_made_again(const char *topic, int32 log_id);

#endif /* EVSTREAM_CONSUMER_KAFKA_H */
