/*-------------------------------------------------------------------------
 *
 * track.c
 *	  evstream_track() and evstream_track_batch(): tracked events, checked and brought into their form.
 *
 * An event is brought into its JSON form and goes through event_parse(), as a
 * record of a topic does: there is one truth for what a valid event is.  What
 * the outbox holds is event_format()'s text, which the relay sends as it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "event.h"
#include "event_id.h"
#include "jsonb_text.h"
#include "outbox.h"
#include "poison.h"
#include "settings.h"
#include "sql.h"

/*
 * Decoded texts of one call; malloc'd, so it is kept for the session and made
 * empty at the begin of each call.
 */
static EventArena *arena = NULL;

PG_FUNCTION_INFO_V1(evstream_track);
PG_FUNCTION_INFO_V1(evstream_track_bigint);
PG_FUNCTION_INFO_V1(evstream_track_batch);
PG_FUNCTION_INFO_V1(evstream_check_record);

static void
prepare_arena(void)
{
	if (arena == NULL)
		arena = event_arena_create();
	if (arena == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	event_arena_reset(arena);
}

static void
check_can_write(const char *function)
{
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	PreventCommandDuringRecovery(function);
}

static const char *
reason_hint(EventReason reason, int64 element)
{
	switch (reason)
	{
		case EVENT_TOO_LARGE:
			return "The setting evstream.max_event_bytes limits an event's size, and nesting is limited to 100 levels.";
		case EVENT_BAD_USER_ID:
			return "Give user_id as text of 1 to 255 characters, or as an integer.";
		case EVENT_BAD_EVENT_TYPE:
			return "Give event_type as text of 1 to 100 characters.";
		case EVENT_BAD_EVENT_ID:
			return "Give event_id as a UUID, or as another text of 1 to 255 characters.";
		case EVENT_BAD_TIMESTAMP:
			return element < 0
					   ? "Give a time in the years 0001 to 9999."
					   : "Give occurred_at in RFC 3339, such as 2026-11-20T13:45:40+01:00, or as a number of epoch seconds, in the years 0001 to 9999.";
		case EVENT_FUTURE_TIMESTAMP:
			return "The setting evstream.max_clock_skew says how far ahead an event may be.";
		case EVENT_BAD_AMOUNT:
			return "Give amount as a number with at most 20 digits before the decimal point.";
		case EVENT_BAD_PROPERTIES:
			return "Give properties as a JSON object.";
		default:
			return NULL;
	}
}

static void
refuse_event(EventReason reason, const char *detail, int64 element)
{
	const char *hint = reason_hint(reason, element);

	if (reason == EVENT_NO_MEMORY)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					element < 0 ? errmsg("invalid event: %s", event_reason_name(reason))
								: errmsg("invalid event at position " INT64_FORMAT ": %s", element,
										 event_reason_name(reason)),
					detail[0] != '\0'
						? errdetail("%c%s.", pg_toupper((unsigned char) detail[0]), detail + 1)
						: 0,
					hint ? errhint("%s", hint) : 0));
}

static void
set_limits(EventLimits *limits, TimestampTz now)
{
	int64 skew = setting_interval_us(setting_max_clock_skew);

	memset(limits, 0, sizeof(*limits));
	limits->max_bytes = setting_max_event_bytes;
	limits->now_us = now + UNIX_EPOCH_OFFSET_US;
	limits->max_skew_us = skew;
	limits->record_us = limits->now_us;
	if (setting_traceparent != NULL && setting_traceparent[0] != '\0')
	{
		limits->traceparent.data = setting_traceparent;
		limits->traceparent.len = strlen(setting_traceparent);
	}
}

/* Parse, give an id, bring into the form of the outbox. */
static EventReason
make_tracked(const char *json, Size len, const EventLimits *limits, OutboxNew *tracked,
			 char *detail)
{
	Event event;
	EventReason reason;
	EventText value;

	reason = event_parse(json, len, limits, arena, &event, detail);
	if (reason != EVENT_OK)
		return reason;
	if (!event_id_of(&event, &tracked->event_id))
		event_id_generate(&tracked->event_id);
	memcpy(event.event_uuid, tracked->event_id.data, UUID_LEN);
	value = event_format(&event, NULL, arena);
	if (value.data == NULL)
		return EVENT_NO_MEMORY;

	/*
	 * The written form could be refused where what it was made of was not: it is
	 * longer, and what was at the top may be one level deeper.
	 */
	if (value.len > limits->max_bytes || event.depth + 1 > EVENT_DEPTH_MAX)
	{
		reason = event_parse(value.data, value.len, limits, arena, &event, detail);
		if (reason != EVENT_OK)
			return reason;
	}

	tracked->user_id =
		PointerGetDatum(cstring_to_text_with_len(event.user_id.data, event.user_id.len));
	tracked->value = PointerGetDatum(cstring_to_text_with_len(value.data, value.len));
	tracked->traceparent = event.traceparent.data == NULL
							   ? (Datum) 0
							   : PointerGetDatum(cstring_to_text_with_len(event.traceparent.data,
																		  event.traceparent.len));
	return EVENT_OK;
}

