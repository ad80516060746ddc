/*-------------------------------------------------------------------------
 *
 * notifier_send.c
 *	  Chunks and expiry on their way to Redis.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "notifier.h"
#include "redis_answer.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* More time for a call that does more, in deliveries for each two seconds */
#define DELIVERIES_PER_TIMEOUT 2500

/* Subscribers that are set aside: so many are remembered, and named */
#define ASIDE_KNOWN 100
#define ASIDE_NAMED 3
#define ASIDE_KEY   "its key holds"

#define EXPIRY_EVERY (5 * USECS_PER_SEC)
#define EXPIRY_ROWS  100

static int64 failed_publications; /* in a row of chunks */

char *
notifier_name(const char *kind, const char *rest)
{
	return psprintf("%s%s%s", setting_redis_prefix, kind, rest);
}

/* Milliseconds; it never goes back, also where the clock does. */
static int64
least_epoch(void)
{
	static int64 least = 0;
	int64 now = (GetCurrentTimestamp() + UNIX_EPOCH_OFFSET_US) / 1000;

	least = Max(Max(least, now), notifier.mirrored_epoch + 1);
	return least;
}

/* ---- what the script has said ---- */

typedef struct Aside
{
	char *subscriber;
	char *why;
} Aside;

static Aside asides[ASIDE_KNOWN];
static int nasides = 0;

static void
drop_aside(int i)
{
	pfree(asides[i].subscriber);
	pfree(asides[i].why);
	asides[i] = asides[--nasides];
}

/* Tells health who is set aside, a few of them by name. */
static void
tell_asides(void)
{
	StringInfoData message;

	if (nasides == 0)
	{
		notifier_problem(NP_ASIDE, NULL);
		return;
	}
	initStringInfo(&message);
	appendStringInfoString(&message, "streams that cannot be written to are passed over: ");
	for (int i = 0; i < Min(nasides, ASIDE_NAMED); i++)
		appendStringInfo(&message, "%s\"%s\" (%s)", i > 0 ? ", " : "", asides[i].subscriber,
						 asides[i].why);
	if (nasides > ASIDE_NAMED)
		appendStringInfo(&message, " and %d more", nasides - ASIDE_NAMED);
	notifier_problem(NP_ASIDE, message.data);
	pfree(message.data);
}

/* Of the subscribers of a chunk, those that were set aside, and no others. */
static void
look_at_asides(const RedisReply *reply, const RedisSent *sent, const NotifierChunk *chunk)
{
	bool changed = false;

	if (nasides == 0 && sent->nasides == 0)
		return;
	for (int i = nasides - 1; i >= 0; i--)
	{
		for (int k = 0; k < chunk->nsubscribers; k++)
		{
			if (strcmp(chunk->subscribers[k], asides[i].subscriber) == 0)
			{
				drop_aside(i);
				changed = true;
				break;
			}
		}
	}
	for (size_t i = 0; i < sent->nasides && nasides < ASIDE_KNOWN; i++)
	{
		const char *subscriber;
		const char *why;

		if (!redis_answer_aside(reply, i, &subscriber, &why))
			continue;
		asides[nasides].subscriber = MemoryContextStrdup(notifier.context, subscriber);
		asides[nasides].why = MemoryContextStrdup(notifier.context, why);
		redis_clean_text(asides[nasides++].why);
		changed = true;
	}
	if (changed)
		tell_asides();
}

void
send_look_at_asides(void)
{
	bool changed = false;

	for (int i = nasides - 1; i >= 0; i--)
	{
		char *key;
		const char *args[2] = {"TYPE"};
		RedisReply *reply;
		const char *type;

		if (strncmp(asides[i].why, ASIDE_KEY, strlen(ASIDE_KEY)) != 0)
			continue;
		args[1] = key = notifier_name("stream:", asides[i].subscriber);
		if (notifier.client == NULL ||
			link_call(2, args, NULL, LINK_COMMAND_MS, &reply) != RSTATUS_OK)
		{
			pfree(key);
			break;
		}
		type = redis_reply_text(reply, NULL);
		if (type != NULL && (strcmp(type, "none") == 0 || strcmp(type, "stream") == 0))
		{
			drop_aside(i);
			changed = true;
		}
		redis_reply_free(reply);
		pfree(key);
	}
	if (changed)
		tell_asides();
}

static void
look_at_publications(const RedisSent *sent, const NotifierChunk *chunk)
{
	char *message;

	if (sent->unpublished == 0)
	{
		if (chunk->nevents > 0 && failed_publications > 0)
		{
			failed_publications = 0;
			notifier_problem(NP_PUBLISH, NULL);
		}
		return;
	}
	failed_publications += sent->unpublished;
	message = psprintf("Redis refuses to publish, streams go on: %s", sent->why);
	redis_clean_text(message);
	notifier_problem(NP_PUBLISH, message);
	pfree(message);
}

