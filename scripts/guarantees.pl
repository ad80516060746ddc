#!/usr/bin/perl
#
# Do the tests that docs/guarantees.md names exist? The last cell of each row names files
# in backquotes, each followed by texts in quotes that are in it. Prints what is missing.

use strict;
use warnings;

my $doc = 'docs/guarantees.md';
my ($rows, $bad) = (0, 0);

my $number = 0;
sub bad { print "$doc:$number: @_\n"; $bad = 1; return; }

open(my $in, '<', $doc) or die "$doc: $!\n";
while (my $line = <$in>)
{
	$number++;
	next if $line !~ /^\|/ || $line =~ /^\|(?:---|\s*fault )/;
	my @cells = split(/\s*\|\s*/, $line =~ s/\|\s*$//r, -1);
	$rows++;
	bad('a row has four cells') if @cells != 5;
	my $tests = $cells[-1];
	my $named = 0;
	while ($tests =~ /\G[\s·]*`([^`]+)`((?:\s*,?\s*"[^"]+")+)/gc)
	{
		my ($file, $texts) = ($1, $2);
		my $test;
		if (!open($test, '<', $file))
		{
			bad("there is no $file");
			next;
		}
		my $content = do { local $/; <$test> };
		close($test);
		while ($texts =~ /"([^"]+)"/g)
		{
			$named++;
			bad("$file has no \"$1\"") if index($content, $1) < 0;
		}
	}
	my $rest = substr($tests, pos($tests) // 0);
	bad("not a test: $rest") if $rest =~ /\S/;
	bad('no test is named') if !$named && $rest !~ /\S/;
}
close($in);
print "$doc: no row\n" if !$rows;
exit($bad || !$rows);
