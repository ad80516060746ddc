/*-------------------------------------------------------------------------
 *
 * matcher.c
 *	  The subscribers' filters in memory: reading them and keeping up.
 *
 * The first reading takes all versions.  Later ones take those that were made
 * or ended by transactions which the snapshot of the reading before did not
 * see, found by their xids.  Versions that were deleted since are looked for
 * when many ended ones are held; when much has gone, all is built anew.
 *
 * Which transactions the reading before saw is a matter of its snapshot's xmin
 * alone: rows that are known already are passed over.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "compat.h"
#include "filter.h"
#include "matcher_int.h"

/* Rows that are read at a time. */
#define READ_ROWS 1000

/* Ended versions, or removed ones, that are not worth the trouble. */
#define FEW_ENDED   1000
#define FEW_REMOVED 10000
#define FEW_BYTES   (64 * 1024 * 1024)

#define COLUMNS                                                                                    \
	"version_id, subscriber_id, event_types, user_ids, user_tiers, min_amount, properties,"        \
	" made_xid, ended_xid"

enum
{
	COL_VERSION_ID = 1,
	COL_SUBSCRIBER_ID,
	COL_LISTS, /* in the order of Dimension */
	COL_MIN_AMOUNT = COL_LISTS + DIM_COUNT,
	COL_PROPERTIES,
	COL_MADE_XID,
	COL_ENDED_XID
};

/* Grows with every change of evstream.filters that this process hears of. */
static uint64 changes = 1;
static Oid watched_table = InvalidOid;

static SPIPlanPtr all_plan = NULL;
static SPIPlanPtr changes_plan = NULL;
static SPIPlanPtr ended_plan = NULL;
static SPIPlanPtr subscriber_plan = NULL;

PG_FUNCTION_INFO_V1(evstream_match);

static void
table_changed(Datum arg, Oid relid)
{
	if (relid == watched_table || relid == InvalidOid)
		changes++;
}

Matcher *
matcher_create(MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "evstream matcher", ALLOCSET_SMALL_SIZES);
	Matcher *matcher = MemoryContextAllocZero(context, sizeof(Matcher));

	matcher->context = context;
	matcher->data = AllocSetContextCreate(context, "evstream filters", ALLOCSET_DEFAULT_SIZES);
	matcher->scratch = AllocSetContextCreate(context, "evstream matching", ALLOCSET_DEFAULT_SIZES);
	matcher->found_size = 64;
	matcher->found = MemoryContextAlloc(context, matcher->found_size * sizeof(int));
	matcher_index_init(matcher);
	return matcher;
}

void
matcher_free(Matcher *matcher)
{
	MemoryContextDelete(matcher->context);
}

/* ---- reading ---- */

static void
prepare(SPIPlanPtr *plan, const char *query, int nargs, Oid *types)
{
	if (*plan != NULL)
		return;
	*plan = SPI_prepare(query, nargs, types);
	if (*plan == NULL)
		elog(ERROR, "SPI_prepare failed for \"%s\": %s", query, SPI_result_code_string(SPI_result));
	if (SPI_keepplan(*plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
}

static EventText
text_of(Datum datum)
{
	text *value = DatumGetTextPP(datum);

	return (EventText){VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)};
}

/* A column that is never null, unless somebody has changed the table. */
static Datum
column(uint64 row, int number)
{
	bool null;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &null);

	if (null)
		elog(ERROR, "unexpected null in column %d of a filter", number);
	return datum;
}

