/*-------------------------------------------------------------------------
 *
 * notifier_read.c
 *	  From the stored events of a partition to a chunk for Redis.
 *
 * Batches are taken in the order of their rows in the batch log, and matched
 * with the filters that the snapshot of each saw.  Rows may have been merged
 * while there was no fan-out: events before the oldest one that is left are
 * found by their time, and matched as if they were of that batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "notifier.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* Rows of a query: what they hold beyond a few kB is fetched when it is used. */
#define READ_BATCHES 100
#define READ_ROWS    1000

/* New partitions are looked for when nothing is read, and at least so often */
#define PARTITIONS_EVERY USECS_PER_SEC

/* Of the number of an event in the list of a subscriber, about */
#define DELIVERY_BYTES 2

/* Memory of one event is given back so often */
#define SCRATCH_BYTES (1024 * 1024)

typedef struct ReadBatch
{
	int32 generation;
	int64 from_offset;
	int64 to_offset;
	TimestampTz last_received_at;
	char *snapshot;
	TransactionId xid; /* that stored it */
} ReadBatch;

/* Numbers of subscribers in the chunk, from 1, by their index in the matcher; 0: none yet. */
static int *numbers = NULL;
static int numbers_size = 0;

static SPIPlanPtr batch_plan = NULL;
static SPIPlanPtr events_by_offset = NULL;
static SPIPlanPtr events_by_time = NULL;

/* ---- partitions ---- */

static NotifierPartition *
find_partition(int32 log_id, int32 number)
{
	for (int i = 0; i < notifier.nparts; i++)
	{
		if (notifier.parts[i]->log_id == log_id && notifier.parts[i]->partition == number)
			return notifier.parts[i];
	}
	return NULL;
}

void
read_partitions_unit(void *arg)
{
	bool *any_new = arg;
	uint64 n = sql_execute_kept("SELECT p.log_id, p.log_partition, l.topic"
								" FROM evstream.partitions p JOIN evstream.logs l USING (log_id)"
								" ORDER BY 1, 2",
								0, NULL, NULL, NULL, false, SPI_OK_SELECT);

	*any_new = false;
	for (uint64 row = 0; row < n; row++)
	{
		int32 log_id = DatumGetInt32(sql_column(row, 1, NULL));
		int32 number = DatumGetInt32(sql_column(row, 2, NULL));
		NotifierPartition *part;
		Datum topic;
		bool isnull;

		if (find_partition(log_id, number) != NULL)
			continue;
		part = MemoryContextAllocZero(notifier.context, sizeof(NotifierPartition));
		part->log_id = log_id;
		part->partition = number;
		topic = sql_column(row, 3, &isnull);
		if (!isnull)
			part->topic = MemoryContextStrdup(notifier.context, TextDatumGetCString(topic));
		if (notifier.parts == NULL)
			notifier.parts = MemoryContextAlloc(notifier.context, sizeof(NotifierPartition *));
		else
			notifier.parts =
				repalloc(notifier.parts, (notifier.nparts + 1) * sizeof(NotifierPartition *));
		notifier.parts[notifier.nparts++] = part;
		*any_new = true;
	}
}

/* ---- plans ---- */

/* One without its names, as when somebody has made it anonymous, is an event no more. */
#define EVENT_COLUMNS                                                                              \
	"SELECT event_id, user_id, event_type, occurred_at, received_at, item_id, amount, user_tier,"  \
	" COALESCE(properties, '{}'), log_offset, traceparent FROM evstream.events"                    \
	" WHERE log_id = $1 AND log_partition = $2 AND received_at > $3 AND received_at <= $4"         \
	" AND event_id IS NOT NULL AND user_id IS NOT NULL AND event_type IS NOT NULL"                 \
	" AND occurred_at IS NOT NULL AND log_offset IS NOT NULL"

enum
{
	COL_EVENT_ID,
	COL_USER_ID,
	COL_EVENT_TYPE,
	COL_OCCURRED_AT,
	COL_RECEIVED_AT,
	COL_ITEM_ID,
	COL_AMOUNT,
	COL_USER_TIER,
	COL_PROPERTIES,
	COL_LOG_OFFSET,
	COL_TRACEPARENT,
	COL_COUNT
};

static SPIPlanPtr
prepare(const char *sql, int nargs, Oid *types)
{
	SPIPlanPtr plan = SPI_prepare(sql, nargs, types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\"", sql);
	return plan;
}

