
=pod

=head1 NAME

EvstreamTorture::FaultsServer - workers and servers that end, stop, or are moved

=cut

package EvstreamTorture::FaultsServer;

use strict;
use warnings;

use EvstreamTest;
use EvstreamTorture::Faults;
use EvstreamTorture::World;
use Exporter qw(import);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(background hold);

my @with_kafka = (modes => [qw(kafka mock)]);

# ---- Workers ----

sub _kill
{
	my ($run, $dice, $role) = @_;
	my @pids = $run->{world}->workers($role);
	kill('KILL', $dice->pick(@pids)) if @pids;
	$run->{signals}{9} = 1;
	return;
}

fault kill_consumer => (of => ['server'], code => sub { return _kill(@_, 'consumer'); });
fault kill_relay => (of => ['server'], @with_kafka, code => sub { return _kill(@_, 'relay'); });
fault kill_notifier => (of => ['server'], redis => 1, code => sub { return _kill(@_, 'notifier'); });
fault kill_maintenance => (of => ['server'], code => sub { return _kill(@_, 'maintenance'); });
fault kill_launcher => (of => ['server'], code => sub { return _kill(@_, 'launcher'); });

fault terminate_workers => (
	of => ['worker'],
	code => sub {
		my ($run, $dice) = @_;
		my $role = $dice->pick(qw(consumer relay notifier maintenance));
		$run->{world}->sql("SELECT count(pg_terminate_backend(pid)) FROM evstream_workers WHERE role = '$role' AND pid IS NOT NULL");
		return;
	});

# Killed with its transaction open: when it waits for a lock in it. What it has sent to
# Kafka or Redis by then is sent, and the database does not know.
sub _kill_in_transaction
{
	my ($run, $role, $table) = @_;
	my $world = $run->{world};
	my $lock = hold($run, "LOCK TABLE $table IN SHARE MODE", 5);
	my $end = time() + 4;
	my $waiting = qq{SELECT pid FROM pg_stat_activity WHERE backend_type = 'evstream $role' AND wait_event_type = 'Lock' LIMIT 1};
	while (time() < $end)
	{
		my $pid = $world->try_sql($waiting);
		if ($pid)
		{
			kill('KILL', $pid);
			$run->{signals}{9} = 1;
			$run->note("$role in transaction");
			last;
		}
		sleep(0.01);
	}
	return $lock;
}

fault kill_consumer_in_transaction => (of => [qw(server locks)], code => sub { return _kill_in_transaction($_[0], 'consumer', 'evstream.daily_totals'); });
fault kill_relay_in_transaction => (of => [qw(server locks)], @with_kafka, code => sub { return _kill_in_transaction($_[0], 'relay', 'evstream.relay_log'); });
fault kill_notifier_in_transaction => (of => [qw(server locks)], redis => 1, code => sub { return _kill_in_transaction($_[0], 'notifier', 'evstream.notifier_cursors'); });

sub _set_consumers
{
	my ($run, $count) = @_;
	$run->{world}->sql("ALTER SYSTEM SET evstream.consumers = $count");
	$run->{world}->sql('SELECT pg_reload_conf()');
	$run->{consumers} = $count;
	return;
}

fault change_consumers => (
	of => ['worker'],
	code => sub {
		my ($run, $dice) = @_;
		return _set_consumers($run, $dice->between(1, 4));
	});

# One sleeps while its partitions are to move, and wakes up afterwards.
fault zombie => (
	of => [qw(worker server)],
	code => sub {
		my ($run, $dice) = @_;
		my $pid = $dice->pick($run->{world}->workers('consumer')) or return;
		$run->{frozen}{$pid} = 1;
		kill('STOP', $pid);
		_set_consumers($run, $dice->between(1, 4));
		return sub { kill('CONT', $pid); delete $run->{frozen}{$pid}; };
	});

fault restart_workers => (of => ['worker'], code => sub { $_[0]{world}->sql('SELECT evstream_restart()'); return; });

fault pause => (
	of => [qw(worker pause)],
	code => sub {
		my ($run) = @_;
		$run->{world}->sql('SELECT evstream_pause()');
		return sub { $run->{world}->sql('SELECT evstream_resume()'); };
	});

fault disable => (
	of => ['worker'],
	code => sub {
		my ($run) = @_;
		$run->{world}->sql($_) foreach 'ALTER SYSTEM SET evstream.enabled = off', 'SELECT pg_reload_conf()';
		return sub { $run->{world}->sql($_) foreach 'ALTER SYSTEM RESET evstream.enabled', 'SELECT pg_reload_conf()'; };
	});

