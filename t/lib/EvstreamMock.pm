# A Kafka cluster that misbehaves when told to: bench/kmock as a process of its own.

package EvstreamMock;

use strict;
use warnings;

use Cwd qw(abs_path);
use EvstreamTest;
use File::Basename qw(dirname);
use IO::Handle;
use IPC::Run ();

my $kmock = abs_path(dirname(__FILE__) . '/../..') . '/bench/kmock';
my @running;

# Brokers, and the file of what it has to complain of. It ends with the test.
sub new
{
	my ($class, $brokers, $log) = @_;
	my $self = bless { in => IO::Handle->new, out => IO::Handle->new }, $class;
	push @running, $self->{handle} = IPC::Run::start([ $kmock, $brokers ], '<pipe', $self->{in}, '>pipe', $self->{out}, '2>', $log);
	$self->{in}->autoflush(1);
	my $out = $self->{out};
	my $address = <$out> // die "kmock did not start, see $log\n";
	chomp($address);
	$self->{address} = kafka_use($address);
	return $self;
}

sub address { return $_[0]{address}; }

# One of its commands: kmock without arguments lists them.
sub tell
{
	my ($self, @words) = @_;
	my ($in, $out) = @{$self}{qw(in out)};
	print $in "@words\n";
	my $answer = <$out> // 'it is gone';
	die "kmock @words: $answer" if $answer ne "ok\n";
	return;
}

sub end
{
	my ($self) = @_;
	@running = grep { $_ != $self->{handle} } @running;
	$self->{handle}->kill_kill;
	return;
}

END
{
	my $status = $?;
	$_->kill_kill foreach @running;
	$? = $status;
}

1;
