# How batches get into their tables: ids that others write at the same time, rows of
# stats that others have in hand, and what users have made on the tables.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', wal_level => 'logical', 'evstream.batch_size' => 1000, extension => 1);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# An id that differs in one number.
sub id { return sprintf('00000000-0000-4000-8000-%012d', $_[0]); }

sub track
{
	my ($user, $type, $id) = @_;
	return sql("SELECT evstream_track('$user', '$type', '{\"item_id\": \"i-1\"}', "
		  . (defined $id ? "'" . id($id) . "'" : 'NULL') . ", '2026-11-01 12:00+00')");
}

sub all_counted
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql("SELECT evstream_wait('30 s')"), 't', $_[0]);
}

# The consumer waits for a transaction of others.
sub consumer_waits
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_for_sql($node, 'postgres', q{SELECT count(*) > 0 FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE a.backend_type = 'evstream consumer' AND l.locktype = 'transactionid' AND NOT l.granted}, 't'), $_[0]);
}

# In a transaction that lasts: the id is written.
sub prepare { return sql("BEGIN; $_[1]; PREPARE TRANSACTION '$_[0]'"); }

my $count = sub { return sql("SELECT count(*), sum(event_count) FROM evstream_daily_counts WHERE user_id = '$_[0]'"); };
my $items = sub { return sql("SELECT count(*), sum(event_count) FROM evstream_daily_item_summary WHERE user_id = '$_[0]'"); };
my $ids = sub { return sql("SELECT count(*) FROM evstream.ids WHERE event_id = '" . id($_[0]) . "'"); };
my $users = sub { return sql("SELECT user_count FROM evstream_daily_totals WHERE event_type = '$_[0]'"); };
sub write_id
{
	return 'INSERT INTO evstream.ids (segment_id, event_id) SELECT max(segment_id), '
	  . "'" . id($_[0]) . "' FROM evstream.id_segments WHERE closed_at IS NULL";
}

# ---- Ids ----

track('first', 'view', 1);
all_counted('the tables are there');

prepare('p', write_id(2));
track('rolled-back', 'view', 2);
consumer_waits('an id that another transaction has written is waited for');
is($count->('rolled-back'), '0|', 'its event is not counted before');
sql("ROLLBACK PREPARED 'p'");
all_counted('it goes on after the rollback');
is($count->('rolled-back'), '1|1', 'the event is counted');
is($ids->(2), 1, 'the id is there once');

prepare('p', write_id(3));
track('committed', 'view', 3);
consumer_waits('again it is waited for');
sql("COMMIT PREPARED 'p'");
all_counted('it goes on after the commit');
is($count->('committed'), '0|', 'the event is a duplicate');
is($ids->(3), 1, 'the id is there once, and not taken back');

sql(write_id(5));
sql("SELECT evstream_track_batch('["
	  . join(',', map { sprintf('{"event_id": "%s", "user_id": "batch", "event": "b"}', id($_)) } 7, 5, 4, 6, 4) . "]')");
all_counted('ids that others have written since');
is($count->('batch'), '1|3', 'count as duplicates, as those within a batch do');
is(sql('SELECT count(*), count(DISTINCT event_id) FROM evstream.ids'), '7|7', 'each id is there once');

my $size = sql('SELECT sum(pg_relation_size(i.inhrelid)) FROM pg_inherits i WHERE i.inhparent = ' . "'evstream.ids'::regclass");
sql("SELECT evstream_track_batch((SELECT jsonb_agg(jsonb_build_object('event_id', i.event_id, 'user_id', 'again', 'event', 'b'))"
	  . " FROM evstream.ids i CROSS JOIN generate_series(1, 500)))");
all_counted('events that come again');
is($count->('again'), '0|', 'are not counted');
is(sql('SELECT sum(pg_relation_size(i.inhrelid)) FROM pg_inherits i WHERE i.inhparent = ' . "'evstream.ids'::regclass"),
	$size, 'and take no room');

# maintenance closes a segment that began on another day
sql("UPDATE evstream.id_segments SET created_at = created_at - interval '2 days'");
ok(wait_for_sql($node, 'postgres', 'SELECT count(*), count(closed_at) FROM evstream.id_segments', '2|1', 180), 'a segment is closed');
track('closed', 'view', $_) for 1, 7, 8;
all_counted('ids of a closed segment');
is($count->('closed'), '1|1', 'are known');
is(sql('SELECT count(*), count(DISTINCT event_id) FROM evstream.ids'), '8|8', 'and not written again');

