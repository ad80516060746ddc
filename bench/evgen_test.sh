#!/bin/bash
#
# Checks of the event generator, as TAP.
#
# usage: evgen_test.sh [EVGEN]      without EVGEN it is built in a temporary directory
#
# With KAFKA_BROKERS=HOST:PORT and KAFKA_TOPIC=NAME (an empty topic) it also sends
# into Kafka; EVGEN_DSN=conninfo lets psql read the SQL as jsonb.

set -u

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
EVGEN=${1:-$DIR/evgen}
UNTIL=2026-01-20T12:00:00Z
tests=0
failed=0

ok()	# STATUS NAME
{
	tests=$((tests + 1))
	if [ "$1" -eq 0 ]; then
		echo "ok $tests - $2"
	else
		echo "not ok $tests - $2"
		failed=$((failed + 1))
	fi
}

skip()	# NAME REASON
{
	tests=$((tests + 1))
	echo "ok $tests - $1 # SKIP $2"
}

if [ $# -eq 0 ]; then
	"${CC:-gcc}" -O2 -Wall -Wextra -Werror "$HERE/evgen.c" -o "$EVGEN" -lrdkafka -lm
	ok $? "builds without warnings"
fi
if [ ! -x "$EVGEN" ]; then
	echo "1..$tests"
	exit 1
fi

cd "$DIR" || exit 1
ALL=(--events 20000 --users 500 --items 100 --until "$UNTIL" --days 5 --late 3
	 --duplicates 5 --broken 4 --future 1 --shapes)

# ---- repeatable ----
"$EVGEN" "${ALL[@]}" --seed 7 --json a.json --truth a &&
	"$EVGEN" "${ALL[@]}" --seed 7 --json - --truth b >b.json
ok $? "writes JSON to a file and to standard output"
cmp a.json b.json && cmp a.counts.csv b.counts.csv && cmp a.items.csv b.items.csv &&
	cmp a.totals.csv b.totals.csv && cmp a.dead.csv b.dead.csv
ok $? "the same seed gives the same bytes and the same truth"
"$EVGEN" "${ALL[@]}" --seed 8 --json c.json
! cmp -s a.json c.json
ok $? "another seed gives another stream"
"$EVGEN" "${ALL[@]}" --seed 7 --rate 400000 --json d.json && cmp a.json d.json
ok $? "a rate changes nothing but the speed"

# ---- the rate ----
"$EVGEN" --events 500 --rate 1000 --json /dev/null --truth r
python3 -c '
s = dict(l.strip().split("=") for l in open("r.summary"))
assert 0.4 < float(s["seconds"]) < 2, s["seconds"]'
ok $? "500 records at 1000 a second take half a second"

# ---- valid lines, and the truth found again by reading them ----
cat >recount.py <<'END'
import collections, csv, datetime, decimal, json, sys

D = decimal.Decimal
prefix = sys.argv[1]
lines = sys.argv[2]
sql = len(sys.argv) > 3
epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

def first(event, *names):
    for name in names:
        if event.get(name) is not None:
            return event[name]

def micros(value):
    if type(value) is int:
        return value * 1000 if value > 1e11 else value * 1000000
    if value.endswith("Z"):
        value = value[:-1] + "+00:00"
    time = datetime.datetime.fromisoformat(value)
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.timezone.utc)
    return (time - epoch) // datetime.timedelta(microseconds=1)

def good(event):
    """None, or (id, user, type, time, item, amount); rules of the contract, apart from evgen."""
    if not isinstance(event, dict):
        return None
    user = first(event, "user_id", "userId")
    kind = first(event, "event_type", "eventType", "activity_type", "action", "event")
    ident = first(event, "event_id", "eventId")
    when = first(event, "occurred_at", "timestamp", "ts")
    inner = event.get("properties", {})
    if not (isinstance(user, str) and 0 < len(user) < 256 or type(user) is int):
        return None
    if not (isinstance(kind, str) and 0 < len(kind) < 101):
        return None
    if ident is not None and not (isinstance(ident, str) and 0 < len(ident) < 256):
        return None
    if not isinstance(inner, dict):
        return None
    page = inner.get("page", "")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in page) or "blob" in inner:
        return None
    try:
        when = micros(when)
    except (ValueError, AttributeError, TypeError):
        return None
    if isinstance(first(event, "occurred_at", "timestamp"), str) and len(first(event, "occurred_at", "timestamp")) < 11:
        return None
    if when > micros("2090-01-01T00:00:00Z"):
        return None
    amount = first(inner, "amount")
    if "amount" in event:
        amount = event["amount"]
    if amount is not None:
        if isinstance(amount, bool) or not isinstance(amount, (int, D, str)):
            return None
        try:
            amount = D(amount)
        except decimal.InvalidOperation:
            return None
        if not amount.is_finite() or abs(amount) >= 10 ** 20:
            return None
    item = first(inner, "item_id") if "item_id" in inner else event.get("item_id")
    return ident, str(user), kind, when, None if item is None else str(item), amount

