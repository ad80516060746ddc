
=pod

=head1 NAME

EvstreamTorture::Verify - what has to hold after a run

=head1 SYNOPSIS

  my @problems = verify($run);     # lines; none: all is well

=cut

package EvstreamTorture::Verify;

use strict;
use warnings;

use EvstreamRedis;
use EvstreamTest;
use Exporter qw(import);
use PostgreSQL::Test::Utils;

our @EXPORT = qw(wait_until_done verify sample_memory);

# At most so much of a worker's own memory, in MB.
my %memory_limit = (consumer => 256, notifier => 128, relay => 128, maintenance => 64, launcher => 32);

# A worker that says the same again and again is a flood, more so with the number of faults.
my $same_lines = 10;

# ---- Waiting ----

# All that was sent is consumed, counted and passed on; dies where it is not in time.
sub wait_until_done
{
	my ($run) = @_;
	my $world = $run->{world};
	if ($run->{mode} ne 'embedded')
	{
		# the relay's part has to be in Kafka before its end says something
		$world->wait_sql(q{SELECT evstream_wait('20 s', false)}, 't', 120);
		foreach my $topic ($world->topic, $run->{mode} eq 'kafka' ? $world->side_topic : ())
		{
			my $ends = join(',', map { "$_->[0]:$_->[2]" } watermarks($topic));
			$world->wait_sql(qq{SELECT string_agg(log_partition || ':' || position, ',' ORDER BY log_partition)
				FROM evstream_lag WHERE topic = '$topic'}, $ends, 90);
		}
	}
	$world->wait_sql(q{SELECT evstream_wait('20 s')}, 't', 120);
	$world->wait_sql(q{SELECT COALESCE(bool_and(c.received_at >= e.received_at), true)
		FROM (SELECT log_id, log_partition, max(received_at) AS received_at FROM evstream.events GROUP BY 1, 2) e
			LEFT JOIN evstream.notifier_cursors c USING (log_id, log_partition)}, 't', 60) if $run->{redis};
	$world->wait_sql('SELECT count(*) FROM evstream.retries', 0, 60);
	# back from whatever was done to them
	$world->wait_sql(q{SELECT string_agg(role || ' ' || n, ', ' ORDER BY role)
		FROM (SELECT role, count(*) AS n FROM evstream_workers WHERE pid IS NOT NULL GROUP BY role) w},
		join(', ', $run->{mode} eq 'embedded' ? 'consumer 1' : "consumer $run->{consumers}", 'maintenance 1',
			$run->{redis} ? 'notifier 1' : (), $run->{mode} eq 'embedded' ? () : 'relay 1'), 90);
	return;
}

# ---- The database ----

sub _database
{
	my ($run) = @_;
	my $world = $run->{world};
	my @problems = compare_truth($world->{node}, 'postgres', $run->{load}->truth);
	my $ask = sub {
		my ($sql, $expected, $what) = @_;
		my $found = $world->sql($sql);
		push @problems, "$what: found $found, expected $expected" if $found ne $expected;
	};

	my $events = $run->{load}{events} + $run->{load}->filled;
	$ask->('SELECT count(*) FROM evstream_events', $events, 'stored events');
	$ask->('SELECT count(DISTINCT event_id) FROM evstream_events', $events, 'different ids');
	$ask->('SELECT count(DISTINCT (log_id, log_partition, log_offset)) FROM evstream.events', $events, 'different places');
	$ask->(q{SELECT count(*) FROM (SELECT received_at <= lag(received_at) OVER
		(PARTITION BY log_id, log_partition ORDER BY log_offset) AS wrong FROM evstream.events) e WHERE wrong}, 0,
		'events not received in the order of their log') if !$run->{sought};
	$ask->(sprintf('SELECT COALESCE(max(incarnation), 1) FROM evstream.logs WHERE topic = \'%s\'', $world->topic), 1,
		'incarnations of a topic that was never made again');
	# the clients look again by themselves, after a pause
	my @healthy = ('workers', $run->{mode} ne 'embedded' && !$run->{expired} ? 'kafka' : (), $run->{redis} && !@{ $run->{flushed} } ? 'redis' : ());
	my $health = q{SELECT string_agg(name || ': ' || COALESCE(c.value ->> 'why', 'not ok'), '; ' ORDER BY name)
		FROM jsonb_each(evstream_health() -> 'components') c (name, value)
		WHERE c.value ->> 'status' <> 'ok' AND name IN (} . join(', ', map { "'$_'" } @healthy) . ')';
	push @problems, 'health: ' . $world->sql($health) if !wait_for_sql($world->{node}, 'postgres', $health, '', 30);
	return @problems;
}

# ---- Redis ----

# What streams hold is what SQL finds, in order; where Redis was emptied, what was there
# before and after together.
sub _streams
{
	my ($run) = @_;
	my $world = $run->{world};
	my $redis = redis_connect();
	my @subscribers = $run->subscribers;
	my $now = { map { $_ => $redis->command('XRANGE', $run->stream_key($_), '-', '+') } @subscribers };
	my @problems;
	my $file = "$run->{dir}/streams.tsv";

	open(my $out, '>', $file) or die "$file: $!";
	my $part = 0;
	foreach my $streams (@{ $run->{flushed} }, $now)
	{
		$part++;
		foreach my $subscriber (@subscribers)
		{
			my ($epoch, $last) = (0, 0);
			foreach my $entry (@{ $streams->{$subscriber} })
			{
				my ($e, $seq) = split(/-/, $entry->[0]);
				my $fresh = $e > $epoch && $seq == 1 && (!$epoch || @{ $run->{flushed} });
				push @problems, "stream of $subscriber: $entry->[0] after $epoch-$last" if !$fresh && ($e != $epoch || $seq != $last + 1);
				($epoch, $last) = ($e, $seq);
				my ($id) = $entry->[1][1] =~ /"event_id":"([^"]+)"/;
				print $out "$part\t$subscriber\t$e\t$seq\t$id\n";
			}
		}
	}
	close($out);

	my ($said, $err) = ('', '');
	IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $world->connstr ], '<', \<<"END", '>', \$said, '2>', \$err) or die "streams: $err\n";
