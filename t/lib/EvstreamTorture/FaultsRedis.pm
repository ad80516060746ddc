
=pod

=head1 NAME

EvstreamTorture::FaultsRedis - Redis, and the way to it

=cut

package EvstreamTorture::FaultsRedis;

use strict;
use warnings;

use EvstreamRedis;
use EvstreamTest;
use EvstreamTorture::Faults;

my @redis = (redis => 1);

# Its file is written at each command, so that nothing is lost.
fault redis_kill => (of => ['redis'], @redis, code => sub { redis_kill(); return sub { redis_start(); }; });
fault redis_restart => (of => ['redis'], @redis, code => sub { redis_stop(); redis_start(); return; });
fault redis_freeze => (of => ['redis'], @redis, code => sub { redis_freeze(); return sub { redis_thaw(); }; });

fault redis_full => (
	of => ['redis'],
	@redis,
	code => sub {
		redis_cli('CONFIG', 'SET', 'maxmemory', '1');
		return sub { redis_cli('CONFIG', 'SET', 'maxmemory', '0'); };
	});

fault redis_read_only => (
	of => ['redis'],
	@redis,
	code => sub {
		redis_cli('REPLICAOF', '127.0.0.1', '1');
		return sub { redis_cli('REPLICAOF', 'NO', 'ONE'); };
	});

fault redis_forgets_scripts => (of => ['redis'], @redis, code => sub { redis_cli('SCRIPT', 'FLUSH'); return; });
fault redis_clients_killed => (of => ['redis'], @redis, code => sub { redis_cli('CLIENT', 'KILL', 'TYPE', 'normal'); return; });

# Emptied; what the streams held at that moment is kept aside.
fault redis_flush => (
	of => ['redis'],
	@redis,
	code => sub {
		my ($run) = @_;
		my $redis = redis_connect();
		my @subscribers = $run->subscribers;
		$redis->command('MULTI');
		$redis->command('XRANGE', $run->stream_key($_), '-', '+') foreach @subscribers;
		$redis->command('FLUSHALL');
		my $all = $redis->command('EXEC');
		push @{ $run->{flushed} }, { map { $subscribers[$_] => $all->[$_] } 0 .. $#subscribers };
		return;
	});

sub _link
{
	my ($run, @mode) = @_;
	my $proxy = $run->{world}{redis_proxy};
	$proxy->mode(@mode);
	return sub { $proxy->mode('pass'); };
}

fault redis_cut => (of => ['redis_link'], @redis, code => sub { return _link($_[0], 'cut', $_[1]->pick(1000, 10000, 100000)); });
fault redis_refuse => (of => ['redis_link'], @redis, code => sub { return _link($_[0], 'refuse'); });
fault redis_delay => (of => ['redis_link'], @redis, code => sub { return _link($_[0], 'delay', $_[1]->between(5, 100)); });
fault redis_complains => (
	of => ['redis_link'],
	@redis,
	code => sub {
		my ($run, $dice) = @_;
		return _link($run, 'say', $dice->pick('-LOADING Redis is loading the dataset in memory',
			'-READONLY You can\'t write against a read only replica.', '-BUSY Redis is busy running a script.',
			'-MISCONF Redis is configured to save RDB snapshots', '-ERR unknown'));
	});

1;
