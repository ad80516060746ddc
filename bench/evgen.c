/*-------------------------------------------------------------------------
 *
 * evgen.c
 *	  Makes a realistic stream of user events from a seed, and beside it the
 *	  truth: the counts and dead letters that must come out of it.
 *
 * The truth is what was generated.  Nothing here reads an event, so that it is
 * an independent check of evstream's parser.
 *
 * Build: cc -O2 -o evgen evgen.c -lrdkafka -lm (the headers beside it are its parts)
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE

#include <getopt.h>
#include <signal.h>

#include "evgen_text.h"
#include "evgen_make.h"
#include "evgen_broken.h"
#include "evgen_truth.h"
#include "evgen_out.h"

#define MAX_DAYS      3650
#define RECENT_EVENTS 200
#define DEFAULT_TYPES "view:60,click:25,purchase:10,login:5"

typedef struct Options
{
	StreamOptions stream;
	OutOptions out;
	double rate;       /* records a second; 0: no limit */
	double duplicates; /* shares of the valid events, 0 to 1 */
	double future;
	double broken;
	double tombstones;
	const char *truth; /* prefix, or NULL */
	bool progress;
	bool paced;
} Options;

typedef struct Tally
{
	uint64_t sent;
	uint64_t valid;
	uint64_t duplicates;
	uint64_t late;
	uint64_t future;
	uint64_t broken;
	uint64_t tombstones;
	uint64_t bytes;
} Tally;

typedef struct Run
{
	const Options *options;
	Generator generator;
	Truth truth;
	Output output;
	Tally tally;
	double started;
	double next_progress;
	uint64_t allowed; /* records, where paced; then the next number is read */
} Run;

static const char help_text[] =
	"evgen makes a stream of user events and the truth about it.\n"
	"\n"
	"Usage: evgen OUTPUT [OPTION]...\n"
	"\n"
	"Output, one of:\n"
	"  --brokers HOST:PORT --topic NAME\n"
	"                         a Kafka topic (idempotent, acks=all, key = user id)\n"
	"  --json FILE            one event on each line; - is standard output\n"
	"  --batch-sql FILE       calls of evstream_track_batch for psql; - as above\n"
	"\n"
	"Stream (the same options, seed and --until give the same bytes):\n"
	"  --events N             valid different events (100000)\n"
	"  --seed N               (1)\n"
	"  --users N, --items N   how many there are (10000, 1000)\n"
	"  --zipf X               exponent of their frequencies; 0: all equal (1.1)\n"
	"  --types NAME:SHARE,... (" DEFAULT_TYPES ")\n"
	"                         view, click and purchase have an item, purchase has\n"
	"                         an amount\n"
	"  --days N               spread over so many days (7)\n"
	"  --until TIME           up to this time, RFC 3339 (now)\n"
	"  --shapes               half of the events as other producers write them:\n"
	"                         aliases, ids that are no UUID or missing, epoch\n"
	"                         times, numbers as ids, amounts as text, and into\n"
	"                         Kafka with a schema registry's frame\n"
	"\n"
	"Shares, in percent of the valid events (0):\n"
	"  --late PCT             valid events that speak of 1 to 40 days earlier\n"
	"  --duplicates PCT       earlier events again, four of five recent ones; into\n"
	"                         Kafka a quarter under another key\n"
	"  --future PCT           dated 2099: future_timestamp\n"
	"  --broken PCT           each breaks one rule; kinds that the output cannot\n"
	"                         carry are left out\n"
	"  --tombstones PCT       null values (Kafka only)\n"
	"\n"
	"Truth:\n"
	"  --truth PREFIX         PREFIX.counts.csv, .items.csv, .totals.csv, .dead.csv,\n"
	"                         .summary; days in UTC, rows sorted as bytes\n"
	"\n"
	"Sending:\n"
	"  --rate N               records a second (0: as fast as can be)\n"
	"  --paced                read numbers of records from standard input, send so\n"
	"                         many each time, and print how many were sent in all when\n"
	"                         they are delivered; 0, or the end: the rest, at once\n"
	"  --batch N              events in each SQL call (1000)\n"
	"  --schema NAME          of evstream_track_batch (public)\n"
	"  --partitions-check yes|no\n"
	"                         ask for the topic before sending (yes)\n"
	"  --kafka-option KEY=VALUE\n"
	"                         any librdkafka property, may be repeated\n"
	"  --progress             a line each second, also where stderr is no terminal\n"
	"  --help\n"
	"\n"
	"Exit status: 0 all was written or delivered, 1 it was not, 2 wrong options.\n";

