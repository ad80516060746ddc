# Records that crash or hang a consumer: each is found and set aside, the others are
# counted, and nobody is condemned for what others do to the worker. In a build of the
# library in which events of certain types crash or hang.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

BAIL_OUT('EVSTREAM_DEBUG_BINDIR is not set: run it by make check') unless $ENV{EVSTREAM_DEBUG_BINDIR};
$ENV{PATH} = "$ENV{EVSTREAM_DEBUG_BINDIR}:$ENV{PATH}";

my $node = new_node('main', extension => 1, 'evstream.max_clock_skew' => '1 day');
my $data = $node->data_dir;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A call whose commit lets the worker crash, while consumption is paused: the session would
# be ended before it has its answer.
sub paused
{
	my ($call) = @_;
	sql('SELECT evstream_pause()');
	my $answer = sql($call);
	# the list context keeps psql() from dying when it is cut off
	my ($rc) = $node->psql('postgres', 'SELECT evstream_resume()');
	return $answer;
}

# Events of one transaction, of these types.
sub track
{
	my (@types) = @_;
	my $n = 0;
	my $events = join(', ', map { $n++; qq({"user_id": "u-$n", "event_type": "$_", "item_id": "i-$n"}) } @types);
	paused("SELECT evstream_track_batch('[$events]')");
	return;
}

# How often a worker has crashed by itself.
sub crashes { return count_log($node, qr/background worker "evstream consumer" .*was terminated by signal (?:11|6):/); }

my $counted = 0;
my $offset = 0;

# All that was tracked is counted, but for so many dead letters in all.
sub settled
{
	my ($good, $bad, $letters, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$counted += $good;
	$offset += $good + $bad;
	ok(wait_for_sql($node, 'postgres',
		'SELECT (SELECT sum(event_count) FROM evstream_daily_totals), (SELECT count(*) FROM evstream_events),'
		. ' (SELECT count(*) FROM evstream_dead_letters), (SELECT max(to_offset) FROM evstream.batch_log WHERE log_id = 1)',
		"$counted|$counted|$letters|$offset"), $name);
	return;
}

# ---- A record that crashes the parser ----

track(('view') x 50);
settled(50, 0, 0, 'nothing is wrong');
track(('view') x 30, 'crash while parsing', ('view') x 19);
settled(49, 1, 1, 'a record that crashes the parser is set aside, the others are counted');
is(crashes(), 3, 'after one crash among others and two alone');
like(sql('SELECT reason, convert_from(record_key, $$UTF8$$), log_offset, attempts, topic, record_value FROM evstream_dead_letters'),
	qr/^crashed\|u-31\|80\|1\|\|/, 'as a dead letter');
is(sql(q{SELECT convert_from(record_value, 'UTF8')::jsonb - '{event_id,occurred_at}'::text[] FROM evstream_dead_letters}),
	'{"item_id": "i-31", "user_id": "u-31", "event_type": "crash while parsing"}', 'with its value');
is(count_log($node, qr/WARNING:  a record was set aside/), 1, 'the log says so');

# Once more, as it is, and then as it should be.
my $letter = sql('SELECT id FROM evstream_dead_letters');
is(paused("SELECT evstream_dead_letter_retry($letter)"), 't', 'it is tried again');
ok(wait_for_sql($node, 'postgres', 'SELECT id, reason, log_offset, attempts FROM evstream_dead_letters', "$letter|crashed|80|2"),
	'and set aside again, as the same dead letter');
is(crashes(), 5, 'after two crashes');
is(sql('SELECT count(*) FROM evstream.retries'), 0, 'it waits no more');
sql(q{UPDATE evstream_dead_letters SET record_value = convert_to(replace(convert_from(record_value, 'UTF8'), 'crash while parsing', 'view'), 'UTF8')});
is(sql("SELECT evstream_dead_letter_retry($letter)"), 't', 'edited');
$offset--;
settled(1, 0, 0, 'it is counted');

# ---- Where it is not known which record it is, and several ----

my $before = crashes();
track(('view') x 20, 'crash while storing', ('view') x 5);
settled(25, 1, 1, 'a record that crashes the worker while it is stored');
is(crashes() - $before, 3, 'is found as soon');
track('abort while storing', ('view') x 5, 'crash while parsing', 'crash while parsing', ('view') x 5);
settled(10, 3, 4, 'three bad ones at once');
is(sql(q{SELECT string_agg(convert_from(record_value, 'UTF8')::jsonb ->> 'user_id', ' ' ORDER BY id) FROM evstream_dead_letters WHERE reason = 'crashed'}),
	'u-21 u-1 u-7 u-8', 'and no others');

# ---- Hangs ----

$before = crashes();
track(('view') x 5, 'hang while storing', ('view') x 5);
settled(10, 1, 5, 'a record that hangs the worker while it is stored');
track(('view') x 5, 'hang while parsing', ('view') x 5);
settled(10, 1, 6, 'one that hangs the parser');
is(sql(q{SELECT count(*) FROM evstream_dead_letters WHERE reason = 'crashed'}), 6, 'all of them as crashed');
is(crashes(), $before, 'without a crash');
is(count_log($node, qr/WARNING:  a batch of \d+ records was given up/), 6, 'the log tells of each, among others and twice alone');

# ---- What others do to the worker ----

# The worker that waits within a record, alone in its batch.
my $last = 0;

sub waiting
{
	my $end = time() + 60;
	while (time() < $end)
	{
		my $pid = -e "$data/evstream_waits" ? slurp_file("$data/evstream_waits") : '';
		chomp $pid;
		return $last = $pid if $pid =~ /^\d+$/ && $pid != $last && kill(0, $pid);
		sleep(0.02);
	}
	die 'no worker waits';
}

track('wait while storing');
kill('KILL', waiting());
kill('KILL', waiting());
kill('SEGV', waiting());
kill('SEGV', waiting());
waiting();
$node->stop('immediate');
$node->start;
waiting();
my ($victim) = split(/\n/, sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'evstream maintenance'}));
kill('KILL', $victim);
waiting();
append_to_file("$data/evstream_go", '');
settled(1, 0, 6, 'kill -9, signals of others, immediate shutdown and others\' crashes condemn nobody');
unlink("$data/evstream_go");

