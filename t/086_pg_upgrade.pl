# pg_upgrade from an older server, with the extension in use: counting, dedupe and
# fan-out go on where they were.

use strict;
use warnings;

use Cwd qw(abs_path);
use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $older = $ENV{EVSTREAM_OLDER};
plan(skip_all => 'there is no older PostgreSQL to upgrade from') if !$older;

my $redis = redis_start();
my %conf = ('evstream.redis_url' => $redis, 'evstream.stream_maxlen' => 1000000);
my $old = new_node('old', %conf, install => $older, initdb => ['--data-checksums'], extension => 1);
my $counts = q{SELECT string_agg(user_id || '=' || n, ' ' ORDER BY user_id) FROM (
	SELECT user_id, sum(event_count) AS n FROM evstream_daily_summary GROUP BY user_id) s};
my $found = q{
	SELECT 'summary', to_jsonb(s) FROM evstream_daily_summary s
	UNION ALL SELECT 'item', to_jsonb(s) FROM evstream_daily_item_summary s
	UNION ALL SELECT 'total', to_jsonb(s) FROM evstream_daily_totals s
	UNION ALL SELECT 'event', to_jsonb(s) FROM evstream_events s
	UNION ALL SELECT 'filter', to_jsonb(s) FROM evstream_filters s
	UNION ALL SELECT 'dead', to_jsonb(s) FROM evstream_dead_letters s
	ORDER BY 1, 2};

sub counted
{
	my ($node, $db, $expected, $name) = @_;
	ok(wait_for_sql($node, $db, q{SELECT evstream_wait('60 s', false)}, 't', 90), "$name: waited");
	is($node->safe_psql($db, $counts), $expected, $name);
	return;
}

note('from ' . $old->safe_psql('postgres', 'SHOW server_version'));

# One database in use, one that is paused, one with objects of 1.0; many
# transactions, so that ids and snapshots are not those of a new server.
$old->safe_psql('postgres', q{CREATE ROLE app; SELECT evstream_grant('app', 'track');
	SELECT evstream_subscribe('all'); SELECT evstream_subscribe('gone'); SELECT evstream_unsubscribe('gone');
	SELECT evstream_track_batch('[{"user_id": "bad"}]', 'dead_letter');
	DO $$ BEGIN FOR i IN 1 .. 500 LOOP PERFORM evstream_track('u', 'purchase', jsonb_build_object('item_id', i % 3, 'amount', i), evstream_event_id('key ' || i)); COMMIT; END LOOP; END $$});
counted($old, 'postgres', 'u=500', 'before');
is($old->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'before: sent');
for my $case ([ 'paused', '' ], [ 'first', q{VERSION '1.0'} ])
{
	$old->safe_psql('postgres', "CREATE DATABASE $case->[0]; ALTER DATABASE $case->[0] SET evstream.redis_url = ''");
	$old->safe_psql($case->[0], "CREATE EXTENSION evstream $case->[1]; SELECT evstream_track('u', 'view', event_id => evstream_event_id('one'))");
	counted($old, $case->[0], 'u=1', "before: $case->[0]");
}
$old->safe_psql('paused', q{SELECT evstream_pause(); SELECT count(evstream_track('waiting', 'view')) FROM generate_series(1, 50)});
# Tracked while no worker runs, to be found by the new server.
$old->append_conf('postgresql.conf', "evstream.enabled = off\n");
$old->restart;
$old->safe_psql('postgres', q{SET ROLE app; SELECT count(evstream_track('waiting', 'view', event_id => evstream_event_id('waiting ' || i))) FROM generate_series(1, 100) i});
my $before = $old->safe_psql('postgres', $found);
$old->stop('fast');

my $new = new_node('new', %conf, initdb => ['--data-checksums'], start => 0);
note('to ' . join(' ', $new->config_data('--version')));
# It leaves its files where it is run.
my $work = scratch_dir() . '/upgrade';
mkdir $work;
my @command = (
	'pg_upgrade', '--old-datadir', abs_path($old->data_dir), '--new-datadir', abs_path($new->data_dir),
	'--old-bindir', $old->config_data('--bindir'), '--new-bindir', $new->config_data('--bindir'),
	'--socketdir', $new->host, '--old-port', $old->port, '--new-port', $new->port);
