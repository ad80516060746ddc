/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Which workers should run, and starting them.
 *
 * At each turn the launcher compares what should run with what runs, so that
 * no event that it has missed leaves it wrong.  Everything that it knows is in
 * shared memory, and a launcher that was started again goes on from there;
 * only the handles of the processes that it has registered are its own.
 *
 * A database comes into the table by a look through pg_database.  A scout
 * looks into it at first and whenever somebody has asked for it; no worker of
 * the database is started as long as an answer is awaited.  Where the answer
 * asks for other workers than before, config_no grows, workers of another
 * config_no are ended, and new ones start when all of those have gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "launcher.h"
#include "settings.h"
#include "shared.h"
#include "status.h"

#define IDLE_MS          60000 /* then pg_database is looked through anyway */
#define START_LIMIT_MS   15000 /* for a process to come up */
#define SCOUT_LIMIT_MS   30000 /* for a look into a database */
#define NO_SLOT_FIRST_MS 1000
#define NO_SLOT_MS       10000
#define NO_SLOT_WARN     3 /* failures in a row: a parallel query may be short */
#define BACKOFF_FIRST_MS 1000
#define BACKOFF_LAST_MS  60000
#define GOOD_RUN_MS      60000 /* after which failures are forgotten */
#define QUICK_END_MS     1000
#define QUICK_ENDS       3

/* What one look at everything has found. */
typedef struct StartPlan
{
	bool any; /* start says what is to be started now */
	WorkerStart start;
	int missing;           /* workers that are due to be started */
	bool first_look_waits; /* a database that was never looked at */
	bool look_waits;       /* a look waits for a place */
} StartPlan;

/* Of the processes that this launcher has registered, by slot. */
static BackgroundWorkerHandle **handles;

static uint32 scan_done;
static int64 last_scan;
static int64 next_register;
static int register_failures;
static bool scout_timed_out;
static int64 next_turn;

static void
turn_not_later_than(int64 at)
{
	if (next_turn == 0 || at < next_turn)
		next_turn = at;
}

static int64
after_ms(int64 at, long ms)
{
	return at + ms * INT64CONST(1000);
}

/* Is it time, or when will it be? */
static bool
is_due(int64 at, int64 now)
{
	if (at <= now)
		return true;
	turn_not_later_than(at);
	return false;
}

/* Grows with the number of failures. */
static long
backoff_ms(int failed)
{
	long delay = BACKOFF_FIRST_MS;

	for (int i = 1; i < failed && delay < BACKOFF_LAST_MS; i++)
		delay *= 2;
	return shared_jitter(Min(delay, BACKOFF_LAST_MS));
}

/* ---- databases ---- */

static DatabaseEntry *
add_database(Oid dboid)
{
	DatabaseEntry *db = NULL;

	for (int i = 0; i < shared->ndatabases && db == NULL; i++)
	{
		if (!OidIsValid(shared->databases[i].dboid))
			db = &shared->databases[i];
	}
	if (db == NULL)
	{
		if (shared->ndatabases == SHARED_DATABASES)
			return NULL;
		db = &shared->databases[shared->ndatabases++];
	}
	/* everything but what is atomic */
	memset(db, 0, offsetof(DatabaseEntry, dead_letters));
	pg_atomic_write_u64(&db->dead_letters, (uint64) -1);
	pg_atomic_write_u64(&db->received_at, 0);
	db->dboid = dboid;
	db->look_wanted = 1;
	return db;
}

/* Databases in which workers may run, in TopTransactionContext. */
static List *
read_databases(void)
{
	List *oids = NIL;
	Relation rel = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple tuple;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datallowconn && !form->datistemplate &&
			form->datconnlimit != DATCONNLIMIT_INVALID_DB)
			oids = lappend_oid(oids, form->oid);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return oids;
}

