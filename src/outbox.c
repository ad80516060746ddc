/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  Reading the outbox by snapshot pairs, its positions, and emptying it.
 *
 * A reader must not miss a row of a transaction that commits late, so it can
 * not go by ids.  It goes by snapshots, as PgQ does: tick n covers the rows that
 * are visible in its snapshot and were not in that of tick n - 1.  These are the
 * rows of transactions that were running at tick n - 1, looked up by their xid, and
 * those with an xid from xmax of n - 1 up to xmax of n, a range of the index.
 * Both are read in the order of (xid, id), so a position within a tick is a pair.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "compat.h"
#include "event.h"
#include "outbox.h"
#include "settings.h"
#include "status.h"

#define OUTBOX_TABLES	3

/* Rows that a cursor gives at first, before their size is known */
#define FIRST_FETCH		64
#define MOST_FETCH		2000

/* An emptied table looks empty to a dump with an older snapshot: so long we wait for it */
#define EMPTY_GRACE_US	(INT64CONST(600) * USECS_PER_SEC)

#define OUTBOX_COLUMNS	"xid, id, event_id, tracked_at, user_id, value, traceparent"

#define UNION_OF_TABLES(columns, condition) \
	"SELECT " columns " FROM evstream.outbox_0 WHERE " condition \
	" UNION ALL SELECT " columns " FROM evstream.outbox_1 WHERE " condition \
	" UNION ALL SELECT " columns " FROM evstream.outbox_2 WHERE " condition

/* $1, $2: position; $3: xmin (inclusive); $4: snapshot */
#define RANGE_CONDITION \
	"(xid, id) > ($1, $2) AND xid >= $3 AND xid < pg_catalog.pg_snapshot_xmax($4)" \
	" AND pg_catalog.pg_visible_in_snapshot(xid, $4)"

/* $1: xid; $2: id */
#define XID_CONDITION "xid = $1 AND id > $2"

#define RANGE_QUERY \
	UNION_OF_TABLES(OUTBOX_COLUMNS, RANGE_CONDITION) " ORDER BY xid, id"
#define XID_QUERY \
	UNION_OF_TABLES(OUTBOX_COLUMNS, XID_CONDITION) " ORDER BY id"

typedef struct LocalRange
{
	pg_uuid_t	origin;
	OutboxPosition from;
	OutboxPosition to;
} LocalRange;

static LocalRange *local_ranges = NULL;
static int	nlocal_ranges = 0;

static bool wake_callback_registered = false;
static bool wake_wanted = false;

/*
 * Set while evstream_wait() looks with the active snapshot; otherwise each
 * query takes its own, as its rows have to be newer than the locks before it.
 */
static bool use_active_snapshot = false;

PG_FUNCTION_INFO_V1(evstream_outbox_oldest_waiting);
PG_FUNCTION_INFO_V1(evstream_wait);

/* ---- small things ---- */

static int
execute(const char *sql, int nargs, Oid *types, Datum *values, int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, values, NULL, use_active_snapshot, 0);

	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

static Datum
column(int row, int number, bool *isnull)
{
	bool		null;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &null);

	if (isnull)
		*isnull = null;
	else if (null)
		elog(ERROR, "unexpected null in column %d", number);
	return value;
}

/* A pass-by-reference value of the first row, kept beyond the next query. */
static Datum
kept_column(int row, int number, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		value = PointerGetDatum(PG_DETOAST_DATUM_COPY(column(row, number, NULL)));

	MemoryContextSwitchTo(old);
	return value;
}

int
outbox_position_cmp(const OutboxPosition *a, const OutboxPosition *b)
{
	if (a->tick != b->tick)
		return a->tick < b->tick ? -1 : 1;
	if (a->xid != b->xid)
		return a->xid < b->xid ? -1 : 1;
	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return 0;
}

static OutboxPosition
position_from_row(int row, int first_column)
{
	OutboxPosition position;

	position.tick = DatumGetInt64(column(row, first_column, NULL));
	position.xid = U64FromFullTransactionId(DatumGetFullTransactionId(column(row, first_column + 1, NULL)));
	position.id = DatumGetInt64(column(row, first_column + 2, NULL));
	return position;
}

static Datum
xid_datum(uint64 xid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
}