static void usage_error(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void
usage_error(const char *format, ...)
{
	va_list args;

	fputs("evgen: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(" (see evgen --help)\n", stderr);
	exit(2);
}

static double
number_option(const char *name, const char *text, double least, double most)
{
	char *end;
	double number = strtod(text, &end);

	if (end == text || *end != '\0' || !(number >= least && number <= most))
		usage_error("--%s needs a number from %g to %.15g", name, least, most);
	return number;
}

static uint64_t
integer_option(const char *name, const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t number;

	errno = 0;
	number = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || number < least || number > most)
		usage_error("--%s needs a whole number from %llu to %llu", name, (unsigned long long) least,
					(unsigned long long) most);
	return number;
}

static void
read_types(StreamOptions *stream, const char *text)
{
	double sum = 0, before = 0;

	stream->type_count = 0;
	while (*text != '\0')
	{
		EventType *type = &stream->types[stream->type_count];
		size_t len = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
								  "0123456789_.-");
		char *end;

		if (stream->type_count == MAX_TYPES)
			usage_error("--types takes %d types at most", MAX_TYPES);
		if (len == 0 || len > TYPE_NAME_MAX || text[len] != ':')
			usage_error("--types needs NAME:SHARE,...; names of letters, digits, _, . and -");
		memset(type, 0, sizeof(*type));
		memcpy(type->name, text, len);
		if (type_index(stream, type->name) >= 0)
			usage_error("--types names \"%s\" twice", type->name);
		text += len + 1;
		type->share = strtod(text, &end);
		if (end == text || (*end != ',' && *end != '\0') ||
			!(type->share >= 0 && type->share < 1e9))
			usage_error("--types: \"%s\" needs a share", type->name);
		type->has_amount = strcmp(type->name, "purchase") == 0;
		type->has_item =
			type->has_amount || strcmp(type->name, "view") == 0 || strcmp(type->name, "click") == 0;
		sum += type->share;
		stream->type_count++;
		text = *end == ',' ? end + 1 : end;
	}
	if (!(sum > 0))
		usage_error("--types needs a share above 0");
	for (int i = 0; i < stream->type_count; i++)
		before = stream->types[i].share = before + stream->types[i].share / sum;
	stream->types[stream->type_count - 1].share = 1;
}

