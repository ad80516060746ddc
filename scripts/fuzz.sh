#!/bin/bash
#
# make fuzz: libFuzzer on test/F_fuzz.c, for so many seconds.
#
# usage: fuzz.sh F [SECONDS]      F: event, redis, settings
#
# Begins with test/corpus/F and what earlier runs have found, which is kept in
# results/fuzz/F; an input that breaks something is left there, too, and is to go into
# the corpus, which make check runs through. EVSTREAM_CLANG: the compiler.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"

F=${1:?usage: fuzz.sh F [SECONDS]}
SECS=${2:-60}
CLANG=${EVSTREAM_CLANG:-clang}
[ -e "test/${F}_fuzz.c" ] || { echo "fuzz.sh: no target \"$F\": $(cd test && echo *_fuzz.c)" >&2; exit 2; }
TMP=$(mktemp -d "${TMPDIR:-/tmp}/evstream-fuzz.XXXXXX")
trap 'rm -rf "$TMP"' EXIT
found=results/fuzz/$F
mkdir -p "$found"

# Each text of the arena in a chunk of its own: what is written behind it is seen.
# shellcheck disable=SC2046
"$CLANG" -std=gnu99 -g -O1 -D_GNU_SOURCE -fno-omit-frame-pointer \
	-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	-DARENA_FIRST_CHUNK=1 -DARENA_LARGEST_CHUNK=1 -Isrc -o "$TMP/$F" "test/${F}_fuzz.c" $(test_sources "${F}_fuzz") $(test_libraries "${F}_fuzz") -lm

# An answer may announce an array of any size; asking malloc() for it is no fault.
export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1
export UBSAN_OPTIONS=print_stacktrace=1
"$TMP/$F" -max_total_time="$SECS" -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=1000000 -print_final_stats=1 -artifact_prefix="$found/" "$found" "test/corpus/$F"
