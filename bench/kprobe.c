/*-------------------------------------------------------------------------
 *
 * kprobe.c
 *	  Looks into a Kafka broker and puts things there: for tests and trials.
 *
 * Records are lines of fields, separated by tabs: partition=N, offset=N,
 * time=MILLISECONDS, key=TEXT, value=TEXT, header:NAME=TEXT.  A field that is
 * not there is null (a header: one without "=").  TEXT has \\, \t, \n, \r and
 * \xHH for what cannot stand in a line.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#define TIMEOUT_MS 30000

static const char *brokers;
static const char *settings[64];
static int nsettings;
static long failures;
static char last_failure[512];

static void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

static void
die(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, fmt);
	fprintf(stderr, "kprobe: ");
	vfprintf(stderr, fmt, args);
	fprintf(stderr, "\n");
	va_end(args);
	exit(1);
}

static void
usage(FILE *out)
{
	fputs("usage: kprobe -b HOST:PORT [-X KEY=VALUE]... COMMAND\n"
		  "  create TOPIC PARTITIONS [KEY=VALUE]...   make a topic\n"
		  "  alter TOPIC PARTITIONS                   give it more partitions\n"
		  "  delete TOPIC                             and wait until it is gone\n"
		  "  trim TOPIC PARTITION OFFSET              drop the records before OFFSET\n"
		  "  topics                                   name, partitions\n"
		  "  watermarks TOPIC                         partition, first offset, end offset\n"
		  "  produce TOPIC                            records from stdin, one a line\n"
		  "  consume TOPIC [PARTITION [OFFSET [MAX]]] records to stdout, up to the end now\n"
		  "  offsets GROUP                            topic, partition, offset, metadata\n"
		  "  commit GROUP TOPIC PARTITION OFFSET [METADATA]\n"
		  "\n"
		  "A record is a line of fields separated by tabs: partition=N offset=N\n"
		  "time=MILLISECONDS key=TEXT value=TEXT header:NAME=TEXT; TEXT escapes \\\\ \\t \\n\n"
		  "\\r \\xHH; a missing key or value, and a header without \"=\", is null.\n",
		  out);
}

static long
number(const char *text, const char *what)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || end == text || *end)
		die("%s is not a number: \"%s\"", what, text);
	return n;
}

/* The partition's or the topic's error counts as a failure of that record. */
static void
delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (m->err)
	{
		failures++;
		snprintf(last_failure, sizeof(last_failure), "%s", rd_kafka_err2str(m->err));
	}
}

static void
quiet(const rd_kafka_t *rk, int level, const char *fac, const char *buf)
{
	(void) rk;
	if (level < 4)
		fprintf(stderr, "kprobe: %s: %s\n", fac, buf);
}

static rd_kafka_t *
client(rd_kafka_type_t type, const char *group)
{
	char err[512];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	static const char *const common[][2] = {
		{"client.id", "kprobe"},
		{"message.max.bytes", "100000000"},
		{"topic.metadata.refresh.interval.ms", "1000"},
	};
	static const char *const producer[][2] = {
		{"enable.idempotence", "true"},
		/* a batch that is refused is lost if a new partition takes the one behind it */
		{"max.in.flight", "1"},
		{"linger.ms", "5"},
		{"queue.buffering.max.messages", "1000000"},
	};
	static const char *const consumer[][2] = {
		{"enable.auto.commit", "false"},
		{"auto.offset.reset", "earliest"},
		{"enable.partition.eof", "true"},
		{"fetch.message.max.bytes", "16000000"},
		{"receive.message.max.bytes", "200000000"},
	};

#define SET(key, value)                                                                            \
	do                                                                                             \
	{                                                                                              \
		if (rd_kafka_conf_set(conf, key, value, err, sizeof(err)) != RD_KAFKA_CONF_OK)             \
			die("%s", err);                                                                        \
	} while (0)
#define SET_ALL(list)                                                                              \
	do                                                                                             \
	{                                                                                              \
		for (size_t i_ = 0; i_ < sizeof(list) / sizeof(list[0]); i_++)                             \
			SET(list[i_][0], list[i_][1]);                                                         \
	} while (0)

	SET("bootstrap.servers", brokers);
	SET_ALL(common);
	if (type == RD_KAFKA_PRODUCER)
	{
		SET_ALL(producer);
		rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	}
	else
	{
		SET_ALL(consumer);
		SET("group.id", group);
	}
	for (int i = 0; i < nsettings; i++)
	{
		char *key = strdup(settings[i]);
		char *eq = strchr(key, '=');

		if (!eq)
			die("-X needs KEY=VALUE, not \"%s\"", settings[i]);
		*eq = '\0';
		SET(key, eq + 1);
		free(key);
	}
	rd_kafka_conf_set_log_cb(conf, quiet);
	rk = rd_kafka_new(type, conf, err, sizeof(err));
	if (!rk)
		die("%s", err);
	return rk;
}

