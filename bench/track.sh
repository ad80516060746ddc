# The line track of scripts/bench.sh. Sourced.

# Transactions a second of 8 clients that run FILE in DATABASE.
tps()
{
	"$BINDIR/pgbench" -n -h "$TMP/run" -p "$PORT" -U postgres -M prepared -c 8 -j 2 -T "$TRACK_SECONDS" -f "$2" "$1" \
		2>"$TMP/pgbench.log" | sed -n 's/^tps = \([0-9.]*\).*/\1/p'
}

line_track()
{
	local run ours other
	new_database track
	psql_in track -f "$REPO/bench/track_table.sql"
	workers on
	wait_for_workers track
	psql_in track -c CHECKPOINT
	for run in $(seq "$RUNS"); do
		ours=$(tps track "$REPO/bench/track_evstream.sql")
		[ -n "$ours" ] || { cat "$TMP/pgbench.log" >&2; fail 'pgbench failed'; }
		# what waits is not to be counted while the other is measured
		[ "$(psql_in track -c "SELECT evstream_wait('5 min')")" = t ] || fail 'the events were not counted within 5 minutes'
		other=$(tps track "$REPO/bench/track_insert.sql")
		[ -n "$other" ] || { cat "$TMP/pgbench.log" >&2; fail 'pgbench failed'; }
		measured track "$ours" "$other"
	done
	drop_database track
}