events, records, bad = {}, 0, 0
if sql:
    source = []
    for statement in open(lines, encoding="utf-8").read().split(";\n")[:-1]:
        head, body, tail = statement.split("$evgen$")
        assert head == "SELECT %s.evstream_track_batch(" % sys.argv[3], head
        assert tail == "::jsonb, 'dead_letter')", tail
        batch = json.loads(body, parse_float=D)
        assert len(batch) <= int(sys.argv[4])
        source += batch
else:
    source = open(lines, "rb").read().decode("utf-8").split("\n")
    assert source.pop() == ""
for no, event in enumerate(source):
    records += 1
    if not sql:
        try:
            event = json.loads(event, parse_float=D)
        except json.JSONDecodeError:
            event = None
    fields = good(event)
    if fields is None:
        bad += 1
    else:
        events.setdefault(fields[0] or no, fields)

daily, items, totals = {}, {}, {}
for ident, user, kind, when, item, amount in events.values():
    day = (epoch + datetime.timedelta(microseconds=when)).date().isoformat()
    row = daily.setdefault((user, day, kind), [0, D(0), when, when])
    row[0] += 1
    row[1] += amount or 0
    row[2] = min(row[2], when)
    row[3] = max(row[3], when)
    if item is not None:
        row = items.setdefault((user, item, day), collections.Counter())
        row[kind] += 1
for (user, day, kind), row in daily.items():
    total = totals.setdefault((day, kind), [0, 0, D(0)])
    total[0] += row[0]
    total[1] += 1
    total[2] += row[1]

def rows(suffix):
    data = list(csv.reader(open(prefix + suffix)))[1:]
    return data

summary = dict(line.strip().split("=") for line in open(prefix + ".summary"))
number = {k: int(v) for k, v in summary.items() if k != "seconds"}
dead = {r: int(n) for r, n in rows(".dead.csv")}
assert number["sent"] == number["valid"] + number["duplicates"] + number["future"] + number["broken"] + number["tombstones"]
assert number["sent"] == records, records
assert number["valid"] == len(events), len(events)
assert sum(dead.values()) == number["broken"] + number["future"] == bad, bad

truth = rows(".counts.csv")
assert [r[:3] for r in truth] == sorted(r[:3] for r in truth)
assert {tuple(r[:3]): [int(r[3]), D(r[4]), micros(r[5]), micros(r[6])] for r in truth} == daily
truth = rows(".items.csv")
assert [r[:3] for r in truth] == sorted(r[:3] for r in truth)
assert {tuple(r[:3]): tuple(map(int, r[3:])) for r in truth} == {
    k: (c["view"], c["click"], c["purchase"], sum(c.values())) for k, c in items.items()}
truth = rows(".totals.csv")
assert [r[:2] for r in truth] == sorted(r[:2] for r in truth)
assert {tuple(r[:2]): [int(r[2]), int(r[3]), D(r[4])] for r in truth} == totals
END

python3 recount.py a a.json
ok $? "the lines, read again, give the truth"
cut -d, -f1 a.dead.csv | tr '\n' ' ' | grep -qx 'reason bad_amount bad_event_id bad_event_type bad_properties bad_text bad_timestamp bad_user_id future_timestamp not_json not_object too_large '
ok $? "every reason is among the dead letters"
"$EVGEN" --events 5000 --shapes --duplicates 10 --json clean.json --truth clean &&
	python3 -c '
import json
for line in open("clean.json"):
    assert isinstance(json.loads(line), dict)' && python3 recount.py clean clean.json
ok $? "without broken ones every line is a JSON object"
"$EVGEN" --events 30000 --json plain.json --truth plain &&
	python3 -c '
