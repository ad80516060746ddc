# The lines ingest, ingest-items, ingest-local, counts-only, two-consumers, growth and
# growth-50m of scripts/bench.sh. Sourced.

# Waits in DATABASE until N events are counted, and says when that was, by the clock
# of now().
when_counted()
{
	psql_in "$1" -v events="$2" -f "$REPO/bench/ingest_wait.sql"
}

# preload TOPIC N SEED [OPTION...]: writes N events of SEED into TOPIC, once; options of evgen.
PRELOADED=' '
preload()
{
	[[ $PRELOADED != *" $1 "* ]] || return 0
	say "writing $2 events into the topic $1"
	"$REPO/bench/kprobe" -b "$BROKERS" create "$1" 4 >/dev/null
	"$REPO/bench/evgen" --brokers "$BROKERS" --topic "$1" --events "$2" --seed "$3" --users 100000 --items 10000 \
		"${@:4}" >"$TMP/evgen.log" 2>&1 || { cat "$TMP/evgen.log" >&2; fail 'evgen failed'; }
	PRELOADED+="$1 "
}

# Lets the workers go, and says how many seconds it took until N events were counted
# in DATABASE; they are off before and after it.
consume_seconds()
{
	local start end
	psql_in "$1" -c CHECKPOINT
	start=$(now)
	# off, and not paused: a paused consumer would have fetched ahead
	workers on
	end=$(when_counted "$1" "$2") || fail 'the consumers did not take all events'
	awk -v a="$start" -v b="$end" 'BEGIN { print b - a }'
}

# What the consumer stored must be all, once: check_rows DATABASE STORED COUNTED.
check_rows()
{
	local found
	found=$(psql_in "$1" -f "$REPO/bench/ingest_check.sql")
	[ "$found" = "$2|$3|$3|$3" ] || fail "events, ids, counted, in totals: $found, and not $2 and $3 each"
}

# The rows that the consumer has stored in DATABASE, as files for COPY.
keep_rows()
{
	psql_in "$1" -v events_file="$TMP/run/$2.events" -v ids_file="$TMP/run/$2.ids" -f "$REPO/bench/ingest_rows.sql"
}

# The same rows by COPY, and the aggregates (with ITEMS of "items" those by item as
# well): their seconds.
copy_seconds()
{
	local database=$1 line=$2 items=$3 start end
	psql_in "$database" -f "$REPO/bench/ingest_tables.sql" -c CHECKPOINT
	start=$(now)
	psql_in "$database" -v events_file="$TMP/run/$line.events" -v ids_file="$TMP/run/$line.ids" \
		-f "$REPO/bench/ingest_copy.sql" ${items:+-f "$REPO/bench/ingest_copy_items.sql"}
	end=$(now)
	awk -v a="$start" -v b="$end" 'BEGIN { print b - a }'
}

per_second() { awk -v n="$1" -v s="$2" 'BEGIN { printf "%.1f", n / s }'; }

# What the consumer took SECONDS for, beside COPY:
# beside_copy LINE DATABASE EVENTS SECONDS ITEMS.
beside_copy()
{
	local line=$1 database=$2 events=$3 seconds=$4 items=$5 copy wrong
	check_rows "$database" "$events" "$events"
	[ -e "$TMP/run/$line.events" ] || keep_rows "$database" "$line"
	copy=$(copy_seconds "$database" "$line" "$items")
	# the first time, row by row
	if [[ $database = *_1 ]]; then
		wrong=$(psql_in "$database" -f "$REPO/bench/ingest_compare.sql")
		[ "$wrong" = 0 ] || fail "$wrong rows of the summaries are not what the aggregates say"
	fi
	measured "$line" "$(per_second "$events" "$seconds")" "$(per_second "$events" "$copy")"
	drop_database "$database"
}

# topic_line LINE ITEMS SETTING...
topic_line()
{
	local line=$1 items=$2 run seconds
	shift 2
	start_kafka || { echo "skip $line no Kafka on this machine" >>"$TMP/runs"; return 0; }
	preload bench "$EVENTS" "$SEED"
	for run in $(seq "$RUNS"); do
		# a group belongs to one database: a new one reads from the beginning
		new_database "ingest_$run" "kafka_brokers=$BROKERS" "$@"
		seconds=$(consume_seconds "ingest_$run" "$EVENTS")
		workers off
		beside_copy "$line" "ingest_$run" "$EVENTS" "$seconds" "$items"
	done
	rm -f "$TMP/run/$line".*
}

line_ingest() { topic_line ingest '' item_stats=off; }

line_ingest_items() { topic_line ingest-items items; }

line_ingest_local()
{
	local run start end
	"$REPO/bench/evgen" --batch-sql "$TMP/track.sql" --events "$LOCAL_EVENTS" --seed "$SEED" \
		--users 100000 --items 10000 >"$TMP/evgen.log" 2>&1 || { cat "$TMP/evgen.log" >&2; fail 'evgen failed'; }
	for run in $(seq "$RUNS"); do
		new_database "local_$run"
		psql_in "local_$run" -c 'SELECT evstream_pause()' >/dev/null
		workers on
		psql_in "local_$run" -f "$TMP/track.sql" >/dev/null
		psql_in "local_$run" -c CHECKPOINT
		start=$(now)
		psql_in "local_$run" -c 'SELECT evstream_resume()' >/dev/null
		end=$(when_counted "local_$run" "$LOCAL_EVENTS") || fail 'the consumer did not take all events'
		psql_in "local_$run" -c 'SELECT evstream_pause()' >/dev/null
		workers off
		beside_copy ingest-local "local_$run" "$LOCAL_EVENTS" "$(awk -v a="$start" -v b="$end" 'BEGIN { print b - a }')" items
	done
	rm -f "$TMP"/run/ingest-local.* "$TMP/track.sql"
}

