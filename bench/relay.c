/*
 * relay: rows of a query to a Kafka topic, as fast as one process can: what a program
 * would do that takes an outbox to Kafka with nothing to keep in mind.
 *
 * The query's two columns, key and value, come by COPY; the producer is librdkafka's,
 * idempotent and with acks=all.  Prints the rows and the seconds from the query to the
 * last delivery.
 */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>
#include <librdkafka/rdkafka.h>

static long ndelivered = 0;
static long nfailed = 0;

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("relay: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
delivered(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (message->err)
		nfailed++;
	else
		ndelivered++;
}

static rd_kafka_t *
open_producer(const char *brokers)
{
	static const char *const settings[][2] = {
		{"enable.idempotence", "true"},
		{"acks", "all"},
		{"compression.type", "lz4"},
		{"linger.ms", "5"},
		{"queue.buffering.max.messages", "500000"},
	};
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	char error[512];

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error, sizeof(error)) !=
			RD_KAFKA_CONF_OK)
			die("%s", error);
	if (rd_kafka_conf_set(conf, "bootstrap.servers", brokers, error, sizeof(error)) !=
		RD_KAFKA_CONF_OK)
		die("%s", error);
	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	return rk;
}

/* Takes COPY's escapes out of one field, in place; its length. */
static size_t
unescape(char *field, size_t len)
{
	char *out = field;

	for (size_t i = 0; i < len; i++)
	{
		char c = field[i];

		if (c == '\\' && i + 1 < len)
		{
			static const char from[] = "btnvfr";
			static const char to[] = "\b\t\n\v\f\r";
			const char *found = strchr(from, field[++i]);

			c = found != NULL ? to[found - from] : field[i];
		}
		*out++ = c;
	}
	return out - field;
}

static long
produce_rows(PGconn *conn, rd_kafka_t *rk, rd_kafka_topic_t *topic)
{
	char *row;
	int len;
	long n = 0;

	while ((len = PQgetCopyData(conn, &row, 0)) > 0)
	{
		char *tab = memchr(row, '\t', len);
		size_t key_len;
		size_t value_len;

		if (tab == NULL)
			die("a row of one column");
		key_len = unescape(row, tab - row);
		value_len = unescape(tab + 1, row + len - 1 - (tab + 1));
		while (rd_kafka_produce(topic, RD_KAFKA_PARTITION_UA, RD_KAFKA_MSG_F_COPY, tab + 1,
								value_len, row, key_len, NULL) != 0)
		{
			if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
				die("%s", rd_kafka_err2str(rd_kafka_last_error()));
			rd_kafka_poll(rk, 10);
		}
		if (++n % 1000 == 0)
			rd_kafka_poll(rk, 0);
		PQfreemem(row);
	}
	if (len == -2)
		die("%s", PQerrorMessage(conn));
	return n;
}

int
main(int argc, char **argv)
{
	const char *conninfo = NULL;
	const char *brokers = NULL;
	const char *topic_name = NULL;
	const char *query = NULL;
	char copy[4096];
	PGconn *conn;
	PGresult *result;
	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	double start;
	long n;
	int c;

	while ((c = getopt(argc, argv, "d:b:t:q:")) != -1)
	{
		switch (c)
		{
			case 'd':
				conninfo = optarg;
				break;
			case 'b':
				brokers = optarg;
				break;
			case 't':
				topic_name = optarg;
				break;
			case 'q':
				query = optarg;
				break;
			default:
				conninfo = NULL;
				optind = argc;
		}
	}
	if (!conninfo || !brokers || !topic_name || !query)
	{
		fputs("usage: relay -d CONNINFO -b HOST:PORT -t TOPIC -q QUERY\n", stderr);
		return 2;
	}

	conn = PQconnectdb(conninfo);
	if (PQstatus(conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(conn));
	rk = open_producer(brokers);
	topic = rd_kafka_topic_new(rk, topic_name, NULL);
	if (topic == NULL)
		die("%s", rd_kafka_err2str(rd_kafka_last_error()));

	start = now();
	snprintf(copy, sizeof(copy), "COPY (%s) TO STDOUT", query);
	result = PQexec(conn, copy);
	if (PQresultStatus(result) != PGRES_COPY_OUT)
		die("%s", PQerrorMessage(conn));
	PQclear(result);
	n = produce_rows(conn, rk, topic);
	while (ndelivered + nfailed < n)
		rd_kafka_poll(rk, 100);
	if (nfailed > 0)
		die("%ld of %ld rows were not delivered", nfailed, n);
	printf("%ld %.6f\n", n, now() - start);
	rd_kafka_topic_destroy(topic);
	rd_kafka_destroy(rk);
	PQfinish(conn);
	return 0;
}
