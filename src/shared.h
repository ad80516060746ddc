/*-------------------------------------------------------------------------
 *
 * shared.h
 *	  What is in shared memory: for status, launcher, worker and hooks only.
 *
 * The launcher owns the slots and the entries of databases: it alone makes and
 * frees them.  A worker fills its own slot, a scout the findings of its
 * database, and backends put requests and holds.  Everything is under
 * shared->lock, except the texts of a slot (its mutex), its counters (atomic),
 * and lag (shared->lag_lock).
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SHARED_H
#define EVSTREAM_SHARED_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"

#include "status.h"

#define SHARED_DATABASES 1024
#define SHARED_HOLDS     128
#define SHARED_LAGS      2048
#define SCOUT_SLOT       0

#define STATE_SIZE 16
#define CODE_SIZE  32
#define TEXT_SIZE  512
#define TOPIC_SIZE 250

/* What a started process is for; travels in bgw_extra. */
typedef struct WorkerStart
{
	Oid dboid;
	WorkerRole role;
	int index;
	int count;
	int slot;
	uint32 start_no;
} WorkerStart;

typedef struct SlotProblem
{
	StatusLevel level; /* LEVEL_OK: none */
	char code[CODE_SIZE];
	char logged[CODE_SIZE]; /* code that was logged and not yet taken back;
								 * outlives the process */
	char message[TEXT_SIZE];
	char hint[TEXT_SIZE];
	TimestampTz since;
} SlotProblem;

typedef enum SlotPhase
{
	SLOT_FREE,
	SLOT_IDLE,     /* kept for a worker that is to be started */
	SLOT_STARTING, /* registered, has not come up yet */
	SLOT_RUNNING,
	SLOT_ENDED /* gone; the launcher has not looked at it yet */
} SlotPhase;

typedef struct WorkerSlot
{
	SlotPhase phase;
	Oid dboid;
	WorkerRole role;
	int index;
	int count;
	uint32 config_no; /* of the database, when it was started */
	uint32 start_no;  /* a process that was started under another one
								 * is not for this slot any more */
	pid_t pid;
	PGPROC *proc;
	int64 changed_at;       /* clock_us() when it came into its phase */
	int64 came_up_at;       /* likewise, its last process */
	TimestampTz started_at; /* when its last process came up */
	bool stopping;          /* was asked to end */
	bool quiet;             /* ended by its own wish, to be started again */
	int failures;           /* in a row */
	int quick_ends;         /* quiet ends right after the start, in a row */
	int64 next_start;       /* by clock_us() */
	int64 restarts;         /* -1: never started */

	pg_atomic_uint64 events;
	pg_atomic_uint64 batches;
	pg_atomic_uint64 errors;

	slock_t mutex; /* for the following */
	char state[STATE_SIZE];
	char last_error[TEXT_SIZE];
	TimestampTz last_error_at;
	SlotProblem problems[COMPONENT_COUNT];
} WorkerSlot;

typedef struct DatabaseEntry
{
	Oid dboid; /* InvalidOid: free */
	bool gone; /* dropped, or no connections allowed */

	/* requests */
	uint32 look_wanted;
	bool restart_wanted;
	bool unsettled; /* a prepared transaction may bring or take the
								 * extension */

	/* findings of the scout */
	uint32 look_done; /* the request that they answer */
	bool known;       /* looked at, ever */
	Oid extension;
	bool enabled;
	bool kafka;
	bool redis;
	int consumers;
	uint32 config_no; /* grows when workers have to start anew */

	/* the launcher's */
	int look_failures;
	int64 next_look; /* by clock_us() */

	pg_atomic_uint64 dead_letters; /* int64; -1: not known */
	pg_atomic_uint64 received_at;  /* TimestampTz; 0: not known */
} DatabaseEntry;

typedef struct DatabaseHold
{
	pid_t pid; /* 0: free */
	PGPROC *proc;
	Oid dboid;
} DatabaseHold;

typedef struct LagEntry
{
	int slot;        /* -1: free */
	uint32 start_no; /* of the process that wrote it */
	Oid dboid;
	int32 log_id;
	int32 partition;
	int64 position;
	int64 end_offset;
	TimestampTz last_record_at;
	TimestampTz caught_up_at; /* when there was last nothing left to read */
	char topic[TOPIC_SIZE];   /* "": embedded */
} LagEntry;

/* How far the fan-out of a partition is. */
typedef struct NotifiedEntry
{
	Oid dboid; /* InvalidOid: free */
	int32 log_id;
	int32 partition;
	TimestampTz passed_at;
	TimestampTz trying_until; /* what is beyond passed_at until then may have been sent, or not */
} NotifiedEntry;

typedef struct SharedState
{
	LWLock *lock;
	LWLock *lag_lock;
	pid_t launcher_pid;
	PGPROC *launcher_proc;
	/* commits with events that wait for no flush: see status_unflushed_begin() */
	pg_atomic_uint64 unflushed_begun;
	pg_atomic_uint64 unflushed_ended;
	uint32 scan_wanted; /* look through pg_database again */
	bool no_free_slots; /* max_worker_processes is too small */
	int ndatabases;     /* entries that were ever used */
	int nslots;
	int nlags; /* entries that were ever used */
	DatabaseEntry databases[SHARED_DATABASES];
	DatabaseHold holds[SHARED_HOLDS];
	LagEntry lags[SHARED_LAGS];
	int nnotified; /* entries that were ever used; under lag_lock, too */
	NotifiedEntry notified[SHARED_LAGS];
	WorkerSlot slots[FLEXIBLE_ARRAY_MEMBER];
} SharedState;

/* NULL: the library is not preloaded. */
extern SharedState *shared;

/* This process's slot, or NULL. */
extern WorkerSlot *own_slot;

/* Asks for the memory; from _PG_init() of a preloaded library only. */
extern void shared_request(void);

/* The following four need shared->lock. */
extern DatabaseEntry *shared_database(Oid dboid);
extern bool shared_held(Oid dboid);
extern void shared_wake_launcher(void);
extern void shared_stop_slot(WorkerSlot *slot);

/* Wakes what waits for a database to be without workers; needs the lock. */
extern void shared_wake_holders(Oid dboid);

/*
 * Makes this process the worker of its slot until it exits.  False: it is not
 * wanted any more, and has to end quietly.  Before the connection to a
 * database, so that the slot outlives it.
 */
extern bool shared_attach(const WorkerStart *start);

/* Makes this process the launcher until it exits. */
extern void shared_attach_launcher(void);

/*
 * Holds a database free of workers, asks those that run to end, and returns
 * true; false where there is nothing to hold.  Holds of this process are
 * released all at once.  Neither raises.
 */
extern bool shared_hold(Oid dboid);
extern void shared_release_holds(void);

/* Number of processes of evstream in a database; those held off not counted. */
extern int shared_running(Oid dboid);

/* Looks through pg_database again. */
extern void shared_scan_again(void);

/*
 * Marks that a prepared transaction here may bring or take the extension; and
 * tells whether there was one since the server's start.
 */
extern void shared_set_unsettled(Oid dboid);
extern bool shared_unsettled(Oid dboid);

/* "consumer" */
extern const char *shared_role_name(WorkerRole role);

/* How many workers of this role the findings ask for. */
extern int shared_wanted(const DatabaseEntry *db, WorkerRole role);

/* Milliseconds, more or less by a quarter, so that workers do not march in step. */
extern long shared_jitter(long ms);

#endif /* EVSTREAM_SHARED_H */
