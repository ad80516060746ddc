/*-------------------------------------------------------------------------
 *
 * bare.c
 *	  The least that a consumer can do: takes records from a Kafka topic, parses
 *	  them with json-c, and throws them away.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>
#include <librdkafka/rdkafka.h>

#define BATCH      10000
#define TIMEOUT_MS 30000

static void
set(rd_kafka_conf_t *conf, const char *key, const char *value)
{
	char error[512];

	if (rd_kafka_conf_set(conf, key, value, error, sizeof(error)) != RD_KAFKA_CONF_OK)
	{
		fprintf(stderr, "bare: %s\n", error);
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	static rd_kafka_message_t *messages[BATCH];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
	json_tokener *tokener = json_tokener_new();
	rd_kafka_queue_t *queue;
	rd_kafka_t *rk;
	char error[512];
	long wanted;
	long n = 0;

	if (argc != 5)
	{
		fprintf(stderr, "usage: bare BROKERS TOPIC PARTITIONS RECORDS\n");
		return 2;
	}
	set(conf, "bootstrap.servers", argv[1]);
	set(conf, "group.id", "bare");
	set(conf, "enable.auto.commit", "false");
	for (int i = 0; i < atoi(argv[3]); i++)
		rd_kafka_topic_partition_list_add(list, argv[2], i)->offset = RD_KAFKA_OFFSET_BEGINNING;
	wanted = atol(argv[4]);

	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	if (rk == NULL)
	{
		fprintf(stderr, "bare: %s\n", error);
		return 1;
	}
	rd_kafka_poll_set_consumer(rk);
	queue = rd_kafka_queue_get_consumer(rk);
	if (rd_kafka_assign(rk, list) != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		fprintf(stderr, "bare: could not assign\n");
		return 1;
	}
	while (n < wanted)
	{
		ssize_t got = rd_kafka_consume_batch_queue(queue, TIMEOUT_MS, messages, BATCH);

		if (got <= 0)
		{
			fprintf(stderr, "bare: only %ld of %ld records came\n", n, wanted);
			return 1;
		}
		for (ssize_t i = 0; i < got; i++)
		{
			json_object *object;

			if (messages[i]->err == RD_KAFKA_RESP_ERR_NO_ERROR)
			{
				json_tokener_reset(tokener);
				object = json_tokener_parse_ex(tokener, messages[i]->payload, messages[i]->len);
				if (object == NULL)
				{
					fprintf(stderr, "bare: no JSON\n");
					return 1;
				}
				json_object_put(object);
				n++;
			}
			rd_kafka_message_destroy(messages[i]);
		}
	}
	/* what is left to do is not of interest */
	_Exit(0);
}
