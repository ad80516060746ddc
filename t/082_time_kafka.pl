# Time and Kafka: hours that come twice, records with strange times, steps of the clock
# under running consumers, seeks behind all that is known, days of another zone computed
# again while events come in, and owners whose clocks differ.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamClock;
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

need_clock();
my $kafka = kafka_start('log.retention.ms=-1');
my $node = new_node('main', start => 0, 'evstream.kafka_brokers' => $kafka, max_worker_processes => 40);
clock_start($node);

sub new_db
{
	my ($name, %settings) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql('postgres', "ALTER DATABASE $name SET evstream.$_ = '$settings{$_}'") for sort keys %settings;
	$node->safe_psql($name, 'CREATE EXTENSION evstream');
	return;
}

# Positions are at the ends of a topic's partitions.
sub consumed
{
	my ($db, $topic, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ends = join(',', map { "$_->[0]:$_->[2]" } watermarks($topic));
	return ok(wait_for_sql($node, $db, qq{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition) FROM (
		SELECT p.log_partition, COALESCE(max(b.to_offset), p.start_offset) AS position
		FROM evstream.partitions p LEFT JOIN evstream.batch_log b USING (log_id, log_partition, generation)
		WHERE p.log_id = (SELECT max(log_id) FROM evstream.logs WHERE topic = '$topic')
		GROUP BY p.log_partition, p.start_offset) p}, $ends, 120), $name);
}