static void
prepare_plans(void)
{
	Oid batch_types[] = {INT4OID, INT4OID, INT4OID, INT8OID};
	Oid event_types[] = {INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
						 INT8OID, INT8OID, INT8OID};

	if (batch_plan == NULL)
		batch_plan = prepare(
			"SELECT generation, from_offset, to_offset, last_received_at, snapshot::text, xmin"
			" FROM evstream.batch_log WHERE log_id = $1 AND log_partition = $2"
			" AND (generation, from_offset) >= ($3, $4)"
			" ORDER BY generation, from_offset LIMIT " CppAsString2(READ_BATCHES),
			4, batch_types);
	if (events_by_offset == NULL)
		events_by_offset = prepare(EVENT_COLUMNS " AND log_offset >= $6 AND log_offset < $7"
												 " ORDER BY log_offset LIMIT $5",
								   7, event_types);
	if (events_by_time == NULL)
		events_by_time = prepare(EVENT_COLUMNS " ORDER BY received_at LIMIT $5", 5, event_types);
}

static uint64
execute(SPIPlanPtr plan, Datum *values)
{
	int ret = SPI_execute_plan(plan, values, NULL, false, 0);

	if (ret != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(ret));
	return SPI_processed;
}

/* ---- batches ---- */

/*
 * Finds the batch in which a cursor stands, or the oldest one, in the present
 * batch log.  False: there are no batches.
 */
static bool
find_place(const NotifierPartition *part, NotifierPlace *place)
{
	Oid types[] = {INT4OID, INT4OID, TIMESTAMPTZOID};
	Datum values[] = {Int32GetDatum(part->log_id), Int32GetDatum(part->partition),
					  TimestampTzGetDatum(place->cursor.received_at)};
	TimestampTz first_at;
	bool isnull;

	if (!place->cursor.any)
	{
		/* from the first batch that there will be */
		place->placed = true;
		place->generation = PG_INT32_MIN;
		place->from_offset = PG_INT64_MIN;
		return true;
	}
	/* the oldest that is not behind the cursor, or else the newest of all */
	if (sql_execute_kept(
			"(SELECT generation, from_offset, last_received_at, 0 AS n FROM evstream.batch_log"
			"  WHERE log_id = $1 AND log_partition = $2 AND last_received_at > $3"
			"  ORDER BY generation, from_offset LIMIT 1)"
			" UNION ALL"
			" (SELECT generation, to_offset, last_received_at, 1 FROM evstream.batch_log"
			"  WHERE log_id = $1 AND log_partition = $2"
			"  ORDER BY generation DESC, from_offset DESC LIMIT 1)"
			" ORDER BY n LIMIT 1",
			3, types, values, NULL, false, SPI_OK_SELECT) == 0)
		return false;
	place->placed = true;
	place->generation = DatumGetInt32(sql_column(0, 1, NULL));
	place->from_offset = DatumGetInt64(sql_column(0, 2, NULL));
	first_at = DatumGetTimestampTz(sql_column(0, 3, &isnull));
	if (DatumGetInt32(sql_column(0, 4, NULL)) == 1)
	{
		place->by_time = false;
		place->passed_at = isnull ? place->passed_at : first_at;
		return true;
	}
	/* Is it known what was before it? */
	place->by_time =
		sql_execute("SELECT FROM evstream.batch_log WHERE log_id = $1 AND log_partition = $2"
					" AND last_received_at <= $3 LIMIT 1",
					3, types, values, NULL, SPI_OK_SELECT) == 0;
	return true;
}

static ReadBatch *
read_batches(const NotifierPartition *part, const NotifierPlace *place, int *nbatches)
{
	Datum values[] = {Int32GetDatum(part->log_id), Int32GetDatum(part->partition),
					  Int32GetDatum(place->generation), Int64GetDatum(place->from_offset)};
	uint64 n = execute(batch_plan, values);
	ReadBatch *batches = palloc(Max(1, n) * sizeof(ReadBatch));

	for (uint64 row = 0; row < n; row++)
	{
		ReadBatch *batch = &batches[row];
		bool isnull;

		batch->generation = DatumGetInt32(sql_column(row, 1, NULL));
		batch->from_offset = DatumGetInt64(sql_column(row, 2, NULL));
		batch->to_offset = DatumGetInt64(sql_column(row, 3, NULL));
		batch->last_received_at = DatumGetTimestampTz(sql_column(row, 4, &isnull));
		if (isnull)
			batch->last_received_at = DT_NOBEGIN;
		batch->snapshot = TextDatumGetCString(sql_column(row, 5, NULL));
		batch->xid = DatumGetTransactionId(sql_column(row, 6, NULL));
	}
	SPI_freetuptable(SPI_tuptable);
	*nbatches = (int) n;
	return batches;
}

