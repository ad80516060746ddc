
=pod

=head1 NAME

EvstreamTruth - many subscribers, and whether their streams are what SQL finds

=head1 SYNOPSIS

  use EvstreamTest;
  use EvstreamTruth;

  my $node = new_node('main', 'evstream.redis_url' => redis_start(), extension => 1);
  random_filters($node, 1000);
  kill_in_turn($node, 10, sub { ... });    # notifier, Redis, notifier ...
  streams_are_truth($node, 'all of it');

=cut

package EvstreamTruth;

use strict;
use warnings;

use EvstreamRedis;
use EvstreamTest;
use Exporter qw(import);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(random_filters kill_in_turn streams_are_truth);

# Gives so many subscribers, r1 to rN, one to three filters each, for what evgen makes.
sub random_filters
{
	my ($node, $count) = @_;
	$node->safe_psql('postgres', qq{
		DO \$\$
		DECLARE
			types text[] := ARRAY['view', 'click', 'purchase', 'login'];
			tiers text[] := ARRAY['free', 'standard', 'premium'];
		BEGIN
			PERFORM setseed(0.42);
			FOR i IN 1 .. $count LOOP
				FOR k IN 1 .. 1 + i % 3 LOOP
					PERFORM evstream_subscribe('r' || i,
						CASE WHEN random() < 0.7 THEN ARRAY[types[1 + floor(random() * 4)::int], types[1 + floor(random() * 4)::int]] END,
						CASE WHEN random() < 0.4 THEN ARRAY[tiers[1 + floor(random() * 3)::int], 'premium'] END,
						CASE WHEN random() < 0.3 THEN floor(random() * 100)::numeric END,
						CASE WHEN random() < 0.98 THEN (SELECT array_agg('u-' || (1 + floor(power(random(), 2) * 300 + 0 * g)::int)) FROM generate_series(1, 4) g) END,
						CASE WHEN random() < 0.2 THEN jsonb_build_object('device', (ARRAY['mobile', 'desktop', 'tablet'])[1 + floor(random() * 3)::int]) END);
				END LOOP;
			END LOOP;
		END \$\$});
	return;
}

# Cursors in Redis, as one text; '' where it is away.
sub _cursors
{
	my @all = redis_lines('HGETALL', 'evstream:state');
	my %state = @all % 2 ? () : @all;
	return join(' ', map { "$_ $state{$_}" } grep { /^c:/ } sort keys %state);
}

# Kills the notifier (and with it the server starts anew) and Redis in turn, each time
# when it has just sent something. The load is called with the number of the round; what it
# does may go on in the background, then it gives the handle of IPC::Run.
sub kill_in_turn
{
	my ($node, $rounds, $load) = @_;
	for my $round (1 .. $rounds)
	{
		my $cursors = _cursors();
		my $handle = $load->($round);
		my $end = time() + 60;
		sleep(0.01) while _cursors() eq $cursors && time() < $end;
		my $moved = time() < $end;
		if ($round % 2)
		{
			my $pid = $node->safe_psql('postgres',
				q{SELECT pid FROM evstream_workers WHERE role = 'notifier' AND pid IS NOT NULL});
			$moved = 0 if $pid !~ /^\d+$/;
			kill('KILL', $pid) if $moved;
			# it has gone, and there is another one
			$moved &&= wait_for_sql($node, 'postgres', qq{SELECT count(*) FROM evstream_workers WHERE role = 'notifier' AND pid <> $pid}, 1);
		}
		else
		{
			redis_kill();
			redis_start();
		}
		$handle->finish if ref $handle;
		ok($moved && wait_for_sql($node, 'postgres', q{SELECT evstream_wait('30 s')}, 't', 120), "round $round: it goes on");
	}
	return;
}

# Does each stream of r1, r2 ... hold exactly what a query over evstream_events finds among
# evgen's, in the order of each partition, in one epoch, with sequences from 1 without a gap?
sub streams_are_truth
{
	my ($node, $name) = @_;
	my $redis = redis_connect();
	my $file = scratch_dir() . '/streams';
	my ($total, $wrong) = (0, '');
	my @subscribers = split(/\n/, $node->safe_psql('postgres',
		q{SELECT DISTINCT subscriber_id FROM evstream_filters WHERE subscriber_id ~ '^r\d+$'}));

	open(my $out, '>', $file) or die "$file: $!";
	foreach my $subscriber (@subscribers)
	{
		my ($epoch, $last) = (undef, 0);
		foreach my $entry (@{ $redis->command('XRANGE', "evstream:stream:$subscriber", '-', '+') })
		{
			my ($e, $seq) = split(/-/, $entry->[0]);
			$epoch //= $e;
			$wrong .= " $subscriber: $entry->[0] after $epoch-$last" if $e != $epoch || $seq != $last + 1;
			$last = $seq;
			my ($id) = $entry->[1][1] =~ /"event_id":"([^"]+)"/;
			print $out "$subscriber\t$seq\t$id\n";
			$total++;
		}
	}
	close($out);
	is($wrong, '', "$name: sequences from 1 without a gap");
	$node->safe_psql('postgres', 'CREATE TABLE streams (subscriber_id text, seq bigint, event_id uuid)');
	$node->command_ok([ 'psql', '-X', '-d', $node->connstr('postgres'), '-c', "\\copy streams FROM '$file'" ],
		"$name: streams are read");
	is($node->safe_psql('postgres', q{
		CREATE TABLE truth AS
			WITH e AS (SELECT event_id, user_id, event_type, user_tier, amount, properties FROM evstream_events WHERE user_id LIKE 'u-%'),
				f AS (SELECT subscriber_id, event_types, user_tiers, min_amount, user_ids, properties AS wanted
					FROM evstream_filters WHERE subscriber_id ~ '^r\d+$'),
				pairs AS (
					SELECT e.*, f.* FROM e JOIN (SELECT f.*, u FROM f, unnest(user_ids) u) f ON user_id = u
					UNION ALL
					SELECT e.*, f.*, NULL FROM e JOIN f ON user_ids IS NULL)
			SELECT DISTINCT subscriber_id, event_id FROM pairs
			WHERE (event_types IS NULL OR event_type = ANY (event_types))
				AND (user_tiers IS NULL OR user_tier = ANY (user_tiers))
				AND (min_amount IS NULL OR amount >= min_amount)
				AND (wanted IS NULL OR properties @> wanted);
		SELECT (SELECT count(*) FROM (SELECT subscriber_id, event_id FROM streams EXCEPT ALL TABLE truth) d) || ' too many, '
			|| (SELECT count(*) FROM (TABLE truth EXCEPT ALL SELECT subscriber_id, event_id FROM streams) d) || ' too few'}),
		'0 too many, 0 too few', "$name: the streams are what SQL finds ($total entries of " . @subscribers . ' subscribers)');
	cmp_ok($total, '>', 20 * @subscribers, "$name: which is not little");
	is($node->safe_psql('postgres', q{
		SELECT count(*) FROM (SELECT e.log_offset <= lag(e.log_offset) OVER
				(PARTITION BY s.subscriber_id, e.topic, e.log_partition ORDER BY s.seq) AS wrong
			FROM streams s JOIN evstream_events e USING (event_id)) o
		WHERE wrong}), 0, "$name: in the order of each partition");
	return;
}

1;
