# The lines track, track-batch, embedded and snapshot of scripts/bench.sh. Sourced.

# clients N DATABASE FILE SECONDS: transactions a second of N clients that run FILE.
clients()
{
	"$BINDIR/pgbench" -n -h "$TMP/run" -p "$PORT" -U postgres -M prepared -c "$1" -j 2 -T "$4" -f "$REPO/bench/$3" "$2" \
		2>"$TMP/pgbench.log" | sed -n 's/^tps = \([0-9.]*\).*/\1/p' | grep . ||
		{ cat "$TMP/pgbench.log" >&2; return 1; }
}

# What tracking takes of an application: nobody reads.  The disk has moods of a few
# seconds: short rounds, twice as many, and who is first changes.  Round 0 is not
# counted: all is cold, and the first files are made.
line_track()
{
	local run ours other seconds=$(((TRACK_SECONDS + 1) / 2))
	new_database track
	psql_in track -f "$REPO/bench/track_table.sql" -c CHECKPOINT
	for run in $(seq 0 $((2 * RUNS))); do
		[ $((run % 2)) = 0 ] || other=$(clients 8 track track_insert.sql "$seconds") || fail 'pgbench failed'
		ours=$(clients 8 track track_evstream.sql "$seconds") || fail 'pgbench failed'
		[ $((run % 2)) = 1 ] || other=$(clients 8 track track_insert.sql "$seconds") || fail 'pgbench failed'
		[ "$run" = 0 ] || measured track "$ours" "$other"
	done
	drop_database track
}

line_track_batch()
{
	local run ours other
	new_database batch
	psql_in batch -f "$REPO/bench/batch_table.sql" -c CHECKPOINT
	for run in $(seq "$RUNS"); do
		ours=$(clients 1 batch batch_evstream.sql "$TRACK_SECONDS") || fail 'pgbench failed'
		other=$(clients 1 batch batch_insert.sql "$TRACK_SECONDS") || fail 'pgbench failed'
		measured track-batch "$(awk -v n="$ours" 'BEGIN { print n * 1000 }')" "$(awk -v n="$other" 'BEGIN { print n * 1000 }')"
	done
	drop_database batch
}

counted()
{
	psql_in "$1" -c 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_totals'
}

# counting_rate DATABASE SECONDS: 8 clients track while the consumer counts: events
# counted a second, and the age of the oldest that still waits at the end, in ms.
counting_rate()
{
	local before after start end waiting
	before=$(counted "$1")
	start=$(now)
	clients 8 "$1" track_evstream.sql "$2" >/dev/null || return 1
	after=$(counted "$1")
	end=$(now)
	waiting=$(psql_in "$1" -c "SELECT COALESCE(round(1000 * extract(epoch FROM evstream.outbox_oldest_waiting())), 0)")
	awk -v n=$((after - before)) -v a="$start" -v b="$end" -v w="$waiting" 'BEGIN { printf "%.1f %d\n", n / (b - a), w }'
}

all_counted()
{
	[ "$(psql_in "$1" -c "SELECT evstream_wait('5 min')")" = t ] || fail 'the events were not counted within 5 minutes'
}

# Tracked and counted at once, beside the clients alone.
line_embedded()
{
	local run ours alone
	new_database embedded
	for run in $(seq "$RUNS"); do
		workers off
		alone=$(clients 8 embedded track_evstream.sql "$TRACK_SECONDS") || fail 'pgbench failed'
		workers on
		wait_for_workers embedded
		all_counted embedded
		read -r -a ours < <(counting_rate embedded "$SUSTAINED_SECONDS")
		[ ${#ours[@]} = 2 ] || fail 'pgbench failed'
		measured embedded "${ours[0]}" "$alone"
		measured embedded-waiting "${ours[1]}"
		all_counted embedded
	done
	drop_database embedded
}

# The same with a snapshot that is held meanwhile, beside the same without it.
line_snapshot()
{
	local run held free
	new_database snapshot
	workers on
	wait_for_workers snapshot
	counting_rate snapshot 2 >/dev/null || fail 'pgbench failed'
	for run in $(seq "$RUNS"); do
		all_counted snapshot
		PGAPPNAME=holder psql_in snapshot -c 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class; SELECT pg_sleep(3600)' >/dev/null 2>&1 &
		until [ "$(psql_in snapshot -c "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND wait_event = 'PgSleep' AND backend_xmin IS NOT NULL")" = 1 ]; do sleep 0.1; done
		read -r held _ < <(counting_rate snapshot "$TRACK_SECONDS")
		psql_in snapshot -c "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'holder'" >/dev/null
		wait "$!" || true
		all_counted snapshot
		read -r free _ < <(counting_rate snapshot "$TRACK_SECONDS")
		[ -n "$held" ] && [ -n "$free" ] || fail 'pgbench failed'
		measured snapshot "$held" "$free"
	done
	drop_database snapshot
}