/* ---- events ---- */

static EventText
text_of(Datum value, bool isnull)
{
	EventText result = {NULL, 0};

	if (!isnull)
	{
		text *t = DatumGetTextPP(value);

		result.data = VARDATA_ANY(t);
		result.len = VARSIZE_ANY_EXHDR(t);
	}
	return result;
}

static EventText
text_of_cstring(char *text)
{
	EventText result = {text, strlen(text)};

	return result;
}

/* The event as JSON, in the arena. */
static EventText
format_event(const NotifierPartition *part, Datum *values, bool *nulls, const MatchEvent *match,
			 EventArena *arena)
{
	Event event = {0};
	StringInfoData extra;
	char time[33];
	EventText result;

	memcpy(event.event_uuid, DatumGetUUIDP(values[COL_EVENT_ID])->data, UUID_LEN);
	event.user_id = match->user_id;
	event.event_type = match->event_type;
	event.user_tier = match->user_tier;
	event.occurred_us = DatumGetTimestampTz(values[COL_OCCURRED_AT]) + UNIX_EPOCH_OFFSET_US;
	event.item_id = text_of(values[COL_ITEM_ID], nulls[COL_ITEM_ID]);
	event.traceparent = text_of(values[COL_TRACEPARENT], nulls[COL_TRACEPARENT]);
	if (match->has_amount)
		event.amount = text_of_cstring(
			DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(match->amount))));
	event.properties =
		text_of_cstring(JsonbToCString(NULL, &match->properties->root, VARSIZE(match->properties)));

	event_format_time(DatumGetTimestampTz(values[COL_RECEIVED_AT]) + UNIX_EPOCH_OFFSET_US, time);
	initStringInfo(&extra);
	appendStringInfo(&extra, "\"received_at\":\"%s\",", time);
	if (part->topic != NULL)
	{
		appendStringInfoString(&extra, "\"topic\":");
		escape_json(&extra, part->topic);
		appendStringInfoChar(&extra, ',');
	}
	appendStringInfo(&extra, "\"log_partition\":%d,\"log_offset\":" INT64_FORMAT, part->partition,
					 DatumGetInt64(values[COL_LOG_OFFSET]));
	result = event_format(&event, extra.data, arena);
	if (result.data == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	return result;
}

/* Number of a subscriber within the chunk, from 0. */
static int
number_of(NotifierChunk *chunk, int index)
{
	if (index >= numbers_size)
	{
		int size = Max(index + 1, numbers_size * 2);

		if (numbers == NULL)
			numbers = MemoryContextAllocHuge(notifier.context, size * sizeof(int));
		else
			numbers = repalloc_huge(numbers, size * sizeof(int));
		memset(numbers + numbers_size, 0, (size - numbers_size) * sizeof(int));
		numbers_size = size;
	}
	if (numbers[index] == 0)
	{
		const char *name = matcher_subscriber(notifier.matcher, index);

		if (chunk->nsubscribers == chunk->subscribers_size)
		{
			chunk->subscribers_size = Max(64, chunk->subscribers_size * 2);
			chunk->subscribers =
				chunk->subscribers
					? repalloc_huge(chunk->subscribers, chunk->subscribers_size * sizeof(char *))
					: MemoryContextAlloc(chunk->context, chunk->subscribers_size * sizeof(char *));
		}
		chunk->subscribers[chunk->nsubscribers] = MemoryContextStrdup(chunk->context, name);
		numbers[index] = ++chunk->nsubscribers;
		chunk->bytes += strlen(name);
	}
	return numbers[index] - 1;
}

