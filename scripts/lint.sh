#!/bin/bash
#
# make lint: what a compiler and the interpreters can say without a run.

set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"
shopt -s nullglob

TMP=$(mktemp -d)
trap 'rm -rf "$TMP"' EXIT
status=0
bad() { echo "lint: $*"; status=1; }

# The library and the tools, warnings being errors.
cp -r Makefile src bench scripts evstream.control evstream--*.sql "$TMP/"
find "$TMP" -name '*.o' -delete
rm -f "$TMP"/bench/{evgen,kprobe,latency}
make -s -C "$TMP" -j"$(nproc)" COPT=-Werror all || bad "the library has warnings"
make -s -C "$TMP" CC='gcc -Werror' bench/evgen bench/kprobe bench/latency || bad "the tools have warnings"

# The server's name space is one for all libraries.
if [ -e "$TMP/evstream.so" ]; then
	names=$(nm -D --defined-only "$TMP/evstream.so" | awk '{ print $3 }' | grep -Ev '^(evstream_|pg_finfo_evstream_|Pg_magic_func$|_PG_init$)')
	[ -z "$names" ] || bad "exported names without the prefix evstream_:" $names
	grep -ho 'PG_FUNCTION_INFO_V1([a-z_0-9]*)' src/*.c | sed 's/.*(\(.*\))/\1/' | sort -u >"$TMP/defined"
	grep -hoE "'MODULE_PATHNAME', *'[a-z_0-9]+'" evstream--*.sql | sed "s/.*'\([a-z_0-9]*\)'$/\1/" | sort -u >"$TMP/used"
	names=$(comm -13 "$TMP/defined" "$TMP/used" | tr '\n' ' ')
	[ -z "$names" ] || bad "called in SQL, and not in the library: $names"
fi

for f in scripts/*.sh bench/*.sh .ci/run; do
	bash -n "$f" || bad "$f"
done
perl_dir=$(dirname "$(dirname "$($PG_CONFIG --pgxs)")")/test/perl
for f in t/*.pl t/lib/*.pm; do
	PERL5LIB="$perl_dir:t/lib" perl -c "$f" >"$TMP/perl" 2>&1 || { cat "$TMP/perl"; bad "$f"; }
done

scripts/guarantees.pl || bad "docs/guarantees.md names tests that are not there"

for f in src/*.c bench/*.c test/*.c; do
	lines=$(wc -l <"$f")
	[ "$lines" -le 900 ] || bad "$f has $lines lines: a file does one job, in 900 at most"
done
[ $status = 0 ] && echo "lint: nothing found"
exit $status
