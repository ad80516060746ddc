# Measurements ("line ours other", other - where there is none) to a table, and to
# the file named by json. Exit status 1 if an aim was missed.

function median(list, n,    i, j, t, copy)
{
	for (i = 1; i <= n; i++)
		copy[i] = list[i]
	for (i = 2; i <= n; i++)
		for (j = i; j > 1 && copy[j - 1] > copy[j]; j--) {
			t = copy[j]; copy[j] = copy[j - 1]; copy[j - 1] = t
		}
	return n % 2 ? copy[(n + 1) / 2] : (copy[n / 2] + copy[n / 2 + 1]) / 2
}

BEGIN {
	split("ingest ingest-items ingest-local counts-only two-consumers growth growth-50m" \
		" track track-batch embedded embedded-waiting snapshot relay" \
		" relay-latency relay-latency-p50 relay-latency-p95 relay-latency-p99" \
		" idle idle-kafka matcher fanout latency latency-p50 latency-p95 latency-p99" \
		" latency-kafka latency-kafka-p50 latency-kafka-p95 latency-kafka-p99 memory-consumer memory-notifier", order)
	for (k in order)
		if (order[k] ~ /^(ingest|counts|two|growth)/)
			unit[order[k]] = "events/s"
	beside["counts-only"] = "parse and throw away"
	beside["two-consumers"] = "one consumer"
	beside["growth"] = beside["growth-50m"] = "empty tables"
	unit["memory-consumer"] = unit["memory-notifier"] = "MB"
	unit["track"] = "tps"
	unit["idle"] = unit["idle-kafka"] = "% of a core"
	beside["ingest"] = beside["ingest-items"] = beside["ingest-local"] = "COPY and aggregates"
	beside["track"] = "INSERT"
	unit["track-batch"] = unit["embedded"] = unit["snapshot"] = unit["relay"] = "events/s"
	beside["track-batch"] = "INSERT ... SELECT"
	beside["embedded"] = "the clients alone"
	unit["embedded-waiting"] = "ms"
	beside["snapshot"] = "without it"
	beside["relay"] = "COPY and produce"
	unit["matcher"] = "events/s"
	beside["matcher"] = "100 filters"
	unit["fanout"] = "deliveries/s"
	beside["fanout"] = "XADD and PUBLISH"
	for (k in order)
		if (order[k] ~ /latency.*-p/) {
			unit[order[k]] = "ms"
			beside[order[k]] = order[k] ~ /^relay/ ? "INSERT and produce" : "INSERT and PUBLISH"
			differs[order[k]] = 1
		}
	# of the difference or the ratio where there is another figure, else of the figure;
	# a difference and a figure are to be below
	aim["ingest"] = aim["ingest-items"] = 0.75
	aim["ingest-local"] = 0.25
	aim["counts-only"] = 0.35
	aim["two-consumers"] = 1.6
	aim["growth"] = aim["growth-50m"] = 0.85
	aim["memory-consumer"] = 256
	aim["memory-notifier"] = 128
	aim["track"] = 0.9
	aim["track-batch"] = 1
	aim["embedded"] = 0.85
	aim["embedded-waiting"] = 1000
	aim["snapshot"] = 0.95
	aim["relay"] = 0.7
	aim["idle"] = aim["idle-kafka"] = 1
	aim["matcher"] = 0.5
	aim["fanout"] = 0.6
	aim["latency-p50"] = aim["latency-kafka-p50"] = aim["relay-latency-p50"] = 3
	aim["latency-p99"] = aim["latency-kafka-p99"] = 15
	aim["relay-latency-p99"] = 10
}

$1 == "meta" { meta[++nmeta] = sprintf("\"%s\": %s", $2, $3 ~ /^[0-9]+$/ ? $3 : "\"" $3 "\""); next }
$1 == "skip" { line = $2; sub(/^skip [^ ]+ /, ""); skipped[line] = $0; next }

{
	n[$1]++
	ours[$1, n[$1]] = $2
	other[$1, n[$1]] = $3
	compared[$1] = $3 != "-"
}

END {
	printf "{" >json
	for (i = 1; i <= nmeta; i++)
		printf "%s, ", meta[i] >json
	printf "\"lines\": [" >json
	printf "%-17s %12s %12s %8s %8s %8s %6s  %s\n", "line", "evstream", "beside", "median", "min", "max", "aim", ""
	for (k = 1; k in order; k++) {
		line = order[k]
		if (line in skipped)
			printf "%-17s skipped: %s\n", line, skipped[line]
		if (!(line in n))
			continue
		count = n[line]
		for (i = 1; i <= count; i++) {
			a[i] = ours[line, i]
			b[i] = other[line, i]
			r[i] = !compared[line] ? a[i] : line in differs ? a[i] - b[i] : a[i] / b[i]
			low = i == 1 || r[i] < low ? r[i] : low
			high = i == 1 || r[i] > high ? r[i] : high
		}
		ratio = median(r, count)
		below = !compared[line] || line in differs
		met = !(line in aim) || (below ? ratio < aim[line] : ratio >= aim[line])
		missed += !met
		digits = below ? "%.3f" : "%.0f"
		figure = sprintf(digits, median(a, count))
		figure2 = compared[line] ? sprintf(digits, median(b, count)) : "-"
		sign = line in aim ? (below ? "<" : ">=") aim[line] : "-"
		verdict = !(line in aim) ? "" : met ? "met, " : "MISSED, "
		note = compared[line] ? " (beside: " beside[line] (line in differs ? ", and the difference)" : ")") : ""
		printf "%-17s %12s %12s %8.3f %8.3f %8.3f %6s  %s%s%s\n", line, figure, figure2, ratio, low, high,
			sign, verdict, unit[line], note
		comma = written++ ? "," : ""
		printf "%s\n  {\"line\": \"%s\", \"unit\": \"%s\", \"evstream\": %.4f, ", comma, line, unit[line], median(a, count) >json
		if (compared[line]) {
			name = line in differs ? "difference" : "ratio"
			printf "\"beside\": %.4f, \"beside_name\": \"%s\", \"%s\": %.4f, \"%s_min\": %.4f, \"%s_max\": %.4f, ",
				median(b, count), beside[line], name, ratio, name, low, name, high >json
		} else
			printf "\"min\": %.4f, \"max\": %.4f, ", low, high >json
		if (line in aim)
			printf "\"aim\": %s, \"met\": %s, ", aim[line], met ? "true" : "false" >json
		printf "\"runs\": [" >json
		for (i = 1; i <= count; i++) {
			comma = i > 1 ? ", " : ""
			figure2 = compared[line] ? b[i] : "null"
			printf "%s[%s, %s]", comma, a[i], figure2 >json
		}
		printf "]}" >json
	}
	printf "\n]}\n" >json
	exit missed > 0
}
