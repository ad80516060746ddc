#!/bin/bash
#
# make demo: a stream of events, tracked through SQL by four clients of a throwaway
# server, what comes out of it while it runs, and whether it is the truth.
#
# KAFKA=1 sends it through a throwaway Kafka. REDIS=1 adds a throwaway Redis and a
# subscriber, who goes away, comes back and catches up. EVENTS (120000) and RATE (8000
# records a second) say how large the stream is. Exit status 0: the counts are the
# truth, and the subscriber got each event that his filter matches once.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

KAFKA=${KAFKA:-0}
REDIS=${REDIS:-0}
EVENTS=${EVENTS:-120000}
RATE=${RATE:-8000}
CLIENTS=4
[ "$KAFKA" != "" ] || KAFKA=0

TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-demo.XXXXXX")
chmod 755 "$TMP"
stream=
client=
cleanup()
{
	[ -z "$client" ] || kill "$client" 2>/dev/null || true
	[ -z "$stream" ] || kill "$stream" 2>/dev/null || true
	end_servers "$TMP"
	sleep 0.2
	rm -rf "$TMP"
}
trap cleanup EXIT
trap 'echo; exit 130' INT TERM

say() { printf '\n== %s\n' "$*"; }
sql() { "$BINDIR/psql" -X -q -v ON_ERROR_STOP=1 -h "$TMP/run" -p "$PORT" -U postgres -d demo "$@"; }

# --- build and start -----------------------------------------------------------

say "Building"
private_install "$TMP/inst"
make -s -C "$REPO" bench/evgen

brokers=
if [ "$KAFKA" != 0 ]; then
	say "Starting Kafka"
	"$REPO/scripts/kafka.sh" fetch
	pg_dir "$TMP/kafka"
	brokers=$(as_pg "$REPO/scripts/kafka.sh" start "$TMP/kafka")
	echo "broker at $brokers"
fi

redis=
if [ "$REDIS" != 0 ]; then
	say "Starting Redis"
	pg_dir "$TMP/redis"
	redis=$(as_pg "$REPO/scripts/redis.sh" start "$TMP/redis")
	echo "listening on $redis"
fi

say "Starting PostgreSQL"
PORT=$(free_port)
pg_dir "$TMP/run"
pg_dir "$TMP/data"
cd "$TMP/run"
as_pg "$BINDIR/initdb" -D "$TMP/data" -U postgres -A trust --encoding=UTF8 --locale=C >"$TMP/initdb.log" 2>&1 ||
	{ cat "$TMP/initdb.log"; exit 1; }
as_pg tee -a "$TMP/data/postgresql.conf" >/dev/null <<END
shared_preload_libraries = 'evstream'
evstream.kafka_brokers = '$brokers'
${redis:+evstream.redis_url = 'redis://$redis'
evstream.stream_maxlen = 20}
listen_addresses = '127.0.0.1'
port = $PORT
unix_socket_directories = '$TMP/run'
max_wal_size = '2GB'
END
as_pg "$BINDIR/pg_ctl" -D "$TMP/data" -l "$TMP/run/server.log" -w start >/dev/null ||
	{ tail -n 20 "$TMP/run/server.log"; exit 1; }
"$BINDIR/createdb" -h "$TMP/run" -p "$PORT" -U postgres demo
sql -c 'CREATE EXTENSION evstream'
echo "listening on 127.0.0.1:$PORT, shared_preload_libraries = evstream${brokers:+, evstream.kafka_brokers = $brokers}${redis:+, evstream.redis_url = redis://$redis}"

export PGHOST=$TMP/run PGPORT=$PORT PGUSER=postgres PGDATABASE=demo

# --- a subscriber ---------------------------------------------------------------

FILTER="event_type = 'purchase' AND user_tier = 'premium' AND amount >= 100"
received=$TMP/received

client_comes()
{
	REDIS_URL=redis://$redis PATH=$BINDIR:$PATH python3 "$REPO/examples/subscriber.py" vip "$received" >>"$TMP/client.out" 2>>"$TMP/client.log" &
	client=$!
}

client_goes()
{
	kill "$client" 2>/dev/null || true
	wait "$client" 2>/dev/null || true
	client=
}

