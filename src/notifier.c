/*-------------------------------------------------------------------------
 *
 * notifier.c
 *	  The notifier worker: stored events and notifications go to Redis.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "clock.h"
#include "listen.h"
#include "notifier.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* Safety against a wake-up that was not sent */
#define IDLE_MS    1000
#define LOOK_EVERY (5 * USECS_PER_SEC)

/* Between two tries while Redis cannot be used */
#define RETRY_FIRST_MS 50
#define RETRY_LAST_MS  1000

/* How long health speaks of a new beginning of all streams */
#define REMEMBER (10 * 60 * USECS_PER_SEC)

Notifier notifier;

PGDLLEXPORT void evstream_notifier_main(Datum main_arg);

/* ---- problems ---- */

static const struct
{
	const char *code;
	const char *hint;
} problem_kinds[NP_COUNT] = {
	[NP_CONFIG] = {"configuration", "Check the setting evstream.redis_url and the secrets file."},
	[NP_FOREIGN] = {"foreign_mark",
					"If this database is to be the owner, call evstream_take_over(); "
					"otherwise set another evstream.redis_prefix."},
	[NP_AWAY] = {"away",
				 "Tracking and counting go on. Check Redis and the setting evstream.redis_url."},
	[NP_NOAUTH] = {"denied", "Check redis_user and redis_password in the secrets file."},
	[NP_LOADING] = {"loading", "Sending goes on when it has finished."},
	[NP_READONLY] = {"read_only", "Let evstream.redis_url name the primary."},
	[NP_OOM] = {"full",
				"Raise maxmemory of Redis, or lower evstream.stream_maxlen; sending then goes on."},
	[NP_MISCONF] = {"cannot_save", "Look into the log of Redis: it cannot save to its disk."},
	[NP_BUSY] = {"busy", "Sending goes on when that script has ended; SCRIPT KILL ends it."},
	[NP_NOPERM] = {"not_permitted",
				   "Give the user of Redis the keys and channels below evstream.redis_prefix, "
				   "and the commands of hashes, streams, pub/sub, keyspace and scripting."},
	[NP_STATE_KEY] = {"state_key", "Remove it, or set another evstream.redis_prefix."},
	[NP_FAILED] = {"failed", "Look into the log of Redis."},
	[NP_ASIDE] = {"set_aside",
				  "Remove or rename these keys in Redis; the streams then begin a new epoch."},
	[NP_PUBLISH] = {"publish_denied",
					"Give the user of Redis PUBLISH and the channels below evstream.redis_prefix."},
	[NP_BRIDGE] = {"bridge_denied",
				   "Give the user of Redis PUBLISH and the channels below evstream.redis_prefix."},
	[NP_DROPPED] = {"dropped", "evstream_restart() takes this message away."},
	[NP_WENT_BACK] = {"new_epochs",
					  "Subscribers see the epoch change and ask evstream_backfill()."},
	[NP_EMPTIED] = {"emptied", "Subscribers see the epoch change and ask evstream_backfill()."},
};

static char *problems[NP_COUNT];
static int64 problem_times[NP_COUNT];

void
notifier_problem(NotifierProblem problem, const char *message)
{
	char *copy;

	if (message == NULL && problems[problem] == NULL)
		return;
	copy = message == NULL ? NULL : MemoryContextStrdup(TopMemoryContext, message);
	if (problems[problem] != NULL)
		pfree(problems[problem]);
	problems[problem] = copy;
	problem_times[problem] = clock_us();
	for (int i = 0; i < NP_COUNT; i++)
	{
		if (problems[i] == NULL)
			continue;
		status_problem(COMPONENT_REDIS, LEVEL_DEGRADED, problem_kinds[i].code, problems[i],
					   problem_kinds[i].hint);
		return;
	}
	status_problem(COMPONENT_REDIS, LEVEL_OK, problem_kinds[problem].code, NULL, NULL);
}

/* Those that nothing ends are forgotten after some time. */
static void
forget_problems(void)
{
	static const NotifierProblem passing[] = {NP_WENT_BACK, NP_EMPTIED};
	int64 now = clock_us();

	for (int i = 0; i < (int) lengthof(passing); i++)
	{
		if (problems[passing[i]] != NULL && now > problem_times[passing[i]] + REMEMBER)
			notifier_problem(passing[i], NULL);
	}
}

/* ---- start ---- */

static void
restored_unit(void *arg)
{
	*(bool *) arg = batch_is_restored();
}

/*
 * Transaction ids of filters and snapshots mean nothing in another database:
 * what holds now then holds for all that was stored.
 */
static void
adopt_filters(void)
{
	Oid types[] = {INT8OID, OIDOID};
	Datum values[] = {Int64GetDatum((int64) GetSystemIdentifier()), ObjectIdGetDatum(MyDatabaseId)};

	if (sql_execute("UPDATE evstream.notifier_state SET filters_system = $1, filters_database = $2"
					" WHERE (filters_system, filters_database) IS DISTINCT FROM ($1, $2)",
					2, types, values, NULL, SPI_OK_UPDATE) == 0)
		return;
	sql_execute("DELETE FROM evstream.filters WHERE ended_xid IS NOT NULL", 0, NULL, NULL, NULL,
				SPI_OK_DELETE);
	sql_execute("UPDATE evstream.filters SET made_xid = '3'", 0, NULL, NULL, NULL, SPI_OK_UPDATE);
	sql_execute("UPDATE evstream.former_subscribers SET ended_xid = '3'", 0, NULL, NULL, NULL,
				SPI_OK_UPDATE);
	sql_execute("UPDATE evstream.batch_log SET snapshot = pg_catalog.pg_current_snapshot()", 0,
				NULL, NULL, NULL, SPI_OK_UPDATE);
}

