
=pod

=head1 NAME

EvstreamRedis - a connection to the test's Redis, for messages and bytes

=head1 SYNOPSIS

  use EvstreamTest;
  use EvstreamRedis;

  my $node = new_node('main', 'evstream.redis_url' => redis_start(), extension => 1);
  my $listener = redis_connect();
  is_deeply($listener->command('XRANGE', 'evstream:stream:u', '-', '+'), []);
  $listener->command('SUBSCRIBE', 'evstream:notify:u');
  my $message = $listener->read(10);           # undef: none within ten seconds

=cut

package EvstreamRedis;

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use EvstreamTest qw(redis_port);
use IO::Select;
use IO::Socket::INET;
use Time::HiRes qw(time);

our @EXPORT = qw(redis_connect);

sub redis_connect
{
	my $address = '127.0.0.1:' . redis_port();
	my $socket = IO::Socket::INET->new(PeerAddr => $address, Timeout => 10)
	  or croak "cannot connect to Redis at $address: $!";
	binmode($socket);
	return bless { socket => $socket, data => '' }, 'EvstreamRedis';
}

# Bytes in, bytes out: a value, undef, or a reference to an array of them. Dies on an
# error.
sub command
{
	my ($self, @args) = @_;
	foreach (@args) { utf8::encode($_) if utf8::is_utf8($_); }
	my $text = join('', '*' . @args . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @args);
	while (length $text)
	{
		my $n = syswrite($self->{socket}, $text) // croak "write to Redis: $!";
		substr($text, 0, $n, '');
	}
	my $reply = $self->read(60);
	croak 'no answer from Redis' unless $reply;
	croak "Redis: ${$reply->[0]}" if ref $reply->[0] eq 'SCALAR';
	return $reply->[0];
}

# The next reply or message, in an array of one (its value may be undef); undef where
# there is none within the time (seconds).
sub read
{
	my ($self, $timeout) = @_;
	my $end = time() + $timeout;
	while (1)
	{
		pos($self->{data}) = 0;
		my @value = _parse(\$self->{data});
		if (@value)
		{
			substr($self->{data}, 0, pos($self->{data}), '');
			return [ $value[0] ];
		}
		my $rest = $end - time();
		return undef if $rest <= 0 || !IO::Select->new($self->{socket})->can_read($rest);
		my $n = sysread($self->{socket}, $self->{data}, 1 << 20, length $self->{data});
		croak 'Redis has closed the connection' unless $n;
	}
}

# One reply from pos() on; the empty list where it is not there as a whole.
sub _parse
{
	my ($data) = @_;
	$$data =~ /\G([-+:\$*])([^\r]*)\r\n/gc or return ();
	my ($kind, $rest) = ($1, $2);
	return (\$rest) if $kind eq '-';
	return ($rest) if $kind eq '+' || $kind eq ':';
	return (undef) if $rest < 0;
	if ($kind eq '$')
	{
		my $start = pos($$data);
		return () if length($$data) < $start + $rest + 2;
		pos($$data) = $start + $rest + 2;
		return (substr($$data, $start, $rest));
	}
	my @values;
	for (1 .. $rest)
	{
		my @value = _parse($data) or return ();
		push @values, $value[0];
	}
	return (\@values);
}

1;
