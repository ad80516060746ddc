# The line matcher of scripts/bench.sh. Sourced.

# bench/matcher.c with the matcher's own files, as FILE.
build_matcher_module()
{
	# shellcheck disable=SC2046
	${CC:-cc} -std=gnu99 -O2 -g -fPIC -shared -Wall -I"$REPO/src" -I"$($PG_CONFIG --includedir-server)" -o "$1" \
		"$REPO/bench/matcher.c" "$REPO"/src/{matcher,matcher_index,matcher_look,json_hash,filter}.c
}

# Events a second that are read from their table and matched, with 100,000 filters of
# which 10 match each event, beside 100 filters of which 10 match: events of all shapes
# by turns.
line_matcher()
{
	local run shape few many few_alone many_alone bytes compile
	build_matcher_module "$TMP/run/matcher_bench.so" || fail 'the module of the bench cannot be built'
	chmod a+r "$TMP/run/matcher_bench.so"
	new_database matcher
	for run in $(seq "$RUNS"); do
		psql_in matcher -v module="$TMP/run/matcher_bench.so" -f "$REPO/bench/matcher.sql" >"$TMP/matcher"
		while IFS='|' read -r shape few many few_alone many_alone bytes compile; do
			say "$(awk -v s="$shape" -v a="$many" -v b="$few" -v aa="$many_alone" -v ba="$few_alone" -v m="$bytes" -v c="$compile" 'BEGIN {
				printf "  %-11s %6d ns, beside %6d ns, %.2f times; matching alone %5d, %5d ns; %4d bytes a filter, compiled in %d ms", s, a, b, a / b, aa, ba, m, c }')"
		done <"$TMP/matcher"
		read -r few many < <(awk -F'|' '{ few += $2; many += $3 } END { print NR * 1e9 / few, NR * 1e9 / many }' "$TMP/matcher")
		measured matcher "$many" "$few"
	done
	drop_database matcher
}
