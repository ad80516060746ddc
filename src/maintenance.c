/*-------------------------------------------------------------------------
 *
 * maintenance.c
 *	  The maintenance worker: partitions, retention, rotation, batch log.
 *
 * Every turn is a number of small units of work, each in a transaction of its
 * own; one that fails does not keep the others from running, and is tried
 * again at the next turn.  A database that was restored and not yet resumed is
 * left alone: the dump may still be bringing partitions and rows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "dedupe.h"
#include "outbox.h"
#include "partition.h"
#include "segment_filter.h"
#include "settings.h"
#include "status.h"
#include "worker.h"

#define TURN_MS         10000L /* as long as nothing fails */
#define FAILED_TURN_MS  2000L
#define RETENTION_EVERY USECS_PER_MINUTE
#define STATS_EVERY     USECS_PER_HOUR   /* reads the default leaves */
#define DROP_WAIT_MIN   USECS_PER_MINUTE /* after a drop that could not lock */
#define DROP_WAIT_MAX   USECS_PER_HOUR

#define DAYS_AHEAD       2
#define CHUNK_ROWS       10000 /* deleted in one transaction */
#define CHUNKS_PER_TURN  20
#define FILTERS_PER_TURN 10
#define COUNTED_LETTERS  10000 /* so many dead letters are counted at each turn */

PGDLLEXPORT void evstream_maintenance_main(Datum main_arg);

/* What a unit of work is told, and tells. */
typedef struct Turn
{
	TimestampTz now;
	int64 at;               /* the same by clock_us() */
	DateADT today;          /* UTC */
	bool restored;          /* out of look_around() */
	char name[NAMEDATALEN]; /* of a leaf, in or out */
	bool found;             /* there was one */
	bool done;
	PartitionStats stats;
	DateADT before;
	uint64 ndeleted;
} Turn;

/* Drops of leaves of one table are put off when somebody uses it. */
typedef struct Drops
{
	int64 next; /* by clock_us() */
	int64 wait;
} Drops;

static Drops events_drops;
static Drops daily_drops;
static Drops ids_drops;

/* The leaf of events whose days are in evstream.unstored_days. */
static char recorded[NAMEDATALEN] = "";

static uint64
execute(const char *command, int nargs, Oid *types, Datum *values)
{
	int ret = SPI_execute_with_args(command, nargs, types, values, NULL, false, 0);

	if (ret < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(ret));
	return SPI_processed;
}

/* Column 1 of the only row, or the given value where it is null or missing. */
static Datum
first_value(Datum otherwise)
{
	bool isnull = true;
	Datum value = (Datum) 0;

	if (SPI_processed > 0)
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? otherwise : value;
}

/* ---- start and change of day ---- */

/*
 * Restored?  And takes the setting time_zone as the zone of the stats, where it
 * has changed; consumers wait for that.
 */
static void
look_around(void *arg)
{
	Turn *turn = arg;
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(setting_time_zone)};

	turn->restored = execute("SELECT FROM evstream.restored", 0, NULL, NULL) > 0;
	if (turn->restored ||
		execute("SELECT FROM evstream.state WHERE time_zone <> $1", 1, types, values) == 0)
		return;
	execute("UPDATE evstream.state SET time_zone = $1, rebuilt = '{}',"
			" rebuild_needed = rebuild_needed OR EXISTS (SELECT FROM evstream.daily_totals)"
			" WHERE time_zone <> $1",
			1, types, values);
}

static void
adopt(void *arg)
{
	Turn *turn = arg;
	char after[NAMEDATALEN];

	strlcpy(after, turn->name, sizeof(after));
	turn->found = partition_adopt_next(after, turn->name);
}

static void
ensure_events(void *arg)
{
	Turn *turn = arg;

	for (int n = 0; n <= DAYS_AHEAD; n++)
		partition_ensure_events(turn->now + n * USECS_PER_DAY);
}

static void
ensure_months(void *arg)
{
	Turn *turn = arg;

	turn->done = partition_ensure_months(turn->today);
}

static bool
prepare(Turn *turn)
{
	bool ok = true;

	/* a table that cannot be attached is passed over, and named in the log */
	turn->name[0] = '\0';
	do
	{
		char last[NAMEDATALEN];

		strlcpy(last, turn->name, sizeof(last));
		turn->found = false;
		if (!worker_run("adopting partitions", adopt, turn, NULL))
		{
			ok = false;
			turn->found = strcmp(last, turn->name) != 0;
		}
	} while (turn->found);

	ok &= worker_run("making partitions of events", ensure_events, turn, NULL);
	return ok;
}

