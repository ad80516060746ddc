# The lines memory-consumer and memory-notifier of scripts/bench.sh. Sourced.

# Writes the anonymous memory (kB) of the server's workers, as ROLE KB, whenever one has
# more than any of its role had. What is shared by all processes of the server, such as
# shared_buffers, is none of it. It forks nothing, so that it takes no time from what is measured.
sample_memory()
{
	local postmaster pids pid command role key value peak
	declare -A peak
	exec 9<> <(:)
	read -r postmaster <"$TMP/data/postmaster.pid" || true
	while kill -0 "$postmaster" 2>/dev/null; do
		pids=
		# no newline at the ends: read gives false
		read -r pids <"/proc/$postmaster/task/$postmaster/children" || true
		for pid in $pids; do
			command=
			IFS= read -r -d '' command <"/proc/$pid/cmdline" || true
			[[ $command =~ evstream\ (consumer|notifier|relay|maintenance) ]] || continue
			role=${BASH_REMATCH[1]}
			while read -r key value _; do
				[ "$key" = RssAnon: ] || continue
				if [ "$value" -gt "${peak[$role]:-0}" ]; then
					peak[$role]=$value
					echo "$role $value"
				fi
				break
			done <"/proc/$pid/status" || true
		done
		read -r -t 0.2 -u 9 || true
	done 2>/dev/null
}

# The peaks of all lines together, in MB; of the notifier without 200 bytes for each of
# FILTERS filters, which it may have as well.
memory_lines()
{
	local role filters=1000
	for role in consumer notifier; do
		awk -v role="$role" -v filters="$filters" '$1 == role && $2 > max { max = $2 }
			END { if (max) printf "memory-%s %.1f -\n", role, max / 1024 - (role == "notifier" ? filters * 200 / 1048576 : 0) }' "$TMP/memory" >>"$TMP/runs"
	done
}
