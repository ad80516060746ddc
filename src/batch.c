/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  The batch log, and the transaction that stores a batch of records.
 *
 * The first statement of a batch inserts its row into the batch log: the
 * position moves in the transaction of the data, and the unique key stops a
 * second owner of the partition.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "port/pg_crc32c.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "batch.h"
#include "compat.h"
#include "daily.h"
#include "dedupe.h"
#include "event_id.h"
#include "partition.h"
#include "poison.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "store.h"

/* What a batch holds of one partition */
typedef struct BatchPart
{
	LogPartition *part;
	int64 to_offset;
	const BatchRecord *last;
	TimestampTz next_received_at;
	TimestampTz last_received_at;
} BatchPart;

/* ---- logs ---- */

/* One at a time: relay and consumers may come here together. */
static void
lock_logs(void)
{
	sql_execute("LOCK TABLE evstream.logs IN SHARE ROW EXCLUSIVE MODE", 0, NULL, NULL, NULL,
				SPI_OK_UTILITY);
}

#define NEWEST_LOG                                                                                 \
	"SELECT log_id FROM evstream.logs WHERE cluster_id = $1 AND topic = $2 ORDER BY incarnation DESC LIMIT 1"

int32
batch_log_id(const char *cluster_id, const char *topic)
{
	Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2] = {CStringGetTextDatum(cluster_id), CStringGetTextDatum(topic)};

	if (sql_execute(NEWEST_LOG, 2, types, values, NULL, SPI_OK_SELECT) == 0)
	{
		lock_logs();
		if (sql_execute(NEWEST_LOG, 2, types, values, NULL, SPI_OK_SELECT) == 0)
			sql_execute(
				"INSERT INTO evstream.logs (log_id, kind, cluster_id, topic)"
				" SELECT GREATEST(2, max(log_id)) + 1, 'kafka', $1, $2 FROM evstream.logs RETURNING log_id",
				2, types, values, NULL, SPI_OK_INSERT_RETURNING);
	}
	return DatumGetInt32(sql_column(0, 1, NULL));
}

void
batch_log_renew(int32 log_id)
{
	Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(log_id)};

	lock_logs();
	sql_execute(
		"INSERT INTO evstream.logs (log_id, kind, cluster_id, topic, incarnation, first_partitions)"
		" SELECT (SELECT max(log_id) FROM evstream.logs) + 1, 'kafka', l.cluster_id, l.topic, l.incarnation + 1, 0"
		" FROM evstream.logs l WHERE l.log_id = $1 AND NOT EXISTS (SELECT FROM evstream.logs n"
		"   WHERE n.cluster_id = l.cluster_id AND n.topic = l.topic AND n.incarnation > l.incarnation)",
		1, types, values, NULL, SPI_OK_INSERT);
}

int
batch_log_first_partitions(int32 log_id, int npartitions)
{
	Oid types[2] = {INT4OID, INT4OID};
	Datum values[2] = {Int32GetDatum(log_id), Int32GetDatum(npartitions)};

	sql_execute(
		"UPDATE evstream.logs SET first_partitions = $2 WHERE log_id = $1 AND first_partitions IS NULL",
		2, types, values, NULL, SPI_OK_UPDATE);
	if (sql_execute("SELECT first_partitions FROM evstream.logs WHERE log_id = $1", 1, types,
					values, NULL, SPI_OK_SELECT) == 0)
		elog(ERROR, "log %d does not exist", log_id);
	return DatumGetInt32(sql_column(0, 1, NULL));
}

bool
batch_log_has_positions(int32 log_id, int npartitions)
{
	Oid types[2] = {INT4OID, INT4OID};
	Datum values[2] = {Int32GetDatum(log_id), Int32GetDatum(npartitions)};

	sql_execute(
		"SELECT pg_catalog.count(*) >= $2 FROM evstream.partitions WHERE log_id = $1 AND log_partition < $2",
		2, types, values, NULL, SPI_OK_SELECT);
	return DatumGetBool(sql_column(0, 1, NULL));
}