static void
scan_databases(void)
{
	static bool warned = false;
	uint32 answers;
	List *oids;
	ListCell *cell;
	bool full = false;

	/* A request that comes during the look is answered by another one. */
	LWLockAcquire(shared->lock, LW_SHARED);
	answers = shared->scan_wanted;
	LWLockRelease(shared->lock);

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	oids = read_databases();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->ndatabases; i++)
	{
		DatabaseEntry *db = &shared->databases[i];
		bool there;

		if (!OidIsValid(db->dboid))
			continue;
		there = list_member_oid(oids, db->dboid);
		if (there && db->gone)
			db->look_wanted++;
		db->gone = !there;
	}
	foreach (cell, oids)
	{
		if (shared_database(lfirst_oid(cell)) == NULL && add_database(lfirst_oid(cell)) == NULL)
			full = true;
	}
	LWLockRelease(shared->lock);

	PopActiveSnapshot();
	CommitTransactionCommand();
	scan_done = answers;
	last_scan = clock_us();

	if (full && !warned)
		ereport(WARNING,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("evstream looks after the first %d databases only", SHARED_DATABASES)));
	warned = full;
}

/* ---- slots ---- */

static void
free_slot(WorkerSlot *slot)
{
	int slotno = slot - shared->slots;

	LWLockAcquire(shared->lag_lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nlags; i++)
	{
		if (shared->lags[i].slot == slotno)
			shared->lags[i].slot = -1;
	}
	LWLockRelease(shared->lag_lock);
	slot->phase = SLOT_FREE;
	slot->dboid = InvalidOid;
}

static WorkerSlot *
find_slot(Oid dboid, WorkerRole role, int index)
{
	for (int i = SCOUT_SLOT + 1; i < shared->nslots; i++)
	{
		WorkerSlot *slot = &shared->slots[i];

		if (slot->phase != SLOT_FREE && slot->dboid == dboid && slot->role == role &&
			slot->index == index)
			return slot;
	}
	return NULL;
}

static void
init_slot(WorkerSlot *slot, Oid dboid, WorkerRole role, int index)
{
	slot->phase = SLOT_IDLE;
	slot->dboid = dboid;
	slot->role = role;
	slot->index = index;
	slot->failures = 0;
	slot->quick_ends = 0;
	slot->next_start = 0;
	slot->restarts = -1;
	pg_atomic_write_u64(&slot->events, 0);
	pg_atomic_write_u64(&slot->batches, 0);
	pg_atomic_write_u64(&slot->errors, 0);
	SpinLockAcquire(&slot->mutex);
	slot->state[0] = '\0';
	slot->last_error[0] = '\0';
	slot->last_error_at = 0;
	memset(slot->problems, 0, sizeof(slot->problems));
	SpinLockRelease(&slot->mutex);
}

/* NULL: there are none left, and the server has none to run it in either. */
static WorkerSlot *
new_slot(Oid dboid, WorkerRole role, int index)
{
	for (int i = SCOUT_SLOT + 1; i < shared->nslots; i++)
	{
		if (shared->slots[i].phase == SLOT_FREE)
		{
			init_slot(&shared->slots[i], dboid, role, index);
			return &shared->slots[i];
		}
	}
	return NULL;
}

/* What the end of a process means for its next start. */
static void
judge_end(WorkerSlot *slot, int64 now, bool came_up)
{
	DatabaseEntry *db = shared_database(slot->dboid);
	long lived = came_up ? (long) ((slot->changed_at - slot->came_up_at) / 1000) : 0;

	slot->next_start = now;
	if (slot->stopping)
		slot->failures = slot->quick_ends = 0;
	else if (slot->quiet)
	{
		/* It has left for a reason that may have changed what is wanted. */
		if (db != NULL)
			db->look_wanted++;
		slot->failures = 0;
		slot->quick_ends = lived < QUICK_END_MS ? slot->quick_ends + 1 : 0;
		if (slot->quick_ends > QUICK_ENDS)
			slot->next_start = after_ms(now, backoff_ms(slot->quick_ends - QUICK_ENDS));
	}
	else
	{
		slot->failures = lived >= GOOD_RUN_MS ? 1 : slot->failures + 1;
		slot->next_start = after_ms(now, backoff_ms(slot->failures));
		/* The database may have gone. */
		shared->scan_wanted++;
	}
}

/*
 * A scout that has not brought an answer is sent again, later each time; one
 * that was held off, as soon as that has ended.
 */
static void
judge_scout(WorkerSlot *slot, int64 now)
{
	DatabaseEntry *db = shared_database(slot->dboid);

	if (db != NULL)
	{
		if (slot->quiet)
			db->look_failures = 0;
		else if (!slot->stopping || scout_timed_out)
		{
			db->look_failures++;
			db->next_look = after_ms(now, backoff_ms(db->look_failures));
			shared->scan_wanted++;
		}
	}
	scout_timed_out = false;
	slot->phase = SLOT_FREE;
	slot->dboid = InvalidOid;
}

