/*
 * latency: how long it takes from a commit to the message at a subscriber of Redis, or
 * to the record at a consumer of Kafka.
 *
 * Clients run one statement each in a transaction of its own, evenly at a rate, and
 * one connection to Redis listens on a channel, or one to Kafka on a topic.  Both ends are this process, so that
 * there is one clock.  The time of an event begins when the statement is sent, before
 * its commit, and ends when the message has been read.  With -p it is this program
 * that publishes, once the server has answered the commit: the least that an
 * application would need which does so by itself.
 */
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "latency.h"

#define MAX_CLIENTS 64
#define MARK        "latency-" /* the user of event n is latency-n */
#define LAST_WAIT   10.0       /* seconds for messages after the last commit */
#define LEAST_RATE  0.95       /* of what was asked for, or the figures are of another load */

typedef struct Client
{
	PGconn *conn;
	long event; /* being committed; -1: free */
} Client;

typedef struct Buffer
{
	char data[1 << 20];
	size_t len;
} Buffer;

static Client clients[MAX_CLIENTS];
static int nclients = 16;
static double rate = 1000;
static double seconds = 10;
static double warm = 2; /* seconds that are not counted */
static const char *channel;
static bool publishes = false;
static bool by_kafka = false;

static double *begun;
static double *taken; /* seconds; below 0: not arrived */
static long nevents;
static long narrived = 0;

void
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("latency: ", stderr);
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

/* ---- Redis ---- */

static int
redis_connect(const char *address)
{
	char *host = strdup(address);
	char *port = strrchr(host, ':');
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *found;
	int one = 1;
	int fd;

	if (port == NULL)
		die("HOST:PORT and not \"%s\"", address);
	*port++ = '\0';
	if (getaddrinfo(host, port, &hints, &found) != 0)
		die("no address for \"%s\"", address);
	fd = socket(found->ai_family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0)
		die("could not connect to Redis at %s: %s", address, strerror(errno));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	freeaddrinfo(found);
	free(host);
	return fd;
}

static void
redis_send(int fd, const char *format, ...)
{
	char text[1024];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (len >= (int) sizeof(text) || write(fd, text, len) != len)
		die("could not write to Redis");
}

static void
publish(int fd, long event)
{
	char message[512];
	int len = snprintf(message, sizeof(message),
					   "{\"user_id\":\"" MARK
					   "%ld\",\"event_type\":\"view\",\"properties\":{\"item_id\":\"sku-1\","
					   "\"page\":\"/catalogue\",\"device\":\"mobile\"},\"filler\":\"%0200d\"}",
					   event, 0);
	char user[32];

	if (by_kafka)
	{
		snprintf(user, sizeof(user), MARK "%ld", event);
		kafka_publish(user, message, len);
	}
	else
		redis_send(fd, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%d\r\n%s\r\n", strlen(channel),
				   channel, len, message);
}

static void
redis_read(int fd, Buffer *buffer)
{
	ssize_t got = read(fd, buffer->data + buffer->len, sizeof(buffer->data) - 1 - buffer->len);

	if (got <= 0)
		die("the connection to Redis was lost");
	buffer->len += got;
	buffer->data[buffer->len] = '\0';
}

static void
take_event(long event, double at)
{
	if (event < 0 || event >= nevents || begun[event] == 0)
		die("a message of event %ld, which was not sent", event);
	if (taken[event] < 0)
	{
		taken[event] = at - begun[event];
		narrived++;
	}
}

static void
take_record(const char *value, size_t len)
{
	const char *found = memmem(value, len, MARK, strlen(MARK));

	if (found != NULL)
		take_event(strtol(found + strlen(MARK), NULL, 10), now());
}

/* Takes the events that the messages name: the mark, digits, a quote. */
static void
take_messages(Buffer *buffer, double at)
{
	char *from = buffer->data;
	char *found;

	while ((found = strstr(from, MARK)) != NULL)
	{
		char *end;
		long event = strtol(found + strlen(MARK), &end, 10);

		if (*end == '\0')
			break;
		from = end;
		take_event(event, at);
	}
	if (found == NULL)
	{
		/* the mark may be cut in two */
		char *last = buffer->data + buffer->len - (strlen(MARK) - 1);

		from = last > from ? last : from;
	}
	else
		from = found;
	buffer->len -= from - buffer->data;
	memmove(buffer->data, from, buffer->len + 1);
}

/* ---- PostgreSQL ---- */

static void
connect_clients(const char *conninfo, const char *sql)
{
	for (int i = 0; i < nclients; i++)
	{
		PGresult *result;

		clients[i].conn = PQconnectdb(conninfo);
		clients[i].event = -1;
		if (PQstatus(clients[i].conn) != CONNECTION_OK)
			die("%s", PQerrorMessage(clients[i].conn));
		result = PQprepare(clients[i].conn, "event", sql, 1, NULL);
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			die("%s", PQerrorMessage(clients[i].conn));
		PQclear(result);
	}
}

static void
begin_event(Client *client, long event)
{
	char user[32];
	const char *values[1] = {user};

	snprintf(user, sizeof(user), MARK "%ld", event);
	client->event = event;
	begun[event] = now();
	if (!PQsendQueryPrepared(client->conn, "event", 1, values, NULL, NULL, 0))
		die("%s", PQerrorMessage(client->conn));
}

