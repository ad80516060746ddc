/*-------------------------------------------------------------------------
 *
 * kafka_record.c
 *	  Records: taking what was fetched, producing, and delivery reports.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kafka_int.h"

#define FIRST_DELIVERIES 1024

/* A question that lets fetching go on; and how long none is asked after one without an answer. */
#define REFILL_TIMEOUT_MS 100
#define REFILL_PAUSE_MS   10000

/* ---- consuming ---- */

static int
part_compare(const void *a, const void *b)
{
	const AssignedPart *pa = a;
	const AssignedPart *pb = b;
	int cmp = strcmp(pa->topic, pb->topic);

	if (cmp != 0)
		return cmp;
	return (pa->partition > pb->partition) - (pa->partition < pb->partition);
}

KafkaStatus
kafka_assign(KafkaClient *client, const KafkaAssignment *parts, int nparts)
{
	rd_kafka_topic_partition_list_t *list = NULL;
	rd_kafka_resp_err_t err;
	AssignedPart *fresh;

	fresh = calloc(nparts > 0 ? nparts : 1, sizeof(AssignedPart));
	if (fresh == NULL)
		abort();
	for (int i = 0; i < nparts; i++)
	{
		fresh[i].topic = strdup(parts[i].topic);
		if (fresh[i].topic == NULL)
			abort();
		fresh[i].partition = parts[i].partition;
		fresh[i].from = parts[i].offset;
		fresh[i].index = i;
	}
	qsort(fresh, nparts, sizeof(AssignedPart), part_compare);

	for (int i = 0; i < client->nparts; i++)
		free(client->parts[i].topic);
	free(client->parts);
	client->parts = fresh;
	client->nparts = nparts;
	client->last_part = 0;

	if (nparts > 0)
	{
		list = rd_kafka_topic_partition_list_new(nparts);
		for (int i = 0; i < nparts; i++)
			rd_kafka_topic_partition_list_add(list, parts[i].topic, parts[i].partition)->offset =
				parts[i].offset;
	}
	err = rd_kafka_assign(client->rk, list);
	if (list != NULL)
		rd_kafka_topic_partition_list_destroy(list);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return kafka_result(client, "could not assign partitions", err, NULL);
	return KAFKA_OK;
}

/* The assigned partition of a message, or NULL. */
static AssignedPart *
part_find(KafkaClient *client, const rd_kafka_message_t *message)
{
	AssignedPart wanted;
	AssignedPart *found;

	if (message->rkt == NULL || client->nparts == 0)
		return NULL;
	wanted.topic = (char *) rd_kafka_topic_name(message->rkt);
	wanted.partition = message->partition;
	/* Records come in runs. */
	found = &client->parts[client->last_part];
	if (part_compare(&wanted, found) == 0)
		return found;
	found = bsearch(&wanted, client->parts, client->nparts, sizeof(AssignedPart), part_compare);
	if (found != NULL)
		client->last_part = (int) (found - client->parts);
	return found;
}

static int64_t
record_time(const rd_kafka_message_t *message)
{
	int64_t ms = rd_kafka_message_timestamp(message, NULL);

	if (ms < 0)
		return -1;
	return ms > KAFKA_TIME_MAX_MS ? KAFKA_TIME_MAX_MS : ms;
}

/*
 * Lets fetching go on when the queue that it has filled is half empty, where the
 * library would do so only after a second.  Any question to the brokers of the
 * partitions will do: it wakes the threads that fetch.
 */
