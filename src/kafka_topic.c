/*-------------------------------------------------------------------------
 *
 * kafka_topic.c
 *	  Questions to brokers: topics, offsets, and what a group has committed.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kafka_int.h"

KafkaStatus
kafka_topic_partitions(KafkaClient *client, const char *topic, int timeout_ms, int *npartitions)
{
	rd_kafka_topic_t *handle = rd_kafka_topic_new(client->rk, topic, NULL);
	const rd_kafka_metadata_t *metadata;
	rd_kafka_resp_err_t err;
	KafkaStatus status;

	if (handle == NULL)
		return kafka_result(client, "could not look for the topic", rd_kafka_last_error(), NULL);
	err = rd_kafka_metadata(client->rk, 0, handle, &metadata, timeout_ms);
	rd_kafka_topic_destroy(handle);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return kafka_result(client, "could not read metadata", err, NULL);
	err = metadata->topic_cnt == 1 ? metadata->topics[0].err
								   : RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		*npartitions = metadata->topics[0].partition_cnt;
	rd_kafka_metadata_destroy(metadata);
	status = kafka_result(client, "could not read metadata of the topic", err, NULL);
	/* A topic in the making has no partitions yet. */
	if (status == KAFKA_OK && *npartitions == 0)
		return KAFKA_UNKNOWN_TOPIC;
	return status;
}

KafkaStatus
kafka_cluster_id(KafkaClient *client, int timeout_ms, char *buf, size_t size)
{
	char *id = rd_kafka_clusterid(client->rk, timeout_ms);

	if (id == NULL)
		return kafka_result(client, "could not read the cluster's id", RD_KAFKA_RESP_ERR__TIMED_OUT,
							NULL);
	snprintf(buf, size, "%s", id);
	rd_kafka_mem_free(client->rk, id);
	return kafka_result(client, "", RD_KAFKA_RESP_ERR_NO_ERROR, NULL);
}

/* One attempt; with_size = its largest record fits our largest event. */
static rd_kafka_resp_err_t
topic_create(KafkaClient *client, const char *topic, int npartitions, bool with_size,
			 int timeout_ms, char *text, size_t size)
{
	rd_kafka_NewTopic_t *fresh;
	rd_kafka_AdminOptions_t *options;
	rd_kafka_queue_t *queue;
	rd_kafka_event_t *event;
	rd_kafka_resp_err_t err;
	char value[32];

	fresh = rd_kafka_NewTopic_new(topic, npartitions, -1, text, size);
	if (fresh == NULL)
		return RD_KAFKA_RESP_ERR__INVALID_ARG;
	if (with_size)
	{
		/* the same as the producer's message.max.bytes */
		snprintf(value, sizeof(value), "%zu", client->max_event_bytes + 64 * 1024);
		rd_kafka_NewTopic_set_config(fresh, "max.message.bytes", value);
	}
	options = rd_kafka_AdminOptions_new(client->rk, RD_KAFKA_ADMIN_OP_CREATETOPICS);
	rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text, size);
	rd_kafka_AdminOptions_set_operation_timeout(options, timeout_ms, text, size);
	queue = rd_kafka_queue_new(client->rk);
	text[0] = '\0';
	rd_kafka_CreateTopics(client->rk, &fresh, 1, options, queue);
	event = rd_kafka_queue_poll(queue, timeout_ms + 100);
	if (event == NULL)
		err = RD_KAFKA_RESP_ERR__TIMED_OUT;
	else
	{
		const rd_kafka_CreateTopics_result_t *result = rd_kafka_event_CreateTopics_result(event);
		size_t n = 0;
		const rd_kafka_topic_result_t **topics = NULL;

		err = rd_kafka_event_error(event);
		if (result != NULL)
			topics = rd_kafka_CreateTopics_result_topics(result, &n);
		if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
			snprintf(text, size, "%s", rd_kafka_event_error_string(event));
		else if (n > 0)
		{
			const char *said = rd_kafka_topic_result_error_string(topics[0]);

			err = rd_kafka_topic_result_error(topics[0]);
			if (said != NULL)
				snprintf(text, size, "%s", said);
		}
		rd_kafka_event_destroy(event);
	}
	rd_kafka_queue_destroy(queue);
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_NewTopic_destroy(fresh);
	return err;
}

