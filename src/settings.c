/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  Every setting, in alphabetical order, and what is derived from them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "compat.h"
#include "secrets.h"
#include "settings.h"
#include "settings_check.h"

/* Of librdkafka's memory, for a caller that has no number of its own. */
#define DEFAULT_QUEUE_BYTES (20 * 1024 * 1024)

int setting_batch_size;
int setting_consumers;
int setting_dead_letter_limit;
char *setting_dead_letter_retention;
char *setting_dedup_window;
bool setting_enabled;
bool setting_item_stats;
char *setting_kafka_brokers;
char *setting_kafka_group;
char *setting_kafka_options;
int setting_kafka_partitions;
char *setting_kafka_read_topics;
char *setting_kafka_start;
char *setting_kafka_topic;
char *setting_max_clock_skew;
int setting_max_event_bytes;
char *setting_notify_channels;
bool setting_publish_all;
char *setting_redis_prefix;
char *setting_redis_url;
char *setting_retention;
char *setting_secrets_file;
char *setting_stats_retention;
bool setting_store_events;
int setting_stream_maxlen;
char *setting_stream_ttl;
char *setting_time_zone;
char *setting_traceparent;

/*
 * Those that a worker takes at its start.  Not notify_channels: the notifier
 * takes a change as it runs, and so loses no notification by it.
 */
static const char *const worker_settings[] = {
	"evstream.batch_size",        "evstream.consumers",
	"evstream.dead_letter_limit", "evstream.dead_letter_retention",
	"evstream.dedup_window",      "evstream.enabled",
	"evstream.item_stats",        "evstream.kafka_brokers",
	"evstream.kafka_group",       "evstream.kafka_options",
	"evstream.kafka_partitions",  "evstream.kafka_read_topics",
	"evstream.kafka_start",       "evstream.kafka_topic",
	"evstream.max_clock_skew",    "evstream.max_event_bytes",
	"evstream.publish_all",       "evstream.redis_prefix",
	"evstream.redis_url",         "evstream.retention",
	"evstream.secrets_file",      "evstream.stats_retention",
	"evstream.store_events",      "evstream.stream_maxlen",
	"evstream.stream_ttl",        "evstream.time_zone",
};

static void
define_bool(const char *name, bool *variable, bool boot, const char *what)
{
	DefineCustomBoolVariable(name, what, NULL, variable, boot, PGC_SUSET, 0, NULL, NULL, NULL);
}

static void
define_int(const char *name, int *variable, int boot, int min, int max, int flags, const char *what)
{
	DefineCustomIntVariable(name, what, NULL, variable, boot, min, max, PGC_SUSET, flags, NULL,
							NULL, NULL);
}

static void
define_string(const char *name, char **variable, const char *boot, GucStringCheckHook check,
			  const char *what)
{
	DefineCustomStringVariable(name, what, NULL, variable, boot, PGC_SUSET, 0, check, NULL, NULL);
}

void
settings_define(void)
{
	define_int("evstream.batch_size", &setting_batch_size, 10000, 1, 1000000, 0,
			   "Most events in one transaction.");
	define_int("evstream.consumers", &setting_consumers, 1, 1, 32, 0,
			   "Consumer workers for each database.");
	define_int("evstream.dead_letter_limit", &setting_dead_letter_limit, 1000000, 1, INT_MAX, 0,
			   "Number of dead letters at which consumption pauses.");
	define_string("evstream.dead_letter_retention", &setting_dead_letter_retention, "30 days",
				  check_duration, "Dead letters received longer ago than this are dropped.");
	define_string(
		"evstream.dedup_window", &setting_dedup_window, "2 days", check_duration,
		"An event_id counts once within this time, in days on which events were received.");
	define_bool("evstream.enabled", &setting_enabled, true,
				"Runs the workers; if off, tracked events wait.");
	define_bool("evstream.item_stats", &setting_item_stats, true, "Counts by user, item and day.");
	define_string("evstream.kafka_brokers", &setting_kafka_brokers, "", check_brokers,
				  "Bootstrap servers of Kafka; if empty, the embedded log is used.");
	define_string("evstream.kafka_group", &setting_kafka_group, "", check_group,
				  "Group under which positions are mirrored to Kafka; if empty, "
				  "evstream-<database>.");
	define_string("evstream.kafka_options", &setting_kafka_options, "", check_options,
				  "Further librdkafka properties, key=value, separated by \";\".");
	define_int("evstream.kafka_partitions", &setting_kafka_partitions, 4, 1, 10000, 0,
			   "Partitions of the topic, when evstream makes it.");
	define_string("evstream.kafka_read_topics", &setting_kafka_read_topics, "", check_topics,
				  "Further topics to read, comma-separated.");
	define_string("evstream.kafka_start", &setting_kafka_start, "earliest", check_start,
				  "Where a topic without any position begins: earliest, latest or a timestamp.");
	define_string("evstream.kafka_topic", &setting_kafka_topic, "evstream.events", check_topic,
				  "Topic to which tracked events go, and which is read.");
	define_string("evstream.max_clock_skew", &setting_max_clock_skew, "1 day", check_duration,
				  "Events further in the future than this are refused.");
	define_int("evstream.max_event_bytes", &setting_max_event_bytes, 1024 * 1024, 1024,
			   SETTING_MAX_EVENT_BYTES_LIMIT, GUC_UNIT_BYTE, "Larger events are refused.");
	define_string("evstream.notify_channels", &setting_notify_channels, "", check_channels,
				  "Channels whose notifications go to Redis, comma-separated.");
	define_bool("evstream.publish_all", &setting_publish_all, false,
				"Publishes every stored event on one Redis channel, too.");
	define_string("evstream.redis_prefix", &setting_redis_prefix, "evstream:", check_prefix,
				  "Begin of the names of all keys and channels in Redis.");
	define_string("evstream.redis_url", &setting_redis_url, "", check_redis_url,
				  "Redis, as redis://host:port/db, rediss:// or unix://; if empty, no fan-out.");
	define_string("evstream.retention", &setting_retention, "30 days", check_duration,
				  "Stored events received longer ago than this are dropped.");
	define_string("evstream.secrets_file", &setting_secrets_file, SETTING_SECRETS_FILE, NULL,
				  "File with users and passwords, relative to the data directory.");
	define_string("evstream.stats_retention", &setting_stats_retention, "", check_duration_or_empty,
				  "Stats of days longer ago than this are dropped; if empty, they are kept.");
	define_bool("evstream.store_events", &setting_store_events, true,
				"Stores the events, and not only what is counted.");
	define_int("evstream.stream_maxlen", &setting_stream_maxlen, 1000, 1, INT_MAX, 0,
			   "About how many events a subscriber's Redis stream keeps.");
	define_string("evstream.stream_ttl", &setting_stream_ttl, "7 days", check_duration,
				  "How long the stream of a subscriber without filters is kept.");
	define_string("evstream.time_zone", &setting_time_zone, "UTC", check_time_zone,
				  "Time zone whose days are counted.");
	DefineCustomStringVariable(
		"evstream.traceparent", "W3C trace context that travels with the events tracked.", NULL,
		&setting_traceparent, "", PGC_USERSET, 0, check_traceparent, NULL, NULL);

	MarkGUCPrefixReserved("evstream");
}

