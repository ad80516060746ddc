#!/bin/bash
#
# make torture: faults at random moments of a stream, by seed, and whether all is counted
# once (t/090_torture.pl).
#
#   SEED      of the first run (the time of day), the next run has the next one
#   RUNS      how many (20)
#   FAULTS    only these, by name, separated by commas; "list" prints their names
#   MODES     only these of kafka, mock, embedded
#
# One line for each run; a run that fails says its seed and leaves its files. As root,
# disks are filled too: two small file systems are mounted for that.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"

SEED=${SEED:-$(($(date +%s) % 100000))}
RUNS=${RUNS:-20}
FAULTS=${FAULTS:-}
MODES=${MODES:-}
PGXS_DIR=$(dirname "$(dirname "$($PG_CONFIG --pgxs)")")	# …/pgxs/src

TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-torture.XXXXXX")
chmod 755 "$TMP"
mkdir -m 1777 "$TMP/tmp"
export TMPDIR=$TMP/tmp
disk=
cleanup()
{
	end_servers "$TMP"
	if [ -n "$disk" ]; then
		umount "$disk/data" "$disk/wal" 2>/dev/null || true
	fi
	if [ "${1:-}" = keep ]; then
		echo "files of failed runs are below $TMP" >&2
	else
		rm -rf "$TMP"
	fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ "$FAULTS" = list ]; then
	sed -n "s/^fault \([a-z_]*\) => .*/\1/p" t/lib/EvstreamTorture/Faults?*.pm | sort
	exit 0
fi

private_install "$TMP/inst"
make -s bench/evgen bench/kprobe bench/kmock bench/clockstep.so

pg_dir "$TMP/disk"
mkdir "$TMP/disk/data" "$TMP/disk/wal"
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=160m,mode=777 evstream "$TMP/disk/data" 2>/dev/null; then
	disk=$TMP/disk
	mount -t tmpfs -o size=128m,mode=777 evstream "$TMP/disk/wal"
else
	echo "no disk is filled: a file system of a test's own needs root"
fi

# Tests run in a copy: the user that runs PostgreSQL may not read here.
mkdir -p "$TMP/tree" "$TMP/home"
cp -a t bench scripts "$TMP/tree/"
pg_dir "$TMP/tree"
pg_dir "$TMP/home"
pg_dir "$TMP/tap"
cd "$TMP/tree"

status=0
as_pg env HOME="$TMP/home" LC_ALL=C.UTF-8 PATH="$BINDIR:$PATH" TESTDIR="$TMP/tap" top_builddir="$TMP/tree" \
	PG_REGRESS="$PGXS_DIR/test/regress/pg_regress" PERL5LIB="$PGXS_DIR/test/perl${PERL5LIB:+:$PERL5LIB}" \
	EVSTREAM_TORTURE_DISK="$disk" EVSTREAM_TORTURE_SEED="$SEED" EVSTREAM_TORTURE_RUNS="$RUNS" \
	EVSTREAM_TORTURE_FAULTS="$FAULTS" EVSTREAM_TORTURE_MODES="$MODES" \
	perl t/090_torture.pl 2>&1 | tee "$TMP/log" | grep --line-buffered -v '^# ' || true
status=${PIPESTATUS[0]}
passed=$(grep -c '^ok ' "$TMP/log" || true)
failed=$(grep -c '^not ok ' "$TMP/log" || true)
if [ "$failed" != 0 ] || [ "$passed" != "$RUNS" ] || [ "$status" != 0 ]; then
	grep -A12 '^#   Failed test' "$TMP/log" | tail -n 200 || true
	trap - EXIT
	cleanup keep
	status=1
fi
echo "$passed of $RUNS runs passed, seeds $SEED to $((SEED + RUNS - 1))"
exit $status
