/*-------------------------------------------------------------------------
 *
 * evgen_out.h
 *	  Where records go: a Kafka topic, JSON lines, or SQL for psql.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVGEN_OUT_H
#define EVGEN_OUT_H

#include <librdkafka/rdkafka.h>

#include "evgen_make.h"

#define MAX_KAFKA_OPTIONS 32
#define LARGEST_MESSAGE   "4000000"
#define TOPIC_WAIT_MS     10000

typedef struct OutOptions
{
	const char *brokers;
	const char *topic;
	const char *kafka_options[MAX_KAFKA_OPTIONS]; /* key=value */
	int kafka_option_count;
	bool check_topic;
	const char *file; /* JSON or SQL; "-" is standard output */
	const char *schema;
	uint32_t batch;
} OutOptions;

typedef struct Output
{
	Target target;
	const OutOptions *options;
	Writer writer;
	uint32_t in_batch;
	rd_kafka_t *kafka;
	rd_kafka_topic_t *topic;
	uint64_t handed_over; /* to librdkafka */
	uint64_t delivered;
	uint64_t failed;
} Output;

/* ---- Kafka ---- */

static void
on_delivery(rd_kafka_t *kafka, const rd_kafka_message_t *message, void *opaque)
{
	Output *out = opaque;

	(void) kafka;
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		out->delivered++;
	else if (out->failed++ == 0)
		fprintf(stderr, "evgen: a record was not delivered: %s\n", rd_kafka_err2str(message->err));
}

static void
on_error(rd_kafka_t *kafka, int error, const char *reason, void *opaque)
{
	(void) opaque;
	if (error == RD_KAFKA_RESP_ERR__FATAL)
	{
		char text[512];

		rd_kafka_fatal_error(kafka, text, sizeof(text));
		die("Kafka: %s", text);
	}
	fprintf(stderr, "evgen: Kafka: %s\n", reason);
}

static void
set_kafka_option(rd_kafka_conf_t *conf, const char *key, const char *value)
{
	char error[512];

	if (rd_kafka_conf_set(conf, key, value, error, sizeof(error)) != RD_KAFKA_CONF_OK)
		die("Kafka option %s: %s", key, error);
}

static void
check_topic(Output *out)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t error;

	error = rd_kafka_metadata(out->kafka, 0, out->topic, &metadata, TOPIC_WAIT_MS);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("could not ask %s for topic \"%s\": %s", out->options->brokers, out->options->topic,
			rd_kafka_err2str(error));
	error = metadata->topics[0].err;
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR || metadata->topics[0].partition_cnt == 0)
		die("topic \"%s\": %s (make it first, or use --partitions-check no)", out->options->topic,
			rd_kafka_err2str(error));
	rd_kafka_metadata_destroy(metadata);
}

static void
open_kafka(Output *out)
{
	const OutOptions *options = out->options;
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char error[512];

	set_kafka_option(conf, "bootstrap.servers", options->brokers);
	set_kafka_option(conf, "acks", "all");
	set_kafka_option(conf, "enable.idempotence", "true");
	/* A batch that is refused is lost if a new partition takes the one behind it. */
	set_kafka_option(conf, "max.in.flight", "1");
	set_kafka_option(conf, "linger.ms", "20");
	set_kafka_option(conf, "queue.buffering.max.messages", "200000");
	set_kafka_option(conf, "message.max.bytes", LARGEST_MESSAGE);
	/* so that records too large for evstream still pass a broker's limit */
	set_kafka_option(conf, "compression.codec", "lz4");
	for (int i = 0; i < options->kafka_option_count; i++)
	{
		const char *equals = strchr(options->kafka_options[i], '=');
		char key[256];

		if (equals == NULL || equals - options->kafka_options[i] >= (int) sizeof(key))
			die("--kafka-option needs KEY=VALUE");
		*put_bytes(key, options->kafka_options[i], equals - options->kafka_options[i]) = '\0';
		set_kafka_option(conf, key, equals + 1);
	}
	rd_kafka_conf_set_opaque(conf, out);
	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_log_cb(conf, NULL); /* errors come to on_error */
	out->kafka = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (out->kafka == NULL)
		die("Kafka: %s", error);
	out->topic = rd_kafka_topic_new(out->kafka, options->topic, NULL);
	if (out->topic == NULL)
		die("Kafka: %s", rd_kafka_err2str(rd_kafka_last_error()));
	if (options->check_topic)
		check_topic(out);
}