/* ---- positions ---- */

/*
 * Runs a query for a position; one lower than the base counts as the base,
 * since below it xids are those of another system.
 */
static OutboxPosition
query_position(const char *sql)
{
	OutboxPosition position = {0, 0, 0};

	execute("SELECT outbox_base FROM evstream.identity", 0, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		position.tick = DatumGetInt64(column(0, 1, NULL));
	execute(sql, 0, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		OutboxPosition found = position_from_row(0, 1);

		if (outbox_position_cmp(&found, &position) > 0)
			position = found;
	}
	return position;
}

static OutboxPosition
read_locally_position(void)
{
	return query_position("SELECT tick, xid, id FROM evstream.batch_log"
						  " WHERE log_id = 1 AND log_partition = 0 AND tick IS NOT NULL"
						  " ORDER BY generation DESC, from_offset DESC LIMIT 1");
}

static OutboxPosition
relayed_position(void)
{
	return query_position("SELECT tick, xid, id FROM evstream.relay_log ORDER BY seq DESC LIMIT 1");
}

/*
 * Entries of the relay's log of which every record is consumed.  What is
 * consumed does not shrink by a seek, so it is not the position that is asked.
 */
#define CONSUMED_ENTRIES \
	"SELECT r.seq, r.tick, r.xid, r.id FROM evstream.relay_log r" \
	" WHERE NOT EXISTS (SELECT FROM pg_catalog.unnest(r.next_offsets) WITH ORDINALITY AS o (next, n)" \
	"   WHERE o.next > 0 AND o.next > GREATEST(0," \
	"     (SELECT max(b.to_offset) FROM evstream.batch_log b" \
	"       WHERE b.log_id = r.log_id AND b.log_partition = o.n - 1)," \
	"     (SELECT pg_catalog.upper(p.consumed) FROM evstream.partitions p" \
	"       WHERE p.log_id = r.log_id AND p.log_partition = o.n - 1)))"

static OutboxPosition
relayed_and_stored_position(void)
{
	SPIPlanPtr	plan;
	Portal		portal;
	OutboxPosition position = query_position("SELECT 1 WHERE false");

	/* newest first in case all is consumed, which is the common one */
	execute(CONSUMED_ENTRIES " AND r.seq = (SELECT max(seq) FROM evstream.relay_log)",
			0, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		OutboxPosition found = position_from_row(0, 2);

		return outbox_position_cmp(&found, &position) > 0 ? found : position;
	}

	plan = SPI_prepare("SELECT s.tick, s.xid, s.id, EXISTS (SELECT FROM (" CONSUMED_ENTRIES " AND r.seq = s.seq) c)"
					   " FROM evstream.relay_log s ORDER BY s.seq", 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, use_active_snapshot);
	for (;;)
	{
		OutboxPosition found;

		SPI_cursor_fetch(portal, true, 1);
		if (SPI_processed == 0 || !DatumGetBool(column(0, 4, NULL)))
			break;
		found = position_from_row(0, 1);
		if (outbox_position_cmp(&found, &position) > 0)
			position = found;
	}
	SPI_cursor_close(portal);
	SPI_freeplan(plan);
	return position;
}

OutboxPosition
outbox_stored_position(void)
{
	OutboxPosition local = read_locally_position();
	OutboxPosition relayed = relayed_and_stored_position();

	return outbox_position_cmp(&local, &relayed) >= 0 ? local : relayed;
}

/* Behind what the relay has delivered, and what was read without it. */
static OutboxPosition
relay_position(void)
{
	OutboxPosition local = read_locally_position();
	OutboxPosition relayed = relayed_position();

	return outbox_position_cmp(&local, &relayed) >= 0 ? local : relayed;
}

OutboxPosition
outbox_relay_position(int32 log_id)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(log_id)};
	OutboxPosition position;

	if (execute("SELECT FROM evstream.relay_log WHERE log_id <> $1", 1, types, values, SPI_OK_SELECT) == 0)
		return relay_position();

	/*
	 * The topic was made again, or another one is set: what went into the old
	 * one and was not consumed is sent again.
	 */
	position = outbox_stored_position();
	execute("DELETE FROM evstream.relay_log", 0, NULL, NULL, SPI_OK_DELETE);
	outbox_relay_advance(&position, log_id, NULL, 0);
	return position;
}

