# Faults of every kind at random moments of a stream, by seed: make torture. Here a few seeds.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use EvstreamTest;
use EvstreamTorture;
use EvstreamTorture::Faults;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# SEED, RUNS, FAULTS and MODES of make torture.
my $seed = $ENV{EVSTREAM_TORTURE_SEED};
my @faults = split(/[\s,]+/, $ENV{EVSTREAM_TORTURE_FAULTS} // '');
my %known = map { $_ => 1 } fault_names();
my @unknown = grep { !$known{$_} } @faults;
BAIL_OUT("no such fault: @unknown; there are: " . join(' ', fault_names())) if @unknown;
my %opts;
$opts{faults} = \@faults if @faults;
$opts{modes} = [ split(/[\s,]+/, $ENV{EVSTREAM_TORTURE_MODES}) ] if $ENV{EVSTREAM_TORTURE_MODES};

sub run_of
{
	my ($n, %more) = @_;
	my @problems = torture($n, %opts, %more);
	ok(!@problems, $EvstreamTorture::summary) or diag(join("\n", @problems));
	return;
}

if ($seed)
{
	run_of($_) foreach $seed .. $seed + ($ENV{EVSTREAM_TORTURE_RUNS} || 1) - 1;
}
else
{
	run_of(5, small => 1, modes => ['mock'],
		faults => [qw(kill_relay_in_transaction kill_consumer mock_errors mock_leader stop_immediate connections_taken)]);
	run_of(7, small => 1, modes => ['embedded'],
		faults => [qw(kill_notifier_in_transaction redis_flush redis_cut deadlocks zombie stats_rebuilt clock_step)]);
	run_of(7, small => 1, modes => ['kafka'],
		faults => [qw(kill_consumer_in_transaction kafka_cut mirror_ahead change_consumers partitions_added seek_back redis_kill)]);
}
done_testing();