/* ---- evstream_track ---- */

static Datum
track(FunctionCallInfo fcinfo, const char *user_id)
{
	TimestampTz now = GetCurrentTimestamp();
	StringInfoData json;
	EventLimits limits;
	OutboxNew tracked;
	EventReason reason;
	char detail[EVENT_DETAIL_SIZE];
	pg_uuid_t *result;

	check_can_write("evstream_track()");
	prepare_arena();

	initStringInfo(&json);
	appendStringInfoString(&json, "{\"user_id\": ");
	if (user_id == NULL)
		appendStringInfoString(&json, "null");
	else
		escape_json(&json, user_id);
	if (!PG_ARGISNULL(1))
	{
		appendStringInfoString(&json, ", \"event_type\": ");
		escape_json(&json, text_to_cstring(PG_GETARG_TEXT_PP(1)));
	}
	if (!PG_ARGISNULL(3))
	{
		char text[37];

		event_format_uuid(PG_GETARG_UUID_P(3)->data, text);
		appendStringInfo(&json, ", \"event_id\": \"%s\"", text);
	}
	if (!PG_ARGISNULL(4))
	{
		TimestampTz occurred = PG_GETARG_TIMESTAMPTZ(4);
		struct pg_tm tm;
		fsec_t fsec;
		int tz;
		char text[40];

		/* event_format_time() knows the years that an event can have */
		if (TIMESTAMP_NOT_FINITE(occurred) ||
			timestamp2tm(occurred, &tz, &tm, &fsec, NULL, pg_tzset("GMT")) != 0 || tm.tm_year < 1 ||
			tm.tm_year > 9999)
			refuse_event(EVENT_BAD_TIMESTAMP, "\"occurred_at\" is outside the years 0001 to 9999",
						 -1);
		event_format_time(occurred + UNIX_EPOCH_OFFSET_US, text);
		appendStringInfo(&json, ", \"occurred_at\": \"%s\"", text);
	}
	if (!PG_ARGISNULL(2))
	{
		Jsonb *properties = PG_GETARG_JSONB_P(2);

		appendStringInfoString(&json, ", \"properties\": ");
		jsonb_append_text(&json, &properties->root);
	}
	appendStringInfoChar(&json, '}');

	set_limits(&limits, now);
	reason = make_tracked(json.data, json.len, &limits, &tracked, detail);
	if (reason != EVENT_OK)
		refuse_event(reason, detail, -1);

	outbox_write(&tracked, now);
	result = palloc(sizeof(pg_uuid_t));
	*result = tracked.event_id;
	PG_RETURN_UUID_P(result);
}

/* evstream_track(text, text, jsonb, uuid, timestamptz) returns uuid */
Datum
evstream_track(PG_FUNCTION_ARGS)
{
	return track(fcinfo, PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0)));
}

/* evstream_track(bigint, text, jsonb, uuid, timestamptz) returns uuid */
Datum
evstream_track_bigint(PG_FUNCTION_ARGS)
{
	return track(fcinfo, PG_ARGISNULL(0) ? NULL : psprintf(INT64_FORMAT, PG_GETARG_INT64(0)));
}

/* ---- evstream_track_batch ---- */