/* ---- drops ---- */

static void
drop_leaf(void *arg)
{
	Turn *turn = arg;

	turn->done = partition_drop(turn->name);
}

/* May a drop be tried? */
static bool
drops_due(const Drops *drops, const Turn *turn)
{
	return turn->at >= drops->next;
}

/* Notes how a drop went; true if it may go on with the next leaf. */
static bool
drops_note(Drops *drops, const Turn *turn, bool committed)
{
	if (committed && turn->done)
	{
		drops->wait = 0;
		return true;
	}
	drops->wait = drops->wait == 0 ? DROP_WAIT_MIN : Min(drops->wait * 2, DROP_WAIT_MAX);
	drops->next = turn->at + drops->wait;
	elog(DEBUG1, "evstream.%s is in use, and will be dropped later", turn->name);
	return false;
}

static void
find_events(void *arg)
{
	Turn *turn = arg;
	int64 kept = setting_interval_us(setting_retention);

	/* the whole day has to be older */
	turn->found = kept >= 0 && partition_oldest_events(partition_day(turn->now - kept), turn->name);
}

static void
record_days(void *arg)
{
	partition_record_days(((Turn *) arg)->name);
}

static void
drop_events(void *arg)
{
	Turn *turn = arg;

	drop_leaf(turn);
	if (turn->done)
		partition_give_up_days(turn->name, false);
}

static bool
drop_expired_events(Turn *turn)
{
	while (drops_due(&events_drops, turn))
	{
		turn->found = false;
		if (!worker_run("looking for expired events", find_events, turn, NULL))
			return false;
		if (!turn->found)
		{
			/* it may get events again before it expires */
			recorded[0] = '\0';
			break;
		}

		/* reads all of it, so before the locks, and once */
		if (strcmp(recorded, turn->name) != 0)
		{
			if (!worker_run("recording the days of expired events", record_days, turn, NULL))
				return false;
			strlcpy(recorded, turn->name, sizeof(recorded));
		}
		if (!drops_note(&events_drops, turn,
						worker_run("dropping expired events", drop_events, turn, NULL)))
			break;
	}
	return true;
}

/* The first day of the oldest month of stats that is kept, into turn->before. */
static void
find_stats_limit(void *arg)
{
	Turn *turn = arg;
	int64 kept = setting_interval_us(setting_stats_retention);
	Oid types[] = {TIMESTAMPTZOID};
	Datum values[] = {TimestampTzGetDatum(turn->now - Max(kept, 0))};

	turn->found =
		kept >= 0 &&
		execute(
			"SELECT pg_catalog.date_trunc('month', evstream.day_of($1, time_zone)::timestamp)::date"
			" FROM evstream.state",
			1, types, values) > 0;
	if (turn->found)
		turn->before = DatumGetDateADT(first_value((Datum) 0));
}

static void
find_month(void *arg)
{
	Turn *turn = arg;

	turn->found = partition_oldest_month(turn->stats, turn->before, turn->name);
}

static const char *const stats_deletes[] = {
	"DELETE FROM evstream.daily_counts_default WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM evstream.daily_counts_default WHERE day < $1 LIMIT $2))",
	"DELETE FROM evstream.daily_items_default WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM evstream.daily_items_default WHERE day < $1 LIMIT $2))",
	"DELETE FROM evstream.daily_totals WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM evstream.daily_totals WHERE day < $1 LIMIT $2))",
};

typedef struct StatsDelete
{
	const char *command;
	DateADT before;
	uint64 ndeleted;
} StatsDelete;

static void
delete_stats(void *arg)
{
	StatsDelete *chunk = arg;
	Oid types[] = {DATEOID, INT8OID};
	Datum values[] = {DateADTGetDatum(chunk->before), Int64GetDatum(CHUNK_ROWS)};

	chunk->ndeleted = execute(chunk->command, 2, types, values);
}