/* Moves the slot on when its process has ended, or has never come up. */
static void
follow_slot(WorkerSlot *slot, int64 now)
{
	int i = slot - shared->slots;
	bool came_up = slot->phase == SLOT_ENDED;
	bool stopped = false;

	if (slot->phase != SLOT_STARTING && slot->phase != SLOT_ENDED)
		return;

	if (handles[i] != NULL)
	{
		pid_t pid;

		/* The postmaster has to take notice, before another one can start. */
		stopped = GetBackgroundWorkerPid(handles[i], &pid) == BGWH_STOPPED;
		if (slot->phase == SLOT_ENDED && !stopped)
			return;
	}
	if (slot->phase == SLOT_STARTING && !stopped &&
		!is_due(after_ms(slot->changed_at, START_LIMIT_MS), now))
		return;

	if (handles[i] != NULL)
	{
		if (!stopped)
			TerminateBackgroundWorker(handles[i]);
		pfree(handles[i]);
		handles[i] = NULL;
	}
	if (!came_up)
	{
		slot->quiet = false;
		slot->start_no++; /* one that comes up late is not wanted */
	}
	slot->phase = SLOT_IDLE;
	slot->pid = 0;
	if (i == SCOUT_SLOT)
		judge_scout(slot, now);
	else
		judge_end(slot, now, came_up);
	slot->changed_at = now;
	/* A place may have become free. */
	if (register_failures > 0)
		next_register = Min(next_register, now);
}

/* ---- comparing ---- */

/* False: there is something else to be started first. */
static bool
plan_start(StartPlan *plan, WorkerSlot *slot, int count, int64 now)
{
	if (plan->any || next_register > now)
		return false;
	slot->phase = SLOT_STARTING;
	slot->changed_at = now;
	slot->start_no++;
	slot->count = count;
	slot->stopping = false;
	slot->quiet = false;
	plan->any = true;
	plan->start.dboid = slot->dboid;
	plan->start.role = slot->role;
	plan->start.index = slot->index;
	plan->start.count = count;
	plan->start.slot = slot - shared->slots;
	plan->start.start_no = slot->start_no;
	return true;
}

/* Ends what should not run, and plans what should. */
static void
compare_database(DatabaseEntry *db, int64 now, StartPlan *plan)
{
	/* In the order in which they are of use, where not all find a place. */
	static const WorkerRole roles[] = {ROLE_CONSUMER, ROLE_RELAY, ROLE_NOTIFIER, ROLE_MAINTENANCE};
	bool held = shared_held(db->dboid);
	bool old_ones = false;

	if (db->restart_wanted)
	{
		db->restart_wanted = false;
		db->config_no++;
		for (int i = SCOUT_SLOT + 1; i < shared->nslots; i++)
		{
			if (shared->slots[i].dboid == db->dboid)
			{
				shared->slots[i].failures = shared->slots[i].quick_ends = 0;
				shared->slots[i].next_start = Min(shared->slots[i].next_start, now);
			}
		}
	}

	for (int i = SCOUT_SLOT + 1; i < shared->nslots; i++)
	{
		WorkerSlot *slot = &shared->slots[i];
		bool wanted;

		if (slot->phase == SLOT_FREE || slot->dboid != db->dboid)
			continue;
		wanted = slot->index < shared_wanted(db, slot->role);
		if (slot->phase == SLOT_IDLE)
		{
			if (!wanted)
				free_slot(slot);
			continue;
		}
		if (!wanted || held || slot->config_no != db->config_no)
		{
			old_ones = true;
			if (!slot->stopping)
				shared_stop_slot(slot);
		}
	}

	if (db->gone && !old_ones &&
		(shared->slots[SCOUT_SLOT].phase == SLOT_FREE ||
		 shared->slots[SCOUT_SLOT].dboid != db->dboid))
	{
		status_notified_clear(db->dboid);
		db->dboid = InvalidOid;
		return;
	}
	if (db->gone || held)
		return;

	if (db->look_wanted != db->look_done)
	{
		WorkerSlot *scout = &shared->slots[SCOUT_SLOT];

		if (scout->phase != SLOT_FREE || !is_due(db->next_look, now))
			return;
		plan->look_waits = true;
		if (!db->known)
			plan->first_look_waits = true;
		if (!plan->any && next_register <= now)
		{
			init_slot(scout, db->dboid, ROLE_SCOUT, 0);
			(void) plan_start(plan, scout, 1, now);
			/* Here it is the number of the request that it answers. */
			scout->config_no = db->look_wanted;
		}
		return;
	}
	if (old_ones)
		return;

	for (int r = 0; r < (int) lengthof(roles); r++)
	{
		int count = shared_wanted(db, roles[r]);

		for (int index = 0; index < count; index++)
		{
			WorkerSlot *slot = find_slot(db->dboid, roles[r], index);

			if (slot == NULL)
				slot = new_slot(db->dboid, roles[r], index);
			if (slot == NULL)
				plan->missing++;
			else if (slot->phase == SLOT_IDLE && is_due(slot->next_start, now))
			{
				plan->missing++;
				if (plan_start(plan, slot, count, now))
				{
					slot->config_no = db->config_no;
					slot->restarts++;
				}
			}
		}
	}
}

