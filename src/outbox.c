/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  Reading the outbox by snapshot pairs, and waiting for it.
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
#include "common/int.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "tcop/dest.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "clock.h"
#include "compat.h"
#include "outbox_int.h"
#include "settings.h"
#include "sql.h"
#include "status.h"

/* Room for so many rows is made at first, and for so many bytes of texts at a time */
#define FIRST_ROWS  16
#define FIRST_TEXTS 4096
#define MOST_TEXTS  (64 * 1024)

#define OUTBOX_COLUMNS  "xid, id, event_id, tracked_at, user_id, value, traceparent"
#define OUTBOX_NOT_NULL 6

/*
 * The condition stands outside.  With one in each branch the planner does not
 * merge the branches by their indexes: it sorts all that waits, for each batch.
 */
#define UNION_OF_TABLES(columns, condition)                                                        \
	"SELECT " columns " FROM (SELECT " columns " FROM evstream.outbox_0"                           \
	" UNION ALL SELECT " columns " FROM evstream.outbox_1"                                         \
	" UNION ALL SELECT " columns " FROM evstream.outbox_2) o WHERE " condition

/* $1, $2: position; $3: xmin (inclusive); $4: snapshot */
#define RANGE_CONDITION                                                                            \
	"(xid, id) > ($1, $2) AND xid >= $3 AND xid < pg_catalog.pg_snapshot_xmax($4)"                 \
	" AND pg_catalog.pg_visible_in_snapshot(xid, $4)"

/* $1: xid; $2: id */
#define XID_CONDITION "xid = $1 AND id > $2"

#define RANGE_QUERY UNION_OF_TABLES(OUTBOX_COLUMNS, RANGE_CONDITION) " ORDER BY xid, id"
#define XID_QUERY   UNION_OF_TABLES(OUTBOX_COLUMNS, XID_CONDITION) " ORDER BY id"

static bool wake_wanted = false;
static bool unflushed = false; /* as status_unflushed_begin() has it */
static int64 dead_letters_written = 0;

PG_FUNCTION_INFO_V1(evstream_outbox_oldest_waiting);
PG_FUNCTION_INFO_V1(evstream_wait);

/* By clock_us(), now and so much later; DT_NOEND where that is beyond all times. */
static int64
time_after(const Interval *interval)
{
	int64 days = interval->day + (int64) interval->month * DAYS_PER_MONTH;
	int64 us;

	if (pg_mul_s64_overflow(days, USECS_PER_DAY, &us))
		return days > 0 ? DT_NOEND : DT_NOBEGIN;
	if (pg_add_s64_overflow(us, interval->time, &us))
		return interval->time > 0 ? DT_NOEND : DT_NOBEGIN;
	if (pg_add_s64_overflow(us, clock_us(), &us))
		return DT_NOEND;
	return us;
}

/*
 * The present snapshot without this transaction, which pg_current_snapshot()
 * takes for a finished one as soon as a later one has finished.
 */
#define OTHERS_SNAPSHOT                                                                            \
	"SELECT CASE WHEN own < pg_catalog.pg_snapshot_xmax(s) THEN"                                   \
	"   (pg_catalog.pg_snapshot_xmin(s) || ':' || pg_catalog.pg_snapshot_xmax(s) || ':' ||"        \
	"    (SELECT pg_catalog.string_agg(x::text, ',' ORDER BY x)"                                   \
	"      FROM (SELECT own AS x UNION SELECT pg_catalog.pg_snapshot_xip(s)) r))::pg_snapshot"     \
	"   ELSE s END"                                                                                \
	" FROM pg_catalog.pg_current_snapshot() s, pg_catalog.pg_current_xact_id_if_assigned() own"

/* A pass-by-reference value of the first row, kept beyond the next query. */
static Datum
kept_column(int row, int number, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum value = PointerGetDatum(PG_DETOAST_DATUM_COPY(sql_column(row, number, NULL)));

	MemoryContextSwitchTo(old);
	return value;
}

/* ---- reading ---- */

typedef struct ReadState
{
	DestReceiver receiver; /* first, as it is what the executor is given */
	OutboxBatch *batch;
	MemoryContext context;
	int max;
	int allocated;
	Size bytes;
	Size max_bytes;
	char *text; /* where the next text goes */
	Size left;  /* bytes behind it */
	Size chunk; /* bytes that come next */
} ReadState;