/* A row of the last result; memory: the current context, and the result. */
static void
read_row(uint64 number, FilterRow *row)
{
	HeapTuple tuple = SPI_tuptable->vals[number];
	TupleDesc desc = SPI_tuptable->tupdesc;
	bool null;
	Datum datum;

	memset(row, 0, sizeof(*row));
	row->version_id = DatumGetInt64(column(number, COL_VERSION_ID));
	row->subscriber = text_of(column(number, COL_SUBSCRIBER_ID));
	for (int d = 0; d < DIM_COUNT; d++)
	{
		Datum *elements;
		bool *nulls;

		datum = SPI_getbinval(tuple, desc, COL_LISTS + d, &null);
		if (null)
			continue;
		deconstruct_array(DatumGetArrayTypeP(datum), TEXTOID, -1, false, TYPALIGN_INT, &elements,
						  &nulls, &row->nvalues[d]);
		row->values[d] = palloc(Max(row->nvalues[d], 1) * sizeof(EventText));
		for (int i = 0; i < row->nvalues[d]; i++)
		{
			if (nulls[i])
				elog(ERROR, "version " INT64_FORMAT " of a filter has a null in a list",
					 row->version_id);
			row->values[d][i] = text_of(elements[i]);
		}
	}
	datum = SPI_getbinval(tuple, desc, COL_MIN_AMOUNT, &null);
	row->min_amount = null ? NULL : DatumGetNumeric(datum);
	datum = SPI_getbinval(tuple, desc, COL_PROPERTIES, &null);
	row->properties = null ? NULL : DatumGetJsonbP(datum);
	datum = column(number, COL_MADE_XID);
	row->made_xid = U64FromFullTransactionId(DatumGetFullTransactionId(datum));
	datum = SPI_getbinval(tuple, desc, COL_ENDED_XID, &null);
	row->ended_xid = null ? 0 : U64FromFullTransactionId(DatumGetFullTransactionId(datum));
}

static void
take_row(Matcher *matcher, const FilterRow *row, uint64 own_xid)
{
	Version *known = matcher_index_find(matcher, row->version_id);

	if (own_xid != 0 && (row->made_xid == own_xid || row->ended_xid == own_xid))
		matcher->own_xid = own_xid;
	if (known == NULL)
		matcher_index_add(matcher, row);
	else if (known->ended_xid == 0 && row->ended_xid != 0)
	{
		known->ended_xid = row->ended_xid;
		matcher->nended++;
	}
}

/* Takes what a plan gives under the active snapshot. */
static void
take_rows(Matcher *matcher, SPIPlanPtr plan, Datum *values, uint64 own_xid)
{
	Portal portal = SPI_cursor_open(NULL, plan, values, NULL, true);

	for (;;)
	{
		uint64 n;

		SPI_cursor_fetch(portal, true, READ_ROWS);
		n = SPI_processed;
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext old = MemoryContextSwitchTo(matcher->scratch);
			FilterRow row;

			read_row(i, &row);
			take_row(matcher, &row, own_xid);
			MemoryContextSwitchTo(old);
			MemoryContextReset(matcher->scratch);
		}
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
		if (n < READ_ROWS)
			break;
	}
	SPI_cursor_close(portal);
}

Matcher *
matcher_create_for(MemoryContext parent, const char *subscriber_id)
{
	Matcher *matcher = matcher_create(parent);
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(subscriber_id)};

	prepare(&subscriber_plan,
			"SELECT " COLUMNS " FROM evstream.filters"
			" WHERE subscriber_id OPERATOR(pg_catalog.=) $1 AND ended_xid IS NULL",
			1, types);
	PushActiveSnapshot(GetTransactionSnapshot());
	take_rows(matcher, subscriber_plan, values, 0);
	PopActiveSnapshot();
	matcher_use_snapshot(matcher, NULL);
	return matcher;
}

static void
clear(Matcher *matcher)
{
	MemoryContextReset(matcher->data);
	matcher_index_init(matcher);
	matcher->own_xid = 0;
	matcher->purge_at = FEW_ENDED;
}

/* Versions of our own transaction, or of its parts, may have been rolled back. */
static void
forget_own(Matcher *matcher)
{
	if (matcher->own_xid == 0)
		return;
	for (uint32 i = 0; i < matcher->nversions; i++)
	{
		Version *version = matcher_version(matcher, i);

		if (version->version_id == 0)
			continue;
		if (version->made_xid == matcher->own_xid)
			matcher_index_remove(matcher, version);
		else if (version->ended_xid == matcher->own_xid)
		{
			version->ended_xid = 0;
			matcher->nended--;
		}
	}
	matcher->own_xid = 0;
}

/*
 * Removes the ended versions that are no longer in the table.  False: there are
 * so many of them that all is to be built anew.
 */
