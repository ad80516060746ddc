/*-------------------------------------------------------------------------
 *
 * status_views.c
 *	  The functions behind the views of workers and lag, and behind health.
 *
 * All of them speak of the current database, and give nothing where the
 * library is not preloaded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "clock.h"
#include "shared.h"
#include "status.h"

PG_FUNCTION_INFO_V1(evstream_status_workers);
PG_FUNCTION_INFO_V1(evstream_status_lag);
PG_FUNCTION_INFO_V1(evstream_status_problems);
PG_FUNCTION_INFO_V1(evstream_status_supervision);

/* An empty result set; *tupdesc describes its rows. */
static Tuplestorestate *
begin_rows(FunctionCallInfo fcinfo, TupleDesc *tupdesc)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;
	Tuplestorestate *rows;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("set-valued function called in context that cannot accept a set")));

	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rows = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = rows;
	rsinfo->setDesc = *tupdesc;
	MemoryContextSwitchTo(old);
	return rows;
}

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = text == NULL || text[0] == '\0';
	if (!nulls[column])
		values[column] = CStringGetTextDatum(text);
}

static void
set_time(Datum *values, bool *nulls, int column, TimestampTz at)
{
	nulls[column] = at == 0;
	values[column] = TimestampTzGetDatum(at);
}

/* Copies of this database's slots, palloc'd. */
static int
copy_slots(WorkerSlot **copies)
{
	int n = 0;

	*copies = palloc(sizeof(WorkerSlot) * shared->nslots);
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		WorkerSlot *slot = &shared->slots[i];

		if (slot->phase == SLOT_FREE || slot->role == ROLE_SCOUT || slot->dboid != MyDatabaseId)
			continue;
		SpinLockAcquire(&slot->mutex);
		(*copies)[n++] = *slot;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(shared->lock);
	return n;
}

/* evstream.workers() */
Datum
evstream_status_workers(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	Tuplestorestate *rows = begin_rows(fcinfo, &tupdesc);
	WorkerSlot *slots;
	int nslots = 0;

	if (shared != NULL)
		nslots = copy_slots(&slots);
	for (int i = 0; i < nslots; i++)
	{
		WorkerSlot *slot = &slots[i];
		bool running = slot->phase == SLOT_RUNNING;
		Datum values[11];
		bool nulls[11] = {0};

		values[0] = Int32GetDatum(slot->pid);
		nulls[0] = !running;
		values[1] = CStringGetTextDatum(shared_role_name(slot->role));
		values[2] = Int32GetDatum(slot->index);
		set_text(values, nulls, 3,
				 running                        ? slot->state
				 : slot->phase == SLOT_STARTING ? "starting"
												: "stopped");
		set_time(values, nulls, 4, running ? slot->started_at : 0);
		values[5] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->events));
		values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->batches));
		values[7] = Int64GetDatum((int64) pg_atomic_read_u64(&slot->errors));
		values[8] = Int64GetDatum(Max(slot->restarts, 0));
		set_text(values, nulls, 9, slot->last_error);
		set_time(values, nulls, 10, slot->last_error_at);
		tuplestore_putvalues(rows, tupdesc, values, nulls);
	}
	return (Datum) 0;
}

/* evstream.lag() */
Datum
evstream_status_lag(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	Tuplestorestate *rows = begin_rows(fcinfo, &tupdesc);
	TimestampTz now = GetCurrentTimestamp();
	LagEntry *entries;
	pid_t *owners;
	int n = 0;

	if (shared == NULL)
		return (Datum) 0;

	entries = palloc(sizeof(LagEntry) * SHARED_LAGS);
	owners = palloc(sizeof(pid_t) * SHARED_LAGS);
	LWLockAcquire(shared->lock, LW_SHARED);
	LWLockAcquire(shared->lag_lock, LW_SHARED);
	for (int i = 0; i < shared->nlags; i++)
	{
		LagEntry *entry = &shared->lags[i];
		WorkerSlot *slot;

		if (entry->slot < 0 || entry->dboid != MyDatabaseId)
			continue;
		slot = &shared->slots[entry->slot];
		entries[n] = *entry;
		owners[n] =
			slot->phase == SLOT_RUNNING && slot->start_no == entry->start_no ? slot->pid : 0;
		/* The end of the outbox is seen by reading it: not while paused or waiting. */
		if (entry->topic[0] == '\0')
		{
			bool reads;

			SpinLockAcquire(&slot->mutex);
			reads = strcmp(slot->state, "running") == 0 || strcmp(slot->state, "idle") == 0;
			SpinLockRelease(&slot->mutex);
			if (owners[n] == 0 || !reads)
				entries[n].end_offset = -1;
		}
		n++;
	}
	LWLockRelease(shared->lag_lock);
	LWLockRelease(shared->lock);

	for (int i = 0; i < n; i++)
	{
		LagEntry *entry = &entries[i];
		int64 lag = Max(entry->end_offset - entry->position, 0);
		Datum values[8];
		bool nulls[8] = {0};

		set_text(values, nulls, 0, entry->topic);
		values[1] = Int32GetDatum(entry->partition);
		values[2] = Int64GetDatum(entry->position);
		values[3] = Int64GetDatum(entry->end_offset);
		nulls[3] = entry->end_offset < 0;
		values[4] = Int64GetDatum(lag);
		nulls[4] = nulls[3];
		values[5] = Float8GetDatum(lag == 0 ? 0 : Max(now - entry->last_record_at, 0) / 1000000.0);
		nulls[5] = nulls[3] || (lag > 0 && entry->last_record_at == 0);
		values[6] = Int32GetDatum(owners[i]);
		nulls[6] = owners[i] == 0;
		values[7] = Int32GetDatum(entry->log_id);
		tuplestore_putvalues(rows, tupdesc, values, nulls);
	}
	return (Datum) 0;
}

