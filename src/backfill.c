/*-------------------------------------------------------------------------
 *
 * backfill.c
 *	  evstream_backfill(): stored events for a subscriber, page by page.
 *
 * Events are read in the order of their time, in stretches that are short
 * enough to be sorted, and matched as the notifier does it.  Where there is
 * fan-out, an event counts only once the notifier has sent it.  A client that
 * noted the end of its stream before it calls relies on everything up to there
 * being in the pages, so what may be on its way is waited for, for a moment.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "matcher.h"
#include "partition.h"
#include "settings.h"
#include "sql.h"
#include "status.h"

/* Rows of a stretch, at least and at most; and how many are fetched at a time. */
#define STRETCH_FIRST 500
#define STRETCH_ROWS  10000
#define FETCH_ROWS    500

/* Days with fewer bytes are one stretch. */
#define SMALL_DAY (4 * 1024 * 1024)

/*
 * What a call waits altogether for events that are being sent, and for those of
 * which it is not known whether they were; and how often it looks.
 */
#define SENDING_WAIT_MS 1000
#define UNKNOWN_WAIT_MS 10000
#define SENDING_LOOK_MS 10

#define COLUMNS                                                                                    \
	"e.event_id, e.user_id, e.event_type, e.occurred_at, e.received_at, e.item_id, e.amount,"      \
	" e.user_tier, COALESCE(e.properties, '{}'), l.topic, e.log_partition, e.log_offset,"          \
	" e.traceparent, e.log_id"

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
	COL_TOPIC,
	COL_LOG_PARTITION,
	COL_LOG_OFFSET,
	COL_TRACEPARENT,
	COL_RESULT, /* so many make the result */
	COL_LOG_ID = COL_RESULT,
	COL_COUNT
};

/* How far a partition was sent. */
typedef struct Sent
{
	int32 log_id;
	int32 partition;
	TimestampTz until;
} Sent;

typedef struct Backfill
{
	Matcher *matcher;
	Tuplestorestate *rows;
	TupleDesc desc;
	int64 wanted; /* rows that the page still takes */
	MemoryContext scratch;

	/* what comes next is behind this */
	TimestampTz at;
	pg_uuid_t id;
	bool has_id; /* else events of that very time come, too */

	bool fan_out;
	bool workers_fan_out; /* not only this session's setting */
	TimestampTz called_at;
	int waited_ms;
	Sent *sent;
	int nsent;
} Backfill;

/* The last row that this session was given. */
static pg_uuid_t last_id;
static TimestampTz last_at = DT_NOBEGIN;

PG_FUNCTION_INFO_V1(evstream_backfill);

/* ---- the days ---- */

/* The UTC days that have a leaf, ascending; palloc'd. */
static DateADT *
stored_days(int *ndays)
{
	DateADT *days;

	(void) sql_execute("SELECT to_date(substr(c.relname::text, 8), 'YYYYMMDD')"
					   " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
					   " WHERE i.inhparent = 'evstream.events'::regclass"
					   " AND c.relname::text ~ '^events_[0-9]{8}$' ORDER BY 1",
					   0, NULL, NULL, NULL, SPI_OK_SELECT);
	*ndays = (int) SPI_processed;
	days = palloc(Max(*ndays, 1) * sizeof(DateADT));
	for (int i = 0; i < *ndays; i++)
		days[i] = DatumGetDateADT(sql_column(i, 1, NULL));
	SPI_freetuptable(SPI_tuptable);
	return days;
}

static int64
day_bytes(DateADT day)
{
	char name[NAMEDATALEN + 16];
	Oid types[] = {TEXTOID};
	Datum values[1];
	int year;
	int month;
	int mday;
	bool null;
	int64 bytes;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	snprintf(name, sizeof(name), "evstream.events_%04d%02d%02d", year, month, mday);
	values[0] = CStringGetTextDatum(name);
	(void) sql_execute("SELECT pg_relation_size(to_regclass($1))", 1, types, values, NULL,
					   SPI_OK_SELECT);
	bytes = DatumGetInt64(sql_column(0, 1, &null));
	SPI_freetuptable(SPI_tuptable);
	return null ? 0 : bytes;
}