/* One look at everything; finds at most one process to be started. */
static void
compare(StartPlan *plan)
{
	int64 now = clock_us();
	WorkerSlot *scout = &shared->slots[SCOUT_SLOT];

	memset(plan, 0, sizeof(*plan));
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nslots; i++)
		follow_slot(&shared->slots[i], now);
	if (scout->phase == SLOT_RUNNING && !scout->stopping &&
		is_due(after_ms(scout->changed_at, SCOUT_LIMIT_MS), now))
	{
		scout_timed_out = true;
		shared_stop_slot(scout);
	}
	for (int i = 0; i < shared->ndatabases; i++)
	{
		if (OidIsValid(shared->databases[i].dboid))
			compare_database(&shared->databases[i], now, plan);
	}
	if (plan->missing == 0 && !plan->first_look_waits)
		shared->no_free_slots = false;
	LWLockRelease(shared->lock);
}

/* ---- starting ---- */

/* False: the server has no place for another process. */
static bool
register_process(const WorkerStart *start)
{
	BackgroundWorker worker;
	const char *role = shared_role_name(start->role);

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "evstream", sizeof(worker.bgw_library_name));
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "evstream_%s_main", role);
	if (start->role == ROLE_CONSUMER)
		snprintf(worker.bgw_name, BGW_MAXLEN, "evstream %s %d", role, start->index);
	else
		snprintf(worker.bgw_name, BGW_MAXLEN, "evstream %s", role);
	snprintf(worker.bgw_type, BGW_MAXLEN, "evstream %s", role);
	StaticAssertStmt(sizeof(WorkerStart) <= BGW_EXTRALEN, "start does not fit");
	memcpy(worker.bgw_extra, start, sizeof(*start));
	return RegisterDynamicBackgroundWorker(&worker, &handles[start->slot]);
}

static void
no_place(const StartPlan *plan)
{
	static int warned_missing = 0;
	int64 now = clock_us();
	WorkerSlot *slot = &shared->slots[plan->start.slot];
	int missing = plan->missing + (plan->first_look_waits ? 1 : 0);

	/* A look at a database whose workers run can wait: nobody's trouble. */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (plan->start.slot == SCOUT_SLOT)
	{
		slot->phase = SLOT_FREE;
		slot->dboid = InvalidOid;
	}
	else
	{
		slot->phase = SLOT_IDLE;
		slot->restarts--;
	}
	if (missing > 0)
		shared->no_free_slots = true;
	LWLockRelease(shared->lock);

	if (register_failures == 0)
		warned_missing = 0;
	register_failures++;
	next_register = after_ms(now, register_failures < NO_SLOT_WARN ? NO_SLOT_FIRST_MS : NO_SLOT_MS);
	turn_not_later_than(next_register);

	if (register_failures >= NO_SLOT_WARN && missing > warned_missing)
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("evstream cannot start its workers: max_worker_processes (%d) is too small",
						max_worker_processes),
				 errdetail("All places for background workers are taken, and %d processes of "
						   "evstream wait for one.",
						   missing),
				 errhint("Set max_worker_processes to at least %d and restart the server. "
						 "evstream needs 1 for its launcher and, for each database, 2, or with "
						 "Kafka 2 plus evstream.consumers, and 1 more with Redis.",
						 max_worker_processes + missing + 1)));
		warned_missing = missing;
	}
}

