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
	split("ingest ingest-local track idle idle-kafka", order)
	unit["ingest"] = unit["ingest-local"] = "events/s"
	unit["track"] = "tps"
	unit["idle"] = unit["idle-kafka"] = "% of a core"
	beside["ingest"] = beside["ingest-local"] = "COPY and aggregates"
	beside["track"] = "INSERT"
	# of the ratio where there is another figure, else of the figure, which is to be below
	aim["ingest"] = aim["ingest-local"] = 0.25
	aim["track"] = 0.9
	aim["idle"] = aim["idle-kafka"] = 1
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
	printf "%-13s %12s %12s %8s %8s %8s %6s  %s\n", "line", "evstream", "beside", "median", "min", "max", "aim", ""
	for (k = 1; k in order; k++) {
		line = order[k]
		if (line in skipped)
			printf "%-13s skipped: %s\n", line, skipped[line]
		if (!(line in n))
			continue
		count = n[line]
		for (i = 1; i <= count; i++) {
			a[i] = ours[line, i]
			b[i] = other[line, i]
			r[i] = compared[line] ? a[i] / b[i] : a[i]
			low = i == 1 || r[i] < low ? r[i] : low
			high = i == 1 || r[i] > high ? r[i] : high
		}
		ratio = median(r, count)
		met = compared[line] ? ratio >= aim[line] : ratio < aim[line]
		missed += !met
		figure = compared[line] ? sprintf("%.0f", median(a, count)) : sprintf("%.3f", median(a, count))
		figure2 = compared[line] ? sprintf("%.0f", median(b, count)) : "-"
		sign = compared[line] ? ">=" : "<"
		verdict = met ? "met" : "MISSED"
		note = compared[line] ? " (beside: " beside[line] ")" : ""
		printf "%-13s %12s %12s %8.3f %8.3f %8.3f %6s  %s, %s%s\n", line, figure, figure2, ratio, low, high,
			sign aim[line], verdict, unit[line], note
		comma = written++ ? "," : ""
		printf "%s\n  {\"line\": \"%s\", \"unit\": \"%s\", \"evstream\": %.4f, ", comma, line, unit[line], median(a, count) >json
		if (compared[line])
			printf "\"beside\": %.4f, \"beside_name\": \"%s\", \"ratio\": %.4f, \"ratio_min\": %.4f, \"ratio_max\": %.4f, ",
				median(b, count), beside[line], ratio, low, high >json
		else
			printf "\"min\": %.4f, \"max\": %.4f, ", low, high >json
		verdict = met ? "true" : "false"
		printf "\"aim\": %s, \"met\": %s, \"runs\": [", aim[line], verdict >json
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
