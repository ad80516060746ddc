#!/bin/bash
#
# make bench: evstream's figures, each beside a plain one taken in the same run on
# the same throwaway server.
#
#   ingest        one consumer takes a Kafka topic that is full already: events
#                 stored, deduplicated, counted by user. Beside it: COPY of the same
#                 rows into the same tables, their ids into a table with a unique
#                 index, and an SQL aggregate
#   ingest-items  the same, and counted by user and item
#   ingest-local  the same as that from the outbox of the embedded log; only where B names it
#   counts-only   the same topic without stored events and items. Beside it: a bare
#                 consumer that parses the records and throws them away (bench/bare.c)
#   two-consumers two consumers as in the line ingest, of partitions of about one size; on
#                 two cores the broker's share is taken off. Beside it: one
#   growth        the line ingest with 10 million events and ids, and a million users,
#                 in the tables already. Beside it: empty tables
#   growth-50m    the same with 50 million; only where B names it (it needs 15 GB)
#   track         transactions of one evstream_track, by 8 clients, workers off: what
#                 it takes of an application. Beside it: INSERT of the same values into
#                 a bare table
#   track-batch   events a second by evstream_track_batch of 1,000. Beside it: INSERT ...
#                 SELECT of the same jsonb into a bare table
#   embedded      events counted a second while 8 clients track them through the embedded
#                 log. Beside it: the clients alone. embedded-waiting: the age of the
#                 oldest event that waits in the end, in ms
#   snapshot      the same with a snapshot held meanwhile. Beside it: without
#   relay         a backlog of the outbox into Kafka. Beside it: a producer that copies
#                 the same rows
#   relay-latency from the begin of the statement that tracks and commits an event to its
#                 record at a consumer of Kafka, at 500 events a second, in ms. Beside it:
#                 INSERT into a bare table, and a producer when it is committed
#   idle          what all workers of a database take while there is nothing to do,
#                 in percent of a core (embedded log)
#   idle-kafka    the same with Kafka
#   matcher       events a second that are matched with 100,000 filters, of which 10
#                 match. Beside it: with 100 filters, of which 10 match
#   fanout        stored events to Redis, 10 subscribers each: deliveries a second,
#                 each of them an entry of a stream and a publication. Beside it: XADD
#                 and PUBLISH by redis-benchmark, pipelined by 100
#   latency       from the begin of the statement that tracks and commits an event to
#                 the message at a subscriber in Redis, at 1,000 events a second, in ms
#                 (embedded log). Beside it: INSERT into a bare table, and PUBLISH by
#                 the client when it is committed
#   latency-kafka the same with Kafka
#   memory-consumer, memory-notifier
#                 the most that one such worker had in all of the above, in MB: memory
#                 of its own (RssAnon), without what the server's processes share
#
# B          the lines to run, separated by spaces (all but ingest-local and growth-50m)
# RUNS       how often each is measured, ours and the other by turns (5)
# EVENTS     of the topic (1000000)
# EVEN_EVENTS of two-consumers (half as many again, as its start takes the larger part of a
#            shorter time)
# LOCAL_EVENTS of ingest-local (500000)
# GROWTH_ROWS that growth begins with (10000000), GROWTH_EVENTS of each of its runs (2000000)
# FANOUT_EVENTS of fanout (200000); LATENCY_RATE of latency (1000 a second)
# RELAY_EVENTS of relay (1000000)
# SECONDS_EACH  of a run of track and its like (5), of embedded (20), of idle (8) and of
#            latency (6)
# KEEP       not empty: the server's directory stays
#
# The table at the end goes to results/bench.json as well. Exit status: 0 all aims
# were met, 1 one was not, or something failed.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