/* ---- chunks ---- */

static const char **argv;
static size_t *lens;
static int argc;

static void
add_arg(const char *text, size_t len)
{
	argv[argc] = text;
	lens[argc++] = len;
}

static void
add_text(const char *text)
{
	add_arg(text, strlen(text));
}

static void
add_number(int64 number)
{
	add_text(psprintf(INT64_FORMAT, number));
}

static void
begin_args(int64 count)
{
	argv = MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(char *));
	lens = MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(size_t));
	argc = 0;
}

/* For each subscriber the numbers of its events, from 1, ascending, of two bytes. */
static void
add_lists(const NotifierChunk *chunk)
{
	int64 *ends = palloc0(Max(1, chunk->nsubscribers) * sizeof(int64)); /* of its part of events */
	uint16 *events =
		MemoryContextAllocHuge(CurrentMemoryContext, Max(1, chunk->ndeliveries) * sizeof(uint16));
	int64 from = 0;

	StaticAssertStmt(CHUNK_EVENTS < PG_UINT16_MAX, "an event's number needs more than two bytes");

	for (int64 i = 0; i < chunk->ndeliveries; i++)
		ends[chunk->deliveries[i].subscriber]++;
	for (int s = 0; s < chunk->nsubscribers; s++)
	{
		int64 count = ends[s];

		ends[s] = from;
		from += count;
	}
	for (int64 i = 0; i < chunk->ndeliveries; i++)
		events[ends[chunk->deliveries[i].subscriber]++] =
			pg_hton16((uint16) (chunk->deliveries[i].event + 1));
	from = 0;
	for (int s = 0; s < chunk->nsubscribers; s++)
	{
		add_arg((const char *) (events + from), (ends[s] - from) * sizeof(uint16));
		from = ends[s];
	}
	pfree(ends);
}

static void
build_args(const NotifierChunk *chunk)
{
	const char *prefix = notifier_name("stream:", "");

	begin_args(9 + 3 * (int64) chunk->nparts + (int64) chunk->nevents +
			   2 * (int64) chunk->nsubscribers);
	add_text(notifier_name("state", ""));
	for (int i = 0; i < chunk->nsubscribers; i++)
		add_text(psprintf("%s%s", prefix, chunk->subscribers[i]));
	add_text(notifier.owner.mark);
	add_number(least_epoch());
	add_number(setting_stream_maxlen);
	add_number(strlen(prefix) + 1);
	add_text(notifier_name("notify:", ""));
	add_text(setting_publish_all ? notifier_name("events", "") : "");
	add_number(chunk->nevents);
	add_number(chunk->nparts);
	for (int i = 0; i < chunk->nparts; i++)
	{
		const NotifierPartition *part = chunk->parts[i].part;

		add_text(psprintf("c:%d:%d", part->log_id, part->partition));
		add_text(part->sent);
		add_text(chunk->parts[i].cursor);
	}
	for (int i = 0; i < chunk->nevents; i++)
		add_arg(chunk->events[i].data, chunk->events[i].len);
	add_lists(chunk);
}

bool
send_chunk_begin(NotifierChunk *chunk)
{
	MemoryContext old = MemoryContextSwitchTo(chunk->context);
	RedisStatus status;

	/*
	 * Consumers commit asynchronously: a crash must not take back what is sent.
	 * Filters were committed before the batches that saw them.
	 */
	XLogFlush(chunk->logged);

	for (int i = 0; i < chunk->nparts; i++)
	{
		NotifierPart *p = &chunk->parts[i];

		cursor_format(&p->after.cursor, p->cursor);
		status_notifying(p->part->log_id, p->part->partition, p->after.cursor.received_at);
	}
	build_args(chunk);
	status = link_script_begin(notifier_script_send, 1 + chunk->nsubscribers, argc, argv, lens,
							   LINK_COMMAND_MS *
								   (1 + (long) (chunk->ndeliveries / DELIVERIES_PER_TIMEOUT)));
	MemoryContextSwitchTo(old);
	if (status == RSTATUS_OK)
		return true;
	/* what came of it is asked for */
	cursor_doubt();
	return false;
}

bool
send_chunk_end(NotifierChunk *chunk)
{
	MemoryContext old = MemoryContextSwitchTo(chunk->context);
	RedisReply *reply;
	RedisStatus status = link_script_end(&reply);
	RedisSent sent;
	bool done;

	MemoryContextSwitchTo(old);
	if (status != RSTATUS_OK)
	{
		cursor_doubt();
		return false;
	}
	done = redis_answer_is_ok(reply);
	if (done)
	{
		redis_answer_sent(reply, &sent);
		notifier.epoch = Max(notifier.epoch, sent.epoch);
		for (int i = 0; i < chunk->nparts; i++)
		{
			NotifierPart *p = &chunk->parts[i];

			p->part->place = p->after;
			strlcpy(p->part->sent, p->cursor, sizeof(p->part->sent));
			status_notified(p->part->log_id, p->part->partition, p->after.passed_at);
		}
		status_count(chunk->nread, 1);
		look_at_asides(reply, &sent, chunk);
		look_at_publications(&sent, chunk);
	}
	else
		cursor_doubt();
	redis_reply_free(reply);
	return done;
}

