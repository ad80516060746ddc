# The consumer keeps in mind where it found rows of the daily stats. Whatever becomes
# of these places behind its back, the numbers stay right.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', autovacuum => 'off', extension => 1);
my %expected;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Two days that one leaf has, of those that are made ahead
my ($leaf, $day, $other_day) = split(/\|/, sql(
	q{SELECT 'evstream.daily_counts_' || to_char(first, 'YYYYMM'), first, first + 1
	FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS first) m}));

# One event of each user.
sub track
{
	my (@users) = @_;
	$expected{$_}++ foreach @users;
	sql("SELECT count(evstream_track(u, 'view', '{\"item_id\": \"i-1\"}', NULL, '$day 12:00+00')) FROM unnest('{"
		  . join(',', @users)
		  . "}'::text[]) u");
	return;
}

sub as_expected
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $expected = join("\n", map { "$_|$expected{$_}" } sort keys %expected);
	is(sql("SELECT evstream_wait('30 s')"), 't', "counted: $_[0]");
	is(sql('SELECT user_id, event_count FROM evstream_daily_counts ORDER BY user_id COLLATE "C"'), $expected, $_[0]);
	return;
}

my @users = map { sprintf('u-%02d', $_) } 1 .. 40;

# by the maintenance worker, and rows that come before it stay in the default one for a while
ok(wait_for_sql($node, 'postgres', "SELECT to_regclass('$leaf') IS NOT NULL", 't'), 'the leaf of the month is there');
track(@users);
as_expected('new rows');
track(@users);
as_expected('rows that are there');

ok(wait_for_sql($node, 'postgres', "SELECT n_tup_hot_upd = @{[scalar @users]} FROM pg_stat_user_tables WHERE relid = '$leaf'::regclass", 't'),
	'new versions stay on their page, where the line pointer of the first one leads to them');

# ---- the place is another row's ----

sql("DELETE FROM $leaf WHERE user_id = 'u-01'");
sql("VACUUM $leaf");
sql("INSERT INTO $leaf (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)"
	  . " SELECT 'other-' || n, '$day', 'view', 0, now(), now(), now() FROM generate_series(1, 300) n");
isnt(sql("SELECT count(*) FROM $leaf WHERE user_id LIKE 'other-%' AND ctid IN (SELECT ('(0,' || n || ')')::tid FROM generate_series(1, 80) n)"),
	0, 'others have taken places that were free');
$expected{"other-$_"} = 0 foreach 1 .. 300;
$expected{'u-01'} = 0;
track(@users);
as_expected('a row that was removed, whose place another one may have');

sql("UPDATE $leaf SET user_id = 'renamed' WHERE user_id = 'u-02'");
$expected{renamed} = delete $expected{'u-02'};
track(@users);
as_expected('a row that got another key');

# ---- no place any more ----

sql("CREATE INDEX tells ON $leaf (event_count)");
track(@users);
as_expected('versions that an index sends elsewhere');
track(@users);
as_expected('and once more');
sql('DROP INDEX evstream.tells');

sql("VACUUM FULL $leaf");
track(@users);
as_expected('rows that were all moved');

sql("DELETE FROM $leaf");
sql("VACUUM $leaf");
is(sql("SELECT pg_relation_size('$leaf')"), 0, 'the table has no page');
%expected = ();
track(@users[ 0 .. 4 ]);
as_expected('pages that are gone');

sql("TRUNCATE $leaf");
%expected = ();
track(@users);
as_expected('a table that was emptied');

# ---- the place is that of another day of the user ----

sub places { return sql("SELECT user_id, ctid FROM $leaf ORDER BY 1"); }

my $places = places();
sql("BEGIN; CREATE TEMP TABLE rows AS SELECT * FROM $leaf; UPDATE rows SET day = '$other_day', event_count = 100;"
	  . " TRUNCATE $leaf; INSERT INTO $leaf SELECT * FROM rows ORDER BY user_id; COMMIT");
is(places(), $places, 'rows that differ in their day are where those of before were');
track(@users);
is(sql("SELECT evstream_wait('30 s')"), 't', 'counted');
is( sql('SELECT day, event_count, count(*) FROM evstream_daily_counts GROUP BY 1, 2 ORDER BY 1, 2'),
	"$day|1|40\n$other_day|100|40",
	'a place with a row of another day');

# ---- rows that are taken for new, as all before them were ----

(my $items = $leaf) =~ s/counts/items/;

