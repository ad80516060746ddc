/*-------------------------------------------------------------------------
 *
 * consumer_assign.c
 *	  The consumer's Kafka source: partitions, where they begin, seeks, gaps, and topics made again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "consumer.h"
#include "consumer_kafka.h"
#include "settings.h"
#include "status.h"
#include "worker.h"

/* To fetch one record */
#define FETCH_ONE_US (INT64CONST(3) * USECS_PER_SEC)
/* A topic that was never there: at the first start the relay is about to make it */
#define MISSING_US   (INT64CONST(5) * USECS_PER_SEC)

/* ---- gaps, and topics made again ---- */

static void
renew_unit(void *arg)
{
	batch_log_renew(*(int32 *) arg);
}

/*
 * Another topic has the name: its records are other records, so they get a
 * new log and new positions.  All workers begin anew, as they know the old one.
 */
void
source_made_again(const char *topic, int32 log_id)
{
	ereport(LOG, (errmsg("topic \"%s\" was made again, it is consumed from its start", topic)));
	while (!worker_run("beginning a topic anew", renew_unit, &log_id, NULL))
		worker_backoff();
	status_look_again(MyDatabaseId, true);
	worker_restart("a topic was made again");
}

bool
source_same_record(const KafkaRecord *kafka, int64 timestamp_ms, uint32 crc)
{
	BatchRecord record = {0};

	record.key = kafka->key;
	record.key_len = kafka->key_len;
	record.value = kafka->value;
	record.value_len = kafka->value_len;
	return (kafka->timestamp_ms < 0 || kafka->timestamp_ms == timestamp_ms) &&
		   batch_record_crc(&record) == crc;
}

static void
gap(KafkaPart *part, int64 to)
{
	char *message = psprintf("records " INT64_FORMAT " to " INT64_FORMAT
							 " of partition %d of topic \"%s\" expired before they were consumed",
							 part->log.position, to - 1, part->log.partition, part->log.topic);

	source_problem(PROBLEM_GAP, message);
	pfree(message);
}

KafkaStatus
source_look_at_range(KafkaPart *part)
{
	int64 low;
	int64 high;
	KafkaStatus status =
		kafka_watermarks(source.client, part->log.topic, part->log.partition, ASK_MS, &low, &high);

	if (status == KAFKA_UNKNOWN_TOPIC)
		return status;
	if (status != KAFKA_OK)
	{
		source_away("offsets", status);
		return status;
	}
	part->fetch_from = part->log.has_last ? part->log.last_offset : part->log.position;
	part->verify = part->log.has_last;
	if (high < part->log.position)
		source_made_again(part->log.topic, part->log.log_id);
	if (low > part->log.position)
	{
		gap(part, low);
		part->fetch_from = low;
		part->verify = false;
	}
	else if (part->fetch_from < low)
	{
		/* only the record to compare with has expired */
		part->fetch_from = part->log.position;
		part->verify = false;
	}
	return KAFKA_OK;
}

/* ---- the same topic? ---- */

/* Records that were consumed, in any partition and generation of a log */
#define WITNESSES 8

typedef struct Witness
{
	int partition;
	int64 offset;
	int64 timestamp_ms;
	uint32 crc;
} Witness;

typedef struct WitnessUnit
{
	int32 log_id;
	int max_partition; /* that has a position, -1 = none */
	Witness witnesses[WITNESSES];
	int nwitnesses;
} WitnessUnit;

