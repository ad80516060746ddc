#!/bin/bash
#
# make check-versions: lint and every test on each version of PostgreSQL that a
# Debian release has: on this machine where that is its version, else in a root
# of the release, which debootstrap makes from nothing (as root), with the
# packages that deps.sh names. Roots are kept for the next run. What is mounted
# in one and what runs there live in name spaces that end with this script,
# however it ends.
#
# usage: versions.sh [VERSION...]               all, or some of 15, 17 and 18
#        versions.sh run VERSION COMMAND [ARG...]  a command in the copy of this tree there
#
#   EVSTREAM_ROOTS    where the roots are: /var/cache/evstream/roots
#   EVSTREAM_MIRROR   http://deb.debian.org/debian
#   EVSTREAM_TEST     the name of one test, in place of all (make check-versions T=name)
#
# Ends with one line, "N passed, N failed, N skipped", over all versions, and a
# status other than 0 if any failed or none ran.

set -euo pipefail
SELF=$(readlink -f "$0")
. "$(dirname "$0")/lib.sh"
cd "$REPO"

ROOTS=${EVSTREAM_ROOTS:-/var/cache/evstream/roots}
MIRROR=${EVSTREAM_MIRROR:-http://deb.debian.org/debian}
DATA=${EVSTREAM_DATA:-$REPO/../shared/data}
JARS=$("$REPO/scripts/kafka.sh" jars)
TEST=${EVSTREAM_TEST:-}
declare -A suites=([15]=bookworm [17]=trixie [18]=forky)

die() { echo "versions.sh: $*" >&2; exit 1; }

own_version() { { "$PG_CONFIG" --version 2>/dev/null || true; } | sed 's/^[^0-9]*\([0-9]*\).*/\1/'; }

# debootstrap removes its own folder at its end.
is_whole() { [ -x "$1/usr/bin/apt-get" ] && [ ! -e "$1/debootstrap" ]; }

make_root() # SUITE DIR
{
	local suite=$1 dir=$2 script tmp
	scripts/deps.sh roots
	tmp=$(mktemp -d "$dir.XXXXXX")
	chmod 755 "$tmp"
	# A release that is younger than this debootstrap is made as unstable is.
	script=/usr/share/debootstrap/scripts/$suite
	[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
	echo "making a root of Debian $suite in $dir"
	if ! debootstrap --variant=minbase --include=ca-certificates,procps "$suite" "$tmp" "$MIRROR" "$script" >"$tmp.log" 2>&1; then
		tail -n 20 "$tmp.log" >&2
		die "debootstrap failed"
	fi
	rm -rf --one-file-system "$dir" "$tmp.log"
	mv "$tmp" "$dir"
}

bind() # FROM TO
{
	mkdir -p "$2"
	mount --rbind "$1" "$2"
}

# Within the name spaces: mount what is wanted, and run a command in the root.
enter() # DIR VERSION COMMAND [ARG...]
{
	local dir=$1 version=$2
	shift 2
	mount -t proc proc "$dir/proc"
	bind /dev "$dir/dev"
	mount -t tmpfs -o mode=1777 tmpfs "$dir/dev/shm"
	cp -L /etc/resolv.conf "$dir/etc/resolv.conf" 2>/dev/null || true
	[ ! -d "$DATA" ] || bind "$DATA" "$dir/build/data"
	# Maven is not needed then.
	[ ! -e "$JARS/complete" ] || bind "$JARS" "$dir/var/cache/evstream/${JARS##*/}"
	# A mirror may be a frozen copy, and packages would start servers.
	echo 'Acquire::Check-Valid-Until "false";' >"$dir/etc/apt/apt.conf.d/90evstream"
	printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"
	chmod 755 "$dir/usr/sbin/policy-rc.d"
	exec chroot "$dir" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 TERM=dumb \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		EVSTREAM_DATA=/build/data EVSTREAM_MIRROR="$MIRROR" PG_CONFIG="/usr/lib/postgresql/$version/bin/pg_config" \
		/bin/bash -c 'cd /build/tree && "$@"; exit $?' bash "$@"
}

# A command in a root, which is made if it is missing.
in_root() # VERSION COMMAND [ARG...]
{
	local version=$1 suite=${suites[$1]} dir=$ROOTS/${suites[$1]}
	shift
	[ "$(id -u)" = 0 ] || die "PostgreSQL $version is tried in a root of Debian $suite, which only root can make and enter"
	mkdir -p "$ROOTS"
	(
		exec 9>"$dir.lock"
		flock 9
		is_whole "$dir" || make_root "$suite" "$dir"
		rm -rf --one-file-system "$dir/build/tree"
		mkdir -p "$dir/build/tree"
		tar -cf - --exclude=./.git --exclude=./results --exclude='*.o' --exclude='*.so' --exclude='*.bc' . | tar -xf - -C "$dir/build/tree"
		rm -f "$dir"/build/tree/bench/{evgen,kprobe,kmock,latency}
		unshare --mount --propagation private --pid --fork --kill-child \
			"$SELF" enter "$dir" "$version" "$@" </dev/null
	)
}

# PostgreSQL 15 beside that of Debian 13, for the test of pg_upgrade. What an
# extension is built with is only unpacked, as it would bring a compiler of its own.
add_older()
{
	[ ! -x /usr/lib/postgresql/15/bin/postgres ] || [ ! -d /usr/lib/postgresql/15/lib/pgxs ] || return 0
	echo "deb $MIRROR bookworm main" >/etc/apt/sources.list.d/bookworm.list
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends postgresql-15 >/tmp/log 2>&1 ||
		{ tail -n 20 /tmp/log >&2; return 1; }
	cd /tmp
	apt-get -qq download postgresql-server-dev-15
	dpkg-deb -x postgresql-server-dev-15_*.deb /
	rm postgresql-server-dev-15_*.deb
}

# Lint and tests of one version; what they print goes to a log, too.
try_version() # VERSION
{
	local version=$1 run=(in_root "$1") status=0
	if [ "$version" = "$(own_version)" ]; then run=(env); fi
	"${run[@]}" scripts/deps.sh build test kafka redis clients || status=1
	if [ "$version" = 17 ] && [ "${run[0]}" = in_root ]; then
		in_root 17 scripts/versions.sh add-older || status=1
	fi
	[ $status != 0 ] || "${run[@]}" env CI=true bash -c "
		scripts/lint.sh; lint=\$?
		scripts/check.sh $TEST && exit \$lint" || status=1
	return $status
}

case ${1:-} in
	enter) shift; enter "$@" ;;
	add-older) add_older; exit ;;
	run)
		[ $# -ge 3 ] && [ -n "${suites[$2]:-}" ] || die "usage: versions.sh run VERSION COMMAND [ARG...]"
		shift
		in_root "$@"
		exit ;;
	-h | --help)
		sed -n '3,/^$/s/^# \{0,1\}//p' "$SELF"
		exit ;;
esac

[ $# -gt 0 ] || set -- 15 17 18
for version; do
	[ -n "${suites[$version]:-}" ] || die "no Debian release with PostgreSQL $version is known here, only 15, 17 and 18"
done

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0 skipped=0 table=
for version; do
	echo "===== PostgreSQL $version ====="
	word=ok
	try_version "$version" 2>&1 | tee "$log" || word=FAIL
	line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1 || true)
	read -r p _ f _ s _ <<<"${line:-0 passed, 1 failed, 0 skipped}"
	# What failed may have been lint.
	[ $word = ok ] || [ "$f" != 0 ] || f=1
	passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
	table+=$(printf '%-4s PostgreSQL %s: %d passed, %d failed, %d skipped; %s' $word "$version" "$p" "$f" "$s" \
		"$(grep -E '^lint: ' "$log" | head -n 1 || true)")$'\n'
done
echo "===== all versions ====="
printf '%s' "$table"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] && [ $((passed + failed)) -gt 0 ]
