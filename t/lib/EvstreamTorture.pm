
=pod

=head1 NAME

EvstreamTorture - faults at random moments of a stream, and whether all is counted once

=head1 SYNOPSIS

  my @problems = torture(42);                       # the run of seed 42
  my @problems = torture(42, faults => ['kill_relay', 'redis_flush']);
  print $EvstreamTorture::summary;

The seed draws what runs (Kafka, a mock of it, or neither; Redis or not; partitions,
consumers, batches), the streams of events, the faults, and the moments at which they happen:
shares of the streams that are let go, and of them that are counted. How long a fault
lasts is drawn as well, in seconds. EvstreamTorture::Faults* have the faults.

=cut

package EvstreamTorture;

use strict;
use warnings;

use EvstreamTest;
use EvstreamTorture::Dice;
use EvstreamTorture::Faults;
use EvstreamTorture::FaultsData;
use EvstreamTorture::FaultsKafka;
use EvstreamTorture::FaultsOperate;
use EvstreamTorture::FaultsRedis;
use EvstreamTorture::FaultsServer;
use EvstreamTorture::Load;
use EvstreamTorture::Verify;
use EvstreamTorture::World;
use Exporter qw(import);
use Time::HiRes qw(sleep time);

our @EXPORT = qw(torture);
our $summary;

my $subscribers = 40;
my $serial = 0;

# ---- What a run is ----