LINES_ALL='ingest ingest-items counts-only two-consumers growth track track-batch embedded snapshot relay relay-latency idle idle-kafka matcher fanout latency latency-kafka'
LINES_KNOWN="$LINES_ALL ingest-local growth-50m"
LINES=${B:-$LINES_ALL}
RUNS=${RUNS:-5}
EVENTS=${EVENTS:-1000000}
EVEN_EVENTS=${EVEN_EVENTS:-$((EVENTS * 3 / 2))}
LOCAL_EVENTS=${LOCAL_EVENTS:-500000}
GROWTH_EVENTS=${GROWTH_EVENTS:-2000000}
GROWTH_ROWS=${GROWTH_ROWS:-10000000}
TRACK_SECONDS=${SECONDS_EACH:-5}
SUSTAINED_SECONDS=${SECONDS_EACH:-20}
RELAY_EVENTS=${RELAY_EVENTS:-1000000}
IDLE_SECONDS=${SECONDS_EACH:-8}
FANOUT_EVENTS=${FANOUT_EVENTS:-200000}
LATENCY_RATE=${LATENCY_RATE:-1000}
LATENCY_SECONDS=${SECONDS_EACH:-6}
SEED=1

for line in $LINES; do
	[[ " $LINES_KNOWN " == *" $line "* ]] || { echo "bench: no line \"$line\" (there are: $LINES_KNOWN)" >&2; exit 2; }
done

TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-bench.XXXXXX")
MEMORY_FILE=/dev/shm/evstream-bench.$$
chmod 755 "$TMP"
finish()
{
	end_servers "$TMP"
	rm -f "$MEMORY_FILE"
	sleep 0.2
	if [ -n "${KEEP:-}" ]; then echo "kept: $TMP" >&2; else rm -rf "$TMP"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM
: >"$TMP/runs"

say() { echo "$*" >&2; }

fail()
{
	say "bench: $*"
	[ ! -s "$TMP/run/server.log" ] || tail -n 20 "$TMP/run/server.log" >&2
	exit 1
}

# psql as the superuser: psql_in DATABASE ARGUMENT...
psql_in()
{
	local database=$1
	shift
	"$BINDIR/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$TMP/run" -p "$PORT" -U postgres -d "$database" "$@"
}

# One measurement: measured LINE OURS [OTHER].
measured()
{
	echo "$1 $2 ${3:--}" >>"$TMP/runs"
	say "$(awk -v line="$1" -v a="$2" -v b="${3:-0}" 'BEGIN {
		printf "%-17s %12.4g", line, a; if (b) printf "  beside %12.4g  ratio %6.3f", b, a / b }')"
}

# Seconds on this machine's clock, with fraction.
now() { date +%s.%N; }

# Switches all workers on or off, for the server as a whole.
workers()
{
	psql_in postgres -c "ALTER SYSTEM SET evstream.enabled = $1" -c 'SELECT pg_reload_conf()' >/dev/null
}

# A database of its own with the extension in it, whose workers are off:
# new_database NAME [SETTING=VALUE...], the settings without "evstream.".
new_database()
{
	local database=$1 setting
	shift
	workers off
	psql_in postgres -c "CREATE DATABASE $database TEMPLATE template0"
	for setting in "$@"; do
		psql_in postgres -c "ALTER DATABASE $database SET evstream.${setting%%=*} = '${setting#*=}'"
	done
	psql_in "$database" -c 'CREATE EXTENSION evstream'
}

drop_database()
{
	workers off
	psql_in postgres -c "DROP DATABASE $1 WITH (FORCE)"
}

# Memory that the host of a virtual machine gives only when it is first touched costs
# many times what its use does: what comes first, and what takes more of it, would seem
# slow. So what the lines will take is touched before them.
touch_memory()
{
	local kb
	kb=$(awk '$1 == "MemAvailable:" { print int($2 / 2) }' /proc/meminfo)
	[ "$kb" -lt $((12 * 1024 * 1024)) ] || kb=$((12 * 1024 * 1024))
	# as much of it as there is room for
	head -c "${kb}K" /dev/zero 2>/dev/null >"$MEMORY_FILE" || true
	rm -f "$MEMORY_FILE"
}

