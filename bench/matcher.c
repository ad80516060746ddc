/*-------------------------------------------------------------------------
 *
 * matcher.c
 *	  matcher_cost(events regclass, rounds int): what it costs to match events.
 *
 * A module of the bench alone, built with the matcher's own files.  Compiles
 * evstream.filters, and goes through the table, which has the columns of
 * evstream.events, so many times: once so that each event is read as the
 * notifier reads it and matched, and once with all of them in memory.  Of the
 * rounds the quickest counts: others had to share the machine.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <float.h>

#include "access/htup_details.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "matcher.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(evstream_matcher_cost);

#define READ_ROWS 1000

/* Columns of evstream.events. */
enum
{
	USER_ID = 1,
	EVENT_TYPE,
	AMOUNT = 6,
	USER_TIER,
	PROPERTIES,
	COLUMNS = 13
};

static EventText
text_of(Datum value, bool null)
{
	text *t;

	if (null)
		return (EventText){NULL, 0};
	t = DatumGetTextPP(value);
	return (EventText){VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t)};
}

static void
take_event(HeapTuple tuple, TupleDesc desc, MatchEvent *event)
{
	Datum values[COLUMNS];
	bool nulls[COLUMNS];

	heap_deform_tuple(tuple, desc, values, nulls);
	event->event_type = text_of(values[EVENT_TYPE], nulls[EVENT_TYPE]);
	event->user_id = text_of(values[USER_ID], nulls[USER_ID]);
	event->user_tier = text_of(values[USER_TIER], nulls[USER_TIER]);
	event->has_amount = !nulls[AMOUNT];
	event->amount = nulls[AMOUNT] ? NULL : DatumGetNumeric(values[AMOUNT]);
	event->properties = DatumGetJsonbP(values[PROPERTIES]);
}

/* Reads and matches all events; returns how many matches there were. */
static int64
read_and_match(Matcher *matcher, const char *query, MemoryContext scratch)
{
	Portal portal = SPI_cursor_open_with_args(NULL, query, 0, NULL, NULL, NULL, true, 0);
	int64 matches = 0;
	uint64 n;

	do
	{
		SPI_cursor_fetch(portal, true, READ_ROWS);
		n = SPI_processed;
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(scratch);
			const int *subscribers;
			MatchEvent event;

			take_event(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, &event);
			matches += matcher_match(matcher, &event, &subscribers);
			MemoryContextSwitchTo(old);
			MemoryContextReset(scratch);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (n == READ_ROWS);
	SPI_cursor_close(portal);
	return matches;
}

static int64
match_all(Matcher *matcher, const MatchEvent *events, uint64 nevents)
{
	int64 matches = 0;

	for (uint64 i = 0; i < nevents; i++)
	{
		const int *subscribers;

		matches += matcher_match(matcher, &events[i], &subscribers);
	}
	return matches;
}

static double
ns_since(instr_time start)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, start);
	return INSTR_TIME_GET_DOUBLE(now) * 1e9;
}

/*
 * Gives filters, ns of an event that is read and matched, ns of matching alone,
 * matches of an event, bytes of a filter, ms of compiling.
 */
Datum
evstream_matcher_cost(PG_FUNCTION_ARGS)
{
	int rounds = PG_GETARG_INT32(1);
	char *query = psprintf("SELECT * FROM %s", quote_identifier(get_rel_name(PG_GETARG_OID(0))));
	MemoryContext scratch;
	Matcher *matcher;
	MatchEvent *events;
	uint64 nevents;
	int64 matches = 0;
	double alone = DBL_MAX;
	double together = DBL_MAX;
	instr_time start;
	TupleDesc desc;
	Datum values[6];
	bool nulls[6] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	SPI_connect();
	scratch = AllocSetContextCreate(CurrentMemoryContext, "event", ALLOCSET_DEFAULT_SIZES);
	matcher = matcher_create(CurrentMemoryContext);
	INSTR_TIME_SET_CURRENT(start);
	matcher_refresh(matcher);
	values[5] = Float8GetDatum(ns_since(start) / 1e6);

	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the events");
	nevents = SPI_processed;
	events = palloc(nevents * sizeof(MatchEvent));
	for (uint64 i = 0; i < nevents; i++)
		take_event(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, &events[i]);

	/* the first time sorts the cells */
	(void) match_all(matcher, events, nevents);
	for (int round = 0; round < rounds; round++)
	{
		INSTR_TIME_SET_CURRENT(start);
		matches += match_all(matcher, events, nevents);
		alone = Min(alone, ns_since(start) / nevents);
		INSTR_TIME_SET_CURRENT(start);
		matches += read_and_match(matcher, query, scratch);
		together = Min(together, ns_since(start) / nevents);
	}
	values[1] = Float8GetDatum(together);
	values[2] = Float8GetDatum(alone);

	values[0] = Int64GetDatum(matcher_filters(matcher));
	values[3] = Float8GetDatum((double) matches / rounds / nevents / 2);
	values[4] = Float8GetDatum((double) matcher_memory(matcher) / Max(matcher_filters(matcher), 1));
	SPI_finish();
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
