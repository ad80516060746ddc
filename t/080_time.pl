# Steps of the clock: the change of the received day, back and forth by days, and a
# start with a clock that is behind. Nothing waits for a time that is far away, nothing
# is lost or counted twice, and received_at grows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamClock;
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

need_clock();
my $node = new_node('main', 'evstream.redis_url' => redis_start(), 'evstream.stream_maxlen' => 1000000, start => 0);
# three seconds before a midnight that is about now, so that leaves of today are made ahead
my $midnight = (int(time() / DAY) + 1) * DAY;
clock_set_to($midnight - 3);
clock_start($node);
$node->safe_psql('postgres', q{CREATE EXTENSION evstream; SELECT evstream_subscribe('all')});

my $tracked = 0;

# Tracks events, each in a transaction of its own.
sub track
{
	my ($count) = @_;
	$node->safe_psql('postgres', join('', map { "SELECT evstream_track('u', 'view');\n" } 1 .. $count));
	$tracked += $count;
	return;
}

# All that was tracked is counted once, stored in order, in the leaf of its day, and in Redis.
sub all_is_well
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', "$name: sent to its end");
	is($node->safe_psql('postgres', 'SELECT sum(event_count) FROM evstream_daily_counts'), $tracked, "$name: each counts once");
	is($node->safe_psql('postgres', q{SELECT count(*) FROM (
		SELECT received_at, lag(received_at) OVER (PARTITION BY log_id, log_partition ORDER BY log_offset) AS before FROM evstream.events) e
		WHERE received_at <= before}), 0, "$name: received_at grows within the log");
	is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream.events
		WHERE tableoid <> to_regclass('evstream.events_' || to_char(received_at AT TIME ZONE 'UTC', 'YYYYMMDD'))}), 0, "$name: the leaf is that of the day");
	is(redis_cli('XLEN', 'evstream:stream:all'), $tracked, "$name: Redis has each once");
	return;
}

# Health, lag and metrics have no negative age and name no strange one.
sub ages_are_sane
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $health = $node->safe_psql('postgres', 'SELECT evstream_health()');
	unlike($health, qr/-\d\d:\d\d|-\d+ (?:days?|seconds)|\d{3,} days/, "$name: health has no strange age");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_lag WHERE lag < 0 OR lag_seconds < 0'), 0, "$name: lag neither");
	my @negative = grep { /^[^#].* -/ && !/^evstream_component_status/ } split(/\n/, $node->safe_psql('postgres', 'SELECT evstream_metrics()'));
	is("@negative", '', "$name: nor metrics");
	return;
}

# ---- The change of the received day ----

track(50);
do { track(10) } until $node->safe_psql('postgres', q{SELECT (now() AT TIME ZONE 'UTC')::date = '} . $node->safe_psql('postgres', "SELECT (to_timestamp($midnight) AT TIME ZONE 'UTC')::date") . q{'}) eq 't';
track(50);
all_is_well('midnight');
is($node->safe_psql('postgres', 'SELECT count(DISTINCT tableoid) FROM evstream.events'), 2, 'events of two days');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream.received_days'), 2, 'which are known as days with events');
# an id of before, after its segment was closed
my $id = $node->safe_psql('postgres', 'SELECT event_id FROM evstream_events ORDER BY log_offset LIMIT 1');
$node->safe_psql('postgres', q{SELECT evstream.wake_workers('maintenance')});
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream.id_segments WHERE closed_at IS NOT NULL', 1), 'a new day has a new segment of ids');
$node->safe_psql('postgres', "SELECT evstream_track('u', 'view', event_id => '$id')");
all_is_well('an id of the day before');

# ---- A step back by three days ----

my $latest = $node->safe_psql('postgres', 'SELECT max(received_at) FROM evstream_events');

# waiting that began before it: a worker that is to be started again, one that tries again, Redis, a caller
redis_stop();
$node->safe_psql('postgres', q{ALTER TABLE evstream.batch_log ADD CONSTRAINT broken CHECK (log_id <> 1) NOT VALID});
track(20);
ok(wait_for_sql($node, 'postgres', q{SELECT errors > 4 FROM evstream_workers WHERE role = 'consumer'}, 't'), 'the consumer fails and waits longer and longer');
my ($out, $err) = ('', '');
my $script = q{
SELECT evstream_track('session', 'view') AS first \gset
SELECT clock_timestamp() AS at \gset
SELECT 'begins';
SELECT 'waited in vain', NOT evstream_wait('2 s');
SELECT 'clock went back', clock_timestamp() < :'at';
SELECT 'ids grow', evstream_track('session', 'view') > :'first';
};
my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$script, '>', \$out, '2>', \$err);
$waiting->pump_nb until $out =~ /begins/ || $err;
clock_set(-3 * DAY);
$waiting->finish;
$tracked += 2;
is($out . $err, "begins\nwaited in vain|t\nclock went back|t\nids grow|t\n", 'a call that waits ends in time, and ids of a session grow');
ages_are_sane('back by three days, with what waits');
$node->safe_psql('postgres', 'ALTER TABLE evstream.batch_log DROP CONSTRAINT broken');
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('1 s', fan_out => false)}, 't'), 'the consumer tries again');
redis_start();
all_is_well('back by three days');
is($node->safe_psql('postgres', "SELECT count(*) > 20 FROM evstream_events WHERE received_at > '$latest'"), 't', 'what came since was received later');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_dead_letters}), 0, 'and nothing is an event of the future');

