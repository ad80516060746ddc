# The lines idle and idle-kafka of scripts/bench.sh. Sourced.

worker_pids()
{
	psql_in postgres -c "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'evstream%' ORDER BY 1" | tr '\n' ' '
}

# Until the launcher has started all workers of DATABASE, and they have settled.
wait_for_workers()
{
	local i
	for i in $(seq 300); do
		if [ "$(psql_in "$1" -c "SELECT count(*) > 0 FROM evstream_workers WHERE role = 'consumer' AND pid IS NOT NULL AND state IN ('running', 'idle')")" = t ]; then
			sleep 2
			return 0
		fi
		sleep 0.1
	done
	fail "the workers did not start"
}

# CPU seconds of processes, all threads, in clock ticks.
ticks()
{
	local pid sum=0 stat
	for pid in "$@"; do
		read -r stat <"/proc/$pid/stat" || return 1
		# behind the name, which may hold anything
		set -- ${stat##*) }
		sum=$((sum + ${12} + ${13}))
	done
	echo $sum
}

idle_line()
{
	local line=$1 run pids before after
	shift
	new_database idle "$@"
	workers on
	wait_for_workers idle
	# a few events, so that there is something to be idle about
	psql_in idle -c "SELECT evstream_track('u-' || n, 'view') FROM generate_series(1, 100) n" -c 'SELECT evstream_wait()' >/dev/null
	sleep 5
	for run in $(seq "$RUNS"); do
		pids=$(worker_pids)
		before=$(ticks $pids)
		sleep "$IDLE_SECONDS"
		after=$(ticks $pids)
		[ "$(worker_pids)" = "$pids" ] || fail "a worker was started while all should be idle"
		measured "$line" "$(awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" -v s="$IDLE_SECONDS" 'BEGIN { printf "%.4f", 100 * t / hz / s }')"
	done
	drop_database idle
}

line_idle()
{
	idle_line idle
}

line_idle_kafka()
{
	start_kafka || { echo "skip idle-kafka no Kafka on this machine" >>"$TMP/runs"; return 0; }
	idle_line idle-kafka "kafka_brokers=$BROKERS" kafka_topic=idle
}
