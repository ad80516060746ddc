/*-------------------------------------------------------------------------
 *
 * kafka_int.h
 *	  What the files of the Kafka adapter share among themselves.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_KAFKA_INT_H
#define EVSTREAM_KAFKA_INT_H

#include <librdkafka/rdkafka.h>

#include "kafka.h"

/*
 * The first version that looks soon whether a full queue has room again.  Those
 * before it do after a second, or when they are asked something.
 */
#define KAFKA_QUEUE_BACKOFF 0x02020000

/* One partition of the assignment, sorted by (topic, partition). */
typedef struct AssignedPart
{
	char *topic;
	int partition;
	int index;    /* into the caller's assignment */
	int64_t from; /* offset given by the caller */
} AssignedPart;

struct KafkaClient
{
	rd_kafka_t *rk;
	bool producer;
	int fds[2];                       /* pipe: read end, write end */
	rd_kafka_queue_t *main_queue;     /* errors, logs, delivery reports */
	rd_kafka_queue_t *consumer_queue; /* records */
	rd_kafka_queue_t *probe_queue;    /* answers to our own questions */

	char error[KAFKA_ERROR_SIZE];

	/* health, see kafka_health_error() */
	KafkaStatus health;
	bool confirmed; /* away, and a probe has failed since */
	bool probing;
	int64_t probe_after_ms;
	char health_text[KAFKA_ERROR_SIZE];
	KafkaStatus last_status; /* of the last error event, whatever health is */
	char last_text[KAFKA_ERROR_SIZE];

	int64_t denied_at_ms; /* when a right was last found missing */
	char denied_text[KAFKA_ERROR_SIZE];

	/* logs, during kafka_poll() only */
	KafkaLogHook hook;
	void *hook_arg;

	/* consumer */
	AssignedPart *parts;
	int nparts;
	int last_part;                 /* where the last record was found */
	rd_kafka_message_t **messages; /* scratch of kafka_consume() */
	int nmessages;
	size_t queue_bytes; /* at most, as fetching is held up from then on; 0 = need not be known */
	size_t queue_messages;
	bool queue_full; /* it was at least half full, and fetching may be held up */
	int64_t refill_after_ms;

	/* producer */
	rd_kafka_topic_t *topic; /* the last one produced to */
	char *topic_name;
	size_t max_event_bytes;
	KafkaDelivery *deliveries; /* ring */
	size_t delivery_size;      /* a power of two, or 0 */
	size_t delivery_first;
	size_t delivery_count;
};

/* A configuration for rd_kafka_new(), or NULL and a text in error. */
extern rd_kafka_conf_t *kafka_conf_make(const KafkaConf *conf, bool producer, char *error);

/* Replaces the values of all secrets in text. */
extern void kafka_conf_scrub(const KafkaConf *conf, char *text);

/* Of a clock that nobody sets. */
extern int64_t kafka_now_ms(void);

extern KafkaStatus kafka_classify(rd_kafka_resp_err_t err);

/*
 * Keeps err's text for kafka_error(), tells health about it, and returns its
 * class.  what is a short "what was tried", text the library's own words or
 * NULL.
 */
extern KafkaStatus kafka_result(KafkaClient *client, const char *what, rd_kafka_resp_err_t err,
								const char *text);

/* Something came back from a broker. */
extern void kafka_reached(KafkaClient *client);

/* An error event came. */
extern void kafka_health_error(KafkaClient *client, rd_kafka_resp_err_t err, const char *text);

/* The delivery report callback of producers. */
extern void kafka_on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque);

#endif /* EVSTREAM_KAFKA_INT_H */
