# Partitions of events that a DBA takes away: the days of their events are not computed anew.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', extension => 1);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub track
{
	my ($user, $time) = @_;
	sql("SELECT evstream_track('$user', 'view', NULL, NULL, '$time')");
	return sql(q{SELECT evstream_wait('60 s')});
}

sub counts { return sql('SELECT string_agg(day || \' \' || user_id || \' \' || event_count, \',\' ORDER BY day, user_id) FROM evstream_daily_counts'); }

sub rebuild { return sql("SELECT evstream_rebuild('$_[0]', '$_[1]')"); }

sub refused
{
	my ($from, $to, $days, $name, $database) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (undef, undef, $err) = $node->psql($database // 'postgres', "SELECT evstream_rebuild('$from', '$to')");
	return like($err, qr/cannot be rebuilt\nDETAIL:  Events of these days are not stored, or no longer: \Q$days\E\.\n/, $name);
}

# The one in which today's events are, also when midnight has passed
my $leaf;
my $bounds;

sub find_leaf
{
	($leaf, $bounds) = split(/\|/, sql(q{SELECT e.tableoid::regclass, pg_get_expr(c.relpartbound, c.oid)
		FROM evstream.events e JOIN pg_class c ON c.oid = e.tableoid ORDER BY received_at DESC LIMIT 1}));
	return;
}

track('a', '2020-05-05 12:00+00');
track('a', '2020-05-05 13:00+00');
track('b', '2020-05-07 12:00+00');
find_leaf();
is(sql('SELECT string_agg(DISTINCT day::text || time_zone, \',\') FROM evstream.stored_days'), '2020-05-05UTC,2020-05-07UTC', 'the days of the events are known');
is(rebuild('2020-05-01', '2020-05-31'), 4, 'they are computed anew');
my $all = '2020-05-05 a 2,2020-05-07 b 1';
is(counts(), $all, 'as they were');

# ---- detached, and attached again ----

sql("ALTER TABLE evstream.events DETACH PARTITION $leaf; ALTER TABLE $leaf RENAME TO kept");
refused('2020-05-01', '2020-05-31', '2020-05-05, 2020-05-07', 'not without the partition of their events');
refused('2020-05-06', '2020-05-07', '2020-05-07', 'nor one of them');
is(counts(), $all, 'the stats are as they were');
is(rebuild('2020-05-01', '2020-05-04'), 0, 'days without events are computed');
sql("ALTER TABLE evstream.kept RENAME TO " . ($leaf =~ s/.*\.//r) . "; ALTER TABLE evstream.events ATTACH PARTITION $leaf $bounds");
is(rebuild('2020-05-01', '2020-05-31'), 4, 'they are when it is back');

# ---- left out of a dump ----

my $file = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '--format=custom', '--exclude-table=evstream.events_*', '--file', $file, '--dbname', $node->connstr('postgres') ], 'a dump without the events');
sql('CREATE DATABASE copy');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--dbname', $node->connstr('copy'), $file ], 'is restored');
is($node->safe_psql('copy', 'SELECT count(*), (SELECT count(*) FROM evstream_events) FROM evstream_daily_counts'), '2|0', 'with the stats alone');
refused('2020-05-01', '2020-05-31', '2020-05-05, 2020-05-07', 'which are not computed from nothing', 'copy');

# ---- emptied ----

sql("BEGIN; CREATE TEMP TABLE kept AS TABLE $leaf; TRUNCATE $leaf; INSERT INTO $leaf SELECT * FROM kept WHERE user_id = 'a'; COMMIT");
is(rebuild('2020-05-01', '2020-05-31'), 2, 'rows that somebody deletes are taken out of the stats');
is(counts(), '2020-05-05 a 2', 'and only they');
sql("TRUNCATE $leaf");
refused('2020-05-01', '2020-05-31', '2020-05-05, 2020-05-07', 'not when nothing is left in the partition');
is(counts(), '2020-05-05 a 2', 'and the stats stay');

# ---- dropped, and made again for what comes then ----

track('c', '2020-05-09 12:00+00');
refused('2020-05-01', '2020-05-31', '2020-05-05, 2020-05-07', 'nor when others come into it');
find_leaf();
sql("DROP TABLE $leaf");
refused('2020-05-08', '2020-05-31', '2020-05-09', 'not when it was dropped');
track('d', '2020-05-11 12:00+00');
is(sql('SELECT string_agg(user_id, \',\') FROM evstream_events'), 'd', 'there is a new one for what comes then');
refused('2020-05-01', '2020-05-31', '2020-05-05, 2020-05-07, 2020-05-09', 'which does not stand for the old one');
track('e', '2020-05-09 13:00+00');
refused('2020-05-08', '2020-05-31', '2020-05-09', 'nor when events of these days come into it');
is(rebuild('2020-05-10', '2020-05-31'), 2, 'days of which all is there are computed');
is(counts(), '2020-05-05 a 2,2020-05-09 c 1,2020-05-09 e 1,2020-05-11 d 1', 'nothing that was counted is lost');

# ---- a change of zone is done when all days were that can be ----

track('f', '2020-06-05 23:30+00');
sql(q{ALTER DATABASE postgres SET evstream.time_zone = 'Asia/Tokyo'});
sql('SELECT evstream_restart()');
ok(wait_for_sql($node, 'postgres', q{SELECT time_zone = 'Asia/Tokyo' AND rebuild_needed FROM evstream.state}, 't'), 'the workers count in another zone');
refused('2020-05-09', '2020-05-31', '2020-05-09', 'a day that is gone is also in another zone');
rebuild('2020-05-11', '2020-06-30');
is(sql('SELECT rebuild_needed FROM evstream.state'), 'f', 'and is not waited for');
like(counts(), qr/2020-06-06 f 1/, 'one is of another day there');
find_leaf();
sql("DROP TABLE $leaf");
sql(q{ALTER DATABASE postgres RESET evstream.time_zone});
sql('SELECT evstream_restart()');
ok(wait_for_sql($node, 'postgres', q{SELECT time_zone = 'UTC' FROM evstream.state}, 't'), 'back again');
refused('2020-06-06', '2020-06-06', '2020-06-06', 'which stays as it is when the events are gone');

$node->stop;
done_testing();