/* Starts what is missing, one process after another. */
static void
supervise(void)
{
	next_turn = 0;
	for (;;)
	{
		StartPlan plan;

		compare(&plan);
		if (!plan.any)
		{
			if (plan.missing > 0 || plan.look_waits)
				turn_not_later_than(next_register);
			else
				register_failures = 0;
			return;
		}
		if (!register_process(&plan.start))
		{
			no_place(&plan);
			return;
		}
	}
}

/* ---- the launcher's process ---- */

void
launcher_register(void)
{
	BackgroundWorker worker;

	/* pg_upgrade runs the server to move its catalogs, not to work. */
	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "evstream", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "evstream_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "evstream launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "evstream launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/*
 * What a reload has changed is seen by a look into each database with workers.  Workers
 * that leave for it have not left by themselves, however often it comes.
 */
static void
look_at_all(void)
{
	int64 now = clock_us();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < shared->ndatabases; i++)
	{
		DatabaseEntry *db = &shared->databases[i];

		if (OidIsValid(db->dboid) && OidIsValid(db->extension))
		{
			db->look_wanted++;
			db->look_failures = 0;
			db->next_look = 0;
		}
	}
	for (int i = SCOUT_SLOT + 1; i < shared->nslots; i++)
	{
		WorkerSlot *slot = &shared->slots[i];

		if (slot->phase == SLOT_FREE || slot->quick_ends == 0)
			continue;
		slot->quick_ends = 0;
		slot->next_start = Min(slot->next_start, now);
	}
	LWLockRelease(shared->lock);
}

static void
serve_interrupts(void)
{
	/* Exit status 1: with 0 the postmaster would not start it again. */
	if (ProcDiePending)
	{
		ereport(DEBUG1, (errmsg_internal("evstream launcher ends")));
		proc_exit(1);
	}
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		look_at_all();
	}
}

void
evstream_launcher_main(Datum main_arg)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	setting_shield_session();
	SetConfigOption("application_name", "evstream launcher", PGC_USERSET, PGC_S_SESSION);

	MemoryContextSwitchTo(TopMemoryContext);
	handles = palloc0(sizeof(BackgroundWorkerHandle *) * shared->nslots);
	shared_attach_launcher();
	ereport(LOG, (errmsg("evstream launcher started")));
	scan_databases();

	for (;;)
	{
		int64 now;
		long timeout;

		serve_interrupts();
		now = clock_us();
		if (scan_done != shared->scan_wanted || now > after_ms(last_scan, IDLE_MS))
			scan_databases();
		supervise();
		pgstat_report_activity(STATE_IDLE, NULL);

		now = clock_us();
		timeout = IDLE_MS;
		if (next_turn != 0)
			timeout = Max(Min(timeout, (long) ((next_turn - now) / 1000) + 1), 1);
		if (scan_done != shared->scan_wanted)
			timeout = 0;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* ---- the scout's process ---- */

static void
bring_findings(Oid dboid, uint32 answers, Oid extension)
{
	DatabaseEntry *db;
	bool kafka = setting_kafka_brokers[0] != '\0';
	bool redis = setting_redis_url[0] != '\0';

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = shared_database(dboid);
	if (db != NULL)
	{
		if (db->extension != extension || db->kafka != kafka || db->redis != redis ||
			db->consumers != setting_consumers)
			db->config_no++;
		if (db->extension != extension)
		{
			pg_atomic_write_u64(&db->dead_letters, (uint64) -1);
			pg_atomic_write_u64(&db->received_at, 0);
		}
		db->extension = extension;
		db->enabled = setting_enabled;
		db->kafka = kafka;
		db->redis = redis;
		db->consumers = setting_consumers;
		db->known = true;
		db->look_done = answers;
		own_slot->quiet = true;
	}
	LWLockRelease(shared->lock);
}

void
evstream_scout_main(Datum main_arg)
{
	WorkerStart start;
	Oid extension;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	if (!shared_attach(&start))
		proc_exit(0);

	/* Never connected to a database that is held: those who hold it have asked us to end. */
	BackgroundWorkerInitializeConnectionByOid(start.dboid, InvalidOid, 0);
	setting_shield_session();

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension = get_extension_oid("evstream", true);
	PopActiveSnapshot();
	CommitTransactionCommand();

	bring_findings(start.dboid, own_slot->config_no, extension);
	proc_exit(0);
}