/*
 * The embedded log goes on at the last position known to be stored: what is in
 * Kafka and was not consumed is read again here.  That stretch is kept as a
 * local range, so that it is passed over when it comes out of Kafka later.
 */
OutboxPosition
outbox_local_position(void)
{
	OutboxPosition stored = outbox_stored_position();
	Oid			types[3] = {INT8OID, XID8OID, INT8OID};
	Datum		values[3];

	values[0] = Int64GetDatum(stored.tick);
	values[1] = xid_datum(stored.xid);
	values[2] = Int64GetDatum(stored.id);
	execute("INSERT INTO evstream.local_ranges (origin, from_tick, from_xid, from_id)"
			" SELECT origin, $1, $2, $3 FROM evstream.identity"
			" WHERE NOT EXISTS (SELECT FROM evstream.local_ranges WHERE to_tick IS NULL)",
			3, types, values, SPI_OK_INSERT);
	return stored;
}

void
outbox_relay_advance(const OutboxPosition *position, int32 log_id,
					 const int64 *offsets, int nparts)
{
	Oid			types[5] = {INT8OID, XID8OID, INT8OID, INT4OID, INT8ARRAYOID};
	Datum		values[5];
	Datum	   *elements = palloc(Max(1, nparts) * sizeof(Datum));

	for (int i = 0; i < nparts; i++)
		elements[i] = Int64GetDatum(offsets[i]);
	values[0] = Int64GetDatum(position->tick);
	values[1] = xid_datum(position->xid);
	values[2] = Int64GetDatum(position->id);
	values[3] = Int32GetDatum(log_id);
	values[4] = PointerGetDatum(construct_array(elements, nparts, INT8OID, 8,
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	/* a relay that has just started does not know what was delivered before */
	execute("INSERT INTO evstream.relay_log (tick, xid, id, log_id, next_offsets)"
			" SELECT $1, $2, $3, $4, COALESCE(pg_catalog.array_agg(GREATEST(x.now, x.before, 0) ORDER BY x.n), '{}')"
			" FROM ROWS FROM (pg_catalog.unnest($5), pg_catalog.unnest("
			"   (SELECT l.next_offsets FROM evstream.relay_log l ORDER BY l.seq DESC LIMIT 1)))"
			" WITH ORDINALITY AS x (now, before, n)", 5, types, values, SPI_OK_INSERT);
}

/* ---- reading ---- */

typedef struct ReadState
{
	OutboxBatch *batch;
	MemoryContext context;
	int			max;
	int			allocated;
	Size		bytes;
	Size		max_bytes;
} ReadState;

static bool
read_is_full(ReadState *state)
{
	return state->batch->nrows >= state->max || state->bytes >= state->max_bytes;
}

static char *
copy_text(Datum value, MemoryContext context, int *len)
{
	text	   *source = DatumGetTextPP(value);
	char	   *result;

	*len = VARSIZE_ANY_EXHDR(source);
	result = MemoryContextAlloc(context, *len + 1);
	memcpy(result, VARDATA_ANY(source), *len);
	result[*len] = '\0';
	return result;
}

static void
take_row(ReadState *state, int n)
{
	OutboxBatch *batch = state->batch;
	OutboxRow  *row;
	Datum		trace;
	bool		isnull;

	if (batch->nrows == state->allocated)
	{
		state->allocated = state->allocated == 0 ? 256 : state->allocated * 2;
		if (batch->rows == NULL)
			batch->rows = MemoryContextAllocHuge(state->context, state->allocated * sizeof(OutboxRow));
		else
			batch->rows = repalloc_huge(batch->rows, state->allocated * sizeof(OutboxRow));
	}
	row = &batch->rows[batch->nrows++];
	row->xid = U64FromFullTransactionId(DatumGetFullTransactionId(column(n, 1, NULL)));
	row->id = DatumGetInt64(column(n, 2, NULL));
	row->event_id = *DatumGetUUIDP(column(n, 3, NULL));
	row->tracked_at = DatumGetTimestampTz(column(n, 4, NULL));
	row->user_id = copy_text(column(n, 5, NULL), state->context, &row->user_id_len);
	row->value = copy_text(column(n, 6, NULL), state->context, &row->value_len);
	trace = column(n, 7, &isnull);
	row->traceparent = isnull ? NULL : copy_text(trace, state->context, &row->traceparent_len);
	state->bytes += row->value_len + row->user_id_len + sizeof(OutboxRow);
}

/* Reads by a cursor until its end or until the batch is full. */
static void
read_query(ReadState *state, const char *sql, int nargs, Oid *types, Datum *values)
{
	Portal		portal;
	int			guc_level = NewGUCNestLevel();
	long		fetch = FIRST_FETCH;

	/*
	 * These tables are filled and emptied too fast for statistics; a plan that
	 * sorts would read all that is waiting for each batch.
	 */
	set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	set_config_option("enable_bitmapscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	set_config_option("enable_sort", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	portal = SPI_cursor_open_with_args(NULL, sql, nargs, types, values, NULL, use_active_snapshot, 0);
	AtEOXact_GUC(true, guc_level);

	while (!read_is_full(state))
	{
		Size		average;

		SPI_cursor_fetch(portal, true, Min(fetch, state->max - state->batch->nrows));
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
			take_row(state, (int) i);
		SPI_freetuptable(SPI_tuptable);
		average = state->bytes / state->batch->nrows + 1;
		fetch = Min(MOST_FETCH, Max(1, (state->max_bytes - Min(state->bytes, state->max_bytes)) / average));
	}
	SPI_cursor_close(portal);
}

/*
 * Rows behind position that are visible in `snapshot`, where `previous` (NULL =
 * nothing) is the snapshot of position->tick.
 */
static void
read_between(ReadState *state, const OutboxPosition *position,
			 Datum previous, Datum snapshot)
{
	Oid			types[4] = {XID8OID, INT8OID, XID8OID, PG_SNAPSHOTOID};
	Datum		values[4];
	uint64		range_start = 0;

	if (previous != (Datum) 0)
	{
		Oid			old_types[3] = {PG_SNAPSHOTOID, PG_SNAPSHOTOID, XID8OID};
		Datum		old_values[3] = {previous, snapshot, xid_datum(position->xid)};
		uint64		nold;
		uint64	   *old;

		execute("SELECT pg_catalog.pg_snapshot_xmax($1), NULL::xid8 UNION ALL"
				" SELECT NULL, x FROM pg_catalog.pg_snapshot_xip($1) x"
				" WHERE pg_catalog.pg_visible_in_snapshot(x, $2) AND x >= $3 ORDER BY 2 NULLS FIRST",
				3, old_types, old_values, SPI_OK_SELECT);
		range_start = U64FromFullTransactionId(DatumGetFullTransactionId(column(0, 1, NULL)));
		nold = SPI_processed - 1;
		old = palloc(Max(1, nold) * sizeof(uint64));
		for (uint64 i = 0; i < nold; i++)
			old[i] = U64FromFullTransactionId(DatumGetFullTransactionId(column((int) i + 1, 2, NULL)));
		for (uint64 i = 0; i < nold && !read_is_full(state); i++)
		{
			values[0] = xid_datum(old[i]);
			values[1] = Int64GetDatum(old[i] == position->xid ? position->id : 0);
			read_query(state, XID_QUERY, 2, types, values);
		}
		pfree(old);
	}
	if (read_is_full(state))
		return;
	values[0] = xid_datum(position->xid);
	values[1] = Int64GetDatum(position->id);
	values[2] = xid_datum(range_start);
	values[3] = snapshot;
	read_query(state, RANGE_QUERY, 4, types, values);
}

/* The snapshot of a tick, or 0 where there is none; in the present context. */
static Datum
tick_snapshot(int64 tick)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1] = {Int64GetDatum(tick)};
	MemoryContext context = CurrentMemoryContext;

	if (execute("SELECT snapshot FROM evstream.ticks WHERE tick = $1", 1, types, values, SPI_OK_SELECT) == 0)
		return (Datum) 0;
	return kept_column(0, 1, context);
}

static Datum
previous_snapshot(const OutboxPosition *position)
{
	Datum		previous = tick_snapshot(position->tick);

	/* the base, where all begins, has no snapshot: nothing was visible there */
	if (previous == (Datum) 0 &&
		execute("SELECT FROM evstream.identity WHERE outbox_base = $1", 1, (Oid[]) {INT8OID},
				(Datum[]) {Int64GetDatum(position->tick)}, SPI_OK_SELECT) == 0)
		elog(ERROR, "snapshot of tick " INT64_FORMAT " is missing", position->tick);
	return previous;
}

/* Are the xids in the outbox those of this system and database? */
static bool
outbox_is_ours(void)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2] = {Int64GetDatum((int64) GetSystemIdentifier()), ObjectIdGetDatum(MyDatabaseId)};

	return execute("SELECT FROM evstream.identity WHERE outbox_system = $1 AND outbox_database = $2",
				   2, types, values, SPI_OK_SELECT) > 0;
}