static inline TimestampTz
day_begin(DateADT day)
{
	return (TimestampTz) day * USECS_PER_DAY;
}

/* ---- where to begin ---- */

/*
 * The first time from `from` on, and before `to`, at which an event of this id
 * was received.
 */
static bool
find_event(const pg_uuid_t *id, TimestampTz from, TimestampTz to, TimestampTz *at)
{
	Oid types[] = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum values[] = {UUIDPGetDatum(id), TimestampTzGetDatum(from), TimestampTzGetDatum(to)};
	bool null;

	(void) sql_execute("SELECT min(e.received_at) FROM evstream.events e"
					   " WHERE e.event_id = $1 AND e.received_at >= $2 AND e.received_at < $3",
					   3, types, values, NULL, SPI_OK_SELECT);
	*at = DatumGetTimestampTz(sql_column(0, 1, &null));
	SPI_freetuptable(SPI_tuptable);
	return !null;
}

/* Puts the begin behind that event, which may be before `since`, too. */
static void
begin_behind(Backfill *backfill, const pg_uuid_t *id, const DateADT *days, int ndays)
{
	TimestampTz since = backfill->at;
	TimestampTz at;

	if (memcmp(id, &last_id, sizeof(last_id)) == 0 && last_at >= since &&
		find_event(id, last_at, last_at + 1, &at))
	{
		backfill->at = at;
		backfill->id = *id;
		backfill->has_id = true;
		return;
	}
	for (int i = 0; i < ndays; i++)
	{
		TimestampTz from = Max(since, day_begin(days[i]));

		if (from < day_begin(days[i] + 1) && find_event(id, from, day_begin(days[i] + 1), &at))
		{
			backfill->at = at;
			backfill->id = *id;
			backfill->has_id = true;
			return;
		}
	}
	for (int i = ndays - 1; i >= 0; i--)
	{
		TimestampTz to = Min(since, day_begin(days[i] + 1));

		if (to > day_begin(days[i]) && find_event(id, day_begin(days[i]), to, &at))
			return;
	}
	ereport(
		ERROR,
		(errcode(ERRCODE_UNDEFINED_OBJECT),
		 errmsg("event %s is not stored",
				DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)))),
		 errdetail("Either there was no such event, or evstream.retention has dropped it."),
		 errhint("Call evstream_backfill() without after_event_id, and drop the events that are "
				 "known already.")));
}

/* ---- what was sent ---- */

/*
 * The mirror in the table; is_sent() asks the notifier first, who is ahead of it
 * as long as it runs.
 */
static void
read_sent(Backfill *backfill)
{
	(void) sql_execute("SELECT c.log_id, c.log_partition, GREATEST(c.passed_at, c.received_at)"
					   " FROM evstream.notifier_cursors c",
					   0, NULL, NULL, NULL, SPI_OK_SELECT);
	backfill->nsent = (int) SPI_processed;
	backfill->sent = palloc(Max(backfill->nsent, 1) * sizeof(Sent));
	for (int i = 0; i < backfill->nsent; i++)
	{
		backfill->sent[i].log_id = DatumGetInt32(sql_column(i, 1, NULL));
		backfill->sent[i].partition = DatumGetInt32(sql_column(i, 2, NULL));
		backfill->sent[i].until = DatumGetTimestampTz(sql_column(i, 3, NULL));
	}
	SPI_freetuptable(SPI_tuptable);
}

static bool
is_sent(const Backfill *backfill, int32 log_id, int32 partition, TimestampTz at)
{
	if (at <= status_notified_at(MyDatabaseId, log_id, partition))
		return true;
	for (int i = 0; i < backfill->nsent; i++)
	{
		const Sent *sent = &backfill->sent[i];

		if (sent->log_id == log_id && sent->partition == partition)
			return at <= sent->until;
	}
	return false;
}

/*
 * The same, with some patience for what was stored when this call began.  An
 * event that may be in its stream already, before the end that the client has
 * noted, must not be left out.
 */
