#!/bin/bash
#
# A throwaway Redis for tests and the demo.

set -euo pipefail

PROG=${0##*/}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/process.sh"
NAME=redis WHAT=server START_LIMIT=30

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

port() { sed -n 's/^port //p' "$CONF" 2>/dev/null; }
address() { echo "127.0.0.1:$(port)"; }

# Redis gives itself a title with its address.
running()
{
	local pid
	pid=$(cat "$DIR/redis.pid" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
	tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qE "redis-server.* ([^ ]*:$(port)|$CONF)( |$)" || return 1
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
	} >"$CONF"
}

prepare()
{
	command -v redis-server >/dev/null || skip "no redis-server (Debian: redis-server)"
	COMMAND=(redis-server "$CONF")
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
CONF=$DIR/redis.conf
shift 2

case $ACTION in
	start) start "$@" ;;
	stop) finish 10 ;;
	kill) finish 0 ;;
	pause) signal STOP ;;
	continue) signal CONT ;;
	status) must_run; address ;;
	cli) exec redis-cli -h 127.0.0.1 -p "$(port)" "$@" ;;
esac