/*
 * Another system or database: the xids of the rows and ticks mean nothing
 * here (all new rows could look read).  So every row that is found is given
 * the xid of this transaction and is read again; the ids decide.  Trackers
 * are kept out meanwhile, as their rows are to be told from the old ones.
 */
void
outbox_adopt(void)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2] = {Int64GetDatum((int64) GetSystemIdentifier()), ObjectIdGetDatum(MyDatabaseId)};

	if (outbox_is_ours())
		return;
	execute("LOCK TABLE evstream.outbox_0, evstream.outbox_1, evstream.outbox_2, evstream.ticks"
			" IN SHARE ROW EXCLUSIVE MODE", 0, NULL, NULL, SPI_OK_UTILITY);
	/* another reader may have been faster */
	if (outbox_is_ours())
		return;
	execute("UPDATE evstream.outbox_0 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL, NULL, SPI_OK_UPDATE);
	execute("UPDATE evstream.outbox_1 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL, NULL, SPI_OK_UPDATE);
	execute("UPDATE evstream.outbox_2 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL, NULL, SPI_OK_UPDATE);
	execute("UPDATE evstream.identity SET outbox_system = $1, outbox_database = $2,"
			" origin = pg_catalog.gen_random_uuid(),"
			" outbox_base = 1 + GREATEST(outbox_base, (SELECT max(tick) FROM evstream.ticks),"
			"   (SELECT max(tick) FROM evstream.relay_log), (SELECT max(tick) FROM evstream.batch_log))",
			2, types, values, SPI_OK_UPDATE);
	execute("DELETE FROM evstream.ticks", 0, NULL, NULL, SPI_OK_DELETE);
	execute("DELETE FROM evstream.relay_log", 0, NULL, NULL, SPI_OK_DELETE);
	execute("UPDATE evstream.local_ranges SET to_tick = from_tick, to_xid = from_xid, to_id = from_id WHERE to_tick IS NULL",
			0, NULL, NULL, SPI_OK_UPDATE);
}

void
outbox_read(const OutboxPosition *position, int max, Size max_bytes,
			MemoryContext context, OutboxBatch *batch, bool *made_tick)
{
	OutboxPosition at = *position;
	ReadState	state = {0};

	memset(batch, 0, sizeof(*batch));
	*made_tick = false;
	state.batch = batch;
	state.context = context;
	state.max = max;
	state.max_bytes = max_bytes;

	for (;;)
	{
		Datum		previous = previous_snapshot(&at);
		Datum		snapshot = tick_snapshot(at.tick + 1);
		bool		is_new = snapshot == (Datum) 0;

		if (is_new)
		{
			MemoryContext here = CurrentMemoryContext;

			execute("SELECT pg_catalog.pg_current_snapshot()", 0, NULL, NULL, SPI_OK_SELECT);
			snapshot = kept_column(0, 1, here);
		}
		read_between(&state, &at, previous, snapshot);

		if (is_new)
		{
			Oid			types[2] = {INT8OID, PG_SNAPSHOTOID};
			Datum		values[2] = {Int64GetDatum(at.tick + 1), snapshot};

			if (batch->nrows == 0)
				break;
			execute("INSERT INTO evstream.ticks (tick, snapshot) VALUES ($1, $2)", 2, types, values, SPI_OK_INSERT);
			*made_tick = true;
		}
		if (!read_is_full(&state))
		{
			at.tick++;
			at.xid = 0;
			at.id = 0;
			batch->tick_done = true;
		}
		else
		{
			at.xid = batch->rows[batch->nrows - 1].xid;
			at.id = batch->rows[batch->nrows - 1].id;
			batch->tick_done = false;
		}
		/* an exhausted tick that had nothing more: go on to the next */
		if (batch->nrows > 0)
			break;
	}
	batch->after = at;
}

/* ---- what is waiting ---- */

/*
 * Is there a row behind position that is visible in `snapshot` (0: now)?
 * Gives its tracked_at.
 */
static bool
first_waiting(const OutboxPosition *position, Datum snapshot, TimestampTz *tracked_at)
{
	OutboxBatch batch = {0};
	ReadState	state = {0};
	OutboxPosition at = *position;
	Datum		previous;
	MemoryContext here = CurrentMemoryContext;

	if (!outbox_is_ours())
	{
		/* to be adopted: all that is there will be read */
		if (execute(UNION_OF_TABLES("tracked_at", "true") " LIMIT 1", 0, NULL, NULL, SPI_OK_SELECT) == 0)
			return false;
		if (tracked_at)
			*tracked_at = DatumGetTimestampTz(column(0, 1, NULL));
		return true;
	}

	previous = previous_snapshot(&at);
	if (snapshot == (Datum) 0)
	{
		execute("SELECT pg_catalog.pg_current_snapshot()", 0, NULL, NULL, SPI_OK_SELECT);
		snapshot = kept_column(0, 1, here);
	}
	state.batch = &batch;
	state.context = here;
	state.max = 1;
	state.max_bytes = 1;

	/* first what is left of the tick that is being read, then what is behind it */
	if (at.xid != 0)
	{
		Datum		current = tick_snapshot(at.tick + 1);

		if (current != (Datum) 0)
		{
			read_between(&state, &at, previous, current);
			at.tick++;
			at.xid = 0;
			at.id = 0;
			previous = current;
		}
	}
	if (batch.nrows == 0)
		read_between(&state, &at, previous, snapshot);
	if (batch.nrows == 0)
		return false;
	if (tracked_at)
		*tracked_at = batch.rows[0].tracked_at;
	return true;
}

/* evstream.outbox_oldest_waiting() returns interval: age of the oldest row not yet stored */
Datum
evstream_outbox_oldest_waiting(PG_FUNCTION_ARGS)
{
	OutboxPosition position;
	TimestampTz tracked_at;
	Interval   *result = NULL;

	SPI_connect();
	position = outbox_stored_position();
	if (first_waiting(&position, (Datum) 0, &tracked_at))
	{
		result = SPI_palloc(sizeof(Interval));
		memset(result, 0, sizeof(*result));
		result->time = Max(0, GetCurrentTimestamp() - tracked_at);
	}
	SPI_finish();
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_INTERVAL_P(result);
}

/*
 * evstream_wait(timeout interval, fan_out boolean) returns boolean
 *
 * True once all that was committed before the call is stored.  Each turn looks
 * with the latest snapshot, also in a REPEATABLE READ transaction, whose own
 * would never see the position move.
 */
Datum
evstream_wait(PG_FUNCTION_ARGS)
{
	TimestampTz until;
	Interval   *timeout = PG_ARGISNULL(0) ? NULL : PG_GETARG_INTERVAL_P(0);
	Datum		snapshot = (Datum) 0;
	MemoryContext here = CurrentMemoryContext;
	long		pause_ms = 2;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot execute evstream_wait() during recovery"),
				 errhint("Call it on the primary.")));
	until = timeout == NULL ? DT_NOEND :
		GetCurrentTimestamp() + timeout->time +
		((int64) timeout->day + (int64) timeout->month * DAYS_PER_MONTH) * USECS_PER_DAY;

	for (;;)
	{
		bool		waiting;
		OutboxPosition position;
		TimestampTz now;

		SPI_connect();
		PushActiveSnapshot(GetLatestSnapshot());
		use_active_snapshot = true;
		PG_TRY();
		{
			/* while the xids are of another system, no snapshot says anything */
			if (snapshot == (Datum) 0 && outbox_is_ours())
			{
				execute("SELECT pg_catalog.pg_current_snapshot()", 0, NULL, NULL, SPI_OK_SELECT);
				snapshot = kept_column(0, 1, here);
			}
			position = outbox_stored_position();
			waiting = snapshot == (Datum) 0 || first_waiting(&position, snapshot, NULL);
		}
		PG_FINALLY();
		{
			use_active_snapshot = false;
		}
		PG_END_TRY();
		PopActiveSnapshot();
		SPI_finish();
		if (!waiting)
			PG_RETURN_BOOL(true);
		now = GetCurrentTimestamp();
		if (now >= until)
			PG_RETURN_BOOL(false);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(pause_ms, (until - now) / 1000 + 1), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		pause_ms = Min(pause_ms * 2, 50);
	}
}