has() { if [ -e "$received" ]; then wc -l <"$received"; else echo 0; fi; }

if [ -n "$redis" ]; then
	say "A subscriber: purchases of 100 and more by premium users (examples/subscriber.py)"
	echo "SELECT evstream_subscribe('vip', event_types => '{purchase}', user_tiers => '{premium}', min_amount => 100)"
	sql -A -t -o /dev/null -c "SELECT evstream_subscribe('vip', event_types => '{purchase}', user_tiers => '{premium}', min_amount => 100)"
	client_comes
fi

# Away for the middle third of the stream: then Redis has no more of what was
# missed than the last evstream.stream_maxlen, and the rest comes by backfill.
absence=before
look_at_client()
{
	[ -n "$redis" ] || return 0
	if [ $absence = before ] && [ "${counted:-0}" -gt $((EVENTS / 3)) ]; then
		client_goes
		absence=now
		printf '  -- the subscriber goes away, with %s events\n' "$(has)"
		shown=
	elif [ $absence = now ] && { [ "${counted:-0}" -gt $((EVENTS * 2 / 3)) ] || [ -z "$stream" ]; }; then
		client_comes
		absence=over
		printf '  -- and comes back\n'
		shown=
	fi
}

# --- the stream ----------------------------------------------------------------

say "Tracking $EVENTS events by $CLIENTS clients, with 5 % duplicates, 2 % late, 1 % broken and some from the future"
began=$SECONDS
# Each call of evstream_track_batch goes to the next client.
(
	set +e
	"$REPO/bench/evgen" --batch-sql - --events "$EVENTS" --rate "$RATE" --batch 500 --seed 20 --users 5000 --items 500 --days 7 \
		--duplicates 5 --late 2 --broken 1 --future 0.2 --truth "$TMP/truth" 2>"$TMP/evgen.log" |
		awk -v clients=$CLIENTS -v psql="$BINDIR/psql -X -q -A -t -v ON_ERROR_STOP=1 >/dev/null 2>>$TMP/clients.log" '
			BEGIN { for (i = 0; i < clients; i++) client[i] = psql " # " i }
			{ print | client[n % clients] }
			/^\]\$evgen\$/ { n++ }
			END { for (i = 0; i < clients; i++) if (close(client[i]) != 0) failed = 1; exit failed }'
	echo "${PIPESTATUS[*]}" >"$TMP/stream.status"
) &
stream=$!

STATUS_SQL="
SELECT coalesce(sum(event_count), 0), coalesce(sum(event_count) FILTER (WHERE event_type = 'view'), 0),
	coalesce(sum(event_count) FILTER (WHERE event_type = 'click'), 0),
	coalesce(sum(event_count) FILTER (WHERE event_type = 'purchase'), 0),
	coalesce(sum(event_count) FILTER (WHERE event_type = 'login'), 0),
	coalesce(round(sum(amount_total) FILTER (WHERE event_type = 'purchase'), 2), 0),
	(SELECT count(*) FROM evstream_dead_letters),
	(SELECT coalesce(sum(lag), 0) FROM evstream_lag)
FROM evstream_daily_totals"

show()
{
	local row n=0
	row=$(sql -A -t -F ' ' -c "$STATUS_SQL" 2>&1) || { echo "$row" >&2; return 0; }
	# shellcheck disable=SC2086
	set -- $row
	counted=$1
	if [ -t 1 ]; then
		[ -z "${shown:-}" ] || printf '\033[9A'
		printf '\033[K  %-24s %12s s\n' 'time' "$((SECONDS - began))"
		printf '\033[K  %-24s %12s\n' 'events counted' "$1" '  views' "$2" '  clicks' "$3" '  purchases' "$4" '  logins' "$5" \
			'purchase amount' "$6" 'dead letters' "$7" 'lag' "$8"
		shown=yes
	else
		[ -n "${shown:-}" ] || printf '%6s %10s %10s %10s %10s %10s %16s %8s %8s\n' seconds events views clicks purchases logins amount dead lag
		printf '%6s %10s %10s %10s %10s %10s %16s %8s %8s\n' "$((SECONDS - began))" "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8"
		shown=yes
	fi
}

