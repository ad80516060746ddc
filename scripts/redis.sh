#!/bin/bash
#
# A throwaway Redis for tests and the demo.

set -euo pipefail

PROG=${0##*/}

usage()
{
	cat <<-'END'
	usage: redis.sh start DIR [PORT] [KEY=VALUE...]  start a server, print 127.0.0.1:PORT
	       redis.sh stop DIR                         end it in order (TERM, then KILL)
	       redis.sh kill DIR                         end it at once (KILL)
	       redis.sh pause DIR | continue DIR         SIGSTOP, SIGCONT
	       redis.sh status DIR                       print the address of a running server
	       redis.sh cli DIR [ARGUMENT...]            redis-cli, connected to it

	The first start in DIR chooses a free port, unless PORT names one, and the
	KEY=VALUE pairs go into its redis.conf (appendonly=yes: it keeps its data);
	a later start in DIR uses the same port and data. The log is DIR/redis.log.

	Exit status: 0 done; 77 there is no redis-server (a reason to skip, one line on
	stderr); another number: it failed.
	END
}

die()  { echo "$PROG: $*" >&2; exit 1; }
skip() { echo "$PROG: $*" >&2; exit 77; }

# A port that nobody listens on, below the range from which the kernel takes
# ports for outgoing connections.
free_port()
{
	local port
	for _ in $(seq 200); do
		port=$((20000 + RANDOM % 12000))
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			echo "$port"
			return 0
		fi
	done
	die "found no free port"
}

port() { sed -n 's/^port //p' "$DIR/redis.conf" 2>/dev/null; }
address() { echo "127.0.0.1:$(port)"; }

# The server's process id if it runs; a pid file can outlive its process, and its
# number come back as another's. Redis gives itself a title with its address.
running()
{
	local pid
	pid=$(cat "$DIR/redis.pid" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
	tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE "redis-server.* ([^ ]*:$(port)|$DIR/redis.conf)( |$)" || return 1
	echo "$pid"
}

# It answers, be it that it wants a password; not while it loads its data.
answers()
{
	local reply
	reply=$(
		exec 2>/dev/null
		exec 3<>"/dev/tcp/127.0.0.1/$(port)" || exit 1
		printf 'PING\r\n' >&3
		timeout 2 head -n 1 <&3
	) || return 1
	case $reply in
		+PONG* | -NOAUTH* | -NOPERM*) return 0 ;;
		*) return 1 ;;
	esac
}

configure()
{
	local port=$1 pair
	shift
	[ -n "$port" ] || port=$(free_port)
	{
		cat <<-END
		bind 127.0.0.1
		port $port
		dir $DIR
		daemonize no
		pidfile ""
		logfile ""
		save ""
		END
		for pair; do echo "${pair%%=*} ${pair#*=}"; done
	} >"$DIR/redis.conf"
}

launch()
{
	local pid
	(
		# Nothing of the caller's may be held open, or it waits for our end.
		for fd in /proc/self/fd/*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || eval "exec $fd>&-" 2>/dev/null || true
		done
		cd "$DIR"
		exec setsid bash -c 'echo $$ >"$0/redis.pid"; exec "$@"' "$DIR" \
			redis-server "$DIR/redis.conf" </dev/null >>"$DIR/redis.log" 2>&1
	) &
	pid=$!
	for _ in $(seq 600); do
		if [ -n "$(running || true)" ]; then
			answers && return 0
		elif ! kill -0 "$pid" 2>/dev/null; then
			return 1
		fi
		sleep 0.05
	done
	kill -9 "$(running)" 2>/dev/null || true
	return 1
}

start()
{
	local port=${1:-} try pid fresh
	[ $# -gt 0 ] && shift
	# A first KEY=VALUE in the port's place means that no port was named.
	case $port in *=*) set -- "$port" "$@"; port= ;; esac

	command -v redis-server >/dev/null || skip "no redis-server (Debian: redis-server)"
	mkdir -p "$DIR"
	exec 8>"$DIR/lock"
	flock 8
	if pid=$(running); then
		kill -CONT "$pid"
		answers || die "a server runs in $DIR as process $pid, but does not answer"
		address
		return 0
	fi

	for try in 1 2 3; do
		fresh=no
		if [ ! -e "$DIR/redis.conf" ]; then
			configure "$port" "$@"
			fresh=yes
		fi
		if launch; then
			address
			return 0
		fi
		# Another process may have taken the port between our look and the bind.
		if [ $fresh = yes ] && [ -z "$port" ] && grep -q 'Address already in use' "$DIR/redis.log"; then
			rm -f "$DIR/redis.conf"
			continue
		fi
		break
	done
	tail -n 20 "$DIR/redis.log" >&2
	die "the server did not start (try $try), see $DIR/redis.log"
}

# End the server: $1 = seconds to wait after TERM before KILL, 0 = KILL at once.
finish()
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
	rm -f "$DIR/redis.pid"
}

signal()
{
	local pid
	pid=$(running) || die "no server runs in $DIR"
	kill "-$1" "$pid"
}

case ${1:-} in
	-h | --help | help)
		usage
		exit 0 ;;
	start | stop | kill | pause | continue | status | cli) ;;
	*)
		usage >&2
		exit 2 ;;
esac

[ $# -ge 2 ] || { usage >&2; exit 2; }
ACTION=$1
DIR=$(readlink -m "$2")
shift 2

case $ACTION in
	start) start "$@" ;;
	stop) finish 10 ;;
	kill) finish 0 ;;
	pause) signal STOP ;;
	continue) signal CONT ;;
	status) running >/dev/null || die "no server runs in $DIR"; address ;;
	cli) exec redis-cli -h 127.0.0.1 -p "$(port)" "$@" ;;
esac