KafkaStatus
kafka_topic_create(KafkaClient *client, const char *topic, int npartitions, int timeout_ms)
{
	char text[KAFKA_ERROR_SIZE] = "";
	rd_kafka_resp_err_t err;
	bool with_size = client->max_event_bytes > 0;

	err = topic_create(client, topic, npartitions, with_size, timeout_ms, text, sizeof(text));
	/* Some clusters let nobody choose. */
	if (with_size &&
		(err == RD_KAFKA_RESP_ERR_POLICY_VIOLATION || err == RD_KAFKA_RESP_ERR_INVALID_CONFIG))
		err = topic_create(client, topic, npartitions, false, timeout_ms, text, sizeof(text));
	if (err == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
		err = RD_KAFKA_RESP_ERR_NO_ERROR;
	return kafka_result(client, "could not create topic", err, text);
}

KafkaStatus
kafka_watermarks(KafkaClient *client, const char *topic, int partition, int timeout_ms,
				 int64_t *low, int64_t *high)
{
	return kafka_result(
		client, "could not read offsets",
		rd_kafka_query_watermark_offsets(client->rk, topic, partition, low, high, timeout_ms),
		NULL);
}

KafkaStatus
kafka_offset_for_time(KafkaClient *client, const char *topic, int partition, int64_t ms,
					  int timeout_ms, int64_t *offset)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_resp_err_t err;
	int64_t low;

	rd_kafka_topic_partition_list_add(list, topic, partition)->offset = ms;
	err = rd_kafka_offsets_for_times(client->rk, list, timeout_ms);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		err = list->elems[0].err;
	*offset = list->elems[0].offset;
	rd_kafka_topic_partition_list_destroy(list);
	/* An answer without an offset: nothing is as young as that. */
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR && *offset < 0)
		return kafka_watermarks(client, topic, partition, timeout_ms, &low, offset);
	return kafka_result(client, "could not look for offsets by time", err, NULL);
}

void
kafka_highs(KafkaClient *client, KafkaAssignment *parts, int nparts)
{
	for (int i = 0; i < nparts; i++)
	{
		int64_t low;
		int64_t high;

		parts[i].high = -1;
		if (rd_kafka_get_watermark_offsets(client->rk, parts[i].topic, parts[i].partition, &low,
										   &high) == RD_KAFKA_RESP_ERR_NO_ERROR &&
			high >= 0)
			parts[i].high = high;
	}
}

KafkaStatus
kafka_committed(KafkaClient *client, KafkaAssignment *parts, int nparts, int timeout_ms)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(nparts);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < nparts; i++)
		rd_kafka_topic_partition_list_add(list, parts[i].topic, parts[i].partition);
	err = rd_kafka_committed(client->rk, list, timeout_ms);
	for (int i = 0; i < nparts && err == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
	{
		rd_kafka_topic_partition_t *found;
		size_t len;

		parts[i].committed = -1;
		parts[i].mark[0] = '\0';
		found = rd_kafka_topic_partition_list_find(list, parts[i].topic, parts[i].partition);
		if (found == NULL)
			continue;
		if (found->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			err = found->err;
			break;
		}
		if (found->offset >= 0)
			parts[i].committed = found->offset;
		len = found->metadata_size;
		if (len >= KAFKA_MARK_SIZE)
			len = KAFKA_MARK_SIZE - 1;
		if (len > 0)
			memcpy(parts[i].mark, found->metadata, len);
		parts[i].mark[len] = '\0';
	}
	rd_kafka_topic_partition_list_destroy(list);
	return kafka_result(client, "could not read committed offsets", err, NULL);
}

KafkaStatus
kafka_commit(KafkaClient *client, const KafkaAssignment *parts, int nparts, int timeout_ms)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(nparts);
	rd_kafka_resp_err_t err;

	for (int i = 0; i < nparts; i++)
	{
		rd_kafka_topic_partition_t *part;
		size_t len = strnlen(parts[i].mark, KAFKA_MARK_SIZE);

		part = rd_kafka_topic_partition_list_add(list, parts[i].topic, parts[i].partition);
		part->offset = parts[i].committed;
		if (len > 0 && (part->metadata = malloc(len)) != NULL)
		{
			memcpy(part->metadata, parts[i].mark, len);
			part->metadata_size = len;
		}
	}

	if (timeout_ms == 0)
	{
		err = rd_kafka_commit(client->rk, list, 1);
		rd_kafka_topic_partition_list_destroy(list);
		/* Queued; that says nothing of the broker. */
		return err == RD_KAFKA_RESP_ERR_NO_ERROR
				   ? KAFKA_OK
				   : kafka_result(client, "could not commit offsets", err, NULL);
	}
	else
	{
		rd_kafka_queue_t *queue = rd_kafka_queue_new(client->rk);
		rd_kafka_event_t *event = NULL;

		err = rd_kafka_commit_queue(client->rk, list, queue, NULL, NULL);
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			event = rd_kafka_queue_poll(queue, timeout_ms);
			err = event == NULL ? RD_KAFKA_RESP_ERR__TIMED_OUT : rd_kafka_event_error(event);
		}
		if (event != NULL)
		{
			rd_kafka_topic_partition_list_t *done = rd_kafka_event_topic_partition_list(event);

			for (int i = 0; done != NULL && i < done->cnt && err == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
				err = done->elems[i].err;
			rd_kafka_event_destroy(event);
		}
		rd_kafka_queue_destroy(queue);
		rd_kafka_topic_partition_list_destroy(list);
		return kafka_result(client, "could not commit offsets", err, NULL);
	}
}