static void
refill(KafkaClient *client, size_t taken, size_t taken_bytes)
{
	rd_kafka_topic_partition_list_t *list;
	size_t left;
	size_t left_bytes;
	int64_t begun;

	if (client->queue_bytes == 0 || client->nparts == 0 || taken == 0)
		return;
	left = rd_kafka_queue_length(client->consumer_queue);
	left_bytes = left * (taken_bytes / taken);
	if (left + taken >= client->queue_messages / 2 ||
		left_bytes + taken_bytes >= client->queue_bytes / 2)
		client->queue_full = true;
	if (!client->queue_full || left >= client->queue_messages / 2 ||
		left_bytes >= client->queue_bytes / 2)
		return;
	client->queue_full = false;
	begun = kafka_now_ms();
	if (begun < client->refill_after_ms)
		return;

	list = rd_kafka_topic_partition_list_new(client->nparts);
	for (int i = 0; i < client->nparts; i++)
		rd_kafka_topic_partition_list_add(list, client->parts[i].topic, client->parts[i].partition)
			->offset = RD_KAFKA_OFFSET_END;
	/* where a broker is away it is not waited for again and again */
	if (rd_kafka_offsets_for_times(client->rk, list, REFILL_TIMEOUT_MS) !=
			RD_KAFKA_RESP_ERR_NO_ERROR ||
		kafka_now_ms() - begun >= REFILL_TIMEOUT_MS)
		client->refill_after_ms = begun + REFILL_PAUSE_MS;
	rd_kafka_topic_partition_list_destroy(list);
}

int
kafka_consume(KafkaClient *client, KafkaRecord *records, int max)
{
	ssize_t got;
	size_t bytes = 0;
	int n = 0;

	if (max <= 0)
		return 0;
	if (max > client->nmessages)
	{
		free(client->messages);
		client->messages = malloc(max * sizeof(rd_kafka_message_t *));
		client->nmessages = client->messages != NULL ? max : 0;
		if (client->messages == NULL)
			return 0;
	}
	got = rd_kafka_consume_batch_queue(client->consumer_queue, 0, client->messages, max);
	for (ssize_t i = 0; i < got; i++)
	{
		rd_kafka_message_t *message = client->messages[i];
		AssignedPart *part = part_find(client, message);
		KafkaRecord *record = &records[n];
		rd_kafka_headers_t *headers;

		bytes += message->key_len + message->len;
		if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			/* It may have been fetched long ago: no sign of a broker. */
			if (part == NULL || message->offset < part->from)
			{
				rd_kafka_message_destroy(message);
				continue;
			}
			record->status = KAFKA_OK;
			record->timestamp_ms = record_time(message);
			record->key = message->key;
			record->key_len = message->key_len;
			record->value = message->payload;
			record->value_len = message->len;
			record->has_headers =
				rd_kafka_message_headers(message, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR;
		}
		else
		{
			if (part == NULL)
			{
				/* About the client as a whole: health takes it. */
				kafka_health_error(client, message->err, rd_kafka_message_errstr(message));
				rd_kafka_message_destroy(message);
				continue;
			}
			record->status = kafka_classify(message->err);
			record->timestamp_ms = -1;
			record->key = NULL;
			record->key_len = 0;
			record->value = rd_kafka_message_errstr(message);
			record->value_len = strlen(record->value);
			record->has_headers = false;
			snprintf(client->error, sizeof(client->error), "%s", rd_kafka_message_errstr(message));
			kafka_health_error(client, message->err, client->error);
		}
		record->part = part->index;
		record->offset = message->offset;
		record->handle = message;
		n++;
	}

	refill(client, got > 0 ? got : 0, bytes);
	/* More may be there, of which the pipe has nothing to say any more. */
	if (got == max)
		(void) !write(client->fds[1], "c", 1);
	return n;
}

void
kafka_record_free(KafkaRecord *record)
{
	if (record->handle != NULL)
		rd_kafka_message_destroy(record->handle);
	record->handle = NULL;
}

