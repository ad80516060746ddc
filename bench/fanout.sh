# The line fanout of scripts/bench.sh. Sourced.

# Calls a second of a command, pipelined by 100.
rate_of_redis()
{
	redis-benchmark -h "${REDIS%:*}" -p "${REDIS##*:}" -q -P 100 -r 1000 -n 1000000 "$@" | tr '\r' '\n' |
		sed -n 's/.*: \([0-9.]*\) requests per second.*/\1/p' | tail -n 1 | grep .
}

# Deliveries a second of redis-benchmark: an XADD and a PUBLISH each, of this message,
# to 1,000 streams and channels, by turns of one kind.
deliveries_of_redis()
{
	local message=$1 add publish
	add=$(rate_of_redis XADD bench:__rand_int__ MAXLEN '~' 1000 '*' event "$message") || return 1
	publish=$(rate_of_redis PUBLISH bench:__rand_int__ "$message") || return 1
	awk -v a="$add" -v p="$publish" 'BEGIN { print 1 / (1 / a + 1 / p) }'
}

# Events that are stored while Redis is away, once it is back, to 10 of 1,000
# subscribers each: deliveries a second from the first of them.
line_fanout()
{
	local run start end ours other message found
	start_redis || { echo "skip fanout no Redis on this machine" >>"$TMP/runs"; return 0; }
	for run in $(seq "$RUNS"); do
		redis_here kill
		new_database fanout "redis_url=redis://$REDIS" redis_prefix=fanout:
		psql_in fanout -f "$REPO/bench/fanout_filters.sql"
		workers on
		psql_in fanout -v events="$FANOUT_EVENTS" -f "$REPO/bench/fanout_events.sql"
		[ "$(psql_in fanout -c "SELECT evstream_wait('10 min', fan_out => false)")" = t ] || fail 'the events were not stored'
		psql_in fanout -c CHECKPOINT

		redis_here start >/dev/null
		until [ "$(redis_here cli EXISTS fanout:stream:s-0 fanout:stream:s-500)" != 0 ]; do :; done
		start=$(now)
		[ "$(psql_in fanout -c "SELECT evstream_wait('10 min')")" = t ] || fail 'the events did not arrive in Redis'
		end=$(now)

		# each subscriber's last sequence
		found=$(redis_here cli --raw HGETALL fanout:state | awk '/^s:/ { getline; n += $2 } END { print n }')
		[ "$found" = $((FANOUT_EVENTS * 10)) ] || fail "$found deliveries, and not $((FANOUT_EVENTS * 10))"
		message=$(redis_here cli --raw XREVRANGE fanout:stream:s-0 + - COUNT 1 | sed -n 3p)
		workers off
		other=$(deliveries_of_redis "$message") || fail 'redis-benchmark failed'
		ours=$(awk -v n="$found" -v a="$start" -v b="$end" 'BEGIN { printf "%.1f", n / (b - a) }')
		measured fanout "$ours" "$other"
		drop_database fanout
	done
}