start_server()
{
	pg_dir "$TMP/run"
	pg_dir "$TMP/data"
	PORT=$(free_port)
	as_pg "$BINDIR/initdb" -D "$TMP/data" -U postgres -A trust --encoding=UTF8 --locale=C >"$TMP/initdb.log" 2>&1 ||
		{ cat "$TMP/initdb.log" >&2; fail 'initdb failed'; }
	as_pg tee -a "$TMP/data/postgresql.conf" >/dev/null <<-END
	shared_preload_libraries = 'evstream'
	evstream.enabled = off
	evstream.kafka_topic = 'bench'
	evstream.consumers = 1
	listen_addresses = ''
	port = $PORT
	unix_socket_directories = '$TMP/run'
	shared_buffers = '1GB'
	work_mem = '64MB'
	min_wal_size = '2GB'
	max_wal_size = '8GB'
	checkpoint_timeout = '30min'
	autovacuum = on
	fsync = on
	jit = off
	END
	as_pg "$BINDIR/pg_ctl" -D "$TMP/data" -l "$TMP/run/server.log" -w start >/dev/null || fail 'the server did not start'

	# A server that has been up for a while writes to WAL files that are there: in a new
	# one, whoever writes the next would wait until it is made.
	psql_in postgres -c "CREATE TABLE wal (n int); INSERT INTO wal VALUES (0)"
	for _ in $(seq 100); do
		psql_in postgres -c 'UPDATE wal SET n = n + 1' -c 'SELECT pg_switch_wal()' >/dev/null
	done
	psql_in postgres -c 'DROP TABLE wal' -c CHECKPOINT
}

BROKERS=
# Starts the broker, compiled as one that has long been up; 1: there is no Kafka on this machine.
# Its heap is that of Kafka's own start script, nearly all of it for what is young: else
# collections of garbage would hold up a hundredth of all records for longer than all
# else takes.
start_kafka()
{
	local rc=0
	[ -z "$BROKERS" ] || return 0
	pg_dir "$TMP/kafka"
	"$REPO/scripts/kafka.sh" fetch >&2 || rc=$?
	[ $rc != 0 ] || BROKERS=$(cd "$TMP/run" && as_pg env KAFKA_JVM="-Xms1g -Xmx1g -Xmn768m" "$REPO/scripts/kafka.sh" start "$TMP/kafka") || rc=$?
	if [ $rc = 77 ] && [ -z "${CI:-}" ]; then
		return 1
	elif [ $rc != 0 ]; then
		fail 'the broker did not start'
	fi
}

redis_here()
{
	local action=$1
	shift
	as_pg "$REPO/scripts/redis.sh" "$action" "$TMP/redis" "$@"
}

# Starts Redis, or leaves the one that runs; 1: there is none on this machine.
REDIS=
start_redis()
{
	local rc=0
	pg_dir "$TMP/redis"
	REDIS=$(cd "$TMP/run" && redis_here start) || rc=$?
	if [ $rc = 77 ] && [ -z "${CI:-}" ]; then
		return 1
	elif [ $rc != 0 ]; then
		fail 'Redis did not start'
	fi
}

for file in ingest track relay idle matcher fanout latency memory; do
	. "$REPO/bench/$file.sh"
done

# ---- the run ----

private_install "$TMP/inst"
make -s -C "$REPO" bench/evgen bench/kprobe bench/latency bench/bare bench/relay
touch_memory
start_server
sample_memory >"$TMP/memory" &
for line in $LINES; do
	began=$SECONDS
	"line_${line//-/_}"
	say "$line took $((SECONDS - began)) s"
done

# ---- what came out ----

memory_lines

# A worker that fails tries again, and nothing is lost but time: a run should have none.
awk '/ (ERROR|FATAL):  /  { error = $0 }
	/ (LOG|WARNING):  / { error = "" }
	/evstream (consumer|relay|notifier|maintenance)/ && error { print "bench: a worker failed: " error; error = "" }
' "$TMP/run/server.log" >&2

mkdir -p "$REPO/results"
{
	cat <<-END
	meta cores $(nproc)
	meta postgresql $(psql_in postgres -c 'SHOW server_version' | cut -d' ' -f1)
	meta runs $RUNS
	meta events $EVENTS
	meta local_events $LOCAL_EVENTS
	meta growth_events $GROWTH_EVENTS
	meta growth_rows $GROWTH_ROWS
	meta fanout_events $FANOUT_EVENTS
	meta latency_rate $LATENCY_RATE
	meta relay_events $RELAY_EVENTS
	END
	cat "$TMP/runs"
} | awk -v json="$REPO/results/bench.json" -f "$REPO/bench/report.awk"