static bool
wait_sent(Backfill *backfill, int32 log_id, int32 partition, TimestampTz at)
{
	for (;;)
	{
		bool unknown = backfill->workers_fan_out &&
					   at <= status_notifying_until(MyDatabaseId, log_id, partition);

		/* in this order: what was tried before it was sent is seen by one of the two */
		if (is_sent(backfill, log_id, partition, at))
			return true;
		if (at > backfill->called_at || (!unknown && backfill->waited_ms >= SENDING_WAIT_MS))
			return false;
		if (backfill->waited_ms >= UNKNOWN_WAIT_MS)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("it is not known which events were sent"),
					 errdetail("The notifier has lost Redis while it was sending, or has not "
							   "reached it since the start of the server."),
					 errhint("Try again; evstream_health() tells what keeps the notifier from "
							 "Redis.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, SENDING_LOOK_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		backfill->waited_ms += SENDING_LOOK_MS;
	}
}

/* ---- events ---- */

static EventText
text_of(Datum datum)
{
	text *value = DatumGetTextPP(datum);

	return (EventText){VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)};
}

/* Gives the event out if it matches; memory: the current context. */
static void
take_event(Backfill *backfill, Datum *values, bool *nulls)
{
	TimestampTz at = DatumGetTimestampTz(values[COL_RECEIVED_AT]);
	MatchEvent event = {
		.event_type = text_of(values[COL_EVENT_TYPE]),
		.user_id = text_of(values[COL_USER_ID]),
		.has_amount = !nulls[COL_AMOUNT],
	};
	const int *subscribers;

	backfill->at = at;
	backfill->id = *DatumGetUUIDP(values[COL_EVENT_ID]);
	backfill->has_id = true;

	if (!nulls[COL_USER_TIER])
		event.user_tier = text_of(values[COL_USER_TIER]);
	if (event.has_amount)
		event.amount = DatumGetNumeric(values[COL_AMOUNT]);
	event.properties = DatumGetJsonbP(values[COL_PROPERTIES]);
	if (matcher_match(backfill->matcher, &event, &subscribers) == 0)
		return;
	if (backfill->fan_out && !wait_sent(backfill, DatumGetInt32(values[COL_LOG_ID]),
										DatumGetInt32(values[COL_LOG_PARTITION]), at))
		return;
	tuplestore_putvalues(backfill->rows, backfill->desc, values, nulls);
	backfill->wanted--;
	last_id = backfill->id;
	last_at = at;
}

/*
 * Takes events behind the present place and before `to`, at most `limit` of
 * them, until the page is full; returns how many it has read.
 */
static int64
read_stretch(Backfill *backfill, TimestampTz to, int64 limit)
{
	Oid types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, INT8OID};
	pg_uuid_t id = backfill->id;
	Datum params[] = {TimestampTzGetDatum(backfill->at), TimestampTzGetDatum(to),
					  UUIDPGetDatum(&id), Int64GetDatum(limit)};
	char param_nulls[] = {' ', ' ', backfill->has_id ? ' ' : 'n', ' '};
	int64 count = 0;
	uint64 n;
	Portal portal = SPI_cursor_open_with_args(
		NULL,
		"SELECT " COLUMNS " FROM evstream.events e LEFT JOIN evstream.logs l ON l.log_id = e.log_id"
		" WHERE e.received_at >= $1 AND e.received_at < $2"
		/* without them it is an event no more */
		" AND e.event_id IS NOT NULL AND e.user_id IS NOT NULL AND e.event_type IS NOT NULL"
		" AND ($3 IS NULL OR e.received_at > $1 OR e.event_id > $3)"
		" ORDER BY e.received_at, e.event_id LIMIT $4",
		lengthof(types), types, params, param_nulls, false, 0);

	do
	{
		SPITupleTable *table;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		table = SPI_tuptable;
		n = SPI_processed;
		for (uint64 i = 0; i < n && backfill->wanted > 0; i++)
		{
			Datum values[COL_COUNT];
			bool nulls[COL_COUNT];
			MemoryContext old = MemoryContextSwitchTo(backfill->scratch);

			heap_deform_tuple(table->vals[i], table->tupdesc, values, nulls);
			take_event(backfill, values, nulls);
			MemoryContextSwitchTo(old);
			MemoryContextReset(backfill->scratch);
			count++;
		}
		SPI_freetuptable(table);
		CHECK_FOR_INTERRUPTS();
	} while (n == FETCH_ROWS && backfill->wanted > 0);
	SPI_cursor_close(portal);
	return count;
}

