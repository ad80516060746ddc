/*-------------------------------------------------------------------------
 *
 * notifier_link.c
 *	  The notifier's connection to Redis: calls, their time-outs and faults.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha1.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "listen.h"
#include "notifier.h"
#include "settings.h"
#include "status.h"
#include "worker.h"

/* Notifications that are sent before their answers are read */
#define FORWARD_COUNT 1000
#define FORWARD_BYTES (1024 * 1024)

/* So long it waits for Redis alone: commits need not wake it */
#define ANSWER_MS 5

/* ---- faults ---- */

static NotifierProblem
problem_of(RedisStatus status)
{
	switch (status)
	{
		case RSTATUS_AWAY:
			return NP_AWAY;
		case RSTATUS_CONFIG:
			return NP_CONFIG;
		case RSTATUS_NOAUTH:
			return NP_NOAUTH;
		case RSTATUS_NOPERM:
			return NP_NOPERM;
		case RSTATUS_LOADING:
			return NP_LOADING;
		case RSTATUS_OOM:
			return NP_OOM;
		case RSTATUS_READONLY:
			return NP_READONLY;
		case RSTATUS_MISCONF:
			return NP_MISCONF;
		case RSTATUS_BUSY:
			return NP_BUSY;
		case RSTATUS_WRONGTYPE:
			return NP_STATE_KEY;
		default:
			return NP_FAILED;
	}
}

/* Faults of Redis as a whole, of which one stands at a time. */
static const NotifierProblem faults[] = {NP_CONFIG,   NP_AWAY,      NP_NOAUTH,  NP_LOADING,
										 NP_READONLY, NP_OOM,       NP_MISCONF, NP_BUSY,
										 NP_NOPERM,   NP_STATE_KEY, NP_FAILED};

/* Those that an answer ends; the others end when something was written. */
static const NotifierProblem link_faults[] = {NP_CONFIG, NP_AWAY, NP_NOAUTH, NP_LOADING, NP_BUSY};

static void
answered(void)
{
	for (int i = 0; i < (int) lengthof(link_faults); i++)
		notifier_problem(link_faults[i], NULL);
}

/* Tells health about a fault, or that there is none (RSTATUS_OK). */
static void
tell(RedisStatus status, const char *text)
{
	NotifierProblem now = status == RSTATUS_OK ? NP_COUNT : problem_of(status);
	char *message = NULL;

	switch (now)
	{
		case NP_AWAY:
			message = psprintf("could not reach Redis: %s", text);
			break;
		case NP_CONFIG:
			message = psprintf("Redis cannot be used as configured: %s", text);
			break;
		case NP_NOAUTH:
			message = psprintf("Redis does not accept the user or password: %s", text);
			break;
		case NP_LOADING:
			message = pstrdup("Redis is loading its data");
			break;
		case NP_READONLY:
			message = psprintf("Redis is a read-only replica: %s", text);
			break;
		case NP_OOM:
			message = psprintf("Redis is full: %s", text);
			break;
		case NP_MISCONF:
			message = psprintf("Redis refuses writes, as it cannot save them: %s", text);
			break;
		case NP_BUSY:
			message = psprintf("Redis is busy with a script: %s", text);
			break;
		case NP_NOPERM:
			message = psprintf("Redis does not let the user do this: %s", text);
			break;
		case NP_STATE_KEY:
			message = psprintf("the key \"%sstate\" in Redis is no hash of evstream's",
							   setting_redis_prefix);
			break;
		case NP_COUNT:
			break;
		default:
			message = psprintf("Redis answers with an error: %s", text);
			break;
	}
	for (int i = 0; i < (int) lengthof(faults); i++)
	{
		if (faults[i] != now)
			notifier_problem(faults[i], NULL);
	}
	if (message != NULL)
	{
		status_error(message);
		notifier_problem(now, message);
		pfree(message);
	}
}

void
link_close(void)
{
	redis_close(notifier.client);
	notifier.client = NULL;
	notifier.checked = false;
}

/* Notes a fault; closes the connection where another one may be better. */
static RedisStatus
fault(RedisStatus status, const char *text)
{
	char copy[REDIS_ERROR_SIZE];

	strlcpy(copy, text ? text : "", sizeof(copy));
	redis_clean_text(copy); /* which may have cut a character in two */
	switch (status)
	{
		case RSTATUS_OOM:
		case RSTATUS_MISCONF:
		case RSTATUS_BUSY:
		case RSTATUS_LOADING:
		case RSTATUS_NOPERM:
		case RSTATUS_WRONGTYPE:
		case RSTATUS_NOSCRIPT:
			break;
		default:
			link_close();
	}
	if (status != RSTATUS_NOSCRIPT)
		tell(status, copy);
	return status;
}

/* ---- waiting ---- */

/*
 * Goes on with the connection until something has arrived, or until the time.
 * Serves signals and takes notifications over meanwhile.
 */