/* ---- Topics ---- */

/* Partitions of a topic that have a leader; -1: no such topic. */
static int
partitions_of(rd_kafka_t *rk, const char *topic)
{
	const struct rd_kafka_metadata *md;
	rd_kafka_resp_err_t err;
	int n = -1;

	err = rd_kafka_metadata(rk, 1, NULL, &md, TIMEOUT_MS);
	if (err)
		die("metadata: %s", rd_kafka_err2str(err));
	for (int i = 0; i < md->topic_cnt; i++)
	{
		if (strcmp(md->topics[i].topic, topic) != 0)
			continue;
		n = 0;
		for (int p = 0; p < md->topics[i].partition_cnt; p++)
			n += md->topics[i].partitions[p].leader >= 0;
	}
	rd_kafka_metadata_destroy(md);
	return n;
}

static void
wait_partitions(rd_kafka_t *rk, const char *topic, int wanted)
{
	for (int i = 0; i < TIMEOUT_MS / 20; i++)
	{
		int n = partitions_of(rk, topic);

		if (wanted < 0 ? n < 0 : n >= wanted)
			return;
		usleep(20000);
	}
	die("topic \"%s\" was not ready in time", topic);
}

static void
check_topics(const rd_kafka_topic_result_t **results, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (rd_kafka_topic_result_error(results[i]))
			die("%s: %s", rd_kafka_topic_result_name(results[i]),
				rd_kafka_topic_result_error_string(results[i])
					? rd_kafka_topic_result_error_string(results[i])
					: rd_kafka_err2str(rd_kafka_topic_result_error(results[i])));
}

static rd_kafka_event_t *
admin_result(rd_kafka_queue_t *queue)
{
	rd_kafka_event_t *ev = rd_kafka_queue_poll(queue, TIMEOUT_MS);

	if (!ev)
		die("no answer from the broker in time");
	if (rd_kafka_event_error(ev))
		die("%s", rd_kafka_event_error_string(ev));
	return ev;
}

static void
create(rd_kafka_t *rk, const char *topic, int partitions, char **config, int nconfig)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	char err[512];
	rd_kafka_NewTopic_t *t = rd_kafka_NewTopic_new(topic, partitions, -1, err, sizeof(err));
	rd_kafka_event_t *ev;
	const rd_kafka_topic_result_t **results;
	size_t n;

	if (!t)
		die("%s", err);
	for (int i = 0; i < nconfig; i++)
	{
		char *eq = strchr(config[i], '=');

		if (!eq)
			die("a topic's setting is KEY=VALUE, not \"%s\"", config[i]);
		*eq = '\0';
		rd_kafka_NewTopic_set_config(t, config[i], eq + 1);
	}
	rd_kafka_CreateTopics(rk, &t, 1, NULL, queue);
	ev = admin_result(queue);
	results = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(ev), &n);
	check_topics(results, n);
	rd_kafka_event_destroy(ev);
	rd_kafka_NewTopic_destroy(t);
	rd_kafka_queue_destroy(queue);
	wait_partitions(rk, topic, partitions);
}

static void
alter(rd_kafka_t *rk, const char *topic, int partitions)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	char err[512];
	rd_kafka_NewPartitions_t *p = rd_kafka_NewPartitions_new(topic, partitions, err, sizeof(err));
	rd_kafka_event_t *ev;
	const rd_kafka_topic_result_t **results;
	size_t n;

	if (!p)
		die("%s", err);
	rd_kafka_CreatePartitions(rk, &p, 1, NULL, queue);
	ev = admin_result(queue);
	results =
		rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(ev), &n);
	check_topics(results, n);
	rd_kafka_event_destroy(ev);
	rd_kafka_NewPartitions_destroy(p);
	rd_kafka_queue_destroy(queue);
	wait_partitions(rk, topic, partitions);
}

