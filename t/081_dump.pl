# Dumps in all their forms, restored beside running workers: one file, in
# parallel, of the whole server, and of objects of 1.0.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', max_worker_processes => 40);
my $other = new_node('other', max_worker_processes => 40);
my $dir = scratch_dir();

# What a user finds, as one text; ids and times are part of it.
my $found = q{
	SELECT 'summary', to_jsonb(s) FROM evstream_daily_summary s
	UNION ALL SELECT 'item', to_jsonb(s) FROM evstream_daily_item_summary s
	UNION ALL SELECT 'total', to_jsonb(s) FROM evstream_daily_totals s
	UNION ALL SELECT 'event', to_jsonb(s) FROM evstream_events s
	UNION ALL SELECT 'filter', to_jsonb(s) FROM evstream_filters s
	UNION ALL SELECT 'dead', to_jsonb(s) FROM evstream_dead_letters s
	ORDER BY 1, 2};
my $counts = q{SELECT string_agg(user_id || '=' || n, ' ' ORDER BY user_id) FROM (
	SELECT user_id, sum(event_count) AS n FROM evstream_daily_summary GROUP BY user_id) s};

# A database with everything in it, and events that wait.
sub fill
{
	my ($db, $version) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, qq{CREATE EXTENSION evstream $version; SELECT evstream_grant('app', 'track'), evstream_grant('app', 'operate');
		ALTER DATABASE $db SET evstream.time_zone = 'Europe/Berlin'; ALTER DATABASE $db SET evstream.retention = '400 days'});
	$node->safe_psql($db, q{SELECT evstream_restart()});
	ok(wait_for_sql($node, $db, q{SELECT time_zone FROM evstream.state}, 'Europe/Berlin'), "$db: workers go by its settings");
	$node->safe_psql($db, q{SELECT evstream_subscribe('vip', '{purchase}', min_amount => 5);
		SELECT evstream_track_batch('[{"user_id": "bad"}, {"user_id": "old", "event_type": "view", "occurred_at": "1999-12-31T23:30:00Z"}]', 'dead_letter');
		SELECT count(evstream_track('u', 'purchase', jsonb_build_object('item_id', i % 3, 'amount', i), evstream_event_id('key ' || i))) FROM generate_series(1, 300) i});
	is($node->safe_psql($db, q{SELECT evstream_wait('60 s')}), 't', "$db: counted");
	$node->safe_psql($db, q{SELECT evstream_pause();
		SELECT count(evstream_track('waiting', 'view', event_id => evstream_event_id('waiting ' || i))) FROM generate_series(1, 100) i});
	return $node->safe_psql($db, $found);
}