static void
add_event(NotifierChunk *chunk, const NotifierPartition *part, Datum *values, bool *nulls)
{
	MatchEvent match;
	const int *matched;
	int n;

	match.user_id = text_of(values[COL_USER_ID], false);
	match.event_type = text_of(values[COL_EVENT_TYPE], false);
	match.user_tier = text_of(values[COL_USER_TIER], nulls[COL_USER_TIER]);
	match.has_amount = !nulls[COL_AMOUNT];
	match.amount = match.has_amount ? DatumGetNumeric(values[COL_AMOUNT]) : NULL;
	match.properties = DatumGetJsonbP(values[COL_PROPERTIES]);
	n = matcher_match(notifier.matcher, &match, &matched);

	chunk->nread++;
	if (n == 0 && !setting_publish_all)
		return;
	if (chunk->nevents == chunk->events_size)
	{
		chunk->events_size = Max(64, chunk->events_size * 2);
		if (chunk->events == NULL)
			chunk->events =
				MemoryContextAlloc(chunk->context, chunk->events_size * sizeof(EventText));
		else
			chunk->events = repalloc(chunk->events, chunk->events_size * sizeof(EventText));
	}
	if (chunk->ndeliveries + n > chunk->deliveries_size)
	{
		Size bytes;

		chunk->deliveries_size = Max(chunk->ndeliveries + n, chunk->deliveries_size * 2);
		bytes = chunk->deliveries_size * sizeof(NotifierDelivery);
		chunk->deliveries = chunk->deliveries ? repalloc_huge(chunk->deliveries, bytes)
											  : MemoryContextAllocHuge(chunk->context, bytes);
	}

	for (int i = 0; i < n; i++)
	{
		NotifierDelivery *delivery = &chunk->deliveries[chunk->ndeliveries++];

		delivery->event = chunk->nevents;
		delivery->subscriber = number_of(chunk, matched[i]);
	}
	chunk->events[chunk->nevents] = format_event(part, values, nulls, &match, chunk->arena);
	chunk->bytes += chunk->events[chunk->nevents].len + n * DELIVERY_BYTES;
	chunk->nevents++;
}

static bool
chunk_is_full(const NotifierChunk *chunk)
{
	return chunk->ndeliveries >= CHUNK_DELIVERIES || chunk->bytes >= CHUNK_BYTES ||
		   chunk->nread >= CHUNK_EVENTS;
}

/* Rows to ask for: not many more than the last chunk took. */
static int64 row_limit = READ_ROWS;

/*
 * Adds the events of a batch behind the cursor; false: the chunk is full before
 * its end.
 */
static bool
read_batch(NotifierChunk *chunk, NotifierPart *reading, const ReadBatch *batch,
		   MemoryContext scratch)
{
	const NotifierPartition *part = reading->part;
	NotifierPlace *place = &reading->after;
	NotifierCursor *cursor = &place->cursor;

	/* offsets come again after a forced seek: what was read of it is known by the batch */
	if (!place->inside || place->inside_from != batch->from_offset ||
		place->generation != batch->generation)
	{
		place->inside_from = batch->from_offset;
		place->inside_next = batch->from_offset;
	}
	chunk->logged = Max(chunk->logged, worker_commit_end(batch->xid));
	place->inside = true;
	place->generation = batch->generation;
	place->from_offset = batch->from_offset;

	for (;;)
	{
		int64 limit = row_limit;
		Datum args[7] = {Int32GetDatum(part->log_id),
						 Int32GetDatum(part->partition),
						 TimestampTzGetDatum(cursor->any ? cursor->received_at : DT_NOBEGIN),
						 TimestampTzGetDatum(batch->last_received_at),
						 Int64GetDatum(limit),
						 Int64GetDatum(place->inside_next),
						 Int64GetDatum(batch->to_offset)};
		uint64 n = execute(place->by_time ? events_by_time : events_by_offset, args);
		SPITupleTable *rows = SPI_tuptable;
		MemoryContext old = MemoryContextSwitchTo(scratch);

		for (uint64 row = 0; row < n; row++)
		{
			Datum values[COL_COUNT];
			bool nulls[COL_COUNT];

			if (chunk_is_full(chunk))
			{
				MemoryContextSwitchTo(old);
				SPI_freetuptable(rows);
				return false;
			}
			heap_deform_tuple(rows->vals[row], rows->tupdesc, values, nulls);
			add_event(chunk, part, values, nulls);
			cursor->any = true;
			cursor->received_at = DatumGetTimestampTz(values[COL_RECEIVED_AT]);
			cursor->event_id = *DatumGetUUIDP(values[COL_EVENT_ID]);
			cursor->log_offset = DatumGetInt64(values[COL_LOG_OFFSET]);
			place->inside_next = cursor->log_offset + 1;
			place->passed_at = cursor->received_at;
			if (MemoryContextMemAllocated(scratch, false) > SCRATCH_BYTES)
				MemoryContextReset(scratch);
		}
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
		SPI_freetuptable(rows);
		if (n < limit)
			return true;
	}
}

