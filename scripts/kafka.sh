#!/bin/bash
#
# A throwaway Apache Kafka (KRaft, one process) for tests and the demo.

set -euo pipefail

VERSION=4.2.0
PROG=${0##*/}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage()
{
	cat <<-'END'
	usage: kafka.sh fetch                            fill the cache of jars (JDK 17 or later, maven)
	       kafka.sh jars                             print where the cache is
	       kafka.sh start DIR [PORT] [KEY=VALUE...]  start a broker, print 127.0.0.1:PORT
	       kafka.sh stop DIR                         end it in order (TERM, then KILL)
	       kafka.sh kill DIR                         end it at once (KILL)
	       kafka.sh pause DIR | continue DIR         SIGSTOP, SIGCONT
	       kafka.sh status DIR                       print the address of a running broker
	       kafka.sh secure DIR                       print that of its listener with TLS and SASL
	       kafka.sh topic DIR create NAME PARTITIONS [KEY=VALUE...]
	       kafka.sh topic DIR alter NAME PARTITIONS | delete NAME
	       kafka.sh tool DIR CLASS [ARGUMENT...]     run a class of Kafka's jars

	The first start in DIR formats its storage and chooses free ports (PORT names
	the broker's), the KEY=VALUE pairs go into its server.properties; a later start
	in DIR uses the same ports and data. The log is DIR/kafka.log. With a pair
	users=NAME:PASSWORD[,NAME:PASSWORD...] there is a listener SASL_SSL for them too,
	with PLAIN and SCRAM-SHA-512; its certificate, of 127.0.0.1 and no name, is from
	the authority DIR/ca.crt (openssl).

	The jars are kept in $EVSTREAM_CACHE/kafka-4.2.0; without EVSTREAM_CACHE that is
	/var/cache/evstream for root, and for others too if it is filled, else
	~/.cache/evstream. start fetches them if they are missing.

	Exit status: 0 done; 77 there is no JDK, no jars or no network to fetch them
	(a reason to skip, one line on stderr); another number: it failed.
	END
}

die()  { echo "$PROG: $*" >&2; exit 1; }
skip() { echo "$PROG: $*" >&2; exit 77; }

SHARED=/var/cache/evstream/kafka-$VERSION
if [ -n "${EVSTREAM_CACHE:-}" ]; then
	JARS=$EVSTREAM_CACHE/kafka-$VERSION
elif [ "$(id -u)" = 0 ] || [ -e "$SHARED/complete" ]; then
	JARS=$SHARED
else
	JARS=${HOME:-/tmp}/.cache/evstream/kafka-$VERSION
fi

# Java 17 is what the broker is tested with, so it comes before what PATH says.
find_java()
{
	local j major
	for j in /usr/lib/jvm/java-17-openjdk-*/bin/java "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(command -v java || true)"; do
		[ -n "$j" ] && [ -x "$j" ] || continue
		major=$("$j" -XshowSettings:properties -version 2>&1 | sed -n 's/.*java.specification.version = \([0-9]*\).*/\1/p')
		if [ "${major:-0}" -ge 17 ]; then
			JAVA=$j
			return 0
		fi
	done
	skip "no Java 17 or later (Debian: openjdk-17-jre-headless)"
}

fetch()
{
	[ -e "$JARS/complete" ] && return 0
	find_java
	command -v mvn >/dev/null || skip "no maven to fetch Kafka with (Debian: maven)"
	mkdir -p "$(dirname "$JARS")" 2>/dev/null || skip "cannot write to $(dirname "$JARS") (EVSTREAM_CACHE names another place)"

	(
		umask 022
		exec 9>"$JARS.lock" || skip "cannot write to $(dirname "$JARS")"
		flock 9
		[ -e "$JARS/complete" ] && exit 0
		tmp=$(mktemp -d "$JARS.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		chmod 755 "$tmp"
		cat >"$tmp/pom.xml" <<-END
		<project xmlns="http://maven.apache.org/POM/4.0.0">
		  <modelVersion>4.0.0</modelVersion>
		  <groupId>evstream</groupId>
		  <artifactId>kafka</artifactId>
		  <version>1</version>
		  <packaging>pom</packaging>
		  <dependencies>
		    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$VERSION</version></dependency>
		    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
		  </dependencies>
		</project>
		END
		echo "$PROG: fetching Kafka $VERSION into $JARS" >&2
		if ! JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$JAVA")")") \
			mvn -q -B -U -f "$tmp/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
			-DincludeScope=runtime -DoutputDirectory="$tmp/lib" >"$tmp/log" 2>&1 9>&- ||
			! ls "$tmp"/lib/kafka_2.13-$VERSION.jar >/dev/null 2>&1; then
			skip "maven could not fetch Kafka: $(sed 's/\x1b\[[0-9;]*m//g' "$tmp/log" | grep -m1 ERROR | cut -c1-400)"
		fi
		touch "$tmp/complete"
		rm -rf "$JARS"
		mv "$tmp" "$JARS"
	)
}

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

# Of a property given twice the last one counts.
listener() { sed -n "s/^advertised.listeners=\(.*,\)\?$1:\/\/\([^,]*\).*/\2/p" "$DIR/server.properties" 2>/dev/null | tail -n 1; }
address() { listener PLAINTEXT; }

# The broker's process id if it runs; a pid file can outlive its process, and
# its number come back as another's.
running()
{
	local pid
	pid=$(cat "$DIR/kafka.pid" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
	tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$DIR/server.properties" || return 1
	echo "$pid"
}

# One Metadata request (version 4, no topics), answered with a broker in it.
# A broker that listens but is not yet registered answers with none.
answers()
{
	local host=${1%:*} port=${1##*:} reply
	reply=$(
		exec 2>/dev/null
		exec 3<>"/dev/tcp/$host/$port" || exit 1
		printf '\0\0\0\017\0\003\0\004\0\0\0\001\377\377\0\0\0\0\0' >&3
		timeout 2 head -c 16 <&3 | od -An -tu1 -v | tr -s ' \n' ' '
	) || return 1
	set -- $reply
	[ $# = 16 ] && [ "${16}" -ge 1 ]
}

# An authority and a certificate of 127.0.0.1, for the listener SASL_SSL.
certify()
{
	local key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
	command -v openssl >/dev/null || skip "no openssl"
	(
		cd "$DIR"
		echo 'subjectAltName = IP:127.0.0.1' >server.ext
		openssl req -x509 "${key[@]}" -days 2 -subj /CN=authority -keyout ca.key -out ca.crt
		openssl req "${key[@]}" -subj /CN=broker -keyout server.key -out server.csr
		openssl x509 -req -in server.csr -days 2 -CA ca.crt -CAkey ca.key -CAcreateserial -extfile server.ext -out server.crt
		cat server.key server.crt >server.pem
	) >"$DIR/certify.log" 2>&1 || die "openssl failed: $(tail -n 3 "$DIR/certify.log")"
}

configure()
{
	local port=$1 p2 p3 pair users= pairs=() scram=()
	shift
	for pair; do
		case $pair in
			users=*) users=${pair#users=} ;;
			*) pairs+=("$pair") ;;
		esac
	done
	set -- ${pairs[@]+"${pairs[@]}"}
	[ -n "$port" ] || port=$(free_port)
	p2=$(free_port)
	while [ "$p2" = "$port" ]; do p2=$(free_port); done
	cat >"$DIR/server.properties.new" <<-END
	process.roles=broker,controller
	node.id=1
	controller.quorum.voters=1@127.0.0.1:$p2
	listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$p2
	advertised.listeners=PLAINTEXT://127.0.0.1:$port
	controller.listener.names=CONTROLLER
	listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
	log.dirs=$DIR/data
	log.segment.bytes=67108864
	offsets.topic.replication.factor=1
	offsets.topic.num.partitions=4
	transaction.state.log.replication.factor=1
	transaction.state.log.min.isr=1
	group.initial.rebalance.delay.ms=0
	auto.create.topics.enable=false
	broker.session.timeout.ms=2000
	broker.heartbeat.interval.ms=500
	END
	if [ -n "$users" ]; then
		p3=$(free_port)
		while [ "$p3" = "$port" ] || [ "$p3" = "$p2" ]; do p3=$(free_port); done
		certify
		for pair in ${users//,/ }; do
			scram+=(--add-scram "SCRAM-SHA-512=[name=${pair%%:*},password=${pair#*:}]")
		done
		sed -i "s/^listeners=.*/&,SASL_SSL:\/\/127.0.0.1:$p3/; s/^advertised.listeners=.*/&,SASL_SSL:\/\/127.0.0.1:$p3/" "$DIR/server.properties.new"
		cat >>"$DIR/server.properties.new" <<-END
		ssl.keystore.type=PEM
		ssl.keystore.location=$DIR/server.pem
		listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
		listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required $(for pair in ${users//,/ }; do printf 'user_%s="%s" ' "${pair%%:*}" "${pair#*:}"; done);
		listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
		END
	fi
	printf '%s\n' "$@" >>"$DIR/server.properties.new"
	rm -rf "$DIR/data"
	id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | cut -c1-22)
	"$JAVA" -Xshare:auto -XX:TieredStopAtLevel=1 -cp "$JARS/lib/*" kafka.tools.StorageTool format \
		-t "$id" -c "$DIR/server.properties.new" ${scram[@]+"${scram[@]}"} >"$DIR/format.log" 2>&1 ||
		die "format failed: $(tail -n 3 "$DIR/format.log")"
	mv "$DIR/server.properties.new" "$DIR/server.properties"
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
		exec setsid bash -c 'echo $$ >"$0/kafka.pid"; exec "$@"' "$DIR" \
			"$JAVA" -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto \
			-Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
			-Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS \
			-cp "$JARS/lib/*" kafka.Kafka "$DIR/server.properties" </dev/null >>"$DIR/kafka.log" 2>&1
	) &
	pid=$!
	for _ in $(seq 600); do
		if [ -n "$(running || true)" ]; then
			answers "$(address)" && return 0
		elif ! kill -0 "$pid" 2>/dev/null; then
			return 1
		fi
		sleep 0.1
	done
	kill -9 "$(running)" 2>/dev/null || true
	return 1
}

start()
{
	local port=${1:-} try pid
	[ $# -gt 0 ] && shift
	# A first KEY=VALUE in the port's place means that no port was named.
	case $port in *=*) set -- "$port" "$@"; port= ;; esac

	fetch
	find_java
	mkdir -p "$DIR"
	exec 8>"$DIR/lock"
	flock 8
	if pid=$(running); then
		kill -CONT "$pid"
		answers "$(address)" || die "a broker runs in $DIR as process $pid, but does not answer"
		address
		return 0
	fi

	for try in 1 2 3; do
		local fresh=no
		if [ ! -e "$DIR/server.properties" ]; then
			configure "$port" "$@"
			fresh=yes
		fi
		if launch; then
			address
			return 0
		fi
		# Another process may have taken the port between our look and the bind.
		if [ $fresh = yes ] && [ -z "$port" ] && grep -q 'Address already in use' "$DIR/kafka.log"; then
			rm -f "$DIR/server.properties"
			continue
		fi
		break
	done
	tail -n 20 "$DIR/kafka.log" >&2
	die "the broker did not start (try $try), see $DIR/kafka.log"
}

# End the broker: $1 = seconds to wait after TERM before KILL, 0 = KILL at once.
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
	rm -f "$DIR/kafka.pid"
}

signal()
{
	local pid
	pid=$(running) || die "no broker runs in $DIR"
	kill "-$1" "$pid"
}

tool()
{
	find_java
	"$JAVA" -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$JARS/lib/*" "$@"
}

topic()
{
	local addr action=$1 name=$2
	shift 2
	addr=$(address)
	[ -n "$addr" ] || die "no broker was started in $DIR"
	[ -x "$HERE/../bench/kprobe" ] || die "bench/kprobe is not built (make bench/kprobe)"
	exec "$HERE/../bench/kprobe" -b "$addr" "$action" "$name" "$@"
}

case ${1:-} in
	fetch)
		fetch
		exit 0 ;;
	jars)
		echo "$JARS"
		exit 0 ;;
	-h | --help | help)
		usage
		exit 0 ;;
	start | stop | kill | pause | continue | status | secure | topic | tool) ;;
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
	stop) finish 20 ;;
	kill) finish 0 ;;
	pause) signal STOP ;;
	continue) signal CONT ;;
	status) running >/dev/null || die "no broker runs in $DIR"; address ;;
	secure) running >/dev/null || die "no broker runs in $DIR"; listener SASL_SSL ;;
	topic) [ $# -ge 2 ] || { usage >&2; exit 2; }; topic "$@" ;;
	tool) tool "$@" ;;
esac