static void
witness_unit(void *arg)
{
	WitnessUnit *unit = arg;
	Oid types[2] = {INT4OID, INT4OID};
	Datum values[2] = {Int32GetDatum(unit->log_id), Int32GetDatum(WITNESSES)};
	bool isnull;

	if (SPI_execute_with_args(
			"SELECT pg_catalog.max(log_partition) FROM evstream.partitions WHERE log_id = $1", 1,
			types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.partitions");
	unit->max_partition =
		DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (isnull)
		unit->max_partition = -1;

	if (SPI_execute_with_args(
			"SELECT DISTINCT ON (log_partition) log_partition, last_offset, last_timestamp, last_crc"
			" FROM evstream.batch_log WHERE log_id = $1 AND last_crc IS NOT NULL"
			" ORDER BY log_partition, last_offset DESC LIMIT $2",
			2, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.batch_log");
	unit->nwitnesses = (int) SPI_processed;
	for (int i = 0; i < unit->nwitnesses; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		Witness *witness = &unit->witnesses[i];

		witness->partition = DatumGetInt32(SPI_getbinval(tuple, desc, 1, &isnull));
		witness->offset = DatumGetInt64(SPI_getbinval(tuple, desc, 2, &isnull));
		witness->timestamp_ms = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
		witness->crc = (uint32) DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
	}
}

/*
 * Fetches the record at the offset, or the first one behind it; the status of
 * the attempt.  Takes the place of the assignment.
 */
static KafkaStatus
fetch_one(const char *topic, const Witness *witness, KafkaRecord *record)
{
	KafkaAssignment place = {0};
	int64 end = clock_us() + FETCH_ONE_US;
	KafkaStatus status;

	place.topic = topic;
	place.partition = witness->partition;
	place.offset = witness->offset;
	source_close_fetched();
	source.assigned = false;
	status = kafka_assign(source.client, &place, 1);
	while (status == KAFKA_OK)
	{
		kafka_poll(source.client, NULL, NULL);
		if (kafka_consume(source.client, record, 1) == 1)
		{
			status = record->status;
			if (status != KAFKA_OK)
				kafka_record_free(record);
			return status;
		}
		if (clock_us() >= end)
			return KAFKA_AWAY;
		(void) worker_wait(kafka_fd(source.client), IDLE_MS);
	}
	return status;
}

/*
 * Is the topic the one of this log?  For partitions that have no last record
 * of their own to compare with: those of others speak for them.  False:
 * Kafka does not answer.
 */
static bool
check_log(const char *topic, int32 log_id, int npartitions)
{
	WitnessUnit unit = {0};

	unit.log_id = log_id;
	if (!worker_run("looking for records to compare with", witness_unit, &unit, NULL))
		return false;
	/* partitions are never taken away from a topic */
	if (unit.max_partition >= npartitions)
		source_made_again(topic, log_id);
	for (int i = 0; i < unit.nwitnesses; i++)
	{
		const Witness *witness = &unit.witnesses[i];
		KafkaRecord record;
		int64 low;
		int64 high;
		bool same;
		KafkaStatus status;

		status = kafka_watermarks(source.client, topic, witness->partition, ASK_MS, &low, &high);
		if (status != KAFKA_OK)
		{
			source_away("offsets", status);
			return false;
		}
		if (high <= witness->offset)
			source_made_again(topic, log_id);
		if (low > witness->offset)
			continue;
		status = fetch_one(topic, witness, &record);
		if (status == KAFKA_OUT_OF_RANGE)
			continue;
		if (status != KAFKA_OK)
		{
			source_away("fetching", status);
			return false;
		}
		/* one that was compacted away says nothing */
		if (record.offset != witness->offset)
		{
			kafka_record_free(&record);
			continue;
		}
		same = source_same_record(&record, witness->timestamp_ms, witness->crc);
		kafka_record_free(&record);
		if (!same)
			source_made_again(topic, log_id);
		return true;
	}
	return true;
}

/* ---- partitions and seeks ---- */

typedef struct PartUnit
{
	const char *topic;
	int npartitions;
	int partition;
	KafkaPart *part;
	bool added_later;
	/* a seek that is to be applied; seek_id = 0: none */
	int64 seek_id;
	bool seek_is_time;
	int64 seek_time_ms;
	int64 seek_offset;
	bool seek_force;
	bool seek_settled; /* before this log was there */
	int64 start_offset;
} PartUnit;

static void
load_part_unit(void *arg)
{
	PartUnit *unit = arg;
	int32 log_id = batch_log_id(source.cluster, unit->topic);

	unit->added_later = unit->partition >= batch_log_first_partitions(log_id, unit->npartitions);
	batch_load_partition(&unit->part->log, log_id, unit->partition, source.context);
	unit->part->log.topic = MemoryContextStrdup(source.context, unit->topic);
}

/* The last seek that concerns the partition and was not applied to it. */
static void
find_seek_unit(void *arg)
{
	PartUnit *unit = arg;
	Oid types[5] = {TEXTOID, INT4OID, INT8OID, BOOLOID, INT4OID};
	Datum values[5];
	HeapTuple tuple;
	TupleDesc desc;
	bool isnull;
	TimestampTz to_time;

	values[0] = CStringGetTextDatum(unit->topic);
	values[1] = Int32GetDatum(unit->partition);
	values[2] = Int64GetDatum(unit->part->log.seek_id);
	values[3] = BoolGetDatum(strcmp(unit->topic, setting_kafka_topic) == 0);
	values[4] = Int32GetDatum(unit->part->log.log_id);
	unit->seek_id = 0;
	if (SPI_execute_with_args(
			"SELECT seek_id, to_time, log_offset, force,"
			" settled_at < (SELECT created_at FROM evstream.logs WHERE log_id = $5) IS TRUE"
			" FROM evstream.seeks"
			" WHERE seek_id > $3 AND (log_partition IS NULL OR log_partition = $2)"
			" AND (topic = $1 OR topic IS NULL AND (log_partition IS NULL OR $4))"
			" ORDER BY seek_id DESC LIMIT 1",
			5, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.seeks");
	if (SPI_processed == 0)
		return;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	unit->seek_id = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	to_time = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
	unit->seek_is_time = !isnull;
	/* to Kafka -1 is the end, and other times before 1970 are no times */
	to_time = Min(to_time, PG_INT64_MAX - UNIX_EPOCH_OFFSET_US);
	unit->seek_time_ms = Max((to_time + UNIX_EPOCH_OFFSET_US) / 1000, 0);
	unit->seek_offset = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
	unit->seek_force = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
	unit->seek_settled = DatumGetBool(SPI_getbinval(tuple, desc, 5, &isnull));
}

static void
create_part_unit(void *arg)
{
	PartUnit *unit = arg;

	batch_create_partition(&unit->part->log, unit->start_offset, unit->seek_id);
}

static void
seek_part_unit(void *arg)
{
	PartUnit *unit = arg;

	batch_seek_partition(&unit->part->log, unit->start_offset, unit->seek_force, unit->seek_id);
	batch_load_partition(&unit->part->log, unit->part->log.log_id, unit->partition, source.context);
	unit->part->log.topic = MemoryContextStrdup(source.context, unit->topic);
}

static KafkaStatus
resolve_seek(PartUnit *unit)
{
	int64 low;
	int64 high;
	KafkaStatus status;

	status = kafka_watermarks(source.client, unit->topic, unit->partition, ASK_MS, &low, &high);
	if (status != KAFKA_OK)
		return status;
	if (unit->seek_is_time)
	{
		status = kafka_offset_for_time(source.client, unit->topic, unit->partition,
									   unit->seek_time_ms, ASK_MS, &unit->start_offset);
		return status;
	}
	unit->start_offset = Min(Max(unit->seek_offset, low), high);
	return KAFKA_OK;
}

static KafkaStatus
resolve_start(PartUnit *unit)
{
	int64 start = setting_kafka_start_ms();
	int64 low;
	int64 high;
	KafkaStatus status;

	status = kafka_watermarks(source.client, unit->topic, unit->partition, ASK_MS, &low, &high);
	if (status != KAFKA_OK)
		return status;
	if (unit->added_later || start == SETTING_START_EARLIEST)
		unit->start_offset = low;
	else if (start == SETTING_START_LATEST)
		unit->start_offset = high;
	else
		status = kafka_offset_for_time(source.client, unit->topic, unit->partition, start, ASK_MS,
									   &unit->start_offset);
	return status;
}

/* Applies a pending seek to a partition that has a position; false: try later. */
bool
source_apply_seek(KafkaPart *part)
{
	PartUnit unit = {0};
	KafkaStatus status;

	unit.topic = part->log.topic;
	unit.partition = part->log.partition;
	unit.part = part;
	if (!worker_run("looking for a seek", find_seek_unit, &unit, NULL))
		return false;
	if (unit.seek_id == 0)
		return true;
	status = resolve_seek(&unit);
	if (status != KAFKA_OK)
		source_away("offsets", status);
	if (status != KAFKA_OK || !worker_run("seeking", seek_part_unit, &unit, NULL))
		return false;
	part->verify = false;
	part->fetch_from = part->log.position;
	source.assigned = false;
	return true;
}

/* Loads or begins one partition; NULL: try later. */
static KafkaPart *
load_part(const char *topic, int npartitions, int partition)
{
	KafkaPart *part = MemoryContextAllocZero(source.context, sizeof(KafkaPart));
	PartUnit unit = {0};

	unit.topic = topic;
	unit.npartitions = npartitions;
	unit.partition = partition;
	unit.part = part;
	part->end = -1;
	if (!worker_run("loading a partition", load_part_unit, &unit, NULL))
		return NULL;
	if (!part->log.exists)
	{
		KafkaStatus status;

		if (!worker_run("looking for a seek", find_seek_unit, &unit, NULL))
			return NULL;
		/* what was done before the partition, or the topic, was there is not meant for it */
		status = unit.seek_id != 0 && !unit.added_later && !unit.seek_settled
					 ? resolve_seek(&unit)
					 : resolve_start(&unit);
		if (status != KAFKA_OK)
			source_away("offsets", status);
		if (status != KAFKA_OK ||
			!worker_run("beginning a partition", create_part_unit, &unit, NULL))
			return NULL;
	}
	else if (!source_apply_seek(part))
		return NULL;

	part->unsure = !part->log.has_last;
	part->verify = part->log.has_last;
	part->fetch_from = part->log.has_last ? part->log.last_offset : part->log.position;
	return part;
}

static int
find_part(const char *topic, int partition)
{
	for (int i = 0; i < source.nparts; i++)
		if (source.parts[i]->log.partition == partition &&
			strcmp(source.parts[i]->log.topic, topic) == 0)
			return i;
	return -1;
}

bool
source_assign(void)
{
	KafkaStatus status;

	source_close_fetched();
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];
		KafkaAssignment *a = &source.assignment[i];

		memset(a, 0, sizeof(*a));
		a->topic = part->log.topic;
		a->partition = part->log.partition;
		a->offset = part->fetch_from;
		a->high = -1;
		part->lost = false;
	}
	status = kafka_assign(source.client, source.assignment, source.nparts);
	source.assigned = status == KAFKA_OK;
	if (status != KAFKA_OK)
		source_away("assignment", status);
	return status == KAFKA_OK;
}

/*
 * Partitions that are not there: the topic may be made again before the library
 * says a word of it, so nothing of them is taken before we have looked.
 */
static void
lose_partitions(const char *topic, int from)
{
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];

		if (part->log.partition >= from && strcmp(part->log.topic, topic) == 0)
			part->lost = true;
	}
}

/* Compares the topic, where we have partitions of it that cannot tell. */
static bool
check_unsure(const char *topic, int npartitions)
{
	int32 log_id = -1;

	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart *part = source.parts[i];

		if (strcmp(part->log.topic, topic) == 0 &&
			(part->unsure || (part->lost && !part->log.has_last)))
			log_id = part->log.log_id;
	}
	if (log_id < 0)
		return true;
	if (!check_log(topic, log_id, npartitions))
		return false;
	for (int i = 0; i < source.nparts; i++)
		if (strcmp(source.parts[i]->log.topic, topic) == 0)
			source.parts[i]->unsure = false;
	return true;
}

/* Seeks from before we looked at all topics are not meant for topics that come later. */
static void
settle_seeks_unit(void *arg)
{
	Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1] = {TimestampTzGetDatum(*(TimestampTz *) arg)};

	if (SPI_execute_with_args("UPDATE evstream.seeks SET settled_at = pg_catalog.clock_timestamp()"
							  " WHERE settled_at IS NULL AND requested_at < $1",
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not settle seeks");
}

bool
source_find_partitions(void)
{
	TimestampTz begun = GetCurrentTimestamp();
	ListCell *lc;
	int t = 0;
	int known = 0;

	if (source.cluster[0] == '\0')
	{
		KafkaStatus status =
			kafka_cluster_id(source.client, ASK_MS, source.cluster, sizeof(source.cluster));

		if (status != KAFKA_OK)
		{
			source_away("cluster id", status);
			return false;
		}
	}
	foreach (lc, source.topics)
	{
		const char *topic = lfirst(lc);
		int n = 0;
		KafkaStatus status = kafka_topic_partitions(source.client, topic, ASK_MS, &n);

		if (status == KAFKA_UNKNOWN_TOPIC)
		{
			source.counts[t++] = -1;
			lose_partitions(topic, 0);
			continue;
		}
		if (status != KAFKA_OK)
		{
			source_away("metadata", status);
			return false;
		}
		source.counts[t++] = n;
		known++;
		lose_partitions(topic, n);
		for (int p = worker_self.index; p < n; p += worker_self.count)
		{
			KafkaPart *part;

			if (find_part(topic, p) >= 0)
				continue;
			part = load_part(topic, n, p);
			if (part == NULL)
				return false;
			source.parts = source.nparts == 0
							   ? MemoryContextAlloc(source.context, sizeof(KafkaPart *))
							   : repalloc(source.parts, (source.nparts + 1) * sizeof(KafkaPart *));
			source.assignment =
				source.nparts == 0
					? MemoryContextAllocZero(source.context, sizeof(KafkaAssignment))
					: repalloc(source.assignment, (source.nparts + 1) * sizeof(KafkaAssignment));
			source.parts[source.nparts] = part;
			memset(&source.assignment[source.nparts], 0, sizeof(KafkaAssignment));
			source.assignment[source.nparts].topic = part->log.topic;
			source.assignment[source.nparts].partition = part->log.partition;
			source.nparts++;
			source.assigned = false;
		}
		if (!check_unsure(topic, n))
			return false;
	}
	if (worker_self.index == 0 && !worker_run("settling seeks", settle_seeks_unit, &begun, NULL))
		return false;
	if (known == list_length(source.topics))
	{
		source.missing_since = 0;
		source_problem(PROBLEM_NO_TOPIC, NULL);
		return true;
	}
	if (source.missing_since == 0)
		source.missing_since = clock_us();
	/* the relay may be about to make it */
	if (clock_us() - source.missing_since >= MISSING_US)
	{
		StringInfoData missing;

		initStringInfo(&missing);
		t = 0;
		foreach (lc, source.topics)
		{
			if (source.counts[t++] < 0)
				appendStringInfo(&missing, "%s\"%s\"", missing.len > 0 ? ", " : "",
								 (char *) lfirst(lc));
		}
		source_problem(PROBLEM_NO_TOPIC, psprintf("Kafka has no topic %s", missing.data));
	}
	return true;
}