static void
read_options(int argc, char **argv, Options *options)
{
	enum
	{
		OPT_EVENTS = 1,
		OPT_SEED,
		OPT_USERS,
		OPT_ITEMS,
		OPT_ZIPF,
		OPT_TYPES,
		OPT_RATE,
		OPT_DAYS,
		OPT_UNTIL,
		OPT_DUPLICATES,
		OPT_LATE,
		OPT_FUTURE,
		OPT_BROKEN,
		OPT_SHAPES,
		OPT_TOMBSTONES,
		OPT_BROKERS,
		OPT_TOPIC,
		OPT_PARTITIONS_CHECK,
		OPT_KAFKA_OPTION,
		OPT_JSON,
		OPT_BATCH_SQL,
		OPT_BATCH,
		OPT_SCHEMA,
		OPT_TRUTH,
		OPT_PROGRESS,
		OPT_PACED,
		OPT_HELP
	};
	static const struct option long_options[] = {
		{"events", required_argument, NULL, OPT_EVENTS},
		{"seed", required_argument, NULL, OPT_SEED},
		{"users", required_argument, NULL, OPT_USERS},
		{"items", required_argument, NULL, OPT_ITEMS},
		{"zipf", required_argument, NULL, OPT_ZIPF},
		{"types", required_argument, NULL, OPT_TYPES},
		{"rate", required_argument, NULL, OPT_RATE},
		{"days", required_argument, NULL, OPT_DAYS},
		{"until", required_argument, NULL, OPT_UNTIL},
		{"duplicates", required_argument, NULL, OPT_DUPLICATES},
		{"late", required_argument, NULL, OPT_LATE},
		{"future", required_argument, NULL, OPT_FUTURE},
		{"broken", required_argument, NULL, OPT_BROKEN},
		{"shapes", no_argument, NULL, OPT_SHAPES},
		{"tombstones", required_argument, NULL, OPT_TOMBSTONES},
		{"brokers", required_argument, NULL, OPT_BROKERS},
		{"topic", required_argument, NULL, OPT_TOPIC},
		{"partitions-check", required_argument, NULL, OPT_PARTITIONS_CHECK},
		{"kafka-option", required_argument, NULL, OPT_KAFKA_OPTION},
		{"json", required_argument, NULL, OPT_JSON},
		{"batch-sql", required_argument, NULL, OPT_BATCH_SQL},
		{"batch", required_argument, NULL, OPT_BATCH},
		{"schema", required_argument, NULL, OPT_SCHEMA},
		{"truth", required_argument, NULL, OPT_TRUTH},
		{"progress", no_argument, NULL, OPT_PROGRESS},
		{"paced", no_argument, NULL, OPT_PACED},
		{"help", no_argument, NULL, OPT_HELP},
		{NULL, 0, NULL, 0}};
	StreamOptions *stream = &options->stream;
	OutOptions *out = &options->out;
	const char *json = NULL, *sql = NULL;
	int64_t now_us = time(NULL) * SECOND_US;
	int option;
	int index = 0;

	memset(options, 0, sizeof(*options));
	stream->seed = 1;
	stream->events = 100000;
	stream->users = 10000;
	stream->items = 1000;
	stream->zipf = 1.1;
	stream->days = 7;
	stream->until_us = now_us;
	read_types(stream, DEFAULT_TYPES);
	out->check_topic = true;
	out->batch = 1000;
	out->schema = "public";
	options->progress = isatty(STDERR_FILENO);

	while ((option = getopt_long(argc, argv, "", long_options, &index)) != -1)
	{
		const char *name = long_options[index].name;

		switch (option)
		{
			case OPT_EVENTS:
				stream->events = integer_option(name, optarg, 0, UINT64_C(1) << 40);
				break;
			case OPT_SEED:
				stream->seed = integer_option(name, optarg, 0, UINT64_MAX);
				break;
			case OPT_USERS:
				stream->users = integer_option(name, optarg, 1, 1000000000);
				break;
			case OPT_ITEMS:
				stream->items = integer_option(name, optarg, 1, 1000000000);
				break;
			case OPT_ZIPF:
				stream->zipf = number_option(name, optarg, 0, 10);
				break;
			case OPT_TYPES:
				read_types(stream, optarg);
				break;
			case OPT_RATE:
				options->rate = number_option(name, optarg, 0, 1e9);
				break;
			case OPT_DAYS:
				stream->days = number_option(name, optarg, 0.0001, MAX_DAYS);
				break;
			case OPT_UNTIL:
				if (!read_time(optarg, &stream->until_us))
					usage_error("--until needs an RFC 3339 time");
				if (stream->until_us < INT64_C(946684800) * SECOND_US ||
					stream->until_us > now_us + DAY_US)
					usage_error("--until must lie between the year 2000 and tomorrow");
				break;
			case OPT_DUPLICATES:
				options->duplicates = number_option(name, optarg, 0, 100) / 100;
				break;
			case OPT_LATE:
				stream->late = number_option(name, optarg, 0, 100) / 100;
				break;
			case OPT_FUTURE:
				options->future = number_option(name, optarg, 0, 100) / 100;
				break;
			case OPT_BROKEN:
				options->broken = number_option(name, optarg, 0, 100) / 100;
				break;
			case OPT_TOMBSTONES:
				options->tombstones = number_option(name, optarg, 0, 100) / 100;
				break;
			case OPT_SHAPES:
				stream->shapes = true;
				break;
			case OPT_BROKERS:
				out->brokers = optarg;
				break;
			case OPT_TOPIC:
				out->topic = optarg;
				break;
			case OPT_PARTITIONS_CHECK:
				if (strcmp(optarg, "yes") != 0 && strcmp(optarg, "no") != 0)
					usage_error("--partitions-check needs yes or no");
				out->check_topic = *optarg == 'y';
				break;
			case OPT_KAFKA_OPTION:
				if (out->kafka_option_count == MAX_KAFKA_OPTIONS)
					usage_error("--kafka-option may be given %d times", MAX_KAFKA_OPTIONS);
				out->kafka_options[out->kafka_option_count++] = optarg;
				break;
			case OPT_JSON:
				json = optarg;
				break;
			case OPT_BATCH_SQL:
				sql = optarg;
				break;
			case OPT_BATCH:
				out->batch = integer_option(name, optarg, 1, 1000000);
				break;
			case OPT_SCHEMA:
				if (*optarg == '\0' || strlen(optarg) > 63)
					usage_error("--schema needs a name of 1 to 63 bytes");
				out->schema = optarg;
				break;
			case OPT_TRUTH:
				options->truth = optarg;
				break;
			case OPT_PROGRESS:
				options->progress = true;
				break;
			case OPT_PACED:
				options->paced = true;
				break;
			case OPT_HELP:
				fputs(help_text, stdout);
				exit(0);
			default:
				usage_error("wrong option");
		}
	}
	if (optind < argc)
		usage_error("unexpected argument \"%s\"", argv[optind]);
	if ((json != NULL) + (sql != NULL) + (out->brokers != NULL) != 1)
		usage_error("needs one of --brokers, --json and --batch-sql");
	if (options->paced && out->brokers == NULL)
		usage_error("--paced needs --brokers");
	if ((out->brokers != NULL) != (out->topic != NULL))
		usage_error("--brokers and --topic go together");
	stream->target = out->brokers != NULL ? TO_KAFKA : json != NULL ? TO_JSON : TO_SQL;
	out->file = json != NULL ? json : sql;
}