import os
size = os.path.getsize("plain.json") / 30000
assert 200 < size < 260, size'
ok $? "a record has about 230 bytes"
for n in 1 7 9 10 13 99 101 1000; do
	"$EVGEN" --events 3000 --users $n --items $n --zipf 0.2 --shapes --json n.json --truth n &&
		python3 recount.py n n.json || break
done
ok $? "names sort as bytes for any number of users and items"
"$EVGEN" --events 100000 --users 1000 --zipf 1 --types 'view:3,sign-up:1' --json z.json --truth z &&
	python3 -c '
import csv, collections
users, kinds = collections.Counter(), collections.Counter()
for r in csv.DictReader(open("z.counts.csv")):
    users[r["user_id"]] += int(r["event_count"])
    kinds[r["event_type"]] += int(r["event_count"])
assert abs(users["u-1"] / 100000 - 1 / 7.485) < 0.005, users["u-1"]
assert abs(users["u-10"] / 100000 - 0.1 / 7.485) < 0.002, users["u-10"]
assert abs(kinds["view"] / 100000 - 0.75) < 0.01 and len(kinds) == 2'
ok $? "users and types have the shares asked for"
"$EVGEN" --events 0 --json none.json --truth none && [ ! -s none.json ] &&
	[ "$(wc -l <none.counts.csv)" = 1 ]
ok $? "no events"

# ---- SQL ----
"$EVGEN" "${ALL[@]}" --batch-sql a.sql --batch 300 --truth s &&
	python3 recount.py s a.sql public 300
ok $? "the SQL is well formed and gives the truth"
! grep -Eq 'not_json|bad_text|too_large' s.dead.csv && grep -q not_object s.dead.csv
ok $? "what jsonb cannot hold is left out of the SQL"
"$EVGEN" --events 10 --batch-sql - --schema 'my "schema' | head -1 |
	grep -qF 'SELECT "my ""schema".evstream_track_batch($evgen$['
ok $? "a schema's name is quoted"
if [ -n "${EVGEN_DSN:-}" ]; then
	sed -e 's/^SELECT public.evstream_track_batch(/SELECT jsonb_array_length(/' \
		-e "s/::jsonb, 'dead_letter');\$/::jsonb);/" a.sql |
		psql -qAtX -v ON_ERROR_STOP=1 "$EVGEN_DSN" >lengths &&
		[ "$(awk '{ n += $1 } END { print n }' lengths)" = "$(sed -n 's/^sent=//p' s.summary)" ]
	ok $? "PostgreSQL reads the SQL"
else
	skip "PostgreSQL reads the SQL" "EVGEN_DSN is not set"
fi

# ---- Kafka ----
if [ -n "${KAFKA_BROKERS:-}" ] && [ -n "${KAFKA_TOPIC:-}" ]; then
	"$EVGEN" "${ALL[@]}" --tombstones 2 --brokers "$KAFKA_BROKERS" --topic "$KAFKA_TOPIC" --truth k
	ok $? "everything is delivered to Kafka"
	grep -Eq '^tombstones=[1-9]' k.summary
	ok $? "tombstones are sent to Kafka"
	! "$EVGEN" --events 1 --brokers "$KAFKA_BROKERS" --topic "$KAFKA_TOPIC.missing" 2>err &&
		grep -q 'make it first' err
	ok $? "a missing topic is an error"
else
	skip "Kafka" "KAFKA_BROKERS and KAFKA_TOPIC are not set"
fi

# ---- errors ----
"$EVGEN" --events x --json - 2>err
[ $? -eq 2 ] && grep -q -- '--events needs' err
ok $? "a wrong number is refused"
"$EVGEN" --events 1 2>err
[ $? -eq 2 ]
ok $? "an output is needed"
"$EVGEN" --json - --batch-sql - 2>err
[ $? -eq 2 ]
ok $? "one output is enough"
"$EVGEN" --until 2026-02-30 --json - 2>err
[ $? -eq 2 ]
ok $? "a wrong time is refused"
"$EVGEN" --events 10 --json missing/dir/x 2>err
[ $? -eq 1 ]
ok $? "a file that cannot be written is an error"
if [ -c /dev/full ]; then
	"$EVGEN" --events 10 --json /dev/full 2>err
	[ $? -eq 1 ]
	ok $? "a full disk is an error"
fi
"$EVGEN" --help | grep -q -- --duplicates
ok $? "--help"

echo "1..$tests"
[ "$failed" -eq 0 ]