static void delete (rd_kafka_t *rk, const char *topic)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_DeleteTopic_t *t = rd_kafka_DeleteTopic_new(topic);
	rd_kafka_event_t *ev;
	const rd_kafka_topic_result_t **results;
	size_t n;

	rd_kafka_DeleteTopics(rk, &t, 1, NULL, queue);
	ev = admin_result(queue);
	results = rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(ev), &n);
	check_topics(results, n);
	rd_kafka_event_destroy(ev);
	rd_kafka_DeleteTopic_destroy(t);
	rd_kafka_queue_destroy(queue);
	wait_partitions(rk, topic, -1);
}

static void
trim(rd_kafka_t *rk, const char *topic, int partition, int64_t offset)
{
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_DeleteRecords_t *d;
	rd_kafka_event_t *ev;
	const rd_kafka_topic_partition_list_t *result;

	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = offset;
	d = rd_kafka_DeleteRecords_new(list);
	rd_kafka_DeleteRecords(rk, &d, 1, NULL, queue);
	ev = admin_result(queue);
	result = rd_kafka_DeleteRecords_result_offsets(rd_kafka_event_DeleteRecords_result(ev));
	for (int i = 0; i < result->cnt; i++)
		if (result->elems[i].err)
			die("%s", rd_kafka_err2str(result->elems[i].err));
	rd_kafka_event_destroy(ev);
	rd_kafka_DeleteRecords_destroy(d);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_queue_destroy(queue);
}

static void
topics(rd_kafka_t *rk)
{
	const struct rd_kafka_metadata *md;
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 1, NULL, &md, TIMEOUT_MS);

	if (err)
		die("metadata: %s", rd_kafka_err2str(err));
	for (int i = 0; i < md->topic_cnt; i++)
		printf("%s\t%d\n", md->topics[i].topic, md->topics[i].partition_cnt);
	rd_kafka_metadata_destroy(md);
}

static void
watermarks(rd_kafka_t *rk, const char *topic)
{
	int n = partitions_of(rk, topic);

	if (n < 0)
		die("topic \"%s\" does not exist", topic);
	for (int p = 0; p < n; p++)
	{
		int64_t low, high;
		rd_kafka_resp_err_t err =
			rd_kafka_query_watermark_offsets(rk, topic, p, &low, &high, TIMEOUT_MS);

		if (err)
			die("partition %d: %s", p, rd_kafka_err2str(err));
		printf("%d\t%lld\t%lld\n", p, (long long) low, (long long) high);
	}
}

/* ---- Records ---- */

static int
hex(int c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Undo the escapes in place; gives the length. */
static size_t
unescape(char *s)
{
	char *out = s;
	char *start = s;

	for (; *s; s++)
	{
		if (*s != '\\')
		{
			*out++ = *s;
			continue;
		}
		switch (*++s)
		{
			case 't':
				*out++ = '\t';
				break;
			case 'n':
				*out++ = '\n';
				break;
			case 'r':
				*out++ = '\r';
				break;
			case '\\':
				*out++ = '\\';
				break;
			case 'x':
				if (hex(s[1]) >= 0 && hex(s[2]) >= 0)
				{
					*out++ = (char) (hex(s[1]) * 16 + hex(s[2]));
					s += 2;
					break;
				}
				/* fall through */
			default:
				die("bad escape in a record");
		}
	}
	return (size_t) (out - start);
}

static void
escape(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) s[i];

		if (c == '\\')
			fputs("\\\\", stdout);
		else if (c == '\t')
			fputs("\\t", stdout);
		else if (c == '\n')
			fputs("\\n", stdout);
		else if (c == '\r')
			fputs("\\r", stdout);
		else if (c < 0x20 || c >= 0x7f)
			printf("\\x%02x", c);
		else
			putchar(c);
	}
}

