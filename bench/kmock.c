/*-------------------------------------------------------------------------
 *
 * kmock.c
 *	  A Kafka cluster that misbehaves on demand: librdkafka's mock cluster as
 *	  a process of its own, told what to do by lines on standard input.
 *
 * Each line is answered by "ok" or "error: why".  The end of the input ends
 * it.  The cluster keeps everything in memory: at most 5 MB and 100,000 sets
 * of records of each partition.
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define MAX_WORDS 64

static const char help_text[] =
	"usage: kmock BROKERS      prints HOST:PORT,..., then reads lines:\n"
	"  topic NAME PARTITIONS           make a topic\n"
	"  leader TOPIC PARTITION BROKER   another leader; 0: none\n"
	"  coordinator GROUP BROKER        another coordinator of a group\n"
	"  down BROKER | up BROKER         connections are refused, or not\n"
	"  rtt BROKER MILLISECONDS         each answer takes so long\n"
	"  errors REQUEST NAME...          the next such requests fail so: REQUEST is\n"
	"                                  produce, fetch, offsets, metadata, commit,\n"
	"                                  fetch_offsets, coordinator, init_pid; NAME is\n"
	"                                  one of librdkafka's errors, or _TRANSPORT: the\n"
	"                                  connection ends\n"
	"  clear                           no such errors any more\n";

static const struct
{
	const char *name;
	int16_t key; /* of Kafka's protocol */
} requests[] = {{"produce", 0}, {"fetch", 1},         {"offsets", 2},      {"metadata", 3},
				{"commit", 8},  {"fetch_offsets", 9}, {"coordinator", 10}, {"init_pid", 22}};

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void
die(const char *format, ...)
{
	va_list args;

	fputs("kmock: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

/* The error of a name such as NOT_LEADER_FOR_PARTITION; no error: there is none. */
static rd_kafka_resp_err_t
error_of(const char *name)
{
	const struct rd_kafka_err_desc *all;
	size_t count;

	rd_kafka_get_err_descs(&all, &count);
	for (size_t i = 0; i < count; i++)
		if (all[i].name != NULL && strcmp(all[i].name, name) == 0)
			return all[i].code;
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* What is wrong with the command, or NULL: it was done. */
static const char *
push_errors(rd_kafka_mock_cluster_t *cluster, char **words, int count)
{
	rd_kafka_resp_err_t errors[MAX_WORDS];
	int n = 0;

	for (int i = 2; i < count; i++)
	{
		errors[n] = error_of(words[i]);
		if (errors[n++] == RD_KAFKA_RESP_ERR_NO_ERROR)
			return "no such error";
	}
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
		if (strcmp(requests[i].name, words[1]) == 0)
		{
			rd_kafka_mock_push_request_errors_array(cluster, requests[i].key, n, errors);
			return NULL;
		}
	return "no such request";
}

static const char *
obey(rd_kafka_mock_cluster_t *cluster, char **words, int count)
{
	const char *command = count > 0 ? words[0] : "";
	rd_kafka_resp_err_t error;

	if (strcmp(command, "topic") == 0 && count == 3)
		error = rd_kafka_mock_topic_create(cluster, words[1], atoi(words[2]), 1);
	else if (strcmp(command, "leader") == 0 && count == 4)
		error = rd_kafka_mock_partition_set_leader(cluster, words[1], atoi(words[2]),
												   atoi(words[3]) > 0 ? atoi(words[3]) : -1);
	else if (strcmp(command, "coordinator") == 0 && count == 3)
		error = rd_kafka_mock_coordinator_set(cluster, "group", words[1], atoi(words[2]));
	else if (strcmp(command, "down") == 0 && count == 2)
		error = rd_kafka_mock_broker_set_down(cluster, atoi(words[1]));
	else if (strcmp(command, "up") == 0 && count == 2)
		error = rd_kafka_mock_broker_set_up(cluster, atoi(words[1]));
	else if (strcmp(command, "rtt") == 0 && count == 3)
		error = rd_kafka_mock_broker_set_rtt(cluster, atoi(words[1]), atoi(words[2]));
	else if (strcmp(command, "clear") == 0 && count == 1)
	{
		for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
			rd_kafka_mock_clear_request_errors(cluster, requests[i].key);
		return NULL;
	}
	else if (strcmp(command, "errors") == 0 && count > 2)
		return push_errors(cluster, words, count);
	else
		return "no such command";
	return error == RD_KAFKA_RESP_ERR_NO_ERROR ? NULL : rd_kafka_err2str(error);
}

int
main(int argc, char **argv)
{
	char text[512], line[8192];
	rd_kafka_t *client;
	rd_kafka_mock_cluster_t *cluster;

	if (argc != 2 || atoi(argv[1]) < 1)
	{
		fputs(help_text, stderr);
		return 2;
	}
	client = rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), text, sizeof(text));
	if (client == NULL)
		die("%s", text);
	rd_kafka_set_log_level(client, 0);
	cluster = rd_kafka_mock_cluster_new(client, atoi(argv[1]));
	if (cluster == NULL)
		die("could not make a cluster");
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);

	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		char *words[MAX_WORDS];
		int count = 0;
		const char *wrong;

		for (char *word = strtok(line, " \n"); word != NULL && count < MAX_WORDS;
			 word = strtok(NULL, " \n"))
			words[count++] = word;
		wrong = obey(cluster, words, count);
		if (wrong != NULL)
			printf("error: %s\n", wrong);
		else
			puts("ok");
		fflush(stdout);
	}
	rd_kafka_mock_cluster_destroy(cluster);
	rd_kafka_destroy(client);
	return 0;
}