/* ---- local ranges ---- */

pg_uuid_t
outbox_origin(void)
{
	if (execute("SELECT origin FROM evstream.identity", 0, NULL, NULL, SPI_OK_SELECT) == 0)
		elog(ERROR, "evstream.identity is empty");
	return *DatumGetUUIDP(column(0, 1, NULL));
}

char *
outbox_origin_text(const pg_uuid_t *origin, int64 tick, uint64 xid, int64 id)
{
	char		uuid[37];

	event_format_uuid(origin->data, uuid);
	return psprintf("%s/" INT64_FORMAT "/" UINT64_FORMAT "/" INT64_FORMAT, uuid, tick, xid, id);
}

void
outbox_local_ranges_load(void)
{
	OutboxPosition read = read_locally_position();
	Oid			types[3] = {INT8OID, XID8OID, INT8OID};
	Datum		values[3] = {Int64GetDatum(read.tick), xid_datum(read.xid), Int64GetDatum(read.id)};

	execute("UPDATE evstream.local_ranges SET to_tick = $1, to_xid = $2, to_id = $3 WHERE to_tick IS NULL",
			3, types, values, SPI_OK_UPDATE);
	execute("SELECT origin, from_tick, from_xid, from_id, to_tick, to_xid, to_id FROM evstream.local_ranges"
			" WHERE (from_tick, from_xid, from_id) < (to_tick, to_xid, to_id) ORDER BY range_id",
			0, NULL, NULL, SPI_OK_SELECT);
	if (local_ranges)
		pfree(local_ranges);
	nlocal_ranges = SPI_processed;
	local_ranges = MemoryContextAlloc(TopMemoryContext, Max(1, nlocal_ranges) * sizeof(LocalRange));
	for (int i = 0; i < nlocal_ranges; i++)
	{
		local_ranges[i].origin = *DatumGetUUIDP(column(i, 1, NULL));
		local_ranges[i].from = position_from_row(i, 2);
		local_ranges[i].to = position_from_row(i, 5);
	}
}

