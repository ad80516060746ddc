# Logical replication: of everything, which must not hinder the workers, and of
# the stats, whose leaves come later than the publication.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', wal_level => 'logical', max_wal_senders => 5, max_replication_slots => 5, 'evstream.redis_url' => redis_start(), extension => 1);
my $stats = q{SELECT user_id, day, event_type, event_count, amount_total, first_event_at, last_event_at FROM evstream.daily_counts ORDER BY 1, 2, 3};

sub waited
{
	my ($name) = @_;
	ok(wait_for_sql($node, 'postgres', q{SELECT evstream_wait('60 s')}, 't', 90), $name);
	return;
}

# ---- All tables are published: a table without an identity could not be changed ----

ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream_workers WHERE role = 'maintenance' AND state = 'idle'}, 1), 'workers run');
$node->safe_psql('postgres', 'CREATE PUBLICATION everything FOR ALL TABLES');
# As pg_upgrade and CREATE DATABASE ... TEMPLATE leave it, with events that wait.
$node->safe_psql('postgres', q{SELECT evstream_pause(); SELECT count(evstream_track('u' || i % 5, 'view', '{"amount": 2, "item_id": 1}')) FROM generate_series(1, 100) i;
	UPDATE evstream.identity SET outbox_system = 1; SELECT evstream_restart(); SELECT evstream_resume()});
waited('the outbox of another system is taken');
is($node->safe_psql('postgres', 'SELECT sum(event_count) FROM evstream_daily_summary'), 100, 'and counted');
$node->safe_psql('postgres', q{SELECT evstream_subscribe('s', '{view}'); SELECT evstream_filter_update(filter_id, min_amount => 1) FROM evstream_filters;
	SELECT evstream_track_batch('[{"user_id": 1}, {"user_id": 2}, {"user_id": "u0", "event_type": "view", "amount": 3, "occurred_at": "2020-02-02T00:00:00Z"}]', 'dead_letter')});
waited('filters change');
is($node->safe_psql('postgres', q{UPDATE evstream_dead_letters SET record_value = '{"user_id": "u0", "event_type": "view"}' WHERE id = (SELECT min(id) FROM evstream_dead_letters);
	SELECT evstream_dead_letter_retry(min(id)) FROM evstream_dead_letters; SELECT evstream_dead_letter_discard(max(id)) FROM evstream_dead_letters}), "t\nt", 'dead letters');
is($node->safe_psql('postgres', q{SELECT evstream_unsubscribe('s')}), 1, 'a subscriber goes');
ok(wait_for_sql($node, 'postgres', 'SELECT sum(event_count) FROM evstream_daily_summary', 102), 'retried');
ok($node->safe_psql('postgres', q{SELECT evstream_rebuild(current_date - 1, current_date + 1)}) > 0, 'stats are rebuilt');
$node->safe_psql('postgres', q{SELECT evstream_take_over()});
# Expired leaves and days, rows of the default leaf, ids, ticks: all that maintenance removes.
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET evstream.stats_retention = '400 days'; SELECT evstream_restart()});
ok(wait_for_sql($node, 'postgres', q{SELECT count(*) FROM evstream.daily_counts WHERE day < '2021-01-01'}, 0), 'expired stats go');
ok(wait_for_sql($node, 'postgres', q{SELECT sum(pg_relation_size('evstream.outbox_' || n)) FROM generate_series(0, 2) n}, 0), 'the outbox is emptied');
is(log_lines($node, qr/ERROR:/), '', 'no statement is refused');
# The new maintenance makes missing leaves in its first turn: later than that they stay away.
my $before = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->safe_psql('postgres', 'DROP PUBLICATION everything; ALTER DATABASE postgres RESET evstream.stats_retention; SELECT evstream_restart()');
ok(wait_for_sql($node, 'postgres', qq{SELECT count(*) FROM evstream_workers WHERE role = 'maintenance' AND state = 'idle' AND started_at > '$before'}, 1), 'maintenance had a turn');

