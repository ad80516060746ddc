/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  What all workers share: start, signals, wait, unit of work, back-off.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "settings.h"
#include "shared.h"
#include "worker.h"

#define ERROR_SIZE       1024
#define REPEAT_LOG_US    (60 * USECS_PER_SEC)
#define BACKOFF_FIRST_MS 100
#define BACKOFF_LAST_MS  30000
#define FAILING_AFTER    4 /* failures in a row, about a second: nothing that passes by itself */
#define STATS_FLUSH_MS   500
/* The rate of what comes is one of the last 1 / (1 - this) readings, and a silence is this long */
#define RATE_DECAY       0.9
#define RATE_SILENCE_US  (100 * INT64CONST(1000))

WorkerSelf worker_self;

static char *fingerprint;
static char self_name[64]; /* "evstream consumer 0" */
static char database_name[NAMEDATALEN];
static const char *current_unit = NULL;
static Oid owner; /* of the extension, when this worker began */
static ErrorContextCallback error_callback;

static char last_error[ERROR_SIZE];
static char logged_error[ERROR_SIZE];
static int64 logged_at;
static int failures; /* of worker_run() in a row */
static bool stats_pending;
static bool woken;

/* Latch, postmaster and the file of the last wait: to make such a set costs more than to wait */
static WaitEventSet *kept_set;
static int kept_fd = -1;
static struct stat kept_file;

/* ---- end of a worker ---- */

/* Exit status 0, as the postmaster logs any other. */
pg_noreturn static void
leave(bool again, const char *why)
{
	ereport(DEBUG1, (errmsg_internal("%s ends: %s", self_name, why)));
	if (own_slot != NULL)
		own_slot->quiet = again;
	proc_exit(0);
}

void
worker_restart(const char *why)
{
	leave(true, why);
}

/* ---- begin ---- */

static void
error_context(void *arg)
{
	if (current_unit != NULL)
		errcontext("%s of database \"%s\", %s", self_name, database_name, current_unit);
	else
		errcontext("%s of database \"%s\"", self_name, database_name);
}

