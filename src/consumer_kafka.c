/*-------------------------------------------------------------------------
 *
 * consumer_kafka.c
 *	  The consumer's Kafka source: assignment, ownership, gaps, topics made again.
 *
 * A worker has a fixed share of the partitions (number modulo the number of
 * consumers) and never joins the group: the positions in our tables count, and the
 * group's offsets are a mirror of them that carries the owner's mark.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/base64.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "consumer.h"
#include "kafka.h"
#include "outbox.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* A question to a broker holds up a SIGTERM for at most so long */
#define ASK_MS				1000
#define IDLE_MS				1000
/* New partitions, the mark, and the mirror of our positions */
#define UPKEEP_US			(INT64CONST(5) * USECS_PER_SEC)
#define CLOSE_MS			500
/* A first connection or a slow answer is no outage yet */
#define AWAY_US				(INT64CONST(5) * USECS_PER_SEC)
#define MARK_PREFIX			"evstream/"

/* A partition that this worker reads */
typedef struct KafkaPart
{
	LogPartition log;
	int64		fetch_from;		/* where fetching begins at the next assignment */
	bool		verify;			/* the record at last_offset is to be compared */
	bool		lost;			/* position out of range: look again */
	int64		end;			/* end offset as last known */
	int64		last_timestamp_us;
} KafkaPart;

typedef struct KafkaSource
{
	KafkaClient *client;
	MemoryContext context;		/* of this client and its parts */
	char		cluster[128];
	List	   *topics;
	int		   *counts;			/* partitions of each topic, -1 = unknown */
	KafkaPart **parts;
	KafkaAssignment *assignment;
	int			nparts;
	KafkaRecord *fetched;
	int			nfetched;
	TimestampTz next_upkeep;
	TimestampTz next_look;		/* at partitions that are lost */
	char		mark[KAFKA_MARK_SIZE];
	int64		claim;
	bool		away;			/* the last question had no answer */
	TimestampTz away_since;
} KafkaSource;

static KafkaSource source;

/* ---- problems ---- */

/* What can stand at one time, the gravest first: that one is shown */
typedef enum KafkaProblem
{
	PROBLEM_CONFIGURATION,
	PROBLEM_FOREIGN_MARK,
	PROBLEM_AWAY,
	PROBLEM_NO_TOPIC,
	PROBLEM_GAP,
	PROBLEM_COUNT
} KafkaProblem;

static const struct
{
	StatusLevel level;
	const char *code;
	const char *hint;
}			problem_kinds[PROBLEM_COUNT] = {
	[PROBLEM_CONFIGURATION] = {LEVEL_DOWN, "configuration",
	"Check the settings evstream.kafka_* and the secrets file."},
	[PROBLEM_FOREIGN_MARK] = {LEVEL_DOWN, "foreign_mark",
	"If this database is to be the owner, call evstream_take_over(); otherwise set another evstream.kafka_group."},
	[PROBLEM_AWAY] = {LEVEL_DEGRADED, "away",
	"Tracking goes on. Check the brokers and the setting evstream.kafka_brokers."},
	[PROBLEM_NO_TOPIC] = {LEVEL_DEGRADED, "no_topic",
	"Create it, or correct evstream.kafka_topic or evstream.kafka_read_topics."},
	[PROBLEM_GAP] = {LEVEL_DEGRADED, "gap",
	"Raise the topic's retention. evstream_restart() takes this message away."},
};

static char *problems[PROBLEM_COUNT];

/* Begins or ends (message = NULL) a standing problem. */
static void
set_problem(KafkaProblem problem, const char *message)
{
	if (message == NULL && problems[problem] == NULL)
		return;
	if (problems[problem] != NULL)
		pfree(problems[problem]);
	problems[problem] = message == NULL ? NULL : MemoryContextStrdup(TopMemoryContext, message);
	for (int i = 0; i < PROBLEM_COUNT; i++)
	{
		if (problems[i] == NULL)
			continue;
		status_problem(COMPONENT_KAFKA, problem_kinds[i].level, problem_kinds[i].code,
					   problems[i], problem_kinds[i].hint);
		return;
	}
	status_problem(COMPONENT_KAFKA, LEVEL_OK, problem_kinds[problem].code, NULL, NULL);
}

