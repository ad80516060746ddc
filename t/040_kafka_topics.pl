# Topics written by others: what becomes an event, what a dead letter, and why.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = kafka_start('message.max.bytes=4194304', 'log.retention.ms=-1');
my $node = new_node('main', 'evstream.kafka_brokers' => $kafka, max_worker_processes => 30);

# A database that reads a topic, as one would set it up.
sub new_db
{
	my ($name, %settings) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql('postgres', "ALTER DATABASE $name SET evstream.$_ = '$settings{$_}'") for sort keys %settings;
	$node->safe_psql($name, 'CREATE EXTENSION evstream');
	return;
}

# Consumed up to these offsets of partitions 0, 1, ...
sub consumed
{
	my ($db, $topic, @ends) = @_;
	my $expected = join(',', map { "$_:$ends[$_]" } 0 .. $#ends);
	return wait_for_sql($node, $db, "SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition)
		FROM evstream_lag WHERE topic = '$topic'", $expected, 90);
}

# ---- Good events, each as another producer writes it ----

my $time = 1_767_312_000_123;	# 2026-01-02 00:00:00.123+00
my $header_trace = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
my $body_trace = '00-11111111111111111111111111111111-2222222222222222-00';
my @records = (
	# the four shapes of common producers
	[ 'k', '{"event":"view","user_id":"s1","page":"/a"}', 0, $time ],
	[ 'k', '{"eventId":"order-1","userId":42,"eventType":"purchase","userTier":"gold","amount":"12.50","timestamp":"2026-01-02T03:04:05+01:00"}', 0, $time ],
	[ undef, '{"user_id":"s3","action":"click","page":"/p","device":"ios","timestamp":1767312000}', 0, $time ],
	[ undef, '{"user_id":"s4","activity_type":"view","item_id":77,"timestamp":1767312000123}', 0, $time ],
	# framed for a schema registry
	[ 'k', "\x00\x00\x00\x00\x07" . '{"user_id":"s5","event":"view"}', 0, $time ],
	# a tombstone, then the same id twice
	[ 'k', undef, 0, $time ],
	[ 'k', '{"user_id":"s6","event":"view","message_id":"not-a-uuid"}', 0, $time ],
	[ 'k', '{"user_id":"s6","event":"view","message_id":"not-a-uuid"}', 0, $time + 5 ],
	# trace context: the header wins, a malformed one is ignored
	[ undef, qq({"user_id":"t1","event":"view","traceparent":"$body_trace"}), 0, $time, { traceparent => $header_trace } ],
	[ undef, qq({"user_id":"t2","event":"view","traceparent":"$body_trace"}), 0, $time, { traceparent => 'junk' } ],
	[ undef, '{"user_id":"t3","event":"view","traceparent":"junk"}', 0, $time, { traceparent => 'junk' } ],
	[ undef, '{"user_id":"t4","event":"view"}', 0, $time, { traceparent => $header_trace } ],
	# what is not ours stays in properties
	[ undef, '{"userId":"p1","type":"view","properties":{"a":1,"amount":"none"},"a":2,"b":null,"extra":[1]}', 0, $time ]);
make_topic('shapes', 1);
produce('shapes', \@records);
new_db('shapes', kafka_topic => 'shapes');
ok(consumed('shapes', 'shapes', scalar @records), 'a topic is consumed to its end');

is($node->safe_psql('shapes', q{SET TimeZone = 'UTC'; SELECT log_offset, user_id, event_type, occurred_at, item_id, amount,
	user_tier, properties, traceparent, topic, log_partition FROM evstream_events ORDER BY log_offset}),
	join("\n",
		'0|s1|view|2026-01-02 00:00:00.123+00||||{"page": "/a"}||shapes|0',
		'1|42|purchase|2026-01-02 02:04:05+00||12.5|gold|{}||shapes|0',
		'2|s3|click|2026-01-02 00:00:00+00||||{"page": "/p", "device": "ios"}||shapes|0',
		'3|s4|view|2026-01-02 00:00:00.123+00|77|||{}||shapes|0',
		'4|s5|view|2026-01-02 00:00:00.123+00||||{}||shapes|0',
		'6|s6|view|2026-01-02 00:00:00.123+00||||{}||shapes|0',
		"8|t1|view|2026-01-02 00:00:00.123+00||||{\"traceparent\": \"$body_trace\"}|$header_trace|shapes|0",
		"9|t2|view|2026-01-02 00:00:00.123+00||||{}|$body_trace|shapes|0",
		'10|t3|view|2026-01-02 00:00:00.123+00||||{"traceparent": "junk"}||shapes|0',
		"11|t4|view|2026-01-02 00:00:00.123+00||||{}|$header_trace|shapes|0",
		'12|p1|view|2026-01-02 00:00:00.123+00||||{"a": 1, "b": null, "extra": [1], "amount": "none"}||shapes|0'),
	'each shape is read as the contract says');
is($node->safe_psql('shapes', 'SELECT count(*) FROM evstream_dead_letters'), 0, 'a tombstone is no dead letter');
is($node->safe_psql('shapes', q{SELECT e.event_id = evstream_event_id('order-1'), f.event_id = evstream_event_id('not-a-uuid')
	FROM evstream_events e, evstream_events f WHERE e.log_offset = 1 AND f.log_offset = 6}), 't|t', 'a text id becomes its UUID');
is($node->safe_psql('shapes', q{SELECT sum(event_count), sum(amount_total) FROM evstream_daily_totals}), '11|12.5', 'all count once');

# The id of a record without one is made from its place.
new_db('again', kafka_topic => 'shapes');
ok(consumed('again', 'shapes', scalar @records), 'another database reads the same topic');
my $ids = q{SELECT string_agg(log_offset || '=' || event_id, ',' ORDER BY log_offset) FROM evstream_events};
is($node->safe_psql('again', $ids), $node->safe_psql('shapes', $ids), 'ids made from the place are the same there');
is($node->safe_psql('again', 'SELECT count(DISTINCT event_id) FROM evstream_events'), 11, 'and differ from each other');
$node->safe_psql('postgres', 'DROP DATABASE again');

# ---- Bad events ----

my $deep = '{"user_id":"d","event":"view","properties":{"a":' . ('[' x 200) . (']' x 200) . '}}';
my $large = '{"user_id":"u","event":"view","properties":{"pad":"' . ('x' x 2_000_000) . '"}}';
my @bad = (
	[ 'not_json', 'this is no JSON' ], [ 'not_json', '' ], [ 'not_json', '{"user_id":"x"' ],
	[ 'not_object', '[1, 2]' ], [ 'not_object', '"text"' ],
	[ 'bad_text', '{"user_id":"a\\u0000b","event":"view"}' ],
	[ 'bad_text', "{\"user_id\":\"a\xff\",\"event\":\"view\"}" ],
	[ 'bad_text', '{"user_id":"x","event":"view","properties":{"a":"\\ud800"}}' ],
	[ 'too_large', $large ], [ 'too_large', $deep ],
	[ 'bad_event_type', '{"user_id":"x"}' ], [ 'bad_user_id', '{"event":"view"}' ],
	[ 'bad_user_id', '{"user_id":null,"event":"view"}' ], [ 'bad_user_id', '{"user_id":"","event":"view"}' ],
	[ 'bad_event_id', '{"user_id":"x","event":"view","event_id":""}' ],
	[ 'bad_timestamp', '{"user_id":"x","event":"view","timestamp":"yesterday"}' ],
	[ 'future_timestamp', '{"user_id":"x","event":"view","timestamp":"2099-01-01T00:00:00Z"}' ],
	[ 'bad_amount', '{"user_id":"x","event":"view","amount":"much"}' ],
	[ 'bad_amount', '{"user_id":"x","event":"view","amount":1e30}' ],
	[ 'bad_properties', '{"user_id":"x","event":"view","properties":[]}' ]);
make_topic('mixed', 2, 'max.message.bytes=4194304');
my @mixed;
my $n = 0;
foreach my $case (@bad)
{
	push @mixed, [ "key-$n", $case->[1], 0, $time + $n, [ n => $n, empty => undef, bytes => "\xff\x00" ] ];
	# a good one behind each, in both partitions
	push @mixed, [ undef, qq({"user_id":"good","event":"view","event_id":"good-$n"}), $n % 2, $time ];
	$n++;
}
produce('mixed', \@mixed);
new_db('mixed', kafka_topic => 'mixed');
ok(consumed('mixed', 'mixed', @bad + @bad / 2, @bad / 2), 'a topic of bad and good records is consumed to its end');
is($node->safe_psql('mixed', 'SELECT sum(event_count) FROM evstream_daily_counts'), scalar @bad, 'all good ones count');
is($node->safe_psql('mixed', "SELECT string_agg(reason, ',' ORDER BY log_offset) FROM evstream_dead_letters"),
	join(',', map { $_->[0] } @bad), 'each bad one has its reason');
is($node->safe_psql('mixed', "SET TimeZone = 'UTC'; SELECT topic, log_partition, log_offset, convert_from(record_key, 'UTF8'),
	convert_from(record_value, 'UTF8'), record_timestamp, record_headers, attempts, detail IS NOT NULL
	FROM evstream_dead_letters WHERE log_offset = 0"),
	'mixed|0|0|key-0|this is no JSON|2026-01-02 00:00:00.123+00|[["n", "MA=="], ["empty", null], ["bytes", "/wA="]]|1|t',
	'a dead letter keeps key, value, time and headers');
is($node->safe_psql('mixed', "SELECT octet_length(record_value), md5(record_value) = md5(convert_to("
	. "'{\"user_id\":\"u\",\"event\":\"view\",\"properties\":{\"pad\":\"' || repeat('x', 2000000) || '\"}}', 'UTF8'))"
	. " FROM evstream_dead_letters WHERE reason = 'too_large' ORDER BY log_offset LIMIT 1"), length($large) . '|t', 'also one of 2 MB');
like($node->safe_psql('mixed', 'SELECT evstream_health()'), qr/"dead_letters": \{.*?"status": "degraded"/, 'health tells of dead letters');

# Retried and discarded.
my $id = $node->safe_psql('mixed', "SELECT id FROM evstream_dead_letters WHERE log_offset = 0 AND log_partition = 0");
is($node->safe_psql('mixed', "SELECT evstream_dead_letter_retry($id)"), 'f', 'a retry of one that is still bad');
is($node->safe_psql('mixed', "SELECT attempts FROM evstream_dead_letters WHERE id = $id"), 2, 'is counted');
$node->safe_psql('mixed', qq(UPDATE evstream_dead_letters SET record_value = '{"user_id":"mended","event":"view"}' WHERE id = $id));
is($node->safe_psql('mixed', "SELECT evstream_dead_letter_retry($id)"), 't', 'a retry after the value was mended');
ok(wait_for_sql($node, 'mixed', "SELECT sum(event_count) FROM evstream_daily_counts WHERE user_id = 'mended'", '1', 15), 'counts');
is($node->safe_psql('mixed', "SET TimeZone = 'UTC'; SELECT occurred_at, topic IS NULL FROM evstream_events WHERE user_id = 'mended'"),
	'2026-01-02 00:00:00.123+00|t', 'with the time of its record');
is($node->safe_psql('mixed', "SELECT count(*) FROM evstream_dead_letters WHERE id = $id"), 0, 'and is no dead letter any more');
$id = $node->safe_psql('mixed', "SELECT id FROM evstream_dead_letters WHERE reason = 'bad_properties'");
is($node->safe_psql('mixed', "SELECT evstream_dead_letter_discard($id), evstream_dead_letter_discard($id)"), 't|f', 'one is discarded, once');
is($node->safe_psql('mixed', 'SELECT count(*) FROM evstream_dead_letters'), @bad - 2, 'the others stay');

# The retried one has the id that its record would have had: the same in another database.
new_db('mended', kafka_topic => 'mixed');
ok(wait_for_sql($node, 'mended', "SELECT count(*) FROM evstream_dead_letters", scalar @bad, 60), 'the same dead letters in another database');
$node->safe_psql('mended', q(UPDATE evstream_dead_letters SET record_value = '{"user_id":"mended","event":"view"}' WHERE log_offset = 0 AND log_partition = 0));
$node->safe_psql('mended', q(SELECT evstream_dead_letter_retry(id) FROM evstream_dead_letters WHERE log_offset = 0 AND log_partition = 0));
ok(wait_for_sql($node, 'mended', "SELECT event_id FROM evstream_events WHERE user_id = 'mended'",
	$node->safe_psql('mixed', "SELECT event_id FROM evstream_events WHERE user_id = 'mended'"), 15), 'the id of a retry comes from the place of its record');
$node->safe_psql('postgres', 'DROP DATABASE mended');
$node->safe_psql('postgres', 'DROP DATABASE mixed');
$node->safe_psql('postgres', 'DROP DATABASE shapes');

# ---- Several topics; one that is not there yet ----

make_topic('own', 2);
make_topic('other', 3);
new_db('several', kafka_topic => 'own', kafka_read_topics => 'other, absent', consumers => 2);
produce('own', [ map { [ undef, qq({"user_id":"own","event":"view","event_id":"own-$_"}), $_ % 2 ] } 1 .. 10 ]);
produce('other', [ map { [ undef, qq({"user_id":"other","event":"view","event_id":"other-$_"}), $_ % 3 ] } 1 .. 30 ]);
my $totals = q{SELECT string_agg(user_id || '=' || event_count, ',' ORDER BY user_id) FROM evstream_daily_counts};
ok(wait_for_sql($node, 'several', $totals, 'other=30,own=10'), 'a topic is read beside our own');
ok(wait_for_sql($node, 'several', q{SELECT evstream_health() #>> '{components,kafka,status}', evstream_health() #>> '{components,kafka,why}'},
	'degraded|Kafka has no topic "absent"', 20), 'health names a topic that does not exist');
my $offset;
produce('other', [ [ undef, '{"user_id":"other","event":"view","event_id":"own-1"}', 0 ] ]);
make_topic('absent', 1);
produce('absent', [ map { [ undef, qq({"user_id":"absent","event":"view","event_id":"absent-$_"}) ] } 1 .. 5 ]);
ok(wait_for_sql($node, 'several', $totals, 'absent=5,other=30,own=10'), 'a topic that is made later is read, an id counts once in all of them');
ok(wait_for_sql($node, 'several', "SELECT evstream_health() #>> '{components,kafka,status}'", 'ok', 15), 'then health is well');
is($node->safe_psql('several', "SELECT string_agg(DISTINCT topic, ',' ORDER BY topic) FROM evstream_events"), 'absent,other,own', 'events tell their topic');
cmp_ok(count_log($node, qr/absent/, 0), '<=', 4, 'a missing topic is logged once by each consumer');

# Nothing to do: little is done.
SKIP: {
	my $ticks = sub {
		my $sum = 0;
		foreach my $pid (split(/\n/, $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'evstream%'})))
		{
			my @stat = split(/ /, slurp_file("/proc/$pid/stat") =~ s/^.*\) //sr);
			$sum += $stat[11] + $stat[12];
		}
		return $sum;
	};
	skip 'no /proc here', 2 unless -r "/proc/$$/stat";
	sleep(1);
	$offset = -s $node->logfile;
	# what other tests do to the caches of this machine may cost a try
	my $used;
	for (1 .. 5)
	{
		my $begin = $ticks->();
		sleep(6);
		$used = $ticks->() - $begin;
		last if $used <= 6;
	}
	cmp_ok($used, '<=', 6, 'idle workers with Kafka take less than 1 % of a core');
	is(-s $node->logfile, $offset, 'and log nothing');
}
$node->safe_psql('postgres', 'DROP DATABASE several');

# ---- Real invoices ----

SKIP: {
	my ($csv) = grep { -r } map { "$_/online-retail-invoices.csv" } ($ENV{EVSTREAM_DATA} // ()), "$FindBin::Bin/../../shared/data";
	skip 'online-retail-invoices.csv is not there', 7 unless $csv;

	# Plain SQL reads the lines, and says what must come out.
	$node->safe_psql('postgres', q{
		CREATE TABLE lines (invoice text, at text, customer text, country text, quantity numeric, price numeric);
		CREATE VIEW invoices AS SELECT row_number() OVER () AS n, invoice, country,
			CASE WHEN customer <> '(blank)' THEN customer END AS customer,
			to_timestamp(at || ' +00', 'MM/DD/YYYY HH24:MI TZH') AS at,
			CASE WHEN invoice LIKE 'C%' THEN 'refund' ELSE 'purchase' END AS type, quantity * price AS amount FROM lines;
		CREATE VIEW truth AS SELECT customer AS user_id, (at AT TIME ZONE 'UTC')::date AS day,
			count(*) FILTER (WHERE type = 'purchase') AS purchase_count, count(*) AS event_count,
			trim_scale(sum(amount) FILTER (WHERE type = 'purchase')) AS purchase_amount,
			min(at) AS first_event_at, max(at) AS last_event_at
			FROM invoices WHERE customer IS NOT NULL GROUP BY 1, 2});
	$node->safe_psql('postgres', "\\copy lines FROM '$csv' WITH (FORMAT csv, HEADER)");
	my $truth = $node->safe_psql('postgres', q{SET TimeZone = 'UTC'; SELECT * FROM truth ORDER BY user_id COLLATE "C", day});
	my $found = q{SET TimeZone = 'UTC'; SELECT user_id, day, purchase_count, event_count, trim_scale(purchase_amount),
		first_event_at, last_event_at FROM evstream_daily_summary ORDER BY user_id COLLATE "C", day};
	my $event = q{json_build_object('user_id', customer, 'event', type, 'timestamp', to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
		'item_id', invoice, 'amount', amount, 'country', country)};

	make_topic('invoices', 4);
	new_db('invoices', kafka_topic => 'invoices', consumers => 2);
	my @lines = split(/\n/, $node->safe_psql('postgres', "SELECT $event FROM invoices ORDER BY n"));
	produce('invoices', [ map { [ undef, $lines[$_], $_ % 4 ] } 0 .. $#lines ]);
	ok(wait_for_sql($node, 'invoices', 'SELECT sum(position) FROM evstream_lag', scalar @lines), 'the invoices are consumed from Kafka');
	is($node->safe_psql('invoices', $found), $truth, 'summary of the invoices = plain SQL over the file');
	is($node->safe_psql('invoices', "SELECT count(*), min(reason), max(reason) FROM evstream_dead_letters"), '3722|bad_user_id|bad_user_id',
		'lines without a customer are dead letters');
	is($node->safe_psql('invoices', "SELECT count(*) FROM evstream_daily_item_summary"),
		$node->safe_psql('postgres', "SELECT count(DISTINCT (customer, invoice, (at AT TIME ZONE 'UTC')::date)) FROM invoices WHERE customer IS NOT NULL"),
		'invoices as items');
	$node->safe_psql('postgres', 'DROP DATABASE invoices');

	$node->safe_psql('postgres', "ALTER DATABASE postgres SET evstream.kafka_brokers = ''");
	$node->safe_psql('postgres', 'CREATE EXTENSION evstream');
	$node->safe_psql('postgres', q{SELECT evstream_track(customer, type,
		jsonb_build_object('item_id', invoice, 'amount', amount, 'country', country), occurred_at => at)
		FROM invoices WHERE customer IS NOT NULL ORDER BY n});
	$node->safe_psql('postgres', "SELECT evstream_track_batch(jsonb_agg($event), 'dead_letter') FROM invoices WHERE customer IS NULL");
	is($node->safe_psql('postgres', "SELECT evstream_wait('60 s')"), 't', 'the invoices are consumed from the outbox');
	is($node->safe_psql('postgres', $found), $truth, 'summary of the tracked invoices = plain SQL over the file');
	is($node->safe_psql('postgres', "SELECT count(*), min(reason), max(reason) FROM evstream_dead_letters"), '3722|bad_user_id|bad_user_id',
		'lines without a customer are dead letters there too');
}

is(log_lines($node, qr/PANIC|TRAP|terminated by signal|was terminated/), '', 'no worker crashed');
$node->stop('fast');
done_testing();
