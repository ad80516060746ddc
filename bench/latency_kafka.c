/*
 * latency_kafka.c: the way to Kafka and from it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#include "latency.h"

#define TIMEOUT_MS 10000

static rd_kafka_t *producer;
static rd_kafka_t *consumer;
static rd_kafka_topic_t *target;
static rd_kafka_queue_t *queue;
static int signal_pipe[2];

static void
set(rd_kafka_conf_t *conf, const char *key, const char *value)
{
	char error[512];

	if (rd_kafka_conf_set(conf, key, value, error, sizeof(error)) != RD_KAFKA_CONF_OK)
		die("%s", error);
}

static rd_kafka_t *
client(rd_kafka_type_t type, rd_kafka_conf_t *conf, const char *brokers)
{
	char error[512];
	rd_kafka_t *rk;

	set(conf, "bootstrap.servers", brokers);
	set(conf, "socket.nagle.disable", "true");
	rk = rd_kafka_new(type, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	return rk;
}

static void
delivered(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (message->err)
		die("not delivered: %s", rd_kafka_err2str(message->err));
}

/* All partitions, from behind what is there. */
static void
assign_end(const char *topic)
{
	rd_kafka_topic_t *rkt = rd_kafka_topic_new(consumer, topic, NULL);
	const struct rd_kafka_metadata *metadata;
	rd_kafka_topic_partition_list_t *parts;
	rd_kafka_resp_err_t err = rd_kafka_metadata(consumer, 0, rkt, &metadata, TIMEOUT_MS);

	if (err)
		die("%s", rd_kafka_err2str(err));
	if (metadata->topic_cnt != 1 || metadata->topics[0].partition_cnt == 0)
		die("there is no topic \"%s\"", topic);
	parts = rd_kafka_topic_partition_list_new(metadata->topics[0].partition_cnt);
	for (int i = 0; i < metadata->topics[0].partition_cnt; i++)
	{
		int64_t low;
		int64_t high;

		err = rd_kafka_query_watermark_offsets(consumer, topic, i, &low, &high, TIMEOUT_MS);
		if (err)
			die("%s", rd_kafka_err2str(err));
		rd_kafka_topic_partition_list_add(parts, topic, i)->offset = high;
	}
	err = rd_kafka_assign(consumer, parts);
	if (err)
		die("%s", rd_kafka_err2str(err));
	rd_kafka_topic_partition_list_destroy(parts);
	rd_kafka_metadata_destroy(metadata);
	rd_kafka_topic_destroy(rkt);
}

int
kafka_open(const char *brokers, const char *topic)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	set(conf, "linger.ms", "0");
	set(conf, "acks", "all");
	set(conf, "enable.idempotence", "true");
	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	producer = client(RD_KAFKA_PRODUCER, conf, brokers);
	target = rd_kafka_topic_new(producer, topic, NULL);

	conf = rd_kafka_conf_new();
	set(conf, "group.id", "latency");
	set(conf, "enable.auto.commit", "false");
	set(conf, "fetch.wait.max.ms", "500");
	consumer = client(RD_KAFKA_CONSUMER, conf, brokers);
	assign_end(topic);
	queue = rd_kafka_queue_get_consumer(consumer);
	if (pipe2(signal_pipe, O_NONBLOCK) != 0)
		die("no pipe");
	rd_kafka_queue_io_event_enable(queue, signal_pipe[1], "q", 1);
	/* until it fetches; only an empty queue tells when something comes */
	sleep(1);
	kafka_take(NULL);
	return signal_pipe[0];
}

void
kafka_take(void (*each)(const char *value, size_t len))
{
	char signals[256];
	rd_kafka_message_t *message;

	while (read(signal_pipe[0], signals, sizeof(signals)) > 0)
		;
	while ((message = rd_kafka_consume_queue(queue, 0)) != NULL)
	{
		if (message->err)
			die("consumer: %s", rd_kafka_message_errstr(message));
		if (each != NULL)
			each(message->payload, message->len);
		rd_kafka_message_destroy(message);
	}
}

void
kafka_publish(const char *key, const char *value, size_t len)
{
	if (rd_kafka_produce(target, RD_KAFKA_PARTITION_UA, RD_KAFKA_MSG_F_COPY, (void *) value, len,
						 key, strlen(key), NULL) != 0)
		die("%s", rd_kafka_err2str(rd_kafka_last_error()));
	rd_kafka_poll(producer, 0);
}