/* Copies the extension's row; false: there is none. */
static bool
read_extension(Oid extension, FormData_pg_extension *form)
{
	Relation rel = table_open(ExtensionRelationId, AccessShareLock);
	bool found;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
		memcpy(form, GETSTRUCT(tuple), sizeof(*form));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

Oid
worker_extension_schema(Oid extension)
{
	FormData_pg_extension form;

	return read_extension(extension, &form) ? form.extnamespace : InvalidOid;
}

Oid
worker_extension_owner(Oid extension)
{
	FormData_pg_extension form;

	return read_extension(extension, &form) ? form.extowner : InvalidOid;
}

/*
 * Finds the extension, which is visible once its creation has committed; it is
 * then by a commit that the launcher is asked to look again.
 */
static void
find_extension(void)
{
	FormData_pg_extension form;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	strlcpy(database_name, setting_database_name(), sizeof(database_name));
	worker_self.extension = get_extension_oid("evstream", true);
	if (OidIsValid(worker_self.extension) && read_extension(worker_self.extension, &form))
	{
		char *schema = get_namespace_name(form.extnamespace);

		if (schema != NULL)
			worker_self.schema = MemoryContextStrdup(TopMemoryContext, quote_identifier(schema));
		owner = form.extowner;
	}
	PopActiveSnapshot();
	CommitTransactionCommand();

	if (worker_self.schema == NULL)
		leave(true, "there is no extension");
}

void
worker_begin(Datum main_arg, WorkerRole role)
{
	WorkerStart start;

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	worker_self.role = role;
	worker_self.index = start.index;
	worker_self.count = start.count;
	if (role == ROLE_CONSUMER)
		snprintf(self_name, sizeof(self_name), "evstream %s %d", shared_role_name(role),
				 start.index);
	else
		snprintf(self_name, sizeof(self_name), "evstream %s", shared_role_name(role));

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (!shared_attach(&start))
		leave(false, "not wanted any more");

	BackgroundWorkerInitializeConnectionByOid(start.dboid, InvalidOid, 0);
	setting_shield_session();
	SetConfigOption("application_name", self_name, PGC_USERSET, PGC_S_SESSION);
	pgstat_report_activity(STATE_RUNNING, "starting");

	worker_self.scratch =
		AllocSetContextCreate(TopMemoryContext, "evstream scratch", ALLOCSET_DEFAULT_SIZES);
	find_extension();

	/* One of the workers speaks of the secrets file, and not each of them. */
	setting_secrets_load(role == ROLE_MAINTENANCE ? WARNING : DEBUG1);
	fingerprint = MemoryContextStrdup(TopMemoryContext, setting_fingerprint());

	if (role == ROLE_CONSUMER)
		ereport(LOG, (errmsg("evstream %s %d of %d started for database \"%s\"",
							 shared_role_name(role), start.index + 1, start.count, database_name)));
	else
		ereport(LOG, (errmsg("%s started for database \"%s\"", self_name, database_name)));

	error_callback.callback = error_context;
	error_callback.previous = NULL;
	error_context_stack = &error_callback;

	pgstat_report_activity(STATE_IDLE, NULL);
	status_state("running");
}

/* ---- waiting ---- */

static void
reload(void)
{
	char *now;

	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	setting_secrets_load(DEBUG1);
	now = setting_fingerprint();
	if (strcmp(now, fingerprint) != 0)
		leave(true, "settings have changed");
	pfree(now);

	/* One that leaves says it at its next start; a file that is still ignored is to be named. */
	if (worker_self.role == ROLE_MAINTENANCE)
		setting_secrets_load(WARNING);
}

void
worker_check(void)
{
	if (IsTransactionState())
	{
		CHECK_FOR_INTERRUPTS();
		return;
	}
	if (ProcDiePending)
		leave(false, "terminated");
	/* There is nothing to cancel between units of work. */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
	if (ConfigReloadPending)
		reload();
}

#define KEPT_LATCH 0 /* its place in the set */

/* The kernel forgets a file that is closed: another one may have its number now. */
static void
keep_set(int fd)
{
	struct stat file;

	if (fstat(fd, &file) != 0)
		elog(ERROR, "could not stat file descriptor %d: %m", fd);
	if (kept_fd == fd && kept_file.st_dev == file.st_dev && kept_file.st_ino == file.st_ino)
		return;
	kept_fd = -1;
	if (kept_set != NULL)
		FreeWaitEventSet(kept_set);
	kept_set = NULL;
	kept_set = compat_CreateWaitEventSet(3);
	AddWaitEventToSet(kept_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(kept_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(kept_set, WL_SOCKET_READABLE, fd, NULL, NULL);
	kept_fd = fd;
	kept_file = file;
}

/* As WaitLatchOrSocket(), for fd to become readable. */
static int
wait_kept(int events, int fd, long timeout_ms)
{
	WaitEvent event;

	keep_set(fd);
	ModifyWaitEvent(kept_set, KEPT_LATCH, WL_LATCH_SET, events & WL_LATCH_SET ? MyLatch : NULL);
	if (WaitEventSetWait(kept_set, timeout_ms, &event, 1, PG_WAIT_EXTENSION) == 0)
		return WL_TIMEOUT;
	return (int) event.events;
}

static bool
wait_for(int events, int fd, long timeout_ms)
{
	int seen;

	Assert(!IsTransactionState());
	if (stats_pending && timeout_ms >= STATS_FLUSH_MS)
	{
		pgstat_report_stat(true);
		stats_pending = false;
	}
	worker_check();
	timeout_ms = Max(timeout_ms, 0);
	if (fd >= 0 && (events & WL_SOCKET_WRITEABLE) == 0)
		seen = wait_kept(events, fd, timeout_ms);
	else if (fd >= 0)
		seen = WaitLatchOrSocket(MyLatch,
								 events | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, fd,
								 timeout_ms, PG_WAIT_EXTENSION);
	else
		seen = WaitLatch(events & WL_LATCH_SET ? MyLatch : NULL,
						 (events & WL_LATCH_SET) | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout_ms,
						 PG_WAIT_EXTENSION);
	if (seen & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		woken = true;
	}
	worker_check();
	return (seen & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE)) != 0;
}

bool
worker_wait(int fd, long timeout_ms)
{
	return wait_for(WL_LATCH_SET, fd, timeout_ms);
}

bool
worker_wait_for(int fd, bool to_write, long timeout_ms)
{
	return wait_for(WL_LATCH_SET | (to_write ? WL_SOCKET_WRITEABLE : 0), fd, timeout_ms);
}

bool
worker_pause(int fd, long timeout_ms)
{
	return wait_for(0, fd, timeout_ms);
}

bool
worker_woken(void)
{
	bool result = woken || MyLatch->is_set;

	woken = false;
	return result;
}

double
worker_rate(WorkerRate *rate, int nrows, int64 at)
{
	/*
	 * A mean of the rates from one reading to the next would be too high, as short times
	 * give the highest.  A long silence says no more than a short one.
	 */
	if (rate->last != 0)
	{
		rate->rows = rate->rows * RATE_DECAY + nrows;
		rate->us = rate->us * RATE_DECAY + Min(Max(at - rate->last, 1), RATE_SILENCE_US);
	}
	rate->last = at;
	return rate->us == 0 ? 0 : rate->rows * USECS_PER_SEC / rate->us;
}

void
worker_backoff(void)
{
	long delay = BACKOFF_FIRST_MS;
	int64 end;

	for (int i = 1; i < failures && delay < BACKOFF_LAST_MS; i++)
		delay *= 2;
	delay = shared_jitter(Min(delay, BACKOFF_LAST_MS));
	end = clock_us() + delay * INT64CONST(1000);

	status_state("waiting");
	/* Commits set the latch often: they do not make it shorter. */
	while (delay > 0)
	{
		(void) worker_wait(-1, delay);
		delay = (long) ((end - clock_us()) / 1000);
	}
	status_state("running");
}

/* ---- the unit of work ---- */

XLogRecPtr
worker_commit_end(TransactionId xid)
{
	XLogRecPtr end = InvalidXLogRecPtr;

	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (TransactionIdIsNormal(xid) && !TransactionIdPrecedes(xid, compat_oldest_known_xid()))
		end = TransactionIdGetCommitLSN(xid);
	LWLockRelease(XactTruncationLock);
	return end;
}

const char *
worker_last_error(void)
{
	return last_error;
}

/* The same message again is logged only once in a while. */
static bool
worth_logging(const char *message)
{
	int64 now = clock_us();

	if (strncmp(message, logged_error, ERROR_SIZE - 1) == 0 && now < logged_at + REPEAT_LOG_US)
		return false;
	strlcpy(logged_error, message, ERROR_SIZE);
	logged_at = now;
	return true;
}

bool
worker_run(const char *what, WorkerUnit unit, void *arg, int *sqlerrcode)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;
	volatile bool extension_gone = false;
	Oid session_user;
	int context;

	Assert(!IsTransactionState());
	worker_check();
	if (sqlerrcode != NULL)
		*sqlerrcode = 0;
	current_unit = what;
	MemoryContextReset(worker_self.scratch);

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();

		/*
		 * With the rights of the extension's owner, up to and with the commit, at
		 * which deferred triggers run: whoever owns the tables, and is no
		 * superuser, must not become one by a trigger or a default on them.  An
		 * error's rollback sets it back.
		 */
		GetUserIdAndSecContext(&session_user, &context);
		SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
		pgstat_report_activity(STATE_RUNNING, what);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");

		/* DROP EXTENSION takes the exclusive one: it waits for the unit's end. */
		LockDatabaseObject(ExtensionRelationId, worker_self.extension, 0, AccessShareLock);
		PushActiveSnapshot(GetTransactionSnapshot());
		if (get_extension_oid("evstream", true) != worker_self.extension)
			extension_gone = true;
		else
		{
			MemoryContextSwitchTo(worker_self.scratch);
			unit(arg);
		}
		SPI_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
		SetUserIdAndSecContext(session_user, context);
		done = true;
	}
	PG_CATCH();
	{
		ErrorData *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(worker_self.scratch);
		error = CopyErrorData();
		strlcpy(last_error, error->message ? error->message : "unknown error", ERROR_SIZE);
		if (sqlerrcode != NULL)
			*sqlerrcode = error->sqlerrcode;
		if (worth_logging(last_error))
			EmitErrorReport();
		AbortOutOfAnyTransaction();
		FlushErrorState();
		status_error(last_error);
		if (failures < 30)
			failures++;
		if (failures >= FAILING_AFTER)
		{
			char *message =
				psprintf("%s fails again and again (%s): %s", self_name, what, last_error);

			status_problem(
				COMPONENT_WORKERS, worker_self.role == ROLE_CONSUMER ? LEVEL_DOWN : LEVEL_DEGRADED,
				"failing", message,
				"It tries again by itself. Look into the server log, and mend the cause.");
			pfree(message);
		}
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();

	MemoryContextSwitchTo(caller);
	current_unit = NULL;
	if (extension_gone)
		leave(true, "the extension is gone");
	if (done)
	{
		failures = 0;
		status_problem(COMPONENT_WORKERS, LEVEL_OK, "failing", NULL, NULL);
	}
	stats_pending = true;
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
	return done;
}
