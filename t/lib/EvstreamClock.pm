
=pod

=head1 NAME

EvstreamClock - servers whose time of day a test sets

=head1 SYNOPSIS

  use EvstreamTest;
  use EvstreamClock;

  need_clock();                            # skips the file where it is not built, fails under CI
  my $node = new_node('main', start => 0);
  clock_start($node);
  clock_set(-3 * 86400);                   # from now on three days behind ours, for all its processes

Only the time of day: clocks that measure go on as they are. All servers that are started
so have this one clock (bench/clockstep.c).

=cut

package EvstreamClock;

use strict;
use warnings;

use Cwd qw(abs_path);
use EvstreamTest;
use Exporter qw(import);
use Fcntl;
use File::Basename qw(dirname);
use Test::More ();
use Time::HiRes qw(time);

our @EXPORT = qw(need_clock clock_start clock_set clock_set_to DAY);

use constant DAY => 86400;

my $repo = abs_path(dirname(__FILE__) . '/../..');
my $library;
my $file;

sub need_clock
{
	$library = "$repo/bench/clockstep.so";
	if (!-e $library)
	{
		Test::More::BAIL_OUT("$library is not built") if $ENV{CI};
		Test::More::plan(skip_all => "$library is not built");
	}
	$file = abs_path(scratch_dir()) . '/clock';
	clock_set(0);
	return;
}

# Starts a server, or starts it again, with this clock.
sub clock_start
{
	my ($node) = @_;
	local $ENV{LD_PRELOAD} = join(':', grep { defined } $ENV{LD_PRELOAD}, $library);
	local $ENV{CLOCKSTEP} = $file;
	$node->start;
	return;
}

# So many seconds ahead of our clock, or (negative) behind it, at once.
sub clock_set
{
	my ($seconds) = @_;
	sysopen(my $out, $file, O_WRONLY | O_CREAT) or die "$file: $!";
	syswrite($out, pack('q', $seconds * 1_000_000)) == 8 or die "$file: $!";
	close($out);
	return;
}

# It is so many seconds since 1970 now.
sub clock_set_to
{
	my ($at) = @_;
	return clock_set($at - time());
}

1;