/* ---- the run ---- */

static void
show_progress(Run *run, double now, bool last)
{
	bool terminal = isatty(STDERR_FILENO);
	double seconds = now - run->started;

	fprintf(stderr, "%sevgen: %llu of %llu events, %llu records, %.1f MB, %.0f records/s%s",
			terminal ? "\r\033[K" : "", (unsigned long long) run->tally.valid,
			(unsigned long long) run->options->stream.events, (unsigned long long) run->tally.sent,
			run->tally.bytes / 1e6, seconds > 0 ? run->tally.sent / seconds : 0,
			terminal && !last ? "" : "\n");
	run->next_progress = now + 1;
}

/* Waits until more records may be sent. */
static void
keep_pace(Run *run)
{
	char line[64];
	uint64_t more;

	while (run->tally.sent == run->allowed)
	{
		if (run->allowed > 0)
		{
			output_deliver(&run->output);
			printf("%llu\n", (unsigned long long) run->tally.sent);
			fflush(stdout);
		}
		more = fgets(line, sizeof(line), stdin) != NULL ? strtoull(line, NULL, 10) : 0;
		run->allowed = more == 0 ? UINT64_MAX : run->allowed + more;
		/* what was not sent while it waited is not made up for */
		run->started =
			clock_seconds() - run->tally.sent / (run->options->rate > 0 ? run->options->rate : 1);
	}
}

static void
send_record(Run *run, const Record *record)
{
	double rate = run->options->rate;

	if (run->options->paced)
		keep_pace(run);
	output_send(&run->output, record);
	run->tally.sent++;
	run->tally.bytes += record->value_len;
	if (rate <= 0 && run->tally.sent % 1024 != 0)
		return;

	double now = clock_seconds();

	if (run->options->progress && now >= run->next_progress)
		show_progress(run, now, false);
	while (rate > 0)
	{
		double wait = run->started + run->tally.sent / rate - now;

		if (wait <= 0)
			break;
		output_wait(&run->output, wait > 0.1 ? 100 : (int) (wait * 1000) + 1);
		now = clock_seconds();
		if (run->options->progress && now >= run->next_progress)
			show_progress(run, now, false);
	}
}