static void
away(const char *what)
{
	TimestampTz now = GetCurrentTimestamp();
	char	   *message = psprintf("could not reach Kafka (%s): %s", what, kafka_error(source.client));

	status_state("waiting");
	if (!source.away)
		source.away_since = now;
	source.away = true;
	if (now - source.away_since >= AWAY_US || kafka_health(source.client) != KAFKA_OK)
		set_problem(PROBLEM_AWAY, message);
	pfree(message);
}

static void
reached(void)
{
	set_problem(PROBLEM_AWAY, NULL);
	source.away = false;
}

/* ---- client ---- */

static void
close_fetched(void)
{
	for (int i = 0; i < source.nfetched; i++)
		kafka_record_free(&source.fetched[i]);
	source.nfetched = 0;
}

static void
close_client(void)
{
	if (source.client == NULL)
		return;
	close_fetched();
	kafka_close(source.client, CLOSE_MS);
	source.client = NULL;
}

static void
forget_client(int code, Datum arg)
{
	close_client();
}

static void
open_client(void)
{
	for (;;)
	{
		KafkaConf	conf = {0};
		char		error[KAFKA_ERROR_SIZE];
		char		client_id[64];
		const char *warning;

		snprintf(client_id, sizeof(client_id), "evstream-consumer-%d", worker_self.index);
		setting_kafka_conf(&conf, client_id);
		source.client = kafka_consumer_open(&conf, error);
		if (source.client != NULL)
		{
			set_problem(PROBLEM_CONFIGURATION, NULL);
			warning = kafka_version_warning(&conf);
			if (warning != NULL)
				ereport(WARNING,
						(errmsg("%s", warning)));
			return;
		}
		set_problem(PROBLEM_CONFIGURATION, error);
		worker_backoff();
	}
}

/* ---- ownership ---- */

typedef struct IdentityUnit
{
	bool		ours;
	int64		claim;
	char		mark[KAFKA_MARK_SIZE];
} IdentityUnit;

static void
identity_unit(void *arg)
{
	IdentityUnit *unit = arg;
	bool		isnull;
	HeapTuple	tuple;
	TupleDesc	desc;
	pg_uuid_t  *uuid;
	char		text[37];
	int64		system;
	Oid			database;

	unit->ours = false;
	if (SPI_execute("SELECT mark, system_identifier, database_oid, claim FROM evstream.identity", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.identity");
	if (SPI_processed == 0)
		return;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	uuid = DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull));
	system = DatumGetInt64(SPI_getbinval(tuple, desc, 2, &isnull));
	database = DatumGetObjectId(SPI_getbinval(tuple, desc, 3, &isnull));
	unit->claim = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
	unit->ours = system == (int64) GetSystemIdentifier() && database == MyDatabaseId;
	event_format_uuid(uuid->data, text);
	snprintf(unit->mark, sizeof(unit->mark), MARK_PREFIX "%s/" UINT64_FORMAT "/%u/" INT64_FORMAT,
			 text, (uint64) system, database, unit->claim);
}

static void
foreign(const char *message)
{
	status_state("stopped");
	set_problem(PROBLEM_FOREIGN_MARK, message);
}

/*
 * Is a mark that we found of another database, which has claimed the group
 * after us?  One of this database is ours, also if the extension was created
 * anew since.
 */
static bool
mark_is_foreign(const char *mark)
{
	const char *place = source.mark + strlen(MARK_PREFIX) + 36;
	const char *claim = strrchr(source.mark, '/');
	Size		prefix = strlen(MARK_PREFIX) + 36;

	if (strncmp(mark, MARK_PREFIX, strlen(MARK_PREFIX)) != 0)
		return false;
	if (strlen(mark) > prefix && strncmp(mark + prefix, place, claim + 1 - place) == 0)
		return false;
	return strtoll(strrchr(mark, '/') + 1, NULL, 10) >= source.claim;
}

/*
 * Reads the marks of the partitions and writes ours where it is missing.
 * False: somebody else owns the group, or Kafka does not answer; then we have
 * waited a bit.
 */
