/*-------------------------------------------------------------------------
 *
 * kafka.h
 *	  The adapter to librdkafka: the only user of rdkafka.h.
 *
 * No function here raises a PostgreSQL error, and no thread of librdkafka
 * calls back into the server: logs, errors and delivery reports are taken
 * from queues in the calling (main) thread.  Memory of a client is malloc'd;
 * kafka_close() frees it.  Calls that ask a broker take a timeout in
 * milliseconds and are meant to be called outside of transactions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_KAFKA_H
#define EVSTREAM_KAFKA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KAFKA_ERROR_SIZE 512
#define KAFKA_MARK_SIZE  256

typedef enum KafkaStatus
{
	KAFKA_OK = 0,
	KAFKA_AWAY,          /* timeout, transport, no leader: try again */
	KAFKA_QUEUE_FULL,    /* producer: poll and try again */
	KAFKA_UNKNOWN_TOPIC, /* topic or partition does not exist (yet) */
	KAFKA_OUT_OF_RANGE,  /* consumer: offset expired or beyond the end */
	KAFKA_REFUSED,       /* this record is refused for good */
	KAFKA_UNSURE,        /* this record may be delivered, or not */
	KAFKA_DENIED,        /* authentication or authorization */
	KAFKA_FATAL,         /* the handle is of no more use: close, open */
	KAFKA_FAILED         /* anything else; see the error text */
} KafkaStatus;

typedef struct KafkaPair
{
	const char *key;
	const char *value;
} KafkaPair;

/* What a client is made from; the texts need to live during the call only. */
typedef struct KafkaConf
{
	const char *brokers;
	const char *group; /* consumer only */
	const char *client_id;
	const char *options;      /* "key=value;key=value", as checked by
								 * kafka_options_check() */
	const KafkaPair *secrets; /* from the secrets file */
	int nsecrets;
	const char *secrets_fault; /* no client is to be made, for this reason; or NULL */
	size_t max_event_bytes;
	size_t queue_bytes;  /* most bytes held by librdkafka; 0 = 64 MB. A consumer
						  * holds 3 / 4 more with those before 2.2 */
	bool single_records; /* producer: each record is a batch of its own,
								 * so that a refusal is about it alone */
} KafkaConf;

typedef struct KafkaClient KafkaClient;

/* A line that librdkafka logged, taken by kafka_poll(). */
typedef void (*KafkaLogHook)(int syslog_level, const char *text, void *arg);

/*
 * Is `options` acceptable as evstream.kafka_options?  NULL if so, else a
 * malloc'd message that names the key and never repeats a secret: unknown key,
 * bad value, a key that evstream owns (bootstrap.servers, group.id,
 * enable.idempotence, acks, enable.auto.commit, auto.offset.reset, ...), or a
 * secret (sasl.password, ssl.key.password, ...), which belongs into the secrets file.
 */
extern char *kafka_options_check(const char *options);

/* The same for one pair of the secrets file (any librdkafka property). */
extern char *kafka_secret_check(const char *key, const char *value);

/* Does this property carry a secret, such as sasl.password? */
extern bool kafka_option_is_secret(const char *key);

/* What the user should know about this library with these options, or NULL. */
extern const char *kafka_version_warning(const KafkaConf *conf);

/* Open a client; NULL and a text in error (KAFKA_ERROR_SIZE) on failure. */
extern KafkaClient *kafka_producer_open(const KafkaConf *conf, char *error);
extern KafkaClient *kafka_consumer_open(const KafkaConf *conf, char *error);

/*
 * Close within about timeout_ms; what was not delivered is given up.  Records
 * have to be given back before.  A library that is busy (a DNS query that
 * hangs) is left to end by itself; while kafka_unfinished() is not 0 the process
 * should end by _exit(), because its threads still run.
 */
extern void kafka_close(KafkaClient *client, int timeout_ms);
extern int kafka_unfinished(void);

/*
 * A descriptor that becomes readable when there is something to poll or to
 * consume.  kafka_poll() empties it, serves logs (to hook), errors and
 * delivery reports, and never waits.
 */
extern int kafka_fd(KafkaClient *client);
extern void kafka_poll(KafkaClient *client, KafkaLogHook hook, void *arg);

/* The last error's text ("" if none); valid until the next call. */
extern const char *kafka_error(KafkaClient *client);

/*
 * Are brokers within reach, as far as the client knows from its own traffic?
 * KAFKA_OK, KAFKA_AWAY, KAFKA_DENIED or KAFKA_FATAL, with the text of
 * kafka_error().
 */
extern KafkaStatus kafka_health(KafkaClient *client);

/* ---- topics and offsets (each waits for a broker, at most timeout_ms) ---- */

