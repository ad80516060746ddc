# Shell functions: one process in the background with its files in a directory. Sourced,
# by kafka.sh and redis.sh, which set
#
#   DIR   the directory
#   NAME  the process id is in DIR/NAME.pid, the output in DIR/NAME.log
#   WHAT  what it is called in messages
#   CONF  its configuration, made at the first start
#   START_LIMIT  seconds that a start may take
#
# and define
#
#   running     prints its process id, or fails; a pid file can outlive its process, and
#               its number come back as another's
#   answers     whether it does
#   prepare     skips where it cannot be started, and sets COMMAND, the array that does
#   address     prints where
#   configure PORT [KEY=VALUE...]   make CONF; PORT may be empty: any
#
# What it puts into a temporary directory, DIR/tmp, goes with DIR.

die()  { echo "$PROG: $*" >&2; exit 1; }
skip() { echo "$PROG: $*" >&2; exit 77; }

launch()
{
	local pid
	rm -rf "$DIR/tmp"
	mkdir "$DIR/tmp"
	(
		# Nothing of the caller's may be held open, or it waits for our end.
		for fd in /proc/self/fd/*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || eval "exec $fd>&-" 2>/dev/null || true
		done
		cd "$DIR"
		export TMPDIR=$DIR/tmp
		exec setsid bash -c 'echo $$ >"$0"; exec "$@"' "$DIR/$NAME.pid" "${COMMAND[@]}" </dev/null >>"$DIR/$NAME.log" 2>&1
	) &
	pid=$!
	for _ in $(seq $((START_LIMIT * 10))); do
		if [ -n "$(running || true)" ]; then
			answers && return 0
		elif ! kill -0 "$pid" 2>/dev/null; then
			return 1
		fi
		sleep 0.1
	done
	kill -9 "$(running)" 2>/dev/null || true
	return 1
}

# Start it, and print its address; in a DIR where it runs, print that alone.
start() # [PORT] [KEY=VALUE...]
{
	local port=${1:-} try pid fresh
	[ $# -gt 0 ] && shift
	# A first KEY=VALUE in the port's place means that no port was named.
	case $port in *=*) set -- "$port" "$@"; port= ;; esac

	prepare
	mkdir -p "$DIR/tmp"
	exec 8>"$DIR/lock"
	flock 8
	if pid=$(running); then
		kill -CONT "$pid"
		answers || die "a $WHAT runs in $DIR as process $pid, but does not answer"
		address
		return 0
	fi

	for try in 1 2 3; do
		fresh=no
		if [ ! -e "$CONF" ]; then
			configure "$port" "$@"
			fresh=yes
		fi
		if launch; then
			address
			return 0
		fi
		# Another process may have taken the port between our look and the bind.
		if [ $fresh = yes ] && [ -z "$port" ] && grep -q 'Address already in use' "$DIR/$NAME.log"; then
			rm -f "$CONF"
			continue
		fi
		break
	done
	tail -n 20 "$DIR/$NAME.log" >&2
	die "the $WHAT did not start (try $try), see $DIR/$NAME.log"
}

# End it: wait so many seconds after TERM before KILL; 0 = KILL at once.
finish() # SECONDS
{
	local pid i
	pid=$(running) || return 0
	if [ "$1" -gt 0 ]; then
		kill -CONT "$pid"
		kill -TERM "$pid"
		for ((i = 0; i < $1 * 20; i++)); do
			running >/dev/null || break
			sleep 0.05
		done
	fi
	if pid=$(running); then
		kill -KILL "$pid" || true
		for ((i = 0; i < 200; i++)); do
			running >/dev/null || break
			sleep 0.05
		done
	fi
	! running >/dev/null || die "process $pid does not end"
	rm -f "$DIR/$NAME.pid"
}

must_run() { running >/dev/null || die "no $WHAT runs in $DIR"; }

signal() # NAME
{
	must_run
	kill "-$1" "$(running)"
}