/*
 * Fills the chunk from one partition; false: the filters have changed since it was
 * begun, so that it has to go first.
 */
static bool
read_partition(NotifierChunk *chunk, NotifierPart *reading, MemoryContext scratch)
{
	NotifierPlace *after = &reading->after;
	int64 before = chunk->nread;
	int nbatches;
	ReadBatch *batches;

	if (!after->placed && !find_place(reading->part, after))
		return true;
	do
	{
		batches = read_batches(reading->part, after, &nbatches);
		/* after the batches: what their snapshots saw is there now */
		if (nbatches > 0 && matcher_refresh(notifier.matcher) && chunk->nsubscribers > 0)
			return false;
		for (int i = 0; i < nbatches; i++)
		{
			matcher_use_snapshot(notifier.matcher, batches[i].snapshot);
			if (!read_batch(chunk, reading, &batches[i], scratch))
				return true;
			after->from_offset = batches[i].to_offset;
			after->inside = false;
			after->by_time = false;
			after->passed_at = Max(after->passed_at, batches[i].last_received_at);
			if (chunk_is_full(chunk))
				return true;
		}
		worker_check();
	} while (nbatches == READ_BATCHES && chunk->nread == before);
	chunk->more |= nbatches == READ_BATCHES;
	return true;
}

/* Where a partition is behind the chunk that is on its way; NULL: that has none of it. */
static const NotifierPlace *
place_behind(const NotifierChunk *before, const NotifierPartition *part)
{
	for (int i = 0; before != NULL && i < before->nparts; i++)
	{
		if (before->parts[i].part == part)
			return &before->parts[i].after;
	}
	return NULL;
}

static void
begin_chunk(NotifierChunk *chunk)
{
	MemoryContext context = chunk->context;
	EventArena *arena = chunk->arena;

	MemoryContextReset(context);
	event_arena_reset(arena);
	memset(chunk, 0, sizeof(*chunk));
	chunk->context = context;
	chunk->arena = arena;
	if (numbers != NULL)
		memset(numbers, 0, numbers_size * sizeof(int));
}

/* Of all partitions in turn, so that none waits for the others. */
static void
read_chunk(NotifierChunk *chunk, const NotifierChunk *before)
{
	MemoryContext scratch =
		AllocSetContextCreate(CurrentMemoryContext, "evstream event", ALLOCSET_DEFAULT_SIZES);
	int64 most = 0;

	begin_chunk(chunk);
	prepare_plans();

	for (int i = 0; i < notifier.nparts && !chunk->full; i++)
	{
		int at = notifier.next_part % notifier.nparts;
		NotifierPartition *part = notifier.parts[at];
		const NotifierPlace *behind = place_behind(before, part);
		NotifierPart *reading;
		int64 nread = chunk->nread;

		if (chunk->nparts == CHUNK_PARTS || (chunk->nparts > 0 && notifier.alone > 0))
		{
			chunk->more = true;
			break;
		}
		/* before it is read, as an error of one is not to keep back the others */
		notifier.next_part = (at + 1) % notifier.nparts;
		reading = &chunk->parts[chunk->nparts];
		reading->part = part;
		reading->after = behind ? *behind : part->place;
		if (!read_partition(chunk, reading, scratch))
		{
			notifier.next_part = at;
			chunk->more = true;
			break;
		}
		chunk->full = chunk_is_full(chunk);
		nread = chunk->nread - nread;
		if (nread > 0)
		{
			most = Max(most, nread);
			chunk->nparts++;
		}
		else if (behind == NULL)
		{
			/* batches without events: nothing to tell Redis */
			part->place = reading->after;
			if (part->place.passed_at != 0)
				status_notified(part->log_id, part->partition, part->place.passed_at);
		}
	}
	chunk->more |= chunk->full;
	if (most > 0)
		row_limit = Min(Max(most, 20), READ_ROWS);
}

void
read_chunk_unit(void *arg)
{
	static int64 looked = 0;
	ReadUnit *unit = arg;
	NotifierChunk *chunk = unit->chunk;
	int64 now;

	read_chunk(chunk, unit->before);

	/* after the reading, as it is what comes last that a wake-up is answered by */
	now = clock_us();
	if (chunk->nparts > 0 && now >= looked && now < looked + PARTITIONS_EVERY)
		return;
	read_partitions_unit(&chunk->any_new);
	looked = now;
}
