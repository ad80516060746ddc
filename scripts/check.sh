#!/bin/bash
#
# make check: every test, in servers and a broker of its own, side by side.
#
# usage: check.sh [NAME...]   NAME: a test, by the name of its file without ending
#
#   test/*_test.c       unit tests in C, with sanitizers, printing TAP; X_test.c is
#                       built with those src/X*.c that include no server header
#   test/X_fuzz.c       fuzz targets, built likewise or with what they name, and run once
#                       on each file of test/corpus/X
#   bench/*_test.sh     tests of the tools, printing TAP
#   sql/*.sql           pg_regress, in the order of sql/schedule or else by name; with
#                       NAME, sql/setup.sql comes before it, where there is one
#   specs/*.spec        pg_isolation_regress
#   t/*.pl              TAP
#
# Ends with one line, "N passed, N failed, N skipped", and a status other than 0 if
# any failed or none ran. What regress and isolation tests gave that was not expected
# is left in results/ (make accept). EVSTREAM_CHECK_JOBS: how many parts at once.
# EVSTREAM_SANITIZE=yes (make check-asan): the library is built with AddressSanitizer and
# UndefinedBehaviorSanitizer; each report is a failure.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"

NAME=$*
JOBS=${EVSTREAM_CHECK_JOBS:-3}
LIMIT=${EVSTREAM_CHECK_TIMEOUT:-1800}
PGXS_DIR=$(dirname "$(dirname "$($PG_CONFIG --pgxs)")")	# …/pgxs/src

TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-check.XXXXXX")
chmod 755 "$TMP"
# What a test that is killed leaves behind goes with the rest.
mkdir -m 1777 "$TMP/tmp"
export TMPDIR=$TMP/tmp
keep=no
cleanup()
{
	local pid
	for pid in $(jobs -p); do kill -TERM "$pid" 2>/dev/null || true; done
	end_servers "$TMP"
	if [ $keep = yes ] && [ -z "${CI:-}" ]; then
		echo "logs and data are kept in $TMP" >&2
	else
		rm -rf "$TMP"
	fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- what is there -----------------------------------------------------------

shopt -s nullglob
wanted() { [ -z "$NAME" ] || [[ " $NAME " = *" $1 "* ]]; }
base() { local f=${1##*/}; echo "${f%.*}"; }

units=() fuzzers=() tools=() regress=() isolation=() taps=()
for f in test/*_test.c; do wanted "$(base "$f")" && units+=("$(base "$f")"); done
for f in test/*_fuzz.c; do wanted "$(base "$f")" && fuzzers+=("$(base "$f")"); done
for f in bench/*_test.sh; do wanted "$(base "$f")" && tools+=("$(base "$f")"); done
for f in specs/*.spec; do wanted "$(base "$f")" && isolation+=("$(base "$f")"); done
for f in t/*.pl; do wanted "$(base "$f")" && taps+=("$(base "$f")"); done
if [ -e sql/schedule ]; then
	names=$(sed -n 's/^test: *//p' sql/schedule)
else
	names=$(for f in sql/*.sql; do base "$f"; done)
fi
for n in $names; do wanted "$n" && regress+=("$n"); done
if [ -n "$NAME" ] && [ ${#regress[@]} -gt 0 ] && [ "$NAME" != setup ] && [ -e sql/setup.sql ]; then
	regress=(setup "${regress[@]}")
fi
if [ $((${#units[@]} + ${#fuzzers[@]} + ${#tools[@]} + ${#regress[@]} + ${#isolation[@]} + ${#taps[@]})) = 0 ]; then
	echo "no test ${NAME:+is named $NAME}" >&2
	echo "0 passed, 0 failed, 0 skipped"
	exit 1
fi

# --- build, and a place for it -----------------------------------------------

began=$SECONDS
if ! private_install "$TMP/inst"; then
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
fi
# Some tests are of a build with records that crash or hang a worker.
DEBUG_BINDIR=
for n in ${taps[@]+"${taps[@]}"}; do
	grep -q EVSTREAM_DEBUG_BINDIR "t/$n.pl" && [ -z "$DEBUG_BINDIR" ] || continue
	if ! variant_install "$TMP/debug" "$TMP/inst" "-DEVSTREAM_DEBUG_POINTS ${EVSTREAM_SANITIZE:+$SANITIZE}"; then
		echo "0 passed, 1 failed, 0 skipped"
		exit 1
	fi
	DEBUG_BINDIR=$VARIANT_BINDIR
done
# With sanitizers: in the library alone, as Debian's server is without.
reports=$TMP/reports
if [ -n "${EVSTREAM_SANITIZE:-}" ]; then
	variant_install "$TMP/sanitized" "$TMP/inst" "$SANITIZE" || exit 1
	BINDIR=$VARIANT_BINDIR
	mkdir "$reports"
	chmod 1777 "$reports"
	mapfile -t command < <(sanitized "$reports")
	wrap_server "$BINDIR" "${command[@]}"
	[ -z "$DEBUG_BINDIR" ] || wrap_server "$DEBUG_BINDIR" "${command[@]}"
fi
# An older server with the extension, for pg_upgrade.
OLDER=
if [ -e t/086_pg_upgrade.pl ] && wanted 086_pg_upgrade && older=$(older_pg_config) && [ -n "$older" ]; then
	mkdir "$TMP/older-tree"
	tar -cf - Makefile evstream.control evstream--*.sql scripts $(printf '%s\n' src/*.[ch]) | tar -xf - -C "$TMP/older-tree"
	(PG_CONFIG=$older && private_install "$TMP/older" "$TMP/older-tree") || exit 1
	OLDER=$TMP/older$(dirname "$("$older" --bindir)")
fi
built=()
for tool in evgen kprobe kmock clockstep.so; do
	[ ! -e "bench/${tool%.so}.c" ] || built+=("bench/$tool")
done
if [ ${#built[@]} -gt 0 ] && ! make -s "${built[@]}" >"$TMP/tools.log" 2>&1; then
	cat "$TMP/tools.log" >&2
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
fi

# Tests run in a copy: the user that runs PostgreSQL may not read or write here.
mkdir -p "$TMP/tree" "$TMP/log" "$TMP/home"
for d in sql expected specs t test bench scripts examples src; do
	[ ! -e "$d" ] || cp -a "$d" "$TMP/tree/"
done
# A new test has no expected file yet: then all that it gives is a difference.
for n in ${regress[@]+"${regress[@]}"} ${isolation[@]+"${isolation[@]}"}; do
	mkdir -p "$TMP/tree/expected"
	[ -e "$TMP/tree/expected/$n.out" ] || : >"$TMP/tree/expected/$n.out"
done
pg_dir "$TMP/tree"
pg_dir "$TMP/home"

if [ $((${#taps[@]} + ${#tools[@]})) -gt 0 ]; then
	# Once here, not by each test; without it they skip, or fail under CI.
	scripts/kafka.sh fetch || [ $? = 77 ] || exit 1
fi

cat >"$TMP/server.conf" <<-'END'
shared_preload_libraries = 'evstream'
fsync = off
max_worker_processes = 20
max_prepared_transactions = 10
log_line_prefix = '%m [%p] %b %q%a %d '
log_autovacuum_min_duration = -1
log_checkpoints = off
END

test_env()
{
	env HOME="$TMP/home" LC_ALL=C.UTF-8 PATH="$BINDIR:$PATH" \
		TESTDIR="$TMP/tap/$1" top_builddir="$TMP/tree" \
		PG_REGRESS="$PGXS_DIR/test/regress/pg_regress" \
		EVSTREAM_DEBUG_BINDIR="$DEBUG_BINDIR" \
		EVSTREAM_DATA="${EVSTREAM_DATA:-$REPO/../shared/data}" EVSTREAM_OLDER="$OLDER" \
		PERL5LIB="$PGXS_DIR/test/perl${PERL5LIB:+:$PERL5LIB}" "${@:2}"
}

# --- the kinds of parts; each prints to its log ------------------------------

build_unit() # NAME [FILE...]: test/NAME.c with what it says or src/X*.c, with sanitizers
{
	# shellcheck disable=SC2046
	gcc -std=gnu99 -D_GNU_SOURCE -g -O1 -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare \
		-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer \
		-Isrc -o "$TMP/$1" "test/$1.c" "${@:2}" $(test_sources "$1") $(test_libraries "$1") -lm
}

run_unit()
{
	build_unit "$1" || return
	cd "$TMP/tree"
	test_env "$1" timeout "$LIMIT" "$TMP/$1"
}

# Without libFuzzer: a main() that hands over the files, one run of the program each.
run_fuzz()
{
	local n=0 f word
	cat >"$TMP/$1.main.c" <<-'END'
	#include <stdint.h>
	#include <stdio.h>
	extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
	int
	main(int argc, char **argv)
	{
		static uint8_t data[1 << 22];
		FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;

		return file == NULL || LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof(data), file)) != 0;
	}
	END
	build_unit "$1" "$TMP/$1.main.c" || return
	for f in test/corpus/"${1%_fuzz}"/*; do
		n=$((n + 1)) word=ok
		ASAN_OPTIONS=allocator_may_return_null=1 timeout 60 "$TMP/$1" "$f" || word='not ok'
		echo "$word $n - ${f##*/}"
	done
	echo "1..$n"
}

# The tools may want a server (EVGEN_DSN), and a broker: KAFKA_BROKERS and KAFKA_TOPIC
# are set where there is one.
run_tool()
{
	local dir=$TMP/tool-$1 brokers=
	pg_dir "$dir"
	cd "$TMP/tree"
	if brokers=$(as_pg scripts/kafka.sh start "$dir/kafka"); then
		as_pg bench/kprobe -b "$brokers" create "${1%_test}" 4 || return
	elif [ -n "${CI:-}" ]; then
		return 1
	fi
	as_pg "$BINDIR/initdb" -D "$dir/data" -U postgres -A trust -N --encoding=UTF8 --locale=C >/dev/null || return
	as_pg "$BINDIR/pg_ctl" -D "$dir/data" -l "$dir/server.log" -w -o "-F -c listen_addresses= -k $dir" start || return
	as_pg env HOME="$TMP/home" PATH="$BINDIR:$PATH" EVGEN_DSN="host=$dir user=postgres dbname=postgres" KAFKA_BROKERS="$brokers" KAFKA_TOPIC="${1%_test}" \
		timeout "$LIMIT" bash "bench/$1.sh"
}

run_regress()
{
	pg_dir "$TMP/regress"
	cd "$TMP/regress"
	as_pg timeout "$LIMIT" "$PGXS_DIR/test/regress/pg_regress" --temp-instance="$TMP/regress/instance" \
		--temp-config="$TMP/server.conf" --bindir="$BINDIR" --inputdir="$TMP/tree" --outputdir="$TMP/regress" \
		--encoding=UTF8 --no-locale --dbname=contrib_regression "${regress[@]}"
}

run_isolation()
{
	pg_dir "$TMP/isolation"
	cd "$TMP/isolation"
	as_pg timeout "$LIMIT" "$PGXS_DIR/test/isolation/pg_isolation_regress" --temp-instance="$TMP/isolation/instance" \
		--temp-config="$TMP/server.conf" --bindir="$BINDIR" --inputdir="$TMP/tree" --outputdir="$TMP/isolation" \
		--encoding=UTF8 --no-locale --dbname=isolation_regression "${isolation[@]}"
}

run_tap()
{
	pg_dir "$TMP/tap/$1"
	cd "$TMP/tree"
	test_env "$1" bash -c '. scripts/lib.sh; as_pg "$@"' bash timeout "$LIMIT" prove -v "t/$1.pl"
}

# --- run them, count, report -------------------------------------------------

passed=0 failed=0 skipped=0

# Counts from a log: TAP's top level, or the lines of pg_regress before 16.
count()
{
	awk '
		/^not ok .*# *(TODO|todo)/			{ p++; next }
		/^(not )?ok .*# *[Ss][Kk][Ii][Pp]/	{ s++; next }
		/^not ok/							{ f++; next }
		/^ok ./								{ p++; next }
		/^1\.\.0 *# *[Ss][Kk][Ii][Pp]|\.\. skipped:/	{ s++; next }
		/^(test |     ).*\.\.\. ok/			{ p++; next }
		/^(test |     ).*\.\.\. (FAILED|failed)/	{ f++; next }
		END									{ print p + 0, f + 0, s + 0 }' "$1"
}

report()
{
	local id=$1 kind=${1%%/*} log p f s rc secs word=ok
	log=$TMP/log/${id//\//-}
	read -r rc secs <"$log.rc"
	read -r p f s <<<"$(count "$log")"
	# A crash or a time-out has no line of its own.
	if [ "$rc" != 0 ] && [ "$f" = 0 ]; then f=1; fi
	if [ $((p + f + s)) = 0 ]; then f=1; fi
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	[ "$f" = 0 ] || { word=FAIL; keep=yes; }
	printf '%-4s %-28s %4d passed %3d failed %3d skipped %5d s\n' "$word" "$id" "$p" "$f" "$s" "$secs"
	grep -E '# *[Ss][Kk][Ii][Pp]|\.\. skipped:' "$log" | sed 's/^/       /' | sort | uniq -c | head -n 5 || true
	[ "$f" != 0 ] || return 0

	echo "----- $id: status $rc -----"
	grep -v '^ok ' "$log" | tail -n 150
	case $kind in
		regress | isolation)
			head -n 300 "$TMP/$kind/regression.diffs" 2>/dev/null || true
			grep -E 'PANIC|FATAL|TRAP|terminated by signal|was terminated' "$TMP/$kind/log/postmaster.log" 2>/dev/null | tail -n 20 || true
			mkdir -p "$REPO/results"
			sed -n 's/^\(test \|     \|not ok [0-9]* *[-+] *\)\([A-Za-z0-9_-]*\).*/\2/p' <(grep -E '^(not ok|(test |     ).*(FAILED|failed))' "$log") |
				while read -r f; do cp "$TMP/$kind/results/$f.out" "$REPO/results/" 2>/dev/null || true; done ;;
		t)
			for f in "$TMP"/tap/"${id#t/}"/tmp_check/log/*.log; do
				echo "--- ${f##*/} (end)"
				tail -n 40 "$f"
			done ;;
	esac
	echo "----- end of $id -----"
}

rm -rf "$REPO/results"
queue=()
for n in ${units[@]+"${units[@]}"}; do queue+=("unit/$n"); done
for n in ${fuzzers[@]+"${fuzzers[@]}"}; do queue+=("fuzz/$n"); done
[ ${#regress[@]} = 0 ] || queue+=(regress)
[ ${#isolation[@]} = 0 ] || queue+=(isolation)
for n in ${taps[@]+"${taps[@]}"}; do queue+=("t/$n"); done
for n in ${tools[@]+"${tools[@]}"}; do queue+=("tool/$n"); done

launch()
{
	local id=$1 log
	log=$TMP/log/${id//\//-}
	(
		trap - EXIT
		start=$SECONDS rc=0
		case $id in
			unit/*) run_unit "${id#*/}" ;;
			fuzz/*) run_fuzz "${id#*/}" ;;
			tool/*) run_tool "${id#*/}" ;;
			t/*) run_tap "${id#*/}" ;;
			*) "run_$id" ;;
		esac >"$log" 2>&1 </dev/null || rc=$?
		echo "$rc $((SECONDS - start))" >"$log.tmp"
		mv "$log.tmp" "$log.rc"
	) &
}

echo "built in $((SECONDS - began)) s"
open=()
next=0
while [ $next -lt ${#queue[@]} ] || [ ${#open[@]} -gt 0 ]; do
	while [ $next -lt ${#queue[@]} ] && [ ${#open[@]} -lt "$JOBS" ]; do
		launch "${queue[$next]}"
		open+=("${queue[$next]}")
		next=$((next + 1))
	done
	wait -n || true
	still=()
	for id in "${open[@]}"; do
		if [ -e "$TMP/log/${id//\//-}.rc" ]; then report "$id"; else still+=("$id"); fi
	done
	open=(${still[@]+"${still[@]}"})
done

if [ -n "${EVSTREAM_SANITIZE:-}" ]; then
	# UBSan writes to the server's log.
	mapfile -t found < <(find "$reports" -type f
		grep -rlE --include='*.log' 'runtime error: |ERROR: AddressSanitizer' "$TMP/regress" "$TMP/isolation" "$TMP/tap" 2>/dev/null)
	for f in ${found[@]+"${found[@]}"}; do
		failed=$((failed + 1)) keep=yes
		echo "----- ${f##*/} -----"
		grep -nE -A 40 'runtime error: |ERROR: AddressSanitizer' "$f" | head -n 80
	done
	echo "sanitizers: ${#found[@]} reports"
fi
echo "all parts: $((SECONDS - began)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $((passed + failed)) -gt 0 ]
