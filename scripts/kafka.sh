#!/bin/bash
#
# A throwaway Apache Kafka (KRaft, one process) for tests and the demo.

set -euo pipefail

VERSION=4.2.0
PROG=${0##*/}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/lib.sh"
. "$HERE/process.sh"
NAME=kafka WHAT=broker START_LIMIT=60

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

	KAFKA_JVM has flags of the JVM, in place of -XX:TieredStopAtLevel=1, with which it is
	soon there, but takes more of a core than with its whole compiler, which is KAFKA_JVM='';
	-Xmx there overrides the small heap of a test's broker.

	Exit status: 0 done; 77 there is no JDK, no jars or no network to fetch them
	(a reason to skip, one line on stderr); another number: it failed.
	END
}

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
		major=$("$j" -XX:-UsePerfData -XshowSettings:properties -version 2>&1 | sed -n 's/.*java.specification.version = \([0-9]*\).*/\1/p')
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
		if ! MAVEN_OPTS="-XX:-UsePerfData -Djava.io.tmpdir=$tmp" JAVA_HOME=$(dirname "$(dirname "$(readlink -f "$JAVA")")") \
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

# Of a property given twice the last one counts.
listener() { sed -n "s/^advertised.listeners=\(.*,\)\?$1:\/\/\([^,]*\).*/\2/p" "$CONF" 2>/dev/null | tail -n 1; }
address() { listener PLAINTEXT; }

running()
{
	local pid
	pid=$(cat "$DIR/kafka.pid" 2>/dev/null) || return 1
	[ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
	tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$CONF" || return 1
	echo "$pid"
}

# One Metadata request (version 4, no topics), answered with a broker in it.
# A broker that listens but is not yet registered answers with none.
answers()
{
	local at reply
	at=$(address)
	reply=$(
		exec 2>/dev/null
		exec 3<>"/dev/tcp/${at%:*}/${at##*:}" || exit 1
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
	# of 128 MB, as it is else, the cleaner would have a quarter of the heap
	cat >"$CONF.new" <<-END
	process.roles=broker,controller
	node.id=1
	controller.quorum.voters=1@127.0.0.1:$p2
	listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$p2
	advertised.listeners=PLAINTEXT://127.0.0.1:$port
	controller.listener.names=CONTROLLER
	listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
	log.dirs=$DIR/data
	log.segment.bytes=67108864
	log.cleaner.dedupe.buffer.size=4194304
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
		sed -i "s/^listeners=.*/&,SASL_SSL:\/\/127.0.0.1:$p3/; s/^advertised.listeners=.*/&,SASL_SSL:\/\/127.0.0.1:$p3/" "$CONF.new"
		cat >>"$CONF.new" <<-END
		ssl.keystore.type=PEM
		ssl.keystore.location=$DIR/server.pem
		listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
		listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required $(for pair in ${users//,/ }; do printf 'user_%s="%s" ' "${pair%%:*}" "${pair#*:}"; done);
		listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
		END
	fi
	printf '%s\n' "$@" >>"$CONF.new"
	rm -rf "$DIR/data"
	id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | cut -c1-22)
	"$JAVA" -Xshare:auto "${JVM[@]}" -cp "$JARS/lib/*" kafka.tools.StorageTool format \
		-t "$id" -c "$CONF.new" ${scram[@]+"${scram[@]}"} >"$DIR/format.log" 2>&1 ||
		die "format failed: $(tail -n 3 "$DIR/format.log")"
	mv "$CONF.new" "$CONF"
}

prepare()
{
	fetch
	find_java
	COMMAND=("$JAVA" -Xmx512m "${JVM[@]}" -XX:+UseSerialGC -Xshare:auto
		-Dorg.slf4j.simpleLogger.defaultLogLevel=warn
		-Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
		-cp "$JARS/lib/*" kafka.Kafka "$CONF")
}

tool()
{
	find_java
	mkdir -p "$DIR/tmp"
	"$JAVA" "${JVM[@]}" -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$JARS/lib/*" "$@"
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
CONF=$DIR/server.properties
# A library unpacks its native part, and a JVM counts for others to see: not in /tmp, where
# both stay when it is killed.
read -r -a FLAGS <<<"${KAFKA_JVM--XX:TieredStopAtLevel=1}"
JVM=(${FLAGS[@]+"${FLAGS[@]}"} -XX:-UsePerfData "-Djava.io.tmpdir=$DIR/tmp")
shift 2

case $ACTION in
	start) start "$@" ;;
	stop) finish 20 ;;
	kill) finish 0 ;;
	pause) signal STOP ;;
	continue) signal CONT ;;
	status) must_run; address ;;
	secure) must_run; listener SASL_SSL ;;
	topic) [ $# -ge 2 ] || { usage >&2; exit 2; }; topic "$@" ;;
	tool) tool "$@" ;;
esac
