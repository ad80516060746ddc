# The lines latency and latency-kafka of scripts/bench.sh. Sourced.

COMPILE_SECONDS=25
LATENCY_PROPERTIES='{"item_id": "sku-1", "page": "/catalogue", "device": "mobile"}'

# latency_of RATE WHERE SQL [ARGUMENT...]: ms of bench/latency in $seconds, p50 p95 p99.
latency_of()
{
	local rate=$1 where=$2 sql=$3
	shift 3
	# shellcheck disable=SC2086
	"$REPO/bench/latency" -d "host=$TMP/run port=$PORT user=postgres dbname=latency" $where \
		-s "$sql" -n "$rate" -t "$seconds" "$@" || fail 'no latency was measured'
}

# latency_runs LINE RATE WHERE WHERE: the database is there; where evstream's messages
# come out, and where the client sends its own to. It is dropped behind it.
latency_runs()
{
	local line=$1 rate=$2 run ours other seconds
	psql_in latency -f "$REPO/bench/track_table.sql"
	workers on
	wait_for_workers latency
	# the way is open once
	psql_in latency -c "SELECT evstream_track('u-1', 'view')" -c "SELECT evstream_wait('1 min')" >/dev/null
	psql_in latency -c CHECKPOINT
	# where there is a broker round 0 is not counted, and long: its JVM compiles what it will run
	for run in $(seq $([ "$line" = latency ] && echo 1 || echo 0) "$RUNS"); do
		seconds=$((run > 0 ? LATENCY_SECONDS : COMPILE_SECONDS))
		read -r -a ours < <(latency_of "$rate" "$3" "SELECT evstream_track(\$1, 'view', '$LATENCY_PROPERTIES')")
		seconds=$LATENCY_SECONDS
		read -r -a other < <(latency_of "$rate" "$4" "INSERT INTO bare VALUES (gen_random_uuid(), \$1, 'view', now(), '$LATENCY_PROPERTIES')" -p)
		[ "$run" -gt 0 ] || continue
		measured "$line-p50" "${ours[0]}" "${other[0]}"
		measured "$line-p95" "${ours[1]}" "${other[1]}"
		measured "$line-p99" "${ours[2]}" "${other[2]}"
	done
	drop_database latency
}

# From the statement that commits an event to its message at a subscriber who gets all
# of them, beside INSERT into a bare table and PUBLISH by the client once it is
# committed.
latency_line()
{
	local line=$1
	shift
	start_redis || { echo "skip $line no Redis on this machine" >>"$TMP/runs"; return 0; }
	new_database latency "redis_url=redis://$REDIS" "redis_prefix=$line:" "$@"
	psql_in latency -c "SELECT evstream_subscribe('all')" >/dev/null
	latency_runs "$line" "$LATENCY_RATE" "-r $REDIS -c $line:notify:all" "-r $REDIS -c bench"
}

line_latency()
{
	latency_line latency
}

line_latency_kafka()
{
	start_kafka || { echo "skip latency-kafka no Kafka on this machine" >>"$TMP/runs"; return 0; }
	latency_line latency-kafka "kafka_brokers=$BROKERS" kafka_topic=latency
}
