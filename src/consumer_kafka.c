/*-------------------------------------------------------------------------
 *
 * consumer_kafka.c
 *	  The consumer's Kafka source: records, and the loop.
 *
 * Partition p of each topic belongs to the worker p modulo the number of
 * consumers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "consumer.h"
#include "consumer_kafka.h"
#include "dedupe.h"
#include "outbox.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* New partitions, the mark, and the mirror of our positions */
#define UPKEEP_US         (INT64CONST(5) * USECS_PER_SEC)
/* The same again after it did not succeed; what was fetched goes on meanwhile */
#define UPKEEP_AGAIN_US   (INT64CONST(2) * USECS_PER_SEC)
/* While a topic is not there */
#define UPKEEP_MISSING_US (INT64CONST(1) * USECS_PER_SEC)
#define BEGIN_MS          300
/* Pauses, seeks and retries, while there are records; a batch looks for a pause by itself */
#define WISHES_US         (INT64CONST(20) * 1000)

/* ---- records ---- */

static char *
headers_json(const BatchRecord *record)
{
	const KafkaRecord *kafka = record->source;
	StringInfoData json;
	const char *name;
	const char *value;
	size_t len;

	initStringInfo(&json);
	for (int i = 0; kafka_record_header_at(kafka, i, &name, &value, &len); i++)
	{
		appendStringInfoString(&json, i == 0 ? "[[" : ", [");
		if (event_text_valid(name, strlen(name)))
			escape_json(&json, name);
		else
			appendStringInfoString(&json, "\"(invalid)\"");
		if (value == NULL)
			appendStringInfoString(&json, ", null]");
		else
		{
			int size = pg_b64_enc_len((int) len);
			char *encoded = palloc(size + 1);
			int n = pg_b64_encode((const void *) value, (int) len, encoded, size);

			appendStringInfo(&json, ", \"%.*s\"]", n, encoded);
			pfree(encoded);
		}
	}
	if (json.len == 0)
		return NULL;
	appendStringInfoChar(&json, ']');
	return json.data;
}

/* When it was made; where it does not say, and the relay neither, now. */
static int64
record_time_us(const KafkaRecord *kafka)
{
	const char *text;
	size_t len;
	int64 ms = 0;

	if (kafka->timestamp_ms >= 0)
		return kafka->timestamp_ms * 1000;
	/* digits of milliseconds: up to the year 9999 */
	if (kafka_record_header(kafka, "evstream-time", &text, &len) && text != NULL && len > 0 &&
		len <= 15)
	{
		while (len > 0 && *text >= '0' && *text <= '9')
		{
			ms = ms * 10 + (*text++ - '0');
			len--;
		}
		if (len == 0)
			return Min(ms, KAFKA_TIME_MAX_MS) * 1000;
	}
	return GetCurrentTimestamp() + UNIX_EPOCH_OFFSET_US;
}

/* Takes one fetched record into the batch; false if it is none to store. */
static bool
take_record(KafkaRecord *kafka, BatchRecord *record)
{
	KafkaPart *part;
	const char *text;
	size_t len;

	if (kafka->status != KAFKA_OK)
	{
		if (kafka->part >= 0 &&
			(kafka->status == KAFKA_OUT_OF_RANGE || kafka->status == KAFKA_UNKNOWN_TOPIC))
			source.parts[kafka->part]->lost = true;
		else if (kafka->status == KAFKA_FATAL)
			worker_restart("Kafka client failed");
		return false;
	}
	part = source.parts[kafka->part];
	if (part->lost)
		return false;
	if (part->verify)
	{
		if (kafka->offset == part->log.last_offset)
		{
			if (!source_same_record(kafka, part->log.last_timestamp, part->log.last_crc))
				source_made_again(part->log.topic, part->log.log_id);
			part->verify = false;
			return false;
		}
		if (kafka->offset > part->log.last_offset)
			part->verify = false;
	}
	if (kafka->offset < part->log.position)
		return false;

	memset(record, 0, sizeof(*record));
	record->part = &part->log;
	record->offset = kafka->offset;
	record->timestamp_us = record_time_us(kafka);
	record->key = kafka->key;
	record->key_len = kafka->key_len;
	record->value = kafka->value;
	record->value_len = kafka->value_len;
	record->source = kafka;
	if (kafka_record_header(kafka, "traceparent", &text, &len))
	{
		record->traceparent.data = text;
		record->traceparent.len = len;
	}
	record->pass_over = batch_was_consumed(&part->log, kafka->offset);
	if (kafka_record_header(kafka, "evstream-origin", &text, &len) && text != NULL)
	{
		record->pass_over |= outbox_was_read_locally(text, len);
		record->tracked = len > 36 && memcmp(text, source.origin, 36) == 0;
	}
	part->last_timestamp_us = record->timestamp_us;
	return true;
}

static void
show_lag(void)
{
	kafka_highs(source.client, source.assignment, source.nparts);
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];

		if (source.assignment[i].high >= 0)
			part->end = source.assignment[i].high;
		status_lag(part->log.log_id, part->log.topic, part->log.partition, part->log.position,
				   Max(part->end, part->log.position),
				   part->last_timestamp_us == 0 ? 0
												: part->last_timestamp_us - UNIX_EPOCH_OFFSET_US);
	}
}

/* ---- the loop ---- */

static void
load_ranges_unit(void *arg)
{
	pg_uuid_t origin;

	outbox_adopt();
	outbox_local_ranges_load();
	origin = outbox_origin();
	event_format_uuid(origin.data, source.origin);
}