CREATE TEMP TABLE streams (part int, subscriber_id text, epoch bigint, seq bigint, event_id uuid);
\\copy streams FROM '$file'
CREATE TEMP TABLE truth AS
	SELECT DISTINCT f.subscriber_id, e.event_id
	FROM evstream_events e JOIN evstream_filters f
		ON (f.event_types IS NULL OR e.event_type = ANY (f.event_types))
		AND (f.user_tiers IS NULL OR e.user_tier = ANY (f.user_tiers))
		AND (f.min_amount IS NULL OR e.amount >= f.min_amount)
		AND (f.user_ids IS NULL OR e.user_id = ANY (f.user_ids))
		AND (f.properties IS NULL OR e.properties @> f.properties)
	WHERE e.user_id LIKE 'u-%' OR f.user_ids IS NULL;
SELECT 'streams: twice in one epoch: ' || count(*) FROM (SELECT 1 FROM streams GROUP BY part, subscriber_id, epoch, event_id HAVING count(*) > 1) d
	HAVING count(*) > 0;
SELECT 'streams: not of the subscriber: ' || count(*) FROM (SELECT subscriber_id, event_id FROM streams EXCEPT TABLE truth) d HAVING count(*) > 0;
SELECT 'streams: missing: ' || count(*) || ', such as ' || min(d::text) FROM (TABLE truth EXCEPT SELECT subscriber_id, event_id FROM streams) d HAVING count(*) > 0;
SELECT 'streams: not in the order of a partition: ' || count(*)
FROM (SELECT e.log_offset <= lag(e.log_offset) OVER (PARTITION BY s.part, s.subscriber_id, s.epoch, e.topic, e.log_partition ORDER BY s.seq) AS wrong
		FROM streams s JOIN evstream_events e USING (event_id)) o WHERE wrong AND NOT '$run->{sought}'::boolean HAVING count(*) > 0;
SELECT 'entries ' || count(*) FROM streams;
END
	foreach my $line (split(/\n/, $said))
	{
		if ($line =~ /^entries (\d+)/)
		{
			push @problems, 'streams: nothing is in them' if $1 == 0;
			$run->{entries} = $1;
		}
		else
		{
			push @problems, $line;
		}
	}
	return @problems;
}

# ---- Memory ----

# Keeps the most that each role had of its own, in MB.
sub sample_memory
{
	my ($run) = @_;
	my $rows = $run->{world}->try_sql(q{SELECT pid, role FROM evstream_workers WHERE pid IS NOT NULL
		UNION ALL SELECT pid, 'launcher' FROM pg_stat_activity WHERE backend_type = 'evstream launcher'}) // '';
	foreach my $row (split(/\n/, $rows))
	{
		my ($pid, $role) = split(/\|/, $row);
		open(my $status, '<', "/proc/$pid/status") or next;
		local $/ = undef;
		my ($kb) = <$status> =~ /^RssAnon:\s*(\d+)/m or next;
		$run->{memory}{$role} = $kb / 1024 if $kb / 1024 > ($run->{memory}{$role} // 0);
	}
	return;
}

# ---- The log ----

sub _log
{
	my ($run) = @_;
	my (%same, @problems);
	my $log = slurp_file($run->{world}{node}->logfile);
	foreach my $line (split(/\n/, $log))
	{
		next if $line =~ /(?:DETAIL|HINT|CONTEXT|STATEMENT):/;
		if ($line =~ /terminated by signal (\d+)/ && !$run->{signals}{$1})
		{
			push @problems, "log: $line";
		}
		elsif ($line =~ /PANIC:/ ? !$run->{disk_filled} : $line =~ /\bTRAP:|[Aa]ssert|stuck spinlock|could not find|invalid memory|cache lookup|[Cc]orrupt/)
		{
			push @problems, "log: $line";
		}
		next if $line !~ /\] evstream (\w+) .*?(LOG|WARNING|ERROR|FATAL|PANIC):\s+(.*)/;
		my ($role, $level, $text) = ($1, $2, $3);
		push @problems, "log: $line" if $text =~ /unexpected|duplicate key.*(?:batch_log|daily)/;
		next if $text =~ /^(?:background worker|terminating|could not receive|the database system)/;
		$text =~ s/\d+/N/g;
		$same{"evstream $role $level: $text"}++;
	}
	$run->{log_lines} = \%same;
	my $most = $same_lines + 4 * $run->{faults_done};
	push @problems, map { "log: $same{$_} times: $_" } grep { $same{$_} > $most } sort keys %same;
	return @problems;
}

sub verify
{
	my ($run) = @_;
	my @problems = _database($run);
	push @problems, _streams($run) if $run->{redis};
	sample_memory($run);
	push @problems, map { sprintf('memory: %s had %.0f MB', $_, $run->{memory}{$_}) }
	  grep { $run->{memory}{$_} > $memory_limit{$_} } sort keys %{ $run->{memory} };
	push @problems, _log($run);
	return @problems;
}

1;