static bool
check_owner(bool claim)
{
	IdentityUnit unit;
	KafkaAssignment *found;
	KafkaStatus status;

	if (!worker_run("reading the identity", identity_unit, &unit, NULL))
	{
		worker_backoff();
		return false;
	}
	if (!unit.ours)
	{
		foreign("this database was restored or moved, and has not taken over its Kafka group");
		(void) worker_wait(-1, IDLE_MS);
		return false;
	}
	strlcpy(source.mark, unit.mark, sizeof(source.mark));
	source.claim = unit.claim;
	if (source.nparts == 0)
		return true;

	found = palloc(source.nparts * sizeof(KafkaAssignment));
	memcpy(found, source.assignment, source.nparts * sizeof(KafkaAssignment));
	status = kafka_committed(source.client, found, source.nparts, ASK_MS);
	if (status != KAFKA_OK)
	{
		pfree(found);
		away("committed offsets");
		(void) worker_wait(-1, IDLE_MS);
		return false;
	}
	for (int i = 0; i < source.nparts; i++)
	{
		if (found[i].mark[0] != '\0' && mark_is_foreign(found[i].mark))
		{
			char	   *message = psprintf("the Kafka group \"%s\" belongs to another database (mark %s)",
										   setting_group_name(), found[i].mark);

			foreign(message);
			pfree(message);
			pfree(found);
			(void) worker_wait(-1, IDLE_MS);
			return false;
		}
	}
	set_problem(PROBLEM_FOREIGN_MARK, NULL);

	for (int i = 0; i < source.nparts; i++)
	{
		found[i].committed = source.parts[i]->log.position;
		strlcpy(found[i].mark, source.mark, KAFKA_MARK_SIZE);
	}
	status = kafka_commit(source.client, found, source.nparts, claim ? ASK_MS : 0);
	pfree(found);
	if (claim && status != KAFKA_OK)
	{
		away("commit of offsets");
		(void) worker_wait(-1, IDLE_MS);
		return false;
	}
	return true;
}

/* ---- partitions and seeks ---- */

typedef struct PartUnit
{
	const char *topic;
	int			npartitions;
	int			partition;
	KafkaPart  *part;
	bool		added_later;
	/* a seek that is to be applied; seek_id = 0: none */
	int64		seek_id;
	bool		seek_is_time;
	int64		seek_time_ms;
	int64		seek_offset;
	bool		seek_force;
	int64		start_offset;
} PartUnit;

static void
load_part_unit(void *arg)
{
	PartUnit   *unit = arg;
	int32		log_id = batch_log_id(source.cluster, unit->topic);

	unit->added_later = unit->partition >= batch_log_first_partitions(log_id, unit->npartitions);
	batch_load_partition(&unit->part->log, log_id, unit->partition, source.context);
	unit->part->log.topic = MemoryContextStrdup(source.context, unit->topic);
}

/* The last seek that concerns the partition and was not applied to it. */
static void
find_seek_unit(void *arg)
{
	PartUnit   *unit = arg;
	Oid			types[4] = {TEXTOID, INT4OID, INT8OID, BOOLOID};
	Datum		values[4];
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull;
	TimestampTz to_time;

	values[0] = CStringGetTextDatum(unit->topic);
	values[1] = Int32GetDatum(unit->partition);
	values[2] = Int64GetDatum(unit->part->log.seek_id);
	values[3] = BoolGetDatum(strcmp(unit->topic, setting_kafka_topic) == 0);
	unit->seek_id = 0;
	if (SPI_execute_with_args("SELECT seek_id, to_time, log_offset, force FROM evstream.seeks"
							  " WHERE seek_id > $3 AND (log_partition IS NULL OR log_partition = $2)"
							  " AND (topic = $1 OR topic IS NULL AND (log_partition IS NULL OR $4))"
							  " ORDER BY seek_id DESC LIMIT 1", 4, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.seeks");
	if (SPI_processed == 0)
		return;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	unit->seek_id = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	to_time = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 2, &isnull));
	unit->seek_is_time = !isnull;
	unit->seek_time_ms = (to_time + UNIX_EPOCH_OFFSET_US) / 1000;
	unit->seek_offset = DatumGetInt64(SPI_getbinval(tuple, desc, 3, &isnull));
	unit->seek_force = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
}

static void
create_part_unit(void *arg)
{
	PartUnit   *unit = arg;

	batch_create_partition(&unit->part->log, unit->start_offset, unit->seek_id);
}

static void
seek_part_unit(void *arg)
{
	PartUnit   *unit = arg;

	batch_seek_partition(&unit->part->log, unit->start_offset, unit->seek_force, unit->seek_id);
	batch_load_partition(&unit->part->log, unit->part->log.log_id, unit->partition, source.context);
	unit->part->log.topic = MemoryContextStrdup(source.context, unit->topic);
}