/* Drops months; the rows of the default leaves only if told to. */
static bool
drop_expired_stats(Turn *turn, bool defaults)
{
	turn->found = false;
	if (!worker_run("looking for expired stats", find_stats_limit, turn, NULL))
		return false;
	if (!turn->found)
		return true;

	for (turn->stats = PARTITION_COUNTS; turn->stats <= PARTITION_ITEMS; turn->stats++)
	{
		while (drops_due(&daily_drops, turn))
		{
			turn->found = false;
			if (!worker_run("looking for expired stats", find_month, turn, NULL))
				return false;
			if (!turn->found ||
				!drops_note(&daily_drops, turn,
							worker_run("dropping expired stats", drop_leaf, turn, NULL)))
				break;
		}
	}

	for (int i = 0; defaults && i < lengthof(stats_deletes); i++)
	{
		StatsDelete chunk = {stats_deletes[i], turn->before, 0};

		do
		{
			chunk.ndeleted = 0;
			if (!worker_run("deleting expired stats", delete_stats, &chunk, NULL))
				return false;
			worker_check();
		} while (chunk.ndeleted == CHUNK_ROWS);
	}
	return true;
}

/*
 * An id segment is dropped when more than the window's days with events have
 * passed since its last one, and no event waits that may be tracked from before
 * its end: its duplicate may still come.
 */
static void
find_segment(void *arg)
{
	Turn *turn = arg;
	int64 window = setting_interval_us(setting_dedup_window);
	Oid types[] = {INT8OID};
	Datum values[] = {Int64GetDatum((window + USECS_PER_DAY - 1) / USECS_PER_DAY)};

	turn->found =
		window >= 0 &&
		execute("SELECT s.segment_id FROM evstream.id_segments s"
				" WHERE s.closed_at IS NOT NULL AND s.last_day IS NOT NULL"
				" AND (SELECT count(*) FROM evstream.received_days r WHERE r.day > s.last_day) > $1"
				" AND s.closed_at <= ALL (ARRAY["
				"  COALESCE((SELECT o.tracked_at FROM evstream.outbox_0 o ORDER BY o.xid, o.id "
				"LIMIT 1), 'infinity'),"
				"  COALESCE((SELECT o.tracked_at FROM evstream.outbox_1 o ORDER BY o.xid, o.id "
				"LIMIT 1), 'infinity'),"
				"  COALESCE((SELECT o.tracked_at FROM evstream.outbox_2 o ORDER BY o.xid, o.id "
				"LIMIT 1), 'infinity')])"
				" ORDER BY s.segment_id LIMIT 1",
				1, types, values) > 0;
	if (turn->found)
		snprintf(turn->name, sizeof(turn->name), "ids_%d", DatumGetInt32(first_value((Datum) 0)));
}

static void
drop_segment(void *arg)
{
	Turn *turn = arg;
	Oid types[] = {INT4OID};
	Datum values[] = {Int32GetDatum(atoi(turn->name + strlen("ids_")))};

	turn->done = partition_drop(turn->name);
	if (!turn->done)
		return;
	execute("DELETE FROM evstream.id_segments WHERE segment_id = $1", 1, types, values);
	segment_filter_forget();
}

/* Days of no segment, but for as many of the newest as the window may ask for. */
static void
prune_days(void *arg)
{
	int64 window = Max(setting_interval_us(setting_dedup_window), 0);
	Oid types[] = {INT8OID};
	Datum values[] = {Int64GetDatum((window + USECS_PER_DAY - 1) / USECS_PER_DAY)};

	execute("DELETE FROM evstream.received_days"
			" WHERE day < (SELECT r.day FROM evstream.received_days r ORDER BY r.day DESC OFFSET "
			"$1 + 1 LIMIT 1)"
			" AND NOT EXISTS (SELECT FROM evstream.id_segments s WHERE s.last_day <= "
			"received_days.day)",
			1, types, values);
}

static bool
drop_expired_ids(Turn *turn)
{
	while (drops_due(&ids_drops, turn))
	{
		turn->found = false;
		if (!worker_run("looking for expired ids", find_segment, turn, NULL))
			return false;
		if (!turn->found)
			break;
		if (!drops_note(&ids_drops, turn,
						worker_run("dropping expired ids", drop_segment, turn, NULL)))
			break;
	}
	return worker_run("pruning received days", prune_days, turn, NULL);
}

/* Each takes a fraction of a second: more at the next turn. */
static bool
keep_id_filters(void)
{
	bool ok = true;
	bool kept = true;

	for (int i = 0; i < FILTERS_PER_TURN && ok && kept; i++)
		ok = worker_run("keeping the filter of a segment of ids", dedupe_keep_filter, &kept, NULL);
	return ok;
}

/* ---- dead letters ---- */