static RedisStatus
advance(int64 until)
{
	RedisStatus status = redis_advance(notifier.client);
	int64 now;

	if (status != RSTATUS_OK)
		return fault(status, redis_error(notifier.client));
	now = clock_us();
	if (now >= until)
		return fault(RSTATUS_AWAY, redis_is_ready(notifier.client)
									   ? "no answer within the time"
									   : "no connection within the time");
	/* an answer mostly comes at once, and nothing else is done before it */
	if (redis_wants_write(notifier.client) ||
		!worker_pause(redis_fd(notifier.client), Min((until - now) / 1000 + 1, ANSWER_MS)))
		(void) worker_wait_for(redis_fd(notifier.client), redis_wants_write(notifier.client),
							   (long) ((until - now) / 1000) + 1);
	listen_process();
	status = redis_advance(notifier.client);
	if (status != RSTATUS_OK)
		return fault(status, redis_error(notifier.client));
	return RSTATUS_OK;
}

bool
link_connect(void)
{
	RedisConf conf = {0};
	char error[REDIS_ERROR_SIZE];
	RedisStatus status;
	int64 until;

	if (notifier.client != NULL)
		return true;
	if (setting_redis_fault() != NULL)
	{
		(void) fault(RSTATUS_CONFIG, setting_redis_fault());
		return false;
	}
	conf.url = setting_redis_url;
	conf.user = setting_secret("redis_user");
	conf.password = setting_secret("redis_password");
	conf.ca = setting_secret("redis_ca");
	notifier.client = redis_open(&conf, &status, error);
	notifier.checked = false;
	if (notifier.client == NULL)
	{
		(void) fault(status, error);
		return false;
	}
	until = clock_us() + LINK_LOOKUP_MS * INT64CONST(1000);
	while (redis_is_looking_up(notifier.client))
	{
		if (advance(until) != RSTATUS_OK)
			return false;
	}
	until = clock_us() + LINK_CONNECT_MS * INT64CONST(1000);
	while (!redis_is_ready(notifier.client))
	{
		if (advance(until) != RSTATUS_OK)
			return false;
	}
	return true;
}

bool
link_alive(void)
{
	RedisStatus status;

	if (notifier.client == NULL)
		return false;
	status = redis_advance(notifier.client);
	if (status == RSTATUS_OK)
		return true;
	(void) fault(status, redis_error(notifier.client));
	return false;
}

/* The next reply, or NULL and what is wrong in *status. */
static RedisReply *
wait_for_reply(int64 until, RedisStatus *status)
{
	*status = RSTATUS_OK;
	for (;;)
	{
		RedisReply *reply = redis_reply(notifier.client);

		if (reply != NULL)
			return reply;
		*status = advance(until);
		if (*status != RSTATUS_OK)
			return NULL;
	}
}

/* ---- calls ---- */

static RedisStatus
call_begin(int argc, const char **argv, const size_t *lens, long timeout_ms, int64 *until)
{
	RedisStatus status;

	*until = clock_us() + timeout_ms * INT64CONST(1000);
	if (!redis_command(notifier.client, argc, argv, lens))
		return fault(RSTATUS_FAILED, "out of memory");
	status = redis_advance(notifier.client);
	return status == RSTATUS_OK ? status : fault(status, redis_error(notifier.client));
}

static RedisStatus
call_end(int64 until, RedisReply **reply)
{
	RedisStatus status;

	*reply = wait_for_reply(until, &status);
	if (*reply == NULL)
		return status;
	status = redis_reply_status(*reply);
	if (status != RSTATUS_OK)
	{
		(void) fault(status, redis_reply_text(*reply, NULL));
		redis_reply_free(*reply);
		*reply = NULL;
		return status;
	}
	answered();
	return RSTATUS_OK;
}

RedisStatus
link_call(int argc, const char **argv, const size_t *lens, long timeout_ms, RedisReply **reply)
{
	int64 until;
	RedisStatus status = call_begin(argc, argv, lens, timeout_ms, &until);

	*reply = NULL;
	return status == RSTATUS_OK ? call_end(until, reply) : status;
}

/* Scripts, and their SHA1 in hexadecimal, by which Redis knows them. */
static struct
{
	const char *script;
	char name[SHA1_DIGEST_LENGTH * 2 + 1];
} names[3];

void
link_name_scripts(void)
{
	const char *scripts[] = {notifier_script_send, notifier_script_anchor, notifier_script_expire};

	for (int n = 0; n < (int) lengthof(scripts); n++)
	{
		pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA1);
		uint8 digest[SHA1_DIGEST_LENGTH];

		if (context == NULL || pg_cryptohash_init(context) < 0 ||
			pg_cryptohash_update(context, (const uint8 *) scripts[n], strlen(scripts[n])) < 0 ||
			pg_cryptohash_final(context, digest, sizeof(digest)) < 0)
			elog(ERROR, "could not compute SHA1 hash");
		pg_cryptohash_free(context);
		for (int i = 0; i < SHA1_DIGEST_LENGTH; i++)
			snprintf(names[n].name + 2 * i, 3, "%02x", digest[i]);
		names[n].script = scripts[n];
	}
}

