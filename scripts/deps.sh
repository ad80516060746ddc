#!/bin/bash
#
# Installs, by apt, the Debian packages that the named groups need and that are
# missing; does nothing, quickly, where all is there.
#
# usage: deps.sh [build] [test] [kafka] [redis] [clients] [valgrind] [fuzz] [bench] [format] [roots]

set -euo pipefail

[ $# -gt 0 ] || set -- build test

# A PostgreSQL that is here decides the version; "" = Debian's.
pg_version()
{
	local pg_config=${PG_CONFIG:-pg_config} dir
	if command -v "$pg_config" >/dev/null && "$pg_config" --version >/dev/null 2>&1; then
		"$pg_config" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/'
		return
	fi
	for dir in $(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null | sort -V -r); do
		echo "$dir" | cut -d/ -f5
		return
	done
}

missing=()
need() # package, then a command that succeeds where it is there
{
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}
header() { ls "/usr/include/$1" || ls "/usr/local/include/$1"; }
server() { [ -x "$(bindir)/postgres" ] && [ -x "$(bindir)/initdb" ]; }
bindir() { "${PG_CONFIG:-pg_config}" --bindir; }
pgxs() { [ -f "$("${PG_CONFIG:-pg_config}" --pgxs)" ] && [ -f "$("${PG_CONFIG:-pg_config}" --includedir-server)/postgres.h" ]; }
java17() { ls /usr/lib/jvm/java-17-openjdk-*/bin/java || java -version 2>&1 | grep -Eq 'version "(1[7-9]|[2-9][0-9])'; }

version=$(pg_version)
for group; do
	case $group in
		build)
			need make command -v make
			need gcc command -v gcc
			need libc6-dev header stdio.h
			need "postgresql${version:+-$version}" server
			need "postgresql-server-dev-${version:-all}" pgxs
			need librdkafka-dev header librdkafka/rdkafka.h
			need libhiredis-dev header hiredis/hiredis.h ;;
		test)
			need perl command -v prove
			need libipc-run-perl perl -MIPC::Run -e 1
			need redis-server command -v redis-server
			need redis-tools command -v redis-cli
			need openssl command -v openssl
			# since Debian 13 zones such as CET are in a package of their own
			need tzdata-legacy ls /usr/share/zoneinfo/CET ;;
		kafka)
			need openjdk-17-jre-headless java17
			# which is only to fetch the jars with
			[ -e "$("$(dirname "$0")/kafka.sh" jars)/complete" ] || need maven command -v mvn ;;
		bench)
			need libjson-c-dev header json-c/json.h ;;
		redis)
			need redis-server command -v redis-server
			need python3 command -v python3 ;;
		clients)
			need nodejs command -v node ;;
		valgrind)
			need valgrind command -v valgrind ;;
		fuzz)
			need clang command -v clang ;;
		format)
			need clang-format command -v clang-format ;;
		roots)
			need debootstrap command -v debootstrap ;;
		*)
			echo "deps.sh: no group \"$group\"" >&2
			exit 2 ;;
	esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: missing: ${missing[*]} (their names on Debian; there is no apt-get here)" >&2
	exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || { echo "deps.sh: as root: apt-get install ${missing[*]}" >&2; exit 1; }
	sudo=sudo
fi
apt() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"; }

echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }

names=()
for package in "${missing[@]}"; do
	case $package in
		postgresql-server-dev-all)
			# Debian's own version, not every one that is known.
			version=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]\+\)$/\1/p' | head -n 1)
			package=postgresql-server-dev-${version:-all} ;;
		openjdk-17-jre-headless)
			apt-cache policy "$package" | grep -q 'Candidate: [0-9]' || package=default-jre-headless ;;
	esac
	names+=("$package")
done
apt install -y --no-install-recommends "${names[@]}" >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