# ---- Rows of stats ----

my $new_count = sub {
	return "INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)"
	  . " VALUES ('$_[0]', '2026-11-01', '$_[1]', 10, '2026-11-01', '2026-11-01', now());"
	  . " INSERT INTO evstream.daily_items (user_id, item_id, day, view_count, click_count, purchase_count, event_count, updated_at)"
	  . " VALUES ('$_[0]', 'i-1', '2026-11-01', 0, 0, 0, 10, now())";
};

prepare('p', $new_count->('met', 'met'));
track('met', 'met');
consumer_waits('a row that another transaction has added is waited for');
sql("COMMIT PREPARED 'p'");
all_counted('it goes on after the commit');
is($count->('met'), '1|11', 'the row has both');
is($items->('met'), '1|11', 'that of the item as well');
is($users->('met'), 0, 'the user is not new');

# The same with the other's row behind ours: the one that is taken back would be found first.
sql("INSERT INTO evstream.daily_counts (user_id, day, event_type, event_count, first_event_at, last_event_at, updated_at)"
	  . " SELECT 'room-' || i, '2026-11-01', 'room', 1, '2026-11-01', '2026-11-01', now() FROM generate_series(1, 300) i");
sql("DELETE FROM evstream.daily_counts WHERE event_type = 'room'");
prepare('p', $new_count->('behind', 'behind'));
sql('VACUUM evstream.daily_counts');
track('behind', 'behind');
consumer_waits('a row at the end of the table is waited for');
sql("COMMIT PREPARED 'p'");
all_counted('it goes on after the commit');
is($count->('behind'), '1|11', 'the row has both');
is($items->('behind'), '1|11', 'that of the item as well');
is(sql("SELECT sum(errors) FROM evstream_workers WHERE role = 'consumer'"), 0, 'at the first try');

prepare('p', $new_count->('gone', 'gone'));
track('gone', 'gone');
consumer_waits('and one that goes away again');
sql("ROLLBACK PREPARED 'p'");
all_counted('it goes on after the rollback');
is($count->('gone'), '1|1', 'the row is our own');
is($items->('gone'), '1|1', 'that of the item as well');
is($users->('gone'), 1, 'the user is new');

foreach my $table ('daily_counts', 'daily_items')
{
	my $update = "UPDATE evstream.$table SET event_count = event_count + 100 WHERE user_id = 'met'";
	my $sum = sub { return sql("SELECT event_count FROM evstream.$table WHERE user_id = 'met'"); };
	my $before = $sum->();

	prepare('p', $update);
	track('met', 'met');
	consumer_waits("a row of $table that another transaction changes is waited for");
	sql("COMMIT PREPARED 'p'");
	all_counted('it goes on after the commit');
	is($sum->(), $before + 101, 'nothing of either is lost');

	prepare('p', $update);
	track('met', 'met');
	consumer_waits('and once more');
	sql("ROLLBACK PREPARED 'p'");
	all_counted('it goes on after the rollback');
	is($sum->(), $before + 102, 'ours alone is there');
}

# ---- What users make on the tables ----

my $leaf = sql("SELECT tableoid::regclass FROM evstream.daily_counts WHERE user_id = 'met'");
my $events = sql('SELECT max(tableoid::regclass::text) FROM evstream.events');
my $segment = sql('SELECT max(tableoid::regclass::text) FROM evstream.ids');
sql("CREATE INDEX extra_1 ON $leaf (event_count); CREATE INDEX extra_2 ON $events (lower(user_id)) WHERE event_type = 'extra';"
	  . " CREATE INDEX extra_3 ON $segment (segment_id)");
sql("SELECT evstream_track('U-' || n % 30, 'extra') FROM generate_series(1, 300) n");
all_counted('indexes that users have added');
sql("SELECT evstream_track('U-' || n % 30, 'extra') FROM generate_series(1, 300) n");
all_counted('rows of stats that change again');
is(sql("SET enable_seqscan = off; SELECT count(*) FROM $events WHERE lower(user_id) = 'u-7' AND event_type = 'extra'"), 20,
	'they find the events');