static KafkaStatus
resolve_seek(PartUnit *unit)
{
	int64		low;
	int64		high;
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
	int64		start = setting_kafka_start_ms();
	int64		low;
	int64		high;
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
static bool
apply_seek(KafkaPart *part, bool *moved)
{
	PartUnit	unit = {0};

	unit.topic = part->log.topic;
	unit.partition = part->log.partition;
	unit.part = part;
	if (!worker_run("looking for a seek", find_seek_unit, &unit, NULL))
		return false;
	if (unit.seek_id == 0)
		return true;
	if (resolve_seek(&unit) != KAFKA_OK ||
		!worker_run("seeking", seek_part_unit, &unit, NULL))
		return false;
	part->verify = false;
	part->fetch_from = part->log.position;
	*moved = true;
	return true;
}

/* Loads or begins one partition; NULL: try later. */
static KafkaPart *
load_part(const char *topic, int npartitions, int partition)
{
	KafkaPart  *part = MemoryContextAllocZero(source.context, sizeof(KafkaPart));
	PartUnit	unit = {0};
	bool		moved = false;

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
		/* what was asked for before the partition was there is not meant for it */
		status = unit.seek_id != 0 && !unit.added_later ? resolve_seek(&unit) : resolve_start(&unit);
		if (status != KAFKA_OK || !worker_run("beginning a partition", create_part_unit, &unit, NULL))
			return NULL;
	}
	else if (!apply_seek(part, &moved))
		return NULL;

	part->verify = part->log.has_last;
	part->fetch_from = part->log.has_last ? part->log.last_offset : part->log.position;
	return part;
}

static int
find_part(const char *topic, int partition)
{
	for (int i = 0; i < source.nparts; i++)
		if (source.parts[i]->log.partition == partition && strcmp(source.parts[i]->log.topic, topic) == 0)
			return i;
	return -1;
}

static bool
assign(void)
{
	KafkaStatus status;

	close_fetched();
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart  *part = source.parts[i];
		KafkaAssignment *a = &source.assignment[i];

		memset(a, 0, sizeof(*a));
		a->topic = part->log.topic;
		a->partition = part->log.partition;
		a->offset = part->fetch_from;
		a->high = -1;
		part->lost = false;
	}
	status = kafka_assign(source.client, source.assignment, source.nparts);
	if (status != KAFKA_OK)
		away("assignment");
	return status == KAFKA_OK;
}

/*
 * Looks which partitions there are, and takes those of ours that are new.
 * False: Kafka does not answer.
 */
static bool
find_partitions(bool *changed)
{
	ListCell   *lc;
	int			t = 0;
	int			known = 0;

	if (source.cluster[0] == '\0' &&
		kafka_cluster_id(source.client, ASK_MS, source.cluster, sizeof(source.cluster)) != KAFKA_OK)
	{
		away("cluster id");
		return false;
	}
	foreach(lc, source.topics)
	{
		const char *topic = lfirst(lc);
		int			n = 0;
		KafkaStatus status = kafka_topic_partitions(source.client, topic, ASK_MS, &n);

		if (status == KAFKA_UNKNOWN_TOPIC)
		{
			source.counts[t++] = -1;
			continue;
		}
		if (status != KAFKA_OK)
		{
			away("metadata");
			return false;
		}
		source.counts[t++] = n;
		known++;
		for (int p = worker_self.index; p < n; p += worker_self.count)
		{
			KafkaPart  *part;

			if (find_part(topic, p) >= 0)
				continue;
			part = load_part(topic, n, p);
			if (part == NULL)
			{
				if (kafka_health(source.client) != KAFKA_OK)
					away("offsets");
				return false;
			}
			source.parts = source.nparts == 0 ?
				MemoryContextAlloc(source.context, sizeof(KafkaPart *)) :
				repalloc(source.parts, (source.nparts + 1) * sizeof(KafkaPart *));
			source.assignment = source.nparts == 0 ?
				MemoryContextAllocZero(source.context, sizeof(KafkaAssignment)) :
				repalloc(source.assignment, (source.nparts + 1) * sizeof(KafkaAssignment));
			source.parts[source.nparts] = part;
			memset(&source.assignment[source.nparts], 0, sizeof(KafkaAssignment));
			source.assignment[source.nparts].topic = part->log.topic;
			source.assignment[source.nparts].partition = part->log.partition;
			source.nparts++;
			*changed = true;
		}
	}
	reached();
	if (known < list_length(source.topics))
	{
		StringInfoData missing;

		initStringInfo(&missing);
		t = 0;
		foreach(lc, source.topics)
		{
			if (source.counts[t++] < 0)
				appendStringInfo(&missing, "%s\"%s\"", missing.len > 0 ? ", " : "", (char *) lfirst(lc));
		}
		set_problem(PROBLEM_NO_TOPIC, psprintf("Kafka has no topic %s", missing.data));
	}
	else
		set_problem(PROBLEM_NO_TOPIC, NULL);
	return true;
}

