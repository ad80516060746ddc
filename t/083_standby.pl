# A standby: it can be read, whatever writes is refused in clear words, and its
# promotion brings the workers, with nothing lost or doubled.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', streaming => 1, extension => 1);
$primary->safe_psql('postgres', q{SELECT evstream_subscribe('s', '{view}'); SELECT evstream_track_batch('[{"user_id": "bad"}]', 'dead_letter');
	SELECT count(evstream_track('u', 'view')) FROM generate_series(1, 100)});
is($primary->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'counted on the primary');
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);

# ---- What can be asked of it ----

for my $case (
	[ q{SELECT sum(event_count) FROM evstream_daily_summary}, 100 ],
	[ q{SELECT count(*) FROM evstream_events}, 100 ],
	[ q{SELECT count(*) FROM evstream_filters}, 1 ],
	[ q{SELECT count(*) FROM evstream_dead_letters}, 1 ],
	[ q{SELECT count(*) FROM evstream_workers}, 0 ],
	[ q{SELECT count(*) FROM evstream_lag}, 0 ],
	[ q{SELECT evstream_metrics() ~ 'evstream_up 1\n'}, 't' ],
	[ q{SELECT evstream_health() #>> '{components,workers}'}, '{"why": "this server is a standby: the workers run on its primary", "status": "off"}' ],
	[ q{SELECT evstream_event_id('x') IS NOT NULL}, 't' ])
{
	is($standby->safe_psql('postgres', $case->[0]), $case->[1], "answered: $case->[0]");
}
is($standby->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^evstream'}), 0, 'no process of ours runs');

# ---- What it refuses ----

for my $call (q{evstream_track('u', 'view')}, q{evstream_track(1, 'view')}, q{evstream_track_batch('[{"user_id": "u", "event_type": "view"}]')},
	q{evstream_wait()}, q{evstream_subscribe('t')}, q{evstream_filter_update(1)}, q{evstream_filter_remove(1)}, q{evstream_unsubscribe('s')},
	q{evstream_pause()}, q{evstream_resume()}, q{evstream_restart()}, q{evstream_take_over()}, q{evstream_rebuild('2026-01-01', '2026-01-02')}, q{evstream_backfill('s', '-infinity')},
	q{evstream_dead_letter_retry(1)}, q{evstream_dead_letter_discard(1)}, q{evstream_grant('pg_monitor', 'read')})
{
	my ($rc, $out, $err) = $standby->psql('postgres', "SELECT $call");
	like($err, qr/ERROR:  cannot (execute|acquire|set|assign|use) .*(in a read-only transaction|during recovery)/, "refused: $call");
}

# ---- Promoted under load ----

# Committed is what the standby has, too: the client is told afterwards.
$primary->append_conf('postgresql.conf', "synchronous_standby_names = '*'\n");
$primary->reload;
ok(wait_for_sql($primary, 'postgres', q{SELECT sync_state FROM pg_stat_replication}, 'sync'), 'commits wait for the standby');
$primary->safe_psql('postgres', 'CREATE TABLE mine (n int)');
my $tracker = q{DO $$ BEGIN FOR i IN 1 .. 100000 LOOP
	INSERT INTO mine VALUES (i); PERFORM evstream_track('mine', 'view', event_id => evstream_event_id('mine ' || i)); COMMIT; END LOOP; END $$};
my $run = IPC::Run::start([ 'psql', '-X', '-q', '-d', $primary->connstr('postgres'), '-c', $tracker ], '<', \undef, '>', '/dev/null', '2>', '/dev/null');
ok(wait_for_sql($primary, 'postgres', q{SELECT count(*) > 500 AND (SELECT event_count > 200 FROM evstream_daily_summary WHERE user_id = 'mine') FROM mine}, 't'),
	'events come, and are counted');
$primary->stop('immediate');
$run->finish;
$standby->promote;
ok(wait_for_sql($standby, 'postgres', q{SELECT string_agg(role, ' ' ORDER BY role) FROM evstream_workers WHERE pid IS NOT NULL}, 'consumer maintenance'), 'the workers start');
ok(wait_for_sql($standby, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 90), 'and count what waited');
is($standby->safe_psql('postgres', q{SELECT count(*) > 500 FROM mine}), 't', 'there is much of it');
is($standby->safe_psql('postgres', q{SELECT (SELECT event_count FROM evstream_daily_summary WHERE user_id = 'mine') - count(*) FROM mine}), 0, 'nothing is lost or doubled');
is($standby->safe_psql('postgres', q{SELECT (SELECT count(DISTINCT event_id) FROM evstream_events WHERE user_id = 'mine') - count(*) FROM mine}), 0, 'nor of the stored events');
$standby->safe_psql('postgres', q{SELECT evstream_track('again', 'view', event_id => evstream_event_id('mine 1')), evstream_track('new', 'view')});
is($standby->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'it goes on');
is($standby->safe_psql('postgres', q{SELECT string_agg(user_id, ' ' ORDER BY user_id) FROM evstream_daily_summary WHERE user_id IN ('again', 'new')}), 'new', 'ids are known');
is($standby->safe_psql('postgres', q{SELECT evstream_health() #>> '{components,workers,status}'}), 'ok', 'health');

is(log_lines($standby, qr/PANIC|TRAP|signal 11/), '', 'no crash');
$standby->stop('fast');
done_testing();
