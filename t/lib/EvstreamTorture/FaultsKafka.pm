
=pod

=head1 NAME

EvstreamTorture::FaultsKafka - brokers, the way to them, and topics

=cut

package EvstreamTorture::FaultsKafka;

use strict;
use warnings;

use EvstreamTest;
use EvstreamTorture::Faults;
use Time::HiRes qw(sleep time);

my @kafka = (modes => ['kafka']);
my @mock = (modes => ['mock']);

# ---- The broker ----

fault broker_kill => (of => ['broker'], @kafka, code => sub { kafka_kill(); return sub { kafka_start(); }; });
fault broker_restart => (of => ['broker'], @kafka, code => sub { kafka_stop(); kafka_start(); return; });

# Longer than its own session time-out of two seconds; some longer than librdkafka waits.
fault broker_freeze => (
	of => ['broker'],
	@kafka,
	code => sub {
		my ($run, $dice) = @_;
		my $until = time() + ($dice->chance(0.2) ? 15 : $dice->between(3, 7));
		kafka_pause();
		return sub {
			sleep($until - time()) if time() < $until;
			kafka_continue();
		};
	});

# ---- The way to it ----

sub _link
{
	my ($run, @mode) = @_;
	my $proxy = $run->{world}{kafka_proxy};
	$proxy->mode(@mode);
	return sub { $proxy->mode('pass'); };
}

fault kafka_cut => (of => ['link'], @kafka, code => sub { return _link($_[0], 'cut', $_[1]->pick(500, 5000, 50000), $_[1]->pick(2000, 20000, 200000)); });
fault kafka_refuse => (of => ['link'], @kafka, code => sub { return _link($_[0], 'refuse'); });
fault kafka_delay => (of => ['link'], @kafka, code => sub { return _link($_[0], 'delay', $_[1]->between(5, 60)); });

# ---- Topics ----

fault partitions_added => (
	of => ['broker'],
	@kafka,
	code => sub {
		my ($run, $dice) = @_;
		$run->{partitions} += $dice->between(1, 2);
		alter_topic($run->{world}->topic, $run->{partitions});
		return;
	});

my @everything = (alone => 1, of => [qw(server worker broker link pause locks)]);

# Events of our own into the side topic, and all of its events are counted.
sub _produce
{
	my ($run, $count, $partitions) = @_;
	my $event = $run->{load}->filler('side', $count);
	produce($run->{world}->side_topic, [ map { [ undef, $event, $_ % $partitions ] } 1 .. $count ]);
	return;
}

sub _side_counted
{
	my ($run) = @_;
	my $count = $run->{load}{fillers}{side} // 0;
	$run->{world}->wait_sql(q{SELECT COALESCE(sum(event_count), 0) FROM evstream_daily_totals WHERE event_type = 'side'}, $count, 60);
	return;
}

# Deleted and made again, while the server is down, paused or running.
fault topic_made_again => (
	@kafka,
	@everything,
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my ($topic, $way) = ($world->side_topic, $dice->pick(qw(down paused running)));
		my $partitions = scalar(watermarks($topic));
		$run->note($way);
		_produce($run, $dice->between(10, 400), $partitions);
		_side_counted($run);
		# what follows takes for granted that the positions last
		$world->sql(q{INSERT INTO public.ledger VALUES ('sync', 0) ON CONFLICT DO NOTHING});
		$world->{node}->stop('fast') if $way eq 'down';
		$world->sql('SELECT evstream_pause()') if $way eq 'paused';
		delete_topic($topic);
		$world->wait_sql(q{SELECT evstream_health() #>> '{components,kafka,why}' ~ 'has no topic'}, 't', 60) if $way eq 'running';
		$partitions = $dice->between(1, 3);
		make_topic($topic, $partitions);
		_produce($run, $dice->between(10, 600), $partitions);
		if ($way eq 'paused')
		{
			$world->sql('SELECT evstream_restart()');
			$world->sql('SELECT evstream_resume()');
		}
		$world->up;
		_side_counted($run);
		return;
	});

# Records expire that were not consumed: those are lost, and no others.
fault records_expire => (
	@kafka,
	@everything,
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my $topic = $world->side_topic;
		_side_counted($run);
		# a consumer that is merely paused may have them already
		$world->{node}->stop('fast');
		my ($from) = map { $_->[2] } grep { $_->[0] == 0 } watermarks($topic);
		my $count = $dice->between(2, 300);
		my $lost = $dice->between(1, $count);
		_produce($run, $count, 1);
		trim_topic($topic, 0, $from + $lost);
		$run->{load}->filler('side', -$lost);
		$run->{expired} = 1;
		$world->up;
		_side_counted($run);
		return;
	});

# ---- The mock cluster ----

my %errors = (
	produce => [qw(NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE REQUEST_TIMED_OUT NOT_ENOUGH_REPLICAS _TRANSPORT)],
	fetch => [qw(NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE UNKNOWN_TOPIC_OR_PART REPLICA_NOT_AVAILABLE _TRANSPORT)],
	offsets => [qw(NOT_LEADER_FOR_PARTITION LEADER_NOT_AVAILABLE _TRANSPORT)],
	metadata => [qw(_TRANSPORT)],
	commit => [qw(NOT_COORDINATOR COORDINATOR_LOAD_IN_PROGRESS REQUEST_TIMED_OUT _TRANSPORT)],
	fetch_offsets => [qw(NOT_COORDINATOR COORDINATOR_LOAD_IN_PROGRESS _TRANSPORT)],
	coordinator => [qw(COORDINATOR_NOT_AVAILABLE _TRANSPORT)],
	init_pid => [qw(NOT_COORDINATOR _TRANSPORT)]);

fault mock_errors => (
	of => ['errors'],
	@mock,
	code => sub {
		my ($run, $dice) = @_;
		foreach my $request ($dice->shuffle(sort keys %errors))
		{
			my @errors = map { $dice->pick(@{ $errors{$request} }) } 1 .. $dice->between(1, 12);
			$run->{world}->mock('errors', $request, @errors) if $dice->chance(0.6);
		}
		return sub { $run->{world}->mock('clear'); };
	});

fault mock_leader => (
	of => ['broker'],
	@mock,
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my @moves = map { [ $_, $dice->between(1, 3), $dice->between(1, 3) ] } 0 .. $run->{partitions} - 1;
		my $leaderless = $dice->chance(0.4);
		$world->mock('leader', $world->topic, $_->[0], $leaderless ? 0 : $_->[1]) foreach @moves;
		$world->mock('coordinator', $world->group, $dice->between(1, 3));
		return sub { $world->mock('leader', $world->topic, $_->[0], $_->[2]) foreach @moves; };
	});

fault mock_down => (
	of => ['broker'],
	@mock,
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		my @down = grep { $dice->chance(0.6) } 1 .. 3;
		$world->mock('down', $_) foreach @down;
		return sub { $world->mock('up', $_) foreach @down; };
	});

fault mock_slow => (
	of => ['slow'],
	@mock,
	code => sub {
		my ($run, $dice) = @_;
		my $world = $run->{world};
		$world->mock('rtt', $_, $dice->between(0, 300)) foreach 1 .. 3;
		return sub { $world->mock('rtt', $_, 0) foreach 1 .. 3; };
	});

1;
