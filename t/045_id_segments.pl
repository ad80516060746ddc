# Ids of closed segments: the filters that are kept of them, and when a segment is closed.

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

# An id that differs in one number.
sub id { return sprintf('00000000-0000-4000-8000-%012d', $_[0]); }

# Events of these ids, and how many of them were counted.
my $users = 0;

sub counted
{
	my $user = 'u-' . ++$users;
	sql("SELECT evstream_track('$user', 'view', event_id => '" . id($_) . "')") for @_;
	return 'not counted in time' if sql("SELECT evstream_wait('30 s')") ne 't';
	return sql("SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_counts WHERE user_id = '$user'");
}

sub comes_to
{
	my ($query, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, 'postgres', $query, $expected), $name);
}

sub write_id
{
	return 'INSERT INTO evstream.ids (segment_id, event_id) SELECT max(segment_id), '
	  . "'" . id($_[0]) . "' FROM evstream.id_segments WHERE closed_at IS NULL";
}

# ---- A segment is closed while others write to it ----

is(counted(1, 2), 2, 'ids are written');
my $writer = $node->background_psql('postgres', on_error_stop => 1);
$writer->query_safe('BEGIN');
$writer->query_safe(write_id(3));

# of another day: maintenance reads it, and then waits for who writes to it
sql("UPDATE evstream.id_segments SET created_at = created_at - interval '2 days'");
comes_to(q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
	WHERE a.backend_type = 'evstream maintenance' AND l.mode = 'ShareLock' AND NOT l.granted}, '1', 'maintenance waits for a writer');
$writer->query_safe(write_id(4));
$writer->query_safe('COMMIT');
$writer->quit;
comes_to('SELECT count(*), count(closed_at) FROM evstream.id_segments', '2|1', 'the segment is closed');
is(sql('SELECT segment_id, kind, relfilenode = pg_relation_filenode(' . "'evstream.ids_1'" . ') FROM evstream.id_filters'),
	'1|2|t', 'its filter is kept');
is(counted(1 .. 5), 1, 'all ids of it are known, also one that was written when it had been read');

# ---- What is kept is used, and no other ----

# by a filter that knows of no id
my $empty = q{UPDATE evstream.id_filters SET filter = decode(repeat('00', length(filter)), 'hex')};

# a consumer that has read none yet
sub fresh_counted
{
	sql('SELECT evstream_restart()');
	return counted(@_);
}

is(fresh_counted(1), 0, 'a new consumer knows them');
sql($empty);
is(fresh_counted(1), 1, 'by what is kept alone');

# What is kept stays as it is, although maintenance would make it anew.
my $holder = $node->background_psql('postgres', on_error_stop => 1);

sub hold
{
	$holder->query_safe($_) foreach @_, 'BEGIN', 'SELECT FROM evstream.id_filters FOR UPDATE';
	return;
}

hold("$empty, kind = 0");
is(fresh_counted(2), 0, 'ids are read where what is kept was made in another way');
$holder->query_safe('COMMIT');
comes_to(q{SELECT kind, filter ~ '[^0]' FROM (SELECT kind, encode(filter, 'hex') FROM evstream.id_filters) f (kind, filter)}, '2|t', 'and it is made anew');
is(fresh_counted(2), 0, 'which is used');

hold($empty);
sql('VACUUM FULL evstream.ids_1');
is(fresh_counted(2), 0, 'ids are read where the table was written anew');
$holder->query_safe('COMMIT');
$holder->quit;
comes_to(q{SELECT relfilenode = pg_relation_filenode('evstream.ids_1') FROM evstream.id_filters}, 't', 'and the filter is kept anew');
is(fresh_counted(2, 3, 4), 0, 'which is used, too');

sql('DELETE FROM evstream.id_filters');
comes_to('SELECT segment_id FROM evstream.id_filters', '1', 'one that is missing is made');

# ---- Few ids are looked up for nothing ----

sql(q{INSERT INTO evstream.ids_1 SELECT 1, md5('in-' || n)::uuid FROM generate_series(1, 30000) n});
sql('DELETE FROM evstream.id_filters');
comes_to('SELECT segment_id FROM evstream.id_filters', '1', 'the filter of a segment with more ids');
sql('SELECT evstream_restart()');
sql(q{SELECT pg_stat_reset_single_table_counters(indexrelid) FROM pg_index WHERE indrelid = 'evstream.ids_1'::regclass});
sql(q{SELECT count(evstream_track('stranger', 'view', event_id => md5('out-' || n)::uuid)) FROM generate_series(1, 100000) n});
is(fresh_counted(1), 0, 'one that is there is looked up');
is(sql(q{SELECT event_count FROM evstream_daily_counts WHERE user_id = 'stranger'}), 100_000, 'and 100,000 are new');
# what a consumer has counted is written when it ends, at the latest
sql('SELECT evstream_restart()');
is(counted(8), 1, 'another consumer');
my $scans = sql(q{SELECT idx_scan FROM pg_stat_user_indexes WHERE relid = 'evstream.ids_1'::regclass});
ok($scans >= 1 && $scans <= 10, "of 100,000 and one, $scans were looked up");

# ---- A full segment is closed at once ----

# Maintenance has just had its turn, and gets no further: what wakes it stays to be seen.
comes_to(q{SELECT state FROM evstream_workers WHERE role = 'maintenance'}, 'idle', 'its turn is over');
my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'evstream maintenance'});
kill('STOP', $pid);

# SIGURG is by what a process that sleeps is woken
sub is_woken
{
	my ($pending) = slurp_file("/proc/$pid/status") =~ /^ShdPnd:\s*([0-9a-f]+)/m;
	return (hex($pending) >> 22) & 1;
}

is(counted(6), 1, 'an event of a segment that is not full');
is(is_woken(), 0, 'wakes nobody');
# few on a page, so that it is full with few
sql('ALTER TABLE evstream.ids_2 SET (fillfactor = 10)');
sql('INSERT INTO evstream.ids SELECT 2, gen_random_uuid() FROM generate_series(1, 210000)');
is(counted(7), 1, 'an event of a full one');
is(is_woken(), 1, 'wakes maintenance');
kill('CONT', $pid);
comes_to('SELECT count(*), count(closed_at) FROM evstream.id_segments', '3|2', 'which closes it');
is(counted(1 .. 9), 1, 'all ids are known');
# but that maintenance did not wait longer for what was held above
is(log_lines($node, qr/ (WARNING|ERROR|FATAL|PANIC):  (?!canceling statement due to lock timeout)/), '', 'nothing to complain of');

$node->stop;
done_testing();