track('panic while storing');
$node->wait_for_log(qr/(?:PANIC:  panic of a test.*?){3}/s);
append_to_file("$data/evstream_go", '');
settled(1, 0, 6, 'neither does a PANIC');

# What was learned goes with a clean end, as there is nothing left of it.
$node->stop;
is_deeply([ glob("$data/pg_stat_tmp/evstream*") ], [], 'nothing is left behind');
$node->start;

# ---- One for which there is not enough memory ----

sub workers_health
{
	my ($expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, 'postgres', q{SELECT w ->> 'status', w ->> 'why', w ->> 'hint' FROM (SELECT evstream_health() #> '{components,workers}') h (w)},
		$expected), $name);
}

unlink("$data/evstream_go");
track(('view') x 5, 'no memory while storing', ('view') x 5);
my $place = 'there is not enough memory for the record at offset ' . ($offset + 5) . ' of partition 0 of embedded, of ';
ok(wait_for_sql($node, 'postgres', qq{SELECT starts_with(evstream_health() #>> '{components,workers,why}', '$place')}, 't'), 'health names a record for which there is not enough memory');
like(sql('SELECT evstream_health() -> $$components$$ -> $$workers$$'), qr/"why": "[^"]* of \d\d+ bytes, which holds up those after it: out of memory", "hint": "[^"]*evstream\.max_event_bytes|evstream\.max_event_bytes.*which holds up/, 'and what to do');
is(sql('SELECT sum(event_count) FROM evstream_daily_totals'), $counted + 5, 'those before it are counted');
append_to_file("$data/evstream_go", '');
settled(11, 0, 6, 'there is enough: it is, too, and those after it');
workers_health('ok||', 'and health is well');
unlink("$data/evstream_go");
paused(q{SELECT evstream_track('u', 'no memory while storing', jsonb_build_object('pad', repeat('x', 5000))), evstream_track('u', 'view')});
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() #>> '{components,workers,why}' ~ '^there is not enough memory for'}, 't'), 'once more');
sql('ALTER SYSTEM SET evstream.max_event_bytes = 4000');
$node->reload;
settled(1, 1, 7, 'a lower evstream.max_event_bytes makes a dead letter of it');
is(sql('SELECT reason FROM evstream_dead_letters ORDER BY id DESC LIMIT 1'), 'too_large', 'as what is too large');
workers_health('ok||', 'and health is well');
sql('ALTER SYSTEM RESET evstream.max_event_bytes');
$node->reload;
append_to_file("$data/evstream_go", '');

# ---- Who tries one again ----

# Who parses it would crash, or not come back. The answer is there before the commit that lets
# the consumer crash.
my $ids = sql(q{SELECT string_agg(id::text, ',' ORDER BY id) FROM evstream_dead_letters
	WHERE convert_from(record_value, 'UTF8')::jsonb ->> 'event_type' IN ('crash while parsing', 'hang while parsing')});
is(scalar(split(/,/, $ids)), 3, 'two that crash the parser, and one that hangs it');
my $crashes = crashes();
is(sql(qq{BEGIN; SELECT bool_and(evstream_dead_letter_retry(id)) FROM unnest('{$ids}'::bigint[]) id; ROLLBACK}), 't', 'are not looked into by who retries them');
is(crashes(), $crashes, 'whose server goes on');
paused(qq{SELECT bool_and(evstream_dead_letter_retry(id)) FROM unnest('{$ids}'::bigint[]) id});
ok(wait_for_sql($node, 'postgres', qq{SELECT count(*), string_agg(DISTINCT reason || ' ' || attempts, ',') FROM evstream_dead_letters WHERE id IN ($ids)}, '3|crashed 2'),
	'the consumer sets each aside again');
is(crashes() - $crashes, 4, 'after two crashes of each that crashes');
sql(qq{UPDATE evstream_dead_letters SET record_value = 'nonsense' WHERE id IN ($ids)});
is(sql(qq{SELECT bool_and(evstream_dead_letter_retry(id)) FROM unnest('{$ids}'::bigint[]) id}), 't', 'edited, into what is no event');
ok(wait_for_sql($node, 'postgres', qq{SELECT count(*), string_agg(DISTINCT reason || ' ' || attempts, ',') FROM evstream_dead_letters WHERE id IN ($ids)}, '3|not_json 3'),
	'the consumer says what it is then');

# ---- With Kafka ----

SKIP:
{
	my $kafka = eval { kafka_start(); };
	skip('no Kafka', 1) unless defined $kafka;
	make_topic('evstream.events', 2);
	my $now = int(time()) * 1000;
	produce('evstream.events', [
		map { my $n = $_;
			my $type = $n == 301 ? 'crash while parsing' : $n == 302 ? 'hang while storing' : 'click';
			[ "k-$n", qq({"user_id": "k-$n", "event_type": "$type"}), $n % 2, $now + $n, [ a => 'b', traceparent => undef ] ]
		} 1 .. 600 ]);
	sql("ALTER SYSTEM SET evstream.kafka_brokers = '$kafka'");
	$node->reload;
	ok(wait_for_sql($node, 'postgres', q{SELECT sum(event_count) FROM evstream_daily_totals WHERE event_type = 'click'}, 598), 'Kafka: the others are counted');
	is(sql(q{SELECT string_agg(concat_ws(' ', log_partition, log_offset, convert_from(record_key, 'UTF8'), convert_from(record_value, 'UTF8'),
			record_headers, extract(epoch FROM record_timestamp) * 1000 - } . $now . q{, reason), E'\n' ORDER BY log_partition)
		FROM evstream_dead_letters WHERE topic = 'evstream.events'}),
		qq(0 150 k-302 {"user_id": "k-302", "event_type": "hang while storing"} [["a", "Yg=="], ["traceparent", null]] 302.000000 crashed\n)
		. qq(1 150 k-301 {"user_id": "k-301", "event_type": "crash while parsing"} [["a", "Yg=="], ["traceparent", null]] 301.000000 crashed),
		'the two are dead letters, with all that their records had');
	is(sql(q{SELECT string_agg(position || '/' || end_offset, ' ' ORDER BY log_partition) FROM evstream_lag WHERE topic IS NOT NULL}), '300/300 300/300', 'positions are at the end');
	my $id = sql(q{SELECT id FROM evstream_dead_letters WHERE topic IS NOT NULL AND log_partition = 0});
	is(sql("SELECT evstream_dead_letter_retry($id)"), 't', 'one is tried again');
	ok(wait_for_sql($node, 'postgres', "SELECT attempts, log_partition, log_offset, record_headers FROM evstream_dead_letters WHERE id = $id",
		'2|0|150|[["a", "Yg=="], ["traceparent", null]]'), 'and keeps place and headers');
}

$node->stop;
done_testing();