int64
setting_interval_us(const char *text)
{
	/* evstream_track() asks for the same one each time */
	static char last[32];
	static int64 last_us;
	int64 us;

	if (text[0] == '\0')
		return -1;
	if (strcmp(text, last) == 0)
		return last_us;
	if (!parse_duration(text, &us))
		elog(ERROR, "invalid duration \"%s\"", text);
	if (strlen(text) < sizeof(last))
	{
		strcpy(last, text);
		last_us = us;
	}
	return us;
}

int64
setting_kafka_start_ms(void)
{
	int64 ms;

	if (!parse_start(setting_kafka_start, &ms))
		elog(ERROR, "invalid start \"%s\"", setting_kafka_start);
	return ms;
}

const char *
setting_database_name(void)
{
	static char cached[NAMEDATALEN];

	if (IsTransactionState() && OidIsValid(MyDatabaseId))
	{
		char *name = get_database_name(MyDatabaseId);

		if (name != NULL)
		{
			strlcpy(cached, name, sizeof(cached));
			pfree(name);
		}
	}
	return cached;
}

char *
setting_group_name(void)
{
	if (setting_kafka_group[0] != '\0')
		return pstrdup(setting_kafka_group);
	return psprintf("evstream-%s", setting_database_name());
}

List *
setting_list(const char *text)
{
	List *items = NIL;
	const char *pos = text;
	const char *item;
	size_t len;

	while (next_item(&pos, &item, &len))
	{
		if (len > 0)
			items = lappend(items, pnstrdup(item, len));
	}
	return items;
}

List *
setting_topics(void)
{
	List *topics = list_make1(pstrdup(setting_kafka_topic));
	List *more = setting_list(setting_kafka_read_topics);
	ListCell *cell;

	foreach (cell, more)
	{
		char *topic = lfirst(cell);
		ListCell *known;
		bool twice = false;

		foreach (known, topics)
			twice |= strcmp(lfirst(known), topic) == 0;
		if (!twice)
			topics = lappend(topics, topic);
	}
	return topics;
}

void
setting_kafka_conf(KafkaConf *conf, const char *client_id)
{
	memset(conf, 0, sizeof(*conf));
	conf->brokers = setting_kafka_brokers;
	conf->group = setting_group_name();
	conf->client_id = pstrdup(client_id);
	conf->options = setting_kafka_options;
	conf->secrets = secrets_kafka(&conf->nsecrets);
	conf->secrets_fault = secrets_kafka_fault();
	conf->max_event_bytes = setting_max_event_bytes;
	conf->queue_bytes = DEFAULT_QUEUE_BYTES;
}

char *
setting_fingerprint(void)
{
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < (int) lengthof(worker_settings); i++)
		appendStringInfo(&text, "%s\n", GetConfigOption(worker_settings[i], false, false));
	appendStringInfo(&text, UINT64_FORMAT, secrets_hash());
	return text.data;
}

void
setting_shield_session(void)
{
	const char *const values[][2] = {
		/* the first, as the others may be a superuser's to set */
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"synchronous_commit", "off"},
		{"statement_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{COMPAT_TRANSACTION_TIMEOUT, "0"},
		{"lock_timeout", "500ms"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		/* rows are put onto the pages of leaves, and read off them */
		{"default_table_access_method", "heap"},
		{"row_security", "on"},
		{"session_replication_role", "origin"},
		{"exit_on_error", "off"},
		{"standard_conforming_strings", "on"},
		{"transform_null_equals", "off"},
		{"array_nulls", "on"},
		/* the bridge of notifications passes on what a client would get */
		{"client_encoding", GetDatabaseEncodingName()},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"bytea_output", "hex"},
		{"extra_float_digits", "1"},
		{"jit", "off"},
		/* parallel workers would take the slots that workers need */
		{"max_parallel_workers_per_gather", "0"},
		{"max_parallel_maintenance_workers", "0"},
	};

	for (int i = 0; i < (int) lengthof(values); i++)
	{
		if (values[i][0] != NULL)
			SetConfigOption(values[i][0], values[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}