static void
prepare_unit(void *arg)
{
	adopt_filters();
	link_name_scripts();
}

void
notifier_wait(long ms)
{
	(void) worker_wait(notifier.client ? redis_fd(notifier.client) : -1, ms);
	listen_process();
}

/* Waits all of it, whatever comes in. */
static void
pause_for(long ms)
{
	int64 end = clock_us() + ms * INT64CONST(1000);

	while (ms > 0)
	{
		(void) worker_wait(-1, ms);
		listen_process();
		ms = (long) ((end - clock_us() + 999) / 1000);
	}
}

static void
prepare(void)
{
	for (;;)
	{
		bool restored = false;

		if (worker_run("looking whether the database was restored", restored_unit, &restored, NULL))
		{
			if (!restored && worker_run("preparing", prepare_unit, NULL, NULL))
				return;
			if (restored)
				status_state("paused");
		}
		pause_for(IDLE_MS);
	}
}

/* ---- the loop ---- */

/* Reads a chunk, behind the one that is on its way, if any; false: not now. */
static bool
read_chunk(NotifierChunk *chunk, const NotifierChunk *before)
{
	ReadUnit unit = {chunk, before};

	(void) worker_woken();
	if (!worker_run("reading stored events", read_chunk_unit, &unit, NULL))
	{
		notifier.alone = notifier.nparts;
		/* it may have found new partitions all the same */
		cursor_doubt();
		return false;
	}
	if (notifier.alone > 0)
		notifier.alone--;
	if (chunk->any_new)
		cursor_doubt();
	return true;
}

/*
 * Sends what there is; false: not now.  True in *any: there may be more.  While
 * Redis takes a full chunk, the next one is read, and sent only when this one was
 * taken.
 */
static bool
send_events(bool *any)
{
	NotifierChunk *chunk = notifier.ahead;
	NotifierChunk *next = NULL;
	bool could_read = true;

	*any = false;
	notifier.ahead = NULL;
	if (chunk == NULL)
	{
		chunk = &notifier.chunks[0];
		if (!read_chunk(chunk, NULL))
			return false;
	}
	if (chunk->nparts == 0)
		return true;
	*any = true;
	if (!send_chunk_begin(chunk))
		return false;
	if (chunk->full)
	{
		next = chunk == &notifier.chunks[0] ? &notifier.chunks[1] : &notifier.chunks[0];
		could_read = read_chunk(next, chunk);
	}
	if (!send_chunk_end(chunk) || !could_read)
		return false;
	if (next != NULL && next->nparts > 0)
		notifier.ahead = next;
	/* nothing that was not read, and nothing new since? */
	*any = chunk->more || worker_woken();
	return true;
}

/* Looks from time to time whether Redis is there, and still holds what we know. */
static void
look_around(void)
{
	static int64 last = 0;
	int64 now = clock_us();

	if (now >= last && now < last + LOOK_EVERY)
		return;
	last = now;
	forget_problems();
	send_look_at_asides();
	cursor_doubt();
}

/*
 * One turn; false: not now, wait a bit.  Reading comes last: what waits for Redis
 * before it takes wake-ups from the latch, and none is to be lost.
 */
static bool
turn(bool *idle)
{
	bool any = true;

	*idle = false;
	if (!link_connect())
		return false;
	look_around();
	if (notifier.client == NULL || !cursor_check() || !link_forward())
		return false;
	status_state("running");
	cursor_mirror();
	send_expiry();
	if (!notifier.checked)
		return true;
	if (!send_events(&any))
		return false;
	*idle = !any && notifier.checked;
	return true;
}

void
evstream_notifier_main(Datum main_arg)
{
	long retry_ms = RETRY_FIRST_MS;

	worker_begin(main_arg, ROLE_NOTIFIER);

	/* Leaves are new each day, and without statistics: always by the index. */
	SetConfigOption("enable_seqscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("enable_bitmapscan", "off", PGC_SUSET, PGC_S_OVERRIDE);
	SetConfigOption("plan_cache_mode", "force_generic_plan", PGC_SUSET, PGC_S_OVERRIDE);

	notifier.context =
		AllocSetContextCreate(TopMemoryContext, "evstream notifier", ALLOCSET_DEFAULT_SIZES);
	notifier.scratch =
		AllocSetContextCreate(notifier.context, "evstream calls", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < (int) lengthof(notifier.chunks); i++)
	{
		NotifierChunk *chunk = &notifier.chunks[i];

		chunk->context =
			AllocSetContextCreate(notifier.context, "evstream chunk", ALLOCSET_DEFAULT_SIZES);
		chunk->arena = event_arena_create();
		if (chunk->arena == NULL)
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	notifier.matcher = matcher_create(notifier.context);
	listen_begin(setting_list(setting_notify_channels));
	prepare();

	for (;;)
	{
		bool idle;

		listen_process();
		if (!turn(&idle))
		{
			status_state("waiting");
			pause_for(retry_ms);
			retry_ms = Min(retry_ms * 2, RETRY_LAST_MS);
			continue;
		}
		retry_ms = RETRY_FIRST_MS;
		if (idle)
		{
			status_state("idle");
			listen_process();
			if (listen_waiting_bytes() == 0)
				notifier_wait(IDLE_MS);
			/* what Redis says unasked is that it goes */
			(void) link_alive();
		}
		else
			worker_check();
	}
}