static bool
read_is_full(ReadState *state)
{
	return state->batch->nrows >= state->max || state->bytes >= state->max_bytes;
}

/*
 * Texts stand close together: one allocation for each would take half as much
 * again, and what waits in memory is bounded.
 */
static char *
copy_text(ReadState *state, Datum value, int *len)
{
	text *source = DatumGetTextPP(value);
	Size size = VARSIZE_ANY_EXHDR(source) + 1;
	char *result;

	if (size > state->chunk / 4)
		result = MemoryContextAlloc(state->context, size);
	else
	{
		if (size > state->left)
		{
			state->text = MemoryContextAlloc(state->context, state->chunk);
			state->left = state->chunk;
			state->chunk = Min(MOST_TEXTS, 2 * state->chunk);
		}
		result = state->text;
		state->text += size;
		state->left -= size;
	}
	*len = (int) size - 1;
	memcpy(result, VARDATA_ANY(source), *len);
	result[*len] = '\0';
	if ((Pointer) source != DatumGetPointer(value))
		pfree(source);
	return result;
}

/* Takes a row from the executor; false: no more. */
static bool
take_row(TupleTableSlot *slot, DestReceiver *self)
{
	ReadState *state = (ReadState *) self;
	OutboxBatch *batch = state->batch;
	const Datum *values;
	OutboxRow *row;

	slot_getallattrs(slot);
	values = slot->tts_values;
	for (int i = 0; i < OUTBOX_NOT_NULL; i++)
		if (slot->tts_isnull[i])
			elog(ERROR, "unexpected null in column %d", i + 1);
	if (batch->nrows == state->allocated)
	{
		state->allocated = Min(state->max, Max(FIRST_ROWS, state->allocated * 2));
		if (batch->rows == NULL)
			batch->rows =
				MemoryContextAllocHuge(state->context, state->allocated * sizeof(OutboxRow));
		else
			batch->rows = repalloc_huge(batch->rows, state->allocated * sizeof(OutboxRow));
	}
	row = &batch->rows[batch->nrows++];
	row->xid = U64FromFullTransactionId(DatumGetFullTransactionId(values[0]));
	row->id = DatumGetInt64(values[1]);
	row->event_id = *DatumGetUUIDP(values[2]);
	row->tracked_at = DatumGetTimestampTz(values[3]);
	row->user_id = copy_text(state, values[4], &row->user_id_len);
	row->value = copy_text(state, values[5], &row->value_len);
	row->traceparent =
		slot->tts_isnull[6] ? NULL : copy_text(state, values[6], &row->traceparent_len);
	state->bytes += row->value_len + row->user_id_len + sizeof(OutboxRow);
	return !read_is_full(state);
}

/* With columns of other types, which only the tables' owner can have made, take_row() would crash. */
static void
begin_rows(DestReceiver *self, int operation, TupleDesc desc)
{
	static const Oid types[] = {XID8OID, INT8OID, UUIDOID, TIMESTAMPTZOID,
								TEXTOID, TEXTOID, TEXTOID};

	for (int i = 0; i < (int) lengthof(types); i++)
		if (TupleDescAttr(desc, i)->atttypid != types[i])
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("the tables of the outbox do not have the columns of the outbox")));
}

static void
end_rows(DestReceiver *self)
{
}

static void
read_init(ReadState *state, OutboxBatch *batch, int max, Size max_bytes, MemoryContext context)
{
	memset(state, 0, sizeof(*state));
	state->receiver.receiveSlot = take_row;
	state->receiver.rStartup = begin_rows;
	state->receiver.rShutdown = end_rows;
	state->receiver.rDestroy = end_rows;
	/* any but DestNone, for which nothing would be read */
	state->receiver.mydest = DestTuplestore;
	state->batch = batch;
	state->context = context;
	state->max = max;
	state->max_bytes = max_bytes;
	state->chunk = FIRST_TEXTS;
}

