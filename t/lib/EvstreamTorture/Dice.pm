
=pod

=head1 NAME

EvstreamTorture::Dice - random numbers that a seed repeats, whatever else draws any

=head1 SYNOPSIS

  my $dice = EvstreamTorture::Dice->new(42);
  my $other = $dice->child('load');        # is not changed by what is drawn from $dice
  $dice->below(6);                         # 0 to 5
  $dice->between(1, 6);
  $dice->share;                            # 0 to 1
  $dice->chance(0.3);                      # true in three of ten cases
  $dice->pick(@list);
  $dice->shuffle(@list);

=cut

package EvstreamTorture::Dice;

use strict;
use warnings;

use Digest::MD5 qw(md5);

sub new
{
	my ($class, $seed) = @_;
	return bless { seed => $seed, drawn => 0 }, $class;
}

sub child
{
	my ($self, $name) = @_;
	return __PACKAGE__->new("$self->{seed}/$name");
}

sub share
{
	my ($self) = @_;
	return unpack('N', md5("$self->{seed}:" . $self->{drawn}++)) / 2**32;
}

sub below { my ($self, $n) = @_; return int($self->share * $n); }
sub between { my ($self, $from, $to) = @_; return $from + $self->below($to - $from + 1); }
sub chance { my ($self, $share) = @_; return $self->share < $share; }
sub pick { my ($self, @list) = @_; return $list[ $self->below(scalar @list) ]; }

sub shuffle
{
	my ($self, @list) = @_;
	for (my $i = $#list; $i > 0; $i--)
	{
		my $k = $self->below($i + 1);
		@list[ $i, $k ] = @list[ $k, $i ];
	}
	return @list;
}

1;
