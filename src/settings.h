/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The settings evstream.*, and the secrets file.
 *
 * Workers take them at their start; worker_wait() ends a worker when a reload
 * has changed one of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SETTINGS_H
#define EVSTREAM_SETTINGS_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "kafka.h"

/* The default of secrets_file, in the data directory. */
#define SETTING_SECRETS_FILE "evstream.secrets"

#define SETTING_MAX_EVENT_BYTES_LIMIT (64 * 1024 * 1024)

extern int setting_batch_size;
extern int setting_consumers;
extern int setting_dead_letter_limit;
extern char *setting_dead_letter_retention;
extern char *setting_dedup_window;
extern bool setting_enabled;
extern bool setting_item_stats;
extern char *setting_kafka_brokers;
extern char *setting_kafka_group;
extern char *setting_kafka_options;
extern int setting_kafka_partitions;
extern char *setting_kafka_read_topics;
extern char *setting_kafka_start;
extern char *setting_kafka_topic;
extern char *setting_max_clock_skew;
extern int setting_max_event_bytes; /* bytes */
extern char *setting_notify_channels;
extern bool setting_publish_all;
extern char *setting_redis_prefix;
extern char *setting_redis_url;
extern char *setting_retention;
extern char *setting_secrets_file;
extern char *setting_stats_retention;
extern bool setting_store_events;
extern int setting_stream_maxlen;
extern char *setting_stream_ttl;
extern char *setting_time_zone;
extern char *setting_traceparent;

/* Defines all settings; from _PG_init() only. */
extern void settings_define(void);

/*
 * A duration in microseconds, a month counted as 30 days; -1 for the empty
 * text.  For texts that have passed their check hook; raises on any other.
 */
extern int64 setting_interval_us(const char *text);

/* Where a topic without any position begins (evstream.kafka_start). */
#define SETTING_START_EARLIEST (-2)
#define SETTING_START_LATEST   (-1)

/* One of the above, or milliseconds since 1970. */
extern int64 setting_kafka_start_ms(void);

/*
 * The name of this database, in static memory.  Looks it up in a transaction;
 * outside of one it is the name as last looked up ("" if never).
 */
extern const char *setting_database_name(void);

/* evstream.kafka_group, or evstream-<database>; palloc'd. */
extern char *setting_group_name(void);

/*
 * Names in a comma-separated setting, without the blanks around them, as a
 * list of palloc'd strings.
 */
extern List *setting_list(const char *text);

/* The topic that is written, then those that are only read; palloc'd strings. */
extern List *setting_topics(void);

/*
 * Fills everything that a client of Kafka needs, secrets included; queue_bytes
 * gets a default.  Memory: the settings' own, and palloc'd in the current context.
 */
extern void setting_kafka_conf(KafkaConf *conf, const char *client_id);

/*
 * All settings that workers use, and a hash of the secrets, as one text to
 * compare with; palloc'd.  setting_secrets_load() has been called before.
 */
extern char *setting_fingerprint(void);

/*
 * Reads the secrets file (again).  A file that is refused, or a bad line, is
 * logged at elevel, without repeating anything of it, and is a fault: clients
 * that might need what it was to say do not connect.  Only the default file
 * need not be there.
 */
extern void setting_secrets_load(int elevel);

/*
 * A value of the secrets file, for this database or for all; NULL if there is
 * none.  Lives until the next setting_secrets_load().
 */
extern const char *setting_secret(const char *key);

/*
 * Gives PostgreSQL's own settings the values that our statements rely on, so
 * that those of the server, the database or the role neither change what they
 * mean nor end them.  For our processes, once each, when they have connected and are
 * in no transaction.
 */
extern void setting_shield_session(void);

/*
 * Why Redis is not to be used with these secrets, or NULL.  Lives as long.  Of
 * Kafka setting_kafka_conf() says it.
 */
extern const char *setting_redis_fault(void);

#endif /* EVSTREAM_SETTINGS_H */