/* Reads until the query's end or until the batch is full. */
static void
read_query(ReadState *state, const char *sql, int nargs, Oid *types, Datum *values)
{
	SPIExecuteOptions options = {0};
	int level;
	int rc;

	options.params = makeParamList(nargs);
	for (int i = 0; i < nargs; i++)
	{
		ParamExternData *param = &options.params->params[i];

		param->value = values[i];
		param->isnull = false;
		param->pflags = PARAM_FLAG_CONST;
		param->ptype = types[i];
	}
	options.read_only = outbox_use_active_snapshot;
	options.dest = &state->receiver;

	/* a plan that sorts would read all that is waiting for each batch */
	level = sql_by_index();
	rc = SPI_execute_plan_extended(sql_plan(sql, nargs, types), &options);
	AtEOXact_GUC(true, level);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
	pfree(options.params);
}

/*
 * The transactions, from xid `from` on, that were running in the snapshot `previous` and
 * are visible in `snapshot`; palloc'd.  Gives the xmax of previous.
 */
static uint64
running_then(Datum previous, Datum snapshot, uint64 from, uint64 *xmax, uint64 **xids)
{
	/* xmin:xmax:xip,xip..., where the last may be missing */
	char *text = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, previous));
	char *at = strchr(text, ':') + 1;
	uint64 n = 0;

	*xids = palloc((strlen(text) / 2 + 1) * sizeof(uint64));
	*xmax = strtoull(at, &at, 10);
	while (*at != '\0' && at[1] != '\0')
	{
		uint64 xid = strtoull(at + 1, &at, 10);

		if (xid >= from && DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
															outbox_xid_datum(xid), snapshot)))
			(*xids)[n++] = xid;
	}
	pfree(text);
	return n;
}

/*
 * Rows behind position that are visible in `snapshot`, where `previous` (NULL =
 * nothing) is the snapshot of position->tick.
 */
static void
read_between(ReadState *state, const OutboxPosition *position, Datum previous, Datum snapshot)
{
	Oid types[4] = {XID8OID, INT8OID, XID8OID, PG_SNAPSHOTOID};
	Datum values[4];
	uint64 range_start = 0;

	if (previous != (Datum) 0)
	{
		uint64 *old;
		uint64 nold = running_then(previous, snapshot, position->xid, &range_start, &old);

		for (uint64 i = 0; i < nold && !read_is_full(state); i++)
		{
			values[0] = outbox_xid_datum(old[i]);
			values[1] = Int64GetDatum(old[i] == position->xid ? position->id : 0);
			read_query(state, XID_QUERY, 2, types, values);
		}
		pfree(old);
	}
	if (read_is_full(state))
		return;
	/* of two lower bounds the index would begin at the first, however far back */
	values[0] = outbox_xid_datum(Max(position->xid, range_start));
	values[1] = Int64GetDatum(position->xid >= range_start ? position->id : 0);
	values[2] = outbox_xid_datum(range_start);
	values[3] = snapshot;
	read_query(state, RANGE_QUERY, 4, types, values);
}

Datum
outbox_tick_snapshot(int64 tick)
{
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(tick)};
	MemoryContext context = CurrentMemoryContext;

	if (outbox_execute_kept(
			"SELECT snapshot::pg_catalog.pg_snapshot FROM evstream.ticks WHERE tick = $1", 1, types,
			values, SPI_OK_SELECT) == 0)
		return (Datum) 0;
	return kept_column(0, 1, context);
}

/* The base, where all begins, has no snapshot: nothing was visible there. */
static void
check_base(const OutboxPosition *position)
{
	if (outbox_execute("SELECT FROM evstream.identity WHERE outbox_base = $1", 1, (Oid[]){INT8OID},
					   (Datum[]){Int64GetDatum(position->tick)}, SPI_OK_SELECT) == 0)
		elog(ERROR, "snapshot of tick " INT64_FORMAT " is missing", position->tick);
}

static Datum
previous_snapshot(const OutboxPosition *position)
{
	Datum previous = outbox_tick_snapshot(position->tick);

	if (previous == (Datum) 0)
		check_base(position);
	return previous;
}

/*
 * The snapshot of position's tick (0: it is the base), and that of the next: true if
 * it is the present one, as there is no next tick.
 */