/* Send one line's record; the line is changed. */
static void
send_line(rd_kafka_t *rk, const char *topic, char *line)
{
	int32_t partition = RD_KAFKA_PARTITION_UA;
	int64_t when = 0;
	char *key = NULL, *value = NULL;
	size_t keylen = 0, valuelen = 0;
	rd_kafka_headers_t *headers = rd_kafka_headers_new(4);
	char *field, *rest = line;

	while ((field = strsep(&rest, "\t")) != NULL)
	{
		char *eq = strchr(field, '=');

		if (*field == '\0')
			continue;
		if (eq)
			*eq++ = '\0';
		if (strncmp(field, "header:", 7) == 0)
			rd_kafka_header_add(headers, field + 7, -1, eq, eq ? (ssize_t) unescape(eq) : 0);
		else if (!eq)
			die("field without \"=\": \"%s\"", field);
		else if (strcmp(field, "key") == 0)
			keylen = unescape(key = eq);
		else if (strcmp(field, "value") == 0)
			valuelen = unescape(value = eq);
		else if (strcmp(field, "partition") == 0)
			partition = (int32_t) number(eq, "partition");
		else if (strcmp(field, "time") == 0)
			when = number(eq, "time");
		else if (strcmp(field, "offset") != 0)
			die("no field is named \"%s\"", field);
	}
	for (;;)
	{
		rd_kafka_headers_t *copy = rd_kafka_headers_copy(headers);
		rd_kafka_resp_err_t err =
			rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
							  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_KEY(key, keylen),
							  RD_KAFKA_V_VALUE(value, valuelen), RD_KAFKA_V_TIMESTAMP(when),
							  RD_KAFKA_V_HEADERS(copy), RD_KAFKA_V_END);

		if (!err)
			break;
		rd_kafka_headers_destroy(copy);
		if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL)
			die("%s", rd_kafka_err2str(err));
		rd_kafka_poll(rk, 100);
	}
	rd_kafka_headers_destroy(headers);
	rd_kafka_poll(rk, 0);
}

static void
produce(rd_kafka_t *rk, const char *topic)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t len;
	long n = 0;

	while ((len = getline(&line, &size, stdin)) > 0)
	{
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		send_line(rk, topic, line);
		n++;
	}
	free(line);
	if (rd_kafka_flush(rk, TIMEOUT_MS) || failures)
		die("%ld of %ld records were not taken: %s", failures + rd_kafka_outq_len(rk), n,
			failures ? last_failure : "time-out");
	printf("%ld\n", n);
}

static void
print_record(const rd_kafka_message_t *m)
{
	rd_kafka_headers_t *headers;
	const char *name;
	const void *value;
	size_t len;

	printf("partition=%d\toffset=%lld\ttime=%lld", (int) m->partition, (long long) m->offset,
		   (long long) rd_kafka_message_timestamp(m, NULL));
	if (m->key)
	{
		fputs("\tkey=", stdout);
		escape(m->key, m->key_len);
	}
	if (rd_kafka_message_headers(m, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		for (size_t i = 0;
			 rd_kafka_header_get_all(headers, i, &name, &value, &len) == RD_KAFKA_RESP_ERR_NO_ERROR;
			 i++)
		{
			printf("\theader:%s", name);
			if (value)
			{
				putchar('=');
				escape(value, len);
			}
		}
	}
	if (m->payload)
	{
		fputs("\tvalue=", stdout);
		escape(m->payload, m->len);
	}
	putchar('\n');
}

/* All partitions, or one from an offset, up to where they end. */
static void
consume(rd_kafka_t *rk, const char *topic, int only, int64_t from, long max)
{
	int n = partitions_of(rk, topic);
	int open = 0;
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_resp_err_t err;

	if (n < 0)
		die("topic \"%s\" does not exist", topic);
	list = rd_kafka_topic_partition_list_new(n);
	for (int p = 0; p < n; p++)
	{
		if (only >= 0 && p != only)
			continue;
		rd_kafka_topic_partition_list_add(list, topic, p)->offset =
			from >= 0 ? from : RD_KAFKA_OFFSET_BEGINNING;
		open++;
	}
	err = rd_kafka_assign(rk, list);
	if (err)
		die("%s", rd_kafka_err2str(err));
	rd_kafka_topic_partition_list_destroy(list);
	while (open > 0 && max != 0)
	{
		rd_kafka_message_t *m = rd_kafka_consumer_poll(rk, TIMEOUT_MS);

		if (!m)
			die("nothing from the broker for %d s", TIMEOUT_MS / 1000);
		if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
			open--;
		else if (m->err)
			die("%s", rd_kafka_message_errstr(m));
		else
		{
			print_record(m);
			max--;
		}
		rd_kafka_message_destroy(m);
	}
}

/* ---- Groups ---- */

static void
offsets(rd_kafka_t *rk)
{
	const struct rd_kafka_metadata *md;
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 1, NULL, &md, TIMEOUT_MS);

	if (err)
		die("metadata: %s", rd_kafka_err2str(err));
	for (int i = 0; i < md->topic_cnt; i++)
		if (strncmp(md->topics[i].topic, "__", 2) != 0)
			for (int p = 0; p < md->topics[i].partition_cnt; p++)
				rd_kafka_topic_partition_list_add(list, md->topics[i].topic, p);
	rd_kafka_metadata_destroy(md);
	if (list->cnt > 0 && (err = rd_kafka_committed(rk, list, TIMEOUT_MS)) != 0)
		die("%s", rd_kafka_err2str(err));
	for (int i = 0; i < list->cnt; i++)
	{
		rd_kafka_topic_partition_t *e = &list->elems[i];

		if (e->offset < 0)
			continue;
		printf("%s\t%d\t%lld\t", e->topic, (int) e->partition, (long long) e->offset);
		escape(e->metadata, e->metadata_size);
		putchar('\n');
	}
	rd_kafka_topic_partition_list_destroy(list);
}