/* The call that is on its way. */
static struct
{
	const char *script;
	char nkeys[16];
	int argc;
	const char **argv;
	size_t *lens;
	long timeout_ms;
	int64 until;
} pending;

RedisStatus
link_script_begin(const char *script, int nkeys, int argc, const char **argv, const size_t *lens,
				  long timeout_ms)
{
	int n = 0;
	RedisStatus status;

	while (n < (int) lengthof(names) - 1 && names[n].script != script)
		n++;
	pending.script = script;
	pending.timeout_ms = timeout_ms;
	pending.argc = argc + 3;
	pending.argv = MemoryContextAllocHuge(CurrentMemoryContext, pending.argc * sizeof(char *));
	pending.lens = MemoryContextAllocHuge(CurrentMemoryContext, pending.argc * sizeof(size_t));
	snprintf(pending.nkeys, sizeof(pending.nkeys), "%d", nkeys);
	pending.argv[0] = "EVALSHA";
	pending.argv[1] = names[n].name;
	pending.argv[2] = pending.nkeys;
	memcpy(pending.argv + 3, argv, argc * sizeof(char *));
	for (int i = 0; i < pending.argc; i++)
		pending.lens[i] = lens && i >= 3 ? lens[i - 3] : strlen(pending.argv[i]);

	status = call_begin(pending.argc, pending.argv, pending.lens, timeout_ms, &pending.until);
	/* Redis has to have all of it before it begins */
	while (status == RSTATUS_OK && redis_wants_write(notifier.client))
		status = advance(pending.until);
	return status;
}

RedisStatus
link_script_end(RedisReply **reply)
{
	RedisStatus status = RSTATUS_OK;

	*reply = NULL;
	/* the answer may have come in time, while we were busy */
	if (clock_us() >= pending.until)
		status = redis_advance(notifier.client);
	if (status != RSTATUS_OK)
		return fault(status, redis_error(notifier.client));
	status = call_end(pending.until, reply);
	if (status == RSTATUS_NOSCRIPT)
	{
		pending.argv[0] = "EVAL";
		pending.argv[1] = pending.script;
		pending.lens[0] = strlen(pending.argv[0]);
		pending.lens[1] = strlen(pending.argv[1]);
		status = link_call(pending.argc, pending.argv, pending.lens, pending.timeout_ms, reply);
	}
	pfree(pending.argv);
	pfree(pending.lens);
	if (status == RSTATUS_OK)
		tell(RSTATUS_OK, NULL);
	return status;
}

RedisStatus
link_script(const char *script, int nkeys, int argc, const char **argv, const size_t *lens,
			long timeout_ms, RedisReply **reply)
{
	RedisStatus status = link_script_begin(script, nkeys, argc, argv, lens, timeout_ms);

	*reply = NULL;
	return status == RSTATUS_OK ? link_script_end(reply) : status;
}

/* ---- notifications ---- */

/* How many were dropped, as they waited too long: said until the next start. */
static void
look_at_dropped(void)
{
	static int64 told = 0;
	int64 dropped = listen_dropped();
	char *message;

	if (dropped == told)
		return;
	told = dropped;
	message =
		psprintf(INT64_FORMAT " notifications were dropped, as more than %d MB waited for Redis",
				 dropped, LISTEN_MAX_BYTES / (1024 * 1024));
	notifier_problem(NP_DROPPED, message);
	pfree(message);
}

bool
link_forward(void)
{
	const char *channel;
	const char *payload;
	size_t len;

	look_at_dropped();
	while (listen_take(&channel, &payload, &len))
	{
		int count = 0;
		Size bytes = 0;
		char error[REDIS_ERROR_SIZE] = "";
		int64 until;

		do
		{
			char *name = notifier_name("pg:", channel);
			const char *argv[] = {"PUBLISH", name, payload};
			size_t lens[] = {7, strlen(name), len};
			bool queued = redis_command(notifier.client, 3, argv, lens);

			pfree(name);
			if (!queued)
			{
				(void) fault(RSTATUS_FAILED, "out of memory");
				return false;
			}
			count++;
			bytes += len;
			listen_done();
		} while (count < FORWARD_COUNT && bytes < FORWARD_BYTES &&
				 listen_take(&channel, &payload, &len));

		until = clock_us() + LINK_COMMAND_MS * INT64CONST(1000);
		for (int i = 0; i < count; i++)
		{
			RedisStatus status;
			RedisReply *reply = wait_for_reply(until, &status);

			if (reply == NULL)
				return false;
			if (redis_reply_status(reply) != RSTATUS_OK)
			{
				strlcpy(error, redis_reply_text(reply, NULL), sizeof(error));
				redis_clean_text(error);
			}
			redis_reply_free(reply);
		}
		if (error[0] != '\0')
		{
			char *message = psprintf("Redis refuses to publish notifications: %s", error);

			notifier_problem(NP_BRIDGE, message);
			pfree(message);
		}
		else
			notifier_problem(NP_BRIDGE, NULL);
		worker_check();
	}
	return true;
}