/* True once the event is committed. */
static bool
end_event(Client *client)
{
	PGresult *result;

	if (!PQconsumeInput(client->conn))
		die("%s", PQerrorMessage(client->conn));
	while (!PQisBusy(client->conn))
	{
		result = PQgetResult(client->conn);
		if (result == NULL)
			return true;
		if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
			die("%s", PQerrorMessage(client->conn));
		PQclear(result);
	}
	return false;
}

/* ---- the run ---- */

static void
run(int listener, int publisher)
{
	static Buffer messages;
	static Buffer answers;
	struct pollfd fds[MAX_CLIENTS + 2];
	double start = now();
	double last_commit = start;
	long next = 0;
	long ncommitted = 0;

	while (ncommitted < nevents || narrived < nevents)
	{
		double at = now();
		double due = start + next / rate;
		double wait = ncommitted == nevents ? last_commit + LAST_WAIT - at : 1;
		struct timespec timeout;
		Client *unused = NULL;

		if (wait <= 0)
			die("%ld of %ld messages did not arrive", nevents - narrived, nevents);
		for (int i = 0; i < nclients && unused == NULL; i++)
			unused = clients[i].event < 0 ? &clients[i] : NULL;
		if (next < nevents && unused != NULL)
		{
			if (at >= due)
			{
				begin_event(unused, next++);
				continue;
			}
			wait = due - at;
		}

		for (int i = 0; i < nclients; i++)
			fds[i] =
				(struct pollfd){clients[i].event < 0 ? -1 : PQsocket(clients[i].conn), POLLIN, 0};
		fds[nclients] = (struct pollfd){listener, POLLIN, 0};
		fds[nclients + 1] = (struct pollfd){publisher, POLLIN, 0};
		timeout.tv_sec = (time_t) wait;
		timeout.tv_nsec = (long) ((wait - timeout.tv_sec) * 1e9);
		if (ppoll(fds, nclients + 2, &timeout, NULL) < 0)
			die("ppoll: %s", strerror(errno));

		if (fds[nclients].revents && by_kafka)
			kafka_take(take_record);
		else if (fds[nclients].revents)
		{
			redis_read(listener, &messages);
			take_messages(&messages, now());
		}
		if (fds[nclients + 1].revents)
		{
			redis_read(publisher, &answers);
			if (memchr(answers.data, '-', answers.len) != NULL)
				die("Redis refuses to publish: %s", answers.data);
			answers.len = 0;
		}
		for (int i = 0; i < nclients; i++)
		{
			if (fds[i].revents && end_event(&clients[i]))
			{
				if (publishes)
					publish(publisher, clients[i].event);
				clients[i].event = -1;
				ncommitted++;
				last_commit = now();
			}
		}
	}
	if (nevents / (last_commit - start) < LEAST_RATE * rate)
		die("only %.0f events/s were committed, of %.0f", nevents / (last_commit - start), rate);
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
usage(void)
{
	fputs(
		"usage: latency -d CONNINFO -r HOST:PORT -c CHANNEL -s SQL [-p] [-n EVENTS/S] [-t SECONDS] [-j CLIENTS]\n"
		"       latency -d CONNINFO -k HOST:PORT -c TOPIC   (the same)\n"
		"SQL is given the user as $1. Prints ms: p50 p95 p99 max.\n",
		stderr);
	exit(2);
}

int
main(int argc, char **argv)
{
	const char *conninfo = NULL;
	const char *redis = NULL;
	const char *brokers = NULL;
	const char *sql = NULL;
	static Buffer hello;
	int listener;
	int publisher;
	long first;
	long n;
	int c;

	while ((c = getopt(argc, argv, "d:r:k:c:s:pn:t:j:")) != -1)
	{
		switch (c)
		{
			case 'd':
				conninfo = optarg;
				break;
			case 'r':
				redis = optarg;
				break;
			case 'k':
				brokers = optarg;
				by_kafka = true;
				break;
			case 'c':
				channel = optarg;
				break;
			case 's':
				sql = optarg;
				break;
			case 'p':
				publishes = true;
				break;
			case 'n':
				rate = atof(optarg);
				break;
			case 't':
				seconds = atof(optarg);
				break;
			case 'j':
				nclients = atoi(optarg);
				break;
			default:
				usage();
		}
	}
	if (!conninfo || !redis == !brokers || !channel || !sql || rate <= 0 || seconds <= 0 ||
		nclients < 1 || nclients > MAX_CLIENTS)
		usage();

	first = (long) (warm * rate);
	nevents = first + (long) (seconds * rate);
	begun = calloc(nevents, sizeof(double));
	taken = malloc(nevents * sizeof(double));
	if (begun == NULL || taken == NULL)
		die("out of memory");
	for (long i = 0; i < nevents; i++)
		taken[i] = -1;

	connect_clients(conninfo, sql);
	if (by_kafka)
	{
		listener = kafka_open(brokers, channel);
		publisher = -1;
	}
	else
	{
		publisher = redis_connect(redis);
		listener = redis_connect(redis);
		redis_send(listener, "*2\r\n$9\r\nSUBSCRIBE\r\n$%zu\r\n%s\r\n", strlen(channel), channel);
		while (strstr(hello.data, ":1\r\n") == NULL)
			redis_read(listener, &hello);
	}

	run(listener, publisher);

	n = nevents - first;
	qsort(taken + first, n, sizeof(double), compare);
	printf("%.3f %.3f %.3f %.3f\n", taken[first + n / 2] * 1e3, taken[first + n * 95 / 100] * 1e3,
		   taken[first + n * 99 / 100] * 1e3, taken[first + n - 1] * 1e3);
	return 0;
}