static bool
purge(Matcher *matcher)
{
	HASHCTL ctl = {.keysize = sizeof(int64), .entrysize = sizeof(int64), .hcxt = matcher->scratch};
	HTAB *kept;
	bool few;

	if (matcher->nended < matcher->purge_at)
		return true;
	kept = hash_create("evstream ended filters", matcher->nended, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	prepare(&ended_plan, "SELECT version_id FROM evstream.filters WHERE ended_xid IS NOT NULL", 0,
			NULL);
	if (SPI_execute_plan(ended_plan, NULL, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.filters");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool null;
		int64 id =
			DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &null));

		hash_search(kept, &id, HASH_ENTER, NULL);
	}
	SPI_freetuptable(SPI_tuptable);

	few = matcher->nended - hash_get_num_entries(kept) < FEW_ENDED + matcher->nheld / 8;
	for (uint32 i = 0; few && i < matcher->nversions; i++)
	{
		Version *version = matcher_version(matcher, i);

		if (version->version_id != 0 && version->ended_xid != 0 &&
			hash_search(kept, &version->version_id, HASH_FIND, NULL) == NULL)
			matcher_index_remove(matcher, version);
	}
	matcher->purge_at = Max(FEW_ENDED, 2 * matcher->nended);
	MemoryContextReset(matcher->scratch);
	return few;
}

/* The oldest transaction that the active snapshot may not see. */
static uint64
snapshot_xmin(void)
{
	TransactionId xmin = GetActiveSnapshot()->xmin;
	FullTransactionId next = ReadNextFullTransactionId();
	uint64 epoch = EpochFromFullTransactionId(next);

	if (xmin > XidFromFullTransactionId(next))
		epoch--;
	return (epoch << 32) | xmin;
}

static void
read_all(Matcher *matcher, uint64 own_xid)
{
	clear(matcher);
	prepare(&all_plan, "SELECT " COLUMNS " FROM evstream.filters", 0, NULL);
	take_rows(matcher, all_plan, NULL, own_xid);
	matcher->built_bytes = MemoryContextMemAllocated(matcher->data, false);
}

/* Much more memory than when all was built: a few versions may be large ones. */
static bool
is_large(const Matcher *matcher)
{
	return MemoryContextMemAllocated(matcher->data, false) > 2 * matcher->built_bytes + FEW_BYTES;
}

static void
read_changes(Matcher *matcher, uint64 own_xid)
{
	Oid types[] = {XID8OID};
	Datum values[] = {FullTransactionIdGetDatum(FullTransactionIdFromU64(matcher->read_xmin))};

	/* two parts, as each has its index; what is in both is known the second time */
	prepare(&changes_plan,
			"SELECT " COLUMNS " FROM evstream.filters WHERE made_xid OPERATOR(pg_catalog.>=) $1"
			" UNION ALL "
			"SELECT " COLUMNS " FROM evstream.filters WHERE ended_xid OPERATOR(pg_catalog.>=) $1",
			1, types);
	take_rows(matcher, changes_plan, values, own_xid);
}

bool
matcher_refresh(Matcher *matcher)
{
	static bool watching = false;
	Oid table = filter_table();
	bool told;
	uint64 heard;
	uint64 own_xid;

	if (!watching)
	{
		CacheRegisterRelcacheCallback(table_changed, (Datum) 0);
		watching = true;
	}
	if (watched_table != table)
	{
		watched_table = table;
		changes++;
	}

	/* our own changes, too, are told at the end of a command */
	CommandCounterIncrement();
	told = filter_changes_told(table);
	heard = changes + filter_own_changes();
	matcher_use_snapshot(matcher, NULL);
	if (matcher->loaded && told && matcher->relid == table && matcher->changes == heard)
		return false;

	PushActiveSnapshot(GetTransactionSnapshot());
	own_xid = U64FromFullTransactionId(GetTopFullTransactionIdIfAny());
	if (matcher->loaded && matcher->relid == table)
	{
		matcher->loaded = false;
		forget_own(matcher);
		read_changes(matcher, own_xid);
		if (!purge(matcher) || matcher->nremoved > FEW_REMOVED + 2 * matcher->nheld ||
			is_large(matcher))
			read_all(matcher, own_xid);
	}
	else
	{
		matcher->loaded = false;
		read_all(matcher, own_xid);
	}
	matcher->read_xmin = snapshot_xmin();
	PopActiveSnapshot();
	matcher->relid = table;
	/* an older snapshot does not show all that was heard of */
	matcher->changes = IsolationUsesXactSnapshot() ? 0 : heard;
	matcher->loaded = true;
	matcher_use_snapshot(matcher, NULL);
	return true;
}

/* ---- matching ---- */

