# Tables that a DBA has changed: what they promise to their readers holds for rows that
# are written below SQL too, or counting stops and says why.

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

my ($day, $next, $leaf, $month) =
  split(/\|/, sql(q{SELECT d, d + 1, to_char(d, '"evstream.events_"YYYYMMDD'), to_char(d, '"evstream.daily_counts_"YYYYMM')
	FROM (SELECT (now() AT TIME ZONE 'UTC')::date) AS t (d)}));
my $total = 0;

sub track
{
	my ($user, $properties, $time, $type) = @_;
	$total++;
	return sql("SELECT evstream_track('$user', '" . ($type // 'view') . "', '" . ($properties // '{}') . "', NULL, " . ($time ? "'$time'" : 'now()') . ')');
}

sub all_counted
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql('SELECT evstream_restart()');
	sql("SELECT evstream_wait('60 s')");
	return is(sql('SELECT sum(event_count) FROM evstream_daily_totals'), $total, $name);
}

# What is changed, an event that does not fit, what the consumer says, and how it is set right again.
sub stops_at
{
	my ($change, $event, $why, $undo, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql($change);
	track(@$event);
	ok(wait_for_sql($node, 'postgres', "SELECT bool_or(last_error ~ \$\$$why\$\$) FROM evstream_workers WHERE role = 'consumer'", 't'),
		"$name: counting stops, and we are told why");
	ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() #>> '{components,workers,status}'}, 'down'), "$name: so does the health");
	sql($undo);
	return all_counted("$name: then it goes on");
}

# else what comes first goes into the default partition
ok(wait_for_sql($node, 'postgres', "SELECT to_regclass('$month') IS NOT NULL AND to_regclass('$leaf') IS NOT NULL", 't'), 'there are partitions for today');
track('u-1', '{"amount": 1, "user_tier": "gold"}');
all_counted('an event');

stops_at(
	'ALTER TABLE evstream.events ALTER amount SET NOT NULL',
	['u-1'], 'null value in column .*amount',
	'ALTER TABLE evstream.events ALTER amount DROP NOT NULL',
	'a column of events that may not be null');
stops_at(
	'UPDATE evstream.daily_counts SET amount_total = 1; ALTER TABLE evstream.daily_counts ALTER amount_total SET NOT NULL',
	['u-2'], 'null value in column .*amount_total',
	'ALTER TABLE evstream.daily_counts ALTER amount_total DROP NOT NULL',
	'a column of the stats that may not be null');
stops_at(
	q{ALTER TABLE evstream.events ADD CONSTRAINT good CHECK (user_id <> 'evil')},
	['evil'], 'violates check constraint .*good',
	'ALTER TABLE evstream.events DROP CONSTRAINT good',
	'a check of events');
stops_at(
	"CREATE UNIQUE INDEX extra ON $month (user_id)",
	[ 'u-1', '{}', undef, 'login' ], 'violates unique constraint .*extra',
	'DROP INDEX evstream.extra',
	'another unique index on the stats');
stops_at(
	'CREATE UNIQUE INDEX extra ON evstream.batch_log (log_id) WHERE from_offset >= ' . sql('SELECT max(from_offset) FROM evstream.batch_log WHERE log_id = 1'),
	['u-1'], 'violates unique constraint .*extra',
	'DROP INDEX evstream.extra',
	'another unique index on the batch log');
stops_at(
	q{CREATE TABLE evstream.daily_counts_2020 PARTITION OF evstream.daily_counts (PRIMARY KEY (user_id, day, event_type)) FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')},
	[ 'u-1', '{}', '2020-05-05 12:00+00' ], 'violates partition constraint',
	'DROP TABLE evstream.daily_counts_2020',
	'stats that belong into a partition of another kind');
stops_at(
	'ALTER TABLE evstream.daily_counts DETACH PARTITION evstream.daily_counts_default',
	[ 'u-1', '{}', '2020-06-05 12:00+00' ], 'daily_counts_default.* is not attached',
	'ALTER TABLE evstream.daily_counts ATTACH PARTITION evstream.daily_counts_default DEFAULT',
	'a default partition that is not attached');

sub attach { return "ALTER TABLE evstream.events ATTACH PARTITION $leaf FOR VALUES FROM ('$day 00:00+00') TO ('$next 00:00+00')"; }

stops_at("ALTER TABLE evstream.events DETACH PARTITION $leaf", ['u-1'], 'is not attached', attach(), 'events of a day that is not attached');
is(sql('SELECT count(*) FROM evstream_events'), $total, 'all events are stored');

# ---- what is no table, and columns that are gone ----

stops_at(
	"ALTER TABLE evstream.events DETACH PARTITION $leaf; ALTER TABLE $leaf RENAME TO kept;"
	  . " CREATE TABLE $leaf PARTITION OF evstream.events FOR VALUES FROM ('$day 00:00+00') TO ('$next 00:00+00') PARTITION BY HASH (user_id)",
	['u-1'], 'is not a table',
	"DROP TABLE $leaf; ALTER TABLE evstream.kept RENAME TO " . ($leaf =~ s/.*\.//r) . '; ' . attach(),
	'events of a day that is partitioned further');
sql("ALTER TABLE evstream.$_ ADD COLUMN note text DEFAULT 'x'; ALTER TABLE evstream.$_ DROP COLUMN note") for qw(events daily_counts daily_items ids);
track('u-3', '{"item_id": "i"}');
track('u-3', '{"item_id": "i"}');
all_counted('a column that was added and dropped is in nobody\'s way');
is(sql(q{SELECT event_count FROM evstream_daily_counts WHERE user_id = 'u-3'}), 2, 'also where a row gets a new version');

sql('ALTER TABLE evstream.ids ALTER event_id DROP NOT NULL; INSERT INTO evstream.ids_1 VALUES (1, NULL)');
track('u-3');
all_counted('an id that is null is nobody\'s');

# what waits there, and readers who would take it for what it is not
sql('SELECT evstream_pause()');
ok(wait_for_sql($node, 'postgres', q{SELECT state FROM evstream_workers WHERE role = 'consumer'}, 'paused'), 'the consumer pauses');
track('u-4');
sql("ALTER TABLE evstream.outbox_$_ ALTER tracked_at TYPE text") for 0 .. 2;
sql('SELECT evstream_resume()');
ok(wait_for_sql($node, 'postgres', q{SELECT bool_or(last_error ~ 'do not have the columns') FROM evstream_workers WHERE role = 'consumer'}, 't'),
	'columns of other types in the outbox are not read');
sql("ALTER TABLE evstream.outbox_$_ ALTER tracked_at TYPE timestamptz USING tracked_at::timestamptz") for 0 .. 2;
all_counted('what waits there comes when they are right again');

# ---- stored events that somebody has made anonymous ----

$node->append_conf('postgresql.conf', "evstream.redis_url = '" . redis_start() . "'");
$node->reload;
my $notifier;
ok(wait_for_sql($node, 'postgres', q{SELECT evstream_health() #>> '{components,redis,status}'}, 'ok'), 'there is a notifier');
sql(q{SELECT evstream_subscribe('all'), evstream_wait('60 s')});
ok(kill('STOP', $notifier = sql(q{SELECT pid FROM evstream_workers WHERE role = 'notifier'})), 'which sleeps');
track("a-$_", qq({"n": $_})) for 1 .. 4;
sql(q{SELECT evstream_wait('60 s', fan_out => false)});
sql("ALTER TABLE evstream.events ALTER user_id DROP NOT NULL, ALTER properties DROP NOT NULL, ALTER event_id DROP NOT NULL;"
	  . " UPDATE evstream.events SET user_id = NULL WHERE user_id = 'a-1'; UPDATE evstream.events SET properties = NULL WHERE user_id = 'a-2';"
	  . " UPDATE evstream.events SET event_id = NULL WHERE user_id = 'a-3'");
kill('CONT', $notifier);
is(sql(q{SELECT evstream_wait('60 s')}), 't', 'it goes on');
is(join(',', map { $_->[1] =~ /"user_id":"([^"]*)".*?("properties":\{.*?\}|$)/ ? "$1 $2" : $_->[1] } redis_stream('evstream:stream:all')), 'a-2 ,a-4 "properties":{"n": 4}', 'with what is an event still');
is(sql(q{SELECT string_agg(user_id || ' ' || properties, ',' ORDER BY user_id) FROM evstream_backfill('all', '-infinity') WHERE user_id LIKE 'a-%'}), 'a-2 {},a-4 {"n": 4}', 'and so does a backfill');
track('a-5');
all_counted('all goes on');
like(redis_cli('XREVRANGE', 'evstream:stream:all', '+', '-', 'COUNT', 1), qr/"a-5"/, 'to Redis, too');

sql("SELECT evstream_rebuild('$day', '$next')");
is(sql(qq{SELECT string_agg(user_id, ',' ORDER BY user_id) FROM evstream_daily_counts WHERE day >= '$day' AND user_id LIKE 'a-%'}), 'a-2,a-3,a-4,a-5', 'nor is he counted after a rebuild');

is(log_lines($node, qr/terminated by signal/), '', 'nothing has crashed');

$node->stop;
done_testing();