static void
delete_dead_letters(void *arg)
{
	Turn *turn = arg;
	int64 kept = setting_interval_us(setting_dead_letter_retention);
	Oid types[] = {TIMESTAMPTZOID, INT8OID};
	Datum values[] = {TimestampTzGetDatum(turn->now - Max(kept, 0)), Int64GetDatum(CHUNK_ROWS)};

	turn->ndeleted = kept < 0 ? 0
							  : execute("DELETE FROM evstream.dead_letters WHERE ctid = ANY (ARRAY("
										"SELECT ctid FROM evstream.dead_letters WHERE received_at "
										"< $1 ORDER BY received_at LIMIT $2))",
										2, types, values);
}

static bool
drop_expired_dead_letters(Turn *turn)
{
	for (int i = 0; i < CHUNKS_PER_TURN; i++)
	{
		turn->ndeleted = 0;
		if (!worker_run("deleting expired dead letters", delete_dead_letters, turn, NULL))
			return false;
		if (turn->ndeleted == 0)
			break;
		status_dead_letters_add(MyDatabaseId, -(int64) turn->ndeleted);
		worker_check();
	}
	return true;
}

static void
count_dead_letters(void *arg)
{
	int64 *count = arg;
	Oid types[] = {INT8OID};
	Datum values[] = {Int64GetDatum((int64) setting_dead_letter_limit + 1)};

	execute("SELECT count(*) FROM (SELECT FROM evstream.dead_letters LIMIT $1) d", 1, types,
			values);
	*count = DatumGetInt64(first_value(Int64GetDatum(0)));
}

/*
 * The workers add up dead letters without looking at what was retried or
 * discarded; near the limit that is to be known, and a few are cheaply counted,
 * so that evstream_metrics() sees them go.
 */
static bool
recount_dead_letters(void)
{
	int64 estimate = status_dead_letters(MyDatabaseId);
	int64 count = 0;

	if (estimate > COUNTED_LETTERS &&
		estimate < setting_dead_letter_limit - setting_dead_letter_limit / 100)
		return true;
	if (!worker_run("counting dead letters", count_dead_letters, &count, NULL))
		return false;
	/* what was added meanwhile may be in the count or not: an upper bound */
	status_dead_letters_counted(MyDatabaseId, estimate, count);
	return true;
}

/* ---- batch log ---- */

/*
 * Moves rows of earlier generations, and all but the newest 100 of the present
 * one, into the ranges of consumed offsets.  One statement, so that a reader of
 * both tables sees each offset in one of them.  With Redis a row waits until
 * the notifier has passed its batch.
 */
static void
merge_batch_log(void *arg)
{
	Oid types[] = {BOOLOID};
	Datum values[] = {BoolGetDatum(setting_redis_url[0] != '\0')};

	execute("WITH kept AS ("
			"  SELECT p.log_id, p.log_partition, p.generation,"
			"   (SELECT b.from_offset FROM evstream.batch_log b"
			"     WHERE b.log_id = p.log_id AND b.log_partition = p.log_partition AND b.generation "
			"= p.generation"
			"     ORDER BY b.from_offset DESC OFFSET 99 LIMIT 1) AS from_offset"
			"   FROM evstream.partitions p"
			" ), gone AS ("
			"  DELETE FROM evstream.batch_log b USING kept k"
			"   WHERE b.log_id = k.log_id AND b.log_partition = k.log_partition"
			/* the last record that was consumed stays: to know the topic again */
			"    AND (b.generation < k.generation AND EXISTS (SELECT FROM evstream.batch_log n"
			"      WHERE n.log_id = b.log_id AND n.log_partition = b.log_partition"
			"       AND (n.generation, n.from_offset) > (b.generation, b.from_offset))"
			"     OR b.generation = k.generation AND b.from_offset < k.from_offset)"
			"    AND (NOT $1 OR b.last_received_at IS NULL OR EXISTS ("
			"     SELECT FROM evstream.notifier_cursors c WHERE c.log_id = b.log_id"
			"      AND c.log_partition = b.log_partition AND c.passed_at >= b.last_received_at))"
			"   RETURNING b.log_id, b.log_partition, b.from_offset, b.to_offset"
			" ), ranges AS ("
			"  SELECT g.log_id, g.log_partition,"
			"    pg_catalog.range_agg(pg_catalog.int8range(g.from_offset, g.to_offset)) AS consumed"
			"   FROM gone g GROUP BY g.log_id, g.log_partition"
			" )"
			" UPDATE evstream.partitions p SET consumed = p.consumed + r.consumed"
			"  FROM ranges r WHERE p.log_id = r.log_id AND p.log_partition = r.log_partition",
			1, types, values);
}

/* ---- filters that have ended ---- */

#define FILTERS_EVERY (10 * USECS_PER_SEC)