sub count_is
{
	my ($db, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($db, 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts'), $expected, $name);
}

sub seek_done
{
	my ($db) = @_;
	return wait_for_sql($node, $db, 'SELECT bool_and(seek_id = (SELECT max(seek_id) FROM evstream.seeks)) FROM evstream.partitions WHERE log_id > 2', 't', 20);
}

# Where the daily views differ from plain SQL over the stored events.
sub differences
{
	my ($db, $zone) = @_;
	return $node->safe_psql($db, qq{
		WITH want AS (SELECT user_id, (occurred_at AT TIME ZONE '$zone')::date AS day, event_type, count(*), sum(amount), min(occurred_at), max(occurred_at) FROM evstream_events GROUP BY 1, 2, 3),
			have AS (SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream_daily_counts),
			want_total AS (SELECT day, event_type, sum(count) AS n, count(*) AS users FROM want GROUP BY 1, 2),
			have_total AS (SELECT day, event_type, event_count AS n, user_count AS users FROM evstream_daily_totals),
			want_items AS (SELECT user_id, item_id, (occurred_at AT TIME ZONE '$zone')::date AS day, count(*) FROM evstream_events WHERE item_id IS NOT NULL GROUP BY 1, 2, 3),
			have_items AS (SELECT user_id, item_id, day, event_count FROM evstream_daily_item_summary)
		SELECT (SELECT count(*) FROM ((TABLE want EXCEPT TABLE have) UNION ALL (TABLE have EXCEPT TABLE want)) d) || ' counts, '
			|| (SELECT count(*) FROM ((TABLE want_total EXCEPT TABLE have_total) UNION ALL (TABLE have_total EXCEPT TABLE want_total)) d) || ' totals, '
			|| (SELECT count(*) FROM ((TABLE want_items EXCEPT TABLE have_items) UNION ALL (TABLE have_items EXCEPT TABLE want_items)) d) || ' items'});
}
my $none = '0 counts, 0 totals, 0 items';

# ---- The hour that comes twice, and the one that there is not ----

make_topic('zones', 1);
my @times = ('2025-10-26T00:30:00+02:00', '2025-10-26T02:30:00+02:00', '2025-10-26T02:30:00+01:00', '2025-10-26T23:59:59.999999+01:00', '2025-10-27T00:00:00+01:00',
	'2025-03-29T23:59:59.999999+01:00', '2025-03-30T00:00:00+01:00', '2025-03-30T02:30:00+01:00', '2025-03-30T02:30:00+02:00', '2025-03-30T23:59:59+02:00', '2025-03-31T00:00:00+02:00');
produce('zones', [ map { [ undef, qq({"user_id":"u","event":"view","ts":"$_"}) ] } @times ]);
# and by the record's own time, in milliseconds
produce('zones', [ map { [ undef, '{"user_id":"own","event":"view"}', undef, $_ ] } 1_743_289_199_999, 1_743_289_200_000, 1_743_371_999_999, 1_743_372_000_000 ]);
new_db('zones', kafka_topic => 'zones', time_zone => 'Europe/Berlin');
consumed('zones', 'zones', 'records around both changes of the clock');
is($node->safe_psql('zones', q{SELECT string_agg(day || ':' || event_count, ' ' ORDER BY day) FROM evstream_daily_counts WHERE user_id = 'u'}),
	'2025-03-29:1 2025-03-30:4 2025-03-31:1 2025-10-26:4 2025-10-27:1', 'are of the days that they have there');
is($node->safe_psql('zones', q{SELECT string_agg(day || ':' || event_count, ' ' ORDER BY day) FROM evstream_daily_counts WHERE user_id = 'own'}),
	'2025-03-29:1 2025-03-30:2 2025-03-31:1', 'and so are those without a time in the value');
is(differences('zones', 'Europe/Berlin'), $none, 'as plain SQL has it');
$node->safe_psql('zones', q{SELECT evstream_seek('294276-12-31 23:59:59+00'::timestamptz)});
ok(seek_done('zones'), 'a seek to the last time there is');
is($node->safe_psql('zones', 'SELECT start_offset FROM evstream.partitions WHERE log_id > 2'), 15, 'is one to the end');
$node->safe_psql('zones', q{SELECT evstream_seek('4714-11-24 00:00:00+00 BC'::timestamptz)});
ok(seek_done('zones'), 'and to the first one');
is($node->safe_psql('zones', 'SELECT start_offset FROM evstream.partitions WHERE log_id > 2'), 0, 'to the start');

# ---- Records whose own time is no time ----

make_topic('strange', 1, 'message.timestamp.type=CreateTime', 'message.timestamp.after.max.ms=9223372036854775807', 'message.timestamp.before.max.ms=9223372036854775807');
my $value = '{"user_id":"strange","event":"view","ts":"2026-01-02T03:04:05Z","n":%d}';
# seconds, microseconds and nanoseconds where milliseconds are meant, and the last number there is
my @strange = (1, 1_767_322_800, 1_767_322_800_000_000, 1_767_322_800_000_000_000, 9_223_372_036_854_775_807);
produce('strange', [ map { [ undef, sprintf($value, $_), 0, $strange[$_] ] } 0 .. $#strange ]);
produce('strange', [ map { [ undef, '{"user_id":"none","event":"view"}', 0, $_ ] } @strange ]);
new_db('strange', kafka_topic => 'strange');
consumed('strange', 'strange', 'records with strange times');
is($node->safe_psql('strange', q{SELECT count(*) FROM evstream_events WHERE user_id = 'strange' AND occurred_at = '2026-01-02 03:04:05+00'}), 5, 'an event that has its own time counts by that');
is($node->safe_psql('strange', q{SELECT string_agg(day::text, ' ' ORDER BY day) FROM evstream_daily_counts WHERE user_id = 'none'}), '1970-01-01 1970-01-21', 'another by that of the record, if it is one');
is($node->safe_psql('strange', q{SELECT count(*), min(reason), count(*) FILTER (WHERE record_timestamp::text ~ '^[0-9-]+ ') FROM evstream_dead_letters}), '3|future_timestamp|3',
	'else it is a dead letter, whose time can be shown');
# the last record, whose time is compared when consumers start again
for my $last (@strange)
{
	produce('strange', [ [ undef, sprintf($value, $last), 0, $last ] ]);
	consumed('strange', 'strange', "one of time $last");
	$node->safe_psql('strange', 'SELECT evstream_restart()');
	produce('strange', [ [ undef, sprintf($value, 1), 0, 1_767_322_800_000 ] ]);
	consumed('strange', 'strange', 'and one after a restart');
}
is($node->safe_psql('strange', q{SELECT max(incarnation) FROM evstream.logs WHERE topic = 'strange'}), 1, 'the topic is the same');
count_is('strange', 17, 'and nothing counts twice');
$node->safe_psql('postgres', "DROP DATABASE $_") for qw(zones strange);

# ---- Steps of the clock under running consumers ----

# brokers from 4.0 on refuse by default what is more than an hour ahead of them
make_topic('steps', 2, 'message.timestamp.after.max.ms=9223372036854775807');
new_db('steps', kafka_topic => 'steps', consumers => 2, dedup_window => '1 day', retention => '10 days');
sub send_some { my ($n) = @_; produce('steps', [ map { [ undef, '{"user_id":"u","event":"view"}', $_ % 2, 1_767_322_800_000 ] } 1 .. $n ]); return; }
send_some(100);
consumed('steps', 'steps', 'before the step');
my $latest = $node->safe_psql('steps', 'SELECT max(received_at) FROM evstream_events');
clock_set(-3 * DAY);
alter_topic('steps', 3);
produce('steps', [ map { [ undef, '{"user_id":"u","event":"view"}', 2, 1_767_322_800_000 ] } 1 .. 50 ]);
send_some(100);
consumed('steps', 'steps', 'three days back: a partition that was added since is found');
count_is('steps', 250, 'each counts once');
is($node->safe_psql('steps', "SELECT count(*) FROM evstream_events WHERE received_at > '$latest'"), 150, 'in no partition anything is received earlier than before');
is($node->safe_psql('steps', q{SELECT evstream_track('u', 'tracked') IS NOT NULL; SELECT evstream_wait('60 s')}), "t\nt", 'the relay goes on');
count_is('steps', 251, 'with what is tracked');
# tracked with a clock that was ahead, and read by consumers with one that is not
clock_set(10 * DAY);
$node->safe_psql('steps', q{SELECT evstream_pause(); SELECT evstream_track('u', 'tracked')});
ok(wait_for_sql($node, 'steps', q{SELECT count(*) FROM evstream.relay_log WHERE next_offsets IS NOT NULL AND seq = (SELECT max(seq) FROM evstream.relay_log)}, 1), 'sent by a clock that is ahead');
clock_set(0);
$node->safe_psql('steps', 'SELECT evstream_resume()');
is($node->safe_psql('steps', q{SELECT evstream_wait('60 s')}), 't', 'and read by one that is right again');
count_is('steps', 252, 'it is no event of the future');
is($node->safe_psql('steps', 'SELECT count(*) FROM evstream_dead_letters'), 0, 'none is');

# ---- A seek back behind all that is known ----

sub day
{
	my ($day) = @_;
	clock_set($day * DAY);
	send_some(2);
	consumed('steps', 'steps', "day $day");
	my $old = $node->safe_psql('steps', q{SELECT pid FROM evstream_workers WHERE role = 'maintenance'});
	$node->safe_psql('steps', 'SELECT evstream_restart()');
	ok(wait_for_sql($node, 'steps', "SELECT state = 'idle' AND pid <> $old FROM evstream_workers WHERE role = 'maintenance'", 't'), 'maintenance has run');
	return;
}
my ($rc, $out, $err) = $node->psql('steps', 'SELECT evstream_seek(0, 0, force => true)');
is($err, '', 'as long as no id was forgotten, a forced seek warns of nothing');
ok(wait_for_sql($node, 'steps', 'SELECT forced FROM evstream.partitions WHERE log_id > 2 AND log_partition = 0', 't'), 'it is done');
consumed('steps', 'steps', 'and read to the end');
count_is('steps', 252, 'each id is recognised');
day($_) for 20, 21, 40;
count_is('steps', 258, 'days later');
is($node->safe_psql('steps', q{SELECT count(*) FROM evstream_events}), 2, 'older events are not stored any more');
is($node->safe_psql('steps', q{SELECT min(segment_id) > 1 FROM evstream.id_segments}), 't', 'and their ids forgotten');
($rc, $out, $err) = $node->psql('steps', q{SELECT evstream_seek('2000-01-01'::timestamptz)});
is($err, '', 'a seek to the start');
ok(seek_done('steps'), 'is done');
consumed('steps', 'steps', 'and read to the end');
count_is('steps', 258, 'nothing counts twice');
is($node->safe_psql('steps', q{SELECT count(*) FROM evstream_events}), 2, 'or comes back');
my $known = $node->safe_psql('steps', q{SELECT to_char(min(created_at), 'YYYY-MM-DD HH24:MI:SSOF') FROM evstream.id_segments});
my $ids = $node->safe_psql('steps', q{SELECT count(*) FROM evstream.ids});
($rc, $out, $err) = $node->psql('steps', q{SELECT evstream_seek('2000-01-01'::timestamptz, force => true)});
like($err, qr/WARNING:  records that were consumed before may be counted again\nDETAIL:  Ids are known of events that were received since \Q$known\E; older ones are not recognised\./,
	'forced, it says what it cannot know');
ok(seek_done('steps'), 'it is done');
consumed('steps', 'steps', 'and read to the end');
count_is('steps', 258 + 258 - $ids, 'those whose ids are forgotten count again, and only they');
$node->safe_psql('postgres', 'DROP DATABASE steps');
clock_set(0);

# ---- Another zone, computed again while events of these days come in ----

my $events = 60_000;
my $prefix = scratch_dir() . '/truth';
make_topic('stream', 2);
new_db('stream', kafka_topic => 'stream', consumers => 2, batch_size => 1000);
my $gen = evgen_start('--brokers', $kafka, '--topic', 'stream', '--events', $events, '--seed', 82, '--rate', 8000,
	'--duplicates', 5, '--broken', 1, '--late', 20, '--truth', $prefix);
ok(wait_for_sql($node, 'stream', 'SELECT COALESCE(sum(event_count), 0) > 3000 FROM evstream_daily_totals', 't'), 'a stream has begun');
for my $zone ('America/New_York', 'Pacific/Kiritimati', 'UTC')
{
	$node->safe_psql('postgres', "ALTER DATABASE stream SET evstream.time_zone = '$zone'");
	$node->safe_psql('stream', 'SELECT evstream_restart()');
	cmp_ok($node->safe_psql('stream', q{SELECT evstream_rebuild('0001-01-01', '9999-12-31')}), '>', 0, "days in $zone, while events come in");
	# in one snapshot, which sees a batch in all of its tables
	is(differences('stream', $zone), $none, 'are what plain SQL has at that moment');
	is($node->safe_psql('stream', 'SELECT rebuild_needed FROM evstream.state'), 'f', 'and nothing else is to be done');
}
$gen->finish;
is($gen->result(0), 0, 'the stream is sent');
consumed('stream', 'stream', 'and consumed');
is(join("\n", compare_truth($node, 'stream', $prefix)), '', 'the counts are the truth: nothing is lost or doubled');

# ---- Owners whose clocks differ ----

make_topic('owned', 1);
clock_set(2 * DAY);
new_db('first', kafka_topic => 'owned', kafka_group => 'owned');
$node->safe_psql('first', 'SELECT evstream_take_over()');
produce('owned', [ [ undef, '{"user_id":"u","event":"view"}' ] ]);
consumed('first', 'owned', 'an owner whose clock is ahead');
my $stopped = q{SELECT evstream_health() #>> '{components,kafka,why}' LIKE 'the Kafka group "owned" belongs to another database%'};
clock_set(0);
new_db('second', kafka_topic => 'owned', kafka_group => 'owned');
ok(wait_for_sql($node, 'second', $stopped, 't'), 'another database stops');
$node->safe_psql('second', 'SELECT evstream_take_over()');
ok(wait_for_sql($node, 'first', $stopped, 't'), 'it takes over, by a clock that is behind: the first one stops');
consumed('second', 'owned', 'and it consumes');

is(log_lines($node, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'no worker crashed');
$node->stop('fast');
done_testing();
