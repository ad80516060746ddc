
=pod

=head1 NAME

EvstreamTorture::Faults - the faults by name, and which of them fit a run

=head1 SYNOPSIS

  fault broker_kill => (
      of => ['broker'],                  # what it takes hold of: one fault at a time for each
      modes => ['kafka'],                # where it is possible: kafka, mock, embedded
      redis => 1,                        # and with Redis
      disk => 1,                         # and on a small file system
      clock => 1,                        # and with a clock that can be moved
      alone => 1,                        # not together with others
      down => 2,                         # until its end the server takes no connections (1),
                                         # or is down (2)
      code => sub {
          my ($run, $dice) = @_;
          kafka_kill();
          return sub { kafka_start() };  # its end; nothing: it is over at once
      });
  my @names = possible_faults($run);
  begin_fault($run, $name, $dice);

=cut

package EvstreamTorture::Faults;

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);

our @EXPORT = qw(fault possible_faults begin_fault choose_faults fault_names);

my %faults;

sub fault
{
	my ($name, %about) = @_;
	croak "fault $name twice" if $faults{$name};
	$faults{$name} = { of => [], modes => [qw(kafka mock embedded)], %about };
	return;
}

sub fault_names { return sort keys %faults; }

sub possible_faults
{
	my ($run) = @_;
	my @names;
	foreach my $name (sort keys %faults)
	{
		my $fault = $faults{$name};
		next if !grep { $_ eq $run->{mode} } @{ $fault->{modes} };
		next if grep { $fault->{$_} && !$run->{$_} } qw(redis disk clock);
		push @names, $name;
	}
	return @names;
}

# In the order in which they can begin: that which takes the server away comes last, and
# is to end first.
sub _in_order
{
	my (@names) = @_;
	return sort { ($faults{$a}{down} // 0) <=> ($faults{$b}{down} // 0) } @names;
}

# One, sometimes two or three that can happen at the same time.
sub choose_faults
{
	my ($dice, @names) = @_;
	my $count = $dice->pick(1, 1, 1, 2, 2, 3);
	my (@chosen, %taken);
	foreach my $name ($dice->shuffle(@names))
	{
		my $fault = $faults{$name};
		next if grep { $taken{$_} } @{ $fault->{of} };
		next if @chosen && $fault->{alone};
		push @chosen, $name;
		$taken{$_} = 1 foreach @{ $fault->{of} };
		last if $fault->{alone} || @chosen == $count;
	}
	return _in_order(@chosen);
}

# Gives the sub that ends it, or nothing.
sub begin_fault
{
	my ($run, $name, $dice) = @_;
	my $end = $faults{$name}{code}->($run, $dice);
	return ref $end eq 'CODE' ? $end : undef;
}

1;
