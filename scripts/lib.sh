# Shell functions that check, demo and bench share. Sourced, by bash.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PG_CONFIG=${PG_CONFIG:-pg_config}
export PG_CONFIG
PATH=$PATH:/usr/sbin:/sbin

# PostgreSQL refuses to run as root: then its own user runs the command.
as_pg()
{
	if [ "$(id -u)" = 0 ]; then
		runuser -u postgres -- "$@"
	else
		"$@"
	fi
}

# Make DIR, below which the user of as_pg() may write.
pg_dir()
{
	mkdir -p "$1"
	[ "$(id -u)" != 0 ] || chown -R postgres: "$1"
}

# Build, and install into a copy of PostgreSQL below DIR, so that the system's is
# not touched and no root is needed (PostgreSQL finds its files relative to its
# program). Sets BINDIR. The build's output goes to DIR.log. TREE: another copy
# of the sources, to build for another PG_CONFIG.
private_install() # DIR [TREE]
{
	local dir=$1 tree=${2:-$REPO} sub
	rm -rf "$dir"
	for sub in "$($PG_CONFIG --bindir)" "$($PG_CONFIG --pkglibdir)" "$($PG_CONFIG --sharedir)"; do
		mkdir -p "$dir$sub"
		(cd "$sub" && tar -cf - --exclude=./bitcode --exclude=./pgxs --exclude=./man .) | tar -xf - -C "$dir$sub"
	done
	if ! { make -s -C "$tree" -j"$(nproc)" all && make -s -C "$tree" install DESTDIR="$dir"; } >"$dir.log" 2>&1; then
		cat "$dir.log" >&2
		echo "the build failed" >&2
		return 1
	fi
	BINDIR=$dir$($PG_CONFIG --bindir)
}

# What test/NAME.c is built with: as it says ("built with: FILES; libraries: -l..."), or
# those src/X*.c that include no server header, where NAME is X_something.
test_sources()
{
	local files
	files=$(sed -n 's/^.*built with: *\([^;]*\);.*/\1/p' "$REPO/test/$1.c" | head -n 1)
	# shellcheck disable=SC2086
	(cd "$REPO" && grep -L '"postgres.h"' ${files:-src/${1%_*}*.c})
}
test_libraries()
{
	local names
	names=$(sed -n 's/^.*built with: .*; libraries: *//p' "$REPO/test/$1.c" | head -n 1)
	# TLS for Redis, where src/redis.c finds the same headers.
	if [[ " $names " = *' -lhiredis '* ]] && [ -e /usr/include/hiredis/hiredis_ssl.h ] && [ -e /usr/include/openssl/ssl.h ]; then
		names="$names -lhiredis_ssl -lssl -lcrypto"
	fi
	echo "$names"
}

# A copy DIR of the private installation FROM, with the library built once more with
# further flags. Sets VARIANT_BINDIR. The build's output goes to DIR.log.
variant_install() # DIR FROM FLAGS [MAKE'S ARGUMENTS...]
{
	local dir=$1 from=$2 flags=$3
	shift 3
	rm -rf "$dir" "$dir.src"
	cp -al "$from" "$dir"	# links: a program finds its library from where it lies
	rm -f "$dir$($PG_CONFIG --pkglibdir)/evstream.so"
	mkdir "$dir.src"
	(cd "$REPO" && cp -a src scripts Makefile evstream.control evstream--*.sql "$dir.src/")
	rm -f "$dir.src"/src/*.o
	if ! { make -s -C "$dir.src" -j"$(nproc)" COPT="$flags" "$@" all && make -s -C "$dir.src" install DESTDIR="$dir"; } >"$dir.log" 2>&1; then
		cat "$dir.log" >&2
		echo "the build with $flags failed" >&2
		return 1
	fi
	VARIANT_BINDIR=$dir$($PG_CONFIG --bindir)
}

# Let the server of the installation with programs in BINDIR run by a command line, as
# by "env LD_PRELOAD=..." or valgrind; not while initdb makes its files, and not for
# children that are no servers.
wrap_server() # BINDIR COMMAND...
{
	local bindir=$1
	shift
	mv "$bindir/postgres" "$bindir/postgres.bin"
	{
		echo '#!/bin/bash'
		echo "case \" \$* \" in *' -V '* | *' --version '* | *' --boot '* | *' --single '* | *' --check '* | *' -C '* | *--describe-config*) exec '$bindir/postgres.bin' \"\$@\" ;; esac"
		printf 'exec'
		printf ' %q' "$@" "$bindir/postgres.bin"
		echo ' "$@"'
	} >"$bindir/postgres"
	chmod 755 "$bindir/postgres"
}

# Flags of the sanitizers, and how a program that was built without them, as the server
# was, loads a library that was; reports go to DIR.
SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer'
sanitized() # DIR
{
	# With libasan in front, the lock of bindtextdomain() stays taken when gnutls, which
	# the server is linked with, calls it while it is loaded.
	echo 'char *bindtextdomain(const char *name, const char *dir) { return (char *) dir; }' >"$1.c"
	gcc -shared -fPIC -o "$1.so" "$1.c"
	# Signals are the server's and the library's own affair; what a process has not
	# freed at its end is no leak.
	printf '%s\n' env "LD_PRELOAD=$(gcc -print-file-name=libasan.so) $1.so" \
		"ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_abort=0:abort_on_error=1:quarantine_size_mb=32:allocator_may_return_null=1:log_path=$1/report" \
		"UBSAN_OPTIONS=abort_on_error=1:print_stacktrace=1:log_path=$1/report"
}

# The pg_config of the oldest PostgreSQL from 14 on that is older than ours and has
# what an extension is built with, where Debian puts it; nothing if there is none.
older_pg_config()
{
	local ours config version
	ours=$($PG_CONFIG --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
	for config in $(ls /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -V); do
		version=$(echo "$config" | cut -d/ -f5)
		if [ "$version" -ge 14 ] && [ "$version" -lt "$ours" ] && [ -f "$("$config" --pgxs)" ] &&
			[ -x "$("$config" --bindir)/postgres" ] && [ -f "$("$config" --includedir-server)/postgres.h" ]; then
			echo "$config"
			return 0
		fi
	done
}

# End every server and broker whose files are below DIR, for the exit of a script
# that started them there.
end_servers()
{
	local file pid
	while read -r file; do
		pid=$(head -n 1 "$file" 2>/dev/null) || continue
		[ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "$(dirname "$file")" ] || continue
		kill -QUIT "$pid" 2>/dev/null || true
	done < <(find "$1" -name postmaster.pid 2>/dev/null)
	while read -r file; do
		"$REPO/scripts/kafka.sh" kill "$(dirname "$file")" 2>/dev/null || true
	done < <(find "$1" -name kafka.pid 2>/dev/null)
	while read -r file; do
		"$REPO/scripts/redis.sh" kill "$(dirname "$file")" 2>/dev/null || true
	done < <(find "$1" -name redis.pid 2>/dev/null)
}

# A port of 127.0.0.1 that nobody listens on, below the range from which the kernel takes
# ports for outgoing connections.
free_port()
{
	local port
	for _ in $(seq 200); do
		port=$((20000 + RANDOM % 12000))
		(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
	done
	echo "found no free port" >&2
	return 1
}