/* ---- expiry ---- */

typedef struct ExpiryUnit
{
	int n;
	char *subscribers[EXPIRY_ROWS];
	bool expires[EXPIRY_ROWS]; /* the stream is there */
} ExpiryUnit;

/*
 * Those without filters, as far as all batches that may have seen some were
 * sent; and those whose streams should have gone.
 */
static void
find_former_unit(void *arg)
{
	ExpiryUnit *unit = arg;
	MemoryContext old;
	uint64 n;

	unit->n = 0;
	sql_execute("DELETE FROM evstream.former_subscribers f"
				" WHERE EXISTS (SELECT FROM evstream.filters v"
				"  WHERE v.subscriber_id = f.subscriber_id AND v.ended_xid IS NULL)",
				0, NULL, NULL, NULL, SPI_OK_DELETE);
	n = sql_execute(
		"SELECT f.subscriber_id::pg_catalog.text FROM evstream.former_subscribers f"
		" WHERE f.expires_at < pg_catalog.now() OR f.expires_at IS NULL"
		"  AND pg_catalog.pg_visible_in_snapshot(f.ended_xid, pg_catalog.pg_current_snapshot())"
		"  AND NOT EXISTS (SELECT FROM evstream.batch_log b"
		"   LEFT JOIN evstream.notifier_cursors c USING (log_id, log_partition)"
		"   WHERE (c.passed_at IS NULL OR b.last_received_at > c.passed_at)"
		"    AND NOT pg_catalog.pg_visible_in_snapshot(f.ended_xid, b.snapshot))"
		" LIMIT " CppAsString2(EXPIRY_ROWS),
		0, NULL, NULL, NULL, SPI_OK_SELECT);
	old = MemoryContextSwitchTo(notifier.scratch);
	for (uint64 row = 0; row < n; row++)
		unit->subscribers[unit->n++] = TextDatumGetCString(sql_column(row, 1, NULL));
	MemoryContextSwitchTo(old);
}

static void
note_former_unit(void *arg)
{
	ExpiryUnit *unit = arg;
	Oid types[] = {TEXTOID, INT8OID};

	for (int i = 0; i < unit->n; i++)
	{
		Datum values[] = {CStringGetTextDatum(unit->subscribers[i]),
						  Int64GetDatum(setting_interval_us(setting_stream_ttl))};

		if (unit->expires[i])
			sql_execute("UPDATE evstream.former_subscribers SET expires_at = pg_catalog.now()"
						" + $2 * interval '1 microsecond' WHERE subscriber_id = $1",
						2, types, values, NULL, SPI_OK_UPDATE);
		else
			sql_execute("DELETE FROM evstream.former_subscribers WHERE subscriber_id = $1", 1,
						types, values, NULL, SPI_OK_DELETE);
	}
}

void
send_expiry(void)
{
	static int64 last = 0;
	int64 now = clock_us();
	ExpiryUnit unit;
	RedisReply *reply;
	MemoryContext old;

	if (now >= last && now < last + EXPIRY_EVERY)
		return;
	last = now;
	MemoryContextReset(notifier.scratch);
	if (!worker_run("looking for former subscribers", find_former_unit, &unit, NULL) || unit.n == 0)
		return;
	/* as the mark is in the tables only when it is flushed, a crash may do it twice */
	old = MemoryContextSwitchTo(notifier.scratch);
	begin_args(3 + 2 * unit.n);
	add_text(notifier_name("state", ""));
	for (int i = 0; i < unit.n; i++)
		add_text(notifier_name("stream:", unit.subscribers[i]));
	add_text(notifier.owner.mark);
	add_number(setting_interval_us(setting_stream_ttl) / 1000);
	for (int i = 0; i < unit.n; i++)
		add_text(unit.subscribers[i]);
	if (link_script(notifier_script_expire, 1 + unit.n, argc, argv, lens, LINK_COMMAND_MS,
					&reply) == RSTATUS_OK)
	{
		if (redis_answer_is_ok(reply))
		{
			for (int i = 0; i < unit.n; i++)
				unit.expires[i] = redis_reply_integer(redis_reply_at(reply, i + 1)) != 0;
			(void) worker_run("noting streams that expire", note_former_unit, &unit, NULL);
		}
		else
			cursor_doubt();
		redis_reply_free(reply);
	}
	MemoryContextSwitchTo(old);
}
