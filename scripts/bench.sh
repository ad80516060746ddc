#!/bin/bash
#
# make bench: how fast one consumer takes a topic that is full already (events
# stored, deduplicated, counted by user and by item), against COPY of the same rows
# into the same tables and one SQL aggregate, in the same server and the same run.
#
# EVENTS (1000000) says how many; exit status 1 if the consumer's rate is below FLOOR
# (0.25) of the other.

set -euo pipefail
. "$(dirname "$0")/lib.sh"

EVENTS=${EVENTS:-1000000}
FLOOR=${FLOOR:-0.25}

TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-bench.XXXXXX")
chmod 755 "$TMP"
trap 'end_servers "$TMP"; sleep 0.2; rm -rf "$TMP"' EXIT
trap 'exit 130' INT TERM

sql() { "$BINDIR/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$TMP/run" -p "$PORT" -U postgres -d postgres "$@"; }

private_install "$TMP/inst"
make -s -C "$REPO" bench/evgen bench/kprobe
"$REPO/scripts/kafka.sh" fetch
pg_dir "$TMP/kafka"
pg_dir "$TMP/run"
pg_dir "$TMP/data"
cd "$TMP/run"
brokers=$(as_pg "$REPO/scripts/kafka.sh" start "$TMP/kafka")
"$REPO/bench/kprobe" -b "$brokers" create bench 4 max.message.bytes=8000000
"$REPO/bench/evgen" --brokers "$brokers" --topic bench --events "$EVENTS" --seed 1 --duplicates 5 --late 2 --broken 1 \
	--truth "$TMP/truth" 2>"$TMP/evgen.log" || { cat "$TMP/evgen.log"; exit 1; }

PORT=$(free_port)
as_pg "$BINDIR/initdb" -D "$TMP/data" -U postgres -A trust --encoding=UTF8 --locale=C >"$TMP/initdb.log" 2>&1
as_pg tee -a "$TMP/data/postgresql.conf" >/dev/null <<END
shared_preload_libraries = 'evstream'
evstream.kafka_brokers = '$brokers'
evstream.kafka_topic = 'bench'
evstream.consumers = 1
listen_addresses = ''
port = $PORT
unix_socket_directories = '$TMP/run'
shared_buffers = '1GB'
max_wal_size = '8GB'
END
as_pg "$BINDIR/pg_ctl" -D "$TMP/data" -l "$TMP/run/server.log" -w start >/dev/null ||
	{ tail -n 20 "$TMP/run/server.log"; exit 1; }

# Paused from the first moment, so that the clock starts with the work.
sql -c 'BEGIN' -c 'CREATE EXTENSION evstream' -c 'SELECT evstream_pause()' -c 'COMMIT' >/dev/null
sql -c 'CHECKPOINT'
consumer=$(sql 2>&1 <<SQL
\set VERBOSITY terse
SELECT evstream_resume();
DO \$\$
DECLARE
	start timestamptz := clock_timestamp();
	counted bigint;
BEGIN
	LOOP
		SELECT sum(event_count) INTO counted FROM evstream_daily_totals;
		EXIT WHEN counted >= $EVENTS;
		IF clock_timestamp() > start + interval '10 min' THEN
			RAISE 'only % of $EVENTS events after 10 minutes', counted;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.02);
	END LOOP;
	RAISE NOTICE 'seconds %', extract(epoch FROM clock_timestamp() - start);
END
\$\$;
SQL
) || { echo "$consumer"; tail -n 20 "$TMP/run/server.log"; exit 1; }
consumer=$(sed -n 's/.*seconds \([0-9.]*\).*/\1/p' <<<"$consumer")

sql -c 'SELECT evstream_wait()' -c 'SELECT evstream_pause()' >/dev/null
difference=$(sql -v prefix="$TMP/truth" -f "$REPO/scripts/compare.sql")
[ -z "$difference" ] || { echo "the counts are not the truth:"; echo "$difference"; exit 1; }

rows=$(sql -c 'SELECT count(*) FROM evstream.events')
sql -c "COPY (SELECT * FROM evstream.events) TO '$TMP/run/events'"
sql -c 'TRUNCATE evstream.events, evstream.ids, evstream.daily_counts, evstream.daily_items, evstream.daily_totals' -c 'CHECKPOINT'

seconds() # of the SQL in $1
{
	sql -c '\timing on' -c "$1" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | awk '{ print $1 / 1000 }'
}
copy=$(seconds "COPY evstream.events FROM '$TMP/run/events'")
aggregate=$(seconds "
WITH counts AS (
	INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at, updated_at)
	SELECT user_id, (occurred_at AT TIME ZONE 'UTC')::date, event_type, count(*), sum(amount), min(occurred_at), max(occurred_at), now()
	FROM evstream.events GROUP BY 1, 2, 3)
INSERT INTO evstream.daily_items (user_id, item_id, day, view_count, click_count, purchase_count, event_count, updated_at)
SELECT user_id, item_id, (occurred_at AT TIME ZONE 'UTC')::date, count(*) FILTER (WHERE event_type = 'view'),
	count(*) FILTER (WHERE event_type = 'click'), count(*) FILTER (WHERE event_type = 'purchase'), count(*), now()
FROM evstream.events WHERE item_id IS NOT NULL GROUP BY 1, 2, 3")

awk -v rows="$rows" -v consumer="$consumer" -v copy="$copy" -v aggregate="$aggregate" -v least="$FLOOR" '
BEGIN {
	ours = rows / consumer
	plain = rows / (copy + aggregate)
	printf "%d events stored, counts equal the truth\n", rows
	printf "one consumer               %8.2f s  %9d events/s\n", consumer, ours
	printf "COPY                       %8.2f s\n", copy
	printf "one aggregate              %8.2f s\n", aggregate
	printf "COPY and aggregate         %8.2f s  %9d rows/s\n", copy + aggregate, plain
	printf "ratio                      %8.2f    (floor %s)\n", ours / plain, least
	exit ours / plain < least
}'