static bool
tick_snapshots(const OutboxPosition *position, Datum *previous, Datum *snapshot)
{
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(position->tick)};
	MemoryContext here = CurrentMemoryContext;
	bool is_base;
	bool is_last;

	outbox_execute_kept(
		"SELECT (SELECT snapshot::pg_catalog.pg_snapshot FROM evstream.ticks WHERE tick = $1),"
		" (SELECT snapshot::pg_catalog.pg_snapshot FROM evstream.ticks WHERE tick = $1 + 1),"
		" pg_catalog.pg_current_snapshot()",
		1, types, values, SPI_OK_SELECT);
	(void) sql_column(0, 1, &is_base);
	(void) sql_column(0, 2, &is_last);
	*previous = is_base ? (Datum) 0 : kept_column(0, 1, here);
	*snapshot = kept_column(0, is_last ? 3 : 2, here);
	if (is_base)
		check_base(position);
	return is_last;
}

bool
outbox_is_ours(void)
{
	Oid types[2] = {INT8OID, OIDOID};
	Datum values[2] = {Int64GetDatum((int64) GetSystemIdentifier()),
					   ObjectIdGetDatum(MyDatabaseId)};

	return outbox_execute(
			   "SELECT FROM evstream.identity WHERE outbox_system = $1 AND outbox_database = $2", 2,
			   types, values, SPI_OK_SELECT) > 0;
}

/* A table without a key that is published, as by a publication of all, refuses updates. */
static void
allow_updates(int number)
{
	char *sql = psprintf("SELECT FROM pg_catalog.pg_publication_tables t, pg_catalog.pg_class c"
						 " WHERE t.schemaname = 'evstream' AND t.tablename = 'outbox_%d'"
						 " AND c.oid = 'evstream.outbox_%d'::regclass AND c.relreplident <> 'f'",
						 number, number);
	int level;

	if (outbox_execute(sql, 0, NULL, NULL, SPI_OK_SELECT) == 0)
		return;
	sql = psprintf("ALTER TABLE evstream.outbox_%d REPLICA IDENTITY FULL", number);
	level = sql_without_event_triggers();
	outbox_execute(sql, 0, NULL, NULL, SPI_OK_UTILITY);
	AtEOXact_GUC(true, level);
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
	Oid types[2] = {INT8OID, OIDOID};
	Datum values[2] = {Int64GetDatum((int64) GetSystemIdentifier()),
					   ObjectIdGetDatum(MyDatabaseId)};

	if (outbox_is_ours())
		return;
	outbox_execute(
		"LOCK TABLE evstream.outbox_0, evstream.outbox_1, evstream.outbox_2, evstream.ticks"
		" IN SHARE ROW EXCLUSIVE MODE",
		0, NULL, NULL, SPI_OK_UTILITY);
	/* another reader may have been faster */
	if (outbox_is_ours())
		return;
	for (int i = 0; i < OUTBOX_TABLES; i++)
		allow_updates(i);
	outbox_execute("UPDATE evstream.outbox_0 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL,
				   NULL, SPI_OK_UPDATE);
	outbox_execute("UPDATE evstream.outbox_1 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL,
				   NULL, SPI_OK_UPDATE);
	outbox_execute("UPDATE evstream.outbox_2 SET xid = pg_catalog.pg_current_xact_id()", 0, NULL,
				   NULL, SPI_OK_UPDATE);
	outbox_execute(
		"UPDATE evstream.identity SET outbox_system = $1, outbox_database = $2,"
		" origin = pg_catalog.gen_random_uuid(),"
		" outbox_base = 1 + GREATEST(outbox_base, (SELECT max(tick) FROM evstream.ticks),"
		"   (SELECT max(tick) FROM evstream.relay_log), (SELECT max(tick) FROM evstream.batch_log))",
		2, types, values, SPI_OK_UPDATE);
	outbox_execute("DELETE FROM evstream.ticks", 0, NULL, NULL, SPI_OK_DELETE);
	outbox_execute("DELETE FROM evstream.relay_log", 0, NULL, NULL, SPI_OK_DELETE);
	outbox_execute(
		"UPDATE evstream.local_ranges SET to_tick = from_tick, to_xid = from_xid, to_id = from_id WHERE to_tick IS NULL",
		0, NULL, NULL, SPI_OK_UPDATE);
}