/* Number of partitions; KAFKA_UNKNOWN_TOPIC where it does not exist. */
extern KafkaStatus kafka_topic_partitions(KafkaClient *client, const char *topic, int timeout_ms,
										  int *npartitions);

/* The cluster's id, into buf (at most size bytes with the NUL). */
extern KafkaStatus kafka_cluster_id(KafkaClient *client, int timeout_ms, char *buf, size_t size);

/* Creates with the broker's default replication; OK where it exists already. */
extern KafkaStatus kafka_topic_create(KafkaClient *client, const char *topic, int npartitions,
									  int timeout_ms);

extern KafkaStatus kafka_watermarks(KafkaClient *client, const char *topic, int partition,
									int timeout_ms, int64_t *low, int64_t *high);

/* First offset with a timestamp >= ms; the end offset where there is none. */
extern KafkaStatus kafka_offset_for_time(KafkaClient *client, const char *topic, int partition,
										 int64_t ms, int timeout_ms, int64_t *offset);

/* ---- consuming ---- */

typedef struct KafkaAssignment
{
	const char *topic;
	int partition;
	int64_t offset; /* where fetching begins */
	int64_t high;   /* out, by kafka_highs(): end offset as last
								 * seen, or -1 */
	/* for the group's committed offsets: */
	int64_t committed;          /* in: to commit; out: as found, or -1 */
	char mark[KAFKA_MARK_SIZE]; /* metadata of the commit, in and out */
} KafkaAssignment;

/* Replaces the whole assignment; nothing fetched before it is handed out after. */
extern KafkaStatus kafka_assign(KafkaClient *client, const KafkaAssignment *parts, int nparts);

/* Producers may write any time; beyond this one its microseconds would be no number. */
#define KAFKA_TIME_MAX_MS (INT64_MAX / 1000)

/*
 * A record, or (status != KAFKA_OK) an error of one partition, with its text
 * as the value.  After KAFKA_OUT_OF_RANGE the partition is not fetched any more
 * until the next kafka_assign().
 */
typedef struct KafkaRecord
{
	KafkaStatus status;
	int part; /* index into the assignment */
	int64_t offset;
	int64_t timestamp_ms; /* or -1; at most KAFKA_TIME_MAX_MS */
	const char *key;      /* NULL = none */
	size_t key_len;
	const char *value; /* NULL = tombstone */
	size_t value_len;
	bool has_headers;
	void *handle;
} KafkaRecord;

/*
 * Takes what has been fetched, at most max records, without waiting for any; each is
 * to be given back by kafka_record_free().  With an old library it asks the brokers
 * something now and then, for 100 ms at most: not to be called in a transaction.
 */
extern int kafka_consume(KafkaClient *client, KafkaRecord *records, int max);
extern void kafka_record_free(KafkaRecord *record);

/* The last header of that name; false where there is none. */
extern bool kafka_record_header(const KafkaRecord *record, const char *name, const char **value,
								size_t *len);

/* The i-th header; false behind the last; value may be NULL. */
extern bool kafka_record_header_at(const KafkaRecord *record, int i, const char **name,
								   const char **value, size_t *len);

/* End offsets as known from fetching, without asking a broker. */
extern void kafka_highs(KafkaClient *client, KafkaAssignment *parts, int nparts);

/* What the group has committed, with its marks. */
extern KafkaStatus kafka_committed(KafkaClient *client, KafkaAssignment *parts, int nparts,
								   int timeout_ms);

/* Commits parts[].committed with mark, without waiting for the answer
 * (timeout_ms = 0), or waiting for it. */
extern KafkaStatus kafka_commit(KafkaClient *client, const KafkaAssignment *parts, int nparts,
								int timeout_ms);

/* ---- producing ---- */

typedef struct KafkaHeader
{
	const char *name;
	const char *value;
	size_t len;
} KafkaHeader;

/* Queues a copy; the delivery report carries tag. timestamp_ms = -1: without one. */
extern KafkaStatus kafka_produce(KafkaClient *client, const char *topic, const char *key,
								 size_t key_len, const char *value, size_t value_len,
								 int64_t timestamp_ms, const KafkaHeader *headers, int nheaders,
								 uint64_t tag);

typedef struct KafkaDelivery
{
	uint64_t tag;
	KafkaStatus status; /* KAFKA_OK, KAFKA_REFUSED (this record alone),
								 * or any other: it was not written, or it is
								 * not known */
	bool bad_time;      /* it was refused for its timestamp */
	int partition;
	int64_t offset;
	char error[128];
} KafkaDelivery;

/* Takes delivery reports that kafka_poll() found; returns how many. */
extern int kafka_deliveries(KafkaClient *client, KafkaDelivery *out, int max);

#endif /* EVSTREAM_KAFKA_H */