static void
write_dead_letter(EventReason reason, const char *detail, const char *json, int len,
				  TimestampTz now)
{
	Oid types[4] = {TEXTOID, TEXTOID, BYTEAOID, TIMESTAMPTZOID};
	Datum args[4];

	args[0] = CStringGetTextDatum(event_reason_name(reason));
	args[1] = CStringGetTextDatum(detail);
	args[2] = PointerGetDatum(cstring_to_text_with_len(json, len));
	args[3] = TimestampTzGetDatum(now);
	SPI_connect();
	if (SPI_execute_with_args(
			"INSERT INTO evstream.dead_letters (reason, detail, record_value, record_timestamp)"
			" VALUES ($1, $2, $3, $4)",
			4, types, args, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write dead letter");
	SPI_finish();
}

/* evstream_track_batch(events jsonb, on_error text) returns bigint */
Datum
evstream_track_batch(PG_FUNCTION_ARGS)
{
	TimestampTz now = GetCurrentTimestamp();
	Jsonb *events;
	char *on_error;
	bool dead_letters;
	EventLimits limits;
	OutboxNew *tracked; /* that wait to be written, their texts in `rows` */
	int nwaiting = 0;
	MemoryContext rows;
	OutboxWriter *writer = NULL;
	int64 ntracked = 0;
	int ndead = 0;
	int64 position = 0;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue v;
	StringInfoData json;

	check_can_write("evstream_track_batch()");
	if (PG_ARGISNULL(0))
		PG_RETURN_INT64(0);
	events = PG_GETARG_JSONB_P(0);
	on_error = PG_ARGISNULL(1) ? pstrdup("raise") : text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (strcmp(on_error, "raise") != 0 && strcmp(on_error, "dead_letter") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid value for on_error: \"%s\"", on_error),
						errhint("Use \"raise\" or \"dead_letter\".")));
	dead_letters = strcmp(on_error, "dead_letter") == 0;
	if (!JB_ROOT_IS_ARRAY(events) || JB_ROOT_IS_SCALAR(events))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("events must be a JSON array"),
				 errhint("For a single event use evstream_track(), or put it into [ ].")));

	prepare_arena();
	set_limits(&limits, now);
	tracked = palloc(Min(Max(1, JB_ROOT_COUNT(events)), OUTBOX_WRITE_ROWS) * sizeof(OutboxNew));
	initStringInfo(&json);
	rows = AllocSetContextCreate(CurrentMemoryContext, "evstream batch", ALLOCSET_DEFAULT_SIZES);

	it = JsonbIteratorInit(&events->root);
	(void) JsonbIteratorNext(&it, &v, true); /* WJB_BEGIN_ARRAY */
	while ((token = JsonbIteratorNext(&it, &v, true)) == WJB_ELEM)
	{
		EventReason reason;
		char detail[EVENT_DETAIL_SIZE];
		MemoryContext old = MemoryContextSwitchTo(rows);

		CHECK_FOR_INTERRUPTS();
		resetStringInfo(&json);
		if (v.type == jbvBinary)
			jsonb_append_text(&json, v.val.binary.data);
		else
			jsonb_append_text(&json, &JsonbValueToJsonb(&v)->root);
		reason = make_tracked(json.data, json.len, &limits, &tracked[nwaiting], detail);
		MemoryContextSwitchTo(old);
		if (reason == EVENT_OK)
			nwaiting++;
		else if (dead_letters && reason != EVENT_NO_MEMORY)
		{
			write_dead_letter(reason, detail, json.data, json.len, now);
			ndead++;
		}
		else
			refuse_event(reason, detail, position);
		event_arena_reset(arena);
		position++;

		/* in memory that is used again and again, and not in as much as there are events */
		if (nwaiting == OUTBOX_WRITE_ROWS)
		{
			if (writer == NULL)
				writer = outbox_write_begin(nwaiting, now);
			outbox_write_rows(writer, tracked, nwaiting);
			MemoryContextReset(rows);
			ntracked += nwaiting;
			nwaiting = 0;
		}
	}

	if (nwaiting > 0)
	{
		if (writer == NULL)
			writer = outbox_write_begin(nwaiting, now);
		outbox_write_rows(writer, tracked, nwaiting);
		ntracked += nwaiting;
	}
	if (writer != NULL)
		outbox_write_end(writer);
	MemoryContextDelete(rows);
	if (ndead > 0)
		outbox_count_at_commit(ndead);
	PG_RETURN_INT64(ntracked);
}

/* ---- checking a dead letter before it is retried ---- */

/*
 * evstream.check_record(record_value bytea, record_timestamp timestamptz,
 * record_headers jsonb, OUT reason text, OUT detail text): both NULL for a
 * good event.
 */
Datum
evstream_check_record(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	EventLimits limits;
	Event event;
	EventReason reason;
	char detail[EVENT_DETAIL_SIZE];
	Datum values[2] = {0};
	bool nulls[2] = {true, true};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	prepare_arena();
	set_limits(&limits, GetCurrentTimestamp());
	limits.traceparent.data = NULL;
	if (!PG_ARGISNULL(1))
		limits.record_us = PG_GETARG_TIMESTAMPTZ(1) + UNIX_EPOCH_OFFSET_US;
	if (PG_ARGISNULL(0))
	{
		reason = EVENT_NOT_JSON;
		strlcpy(detail, "the value is null", sizeof(detail));
	}
	else
	{
		bytea *value = PG_GETARG_BYTEA_PP(0);

		reason = event_parse(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value), &limits, arena, &event,
							 detail);
		poison_debug_parsed(reason, &event);
	}
	if (reason == EVENT_NO_MEMORY)
		refuse_event(reason, detail, -1);
	if (reason != EVENT_OK)
	{
		values[0] = CStringGetTextDatum(event_reason_name(reason));
		values[1] = CStringGetTextDatum(detail);
		nulls[0] = nulls[1] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}
