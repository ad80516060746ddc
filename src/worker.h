/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What all workers share: start, signals, wait, unit of work, back-off.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_WORKER_H
#define EVSTREAM_WORKER_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "compat.h"
#include "status.h"

/* Which worker this process is. */
typedef struct WorkerSelf
{
	WorkerRole role;
	int index;             /* consumer: 0 .. count - 1 */
	int count;             /* how many of this role */
	Oid extension;         /* the extension it was started for */
	char *schema;          /* of the public functions and views, quoted */
	MemoryContext scratch; /* reset at each worker_run() and by the role */
} WorkerSelf;

extern WorkerSelf worker_self;

/*
 * To be called first by each role's main function: installs the signal
 * handlers, takes the slot, connects to the database, locks session settings
 * (search_path = pg_catalog, pg_temp; synchronous_commit = off; statement_timeout,
 * idle timeouts, transaction_timeout = 0; default_transaction_read_only = off;
 * default isolation read committed; lock_timeout 500 ms; row_security on; jit off; no role),
 * sets the error context and waits until the extension's creation has committed.  Ends the
 * process quietly when there is no extension.
 */
extern void worker_begin(Datum main_arg, WorkerRole role);

/*
 * Waits for the latch, for fd to become readable (or -1), or timeout_ms.
 * Serves interrupts: ends the process on SIGTERM; on SIGHUP reads the
 * configuration and ends the process (quietly; the launcher starts it again) if
 * a setting that the workers take at their start has changed.
 * Returns true if fd is readable.  Never call it inside a transaction.
 */
extern bool worker_wait(int fd, long timeout_ms);

/* The same, but if to_write also for fd to become writable. */
extern bool worker_wait_for(int fd, bool to_write, long timeout_ms);

/*
 * Waits for fd or the time alone.  While the latch is set and nobody waits for
 * it, a commit has nothing to do for its wake-up: for pauses of a few ms.
 */
extern bool worker_pause(int fd, long timeout_ms);

/*
 * Was the latch set since the last call?  Who calls it before reading, and is told
 * "no" after it, has read all that a wake-up told of.
 */
extern bool worker_woken(void);

/* How many rows come in a second, as a reader sees it */
typedef struct WorkerRate
{
	int64 last;  /* time of the last reading, by clock_us(), 0 = none */
	double rows; /* of the last readings, older ones count for less */
	double us;   /* and the time between them */
} WorkerRate;

/* Where more rows than these come in a second, some are let come together. */
#define WORKER_BUSY_RATE 1500

/* Counts nrows that were read at a time, by clock_us(); returns how many come in a second, about. */
extern double worker_rate(WorkerRate *rate, int nrows, int64 at);

/* CHECK_FOR_INTERRUPTS and what worker_wait does for signals, without waiting. */
extern void worker_check(void);

typedef void (*WorkerUnit)(void *arg);

/*
 * Runs a unit of work in a transaction of its own, with SPI connected and an
 * active snapshot, with the rights of the extension's owner: locks the extension's row and checks that it is the same
 * one (else ends the process quietly), runs unit, commits.  Returns true if it
 * has committed.  On an error: rolls back, logs it (a repeated one only once
 * in a while), counts it in the slot, gives its SQLSTATE in *sqlerrcode (may
 * be NULL) and returns false; the caller waits by worker_backoff() before it tries again.
 * Memory: unit runs in worker_self.scratch's child or SPI's; results go into memory of the caller.
 */
extern bool worker_run(const char *what, WorkerUnit unit, void *arg, int *sqlerrcode);

/*
 * So far the log has to be on disk (XLogFlush) that no crash takes this committed
 * transaction back, or what it could see, which is found in the log before it;
 * InvalidXLogRecPtr if it is.  xid: a row's xmin, of a transaction without savepoints.
 */
extern XLogRecPtr worker_commit_end(TransactionId xid);

/* Waits a growing, jittered delay (100 ms to 30 s; on the latch); a successful worker_run() makes it small again. */
extern void worker_backoff(void);

/* Ends the process quietly, to be started again by the launcher at once. */
pg_noreturn extern void worker_restart(const char *why);

/* The last error of worker_run(), in static memory ("" if none). */
extern const char *worker_last_error(void);

/*
 * The schema that an extension was installed in; InvalidOid where there is no
 * such extension.  In a transaction, of any process.
 */
extern Oid worker_extension_schema(Oid extension);

/* Its owner, likewise. */
extern Oid worker_extension_owner(Oid extension);

#endif /* EVSTREAM_WORKER_H */