bool
kafka_record_header(const KafkaRecord *record, const char *name, const char **value, size_t *len)
{
	rd_kafka_headers_t *headers;
	const void *data;

	if (!record->has_headers ||
		rd_kafka_message_headers(record->handle, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR ||
		rd_kafka_header_get_last(headers, name, &data, len) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return false;
	*value = data;
	return true;
}

bool
kafka_record_header_at(const KafkaRecord *record, int i, const char **name, const char **value,
					   size_t *len)
{
	rd_kafka_headers_t *headers;
	const void *data;

	if (!record->has_headers ||
		rd_kafka_message_headers(record->handle, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR ||
		rd_kafka_header_get_all(headers, i, name, &data, len) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return false;
	*value = data;
	return true;
}

/* ---- producing ---- */

void
kafka_on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	KafkaClient *client = opaque;
	KafkaDelivery *delivery;

	(void) rk;
	if (client->delivery_count == client->delivery_size)
	{
		size_t size = client->delivery_size > 0 ? 2 * client->delivery_size : FIRST_DELIVERIES;
		KafkaDelivery *ring = malloc(size * sizeof(KafkaDelivery));

		if (ring == NULL)
			abort();
		for (size_t i = 0; i < client->delivery_count; i++)
			ring[i] =
				client->deliveries[(client->delivery_first + i) & (client->delivery_size - 1)];
		free(client->deliveries);
		client->deliveries = ring;
		client->delivery_size = size;
		client->delivery_first = 0;
	}
	delivery = &client->deliveries[(client->delivery_first + client->delivery_count++) &
								   (client->delivery_size - 1)];
	delivery->tag = (uint64_t) (uintptr_t) message->_private;
	/*
	 * Without an offset: the library takes the record for delivered because one that it
	 * sent later is.  But a broker that has seen nothing of this producer in the partition
	 * takes any batch as its first, also when it has just refused the one before.
	 */
	delivery->status = message->err == RD_KAFKA_RESP_ERR_NO_ERROR && message->offset < 0
						   ? KAFKA_UNSURE
						   : kafka_classify(message->err);
	delivery->bad_time = message->err == RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP;
	delivery->partition = message->partition;
	delivery->offset = message->offset;
	delivery->error[0] = '\0';
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		kafka_reached(client);
	else
		/* rd_kafka_message_errstr() would give the record's value */
		snprintf(delivery->error, sizeof(delivery->error), "%s", rd_kafka_err2str(message->err));
}

KafkaStatus
kafka_produce(KafkaClient *client, const char *topic, const char *key, size_t key_len,
			  const char *value, size_t value_len, int64_t timestamp_ms, const KafkaHeader *headers,
			  int nheaders, uint64_t tag)
{
	rd_kafka_headers_t *list = NULL;
	rd_kafka_resp_err_t err;

	if (client->topic == NULL || strcmp(client->topic_name, topic) != 0)
	{
		if (client->topic != NULL)
			rd_kafka_topic_destroy(client->topic);
		free(client->topic_name);
		client->topic_name = strdup(topic);
		if (client->topic_name == NULL)
			abort();
		client->topic = rd_kafka_topic_new(client->rk, topic, NULL);
		if (client->topic == NULL)
			return kafka_result(client, "could not produce", rd_kafka_last_error(), NULL);
	}
	if (nheaders > 0)
	{
		list = rd_kafka_headers_new(nheaders);
		for (int i = 0; i < nheaders; i++)
			rd_kafka_header_add(list, headers[i].name, -1, headers[i].value,
								(ssize_t) headers[i].len);
	}
	err = rd_kafka_producev(client->rk, RD_KAFKA_V_RKT(client->topic),
							RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_KEY(key, key_len),
							RD_KAFKA_V_VALUE((void *) value, value_len),
							RD_KAFKA_V_TIMESTAMP(timestamp_ms), RD_KAFKA_V_HEADERS(list),
							RD_KAFKA_V_OPAQUE((void *) (uintptr_t) tag), RD_KAFKA_V_END);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		return KAFKA_OK;
	/* The headers became the library's only if it took the record. */
	if (list != NULL)
		rd_kafka_headers_destroy(list);
	if (err == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		return KAFKA_QUEUE_FULL;
	return kafka_result(client, "could not produce", err, NULL);
}

int
kafka_deliveries(KafkaClient *client, KafkaDelivery *out, int max)
{
	int n = 0;

	while (n < max && client->delivery_count > 0)
	{
		const KafkaDelivery *delivery = &client->deliveries[client->delivery_first];

		/* most have no text */
		memcpy(&out[n++], delivery,
			   delivery->error[0] != '\0' ? sizeof(*delivery) : offsetof(KafkaDelivery, error) + 1);
		client->delivery_first = (client->delivery_first + 1) & (client->delivery_size - 1);
		client->delivery_count--;
	}
	return n;
}