is(sql("SET enable_seqscan = off; SELECT count(*) FROM $leaf WHERE event_count = 20 AND user_id LIKE 'U%'"), 30, 'and the stats');
sql("DROP INDEX evstream.extra_1");

sql("CREATE TABLE seen (op text, n bigint);"
	  . " CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.seen VALUES (TG_OP, NEW.event_count); RETURN NULL; END';"
	  . " CREATE TRIGGER see AFTER INSERT OR UPDATE ON evstream.daily_counts FOR EACH ROW EXECUTE FUNCTION see()");
track('trigger', 'view');
all_counted('a trigger on the counts');
track('trigger', 'view');
all_counted('and a second event');
is(sql("SELECT string_agg(op || ' ' || n, ', ' ORDER BY n) FROM seen"), 'INSERT 1, UPDATE 2', 'it sees the new rows and the changed ones');
is($count->('trigger'), '1|2', 'the counts are right');
sql('DROP TRIGGER see ON evstream.daily_counts');

# ---- Logical decoding ----

sql("SELECT pg_create_logical_replication_slot('here', 'test_decoding')");
track('met', 'decoded');
all_counted('an event with a slot');
# decoding reads what is flushed, and workers commit without
sql("SELECT pg_logical_emit_message(true, 'test', 'flush')");
# a leaf of the month may be there or not yet
my @changes = split(/\n/, sql("SELECT substring(data FROM '^table evstream\\.([a-z]+(?:_[a-z]+)?)(?:_default|[0-9_]*): ([A-Z]+)') || ' ' || substring(data FROM ': ([A-Z]+)')"
	  . " FROM pg_logical_slot_get_changes('here', NULL, NULL) WHERE data ~ 'evstream.(events|ids|daily)_'"));
is_deeply([ sort @changes ], [ 'daily_counts INSERT', 'daily_items UPDATE', 'daily_totals INSERT', 'events INSERT', 'ids INSERT' ],
	'its rows are decoded');
sql("SELECT pg_drop_replication_slot('here')");

# ---- properties ----

# Texts as producers write them: what is stored is what jsonb_in() makes of them, byte for byte.
srand(42);
my @objects = (
	'{}', '{ }', '{"a":1}', '{"b":1,"a":2,"aa":3,"B":4,"":5}', '{"a":1,"a":2}', '{"a":1,"b":"x","a":null,"a":true}',
	'{"n":0,"o":-0,"p":-1,"q":999999999,"r":1234567890,"s":12345678901234567890,"t":1.50,"u":1e3,"v":-0.000,"w":1E-7,"x":-12345678}',
	'{"t":true,"f":false,"z":null,"s":"","u":"ü€😀"}', '{"a":"\\u00fc\\n\\"","\\u0061b":1}',
	'{"deep":{"a":[1,2,{"b":null}]},"list":[],"o":{}}', "{ \"a\" :\t1 ,\n\"b\" : \"c\" , \"d\":[ 1 ] }",
	'{' . join(',', map { qq("k$_":"$_") } 1 .. 15) . '}', '{' . join(',', map { qq("k$_":$_) } 1 .. 16) . '}',
	'{' . join(',', map { qq("k$_":$_.5) } 1 .. 32) . '}', '{' . join(',', map { qq("k$_":[$_]) } 1 .. 40) . '}',
	'{"long":"' . ('x' x 3000) . '","n":7,"m":1.25}',
	# too deep, with too many keys, and too large for what evstream lays out itself
	'{"deep":' . ('[' x 30) . '1' . (']' x 30) . '}',
	'{"keys":{' . join(',', map { qq("k$_":$_) } 1 .. 300) . '}}',
	'{"large":["' . join('","', 1 .. 20_000) . '"]}',
	# containers, escapes and keys given twice in every mixture
	map { random_object(4) } 1 .. 300);