foreach my $way ([ @command, '--check' ], \@command)
{
	my $said = '';
	ok(IPC::Run::run($way, init => sub { chdir $work }, '<', \undef, '>', \$said, '2>&1'), @$way > @command ? 'pg_upgrade --check' : 'pg_upgrade') or diag($said);
}
$new->start;

ok(wait_for_sql($new, 'postgres', q{SELECT string_agg(role, ' ' ORDER BY role) FROM evstream_workers WHERE pid IS NOT NULL}, 'consumer maintenance notifier'), 'the workers start');
counted($new, 'postgres', 'u=500 waiting=100', 'what was counted stays, what waited is counted');
my @before = grep { !/^(total|summary)/ } split(/\n/, $before);
my %after = map { $_ => 1 } split(/\n/, $new->safe_psql('postgres', $found));
is(join("\n", grep { !$after{$_} } @before), '', 'all is there as it was');
is(scalar(@before), 500 + 3 + 1 + 1, 'events, items, the filter, the dead letter');
$new->safe_psql('postgres', q{SELECT evstream_track('again', 'view', event_id => evstream_event_id('key 1')), evstream_track('again', 'view', event_id => evstream_event_id('waiting 1'));
	SET ROLE app; SELECT evstream_track('new', 'view')});
counted($new, 'postgres', 'new=1 u=500 waiting=100', 'ids are known, new events are counted, by who may');
is($new->safe_psql('postgres', q{SELECT evstream_health() #>> '{components,workers,status}'}), 'ok', 'nothing is wrong with the workers');

ok(wait_for_sql($new, 'postgres', q{SELECT evstream_health() #>> '{components,redis,hint}' ~ 'evstream_take_over'}, 't'), 'the prefix of Redis is to be taken over')
	or diag($new->safe_psql('postgres', 'SELECT evstream_health()'));
is(scalar(redis_stream('evstream:stream:all')), 500, 'nothing is sent until then');
is($new->safe_psql('postgres', 'SELECT evstream_take_over()'), 't', 'taken over');
ok(wait_for_sql($new, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 90), 'fan-out goes on');
my @stream = redis_stream('evstream:stream:all');
is(scalar(@stream), 601, 'each was sent once');
my %epochs;
$epochs{ (split(/-/, $_->[0]))[0] }++ foreach @stream;
is(scalar(keys %epochs), 1, 'in one epoch');
$new->safe_psql('postgres', q{SELECT evstream_subscribe('later', '{view}'); SELECT evstream_unsubscribe('all'); SELECT evstream_track('new', 'view')});
ok(wait_for_sql($new, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 90), 'filters change');
is(join(' ', map { scalar(redis_stream("evstream:stream:$_")) } 'later', 'all'), '1 601', 'and hold');

is($new->safe_psql('paused', 'SELECT paused FROM evstream.state'), 't', 'what was paused stays so');
is($new->safe_psql('paused', $counts), 'u=1', 'and does not count');
$new->safe_psql('paused', 'SELECT evstream_resume()');
counted($new, 'paused', 'u=1 waiting=50', 'resumed');

is($new->safe_psql('first', q{SELECT evstream_health() #>> '{components,workers,hint}'}), 'Run ALTER EXTENSION evstream UPDATE.', 'objects of 1.0: health asks for the update');
$new->safe_psql('first', q{ALTER EXTENSION evstream UPDATE; SELECT evstream_track('again', 'view', event_id => evstream_event_id('one')), evstream_track('new', 'view')});
counted($new, 'first', 'new=1 u=1', 'objects of 1.0: go on after it');

is(log_lines($_, qr/PANIC|TRAP|signal 11|ERROR:/), '', 'no error: ' . $_->name) foreach ($old, $new);
$new->stop('fast');
done_testing();
