# Transaction ids that run out, a snapshot that is held, and what is done to
# tables by those who keep a database: VACUUM FREEZE, VACUUM FULL, CLUSTER, REINDEX.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $redis = redis_start();
my $node = new_node('main', 'evstream.redis_url' => $redis, 'evstream.stream_maxlen' => 1000000, autovacuum => 'off', extension => 1);
my $total = 0;

sub track
{
	my ($count) = @_;
	$node->safe_psql('postgres', "SELECT count(evstream_track('u' || i % 3, 'view', jsonb_build_object('item_id', i % 5))) FROM generate_series(1, $count) i");
	return $total += $count;
}

# What was tracked is counted, stored and sent, once each.
sub exact
{
	my ($name) = @_;
	ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 90), "$name: waited");
	is($node->safe_psql('postgres', q{SELECT (SELECT sum(event_count) FROM evstream_daily_counts), (SELECT sum(event_count) FROM evstream_daily_item_summary),
		(SELECT sum(event_count) FROM evstream_daily_totals), (SELECT count(*) FROM evstream_events), (SELECT count(DISTINCT event_id) FROM evstream_events),
		(SELECT count(*) FROM evstream_dead_letters)}), join('|', ($total) x 5, 0), "$name: counted and stored once");
	is(scalar(redis_stream('evstream:stream:all')), $total, "$name: sent once");
	return;
}

# ---- Near the wrap-around of 32 bits, and beyond it ----

# The next transaction id, as far as it can go from the oldest; rows are frozen
# before, so that it can go on from there. The log of commits has to have the page.
sub jump
{
	my ($xid) = @_;
	# template0, too
	for my $db (split(/\n/, $node->safe_psql('postgres', 'UPDATE pg_database SET datallowconn = true; SELECT datname FROM pg_database')))
	{
		$node->safe_psql($db, 'VACUUM FREEZE');
	}
	my $oldest = $node->safe_psql('postgres', 'SELECT datfrozenxid FROM pg_database ORDER BY age(datfrozenxid) DESC LIMIT 1');
	$node->stop('fast');
	my $segment = sprintf('%s/pg_xact/%04X', $node->data_dir, $xid % 2**32 / (8192 * 4 * 32));
	if (!-e $segment)
	{
		open(my $file, '>', $segment) or die "$segment: $!";
		print $file "\0" x (8192 * 32);
		close($file);
	}
	my @command = ('pg_resetwal', '-x', $xid % 2**32, '-u', $oldest, '-e', int($xid / 2**32), '-D', $node->data_dir);
	command_ok(\@command, "next transaction id: $xid");
	$node->start;
	return;
}

my $epoch = 2**32;
$node->safe_psql('postgres', q{SELECT evstream_subscribe('all')});
track(100);
exact('at first');
for my $xid (1.8e9, 3.6e9)
{
	# Events that wait, under ids of before and after; also the ticks and the filters are kept.
	$node->safe_psql('postgres', 'SELECT evstream_pause()');
	track(50);
	jump($xid);
	track(50);
	$node->safe_psql('postgres', 'SELECT evstream_resume()');
	track(50);
	exact("transactions from $xid on");
}
jump($epoch - 40);
# A transaction that stays open over the change of epoch, and is read late.
my $late = $node->background_psql('postgres', on_error_stop => 1);
$late->query_safe(q{BEGIN; SELECT evstream_track('late', 'view')});
ok($node->safe_psql('postgres', 'SELECT pg_snapshot_xmin(pg_current_snapshot())::text::numeric') < $epoch, 'a transaction of the first epoch is open');
track(1) foreach 1 .. 60;
$node->safe_psql('postgres', q{SELECT evstream_subscribe('new', '{none}')});
ok($node->safe_psql('postgres', 'SELECT pg_current_xact_id()::text::numeric') > $epoch, 'others are in the second');
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'they are counted meanwhile');
is($node->safe_psql('postgres', q{SELECT sum(event_count) FROM evstream_daily_counts}), $total, 'each once');
$late->query_safe('COMMIT');
$total++;
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_events WHERE user_id = 'late'}, 1), 'the late one, too');
# It has no item.
$node->safe_psql('postgres', q{SELECT evstream_track('late', 'view', '{"item_id": "late"}')});
is($node->safe_psql('postgres', q{SELECT evstream_wait('60 s')}), 't', 'waited');
$total++;
is($node->safe_psql('postgres', q{SELECT (SELECT sum(event_count) FROM evstream_daily_counts), (SELECT count(DISTINCT event_id) FROM evstream_events)}), "$total|$total", 'beyond the wrap-around: all of them');
is(scalar(redis_stream('evstream:stream:all')), $total, 'sent once');
is($node->safe_psql('postgres', q{SELECT evstream_unsubscribe('new')}), 1, 'filters of the second epoch');
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream_backfill('all', '-infinity', 100000)}), $total, 'backfill');
$late->quit;
$node->safe_psql('postgres', q{DELETE FROM evstream.daily_items WHERE item_id = 'late'; INSERT INTO evstream.daily_items
	SELECT 'rest', 'late', day, 2, 0, 0, 2, now() FROM evstream.daily_items LIMIT 1});