/* evstream.problems() */
Datum
evstream_status_problems(PG_FUNCTION_ARGS)
{
	static const char *const components[] = {"workers", "kafka", "redis", "outbox", "dead_letters"};
	static const char *const levels[] = {"ok", "degraded", "down"};
	TupleDesc tupdesc;
	Tuplestorestate *rows = begin_rows(fcinfo, &tupdesc);
	WorkerSlot *slots;
	int nslots = 0;

	if (shared != NULL)
		nslots = copy_slots(&slots);
	for (int i = 0; i < nslots; i++)
	{
		for (int c = 0; c < COMPONENT_COUNT; c++)
		{
			SlotProblem *problem = &slots[i].problems[c];
			Datum values[8];
			bool nulls[8] = {0};

			if (problem->level == LEVEL_OK)
				continue;
			set_text(values, nulls, 0, components[c]);
			set_text(values, nulls, 1, levels[problem->level]);
			set_text(values, nulls, 2, problem->code);
			set_text(values, nulls, 3, problem->message);
			set_text(values, nulls, 4, problem->hint);
			set_text(values, nulls, 5, shared_role_name(slots[i].role));
			values[6] = Int32GetDatum(slots[i].pid);
			nulls[6] = slots[i].pid == 0;
			set_time(values, nulls, 7, problem->since);
			tuplestore_putvalues(rows, tupdesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* evstream.supervision() */
Datum
evstream_status_supervision(PG_FUNCTION_ARGS)
{
	TupleDesc tupdesc;
	Datum values[9];
	bool nulls[9] = {0};
	bool known = false;
	bool enabled = false;
	bool no_free_slots = false;
	pid_t launcher = 0;
	pid_t holder = 0;
	int wanted = 0;
	int running = 0;
	int64 next_start = 0;
	int64 now = clock_us();

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (shared != NULL)
	{
		DatabaseEntry *db;

		LWLockAcquire(shared->lock, LW_SHARED);
		launcher = shared->launcher_pid;
		no_free_slots = shared->no_free_slots;
		db = shared_database(MyDatabaseId);
		if (db != NULL && db->known)
		{
			known = true;
			enabled = db->enabled;
			for (WorkerRole role = ROLE_MAINTENANCE; role <= ROLE_NOTIFIER; role++)
				wanted += shared_wanted(db, role);
		}
		for (int i = 0; i < shared->nslots; i++)
		{
			WorkerSlot *slot = &shared->slots[i];

			if (slot->dboid != MyDatabaseId || slot->role == ROLE_SCOUT)
				continue;
			if (slot->phase == SLOT_RUNNING)
				running++;
			/* of those that failed; one that ended as asked only waits for others to end */
			else if (slot->phase == SLOT_IDLE && (slot->failures > 0 || slot->next_start > now) &&
					 (next_start == 0 || slot->next_start < next_start))
				next_start = slot->next_start;
		}
		for (int i = 0; i < SHARED_HOLDS; i++)
		{
			if (shared->holds[i].pid != 0 && shared->holds[i].dboid == MyDatabaseId)
				holder = shared->holds[i].pid;
		}
		LWLockRelease(shared->lock);
	}

	values[0] = BoolGetDatum(shared != NULL);
	values[1] = Int32GetDatum(launcher);
	nulls[1] = launcher == 0;
	values[2] = BoolGetDatum(known);
	values[3] = BoolGetDatum(enabled);
	nulls[3] = !known;
	values[4] = Int32GetDatum(wanted);
	values[5] = Int32GetDatum(running);
	values[6] = BoolGetDatum(no_free_slots && (!known || running < wanted));
	values[7] = Int32GetDatum(holder);
	nulls[7] = holder == 0;
	values[8] = Float8GetDatum(Max(next_start - now, 0) / 1000000.0);
	nulls[8] = next_start == 0;
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls));
}