# Ids and counts by user alone, beside a consumer that parses and throws away.
line_counts_only()
{
	local run start end seconds
	start_kafka || { echo "skip counts-only no Kafka on this machine" >>"$TMP/runs"; return 0; }
	preload bench "$EVENTS" "$SEED"
	for run in $(seq "$RUNS"); do
		new_database counts "kafka_brokers=$BROKERS" store_events=off item_stats=off
		seconds=$(consume_seconds counts "$EVENTS")
		workers off
		check_rows counts 0 "$EVENTS"
		drop_database counts
		start=$(now)
		"$REPO/bench/bare" "$BROKERS" bench 4 "$EVENTS" || fail 'the bare consumer failed'
		end=$(now)
		measured counts-only "$(per_second "$EVENTS" "$seconds")" \
			"$(awk -v n="$EVENTS" -v a="$start" -v b="$end" 'BEGIN { printf "%.1f", n / (b - a) }')"
	done
}

# Seconds of N consumers, and the CPU seconds of the broker meanwhile.
consumers_run()
{
	local before after seconds broker
	broker=$(cat "$TMP/kafka/kafka.pid")
	new_database "consumers" "kafka_brokers=$BROKERS" item_stats=off kafka_topic=even "consumers=$1"
	before=$(ticks "$broker")
	seconds=$(consume_seconds consumers "$EVEN_EVENTS")
	after=$(ticks "$broker")
	workers off
	check_rows consumers "$EVEN_EVENTS" "$EVEN_EVENTS"
	drop_database consumers
	echo "$seconds $(((after - before)))"
}

# On two cores the broker takes away from what two consumers have: their figure is
# what they would have done in the time with all the cores, by the broker's CPU time.
# One consumer has a core for itself. The partitions are of about one size: in the other
# topic a tenth of all events is of one user, and who has that partition ends alone.
line_two_consumers()
{
	local run one two broker
	start_kafka || { echo "skip two-consumers no Kafka on this machine" >>"$TMP/runs"; return 0; }
	preload even "$EVEN_EVENTS" "$SEED" --zipf 0.8
	for run in $(seq "$RUNS"); do
		read -r one broker < <(consumers_run 1)
		read -r two broker < <(consumers_run 2)
		measured two-consumers "$(awk -v n="$EVEN_EVENTS" -v s="$two" -v broker="$broker" -v hz="$(getconf CLK_TCK)" -v cores="$(nproc)" 'BEGIN {
			free = cores > 2 ? 1 : 1 - broker / hz / (s * cores)
			printf "%.1f", n / s / free }')" "$(per_second "$EVEN_EVENTS" "$one")"
	done
}

# The line ingest into tables that are large, and into empty ones: each run has a topic
# of its own, so that no event is a duplicate.
# growth_line LINE IDS (and events).
growth_line()
{
	local line=$1 rows=$2 run before=0 grown empty
	start_kafka || { echo "skip $line no Kafka on this machine" >>"$TMP/runs"; return 0; }
	say "$line: filling tables with $rows events"
	new_database grown
	# the leaves of today, as the workers make them
	workers on
	psql_in grown -c "SELECT evstream_track('u-0', 'view')" -c "SELECT evstream_wait('1 min')" >/dev/null
	workers off
	psql_in grown -v rows="$rows" -f "$REPO/bench/growth.sql" >/dev/null
	for run in $(seq "$RUNS"); do
		preload "growth-$run" "$GROWTH_EVENTS" $((SEED + run))
	done
	# what is written behind our back would be on the account of the first
	sync
	# as maintenance has them when it closes a segment
	workers on
	psql_in grown -f "$REPO/bench/growth_filters.sql"
	workers off
	psql_in postgres -c "ALTER DATABASE grown SET evstream.kafka_brokers = '$BROKERS'" \
		-c 'ALTER DATABASE grown SET evstream.item_stats = off'
	before=$(psql_in grown -c 'SELECT sum(event_count) FROM evstream.daily_totals')
	for run in $(seq "$RUNS"); do
		psql_in postgres -c "ALTER DATABASE grown SET evstream.kafka_topic = 'growth-$run'"
		grown=$(consume_seconds grown $((before + GROWTH_EVENTS * run)))
		workers off
		new_database "empty" "kafka_brokers=$BROKERS" item_stats=off "kafka_topic=growth-$run"
		empty=$(consume_seconds empty "$GROWTH_EVENTS")
		workers off
		check_rows empty "$GROWTH_EVENTS" "$GROWTH_EVENTS"
		measured "$line" "$(per_second "$GROWTH_EVENTS" "$grown")" "$(per_second "$GROWTH_EVENTS" "$empty")"
		drop_database empty
	done
	[ "$(psql_in grown -c 'SELECT count(*) FROM evstream.ids')" = $((rows + 1 + GROWTH_EVENTS * RUNS)) ] ||
		fail 'the ids are not those that were there and all that came'
	drop_database grown
}

line_growth() { growth_line growth "$GROWTH_ROWS"; }

line_growth_50m() { growth_line growth-50m 50000000; }