# ---- The stats for another server ----

$node->safe_psql('postgres', q{DO $$ DECLARE leaf regclass; BEGIN
		FOR leaf IN SELECT oid FROM pg_class WHERE relname ~ '^daily_(counts|items)_[0-9]{6}$' LOOP EXECUTE format('DROP TABLE %s', leaf); END LOOP; END $$;
	DELETE FROM evstream.daily_totals; CREATE PUBLICATION stats FOR TABLE evstream.daily_counts, evstream.daily_items, evstream.daily_totals WITH (publish_via_partition_root = true)});
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$subscriber->append_conf('postgresql.conf', "fsync = off\n");
$subscriber->start;
my $columns = $node->safe_psql('postgres', q{SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute
	WHERE attrelid = 'evstream.daily_counts'::regclass AND attnum > 0});
my $items = $node->safe_psql('postgres', q{SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute
	WHERE attrelid = 'evstream.daily_items'::regclass AND attnum > 0});
my $totals = $node->safe_psql('postgres', q{SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute
	WHERE attrelid = 'evstream.daily_totals'::regclass AND attnum > 0});
my $connection = $node->connstr('postgres') =~ s/'/''/gr;
$subscriber->safe_psql('postgres', "CREATE SCHEMA evstream; CREATE TABLE evstream.daily_counts ($columns, PRIMARY KEY (user_id, day, event_type));
	CREATE TABLE evstream.daily_items ($items, PRIMARY KEY (user_id, item_id, day));
	CREATE TABLE evstream.daily_totals ($totals, PRIMARY KEY (day, event_type, writer))");
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION stats CONNECTION '$connection' PUBLICATION stats");
$subscriber->wait_for_subscription_sync($node, 'stats');
my $months = q{SELECT count(*) FROM pg_class WHERE relname ~ '^daily_counts_[0-9]{6}$' AND relispartition};
is($node->safe_psql('postgres', $months), 0, 'no leaf of a month is there yet');
# Where the default leaf has rows of a month, it stays theirs.
$node->safe_psql('postgres', q{SELECT evstream_pause(); DELETE FROM evstream.daily_counts; DELETE FROM evstream.daily_items; DELETE FROM evstream.daily_totals; SELECT evstream_resume(); SELECT evstream_restart()});
ok(wait_for_sql($node, 'postgres', $months, 3), 'leaves come');
for my $turn (1 .. 3)
{
	$node->safe_psql('postgres', q{SELECT count(evstream_track('v' || i % 5, 'view', '{"amount": 2, "item_id": 1}')) FROM generate_series(1, 100) i;
		SELECT evstream_track('v0', 'view', occurred_at => '2019-01-01 12:00+00')});
	waited("turn $turn");
}
is($node->safe_psql('postgres', q{SELECT count(*) FROM evstream.daily_counts_default}), 1, 'also in the default leaf');
ok($node->safe_psql('postgres', q{SELECT evstream_rebuild(current_date - 1, current_date + 1)}) > 0, 'stats are rebuilt');
my $expected = $node->safe_psql('postgres', $stats);
is(scalar(split(/\n/, $expected)), 11, 'rows of the stats');
ok(wait_for_sql($subscriber, 'postgres', $stats, $expected), 'the subscriber has the same');
my $sums = q{SELECT (SELECT sum(event_count) FROM evstream.daily_totals), (SELECT sum(event_count) FROM evstream.daily_items), (SELECT count(*) FROM evstream.daily_items)};
is($subscriber->safe_psql('postgres', $sums), $node->safe_psql('postgres', $sums), 'also of items, and the totals');
is(log_lines($_, qr/ERROR:|PANIC|TRAP|signal 11/), '', 'no error: ' . $_->name) foreach ($node, $subscriber);

$subscriber->stop('fast');
$node->stop('fast');
done_testing();