char *
batch_log_name(int32 log_id)
{
	Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(log_id)};

	if (sql_execute(
			"SELECT (kind || COALESCE('/' || cluster_id || '/' || topic || '/' || incarnation, ''))::pg_catalog.text FROM evstream.logs WHERE log_id = $1",
			1, types, values, NULL, SPI_OK_SELECT) == 0)
		elog(ERROR, "log %d does not exist", log_id);
	return TextDatumGetCString(sql_column(0, 1, NULL));
}

/* ---- partitions ---- */

void
batch_load_partition(LogPartition *part, int32 log_id, int32 partition, MemoryContext context)
{
	Oid types[2] = {INT4OID, INT4OID};
	Datum values[2] = {Int32GetDatum(log_id), Int32GetDatum(partition)};
	bool isnull;
	TimestampTz last;
	char *name = batch_log_name(log_id);

	memset(part, 0, sizeof(*part));
	part->log_id = log_id;
	part->partition = partition;
	part->log_name = MemoryContextStrdup(context, name);
	part->last_timestamp = -1;
	if (sql_execute("SELECT generation, start_offset, forced, seek_id FROM evstream.partitions"
					" WHERE log_id = $1 AND log_partition = $2",
					2, types, values, NULL, SPI_OK_SELECT) == 0)
		return;
	part->exists = true;
	part->generation = DatumGetInt32(sql_column(0, 1, NULL));
	part->position = DatumGetInt64(sql_column(0, 2, NULL));
	part->forced = DatumGetBool(sql_column(0, 3, NULL));
	part->seek_id = DatumGetInt64(sql_column(0, 4, NULL));

	/* received_at grows within the partition, through all generations */
	sql_execute(
		"SELECT max(last_received_at) FROM evstream.batch_log WHERE log_id = $1 AND log_partition = $2",
		2, types, values, NULL, SPI_OK_SELECT);
	part->last_received_at = DatumGetTimestampTz(sql_column(0, 1, &isnull));
	if (isnull)
		part->last_received_at = 0;
	if (status_received(MyDatabaseId, 0) == 0)
	{
		/* the clock may have gone back while the server was down */
		sql_execute("SELECT max(last_received_at) FROM evstream.batch_log", 0, NULL, NULL, NULL,
					SPI_OK_SELECT);
		last = DatumGetTimestampTz(sql_column(0, 1, &isnull));
		if (!isnull)
			(void) status_received(MyDatabaseId, last);
	}

	if (sql_execute(
			"SELECT b.to_offset, b.last_offset, b.last_timestamp, b.last_crc"
			" FROM evstream.batch_log b JOIN evstream.partitions p USING (log_id, log_partition, generation)"
			" WHERE log_id = $1 AND log_partition = $2 ORDER BY b.from_offset DESC LIMIT 1",
			2, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		part->has_last = true;
		part->position = DatumGetInt64(sql_column(0, 1, NULL));
		part->last_offset = DatumGetInt64(sql_column(0, 2, NULL));
		part->last_timestamp = DatumGetInt64(sql_column(0, 3, &isnull));
		if (isnull)
			part->last_timestamp = -1;
		part->last_crc = (uint32) DatumGetInt64(sql_column(0, 4, &isnull));
		if (isnull)
			part->has_last = false;
	}

	if (part->forced)
		return;
	sql_execute(
		"SELECT pg_catalog.lower(r), pg_catalog.upper(r) FROM evstream.partitions p,"
		" pg_catalog.unnest(p.consumed + COALESCE((SELECT pg_catalog.range_agg(pg_catalog.int8range(b.from_offset, b.to_offset))"
		"   FROM evstream.batch_log b WHERE b.log_id = p.log_id AND b.log_partition = p.log_partition"
		"   AND b.generation <> p.generation), '{}')) r"
		" WHERE p.log_id = $1 AND p.log_partition = $2 ORDER BY 1",
		2, types, values, NULL, SPI_OK_SELECT);
	part->nconsumed = (int) SPI_processed;
	part->consumed = MemoryContextAlloc(context, Max(1, part->nconsumed) * sizeof(OffsetRange));
	for (int i = 0; i < part->nconsumed; i++)
	{
		part->consumed[i].from = DatumGetInt64(sql_column(i, 1, NULL));
		part->consumed[i].to = DatumGetInt64(sql_column(i, 2, NULL));
	}
}

void
batch_create_partition(LogPartition *part, int64 start_offset, int64 seek_id)
{
	Oid types[4] = {INT4OID, INT4OID, INT8OID, INT8OID};
	Datum values[4] = {Int32GetDatum(part->log_id), Int32GetDatum(part->partition),
					   Int64GetDatum(start_offset), Int64GetDatum(seek_id)};

	sql_execute(
		"INSERT INTO evstream.partitions (log_id, log_partition, generation, start_offset, seek_id)"
		" VALUES ($1, $2, 0, $3, $4)",
		4, types, values, NULL, SPI_OK_INSERT);
	part->exists = true;
	part->position = start_offset;
	part->seek_id = seek_id;
}

void
batch_seek_partition(LogPartition *part, int64 start_offset, bool forced, int64 seek_id)
{
	Oid types[6] = {INT4OID, INT4OID, INT8OID, BOOLOID, INT8OID, INT4OID};
	Datum values[6] = {Int32GetDatum(part->log_id), Int32GetDatum(part->partition),
					   Int64GetDatum(start_offset), BoolGetDatum(forced),
					   Int64GetDatum(seek_id),      Int32GetDatum(part->generation)};

	/* stronger than what an UPDATE takes by itself: against those who store a batch */
	sql_execute("SELECT FROM evstream.partitions WHERE log_id = $1 AND log_partition = $2"
				" FOR UPDATE",
				2, types, values, NULL, SPI_OK_SELECT);
	if (sql_execute(
			"UPDATE evstream.partitions SET generation = generation + 1, start_offset = $3, forced = $4, seek_id = $5"
			" WHERE log_id = $1 AND log_partition = $2 AND generation = $6",
			6, types, values, NULL, SPI_OK_UPDATE) != 1)
		ereport(ERROR, (errcode(ERRCODE_EVSTREAM_MOVED),
						errmsg("partition %d was moved by another consumer", part->partition)));
}

bool
batch_was_consumed(const LogPartition *part, int64 offset)
{
	int low = 0;
	int high = part->nconsumed;

	/* the last range that begins at or before offset */
	while (low < high)
	{
		int middle = (low + high) / 2;

		if (part->consumed[middle].from <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low > 0 && offset < part->consumed[low - 1].to;
}

uint32
batch_record_crc(const BatchRecord *record)
{
	pg_crc32c crc;

	INIT_CRC32C(crc);
	if (record->key != NULL)
		COMP_CRC32C(crc, record->key, record->key_len);
	if (record->value != NULL)
		COMP_CRC32C(crc, record->value, record->value_len);
	FIN_CRC32C(crc);
	return crc;
}

bool
batch_is_restored(void)
{
	sql_execute(
		"SELECT EXISTS (SELECT FROM evstream.restored) OR NOT EXISTS (SELECT FROM evstream.state)",
		0, NULL, NULL, NULL, SPI_OK_SELECT);
	return DatumGetBool(sql_column(0, 1, NULL));
}

#define NOT_PAUSED                                                                                 \
	"EXISTS (SELECT FROM evstream.state WHERE NOT paused)"                                         \
	" AND NOT EXISTS (SELECT FROM evstream.restored)"

bool
batch_is_paused(void)
{
	sql_execute_kept("SELECT NOT (" NOT_PAUSED ")", 0, NULL, NULL, NULL, false, SPI_OK_SELECT);
	return DatumGetBool(sql_column(0, 1, NULL));
}

/* ---- parsing ---- */

static DateADT
day_of(TimestampTz at, pg_tz *zone)
{
	struct pg_tm tm;
	fsec_t fsec;
	int tz;
	long offset;

	if (IS_VALID_TIMESTAMP(at) && pg_get_timezone_offset(zone, &offset))
		return partition_day(at + offset * USECS_PER_SEC);
	if (timestamp2tm(at, &tz, &tm, &fsec, NULL, zone) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	return date2j(tm.tm_year, tm.tm_mon, tm.tm_mday) - POSTGRES_EPOCH_JDATE;
}

PG_FUNCTION_INFO_V1(evstream_day_of);

/*
 * evstream.day_of(timestamptz, text): as the consumers have it.  AT TIME ZONE
 * takes "CET" for the abbreviation, which knows no summer time.
 */
Datum
evstream_day_of(PG_FUNCTION_ARGS)
{
	TimestampTz at = PG_GETARG_TIMESTAMPTZ(0);
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	pg_tz *zone = pg_tzset(name);

	if (zone == NULL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("time zone \"%s\" not recognized", name)));
	PG_RETURN_DATEADT(day_of(at, zone));
}

void
batch_parse(Batch *batch)
{
	EventLimits limits = {0};
	int64 now_us = GetCurrentTimestamp() + UNIX_EPOCH_OFFSET_US;

	limits.max_bytes = setting_max_event_bytes;
	limits.max_skew_us = setting_interval_us(setting_max_clock_skew);

	for (int i = 0; i < batch->nrecords; i++)
	{
		BatchRecord *record = &batch->records[i];
		char detail[EVENT_DETAIL_SIZE];

		if (record->pass_over || record->value == NULL)
			continue;
		if (record->condemned != EVENT_OK)
		{
			record->reason = record->condemned;
			record->detail = record->condemned_detail;
			continue;
		}
		limits.record_us = record->timestamp_us;
		/* what was tracked by a clock that has gone back since is no event of the future */
		limits.now_us = record->tracked ? Max(now_us, record->timestamp_us + 999) : now_us;
		limits.traceparent = record->traceparent;
		poison_at = record;
		record->reason = event_parse(record->value, record->value_len, &limits, batch->arena,
									 &record->event, detail);
		poison_debug_parsed(record->reason, &record->event);
		poison_at = NULL;
		if (record->reason == EVENT_NO_MEMORY)
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
		if (record->reason != EVENT_OK)
		{
			record->detail = pstrdup(detail);
			continue;
		}
		if (!event_id_of(&record->event, &record->id) && !record->has_id)
			event_id_derive(record->part->log_name, record->part->partition, record->offset,
							&record->id);
		record->occurred_at = record->event.occurred_us - UNIX_EPOCH_OFFSET_US;
		record->day = day_of(record->occurred_at, batch->zone);
	}
}

/* ---- storing ---- */

static BatchPart *
collect_parts(Batch *batch, int *nparts)
{
	BatchPart *parts = NULL;
	int allocated = 0;
	int n = 0;
	TimestampTz clock = GetCurrentTimestamp();
	TimestampTz now = status_received(MyDatabaseId, clock);
	TimestampTz last = now;

	/*
	 * Where the clock has gone back, no partition's time falls behind that of the
	 * others: who asks from the last event on that he has finds what came after it.
	 */
	if (now > clock)
		now++;
	for (int i = 0; i < batch->nrecords; i++)
		batch->records[i].part->slot = -1;
	for (int i = 0; i < batch->nrecords; i++)
	{
		BatchRecord *record = &batch->records[i];
		LogPartition *part = record->part;
		BatchPart *bp;

		if (part->slot < 0)
		{
			if (n == allocated)
			{
				allocated = allocated == 0 ? 16 : allocated * 2;
				parts = parts == NULL ? palloc(allocated * sizeof(BatchPart))
									  : repalloc(parts, allocated * sizeof(BatchPart));
			}
			part->slot = n;
			bp = &parts[n++];
			memset(bp, 0, sizeof(*bp));
			bp->part = part;
			bp->next_received_at = Max(now, part->last_received_at + 1);
		}
		bp = &parts[part->slot];
		bp->to_offset = record->offset + 1;
		bp->last = record;
		record->received_at = bp->next_received_at++;
		bp->last_received_at = record->received_at;
		last = Max(last, record->received_at);
	}
	(void) status_received(MyDatabaseId, last);
	*nparts = n;
	return parts;
}

static void
moved(const LogPartition *part)
{
	ereport(ERROR, (errcode(ERRCODE_EVSTREAM_MOVED),
					errmsg("partition %d of log %d was moved by another consumer", part->partition,
						   part->log_id),
					errdetail("This consumer was at offset " INT64_FORMAT " of generation %d.",
							  part->position, part->generation)));
}

/*
 * Position and fence.  The row of the partition is locked against a change of
 * generation, and not against maintenance, which locks rows of several partitions
 * as well, in an order of its own.  Of two owners at the same position the unique
 * key lets one insert; one whose position is older is told by the rows that are
 * ahead of it.  False if nothing was done, as consumption is paused, which the
 * first of a batch asks.
 * Tells also whether today is among the days on which events were received.
 */
static bool
log_batch(const BatchPart *bp, bool is_first, bool *day_known)
{
	const LogPartition *part = bp->part;
	Oid types[13] = {INT4OID, INT4OID,        INT4OID, INT8OID, INT8OID, INT8OID, INT8OID,
					 INT8OID, TIMESTAMPTZOID, INT8OID, XID8OID, INT8OID, BOOLOID};
	Datum values[13];
	char nulls[13];
	uint64 n;

	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int32GetDatum(part->log_id);
	values[1] = Int32GetDatum(part->partition);
	values[2] = Int32GetDatum(part->generation);
	values[3] = Int64GetDatum(part->position);
	values[4] = Int64GetDatum(bp->to_offset);
	values[5] = Int64GetDatum(bp->last->offset);
	values[6] = Int64GetDatum(bp->last->timestamp_us / 1000);
	values[7] = Int64GetDatum((int64) batch_record_crc(bp->last));
	values[8] = TimestampTzGetDatum(bp->last_received_at);
	values[9] = Int64GetDatum(bp->last->outbox_after.tick);
	values[10] = FullTransactionIdGetDatum(FullTransactionIdFromU64(bp->last->outbox_after.xid));
	values[11] = Int64GetDatum(bp->last->outbox_after.id);
	values[12] = BoolGetDatum(!is_first);
	if (part->log_id != LOG_EMBEDDED)
		nulls[9] = nulls[10] = nulls[11] = 'n';

	/* again, if it was paused just now, and is not any more */
	for (
		int i = 0;
		sql_execute_kept(
			"WITH p AS MATERIALIZED (SELECT generation FROM evstream.partitions"
			"   WHERE log_id = $1 AND log_partition = $2 FOR KEY SHARE)"
			" INSERT INTO evstream.batch_log (log_id, log_partition, generation, from_offset, to_offset,"
			"   last_offset, last_timestamp, last_crc, last_received_at, tick, xid, id)"
			" SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM p"
			" WHERE p.generation = $3 AND ($13 OR " NOT_PAUSED ")"
			" ON CONFLICT (log_id, log_partition, generation, from_offset) DO NOTHING",
			13, types, values, nulls, false, SPI_OK_INSERT) != 1;
		i++)
	{
		if (is_first && batch_is_paused())
			return false;
		if (!is_first || i > 0)
			moved(part);
	}

	/*
	 * Ours is the last, and begins where the one before it ends.  With a new snapshot:
	 * the insert may have waited for another owner.
	 */
	n = sql_execute_kept("SELECT b.from_offset, b.to_offset,"
						 " EXISTS (SELECT FROM evstream.received_days WHERE day >= " DEDUPE_TODAY
						 ")"
						 " FROM evstream.batch_log b WHERE b.log_id = $1 AND b.log_partition = $2"
						 " AND b.generation = $3 ORDER BY b.from_offset DESC LIMIT 2",
						 3, types, values, NULL, false, SPI_OK_SELECT);
	if (n == 0 || DatumGetInt64(sql_column(0, 1, NULL)) != part->position ||
		(n == 2 && DatumGetInt64(sql_column(1, 2, NULL)) != part->position))
		moved(part);
	*day_known = DatumGetBool(sql_column(0, 3, NULL));
	return true;
}

typedef struct Candidate
{
	uint64 prefix; /* of the id, so that few comparisons look at the record */
	BatchRecord *record;
} Candidate;

static inline int
candidate_cmp(const Candidate *left, const Candidate *right)
{
	int cmp;

	if (left->prefix != right->prefix)
		return left->prefix < right->prefix ? -1 : 1;
	cmp = memcmp(left->record->id.data, right->record->id.data, UUID_LEN);
	if (cmp != 0)
		return cmp;
	/* in the order of the batch */
	return left->record < right->record ? -1 : left->record > right->record;
}

#define ST_SORT          sort_candidates
#define ST_ELEMENT_TYPE  Candidate
#define ST_COMPARE(a, b) candidate_cmp(a, b)
#define ST_SCOPE         static
#define ST_DEFINE
#include "lib/sort_template.h"

/* Marks what was seen before, in this batch or in the dedup window. */
static void
mark_duplicates(Batch *batch)
{
	Candidate *candidates = palloc(Max(1, batch->nrecords) * sizeof(Candidate));
	pg_uuid_t *ids = palloc(Max(1, batch->nrecords) * sizeof(pg_uuid_t));
	BatchRecord **owners = palloc(Max(1, batch->nrecords) * sizeof(BatchRecord *));
	bool *is_new;
	int n = 0;
	int nids = 0;

	for (int i = 0; i < batch->nrecords; i++)
	{
		BatchRecord *record = &batch->records[i];

		if (record->pass_over || record->value == NULL || record->reason != EVENT_OK)
			continue;
		record->duplicate = false;
		memcpy(&candidates[n].prefix, record->id.data, sizeof(uint64));
		candidates[n].prefix = pg_ntoh64(candidates[n].prefix);
		candidates[n++].record = record;
	}
	sort_candidates(candidates, n);
	for (int i = 0; i < n; i++)
	{
		BatchRecord *record = candidates[i].record;

		if (nids > 0 && memcmp(ids[nids - 1].data, record->id.data, UUID_LEN) == 0)
		{
			record->duplicate = true;
			continue;
		}
		ids[nids] = record->id;
		owners[nids++] = record;
	}
	if (nids == 0)
		return;
	is_new = palloc(nids * sizeof(bool));
	dedupe_ids(ids, nids, is_new);
	for (int i = 0; i < nids; i++)
		owners[i]->duplicate = !is_new[i];
}

/* ---- days ---- */

/* The only pair of days of the last batch that was committed, as in collect_days() */
static int64 days_noted = PG_INT64_MAX;

static int
int64_cmp(const void *left, const void *right)
{
	int64 a = *(const int64 *) left;
	int64 b = *(const int64 *) right;

	return a < b ? -1 : a > b;
}

/*
 * The different days of what counts, in order, with the day on which it was
 * received (0 where events are not stored) in the upper half.
 */
static int64 *
collect_days(const Batch *batch, int *n)
{
	int64 *keys = palloc(Max(1, batch->nrecords) * sizeof(int64));
	int64 seen[64];

	for (int i = 0; i < lengthof(seen); i++)
		seen[i] = PG_INT64_MAX;
	*n = 0;
	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];
		int64 *last = &seen[(uint32) record->day % lengthof(seen)];
		int64 key;

		if (!batch_is_new(record))
			continue;
		key = setting_store_events ? (int64) partition_day(record->received_at) << 32 : 0;
		key |= (uint32) record->day;
		if (*last != key)
			keys[(*n)++] = *last = key;
	}
	qsort(keys, *n, sizeof(int64), int64_cmp);
	*n = qunique(keys, *n, sizeof(int64), int64_cmp);
	return keys;
}

static Datum
day_array(const int64 *keys, int n, int shift)
{
	Datum *days = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		days[i] = DateADTGetDatum((DateADT) (keys[i] >> shift));
	return PointerGetDatum(construct_array(days, n, DATEOID, sizeof(DateADT), true, TYPALIGN_INT));
}

/*
 * Notes which days' stats can not be rebuilt from stored events, or not without
 * the leaf of events that we write to.
 */
static void
note_days(Batch *batch)
{
	int n;
	int64 *keys = collect_days(batch, &n);
	Oid types[3] = {TEXTOID, DATEARRAYOID, DATEARRAYOID};
	Datum values[3];

	batch->only_days = n == 1 ? keys[0] : PG_INT64_MAX;
	if (batch->only_days != PG_INT64_MAX && batch->only_days == days_noted)
		return;
	values[0] = CStringGetTextDatum(pg_get_timezone_name(batch->zone));
	values[1] = day_array(keys, n, 0);
	values[2] = day_array(keys, n, 32);
	if (!setting_store_events)
		sql_execute_kept("INSERT INTO evstream.unstored_days (day, time_zone)"
						 " SELECT u.d, $1 FROM pg_catalog.unnest($2) AS u (d)"
						 " ON CONFLICT DO NOTHING",
						 2, types, values, NULL, false, SPI_OK_INSERT);
	else if (partition_knows_days())
		sql_execute_kept(
			"INSERT INTO evstream.stored_days (received_day, day, time_zone)"
			" SELECT u.r, u.d, $1 FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS u (d, r)"
			" ON CONFLICT DO NOTHING",
			3, types, values, NULL, false, SPI_OK_INSERT);
}

/*
 * Are the stats still of the days of our zone?  Looked at when we hold the locks on
 * them: whoever computes them anew waits for us, or has done so with a zone that we
 * see.  A worker that knows the zone of before would add to the wrong days.
 */
static void
check_zone(void)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(setting_time_zone)};

	sql_execute_kept("SELECT EXISTS (SELECT FROM evstream.state WHERE time_zone = $1)", 1, types,
					 values, NULL, false, SPI_OK_SELECT);
	if (!DatumGetBool(sql_column(0, 1, NULL)))
		ereport(ERROR, (errcode(ERRCODE_EVSTREAM_ZONE), errmsg("evstream.time_zone has changed"),
						errdetail("This consumer counts in \"%s\", and starts again.",
								  setting_time_zone)));
}

