# The lines relay and relay-latency of scripts/bench.sh. Sourced.

# Events of the outbox that are delivered, all in all.
relayed()
{
	psql_in relay -c 'SELECT COALESCE((SELECT sum(o) FROM unnest(l.next_offsets) o), 0)
		FROM (SELECT 1) one LEFT JOIN (SELECT next_offsets FROM evstream.relay_log ORDER BY seq DESC LIMIT 1) l ON true'
}

# A backlog from the outbox to Kafka, beside a program that copies the same rows and
# sends them. The consumers are paused, and hold little: what they take is not to be
# counted here.
line_relay()
{
	local run events before ours n seconds first
	start_kafka || { echo "skip relay no Kafka on this machine" >>"$TMP/runs"; return 0; }
	"$REPO/bench/kprobe" -b "$BROKERS" create relay 4 >/dev/null
	"$REPO/bench/kprobe" -b "$BROKERS" create relay-plain 4 >/dev/null
	new_database relay "kafka_brokers=$BROKERS" kafka_topic=relay kafka_options=queued.max.messages.kbytes=1024
	psql_in relay -f "$REPO/bench/batch_table.sql" -c 'SELECT evstream_pause()' >/dev/null
	# round 0 is not counted: ours comes first, and would pay for a JVM that is still cold
	for run in $(seq 0 "$RUNS"); do
		events=$((run > 0 ? RELAY_EVENTS : 100000))
		before=$(relayed)
		first=$(psql_in relay -c 'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM evstream.outbox_id_seq')
		"$BINDIR/pgbench" -n -h "$TMP/run" -p "$PORT" -U postgres -M prepared -c 1 -t $((events / 1000)) \
			-f "$REPO/bench/batch_evstream.sql" relay >"$TMP/pgbench.log" 2>&1 || { cat "$TMP/pgbench.log" >&2; fail 'pgbench failed'; }
		psql_in relay -c CHECKPOINT
		workers on
		until [ "$(relayed)" -ge $((before + events)) ]; do sleep 0.5; done
		# from the relay's start to its last record
		ours=$(psql_in relay -c "SELECT $events / extract(epoch FROM max(l.at) - w.started_at)
			FROM evstream_workers w, evstream.relay_log l WHERE w.role = 'relay' GROUP BY w.started_at")
		workers off
		read -r n seconds < <("$REPO/bench/relay" -d "host=$TMP/run port=$PORT user=postgres dbname=relay" -b "$BROKERS" -t relay-plain \
			-q "SELECT user_id, value FROM evstream.outbox_0 WHERE id > $first UNION ALL SELECT user_id, value FROM evstream.outbox_1 WHERE id > $first UNION ALL SELECT user_id, value FROM evstream.outbox_2 WHERE id > $first")
		[ "$n" = "$events" ] || fail "$n rows were copied, and not $events"
		[ "$run" = 0 ] || measured relay "$ours" "$(awk -v n="$n" -v s="$seconds" 'BEGIN { print n / s }')"
	done
	drop_database relay
}

# From the statement that commits an event to its record at a consumer of Kafka, beside
# INSERT into a bare table and a producer without linger, once it is committed.
line_relay_latency()
{
	start_kafka || { echo "skip relay-latency no Kafka on this machine" >>"$TMP/runs"; return 0; }
	"$REPO/bench/kprobe" -b "$BROKERS" create relay-latency 4 >/dev/null
	"$REPO/bench/kprobe" -b "$BROKERS" create relay-latency-plain 4 >/dev/null
	new_database latency "kafka_brokers=$BROKERS" kafka_topic=relay-latency
	latency_runs relay-latency 500 "-k $BROKERS -c relay-latency" "-k $BROKERS -c relay-latency-plain"
}
