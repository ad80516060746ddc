#!/bin/bash
#
# make check-valgrind: the embedded log's consumer under valgrind, over so many events.
#
# usage: valgrind.sh [EVENTS]
#
# The events are tracked by a plain server with evstream.enabled = off; then the same
# server runs under valgrind until all is counted, and is stopped. Debian's server is
# built without valgrind's help, so that it and its padding give errors of their own:
# an error or a leak counts as ours where, from the inside of its stack, a function of
# ours comes before one of the server's. What libraries do for us is ours.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"

EVENTS=${1:-1000000}
TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-valgrind.XXXXXX")
chmod 755 "$TMP"
cleanup() { end_servers "$TMP"; rm -rf "$TMP"; }
trap cleanup EXIT
trap 'exit 130' INT TERM

private_install "$TMP/inst"
pg_dir "$TMP/data"
pg_dir "$TMP/log"
as_pg "$BINDIR/initdb" -D "$TMP/data" -U postgres -A trust -N --encoding=UTF8 --locale=C >/dev/null
cat >>"$TMP/data/postgresql.conf" <<-END
shared_preload_libraries = 'evstream'
listen_addresses = ''
unix_socket_directories = '$TMP/log'
fsync = off
autovacuum = off
max_wal_size = '8GB'
max_worker_processes = 16
evstream.enabled = off
END
server() { as_pg "$BINDIR/pg_ctl" -D "$TMP/data" -l "$TMP/log/server.log" -w -t 600 "$@" >/dev/null; }
sql() { as_pg "$BINDIR/psql" -X -A -t -q -v ON_ERROR_STOP=1 -h "$TMP/log" -U postgres -d postgres "$@"; }

server start
# Of a hundred, two are no good, and two come twice.
sql -c 'CREATE EXTENSION evstream' -c "
DO \$\$
BEGIN
	FOR chunk IN 0 .. ($EVENTS - 1) / 1000 LOOP
		PERFORM evstream_track_batch((SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
				'user_id', CASE WHEN n % 100 = 7 THEN '' ELSE 'user-' || n % 5000 END,
				'event_type', (ARRAY['view', 'click', 'purchase', 'login'])[1 + n % 4],
				'event_id', CASE WHEN n % 50 = 3 THEN 'twice-' || n / 100 END,
				'item_id', CASE WHEN n % 3 = 0 THEN 'item-' || n % 500 END,
				'amount', CASE WHEN n % 4 = 2 THEN n % 1000 / 100.0 END,
				'properties', jsonb_build_object('n', n, 'text', repeat('é\"', n % 20), 'list', '[1, {\"a\": null}]'::jsonb))))
			FROM generate_series(chunk * 1000, least(chunk * 1000 + 999, $EVENTS - 1)) n), 'dead_letter');
		COMMIT;
	END LOOP;
END
\$\$"
tracked=$(sql -c "SELECT (SELECT count(*) FROM evstream.outbox_0) + (SELECT count(*) FROM evstream.outbox_1) + (SELECT count(*) FROM evstream.outbox_2)")
server -m fast stop

mkdir "$TMP/valgrind"
chmod 1777 "$TMP/valgrind"
wrap_server "$BINDIR" valgrind --log-file="$TMP/valgrind/%p" --error-limit=no --leak-check=full --show-leak-kinds=definite --num-callers=40 --fullpath-after=
sed -i 's/^evstream.enabled = off/evstream.enabled = on/' "$TMP/data/postgresql.conf"
began=$SECONDS
server start
until [ "$(sql -c 'SELECT COALESCE(max(to_offset), 0) FROM evstream.batch_log' 2>/dev/null || true)" = "$tracked" ]; do
	sleep 1
done
took=$((SECONDS - began))
result=$(sql -c "SELECT sum(event_count) || ' counted, ' || (SELECT count(*) FROM evstream_events) || ' stored' FROM evstream_daily_totals")
consumer=$(sql -c "SELECT pid FROM evstream_workers WHERE role = 'consumer'")
peak=$(awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$consumer/status")
server -m fast stop

awk -v ours="$REPO/src/" -v consumer="$consumer" '
	function judge() {
		if (block == "") return
		blocks++
		if (verdict == "ours") { bad++; printf "%s", block }
		block = ""; verdict = ""
	}
	{ sub(/^==[0-9]+== ?/, "") }
	/^   (at|by) 0x/ {
		block = block $0 "\n"
		if (verdict == "" && index($0, ours)) verdict = "ours"
		else if (verdict == "" && /\/postgres\.bin\)/) verdict = "server"
		next
	}
	/^ / && block != "" { block = block $0 "\n"; next }
	/^(Invalid|Conditional|Use of|Syscall|Source|Mismatched|Argument|Jump|Process terminating)/ || /are definitely lost/ { judge(); block = FILENAME ": " $0 "\n"; next }
	/^$/ { judge() }
	END { judge(); printf "%d errors and leaks in all, %d of them ours\n", blocks, bad; exit bad > 0 }
' "$TMP"/valgrind/* && status=0 || status=1
if grep -E 'PANIC|TRAP|terminated by signal' "$TMP/log/server.log"; then status=1; fi
echo "$tracked events tracked, $result in $took s; consumer's peak under valgrind: $peak MB"
[ $status = 0 ] && echo "no error and no leak of ours"
exit $status