bool
outbox_was_read_locally(const char *origin, Size len)
{
	char		text[128];
	pg_uuid_t	uuid;
	OutboxPosition place;
	char	   *end;

	if (nlocal_ranges == 0 || len < 38 || len >= sizeof(text) || origin[36] != '/')
		return false;
	if (!event_parse_uuid(origin, 36, uuid.data))
		return false;
	memcpy(text, origin, len);
	text[len] = '\0';
	/* as a position: within the tick, behind the one before */
	place.tick = strtoll(text + 37, &end, 10) - 1;
	if (*end != '/')
		return false;
	place.xid = strtoull(end + 1, &end, 10);
	if (*end != '/')
		return false;
	place.id = strtoll(end + 1, &end, 10);
	if (*end != '\0')
		return false;

	for (int i = 0; i < nlocal_ranges; i++)
	{
		LocalRange *range = &local_ranges[i];

		if (memcmp(range->origin.data, uuid.data, UUID_LEN) == 0 &&
			outbox_position_cmp(&place, &range->from) > 0 &&
			outbox_position_cmp(&place, &range->to) <= 0)
			return true;
	}
	return false;
}

/* ---- rotating and emptying ---- */

static Oid
outbox_relid(int number)
{
	char		name[NAMEDATALEN];

	snprintf(name, sizeof(name), "outbox_%d", number);
	return get_relname_relid(name, get_namespace_oid("evstream", false));
}

