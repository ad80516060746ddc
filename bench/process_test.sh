#!/bin/bash
#
# Checks of the throwaway broker and Redis, as TAP.
#
# usage: process_test.sh      skips what is not installed

set -u

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SCRIPTS=$HERE/../scripts
DIR=$(readlink -f "$(mktemp -d)")
trap '"$SCRIPTS/kafka.sh" kill "$DIR/kafka"; "$SCRIPTS/redis.sh" kill "$DIR/redis"; rm -rf "$DIR"' EXIT
tests=0
failed=0

ok()	# STATUS NAME
{
	tests=$((tests + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $tests - $2"
	else
		echo "not ok $tests - $2"
		failed=$((failed + 1))
	fi
}

is()	# FOUND EXPECTED NAME
{
	[ "$1" = "$2" ]
	ok $? "$3"
	[ "$1" = "$2" ] || echo "# found \"$1\", expected \"$2\""
}

# Files that a process has mapped below the usual places of temporary files, other than its own.
temporary()	# PID
{
	awk '$6 ~ "^/(tmp|var/tmp|dev/shm)/" { print $6 }' "/proc/$1/maps" | grep -vF "$DIR/" | sort -u | tr '\n' ' '
}

# A zombie, which waits for its parent, is gone.
gone() { [ -z "$(tr -d '\0' <"/proc/$1/cmdline" 2>/dev/null)" ]; }

for name in kafka redis; do
	run() { "$SCRIPTS/$name.sh" "$1" "$DIR/$name" "${@:2}"; }

	address=$(run start)
	status=$?
	if [ $status = 77 ]; then
		tests=$((tests + 1))
		echo "ok $tests - $name # SKIP it cannot be started here"
		continue
	fi
	ok $status "$name: starts"
	pid=$(cat "$DIR/$name/$name.pid")
	is "$(run start)" "$address" "$name: started again, it is the one that runs"
	is "$(cat "$DIR/$name/$name.pid")" "$pid" "$name: the same process"
	is "$(run status)" "$address" "$name: says where"

	case $name in
		kafka)
			run topic create t 1
			# what makes the broker unpack a library
			for i in $(seq 50); do printf 'value=%0500d\n' "$i"; done |
				"$HERE/kprobe" -b "$address" -X compression.type=lz4 produce t >/dev/null
			ok $? "$name: takes records"
			grep -q "$DIR/kafka/tmp/.*lz4" "/proc/$pid/maps"
			ok $? "$name: it has unpacked a library" ;;
		redis)
			is "$(run cli SET k v)" OK "$name: takes a key" ;;
	esac
	is "$(temporary "$pid")" '' "$name: nothing of it is where others have their temporary files"

	run pause
	is "$(awk '$1 == "State:" { print $2 }' "/proc/$pid/status")" T "$name: pauses"
	run continue
	run kill
	ok $? "$name: killed"
	gone "$pid"
	ok $? "$name: it is gone"
	run status 2>/dev/null
	is $? 1 "$name: and status says so"

	is "$(run start)" "$address" "$name: starts at the same place"
	pid=$(cat "$DIR/$name/$name.pid")
	case $name in
		kafka)
			is "$("$HERE/kprobe" -b "$address" watermarks t | tr '\t' ' ')" '0 0 50' "$name: with its data"
			is "$(ls "$DIR/kafka/tmp" | wc -l)" 0 "$name: and without what was left behind" ;;
	esac
	run stop
	ok $? "$name: stopped"
	gone "$pid" && [ ! -e "$DIR/$name/$name.pid" ]
	ok $? "$name: nothing is left"
done

echo "1..$tests"
[ $failed = 0 ]