void
outbox_read(const OutboxPosition *position, int max, Size max_bytes, MemoryContext context,
			OutboxBatch *batch, bool *made_tick)
{
	OutboxPosition at = *position;
	ReadState state;

	memset(batch, 0, sizeof(*batch));
	*made_tick = false;
	read_init(&state, batch, max, max_bytes, context);

	for (;;)
	{
		Datum previous;
		Datum snapshot;
		bool is_new = tick_snapshots(&at, &previous, &snapshot);

		read_between(&state, &at, previous, snapshot);

		if (is_new)
		{
			Oid types[2] = {INT8OID, PG_SNAPSHOTOID};
			Datum values[2] = {Int64GetDatum(at.tick + 1), snapshot};

			if (batch->nrows == 0)
				break;
			outbox_execute_kept("INSERT INTO evstream.ticks (tick, snapshot) VALUES ($1, $2)", 2,
								types, values, SPI_OK_INSERT);
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

/* ---- what a crash could take back ---- */

void
outbox_flush_begin(OutboxFlush *flush)
{
	flush->ended = status_unflushed_ended();
	flush->flushes = false;
}

void
outbox_flush_at_commit(OutboxFlush *flush)
{
	/* of a wait for a standby that was given up, or ended with the settings, nobody knows */
	flush->flushes = !flush->known || status_unflushed_begun() != flush->flushed ||
					 (SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0');
	if (!flush->flushes)
		return;
	/* without an xid there would be nothing to flush */
	(void) GetTopTransactionId();
	(void) set_config_option("synchronous_commit", "on", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

void
outbox_flush_done(OutboxFlush *flush)
{
	if (!flush->flushes)
		return;
	flush->flushed = flush->ended;
	flush->known = true;
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
	ReadState state;
	OutboxPosition at = *position;
	Datum previous;
	MemoryContext here = CurrentMemoryContext;

	if (!outbox_is_ours())
	{
		/* to be adopted: all that is there will be read */
		if (outbox_execute(UNION_OF_TABLES("tracked_at", "true") " LIMIT 1", 0, NULL, NULL,
						   SPI_OK_SELECT) == 0)
			return false;
		if (tracked_at)
			*tracked_at = DatumGetTimestampTz(sql_column(0, 1, NULL));
		return true;
	}

	previous = previous_snapshot(&at);
	if (snapshot == (Datum) 0)
	{
		outbox_execute(OTHERS_SNAPSHOT, 0, NULL, NULL, SPI_OK_SELECT);
		snapshot = kept_column(0, 1, here);
	}
	read_init(&state, &batch, 1, 1, here);

	/* first what is left of the tick that is being read, then what is behind it */
	if (at.xid != 0)
	{
		Datum current = outbox_tick_snapshot(at.tick + 1);

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
	Interval *result = NULL;
	bool waiting;

	SPI_connect();
	/* one snapshot for all of it: the tick of an older position may be removed meanwhile */
	PushActiveSnapshot(GetTransactionSnapshot());
	outbox_use_active_snapshot = true;
	PG_TRY();
	{
		position = outbox_stored_position();
		waiting = first_waiting(&position, (Datum) 0, &tracked_at);
	}
	PG_FINALLY();
	{
		outbox_use_active_snapshot = false;
	}
	PG_END_TRY();
	PopActiveSnapshot();
	if (waiting)
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

/* ---- fan-out ---- */

/* What was received of a partition */
typedef struct ReceivedEnd
{
	int32 log_id;
	int32 partition;
	TimestampTz received_at;
} ReceivedEnd;

/* Of all partitions, in the given context. */
static List *
received_ends(MemoryContext context)
{
	List *ends = NIL;
	uint64 n =
		outbox_execute("SELECT log_id, log_partition, max(last_received_at) FROM evstream.batch_log"
					   " WHERE last_received_at IS NOT NULL GROUP BY 1, 2",
					   0, NULL, NULL, SPI_OK_SELECT);
	MemoryContext old = MemoryContextSwitchTo(context);

	for (uint64 row = 0; row < n; row++)
	{
		ReceivedEnd *end = palloc(sizeof(ReceivedEnd));

		end->log_id = DatumGetInt32(sql_column(row, 1, NULL));
		end->partition = DatumGetInt32(sql_column(row, 2, NULL));
		end->received_at = DatumGetTimestampTz(sql_column(row, 3, NULL));
		ends = lappend(ends, end);
	}
	MemoryContextSwitchTo(old);
	return ends;
}

/* Has the notifier passed these?  Takes those that it has from the list. */
static bool
is_fanned_out(List **ends)
{
	while (*ends != NIL)
	{
		ReceivedEnd *end = linitial(*ends);

		if (status_notified_at(MyDatabaseId, end->log_id, end->partition) < end->received_at)
			return false;
		*ends = list_delete_first(*ends);
	}
	return true;
}

/*
 * evstream_wait(timeout interval, fan_out boolean) returns boolean
 *
 * True once all that was committed before the call is stored, and, if fan_out
 * and where that is configured, in Redis.  Each turn looks
 * with the latest snapshot, also in a REPEATABLE READ transaction, whose own
 * would never see the position move.
 */
Datum
evstream_wait(PG_FUNCTION_ARGS)
{
	int64 until;
	Interval *timeout = PG_ARGISNULL(0) ? NULL : PG_GETARG_INTERVAL_P(0);
	Datum snapshot = (Datum) 0;
	MemoryContext here = CurrentMemoryContext;
	long pause_ms = 2;
	bool fan_out = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1) && status_fans_out(MyDatabaseId);
	List *notified = NIL;
	bool ends_known = false;

	if (RecoveryInProgress())
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("cannot execute evstream_wait() during recovery"),
						errhint("Call it on the primary.")));
	until = timeout == NULL ? DT_NOEND : time_after(timeout);

	for (;;)
	{
		bool waiting;
		OutboxPosition position;
		int64 now;

		SPI_connect();
		PushActiveSnapshot(GetLatestSnapshot());
		outbox_use_active_snapshot = true;
		PG_TRY();
		{
			/* while the xids are of another system, no snapshot says anything */
			if (snapshot == (Datum) 0 && outbox_is_ours())
			{
				outbox_execute(OTHERS_SNAPSHOT, 0, NULL, NULL, SPI_OK_SELECT);
				snapshot = kept_column(0, 1, here);
			}
			position = outbox_stored_position();
			waiting = snapshot == (Datum) 0 || first_waiting(&position, snapshot, NULL);
			/* what has to be in Redis, once all of it is stored */
			if (!waiting && fan_out && !ends_known)
			{
				notified = received_ends(here);
				ends_known = true;
			}
		}
		PG_FINALLY();
		{
			outbox_use_active_snapshot = false;
		}
		PG_END_TRY();
		PopActiveSnapshot();
		SPI_finish();
		if (!waiting && (!fan_out || is_fanned_out(&notified)))
			PG_RETURN_BOOL(true);
		now = clock_us();
		if (now >= until)
			PG_RETURN_BOOL(false);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(pause_ms, (until - now) / 1000 + 1), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		pause_ms = Min(pause_ms * 2, 50);
	}
}

/* ---- wake-up at commit ---- */

/* Readers who send rows out of the server have to know which commits a crash can take back. */
static void
note_unflushed(XactEvent event)
{
	if (event == XACT_EVENT_PRE_COMMIT && wake_wanted &&
		synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
	{
		unflushed = true;
		status_unflushed_begin();
	}
	if (unflushed && (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT))
	{
		unflushed = false;
		status_unflushed_end();
	}
}

static void
wake_callback(XactEvent event, void *arg)
{
	note_unflushed(event);
	/* before the wake-up, as the consumer looks at their number */
	if ((event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE) && dead_letters_written > 0)
		status_dead_letters_add(MyDatabaseId, dead_letters_written);
	if (event == XACT_EVENT_COMMIT && wake_wanted)
		status_wake_reader(MyDatabaseId);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
	{
		wake_wanted = false;
		dead_letters_written = 0;
	}
}

static void
register_callback(void)
{
	static bool registered = false;

	if (!registered)
		RegisterXactCallback(wake_callback, NULL);
	registered = true;
}

void
outbox_count_at_commit(int64 dead_letters)
{
	register_callback();
	/* too many after a savepoint or what was prepared is rolled back: it is an upper bound */
	dead_letters_written += dead_letters;
}

void
outbox_wake_at_commit(void)
{
	register_callback();
	wake_wanted = true;
}