static void
wish_unit(void *arg)
{
	consumer_wishes(arg);
}

/*
 * From nothing to an assignment; returns only when all of that was possible.
 * What a paused consumer needs is done as well: the positions of new topics.
 */
static void
begin(void)
{
	for (;;)
	{
		worker_check();
		MemoryContextReset(consumer.batch_context);
		kafka_poll(source.client, NULL, NULL);
		if (source_check_owner(false) && source_find_partitions() && source_check_owner(true))
			break;
		(void) worker_wait(-1, BEGIN_MS);
	}
	source_reached();
	while (!source_assign())
		(void) worker_wait(-1, IDLE_MS);
	source.next_upkeep = clock_us() + (source.missing_since == 0 ? UPKEEP_US : UPKEEP_MISSING_US);
}

/* Partitions that are new or lost, seeks, mark and mirror. */
static void
upkeep(void)
{
	source.next_look = clock_us() + IDLE_MS * INT64CONST(1000);
	source.next_upkeep = clock_us() + UPKEEP_AGAIN_US;
	while (!source_check_owner(false))
	{
		/* Kafka may be away, that is no reason to give the records up */
		if (!source.foreign)
			return;
		source.assigned = false;
		MemoryContextReset(consumer.batch_context);
	}
	if (!source_find_partitions())
		return;
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];

		if (part->lost)
		{
			KafkaStatus status = source_look_at_range(part);

			/* one that is not there must not hold up the others */
			if (status == KAFKA_UNKNOWN_TOPIC)
				continue;
			if (status != KAFKA_OK)
				return;
			source.assigned = false;
		}
		if (!source_apply_seek(part))
			return;
	}
	source_reached();
	source.next_upkeep = clock_us() + (source.missing_since == 0 ? UPKEEP_US : UPKEEP_MISSING_US);
	if (source.assigned)
		return;
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];

		if (!part->verify && part->fetch_from < part->log.position)
			part->fetch_from = part->log.position;
	}
	while (!source_assign())
		(void) worker_wait(-1, IDLE_MS);
	(void) source_check_owner(true);
}

static bool
any_lost(void)
{
	for (int i = 0; i < source.nparts; i++)
		if (source.parts[i]->lost)
			return true;
	return false;
}

void
consumer_kafka_loop(void)
{
	BatchRecord *records;
	ConsumerWishes wish = {0};
	int64 seek_id = 0;
	int64 wishes_due = 0;
	bool doubt = false; /* a wake-up may have been for a wish */
	bool loaded = false;

	source.context = AllocSetContextCreate(consumer.long_context, "evstream Kafka source",
										   ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(source.context);
	source.topics = setting_topics();
	source.counts = palloc0(list_length(source.topics) * sizeof(int));
	source.fetched =
		MemoryContextAllocHuge(source.context, setting_batch_size * sizeof(KafkaRecord));
	records = MemoryContextAllocHuge(source.context, setting_batch_size * sizeof(BatchRecord));
	MemoryContextSwitchTo(consumer.batch_context);

	while (!worker_run("loading local ranges", load_ranges_unit, NULL, NULL))
		worker_backoff();
	source_open();
	status_lag_clear();
	begin();

	for (;;)
	{
		int n = 0;
		int64 now = clock_us();

		worker_check();
		MemoryContextReset(consumer.batch_context);
		kafka_poll(source.client, NULL, NULL);

		/* these do not need Kafka */
		if (worker_self.index == 0 && !source.assigned)
			(void) consumer_retries();
		if (now >= source.next_upkeep ||
			((any_lost() || !source.assigned) && now >= source.next_look))
		{
			upkeep();
			show_lag();
		}
		if (!source.assigned)
		{
			(void) worker_wait(kafka_fd(source.client), IDLE_MS);
			continue;
		}
		if (now >= wishes_due &&
			!worker_run("looking whether consumption is paused", wish_unit, &wish, NULL))
		{
			worker_backoff();
			continue;
		}
		if (now >= wishes_due)
		{
			wishes_due = now + WISHES_US;
			doubt = false;
		}
		if (wish.seek_id != seek_id)
		{
			seek_id = wish.seek_id;
			source.next_upkeep = 0;
			continue;
		}
		if (wish.paused)
		{
			status_state("paused");
			(void) worker_wait(-1, IDLE_MS);
			wishes_due = 0;
			continue;
		}

		/* while the first records come; what fails here is tried again with them */
		if (!loaded)
			(void) worker_run("loading ids", dedupe_load, NULL, NULL);
		loaded = true;
		if (wish.retries)
			(void) consumer_retries();
		wish.retries = false;
		source.nfetched = kafka_consume(source.client, source.fetched, setting_batch_size);
		for (int i = 0; i < source.nfetched; i++)
			if (take_record(&source.fetched[i], &records[n]))
				n++;
		if (n > 0)
		{
			show_lag();
			if (!consumer_store(records, n, headers_json))
				worker_restart("a partition was moved");
			show_lag();
		}
		source_close_fetched();
		if (n > 0)
			continue;

		if (kafka_health(source.client) == KAFKA_OK)
		{
			if (source.away)
				source.next_upkeep = 0;
			status_state("idle");
		}
		else if (kafka_health(source.client) == KAFKA_FATAL)
			worker_restart("Kafka client failed");
		else
			source_away("fetching", kafka_health(source.client));
		/* a commit, or time; of both at once we hear of the records */
		if (!worker_wait(kafka_fd(source.client), doubt ? WISHES_US / 1000 : IDLE_MS))
			wishes_due = 0;
		else
			doubt = true;
	}
}