static void
commit(rd_kafka_t *rk, const char *topic, int partition, int64_t offset, const char *metadata)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *e = rd_kafka_topic_partition_list_add(list, topic, partition);
	rd_kafka_resp_err_t err;

	e->offset = offset;
	if (metadata)
	{
		e->metadata = strdup(metadata);
		e->metadata_size = strlen(metadata);
	}
	err = rd_kafka_commit(rk, list, 0);
	if (err)
		die("%s", rd_kafka_err2str(err));
	rd_kafka_topic_partition_list_destroy(list);
}

int
main(int argc, char **argv)
{
	int opt;
	const char *cmd;
	char **a;
	int n;
	rd_kafka_t *rk;

	while ((opt = getopt(argc, argv, "+b:X:h")) != -1)
	{
		switch (opt)
		{
			case 'b':
				brokers = optarg;
				break;
			case 'X':
				if (nsettings == 64)
					die("too many settings");
				settings[nsettings++] = optarg;
				break;
			case 'h':
				usage(stdout);
				return 0;
			default:
				usage(stderr);
				return 2;
		}
	}
	if (!brokers || optind == argc)
	{
		usage(stderr);
		return 2;
	}
	cmd = argv[optind];
	a = argv + optind + 1;
	n = argc - optind - 1;

#define IS(name, least, most) (strcmp(cmd, name) == 0 && n >= (least) && n <= (most))

	if (IS("consume", 1, 4))
		consume(rk = client(RD_KAFKA_CONSUMER, "kprobe"), a[0],
				n > 1 ? (int) number(a[1], "PARTITION") : -1, n > 2 ? number(a[2], "OFFSET") : -1,
				n > 3 ? number(a[3], "MAX") : -1);
	else if (IS("offsets", 1, 1))
		offsets(rk = client(RD_KAFKA_CONSUMER, a[0]));
	else if (IS("commit", 4, 5))
		commit(rk = client(RD_KAFKA_CONSUMER, a[0]), a[1], (int) number(a[2], "PARTITION"),
			   number(a[3], "OFFSET"), n > 4 ? a[4] : NULL);
	else
	{
		rk = client(RD_KAFKA_PRODUCER, NULL);
		if (IS("create", 2, 50))
			create(rk, a[0], (int) number(a[1], "PARTITIONS"), a + 2, n - 2);
		else if (IS("alter", 2, 2))
			alter(rk, a[0], (int) number(a[1], "PARTITIONS"));
		else if (IS("delete", 1, 1))
			delete (rk, a[0]);
		else if (IS("trim", 3, 3))
			trim(rk, a[0], (int) number(a[1], "PARTITION"), number(a[2], "OFFSET"));
		else if (IS("topics", 0, 0))
			topics(rk);
		else if (IS("watermarks", 1, 1))
			watermarks(rk, a[0]);
		else if (IS("produce", 1, 1))
			produce(rk, a[0]);
		else
		{
			usage(stderr);
			return 2;
		}
	}
	if (rd_kafka_type(rk) == RD_KAFKA_CONSUMER)
		rd_kafka_consumer_close(rk);
	rd_kafka_destroy(rk);
	return 0;
}
