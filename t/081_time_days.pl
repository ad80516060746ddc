# Days that pass: the dedup window over days without events and over a clock that went
# wrong, and retention of events, dead letters and stats, by the day and by the month.

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
my $node = new_node('main', start => 0, 'evstream.retention' => '4 days', 'evstream.dead_letter_retention' => '3 days',
	'evstream.stats_retention' => '60 days');
# a noon, so that no day changes by itself
my $noon = int(time() / DAY) * DAY + DAY / 2;
my $today = 0;
clock_set_to($noon);
clock_start($node);
$node->safe_psql('postgres', 'CREATE EXTENSION evstream');

# It is noon of another day; maintenance has looked around since.
sub day
{
	my ($day) = @_;
	$today = $day;
	clock_set_to($noon + $day * DAY);
	return;
}

sub date { my ($day) = @_; my @at = gmtime($noon + $day * DAY); return sprintf('%04d-%02d-%02d', $at[5] + 1900, $at[4] + 1, $at[3]); }

# All that maintenance does at a start has been done.
sub maintained
{
	my $old = $node->safe_psql('postgres', q{SELECT pid FROM evstream_workers WHERE role = 'maintenance'});
	$node->safe_psql('postgres', 'SELECT evstream_restart()');
	# idle is what it says behind a whole turn
	ok(wait_for_sql($node, 'postgres', "SELECT state = 'idle' AND pid <> $old FROM evstream_workers WHERE role = 'maintenance'", 't'), "day $today: maintenance has run");
	return;
}

# Tracks one with this text as its id; is it taken for a new one?
sub is_new
{
	my ($text) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts');
	$node->safe_psql('postgres', "SELECT evstream_track('u', 'view', event_id => evstream_event_id('$text')); SELECT evstream_wait('60 s')");
	return $node->safe_psql('postgres', 'SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts') - $before;
}

# ---- The dedup window: two days with events, whatever is between ----

is(is_new('first'), 1, 'an event');
is(is_new('first'), 0, 'its id again');
$node->safe_psql('postgres', q{SELECT evstream_track_batch('[1]', 'dead_letter')});
day(4);
is(is_new('first'), 0, 'after three days without events its id is known');
maintained();
is(is_new('other 4'), 1, 'events come again');
is(is_new('first'), 0, 'on the first day with events behind it');
day(5);
is(is_new('other 5'), 1, 'a day later');
maintained();
is(is_new('first'), 0, 'on the second one');

# ---- Retention, by the day and by the month ----

my $day0 = date(0);
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT (received_at AT TIME ZONE 'UTC')::date::text, ',') FROM evstream_events}), join(',', date(4), date(5)),
	'the leaf of the first day, five days ago, is dropped');
is($node->safe_psql('postgres', "SELECT string_agg(day::text, ',') FROM evstream.unstored_days"), $day0, 'it is known that it had events of that day');
is($node->safe_psql('postgres', q{SELECT string_agg(received_day::text, ',' ORDER BY received_day) FROM evstream.stored_days}), join(',', date(4), date(5)), 'and which days are in the other leaves');
is($node->safe_psql('postgres', "SELECT event_count FROM evstream_daily_counts WHERE day = '$day0'"), 1, 'which are in the stats');
my ($rc, $out, $err) = $node->psql('postgres', "SELECT evstream_rebuild('$day0', '" . date(5) . q{')});
like($err, qr/1 of the days from .* cannot be rebuilt
.*: $day0\./, 'that day cannot be rebuilt');
is($node->safe_psql('postgres', "SELECT evstream_rebuild('" . date(4) . "', '" . date(5) . q{')}), 4, 'others can');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_dead_letters'), 0, 'the dead letter of the first day is gone, too');

$node->safe_psql('postgres', 'TRUNCATE evstream.events_' . (date(4) =~ s/-//gr));
sub cannot_rebuild
{
	my ($day, $name) = @_;
	my (undef, undef, $error) = $node->psql('postgres', "SELECT evstream_rebuild('$day', '$day')");
	return like($error, qr/1 of the days from .* cannot be rebuilt/, $name);
}
cannot_rebuild(date(4), 'nor one of which somebody has emptied the leaf');

# the segment was closed on day 4; the window ends with the third day with events behind it
day(8);
is(is_new('other 8'), 1, 'the second day with events behind the segment');
maintained();
is(is_new('first'), 0, 'its ids are known');
day(9);
is(is_new('before'), 1, 'the third one');
maintained();
is(is_new('first'), 1, 'the id is forgotten, and counts again');

# ---- A clock that was ahead for a moment takes no day from the window ----

day(30);
is(is_new('ahead'), 1, 'one while the clock is ahead by weeks');
day(10);
is(is_new('after'), 1, 'and one when it is right again');
maintained();
day(11);
is(is_new('other 11'), 1, 'a day later');
maintained();
day(12);
is(is_new('other 12'), 1, 'two days later');
maintained();
is(is_new('after'), 0, 'the id is known as long as without that');
is(is_new('before'), 0, 'and one of before');
is($node->safe_psql('postgres', "SELECT to_regclass('evstream.events_" . (date(4) =~ s/-//gr) . "')"), '', 'the emptied leaf has expired, too');
cannot_rebuild(date(4), 'and its day cannot be rebuilt, as before');
is($node->safe_psql('postgres', 'SELECT max(day) FROM evstream.received_days'), date(30), 'the received day does not go back');


# ---- Months of stats ----

is($node->safe_psql('postgres', "SELECT count(*) FROM evstream_daily_totals WHERE day = '$day0'"), 1, 'the first day is in the stats until then');
day(160);
maintained();
ok(wait_for_sql($node, 'postgres', 'SELECT count(*) FROM evstream_daily_totals', 0), 'months later it is dropped with its month');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_daily_counts'), 0, 'in all stats');
is(is_new('later'), 1, 'and what comes is counted');
is(count_log($node, qr/ERROR|PANIC|TRAP|terminated by signal|was terminated/), 3, 'the log has no error but those of the rebuilds');

$node->stop('fast');
done_testing();