static void
send_to_kafka(Output *out, const Record *record)
{
	const char *key = record->key_len > 0 ? record->key : NULL;
	rd_kafka_resp_err_t error;

	for (;;)
	{
		error = rd_kafka_producev(out->kafka, RD_KAFKA_V_RKT(out->topic),
								  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
								  RD_KAFKA_V_KEY(key, record->key_len),
								  RD_KAFKA_V_VALUE((void *) record->value, record->value_len),
								  RD_KAFKA_V_TIMESTAMP(record->record_ms), RD_KAFKA_V_END);
		if (error != RD_KAFKA_RESP_ERR__QUEUE_FULL)
			break;
		rd_kafka_poll(out->kafka, 20);
	}
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		die("Kafka: %s", rd_kafka_err2str(error));
	if (++out->handed_over % 1024 == 0)
		rd_kafka_poll(out->kafka, 0);
}

/* ---- SQL ---- */

static void
begin_statement(Output *out)
{
	const char *schema = out->options->schema;
	size_t plain = strspn(schema, "abcdefghijklmnopqrstuvwxyz_0123456789");
	bool quoted = schema[plain] != '\0' || (*schema >= '0' && *schema <= '9');
	char *p = writer_room(&out->writer, 1024);

	p = put_text(p, quoted ? "SELECT \"" : "SELECT ");
	for (const char *c = schema; *c != '\0'; c++)
	{
		if (*c == '"')
			*p++ = '"';
		*p++ = *c;
	}
	if (quoted)
		*p++ = '"';
	p = put_text(p, ".evstream_track_batch($evgen$[\n");
	writer_end(&out->writer, p);
}

static void
end_statement(Output *out)
{
	char *p = writer_room(&out->writer, 64);

	writer_end(&out->writer, put_text(p, "\n]$evgen$::jsonb, 'dead_letter');\n"));
	out->in_batch = 0;
}

/* ---- all ---- */

/* options must outlive the output. */
static void
output_open(Output *out, Target target, const OutOptions *options)
{
	memset(out, 0, sizeof(*out));
	out->target = target;
	out->options = options;
	if (target == TO_KAFKA)
		open_kafka(out);
	else
		writer_open(&out->writer, options->file);
}

static void
output_send(Output *out, const Record *record)
{
	switch (out->target)
	{
		case TO_KAFKA:
			send_to_kafka(out, record);
			break;
		case TO_JSON:
			writer_put(&out->writer, record->value, record->value_len);
			writer_put(&out->writer, "\n", 1);
			break;
		case TO_SQL:
			if (out->in_batch == 0)
				begin_statement(out);
			else
				writer_put(&out->writer, ",\n", 2);
			writer_put(&out->writer, record->value, record->value_len);
			if (++out->in_batch == out->options->batch)
				end_statement(out);
			break;
	}
}

/* Let what was sent go on its way, and wait that long. */
static void
output_wait(Output *out, int milliseconds)
{
	if (out->target == TO_KAFKA)
		rd_kafka_poll(out->kafka, milliseconds);
	else
	{
		struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000L};

		writer_flush(&out->writer);
		nanosleep(&pause, NULL);
	}
}

/* Wait until what was sent has been delivered, or given up. */
static void
output_deliver(Output *out)
{
	/* ends: librdkafka gives up on a record after message.timeout.ms */
	while (rd_kafka_outq_len(out->kafka) > 0)
		rd_kafka_flush(out->kafka, 1000);
}

/* True once everything has arrived. */
static bool
output_close(Output *out)
{
	if (out->target != TO_KAFKA)
	{
		if (out->in_batch > 0)
			end_statement(out);
		writer_close(&out->writer);
		return true;
	}
	output_deliver(out);
	rd_kafka_topic_destroy(out->topic);
	rd_kafka_destroy(out->kafka);
	if (out->delivered == out->handed_over)
		return true;
	fprintf(stderr, "evgen: %llu of %llu records were not delivered\n",
			(unsigned long long) (out->handed_over - out->delivered),
			(unsigned long long) out->handed_over);
	return false;
}

#endif /* EVGEN_OUT_H */