# The same ones each time, with keys that are given twice, also in other words.
sub random_value
{
	my ($depth) = @_;
	my @scalars = (
		'"x"', '""', '"a longer one, with words"', '"ü€😀"', '"\\/\\"\\\\\\b\\f\\n\\r\\t"', '"\\ud83d\\ude00\\u00e9\\u0020z"',
		'true', 'false', 'null', '0', '-1', '12', '3.25', '-0.00', '1e3', '2.5E-7', '123456789012345678901234567890', '0.1234567890123456789');
	my $kind = $depth > 0 ? int(rand(4)) : 0;
	my $members = int(rand(4)) == 0 ? int(rand(70)) : int(rand(5));

	return random_object($depth - 1) if $kind == 1;
	return '[' . join(rand() < 0.5 ? ',' : " ,\n", map { random_value($depth - 1 - ($members > 5 ? 2 : 0)) } 1 .. $members) . ']' if $kind == 2;
	return $scalars[ int(rand(@scalars)) ];
}

sub random_object
{
	my ($depth) = @_;
	my @keys = ('a', 'b', '\\u0061', 'ab', 'ba', '', 'ü', '\\u00fc', 'a\\nb', 'a key of some length', map { "k$_" } 1 .. 60);
	my $pairs = int(rand(4)) == 0 ? int(rand(50)) : int(rand(6));

	return '{' . join(',', map { '"' . $keys[ int(rand(@keys)) ] . '"' . (rand() < 0.5 ? ':' : ' : ') . random_value($depth - ($pairs > 6 ? 2 : 0)) } 1 .. $pairs) . '}';
}
sql('CREATE TABLE objects (n int PRIMARY KEY, o text)');
sql(join(';', map { "INSERT INTO objects VALUES ($_, \$o\$$objects[$_]\$o\$)" } 0 .. $#objects));
sql(q{INSERT INTO evstream.retries (id, record_value, record_timestamp, attempts)
	SELECT 1000 + n, convert_to('{"user_id":"o-' || n || '","event":"object","properties":' || o || '}', 'UTF8'), '2026-11-01', 1 FROM objects});
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_events WHERE event_type = 'object'", scalar(@objects)), 'objects are stored');
is(sql(q{SELECT string_agg(o.n::text, ',' ORDER BY o.n) FROM objects o LEFT JOIN evstream.events e ON e.user_id = 'o-' || o.n
	WHERE e.user_id IS NULL OR NOT record_image_eq(ROW(e.properties), ROW(o.o::jsonb))}), '', 'as jsonb_in() has them');

# ---- Somebody else has written to the partition ----

# The consumer has another position than these rows of the batch log leave: one begins behind it, one goes over it.
foreach my $other ([ 'ahead', 3, 5 ], [ 'over', -1, 4 ])
{
	my ($name, $from, $to) = @$other;

	sql("SELECT evstream_track('two', '$name') FROM generate_series(1, 2)");
	all_counted("$name: two in one batch");
	my $position = sql('SELECT max(to_offset) FROM evstream.batch_log WHERE log_id = 1');
	sql("INSERT INTO evstream.batch_log (log_id, log_partition, generation, from_offset, to_offset, last_offset, last_timestamp, last_crc, last_received_at, tick, xid, id)
		SELECT log_id, log_partition, generation, $position + $from, $position + $to, $position + $to - 1, last_timestamp, last_crc, last_received_at, tick, xid, id
		FROM evstream.batch_log WHERE log_id = 1 ORDER BY from_offset DESC LIMIT 1;
		SELECT evstream_track('after', '$name')");
	all_counted("$name: what was tracked with it");
	is(sql("SELECT log_offset - $position FROM evstream_events WHERE user_id = 'after' AND event_type = '$name'"), $to, "$name: is stored behind it");
	is(sql("SELECT sum(event_count) FROM evstream_daily_counts WHERE user_id = 'after' AND event_type = '$name'"), 1, "$name: once");
}
cmp_ok(count_log($node, qr/partition 0 of log 1 was moved by another consumer/), '>', 0, 'which the log says');

# ---- Maintenance has merged the batch log, and has not committed yet ----

my $merging = $node->background_psql('postgres');
$merging->query_safe('BEGIN; UPDATE evstream.partitions SET consumed = consumed');
sql("SELECT evstream_track('merging', 'view')");
all_counted('what is stored does not wait for it');
$merging->query_safe('ROLLBACK');
$merging->quit;

# ---- All indexes are whole ----

sql('CREATE EXTENSION amcheck');
sql(q{SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
	WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relnamespace = 'evstream'::regnamespace});
ok(1, 'every row is in the indexes');
is(log_lines($node, qr/evstream consumer (?:FATAL|PANIC)|terminated by signal/), '', 'no worker ended by itself');

done_testing();