exact('as a whole');

# ---- Near the limit with a snapshot held: no new transaction is possible ----

my $holder = $node->background_psql('postgres', on_error_stop => 1);
$holder->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM evstream_daily_counts');
track(50);
$node->safe_psql('postgres', "VACUUM FREEZE $_") foreach ('evstream.outbox_0', 'evstream.outbox_1', 'evstream.outbox_2', 'evstream.batch_log', 'evstream.ticks', '');
track(50);
exact('frozen under an old snapshot');
$holder->query_safe('COMMIT');
$holder->quit;
$node->safe_psql('postgres', 'VACUUM FREEZE');
track(50);
exact('frozen');

# ---- Tables rewritten and locked while the workers run ----

my $tracker = q{DO $$ BEGIN FOR i IN 1 .. 2000 LOOP
	PERFORM evstream_track('u' || i % 3, 'view', '{"item_id": 1}'); COMMIT; END LOOP; END $$};
my $run = IPC::Run::start([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $tracker ], '<', \undef, '>', '/dev/null', '2>', \my $err);
$total += 2000;
for my $turn (1 .. 2)
{
	for my $table (split(/\n/, $node->safe_psql('postgres', q{SELECT oid::regclass FROM pg_class WHERE relnamespace = 'evstream'::regnamespace AND relkind = 'r' ORDER BY 1})))
	{
		my $index = $node->safe_psql('postgres', qq{SELECT i.indexrelid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
			WHERE i.indrelid = '$table'::regclass AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree') ORDER BY i.indisprimary DESC LIMIT 1});
		$index =~ s/^evstream\.//;
		$node->safe_psql('postgres', $turn == 1 ? "VACUUM (FULL, ANALYZE) $table" : "REINDEX TABLE CONCURRENTLY $table");
		$node->safe_psql('postgres', "CLUSTER $table USING $index") if $turn == 1 && $index ne '';
	}
}
$node->safe_psql('postgres', 'REINDEX SCHEMA CONCURRENTLY evstream');
# As pg_repack does at its end: an exclusive lock for a while, asked for by many.
my $locker = $node->background_psql('postgres', on_error_stop => 1);
for my $table ('outbox_0', 'outbox_1', 'outbox_2', 'batch_log', 'daily_counts', 'events', 'ids', 'filters', 'identity')
{
	$locker->query_safe("BEGIN; LOCK TABLE evstream.$table IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(0.6); COMMIT");
}
$locker->quit;
ok($run->finish, 'who tracks has only waited');
exact('tables rewritten, clustered and locked in use');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_index i WHERE NOT i.indisvalid}), 0, 'no index is left broken');
is($node->safe_psql('postgres', q{SELECT evstream_health() ->> 'status'}), 'ok', 'health');
is(log_lines($node, qr/PANIC|TRAP|signal 11|deadlock|could not access status/), '', 'no crash, no deadlock');
# What the workers met was locks, and nothing else.
is(log_lines($node, qr/evstream (consumer|maintenance|notifier|relay) ERROR:(?!.*lock timeout)/), '', 'no error but locks');

$node->stop('fast');
done_testing();