# One event of each of n users, of a type and on an item that had none before.
sub track_clicks
{
	my ($name, $n) = @_;
	sql(qq{SELECT count(evstream_track('$name-' || n, 'click', '{"item_id": "i-2"}', NULL, '$day 12:00+00')) FROM generate_series(1, $n) n});
	is(sql("SELECT evstream_wait('30 s')"), 't', 'counted');
	return;
}

# Rows of such users that the consumer does not know of, and their events
sub track_strangers
{
	my ($name, $n) = @_;
	sql("INSERT INTO $leaf (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)"
		  . " SELECT '$name-' || n, '$day', 'click', 100, now(), now(), now() FROM generate_series(1, $n) n");
	sql("INSERT INTO $items (user_id, item_id, day, view_count, click_count, purchase_count, event_count, updated_at)"
		  . " SELECT '$name-' || n, 'i-2', '$day', 0, 100, 0, 100, now() FROM generate_series(1, $n) n");
	track_clicks($name, $n);
	return;
}

# How many rows have which count, of users and of items, and the different users
sub stats
{
	return sql(join(' UNION ALL ',
			"SELECT event_count || ':' || count(*) FROM $leaf WHERE event_type = 'click' GROUP BY event_count",
			"SELECT event_count || ':' || count(*) FROM $items WHERE item_id = 'i-2' GROUP BY event_count",
			"SELECT 'users:' || user_count FROM evstream_daily_totals WHERE event_type = 'click'")
		  . ' ORDER BY 1');
}

# A consumer that begins without any experience
sub fresh_consumer
{
	my $consumer = sql("SELECT pid FROM evstream_workers WHERE role = 'consumer'");
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql('SELECT evstream_restart()');
	return ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_workers WHERE role = 'consumer' AND pid <> $consumer", 1), 'another consumer');
}

fresh_consumer();
sql("SELECT pg_stat_reset_single_table_counters('$items'::regclass)");

track_clicks('new', 1500);
is(stats(), "1:1500\n1:1500\nusers:1500", 'rows that are new');
track_strangers('few', 10);
is(stats(), "101:10\n101:10\n1:1500\n1:1500\nusers:1500", 'a few are there all the same');
track_strangers('many', 100);
is(stats(), "101:110\n101:110\n1:1500\n1:1500\nusers:1500", 'more of them');
track_strangers('other', 10);
is(stats(), "101:120\n101:120\n1:1500\n1:1500\nusers:1500", 'now it looks first');
ok(wait_for_sql($node, 'postgres', "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relid = '$items'::regclass",
		join('|', 1500 + 2 * (10 + 100) + 10, 120, 10 + 100)),
	'of the first ones a row was added and taken back');

# ---- rows of the other types of a user come with the first one ----

# Rows of n types that the consumer does not know of, and an event of each of m types
sub track_types
{
	my ($user, $n, $m) = @_;
	sql("INSERT INTO $leaf (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)"
		  . " SELECT '$user', '$day', 'type-' || n, 10, now(), now(), now() FROM generate_series(1, $n) n");
	sql("SELECT pg_stat_reset_single_table_counters('${leaf}_pkey'::regclass)");
	sql(qq{SELECT count(evstream_track('$user', 'type-' || n, NULL, NULL, '$day 12:00+00')) FROM generate_series(1, $m) n});
	is(sql("SELECT evstream_wait('30 s')"), 't', 'counted');
	# without the index, whose scans are counted
	is( sql("SET enable_indexscan = off; SET enable_bitmapscan = off;"
			  . " SELECT event_count, count(*) FROM $leaf WHERE user_id = '$user' GROUP BY 1 ORDER BY 1"),
		join("\n", $m > $n ? '1|' . ($m - $n) : (), "11|$n"),
		"$user: old rows and new ones");
	return;
}

sub scans
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, 'postgres', "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelid = '${leaf}_pkey'::regclass", $_[0]), $_[1]);
}

fresh_consumer();
track_types('some', 9, 9);
scans(1, 'rows are found by one look');
track_types('new', 9, 12);
scans(1 + 3, 'and those that are not there by one each');
track_types('many', 16, 18);
scans(1 + 2, 'up to so many');
track_types('more', 17, 19);
scans(1 + 2 * (1 + 2), 'beyond which rows are looked for one by one');

is(sql('SELECT count(*) FROM evstream.dead_letters'), 0, 'no dead letter');
unlike(slurp_file($node->logfile), qr/ERROR|PANIC|TRAP/, 'no error was raised');

done_testing();
