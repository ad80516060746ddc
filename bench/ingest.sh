# The lines ingest and ingest-local of scripts/bench.sh. Sourced.

# Waits in DATABASE until N events are counted, and says when that was, by the clock
# of now().
when_counted()
{
	psql_in "$1" -v events="$2" -f "$REPO/bench/ingest_wait.sql"
}

# The rows that the consumer has stored in DATABASE, as files for COPY.
keep_rows()
{
	psql_in "$1" -v events_file="$TMP/run/$2.events" -v ids_file="$TMP/run/$2.ids" -f "$REPO/bench/ingest_rows.sql"
}

# The same rows by COPY, and the aggregates: their seconds.
copy_seconds()
{
	local start end
	psql_in "$1" -f "$REPO/bench/ingest_tables.sql" -c CHECKPOINT
	start=$(now)
	psql_in "$1" -v events_file="$TMP/run/$2.events" -v ids_file="$TMP/run/$2.ids" -f "$REPO/bench/ingest_copy.sql"
	end=$(now)
	awk -v a="$start" -v b="$end" 'BEGIN { print b - a }'
}

# What the consumer stored must be all, once.
check_rows()
{
	local found
	found=$(psql_in "$1" -f "$REPO/bench/ingest_check.sql")
	[ "$found" = "$2|$2|$2|$2" ] || fail "events, ids, counted, in totals: $found, and not $2 each"
}

# ingest_run LINE DATABASE EVENTS: the workers are off, the events are waiting.
ingest_run()
{
	local line=$1 database=$2 events=$3 start end copy wrong
	psql_in "$database" -c CHECKPOINT
	start=$(now)
	if [ "$line" = ingest ]; then
		# off, and not paused: a paused consumer would have fetched ahead
		workers on
	else
		psql_in "$database" -c 'SELECT evstream_resume()' >/dev/null
	fi
	end=$(when_counted "$database" "$events") || fail "the consumer did not take all events"
	psql_in "$database" -c 'SELECT evstream_pause()' >/dev/null
	workers off
	check_rows "$database" "$events"
	[ -e "$TMP/run/$line.events" ] || keep_rows "$database" "$line"
	copy=$(copy_seconds "$database" "$line")
	# the first time, row by row
	if [[ $database = *_1 ]]; then
		wrong=$(psql_in "$database" -f "$REPO/bench/ingest_compare.sql")
		[ "$wrong" = 0 ] || fail "$wrong rows of the summaries are not what the aggregates say"
	fi
	measured "$line" $(awk -v n="$events" -v a="$start" -v b="$end" -v copy="$copy" \
		'BEGIN { printf "%.1f %.1f", n / (b - a), n / copy }')
	drop_database "$database"
}

line_ingest()
{
	local run
	start_kafka || { echo "skip ingest no Kafka on this machine" >>"$TMP/runs"; return 0; }
	say "ingest: writing $EVENTS events into the topic"
	"$REPO/bench/evgen" --brokers "$BROKERS" --topic bench --events "$EVENTS" --seed "$SEED" \
		--users 100000 --items 10000 >"$TMP/evgen.log" 2>&1 || { cat "$TMP/evgen.log" >&2; fail 'evgen failed'; }
	for run in $(seq "$RUNS"); do
		# a group belongs to one database: a new one reads from the beginning
		new_database "ingest_$run" "kafka_brokers=$BROKERS"
		ingest_run ingest "ingest_$run" "$EVENTS"
	done
	rm -f "$TMP"/run/ingest.*
}

line_ingest_local()
{
	local run
	"$REPO/bench/evgen" --batch-sql "$TMP/track.sql" --events "$LOCAL_EVENTS" --seed "$SEED" \
		--users 100000 --items 10000 >"$TMP/evgen.log" 2>&1 || { cat "$TMP/evgen.log" >&2; fail 'evgen failed'; }
	for run in $(seq "$RUNS"); do
		new_database "local_$run"
		psql_in "local_$run" -c 'SELECT evstream_pause()' >/dev/null
		workers on
		psql_in "local_$run" -f "$TMP/track.sql" >/dev/null
		ingest_run ingest-local "local_$run" "$LOCAL_EVENTS"
	done
	rm -f "$TMP"/run/ingest-local.* "$TMP/track.sql"
}