# back again while a worker that failed is to be started later
clock_set(0);
for my $round (1 .. 3)
{
	$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM evstream_workers WHERE role = 'consumer'});
	if ($round == 3)
	{
		ok(wait_for_sql($node, 'postgres', q{SELECT count(pid) FROM evstream_workers WHERE role = 'consumer'}, 0), 'a worker is gone, and is to be started later');
		clock_set(-3 * DAY);
	}
	ok(wait_for_sql($node, 'postgres', q{SELECT count(pid) FROM evstream_workers WHERE role = 'consumer'}, 1), 'it is started');
}
track(20);
all_is_well('a restart that was due before the step');

# another log of the database, which has received nothing yet
$latest = $node->safe_psql('postgres', 'SELECT max(received_at) FROM evstream_events');
$node->safe_psql('postgres', q{SELECT evstream_track_batch('[{"user_id": "retried"}]', 'dead_letter');
	UPDATE evstream_dead_letters SET record_value = '{"user_id": "retried", "event": "view"}';
	SELECT evstream_dead_letter_retry(id) FROM evstream_dead_letters});
$tracked++;
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_events WHERE user_id = 'retried' AND received_at > '$latest'", 1), 'no partition falls behind the others');
is($node->safe_psql('postgres', "SELECT count(*) FROM evstream_backfill('all', '$latest')"), 2, 'so who asks from the last event that he has finds it');
all_is_well('a retried dead letter');
ages_are_sane('back by three days');

# ---- A start with a clock that is ten days behind ----

track(20);
$latest = $node->safe_psql('postgres', q{SELECT evstream_wait('60 s'); SELECT max(received_at) FROM evstream_events});
$latest =~ s/^t\n//;
$node->stop('fast');
clock_set(-10 * DAY);
clock_start($node);
track(20);
all_is_well('a start ten days behind');
is($node->safe_psql('postgres', "SELECT count(*) FROM evstream_events WHERE received_at > '$latest'"), 20, 'what came since was received later');
ages_are_sane('a start ten days behind');

# tracked with a clock that was ahead, and not read before that was mended
$node->safe_psql('postgres', 'SELECT evstream_pause()');
ok(wait_for_sql($node, 'postgres', q{SELECT state FROM evstream_workers WHERE role = 'consumer'}, 'paused'), 'consumption is paused');
clock_set(20 * DAY);
track(20);
clock_set(0);
ages_are_sane('what waits is of the future');
$node->safe_psql('postgres', 'SELECT evstream_resume()');
all_is_well('tracked by a clock that was ahead');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_events WHERE occurred_at > now() + interval '19 days'}), 20, 'the events are there, at the time that they tell');

# ---- Ahead by ten days, for a moment, and back ----

clock_set(10 * DAY);
track(20);
all_is_well('ten days ahead');
clock_set(0);
track(20);
all_is_well('and back again');
ages_are_sane('and back again');
is($node->safe_psql('postgres', q{SELECT count(pid) = count(*) FROM evstream_workers}), 't', 'all workers run');
is(log_lines($node, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'none crashed');
$node->stop('fast');
done_testing();
