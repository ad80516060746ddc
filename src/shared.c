/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  Shared memory: its making, slots and holds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "shared.h"

/* Slots of workers that wait for their next start count, too. */
#define SPARE_SLOTS 32

SharedState *shared = NULL;
WorkerSlot *own_slot = NULL;

#ifdef COMPAT_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static int
slot_count(void)
{
	return max_worker_processes + SPARE_SLOTS;
}

static Size
shared_size(void)
{
	return add_size(offsetof(SharedState, slots), mul_size(slot_count(), sizeof(WorkerSlot)));
}

static void
shmem_request(void)
{
#ifdef COMPAT_HAVE_SHMEM_REQUEST_HOOK
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("evstream", 2);
}

static void
shmem_startup(void)
{
	bool found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("evstream", shared_size(), &found);
	if (!found)
	{
		LWLockPadded *locks = GetNamedLWLockTranche("evstream");

		memset(shared, 0, shared_size());
		shared->lock = &locks[0].lock;
		shared->lag_lock = &locks[1].lock;
		shared->nslots = slot_count();
		for (int i = 0; i < shared->nslots; i++)
		{
			WorkerSlot *slot = &shared->slots[i];

			SpinLockInit(&slot->mutex);
			pg_atomic_init_u64(&slot->events, 0);
			pg_atomic_init_u64(&slot->batches, 0);
			pg_atomic_init_u64(&slot->errors, 0);
		}
		pg_atomic_init_u64(&shared->unflushed_begun, 0);
		pg_atomic_init_u64(&shared->unflushed_ended, 0);
		for (int i = 0; i < SHARED_DATABASES; i++)
		{
			pg_atomic_init_u64(&shared->databases[i].dead_letters, (uint64) -1);
			pg_atomic_init_u64(&shared->databases[i].received_at, 0);
		}
		for (int i = 0; i < SHARED_LAGS; i++)
			shared->lags[i].slot = -1;
	}
	LWLockRelease(AddinShmemInitLock);
}

void
shared_request(void)
{
#ifdef COMPAT_HAVE_SHMEM_REQUEST_HOOK
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
#else
	shmem_request();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

const char *
shared_role_name(WorkerRole role)
{
	switch (role)
	{
		case ROLE_LAUNCHER:
			return "launcher";
		case ROLE_SCOUT:
			return "scout";
		case ROLE_MAINTENANCE:
			return "maintenance";
		case ROLE_CONSUMER:
			return "consumer";
		case ROLE_RELAY:
			return "relay";
		case ROLE_NOTIFIER:
			return "notifier";
	}
	return "unknown";
}

int
shared_wanted(const DatabaseEntry *db, WorkerRole role)
{
	if (!OidIsValid(db->extension) || !db->enabled || db->gone)
		return 0;
	switch (role)
	{
		case ROLE_MAINTENANCE:
			return 1;
		case ROLE_CONSUMER:
			return db->kafka ? db->consumers : 1;
		case ROLE_RELAY:
			return db->kafka ? 1 : 0;
		case ROLE_NOTIFIER:
			return db->redis ? 1 : 0;
		default:
			return 0;
	}
}

long
shared_jitter(long ms)
{
	uint32 mix = ((uint32) GetCurrentTimestamp() ^ (uint32) MyProcPid * 2246822519u) * 2654435761u;

	return ms * 3 / 4 + (long) ((uint64) (ms / 2) * (mix >> 16) / 65536);
}

/* ---- what needs the lock ---- */

DatabaseEntry *
shared_database(Oid dboid)
{
	for (int i = 0; i < shared->ndatabases; i++)
	{
		if (shared->databases[i].dboid == dboid)
			return &shared->databases[i];
	}
	return NULL;
}

bool
shared_held(Oid dboid)
{
	for (int i = 0; i < SHARED_HOLDS; i++)
	{
		if (shared->holds[i].pid != 0 && shared->holds[i].dboid == dboid)
			return true;
	}
	return false;
}

void
shared_wake_launcher(void)
{
	if (shared->launcher_proc != NULL)
		SetLatch(&shared->launcher_proc->procLatch);
}

void
shared_wake_holders(Oid dboid)
{
	for (int i = 0; i < SHARED_HOLDS; i++)
	{
		if (shared->holds[i].pid != 0 && shared->holds[i].dboid == dboid)
			SetLatch(&shared->holds[i].proc->procLatch);
	}
}

/* A slot that is still starting sees the mark when it comes up. */
void
shared_stop_slot(WorkerSlot *slot)
{
	if (slot->phase != SLOT_STARTING && slot->phase != SLOT_RUNNING)
		return;
	slot->stopping = true;
	if (slot->phase == SLOT_RUNNING)
		kill(slot->pid, SIGTERM);
}

/* ---- life of a worker ---- */

static void
slot_enter(WorkerSlot *slot, SlotPhase phase)
{
	slot->phase = phase;
	slot->changed_at = clock_us();
}

static void
detach(int code, Datum arg)
{
	WorkerSlot *slot = own_slot;

	if (slot == NULL)
		return;
	own_slot = NULL;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	slot->pid = 0;
	slot->proc = NULL;
	slot_enter(slot, SLOT_ENDED);
	shared_wake_launcher();
	shared_wake_holders(slot->dboid);
	LWLockRelease(shared->lock);
}

bool
shared_attach(const WorkerStart *start)
{
	WorkerSlot *slot;
	bool wanted = false;

	if (shared == NULL || start->slot < 0 || start->slot >= shared->nslots)
		return false;
	slot = &shared->slots[start->slot];

	/*
	 * Registered before the connection to the database, the callback runs when
	 * that has been given up: a slot without pid stands for a process that is
	 * in nobody's way any more.
	 */
	on_shmem_exit(detach, (Datum) 0);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->phase == SLOT_STARTING && slot->start_no == start->start_no)
	{
		if (slot->stopping || shared_held(start->dboid))
		{
			slot->stopping = true;
			slot_enter(slot, SLOT_ENDED);
			shared_wake_launcher();
		}
		else
		{
			slot->pid = MyProcPid;
			slot->proc = MyProc;
			slot->quiet = false;
			slot_enter(slot, SLOT_RUNNING);
			slot->came_up_at = slot->changed_at;
			slot->started_at = GetCurrentTimestamp();
			own_slot = slot;
			wanted = true;
		}
	}
	LWLockRelease(shared->lock);

	if (wanted)
	{
		SpinLockAcquire(&slot->mutex);
		strlcpy(slot->state, "starting", STATE_SIZE);
		for (int i = 0; i < COMPONENT_COUNT; i++)
			slot->problems[i].level = LEVEL_OK;
		SpinLockRelease(&slot->mutex);
	}
	return wanted;
}