# What was consumed is read again and passed over.
fault seek_back => (
	of => ['worker'],
	modes => ['kafka'],
	code => sub {
		my ($run, $dice) = @_;
		my $topic = $run->{world}->topic;
		my $no = $run->{world}->sql($dice->chance(0.5)
			? q{SELECT evstream_seek('2026-10-01'::timestamptz)}
			: "SELECT evstream_seek(0, 0, '$topic')");
		return;
	});

# ---- The server ----

fault stop_immediate => (
	of => ['server'],
	down => 2,
	code => sub {
		my ($run, $dice) = @_;
		$run->{world}->try_sql('CHECKPOINT') if $dice->chance(0.3);
		$run->{world}{node}->stop('immediate', fail_ok => 1);
		return sub { $run->{world}->up; };
	});

fault restart_server => (
	of => ['server'],
	code => sub {
		my ($run) = @_;
		$run->{world}{node}->stop('fast', fail_ok => 1);
		$run->{world}->up;
		return;
	});

# Its children have to notice it.
fault kill_postmaster => (
	of => ['server'],
	code => sub {
		my ($run) = @_;
		my $node = $run->{world}{node};
		my @children = split(/\n/, $run->{world}->sql('SELECT pid FROM pg_stat_activity'));
		$node->kill9;
		my $end = time() + 20;
		sleep(0.05) while (grep { kill(0, $_) } @children) && time() < $end;
		my @left = grep { kill(0, $_) } @children;
		die "processes that outlive the postmaster: @left\n" if @left;
		$run->{world}->up;
		return;
	});

# As if the server had crashed between a commit to Kafka and that to the database, or the
# other way around: the group's offsets are before or behind the database's positions.
sub _move_mirror
{
	my ($run, $by) = @_;
	my $world = $run->{world};
	$world->{node}->stop('immediate', fail_ok => 1);
	foreach my $row (group_offsets($world->group))
	{
		my ($topic, $partition, $offset, $metadata) = @$row;
		my $to = $offset + $by;
		commit_offset($world->group, $topic, $partition, $to < 0 ? 0 : $to, $metadata);
	}
	$world->up;
	return;
}

fault mirror_ahead => (of => [qw(server broker)], modes => ['kafka'], code => sub { return _move_mirror($_[0], $_[1]->between(1, 500)); });
fault mirror_behind => (of => [qw(server broker)], modes => ['kafka'], code => sub { return _move_mirror($_[0], -$_[1]->between(1, 500)); });

# Another server, with settings that name the same group and prefix.
fault second_server => (
	alone => 1,
	of => [qw(server worker broker redis link pause)],
	modes => [qw(kafka embedded)],
	redis => 1,
	code => sub {
		my ($run) = @_;
		my $world = $run->{world};
		my $kafka = $run->{mode} eq 'kafka';
		my $deadline = time() + 30;
		# before the first one has put its mark, there is nothing to meet
		sleep(0.1) while $kafka && !(grep { $_->[3] =~ /^evstream/ } group_offsets($world->group)) && time() < $deadline;
		$world->wait_sql('SELECT count(*) > 0 FROM evstream.notifier_cursors', 't', 30);
		my $node = EvstreamTorture::World::make_node($run->{name} . '_second' . ++$run->{seconds}, 'other',
			'evstream.kafka_brokers' => $world->{kafka}, 'evstream.kafka_topic' => $world->topic,
			'evstream.kafka_group' => $world->group, 'evstream.redis_url' => $world->{redis},
			'evstream.redis_prefix' => "$world->{name}:");
		$node->start;
		$node->safe_psql('postgres', q{CREATE EXTENSION evstream; SELECT evstream_subscribe('r1')});
		foreach my $part ($kafka ? 'kafka' : (), 'redis')
		{
			wait_for_sql($node, 'postgres', qq{SELECT evstream_health() #>> '{components,$part,why}' ~ 'belongs to another database'}, 't', 30)
			  or die "the second server does not say that $part belongs to another\n";
		}
		my $counted = $node->safe_psql('postgres', 'SELECT count(*) FROM evstream.events');
		$node->stop('fast');
		die "the second server has counted $counted events\n" if $counted;
		$node->clean_node;
		return;
	});

# ---- Helpers of other faults, too ----

# Runs statements in the background; gives a sub that waits for their end.
sub background
{
	my ($run, $script) = @_;
	my $file = "$run->{dir}/background" . ++$run->{backgrounds};
	append_to_file("$file.sql", $script);
	my $handle = IPC::Run::start([ 'psql', '-XAtq', '-d', $run->{world}->connstr, '-f', "$file.sql" ],
		'<', '/dev/null', '>', "$file.out", '2>', "$file.out");
	push @{ $run->{handles} }, $handle;
	return sub { $handle->finish; };
}

# The same in a transaction that is then held open for so many seconds.
sub hold
{
	my ($run, $statements, $seconds) = @_;
	return background($run, "BEGIN;\n$statements;\n\\! sleep $seconds\nCOMMIT;\n");
}

1;