# A restored database is what it was, waits, and goes on.
sub check_restored
{
	my ($server, $db, $before, $name) = @_;
	is($server->safe_psql($db, $found), $before, "$name: all is there");
	ok(wait_for_sql($server, $db, q{SELECT evstream_health() #>> '{components,workers,why}' ~ 'restored from a dump'}, 't'), "$name: paused, as health says")
		or diag($server->safe_psql($db, 'SELECT evstream_health()'));
	is($server->safe_psql($db, q{SET ROLE app; SELECT count(evstream_track('app', 'view'))}), 1, "$name: rights came along");
	is($server->safe_psql($db, $counts), 'old=1 u=300', "$name: nothing is counted before it is resumed");
	$server->safe_psql($db, 'SET ROLE app; SELECT evstream_resume()');
	is($server->safe_psql($db, q{SELECT evstream_wait('60 s')}), 't', "$name: resumed");
	is($server->safe_psql($db, $counts), 'app=1 old=1 u=300 waiting=100', "$name: what waited is counted");
	$server->safe_psql($db, q{SELECT evstream_track('again', 'view', event_id => evstream_event_id('key 7')), evstream_track('again', 'view', event_id => evstream_event_id('waiting 7'));
		SELECT count(evstream_track('new', 'view')) FROM generate_series(1, 10)});
	is($server->safe_psql($db, q{SELECT evstream_wait('60 s')}), 't', "$name: goes on");
	is($server->safe_psql($db, $counts), 'app=1 new=10 old=1 u=300 waiting=100', "$name: ids are known");
	is($server->safe_psql($db, q{SELECT extversion FROM pg_extension WHERE extname = 'evstream'}), '1.1', "$name: with the objects of the library");
	is($server->safe_psql($db, q{SELECT count(*) FROM evstream.dead_letters d, evstream_dead_letter_discard(d.id) x WHERE x}), 1, "$name: operators can work");
	ok($server->safe_psql($db, q{SELECT evstream_subscribe('vip') > (SELECT max(filter_id) FROM evstream_filters)}) eq 't', "$name: sequences go on");
	is($server->safe_psql($db, q{SELECT count(*) FROM pg_class c WHERE relnamespace = 'evstream'::regnamespace AND relkind = 'r' AND NOT relispartition
		AND relname ~ '^(events_[0-9]{8}|daily_(counts|items)_[0-9]{6}|ids_[0-9]+)$'}), 0, "$name: no leaf is left alone");
	is($server->safe_psql($db, q{SELECT evstream_health() ->> 'status'}), 'ok', "$name: health") or diag($server->safe_psql($db, 'SELECT evstream_health()'));
	return;
}

$node->safe_psql('postgres', 'CREATE ROLE app');
$other->safe_psql('postgres', 'CREATE ROLE app');
my $shop = fill('shop', '');

# ---- One file, restored by several at once; and a folder ----

for my $format ('custom', 'directory')
{
	my @parallel = $format eq 'directory' ? ('--jobs=2') : ();
	$node->command_ok([ 'pg_dump', "--format=$format", @parallel, '--file', "$dir/$format", '--dbname', $node->connstr('shop') ], "$format: pg_dump");
	$other->safe_psql('postgres', "CREATE DATABASE $format; ALTER DATABASE $format SET evstream.time_zone = 'Europe/Berlin'; ALTER DATABASE $format SET evstream.retention = '400 days'");
	$other->command_ok([ 'pg_restore', '--jobs=4', '--exit-on-error', '--dbname', $other->connstr($format), "$dir/$format" ], "$format: pg_restore --jobs=4");
	check_restored($other, $format, $shop, $format);
	is(log_lines($other, qr/ERROR:/), '', "$format: without an error");
}

# ---- Objects of 1.0 ----

my $old = fill('old', q{VERSION '1.0'});
$node->command_ok([ 'pg_dump', '--format=custom', '--file', "$dir/old", '--dbname', $node->connstr('old') ], '1.0: pg_dump');
$other->safe_psql('postgres', q{CREATE DATABASE old; ALTER DATABASE old SET evstream.time_zone = 'Europe/Berlin'; ALTER DATABASE old SET evstream.retention = '400 days'});
$other->command_ok([ 'pg_restore', '--jobs=4', '--exit-on-error', '--dbname', $other->connstr('old'), "$dir/old" ], '1.0: restored with the library of 1.1');
check_restored($other, 'old', $old, '1.0');

# ---- The whole server ----

$node->safe_psql('postgres', 'DROP DATABASE old');
$node->command_ok([ 'pg_dumpall', '--file', "$dir/all.sql", '--dbname', $node->connstr('postgres') ], 'pg_dumpall');
my $third = new_node('third', max_worker_processes => 40);
$third->command_ok([ 'psql', '-X', '-q', '-f', "$dir/all.sql", $third->connstr('postgres') ], 'restored');
is($third->safe_psql('shop', q{SHOW evstream.time_zone}), 'Europe/Berlin', 'server: with its settings');
check_restored($third, 'shop', $shop, 'server');
# It makes a role anew that every server has.
is(log_lines($third, qr/ERROR:(?!.*role "\w+" already exists)/), '', 'server: without an error');

is(log_lines($_, qr/PANIC|TRAP|signal 11/), '', 'no crash') foreach ($node, $other, $third);
$_->stop('fast') foreach ($node, $other, $third);
done_testing();