static bool
table_has_pages(int number)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(outbox_relid(number))};

	execute("SELECT pg_catalog.pg_relation_size($1::oid::regclass) > 0", 1, types, values, SPI_OK_SELECT);
	return DatumGetBool(column(0, 1, NULL));
}

static int
current_table(void)
{
	if (execute("SELECT current FROM evstream.outbox_current", 0, NULL, NULL, SPI_OK_SELECT) == 0)
		return 0;
	return DatumGetInt16(column(0, 1, NULL));
}

/* Goes to the next table, if this one has rows and that one is empty. */
void
outbox_rotate(void *unused)
{
	int			current = current_table();

	if (table_has_pages(current) && !table_has_pages((current + 1) % OUTBOX_TABLES))
		execute("UPDATE evstream.outbox_current SET current = (current + 1) % 3, rotated_at = pg_catalog.now()",
				0, NULL, NULL, SPI_OK_UPDATE);
}

/*
 * Empties one table, if all in it is stored.  With the exclusive lock nobody
 * is writing into it; whoever comes with the number of before finds it changed.
 *
 * TRUNCATE makes it look empty to older snapshots too.  A dump that has its
 * snapshot and not yet its locks would see the events neither here nor in the
 * stats, so we wait until all snapshots are newer than the storing, but not for ever.
 */