/* ---- gaps, and topics made again ---- */

static void
renew_unit(void *arg)
{
	batch_log_renew(((KafkaPart *) arg)->log.log_id);
}

/*
 * Another topic has the name: its records are other records, so they get a
 * new log and new positions.  All workers begin anew, as they know the old one.
 */
static void
made_again(KafkaPart *part)
{
	ereport(LOG,
			(errmsg("topic \"%s\" was made again, it is consumed from its start", part->log.topic)));
	while (!worker_run("beginning a topic anew", renew_unit, part, NULL))
		worker_backoff();
	status_look_again(MyDatabaseId, true);
	worker_restart("a topic was made again");
}

static void
gap(KafkaPart *part, int64 to)
{
	char	   *message = psprintf("records " INT64_FORMAT " to " INT64_FORMAT " of partition %d of topic \"%s\" expired before they were consumed",
								   part->log.position, to - 1, part->log.partition, part->log.topic);

	set_problem(PROBLEM_GAP, message);
	pfree(message);
}

/*
 * Position out of range, or no such partition: find out why.  KAFKA_OK if it can be fetched
 * again, KAFKA_UNKNOWN_TOPIC if it is not there.
 */
static KafkaStatus
look_at_range(KafkaPart *part)
{
	int64		low;
	int64		high;
	KafkaStatus status = kafka_watermarks(source.client, part->log.topic, part->log.partition, ASK_MS, &low, &high);

	if (status == KAFKA_UNKNOWN_TOPIC)
		return status;
	if (status != KAFKA_OK)
	{
		away("watermarks");
		return status;
	}
	part->fetch_from = part->log.has_last ? part->log.last_offset : part->log.position;
	part->verify = part->log.has_last;
	if (high < part->log.position)
		made_again(part);
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

/* ---- records ---- */

static char *
headers_json(const BatchRecord *record)
{
	const KafkaRecord *kafka = record->source;
	StringInfoData json;
	const char *name;
	const char *value;
	size_t		len;

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
			int			size = pg_b64_enc_len((int) len);
			char	   *encoded = palloc(size + 1);
			int			n = pg_b64_encode((const void *) value, (int) len, encoded, size);

			appendStringInfo(&json, ", \"%.*s\"]", n, encoded);
			pfree(encoded);
		}
	}
	if (json.len == 0)
		return NULL;
	appendStringInfoChar(&json, ']');
	return json.data;
}

/* Is this the record that we consumed last? */
static bool
is_last_record(const KafkaPart *part, const KafkaRecord *kafka)
{
	BatchRecord record = {0};

	record.key = kafka->key;
	record.key_len = kafka->key_len;
	record.value = kafka->value;
	record.value_len = kafka->value_len;
	return (kafka->timestamp_ms < 0 || kafka->timestamp_ms == part->log.last_timestamp) &&
		batch_record_crc(&record) == part->log.last_crc;
}

/* Takes one fetched record into the batch; false if it is none to store. */
static bool
take_record(KafkaRecord *kafka, BatchRecord *record)
{
	KafkaPart  *part;
	const char *text;
	size_t		len;

	if (kafka->status != KAFKA_OK)
	{
		if (kafka->part >= 0 && (kafka->status == KAFKA_OUT_OF_RANGE || kafka->status == KAFKA_UNKNOWN_TOPIC))
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
			if (!is_last_record(part, kafka))
				made_again(part);
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
	record->timestamp_us = kafka->timestamp_ms >= 0 ? kafka->timestamp_ms * 1000 :
		GetCurrentTimestamp() + UNIX_EPOCH_OFFSET_US;
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
	record->pass_over = batch_was_consumed(&part->log, kafka->offset) ||
		(kafka_record_header(kafka, "evstream-origin", &text, &len) &&
		 text != NULL && outbox_was_read_locally(text, len));
	part->last_timestamp_us = record->timestamp_us;
	return true;
}

static void
show_lag(void)
{
	kafka_highs(source.client, source.assignment, source.nparts);
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart  *part = source.parts[i];

		if (source.assignment[i].high >= 0)
			part->end = source.assignment[i].high;
		status_lag(part->log.log_id, part->log.topic, part->log.partition, part->log.position,
				   Max(part->end, part->log.position),
				   part->last_timestamp_us == 0 ? 0 : part->last_timestamp_us - UNIX_EPOCH_OFFSET_US);
	}
}

