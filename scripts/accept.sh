#!/bin/bash
#
# make accept: what the last make check saw and did not expect becomes what is
# expected. Read the difference (git diff expected) before it is committed.

set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$REPO"
shopt -s nullglob
files=(results/*.out)
if [ ${#files[@]} = 0 ]; then
	echo "nothing to accept: the last check left no results that differ"
	exit 0
fi
cp "${files[@]}" expected/
for f in "${files[@]}"; do echo "accepted expected/${f##*/}"; done
rm -rf results