# modes: what there is of kafka, mock, embedded; redis: whether there is; faults: names, of
# which to choose; small: for a short test.
sub _plan
{
	my ($seed, %opts) = @_;
	my $dice = EvstreamTorture::Dice->new($seed);
	my $run = bless {
		seed => $seed,
		mode => $dice->pick(@{ $opts{modes} // [qw(kafka kafka mock embedded)] }),
		redis => ($dice->chance(0.75) && ($opts{redis} // 1)) ? 1 : 0,
		disk => ($dice->chance(0.3) || $opts{faults}) && $ENV{EVSTREAM_TORTURE_DISK} ? 1 : 0,
		clock => ($dice->chance(0.25) || $opts{faults}) && EvstreamTorture::World::has_clock() ? 1 : 0,
		partitions => $dice->between(1, 4),
		consumers => $dice->between(1, 3),
		batch_size => $dice->pick(20, 100, 500, 10000),
		events => $opts{small} ? 2000 : $dice->between(3000, 9000),
		rate => $dice->pick(800, 1500, 3000),
		flushed => [], at_end => [], handles => [], signals => {}, memory => {}, frozen => {},
		faults_done => 0,
		sought => 0,
	}, 'EvstreamTorture';
	my @names = possible_faults($run);
	if ($opts{faults})
	{
		my %wanted = map { $_ => 1 } @{ $opts{faults} };
		@names = grep { $wanted{$_} } @names;
	}
	my $count = $opts{small} ? 2 : $dice->between(3, 6);
	my @shares = sort { $a <=> $b } map { 0.1 + 0.8 * $dice->share } 1 .. $count;
	foreach my $share (@shares)
	{
		my @faults = choose_faults($dice, @names) or next;
		push @{ $run->{moments} }, { share => $share, seen => 0.9 * $dice->share, hold => 0.3 + 2.5 * $dice->share, faults => \@faults };
	}
	return $run;
}

sub _describe
{
	my ($run) = @_;
	return "$run->{mode}, " . ($run->{redis} ? 'Redis, ' : '') . ($run->{disk} ? 'small disk, ' : '') . ($run->{clock} ? 'clock, ' : '')
	  . "$run->{partitions} partitions, $run->{consumers} consumers, batches of $run->{batch_size}, $run->{events} events:"
	  . join('', map { sprintf(' %d%% %s;', 100 * $_->{share}, join(' + ', @{ $_->{faults} })) } @{ $run->{moments} });
}

# ---- For the faults ----

sub subscribers { return map { "r$_" } 1 .. $subscribers; }
sub stream_key { my ($run, $subscriber) = @_; return "$run->{name}:stream:$subscriber"; }

sub note
{
	my ($run, $text) = @_;
	Test::More::note(sprintf('%6.1f s  %s', time() - $run->{began}, $text));
	return;
}

# ---- The run ----

sub _start
{
	my ($run) = @_;
	$run->{name} = sprintf('t%s_%d', $run->{seed}, ++$serial);
	$run->{dir} = "$PostgreSQL::Test::Utils::tmp_check/$run->{name}";
	mkdir($run->{dir});
	$run->{began} = time();
	my $world = $run->{world} = EvstreamTorture::World->new($run);
	my $load = $run->{load} = EvstreamTorture::Load->new($run->{dir});
	my $dice = EvstreamTorture::Dice->new("$run->{seed}/load");
	if ($run->{redis})
	{
		$world->sql(q{SELECT setseed(0.42); SELECT count(evstream_subscribe('r' || i,
			CASE WHEN random() < 0.7 THEN ARRAY[(ARRAY['view', 'click', 'purchase', 'login'])[1 + floor(random() * 4)::int]] END,
			CASE WHEN random() < 0.3 THEN ARRAY['premium'] END,
			CASE WHEN random() < 0.2 THEN 50 END,
			CASE WHEN i % 10 > 0 THEN ARRAY['u-' || i, 'u-' || i * 2, 'u-' || 1 + i % 5] END)) FROM generate_series(1, } . "$subscribers) i");
	}
	my $rate = $run->{rate};
	if ($run->{mode} eq 'embedded')
	{
		$load->tracker("tracker$_", $dice->below(1_000_000), int($run->{events} / 2), $world->connstr, $rate / 2) foreach 1, 2;
	}
	else
	{
		$load->producer('producer', $dice->below(1_000_000), int($run->{events} * 0.6), '--brokers', $world->direct, '--topic', $world->topic, '--rate', $rate * 0.6);
		$load->tracker('tracker', $dice->below(1_000_000), int($run->{events} * 0.4), $world->connstr, $rate * 0.4);
	}
	return;
}

sub _go
{
	my ($run) = @_;
	my ($world, $load) = @{$run}{qw(world load)};
	my $no = 0;
	my @moments = @{ $run->{moments} // [] };
	foreach my $moment (@moments)
	{
		$no++;
		$load->allow($moment->{share});
		my $before = $no > 1 ? $moments[ $no - 2 ]{share} : 0;
		my $wanted = int($load->{events} * 0.85 * ($before + $moment->{seen} * ($moment->{share} - $before)));
		$run->note("until $wanted are counted");
		$world->wait_sql("SELECT COALESCE(sum(event_count), 0) >= $wanted FROM evstream_daily_totals", 't', 90);
		sample_memory($run);
		# what comes during the fault
		$load->allow($no < @moments ? $moments[$no]{share} : 1);
		my @ends;
		foreach my $name (@{ $moment->{faults} })
		{
			$run->note("begin $name");
			$run->{faults_done}++;
			$run->{sought} = 1 if $name eq 'seek_back';
			my $end = begin_fault($run, $name, EvstreamTorture::Dice->new("$run->{seed}/$no/$name"));
			push @ends, [ $name, $end ] if $end;
		}
		sleep($moment->{hold}) if @ends;
		foreach my $end (reverse @ends)
		{
			$run->note("end $end->[0]");
			$end->[1]->();
		}
	}
	$run->note('no more faults');
	$_->() foreach @{ $run->{at_end} };
	$load->finish(120);
	$run->note('all is sent');
	wait_until_done($run);
	$run->note('and done');
	return;
}

# The run of a seed; gives what is wrong.
sub torture
{
	my ($seed, %opts) = @_;
	my $run = _plan($seed, %opts);
	my @problems;
	my $description = _describe($run);
	Test::More::note("seed $seed: $description");
	eval { _start($run); _go($run); @problems = verify($run); };
	push @problems, $@ if $@;
	kill('CONT', $_) foreach keys %{ $run->{frozen} };
	$run->{load}->stop if $run->{load};
	eval { $_->kill_kill } foreach @{ $run->{handles} };
	eval { $run->{world}->discard(scalar(@problems)) } if $run->{world};
	push @problems, $@ if $@;
	$summary = sprintf('seed %s: %s %.0f s%s%s', $seed, $description, time() - $run->{began},
		join('', map { sprintf(', %s %.0f MB', $_, $run->{memory}{$_}) } sort keys %{ $run->{memory} }),
		defined $run->{entries} ? ", $run->{entries} entries in streams" : '');
	if (@problems)
	{
		push @problems, 'files are in ' . $run->{dir} . ($run->{world} && $run->{world}{node} ? ' and ' . $run->{world}{node}->basedir : '');
	}
	else
	{
		File::Path::remove_tree($run->{dir});
	}
	my %same = %{ $run->{log_lines} // {} };
	Test::More::note("log: $same{$_} $_") foreach grep { $same{$_} > 1 || /ERROR|WARN|FATAL/ } sort keys %same;
	return @problems;
}

1;