/* Reads a day in stretches of about as many rows as are sorted at ease. */
static void
read_day(Backfill *backfill, DateADT day)
{
	int64 bytes = day_bytes(day);
	int64 limit = Min(Max(backfill->wanted * 2, STRETCH_FIRST), STRETCH_ROWS);
	int64 width = USECS_PER_DAY;

	if (bytes > SMALL_DAY)
		width = USECS_PER_DAY / (bytes / SMALL_DAY);
	if (backfill->at < day_begin(day))
	{
		backfill->at = day_begin(day);
		backfill->has_id = false;
	}

	while (backfill->wanted > 0 && backfill->at < day_begin(day + 1))
	{
		TimestampTz from = backfill->at;
		TimestampTz to = Min(from + width, day_begin(day + 1));
		int64 n = read_stretch(backfill, to, limit);

		if (n >= limit)
			width = Max(backfill->at - from, 1);
		else if (backfill->wanted > 0)
		{
			backfill->at = to;
			backfill->has_id = false;
			if (n < limit / 4)
				width = Min(width * 4, USECS_PER_DAY);
		}
		limit = Min(limit * 2, STRETCH_ROWS);
	}
}

static void
check_arguments(FunctionCallInfo fcinfo)
{
	static const char *const names[] = {"subscriber_id", "since", "max_rows"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("set-valued function called in context that cannot accept a set")));
	for (int i = 0; i < lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
							errmsg("%s of evstream_backfill() must not be null", names[i])));
	}
	if (PG_GETARG_INT32(2) < 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("max_rows of evstream_backfill() must be at least 1")));
	if (!setting_store_events)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("events are not stored"),
				 errdetail("The setting evstream.store_events is off, so events would be "
						   "missing without a word."),
				 errhint("Set evstream.store_events to on; events of before can be read from "
						 "evstream_events.")));
}

/* evstream_backfill(subscriber_id, since, max_rows, after_event_id) */
Datum
evstream_backfill(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Backfill backfill = {.called_at = GetCurrentTimestamp()};
	TimestampTz since;
	MemoryContext old;
	DateADT *days;
	int ndays;

	/* what a standby does not have yet may be behind the place where the caller goes on */
	PreventCommandDuringRecovery("evstream_backfill()");
	check_arguments(fcinfo);
	since = PG_GETARG_TIMESTAMPTZ(1);
	backfill.at = since;
	backfill.wanted = PG_GETARG_INT32(2);
	backfill.workers_fan_out = status_fans_out(MyDatabaseId);
	/* the time of day may have gone back, which that of receipt does not */
	backfill.called_at = Max(backfill.called_at, status_notifying_last(MyDatabaseId));
	backfill.fan_out = setting_redis_url[0] != '\0' || backfill.workers_fan_out;

	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &backfill.desc) != TYPEFUNC_COMPOSITE ||
		backfill.desc->natts != COL_RESULT)
		elog(ERROR, "return type must be a row of %d columns", COL_RESULT);
	backfill.rows = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = backfill.rows;
	rsinfo->setDesc = backfill.desc;
	MemoryContextSwitchTo(old);

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	backfill.scratch =
		AllocSetContextCreate(CurrentMemoryContext, "evstream backfill", ALLOCSET_DEFAULT_SIZES);
	backfill.matcher =
		matcher_create_for(CurrentMemoryContext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	days = stored_days(&ndays);
	if (!PG_ARGISNULL(3))
		begin_behind(&backfill, PG_GETARG_UUID_P(3), days, ndays);
	if (backfill.fan_out)
		read_sent(&backfill);

	for (int i = 0; i < ndays && backfill.wanted > 0 && matcher_filters(backfill.matcher) > 0; i++)
	{
		if (backfill.at < day_begin(days[i] + 1))
			read_day(&backfill, days[i]);
	}
	SPI_finish();
	return (Datum) 0;
}
