# The life of workers: who starts them, who ends them, and how soon.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $roles = q{SELECT string_agg(role, ',' ORDER BY role) FROM evstream_workers WHERE pid IS NOT NULL};
my $pids = q{SELECT string_agg(pid::text, ',' ORDER BY pid) FROM evstream_workers WHERE pid IS NOT NULL};

# How many processes of evstream are connected to a database.
sub connected
{
	my ($node, $db) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE datname = '$db' AND backend_type LIKE 'evstream%'");
}

# Run SQL that must not wait for what the workers wait for, as long as that may take.
sub quick
{
	my ($node, $db, $sql, $name) = @_;
	my ($out, $err) = ('', '');
	is($node->psql($db, "SET statement_timeout = '30 s'; $sql", stdout => \$out, stderr => \$err, on_error_stop => 1), 0, "$name returns")
	  or diag($err);
	return;
}

sub has_workers
{
	my ($node, $db, $expected, $name, $timeout) = @_;
	ok(wait_for_sql($node, $db, $roles, $expected, $timeout // 10), $name);
	return;
}

# ---- Creation ----

my $node = new_node('main', start => 0);
$node->start;
ok($node->wait_for_log(qr/LOG:  evstream launcher started/), 'the launcher says that it started');

$node->safe_psql('postgres', 'BEGIN; CREATE EXTENSION evstream; ROLLBACK');
sleep(0.5);
is(connected($node, 'postgres'), 0, 'no workers after a rollback');

$node->safe_psql('postgres', 'CREATE EXTENSION evstream');
has_workers($node, 'postgres', 'consumer,maintenance', 'workers soon after the commit', 2);
ok($node->wait_for_log(qr/LOG:  evstream consumer 1 of 1 started for database "postgres"/),
	'each of them says that it started');
ok(wait_for_sql($node, 'postgres', q{SELECT DISTINCT application_name FROM pg_stat_activity
	WHERE backend_type = 'evstream consumer'}, 'evstream consumer 0', 10), 'they are easy to find');
is($node->safe_psql('postgres', 'SELECT preloaded, known, enabled, wanted_workers, running_workers,
	no_free_slots, held_by_pid FROM evstream.supervision()'), 't|t|t|2|2|f|', 'supervision');

# ---- Several databases; templates, renaming, dropping ----

$node->safe_psql('postgres', 'CREATE DATABASE one');
$node->safe_psql('one', 'CREATE EXTENSION evstream');
has_workers($node, 'one', 'consumer,maintenance', 'workers in a second database', 2);

quick($node, 'postgres', 'CREATE DATABASE clone TEMPLATE one', 'CREATE DATABASE TEMPLATE');
has_workers($node, 'one', 'consumer,maintenance', 'workers come back in the template');
has_workers($node, 'clone', 'consumer,maintenance', 'workers in the copy');

quick($node, 'postgres', 'ALTER DATABASE clone RENAME TO renamed', 'RENAME');
has_workers($node, 'renamed', 'consumer,maintenance', 'workers come back under the new name');

quick($node, 'postgres', 'DROP DATABASE renamed', 'DROP DATABASE');
is(connected($node, 'renamed'), 0, 'no workers in a dropped database');
$node->safe_psql('postgres', 'ALTER DATABASE one ALLOW_CONNECTIONS off');
ok(wait_for_sql($node, 'postgres',
	"SELECT count(*) FROM pg_stat_activity WHERE datname = 'one'", '0', 10),
	'they leave a database that allows no connections');
$node->safe_psql('postgres', 'ALTER DATABASE one ALLOW_CONNECTIONS on');
has_workers($node, 'one', 'consumer,maintenance', 'and come back');

# ---- DROP EXTENSION ----

my $before = $node->safe_psql('one', $pids);
quick($node, 'one', 'BEGIN; DROP EXTENSION evstream; ROLLBACK', 'DROP EXTENSION, rolled back,');
has_workers($node, 'one', 'consumer,maintenance', 'workers come back after the rollback');
isnt($node->safe_psql('one', $pids), $before, 'as new processes');

# By a transaction that stays open.
my $session = $node->background_psql('one');
$session->query_safe('BEGIN; DROP EXTENSION evstream');
sleep(1);
is(connected($node, 'one'), 0, 'no workers as long as the dropping transaction is open');
$session->query_safe('ROLLBACK');
has_workers($node, 'one', 'consumer,maintenance', 'workers come back when it has ended');
$session->quit;

quick($node, 'one', 'DROP EXTENSION evstream', 'DROP EXTENSION');
sleep(0.5);
is(connected($node, 'one'), 0, 'no workers without the extension');
$node->safe_psql('one', 'CREATE EXTENSION evstream SCHEMA evstream CASCADE')
  if $node->psql('one', 'CREATE SCHEMA evstream') == 0;
ok(wait_for_sql($node, 'one', $roles =~ s/evstream_workers/evstream.evstream_workers/r,
	'consumer,maintenance', 10), 'workers with the extension in a schema of its own');
quick($node, 'one', 'DROP SCHEMA evstream CASCADE', 'DROP SCHEMA CASCADE');
sleep(0.5);
is(connected($node, 'one'), 0, 'no workers without its schema');

# Who may not drop it must not be able to stop the workers.
$node->safe_psql('postgres', 'CREATE ROLE nobody LOGIN');
$before = $node->safe_psql('postgres', $pids);
for my $sql ('DROP EXTENSION evstream', 'DROP SCHEMA evstream CASCADE', 'DROP DATABASE one',
	'ALTER DATABASE postgres RENAME TO other', 'DROP OWNED BY nobody')
{
	$node->psql('postgres', "SET ROLE nobody; $sql");
}
$node->psql('postgres', 'SET ROLE nobody; CREATE DATABASE x TEMPLATE postgres');
is($node->safe_psql('postgres', $pids), $before, 'workers are not ended by those who may not');

# ---- Prepared transactions ----

$node->safe_psql('one', q{BEGIN; CREATE EXTENSION evstream; PREPARE TRANSACTION 'create'});
sleep(0.5);
is(connected($node, 'one'), 0, 'no workers after PREPARE TRANSACTION');
$node->safe_psql('one', q{COMMIT PREPARED 'create'});
has_workers($node, 'one', 'consumer,maintenance', 'workers after COMMIT PREPARED');

# ---- Ends that nobody has asked for ----

$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM evstream_workers');
ok(wait_for_sql($node, 'postgres',
	"SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND NOT pid = ANY ('{$before}')",
	'2', 10), 'workers that were terminated come back');
is($node->safe_psql('postgres', 'SELECT max(restarts) FROM evstream_workers'), 1, 'and are counted');

my $launcher = $node->safe_psql('postgres', 'SELECT launcher_pid FROM evstream.supervision()');
$before = $node->safe_psql('postgres', $pids);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
ok(wait_for_sql($node, 'postgres',
	"SELECT launcher_pid <> $launcher FROM evstream.supervision()", 't', 10),
	'the launcher comes back');
is($node->safe_psql('postgres', $pids), $before, 'and leaves the workers as they are');

my $victim = $node->safe_psql('postgres',
	q{SELECT pid FROM evstream_workers WHERE role = 'consumer'});
kill('KILL', $victim);
ok(wait_for_sql($node, 'postgres', "SELECT count(*) FROM evstream_workers WHERE pid = $victim", '0', 30),
	'the server recovers from the crash of a worker');
has_workers($node, 'postgres', 'consumer,maintenance', 'workers after the crash', 30);
has_workers($node, 'one', 'consumer,maintenance', 'also in the other database', 30);

# ---- Settings ----

$node->safe_psql('postgres', 'ALTER DATABASE one SET evstream.consumers = 3');
$node->safe_psql('postgres', q{ALTER DATABASE one SET evstream.kafka_brokers = '127.0.0.1:1'});
is($node->safe_psql('one', $roles), 'consumer,maintenance', 'a setting of the database waits');
$node->safe_psql('one', 'SELECT evstream_restart()');
has_workers($node, 'one', 'consumer,consumer,consumer,maintenance,relay', 'evstream_restart() applies it');
is($node->safe_psql('one', q{SELECT string_agg(worker_index::text, ',' ORDER BY worker_index)
	FROM evstream.workers() WHERE role = 'consumer'}), '0,1,2', 'each has its number');
$node->safe_psql('postgres', 'ALTER DATABASE one RESET ALL');
$node->safe_psql('one', 'SELECT evstream_restart()');
has_workers($node, 'one', 'consumer,maintenance', 'and takes it back');

# A restart waits until all of the old ones have ended; that is no failure.
$victim = $node->safe_psql('one', q{SELECT pid FROM evstream_workers WHERE role = 'maintenance'});
kill('STOP', $victim);
$node->safe_psql('one', 'SELECT evstream_restart()');
ok(wait_for_sql($node, 'one', q{SELECT count(pid) FROM evstream_workers WHERE role = 'consumer'}, '0', 10), 'the consumer has ended, and waits for the others');
my %said;
$said{ $node->safe_psql('one', q{SELECT evstream_health() #>> '{components,workers,status}'}) }++ foreach 1 .. 20;
is(join(' ', %said), 'degraded 20', 'which health does not take for a failure');
kill('CONT', $victim);
has_workers($node, 'one', 'consumer,maintenance', 'then they start');

$before = $node->safe_psql('one', $pids);
$node->append_conf('postgresql.conf', "evstream.batch_size = 500\n");
$node->reload;
ok(wait_for_sql($node, 'one',
	"SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND NOT pid = ANY ('{$before}')",
	'2', 10), 'a reload that changes a setting starts the workers again');
$before = $node->safe_psql('one', $pids);
$node->append_conf('postgresql.conf', "work_mem = 5MB\n");
$node->reload;
sleep(0.7);
is($node->safe_psql('one', $pids), $before, 'another reload does not');
my $rounds = 0;
for my $size (501 .. 510)
{
	$before = $node->safe_psql('one', $pids);
	$node->append_conf('postgresql.conf', "evstream.batch_size = $size\n");
	$node->reload;
	$rounds += wait_for_sql($node, 'one', "SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND NOT pid = ANY ('{$before}')", 2, 30) or last;
}
is($rounds, 10, 'one reload after the other: the workers are not held back, as if they left by themselves');

$node->append_conf('postgresql.conf', "evstream.enabled = off\n");
$node->reload;
ok(wait_for_sql($node, 'one', "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'evstream (con|mai)'", '0', 10),
	'enabled = off ends them all');
is($node->safe_psql('one', 'SELECT enabled, wanted_workers FROM evstream.supervision()'), 'f|0', 'as supervision says');

# Leaves of the stats are made as soon as nobody reads them, and a long report is not disturbed.
my $months = q{SELECT count(*) FROM pg_class WHERE relname ~ '^daily_counts_[0-9]{6}$'};
is($node->safe_psql('one', $months), 3, 'stats have leaves for three months');
$node->safe_psql('one', q{DO $$ DECLARE leaf regclass; BEGIN
	FOR leaf IN SELECT oid FROM pg_class WHERE relname ~ '^daily_counts_[0-9]{6}$' LOOP EXECUTE format('DROP TABLE %s', leaf); END LOOP;
END $$});
my $report = $node->background_psql('one', on_error_stop => 1);
$report->query_safe('BEGIN; SELECT count(*) FROM evstream_daily_counts');
my $quiet = -s $node->logfile;
$node->append_conf('postgresql.conf', "evstream.enabled = on\n");
$node->reload;
has_workers($node, 'one', 'consumer,maintenance', 'enabled = on starts them again');
ok(wait_for_sql($node, 'one', q{SELECT state FROM evstream_workers WHERE role = 'maintenance'}, 'idle', 10), 'maintenance is through');
is($node->safe_psql('one', q{SELECT count(*) FROM evstream_daily_counts}), 0, 'others read beside it');
is(log_lines($node, qr/ERROR/, $quiet), '', 'without an error');
is($node->safe_psql('one', $months), 0, 'under a report no leaf is made');
$report->query_safe('COMMIT');
$report->quit;
ok(wait_for_sql($node, 'one', $months, 3, 30), 'and then they are');

for my $case (
	[ 'evstream.retention', '30', qr/with a unit/ ],
	[ 'evstream.retention', '-1 day', qr/positive/ ],
	[ 'evstream.retention', '', qr/positive/ ],
	[ 'evstream.time_zone', 'Mars/Olympus', qr/no such time zone/ ],
	[ 'evstream.time_zone', '+02', qr/no such time zone.*Etc\/GMT-2/s ],
	[ 'evstream.time_zone', 'UTC+3', qr/no such time zone/ ],
	[ 'evstream.kafka_brokers', 'sasl.password=hunter2', qr/must not contain a user or a password/ ],
	[ 'evstream.kafka_start', 'soon', qr/earliest/ ],
	[ 'evstream.kafka_topic', 'a b', qr/letters/ ],
	[ 'evstream.kafka_read_topics', 'a,,b', qr/comma-separated/ ],
	[ 'evstream.kafka_brokers', 'sasl://me:hunter2@host:1', qr/must not contain a user or a password/ ],
	[ 'evstream.kafka_options', 'sasl.password=hunter2', qr/sasl\.password/ ],
	[ 'evstream.redis_url', 'redis://me:hunter2@host:1/0', qr/must not contain a user or a password/ ],
	[ 'evstream.redis_url', 'redis:me:hunter2', qr/begin with redis/ ],
	[ 'evstream.max_event_bytes', '65MB', qr/outside the valid range/ ],
	[ 'evstream.traceparent', 'x', qr/W3C trace context/ ])
{
	my ($name, $value, $expected) = @$case;
	my ($rc, $out, $err) = $node->psql('postgres', "SET log_min_error_statement = panic; SET $name = '$value'");
	like($err, $expected, "$name = '$value' is refused");
	unlike($err =~ s/^LINE.*//mr, qr/hunter2/, 'without repeating a secret');
}
is(log_lines($node, qr/hunter2/), '', 'no secret in the log');
for my $good ([ 'stats_retention', '' ], [ 'retention', 'P30D' ], [ 'kafka_start', '2026-11-20 12:00:00+01' ],
	[ 'kafka_start', '2026-11-20' ], [ 'redis_url', 'redis://[::1]:6379/1' ], [ 'redis_url', 'unix:///run/redis.sock' ],
	[ 'kafka_options', 'linger.ms=5' ], [ 'time_zone', 'Europe/Berlin' ], [ 'time_zone', 'Etc/GMT-2' ], [ 'time_zone', 'EST5EDT' ], [ 'max_event_bytes', '2MB' ],
	[ 'traceparent', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' ])
{
	my ($rc, $out, $err) = $node->psql('postgres', "SET evstream.$good->[0] = '$good->[1]'");
	is($err, '', "evstream.$good->[0] = '$good->[1]' is taken");
}

# ---- The secrets file ----

my $secrets = $node->data_dir . '/evstream.secrets';
my $offset = -s $node->logfile;
append_to_file($secrets, "# a comment\nsasl.username = me\nsasl.password = hunter2 = and more\n[one]\nredis_password=x y\n");
chmod(0644, $secrets);
$node->safe_psql('one', 'SELECT evstream_restart()');
ok(wait_for_sql($node, 'one', 'SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL', '2', 10)
	&& $node->wait_for_log(qr/WARNING:  secrets file "evstream.secrets" is refused/, $offset),
	'a secrets file that others may read is refused');
is(count_log($node, qr/WARNING:  secrets file/, $offset), 1, 'with one line');
chmod(0600, $secrets);
$before = $node->safe_psql('one', $pids);
$node->reload;
ok(wait_for_sql($node, 'one',
	"SELECT count(*) FROM evstream_workers WHERE pid IS NOT NULL AND NOT pid = ANY ('{$before}')",
	'2', 10), 'new secrets start the workers again');
is(count_log($node, qr/WARNING:  secrets file/, $offset), 1, 'nothing more to say');
is(log_lines($node, qr/hunter2|x y/, $offset), '', 'no secret in the log');

# ---- Idle ----

has_workers($node, 'postgres', 'consumer,maintenance', 'workers run before the rest');
sleep(2);
my @idle = split(/\n/, $node->safe_psql('postgres',
	q{SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'evstream%'}));
is(scalar(@idle), 5, 'a launcher and two workers for each of two databases');
my $cpu = sub {
	my $ticks = 0;
	for my $pid (@idle)
	{
		my @stat = split(/ /, slurp_file("/proc/$pid/stat") =~ s/^.*\) //sr);
		$ticks += $stat[11] + $stat[12];
	}
	return $ticks;
};
SKIP: {
	skip 'no /proc here', 2 unless -r "/proc/$$/stat";
	$offset = -s $node->logfile;
	my $begin = $cpu->();
	sleep(5);
	cmp_ok($cpu->() - $begin, '<=', 5, 'idle workers take less than 1 % of a core');
	is(-s $node->logfile, $offset, 'and log nothing');
}

# ---- Shutdown; too few worker processes; not preloaded ----

my $begin = time();
$node->stop('fast');
# the launcher would sleep for a minute
cmp_ok(time() - $begin, '<', 40, 'shutdown is fast');

$node->append_conf('postgresql.conf', "max_worker_processes = 4\n");
$offset = -s $node->logfile;
$node->start;
$node->wait_for_log(qr/WARNING:  evstream cannot start its workers: max_worker_processes \(4\) is too small/, $offset);
like(slurp_file($node->logfile, $offset), qr/HINT:  Set max_worker_processes to at least [67] /,
	'too few worker processes: the message says how many');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'evstream (con|mai)'}),
	2, 'as many as possible run');
ok(wait_for_sql($node, $_, 'SELECT no_free_slots OR running_workers = wanted_workers FROM evstream.supervision()', 't', 10),
	"supervision of $_ says so") for ('postgres', 'one');
sleep(1);
is(count_log($node, qr/max_worker_processes/, $offset), 1 * 2, 'one message, with one hint');
$node->stop('fast');

$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->start;
is($node->safe_psql('postgres', 'SELECT preloaded, known, wanted_workers FROM evstream.supervision()'),
	'f|f|0', 'not preloaded: the functions work');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_workers'), 0, 'and tell of no workers');
is($node->safe_psql('postgres', 'SELECT count(*) FROM evstream_lag'), 0, 'and no lag');
$node->safe_psql('postgres', 'SELECT evstream.restart_workers(), evstream.wake_workers()');
is($node->safe_psql('postgres', q{LOAD 'evstream'; SHOW evstream.consumers}), 1, 'the settings are there');
quick($node, 'one', 'DROP EXTENSION evstream', 'not preloaded: DROP EXTENSION');
$node->stop('fast');

done_testing();