/* An event again that was sent before or is the last one sent, number last. */
static void
send_duplicate(Run *run, uint64_t last)
{
	Generator *gen = &run->generator;
	uint64_t no;
	Record record;

	if (random_below(&gen->state, 5) > 0)
		no = last - random_below(&gen->state, last < RECENT_EVENTS ? last + 1 : RECENT_EVENTS);
	else
		no = (uint64_t) (random_share(&gen->state) * (last + 1));
	for (make_event(gen, no, &record); !record.has_id; make_event(gen, --no, &record))
		if (no == 0)
			return;
	if (random_below(&gen->state, 4) == 0)
		/* so that it may meet the first one in another partition */
		record.key_len = put_hex(put_text(record.key, "again-"), no, 16) - record.key;
	send_record(run, &record);
	run->tally.duplicates++;
}

static void
send_broken(Run *run, Fault fault)
{
	Record record;

	make_broken(&run->generator, fault, &record);
	send_record(run, &record);
	run->truth.dead[fault]++;
	if (fault == FUTURE_TIMESTAMP)
		run->tally.future++;
	else
		run->tally.broken++;
}

static void
send_stream(Run *run)
{
	const Options *options = run->options;
	uint64_t *state = &run->generator.state;
	Record record;

	for (uint64_t no = 0; no < options->stream.events; no++)
	{
		if (options->tombstones > random_share(state) && options->stream.target == TO_KAFKA)
		{
			make_tombstone(&run->generator, &record);
			send_record(run, &record);
			run->tally.tombstones++;
		}
		if (options->broken > random_share(state))
			send_broken(run, draw_fault(&run->generator));
		if (options->future > random_share(state))
			send_broken(run, FUTURE_TIMESTAMP);

		make_event(&run->generator, no, &record);
		send_record(run, &record);
		run->tally.valid++;
		run->tally.late += record.late;
		if (options->truth != NULL)
			truth_count(&run->truth, &record);

		if (options->duplicates > random_share(state))
			send_duplicate(run, no);
	}
}

static void
write_summary(const char *prefix, const Tally *tally, double seconds)
{
	char name[4096];
	FILE *file;

	snprintf(name, sizeof(name), "%s.summary", prefix);
	file = fopen(name, "w");
	if (file == NULL)
		die("could not open \"%s\": %s", name, strerror(errno));
	fprintf(file,
			"sent=%llu\nvalid=%llu\nduplicates=%llu\nlate=%llu\nfuture=%llu\n"
			"broken=%llu\ntombstones=%llu\nbytes=%llu\nseconds=%.3f\n",
			(unsigned long long) tally->sent, (unsigned long long) tally->valid,
			(unsigned long long) tally->duplicates, (unsigned long long) tally->late,
			(unsigned long long) tally->future, (unsigned long long) tally->broken,
			(unsigned long long) tally->tombstones, (unsigned long long) tally->bytes, seconds);
	if (fclose(file) != 0)
		die("could not write to %s: %s", name, strerror(errno));
}

int
main(int argc, char **argv)
{
	static Options options;
	static Run run;
	bool arrived;
	double ended;

	/* a reader that went away is a write error with a message */
	signal(SIGPIPE, SIG_IGN);
	read_options(argc, argv, &options);
	run.options = &options;
	generator_prepare(&run.generator, &options.stream);
	truth_prepare(&run.truth, &options.stream);
	output_open(&run.output, options.stream.target, &options.out);

	run.started = clock_seconds();
	run.next_progress = run.started + 1;
	send_stream(&run);
	arrived = output_close(&run.output);
	ended = clock_seconds();

	if (options.progress)
		show_progress(&run, ended, true);
	if (options.truth != NULL)
	{
		truth_write(&run.truth, options.truth);
		write_summary(options.truth, &run.tally, ended - run.started);
	}
	return arrived ? 0 : 1;
}