while kill -0 "$stream" 2>/dev/null; do
	show
	look_at_client
	sleep 1
done
wait "$stream" || true
stream=
if [ "$(cat "$TMP/stream.status" 2>/dev/null)" != "0 0" ]; then
	echo "the stream broke off:" >&2
	cut -c1-300 "$TMP/evgen.log" >&2
	grep -h -m 10 -E 'ERROR|FATAL|psql:' "$TMP/clients.log" | cut -c1-300 >&2 || true
	grep -E 'FATAL|PANIC|terminated by' "$TMP/run/server.log" | tail -n 10 >&2 || true
	exit 1
fi
waited=$(sql -A -t -c "SELECT evstream_wait('60 s')")
show
look_at_client
took=$((SECONDS - began))

# --- what came out -------------------------------------------------------------

result=0
if [ "$waited" != t ]; then
	echo "evstream_wait('60 s') gave $waited"
	tail -n 20 "$TMP/run/server.log" | cut -c1-300
	result=1
fi

user=$(sql -A -t -c "SELECT user_id FROM evstream_daily_counts GROUP BY user_id ORDER BY sum(event_count) DESC, user_id LIMIT 1")
say "The busiest user: SELECT … FROM evstream_daily_summary WHERE user_id = '$user' ORDER BY day DESC LIMIT 10"
sql -P pager=off -v user="$user" <<'END'
SELECT day, view_count, click_count, purchase_count, login_count, event_count, round(purchase_amount, 2) AS purchase_amount,
	first_event_at, last_event_at
FROM evstream_daily_summary WHERE user_id = :'user' ORDER BY day DESC LIMIT 10;
END
say "Dead letters by reason"
sql -P pager=off -c 'SELECT reason, count(*) FROM evstream_dead_letters GROUP BY reason ORDER BY reason'
say "SELECT jsonb_pretty(evstream_health())"
sql -A -t -c 'SELECT jsonb_pretty(evstream_health())'

say "Comparison with the truth that the generator wrote"
difference=$(sql -A -t -v prefix="$TMP/truth" -f "$REPO/scripts/compare.sql") || result=1
if [ -n "$difference" ]; then
	echo "$difference" | head -n 40
	result=1
fi
if [ -n "$redis" ]; then
	say "What the subscriber got: id in the stream or backfill, type, user, amount"
	wanted=$(sql -A -t -c "SELECT count(*) FROM evstream_events WHERE $FILTER")
	for _ in $(seq 300); do
		[ "$(has)" -lt "$wanted" ] || break
		sleep 0.1
	done
	client_goes
	head -n 3 "$TMP/client.out"
	echo ...
	grep -m 3 '^backfill' "$TMP/client.out" || true
	echo ...
	tail -n 3 "$TMP/client.out"
	sql -A -t -c "SELECT event_id FROM evstream_events WHERE $FILTER" | LC_ALL=C sort >"$TMP/ids.truth"
	python3 -c 'import json, sys
for line in sys.stdin: print(json.loads(line)["event_id"])' <"$received" | LC_ALL=C sort >"$TMP/ids.received"
	if [ "$wanted" -gt 0 ] && cmp -s "$TMP/ids.truth" "$TMP/ids.received"; then
		echo "$wanted events, each once: $(grep -c '^[0-9]' "$TMP/client.out") live, $(grep -c '^backfill' "$TMP/client.out") by backfill"
	else
		echo "evstream_events has $wanted that match, the subscriber got $(wc -l <"$TMP/ids.received") ($(sort -u "$TMP/ids.received" | wc -l) different)"
		diff "$TMP/ids.truth" "$TMP/ids.received" | head -n 10 || true
		tail -n 5 "$TMP/client.log"
		result=1
	fi
	say "The result"
fi
if [ $result = 0 ]; then
	sql -A -t -F ' ' -c "SELECT sum(event_count), 'events of', count(DISTINCT user_id), 'users on', count(DISTINCT day), 'days counted exactly once,' FROM evstream_daily_counts"
	echo "$(sql -A -t -c 'SELECT count(*) FROM evstream_dead_letters') dead letters, each with its reason, in $took s: all as expected"
else
	echo "NOT as expected"
fi
exit $result
