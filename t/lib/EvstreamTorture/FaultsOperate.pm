
=pod

=head1 NAME

EvstreamTorture::FaultsOperate - what people do to a server in the middle of the stream

=cut

package EvstreamTorture::FaultsOperate;

use strict;
use warnings;

use EvstreamTorture::Faults;
use EvstreamTorture::FaultsServer;

# Of somebody who had other work in mind. Our own sessions, and those that track, are
# spared of what would end them.
$ENV{PGOPTIONS} = join(' ', map { "-c $_" } 'statement_timeout=0', 'lock_timeout=0', 'idle_in_transaction_session_timeout=0', 'idle_session_timeout=0', 'synchronous_commit=on',
	'default_transaction_read_only=off', 'default_transaction_isolation=read\\ committed', 'search_path=public', 'row_security=on');

my @settings = (
	[ statement_timeout => '1ms' ],
	[ lock_timeout => '1ms' ],
	[ idle_in_transaction_session_timeout => '1ms' ],
	[ idle_session_timeout => '1ms' ],
	[ default_transaction_read_only => 'on' ],
	[ default_transaction_isolation => 'serializable' ],
	[ default_transaction_isolation => 'repeatable read' ],
	[ default_transaction_deferrable => 'on' ],
	[ session_replication_role => 'replica' ],
	[ row_security => 'off' ],
	[ search_path => 'nowhere' ],
	[ TimeZone => 'Asia/Kathmandu' ],
	[ DateStyle => 'SQL, DMY' ],
	[ IntervalStyle => 'sql_standard' ],
	[ extra_float_digits => '-15' ],
	[ bytea_output => 'escape' ],
	[ standard_conforming_strings => 'off' ],
	[ array_nulls => 'off' ],
	[ transform_null_equals => 'on' ],
	[ quote_all_identifiers => 'on' ],
	[ default_table_access_method => 'nothing' ],
	[ default_tablespace => 'nowhere' ],
	[ default_toast_compression => 'pglz' ],
	[ work_mem => '64kB' ],
	[ maintenance_work_mem => '1MB' ],
	[ temp_file_limit => '0' ],
	[ jit_above_cost => '0' ],
	[ plan_cache_mode => 'force_custom_plan' ],
	[ plan_cache_mode => 'force_generic_plan' ],
	[ enable_indexscan => 'off' ],
	[ enable_hashjoin => 'off' ],
	[ enable_hashagg => 'off' ],
	[ enable_seqscan => 'off' ],
	[ enable_partition_pruning => 'off' ],
	[ log_statement => 'all' ],
	[ log_min_messages => 'debug2' ],
	[ synchronous_commit => 'off' ],
	[ client_min_messages => 'error' ]);

fault settings_changed => (
	of => ['settings'],
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my %chosen = map { @{ $dice->pick(@settings) } } 1 .. $dice->between(1, 6);
		$run->note(join(', ', map { "$_ = $chosen{$_}" } sort keys %chosen));
		# a value that the server refuses is not set
		$world->sql('SELECT 1');
		$world->try_sql("ALTER SYSTEM SET $_ = '$chosen{$_}'") foreach sort keys %chosen;
		$world->sql('SELECT pg_reload_conf()');
		return sub {
			$world->sql("ALTER SYSTEM RESET $_") foreach sort keys %chosen;
			$world->sql('SELECT pg_reload_conf()');
		};
	});

# Stats are computed anew from what is stored, while more comes.
fault stats_rebuilt => (
	of => ['rebuild'],
	code => sub {
		my ($run) = @_;
		return background($run, q{SELECT evstream_rebuild('2026-09-01', '2026-10-31');});
	});

# Those that are bad stay so.
fault dead_letters_retried => (
	of => ['retry'],
	code => sub {
		my ($run) = @_;
		return background($run, q{SELECT count(evstream_dead_letter_retry(id)) FROM (SELECT id FROM evstream_dead_letters ORDER BY id LIMIT 20) d;});
	});

# Forward and back, by seconds, hours or days.
fault clock_step => (
	# a backend that sleeps or waits for a lock would do so for as long as the step
	of => [qw(clock locks)],
	clock => 1,
	code => sub {
		my ($run, $dice) = @_;
		my $seconds = $dice->pick(-1, 1) * int(10**(6 * $dice->share));
		$run->note("$seconds s");
		$run->{world}->set_clock($seconds);
		return;
	});

# Without Kafka for a while: what is tracked is counted all the same, and once.
fault log_switched => (
	of => [qw(worker settings)],
	modes => [qw(kafka mock)],
	code => sub {
		my ($run) = @_;
		my $world = $run->{world};
		$world->sql($_) foreach q{ALTER SYSTEM SET evstream.kafka_brokers = ''}, 'SELECT pg_reload_conf()';
		return sub { $world->sql($_) foreach 'ALTER SYSTEM RESET evstream.kafka_brokers', 'SELECT pg_reload_conf()'; };
	});

1;