static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (shared->launcher_pid == MyProcPid)
	{
		shared->launcher_pid = 0;
		shared->launcher_proc = NULL;
	}
	LWLockRelease(shared->lock);
}

void
shared_attach_launcher(void)
{
	on_shmem_exit(detach_launcher, (Datum) 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher_pid = MyProcPid;
	shared->launcher_proc = MyProc;
	LWLockRelease(shared->lock);
}

/* ---- holds and requests ---- */

bool
shared_hold(Oid dboid)
{
	DatabaseHold *mine = NULL;
	bool any = false;

	if (shared == NULL || MyProc == NULL)
		return false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHARED_HOLDS; i++)
	{
		DatabaseHold *hold = &shared->holds[i];

		if (hold->pid == MyProcPid && hold->dboid == dboid)
		{
			mine = hold;
			break;
		}
		if (hold->pid == 0 && mine == NULL)
			mine = hold;
	}
	if (mine != NULL)
	{
		mine->dboid = dboid;
		mine->proc = MyProc;
		mine->pid = MyProcPid;
		any = true;
	}
	for (int i = 0; i < shared->nslots; i++)
	{
		if (shared->slots[i].dboid == dboid)
			shared_stop_slot(&shared->slots[i]);
	}
	LWLockRelease(shared->lock);
	return any;
}

void
shared_release_holds(void)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SHARED_HOLDS; i++)
	{
		if (shared->holds[i].pid == MyProcPid)
			shared->holds[i].pid = 0;
	}
	shared_wake_launcher();
	LWLockRelease(shared->lock);
}

int
shared_running(Oid dboid)
{
	int running = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < shared->nslots; i++)
	{
		if (shared->slots[i].phase == SLOT_RUNNING && shared->slots[i].dboid == dboid)
			running++;
	}
	LWLockRelease(shared->lock);
	return running;
}

void
shared_scan_again(void)
{
	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->scan_wanted++;
	shared_wake_launcher();
	LWLockRelease(shared->lock);
}

void
shared_set_unsettled(Oid dboid)
{
	DatabaseEntry *db;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	db = shared_database(dboid);
	if (db != NULL)
		db->unsettled = true;
	LWLockRelease(shared->lock);
}

bool
shared_unsettled(Oid dboid)
{
	DatabaseEntry *db;
	bool unsettled;

	if (shared == NULL)
		return false;
	LWLockAcquire(shared->lock, LW_SHARED);
	db = shared_database(dboid);
	unsettled = db != NULL && db->unsettled;
	LWLockRelease(shared->lock);
	return unsettled;
}