static int
compare_xids(const void *a, const void *b)
{
	uint64 x = *(const uint64 *) a;
	uint64 y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

static uint64
next_xid(const char **text, char separator)
{
	char *end;
	uint64 xid = strtoull(*text, &end, 10);

	if (end == *text || (*end != separator && *end != '\0'))
		elog(ERROR, "invalid snapshot: \"%s\"", *text);
	*text = *end == '\0' ? end : end + 1;
	return xid;
}

void
matcher_use_snapshot(Matcher *matcher, const char *snapshot)
{
	matcher->use_snapshot = snapshot != NULL;
	matcher->nxip = 0;
	if (snapshot != NULL)
	{
		int size = 1;

		for (const char *p = snapshot; *p != '\0'; p++)
			size += *p == ',';
		if (matcher->xip == NULL)
			matcher->xip = MemoryContextAlloc(matcher->context, size * sizeof(uint64));
		else
			matcher->xip = repalloc(matcher->xip, size * sizeof(uint64));
		matcher->xmin = next_xid(&snapshot, ':');
		matcher->xmax = next_xid(&snapshot, ':');
		while (*snapshot != '\0')
			matcher->xip[matcher->nxip++] = next_xid(&snapshot, ',');
		qsort(matcher->xip, matcher->nxip, sizeof(uint64), compare_xids);
	}
	matcher->all_visible =
		matcher->nended == 0 && (snapshot == NULL || matcher->max_made < matcher->xmin);
}

static int
compare_ints(const void *a, const void *b)
{
	int x = *(const int *) a;
	int y = *(const int *) b;

	return (x > y) - (x < y);
}

int
matcher_match(Matcher *matcher, const MatchEvent *event, const int **subscribers)
{
	MemoryContext old = MemoryContextSwitchTo(matcher->scratch);
	int *found;
	int n = 0;

	matcher->event = event;
	matcher_index_look(matcher);
	matcher->event = NULL;
	MemoryContextSwitchTo(old);
	MemoryContextReset(matcher->scratch);

	found = matcher->found;
	if (matcher->nfound > 1)
		qsort(found, matcher->nfound, sizeof(int), compare_ints);
	for (int i = 0; i < matcher->nfound; i++)
	{
		if (n == 0 || found[n - 1] != found[i])
			found[n++] = found[i];
	}
	*subscribers = found;
	return n;
}

const char *
matcher_subscriber(const Matcher *matcher, int index)
{
	return matcher->subscribers.texts[index].data;
}

int64
matcher_filters(const Matcher *matcher)
{
	return matcher->nheld;
}

Size
matcher_memory(const Matcher *matcher)
{
	return MemoryContextMemAllocated(matcher->context, true);
}

/* ---- SQL ---- */

/*
 * evstream.match(event_type, user_id, user_tier, amount, properties, snapshot):
 * the subscribers that match now, or did in a snapshot, by a matcher that this
 * session keeps.
 */
Datum
evstream_match(PG_FUNCTION_ARGS)
{
	static Matcher *matcher = NULL;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MatchEvent event = {.properties = NULL};
	EventText *texts[] = {&event.event_type, &event.user_id, &event.user_tier};
	MemoryContext old;
	Tuplestorestate *rows;
	TupleDesc desc;
	const int *subscribers;
	int n;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("set-valued function called in context that cannot accept a set")));

	for (int i = 0; i < lengthof(texts); i++)
	{
		if (!PG_ARGISNULL(i))
			*texts[i] = text_of(PG_GETARG_DATUM(i));
	}
	event.has_amount = !PG_ARGISNULL(3);
	if (event.has_amount)
		event.amount = PG_GETARG_NUMERIC(3);
	if (!PG_ARGISNULL(4))
		event.properties = PG_GETARG_JSONB_P(4);

	if (matcher == NULL)
		matcher = matcher_create(TopMemoryContext);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	matcher_refresh(matcher);
	SPI_finish();
	if (!PG_ARGISNULL(5))
	{
		Oid output;
		bool is_varlena;

		getTypeOutputInfo(PG_SNAPSHOTOID, &output, &is_varlena);
		matcher_use_snapshot(matcher, OidOutputFunctionCall(output, PG_GETARG_DATUM(5)));
	}
	n = matcher_match(matcher, &event, &subscribers);

	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(desc, 1, "subscriber_id", TEXTOID, -1, 0);
	rows = tuplestore_begin_heap(true, false, work_mem);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < n; i++)
	{
		Datum value = CStringGetTextDatum(matcher_subscriber(matcher, subscribers[i]));
		bool null = false;

		tuplestore_putvalues(rows, desc, &value, &null);
	}
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = rows;
	rsinfo->setDesc = desc;
	return (Datum) 0;
}