static MemoryContext filters_context = NULL;
static char *filters_snapshot = NULL; /* of the last turn; NULL: none yet */

/*
 * Removes versions of filters that no batch needs any more.  The snapshot of a
 * batch may be older than its row, which is not to be seen before its commit: so
 * only those go that had ended at the last turn, and only when all transactions
 * of that time are over, so that the rows of their batches can be seen.
 */
static void
prune_filters(void *arg)
{
	Oid types[] = {TEXTOID, BOOLOID};
	Datum values[] = {(Datum) 0, BoolGetDatum(setting_redis_url[0] != '\0')};
	bool over = false;
	Datum now;

	if (filters_snapshot != NULL)
	{
		values[0] = CStringGetTextDatum(filters_snapshot);
		execute("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())"
				" >= pg_catalog.pg_snapshot_xmax($1::pg_snapshot)",
				1, types, values);
		over = DatumGetBool(first_value(BoolGetDatum(false)));
		if (!over)
			return;
		execute("DELETE FROM evstream.filters f WHERE f.ended_xid IS NOT NULL"
				" AND pg_catalog.pg_visible_in_snapshot(f.ended_xid, $1::pg_snapshot)"
				" AND (NOT $2 OR NOT EXISTS ("
				"  SELECT FROM evstream.batch_log b"
				"   LEFT JOIN evstream.notifier_cursors c USING (log_id, log_partition)"
				"   WHERE (c.passed_at IS NULL OR b.last_received_at > c.passed_at)"
				"    AND NOT pg_catalog.pg_visible_in_snapshot(f.ended_xid, b.snapshot)))",
				2, types, values);
	}
	execute("SELECT pg_catalog.pg_current_snapshot()::text", 0, NULL, NULL);
	now = first_value((Datum) 0);
	if (filters_context == NULL)
		filters_context =
			AllocSetContextCreate(TopMemoryContext, "evstream filters", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(filters_context);
	filters_snapshot = MemoryContextStrdup(filters_context, TextDatumGetCString(now));
}

/* ---- the worker ---- */

static bool
keep_retention(Turn *turn, bool defaults)
{
	bool ok = true;

	ok &= drop_expired_events(turn);
	ok &= drop_expired_stats(turn, defaults);
	ok &= drop_expired_ids(turn);
	ok &= drop_expired_dead_letters(turn);
	return ok;
}

void
evstream_maintenance_main(Datum main_arg)
{
	bool prepared = false;
	bool has_months = false;
	DateADT prepared_day = 0;
	/* by clock_us() */
	int64 next_retention = 0;
	int64 next_stats = 0;
	int64 next_filters = 0;

	worker_begin(main_arg, ROLE_MAINTENANCE);

	for (;;)
	{
		Turn turn = {.now = GetCurrentTimestamp(), .at = clock_us()};
		bool ok;

		turn.today = partition_day(turn.now);
		status_state("running");
		ok = worker_run("looking at the state", look_around, &turn, NULL);
		if (!ok || turn.restored)
		{
			/* and then from the beginning */
			prepared = false;
			status_state(turn.restored ? "paused" : "waiting");
			worker_wait(-1, ok ? TURN_MS : FAILED_TURN_MS);
			continue;
		}

		if (!prepared || turn.today != prepared_day)
		{
			prepared = prepare(&turn);
			prepared_day = turn.today;
			has_months = false;
			ok &= prepared;
		}
		if (!has_months)
		{
			ok &= worker_run("making partitions of daily stats", ensure_months, &turn, NULL);
			has_months = turn.done;
		}
		ok &= worker_run("rotating the outbox", outbox_rotate, NULL, NULL);
		ok &= worker_run("emptying the outbox", outbox_empty, NULL, NULL);
		ok &= worker_run("closing a segment of ids", dedupe_rotate, NULL, NULL);
		ok &= keep_id_filters();
		ok &= worker_run("merging the batch log", merge_batch_log, NULL, NULL);
		if (turn.at >= next_filters)
		{
			ok &= worker_run("removing old filters", prune_filters, NULL, NULL);
			next_filters = turn.at + FILTERS_EVERY;
		}
		ok &= recount_dead_letters();

		if (turn.at >= next_retention)
		{
			bool defaults = turn.at >= next_stats;

			if (keep_retention(&turn, defaults) && defaults)
				next_stats = turn.at + STATS_EVERY;
			next_retention = turn.at + RETENTION_EVERY;
		}

		status_state("idle");
		worker_wait(-1, ok ? TURN_MS : FAILED_TURN_MS);
	}
}