static void
empty_table(int number, const OutboxPosition *stored)
{
	static TransactionId stored_before[OUTBOX_TABLES];
	static TimestampTz stored_since[OUTBOX_TABLES];
	Datum		snapshot;
	Oid			relid = outbox_relid(number);
	char		sql[256];
	Oid			types[1] = {PG_SNAPSHOTOID};

	if (!table_has_pages(number))
	{
		stored_before[number] = InvalidTransactionId;
		return;
	}
	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return;
	snapshot = tick_snapshot(stored->tick);
	snprintf(sql, sizeof(sql),
			 "SELECT FROM evstream.outbox_%d WHERE xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1)))"
			 " OR xid >= pg_catalog.pg_snapshot_xmax($1) LIMIT 1", number);
	if (snapshot == (Datum) 0 || execute(sql, 1, types, &snapshot, SPI_OK_SELECT) > 0)
	{
		UnlockRelationOid(relid, AccessExclusiveLock);
		return;
	}
	if (!TransactionIdIsValid(stored_before[number]))
	{
		stored_before[number] = XidFromFullTransactionId(ReadNextFullTransactionId());
		stored_since[number] = GetCurrentTimestamp();
	}
	if (TransactionIdPrecedes(GetOldestNonRemovableTransactionId(NULL), stored_before[number]) &&
		GetCurrentTimestamp() < stored_since[number] + EMPTY_GRACE_US)
	{
		UnlockRelationOid(relid, AccessExclusiveLock);
		return;
	}
	snprintf(sql, sizeof(sql), "TRUNCATE evstream.outbox_%d", number);
	execute(sql, 0, NULL, NULL, SPI_OK_UTILITY);
	stored_before[number] = InvalidTransactionId;
}

/* Empties what is stored, and removes ticks and entries that nobody needs. */
void
outbox_empty(void *unused)
{
	OutboxPosition stored;
	OutboxPosition relayed;
	int			current;
	Oid			types[1] = {INT8OID};
	Datum		values[1];

	if (!outbox_is_ours())
		return;
	stored = outbox_stored_position();
	current = current_table();
	for (int i = 0; i < OUTBOX_TABLES; i++)
		if (i != current)
			empty_table(i, &stored);

	/* entries of the relay before the newest that is stored */
	values[0] = Int64GetDatum(stored.tick);
	execute("DELETE FROM evstream.relay_log WHERE tick < $1 AND seq < (SELECT max(seq) FROM evstream.relay_log)",
			1, types, values, SPI_OK_DELETE);
	/* a reader needs the snapshot of its last tick and the one it reads */
	relayed = relay_position();
	values[0] = Int64GetDatum(Min(stored.tick, relayed.tick));
	execute("DELETE FROM evstream.ticks WHERE tick < $1", 1, types, values, SPI_OK_DELETE);
}

/* ---- wake-up at commit ---- */

static void
wake_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_wanted)
		status_wake_reader(MyDatabaseId);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_wanted = false;
}

void
outbox_wake_at_commit(void)
{
	if (!wake_callback_registered)
	{
		RegisterXactCallback(wake_callback, NULL);
		wake_callback_registered = true;
	}
	wake_wanted = true;
}