bool
batch_store(Batch *batch)
{
	int nparts;
	BatchPart *parts = collect_parts(batch, &nparts);
	bool any_new = false;
	bool day_known = false;

	batch->nstored = batch->nduplicates = batch->ndead = batch->ntombstones = 0;
	batch->only_days = PG_INT64_MAX;
	for (int i = 0; i < nparts; i++)
		if (!log_batch(&parts[i], i == 0, &day_known))
			return false;
	if (batch->nrecords == 0)
		return true;

	/*
	 * Each of the next steps takes its row locks in one order, and all take the
	 * steps in the same order, so that consumers do not deadlock.
	 */
	if (!day_known)
		sql_execute_kept("INSERT INTO evstream.received_days (day) VALUES (" DEDUPE_RECEIVED_DAY
						 ") ON CONFLICT DO NOTHING",
						 0, NULL, NULL, NULL, false, SPI_OK_INSERT);
	mark_duplicates(batch);
	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];

		if (record->pass_over)
			continue;
		if (record->value == NULL)
			batch->ntombstones++;
		else if (record->reason != EVENT_OK)
			batch->ndead++;
		else if (record->duplicate)
			batch->nduplicates++;
		else
			batch->nstored++;
	}
	poison_debug_storing(batch);
	any_new = batch->nstored > 0;
	if (batch->ndead > 0)
		store_dead_letters(batch);
	if (any_new && setting_store_events)
		store_events(batch);
	if (any_new)
	{
		daily_add(batch);
		check_zone();
		note_days(batch);
	}
	return true;
}

void
batch_stored(Batch *batch)
{
	if (batch->only_days != PG_INT64_MAX)
		days_noted = batch->only_days;
	for (int i = 0; i < batch->nrecords; i++)
		batch->records[i].part->slot = -1;
	for (int i = batch->nrecords - 1; i >= 0; i--)
	{
		const BatchRecord *record = &batch->records[i];
		LogPartition *part = record->part;

		if (part->slot >= 0)
			continue;
		part->slot = i;
		part->position = record->offset + 1;
		part->last_received_at = record->received_at;
		part->has_last = true;
		part->last_offset = record->offset;
		part->last_timestamp = record->timestamp_us / 1000;
		part->last_crc = batch_record_crc(record);
	}
}