/* ---- the loop ---- */

static void
load_ranges_unit(void *arg)
{
	outbox_adopt();
	outbox_local_ranges_load();
}

static void
paused_unit(void *arg)
{
	*(bool *) arg = batch_is_paused();
}

/*
 * From nothing to an assignment; returns only when all of that was possible.
 * What a paused consumer needs is done as well: the positions of new topics.
 */
static void
begin(void)
{
	bool		changed;

	for (;;)
	{
		worker_check();
		kafka_poll(source.client, NULL, NULL);
		if (check_owner(false) && find_partitions(&changed) && check_owner(true))
			break;
		(void) worker_wait(kafka_fd(source.client), 200);
	}
	while (!assign())
		(void) worker_wait(-1, IDLE_MS);
	source.next_upkeep = GetCurrentTimestamp() + UPKEEP_US;
}

/* Partitions that are new or lost, seeks, mark and mirror. */
static void
upkeep(void)
{
	bool		changed = false;
	bool		stopped = false;

	source.next_look = GetCurrentTimestamp() + IDLE_MS * INT64CONST(1000);
	while (!check_owner(false))
	{
		/* Kafka may be away, that is no reason to give the records up */
		if (source.away)
			return;
		stopped = true;
	}
	if (!find_partitions(&changed))
		return;
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart  *part = source.parts[i];
		bool		moved = false;

		if (!apply_seek(part, &moved))
			return;
		if (part->lost)
		{
			KafkaStatus status = look_at_range(part);

			/* one that is not there must not hold up the others */
			if (status != KAFKA_OK && status != KAFKA_UNKNOWN_TOPIC)
				return;
			moved = moved || status == KAFKA_OK;
		}
		changed = changed || moved;
	}
	source.next_upkeep = GetCurrentTimestamp() + UPKEEP_US;
	if (!changed && !stopped)
		return;
	for (int i = 0; i < source.nparts; i++)
	{
		KafkaPart  *part = source.parts[i];

		if (!part->verify && part->fetch_from < part->log.position)
			part->fetch_from = part->log.position;
	}
	while (!assign())
		(void) worker_wait(-1, IDLE_MS);
	(void) check_owner(true);
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
	bool		paused = false;

	source.context = AllocSetContextCreate(consumer.long_context, "evstream Kafka source", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(source.context);
	source.topics = setting_topics();
	source.counts = palloc0(list_length(source.topics) * sizeof(int));
	source.fetched = MemoryContextAllocHuge(source.context, setting_batch_size * sizeof(KafkaRecord));
	records = MemoryContextAllocHuge(source.context, setting_batch_size * sizeof(BatchRecord));
	MemoryContextSwitchTo(consumer.batch_context);
	before_shmem_exit(forget_client, 0);

	while (!worker_run("loading local ranges", load_ranges_unit, NULL, NULL))
		worker_backoff();
	open_client();
	status_lag_clear();
	begin();

	for (;;)
	{
		int			n = 0;
		TimestampTz now = GetCurrentTimestamp();

		worker_check();
		MemoryContextReset(consumer.batch_context);
		kafka_poll(source.client, NULL, NULL);

		if (worker_self.index == 0)
			(void) consumer_retries();
		if (now >= source.next_upkeep || (any_lost() && now >= source.next_look))
		{
			upkeep();
			show_lag();
		}
		if (!worker_run("looking whether consumption is paused", paused_unit, &paused, NULL))
		{
			worker_backoff();
			continue;
		}
		if (paused)
		{
			status_state("paused");
			(void) worker_wait(-1, IDLE_MS);
			continue;
		}

		source.nfetched = kafka_consume(source.client, source.fetched, setting_batch_size);
		for (int i = 0; i < source.nfetched; i++)
			if (take_record(&source.fetched[i], &records[n]))
				n++;
		if (n > 0)
		{
			reached();
			if (!consumer_store(records, n, headers_json))
				worker_restart("a partition was moved");
			show_lag();
		}
		close_fetched();
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
			away("fetching");
		(void) worker_wait(kafka_fd(source.client), IDLE_MS);
	}
}
