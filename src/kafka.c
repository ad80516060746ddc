/*-------------------------------------------------------------------------
 *
 * kafka.c
 *	  Clients of Kafka: their life, their queues and their health.
 *
 * Everything that librdkafka has to say goes through queues that are served
 * by kafka_poll() in the calling thread.  The main queue is not forwarded into
 * the consumer queue, so that logs and errors can be served without consuming.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kafka_int.h"

#define PROBE_TIMEOUT_MS 3000
#define PROBE_PAUSE_MS   1000
/* A missing right explains time-outs for so long */
#define DENIED_MS        10000

/* What kafka_close() leaves to a thread. */
typedef struct Closing
{
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool done;
	bool left; /* nobody waits any more */
	KafkaClient *client;
} Closing;

static pthread_mutex_t unfinished_lock = PTHREAD_MUTEX_INITIALIZER;
static int unfinished = 0;

int64_t
kafka_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- errors and health ---- */

KafkaStatus
kafka_classify(rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			return KAFKA_OK;

		case RD_KAFKA_RESP_ERR__TRANSPORT:
		case RD_KAFKA_RESP_ERR__RESOLVE:
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
		case RD_KAFKA_RESP_ERR__TIMED_OUT:
		case RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE:
		case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
		case RD_KAFKA_RESP_ERR__ISR_INSUFF:
		case RD_KAFKA_RESP_ERR__NODE_UPDATE:
		case RD_KAFKA_RESP_ERR__WAIT_COORD:
		case RD_KAFKA_RESP_ERR__WAIT_CACHE:
		case RD_KAFKA_RESP_ERR__RETRY:
		case RD_KAFKA_RESP_ERR__INTR:
		case RD_KAFKA_RESP_ERR__UNKNOWN_BROKER:
		case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
		case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
		case RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION:
		case RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS:
		case RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_NOT_COORDINATOR:
		case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS:
		case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND:
		case RD_KAFKA_RESP_ERR_NOT_CONTROLLER:
		case RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR:
		case RD_KAFKA_RESP_ERR_REASSIGNMENT_IN_PROGRESS:
		case RD_KAFKA_RESP_ERR_FETCH_SESSION_ID_NOT_FOUND:
		case RD_KAFKA_RESP_ERR_INVALID_FETCH_SESSION_EPOCH:
		case RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH:
		case RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH:
		case RD_KAFKA_RESP_ERR_STALE_BROKER_EPOCH:
		case RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_PREFERRED_LEADER_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_ELIGIBLE_LEADERS_NOT_AVAILABLE:
		case RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT:
		case RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED:
			return KAFKA_AWAY;

		case RD_KAFKA_RESP_ERR__QUEUE_FULL:
			return KAFKA_QUEUE_FULL;

		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
			return KAFKA_UNKNOWN_TOPIC;

		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR__NO_OFFSET:
			return KAFKA_OUT_OF_RANGE;

		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
		case RD_KAFKA_RESP_ERR_INVALID_RECORD:
			return KAFKA_REFUSED;

		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR__SSL:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_DELEGATION_TOKEN_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_DELEGATION_TOKEN_EXPIRED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM:
		case RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
		case RD_KAFKA_RESP_ERR_SECURITY_DISABLED:
			return KAFKA_DENIED;

		case RD_KAFKA_RESP_ERR__FATAL:
		case RD_KAFKA_RESP_ERR__FENCED:
		case RD_KAFKA_RESP_ERR__DESTROY:
		case RD_KAFKA_RESP_ERR__CRIT_SYS_RESOURCE:
		case RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE:
		case RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER:
		case RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING:
		case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
			return KAFKA_FATAL;

		default:
			return KAFKA_FAILED;
	}
}

void
kafka_reached(KafkaClient *client)
{
	if (client->health == KAFKA_FATAL)
		return;
	client->health = KAFKA_OK;
	client->confirmed = false;
}

/*
 * An error event.  A connection that a broker closes because it was idle makes
 * one as well, even "all brokers are down"; so being away counts only after a
 * probe of our own has failed.
 */
void
kafka_health_error(KafkaClient *client, rd_kafka_resp_err_t err, const char *text)
{
	KafkaStatus status = kafka_classify(err);

	if (client->health == KAFKA_FATAL)
		return;
	/*
	 * A right that is missing: who asked for it gets the answer, or, where the
	 * library tries again and again, "timed out" in kafka_result().
	 */
	if (status == KAFKA_DENIED && err > 0 && err != RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED)
	{
		client->denied_at_ms = kafka_now_ms();
		snprintf(client->denied_text, sizeof(client->denied_text), "%s", text);
		return;
	}
	if (status == KAFKA_FATAL)
	{
		client->health = KAFKA_FATAL;
		snprintf(client->health_text, sizeof(client->health_text), "%s", text);
		return;
	}
	if (err != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || client->last_text[0] == '\0')
	{
		client->last_status = status;
		snprintf(client->last_text, sizeof(client->last_text), "%s", text);
	}
	if (client->last_status != KAFKA_DENIED && client->last_status != KAFKA_AWAY)
		return;
	if (client->health == KAFKA_OK)
		client->probe_after_ms = kafka_now_ms();
	client->health = client->last_status;
	snprintf(client->health_text, sizeof(client->health_text), "%s", client->last_text);
}

/* Asks something harmless; any answer of a broker will do. */
static void
probe_send(KafkaClient *client)
{
	rd_kafka_ConfigResource_t *resource;
	rd_kafka_AdminOptions_t *options;
	char error[KAFKA_ERROR_SIZE];

	resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, "__consumer_offsets");
	options = rd_kafka_AdminOptions_new(client->rk, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
	rd_kafka_AdminOptions_set_request_timeout(options, PROBE_TIMEOUT_MS, error, sizeof(error));
	rd_kafka_DescribeConfigs(client->rk, &resource, 1, options, client->probe_queue);
	rd_kafka_AdminOptions_destroy(options);
	rd_kafka_ConfigResource_destroy(resource);
	client->probing = true;
}

static void
probe_poll(KafkaClient *client)
{
	rd_kafka_event_t *event;

	if (client->health != KAFKA_OK && client->health != KAFKA_FATAL && !client->probing &&
		kafka_now_ms() >= client->probe_after_ms)
		probe_send(client);

	while (client->probing && (event = rd_kafka_queue_poll(client->probe_queue, 0)) != NULL)
	{
		rd_kafka_resp_err_t err = rd_kafka_event_error(event);
		KafkaStatus status = kafka_classify(err);

		rd_kafka_event_destroy(event);
		client->probing = false;
		client->probe_after_ms = kafka_now_ms() + PROBE_PAUSE_MS;
		if (status == KAFKA_AWAY)
			client->confirmed = true;
		else if (err >= 0) /* said by a broker, not by the library */
			kafka_reached(client);
	}
}

KafkaStatus
kafka_health(KafkaClient *client)
{
	if (client->health == KAFKA_OK || (client->health == KAFKA_AWAY && !client->confirmed))
		return KAFKA_OK;
	snprintf(client->error, sizeof(client->error), "%s", client->health_text);
	return client->health;
}

const char *
kafka_error(KafkaClient *client)
{
	return client->error;
}

KafkaStatus
kafka_result(KafkaClient *client, const char *what, rd_kafka_resp_err_t err, const char *text)
{
	KafkaStatus status = kafka_classify(err);

	if (status == KAFKA_OK)
	{
		client->error[0] = '\0';
		kafka_reached(client);
		return status;
	}
	/* What the connections met is perhaps not yet served. */
	if (status == KAFKA_AWAY)
		rd_kafka_poll(client->rk, 0);
	if (err == RD_KAFKA_RESP_ERR__FATAL)
		rd_kafka_fatal_error(client->rk, client->error, sizeof(client->error));
	/* What the broker connections met says more than "timed out". */
	else if (status == KAFKA_AWAY && client->health != KAFKA_OK && client->health_text[0] != '\0')
	{
		status = client->health;
		snprintf(client->error, sizeof(client->error), "%s: %.400s", what, client->health_text);
	}
	else if (status == KAFKA_AWAY && client->denied_at_ms != 0 &&
			 kafka_now_ms() - client->denied_at_ms < DENIED_MS)
	{
		status = KAFKA_DENIED;
		snprintf(client->error, sizeof(client->error), "%s: %.400s", what, client->denied_text);
	}
	else
		snprintf(client->error, sizeof(client->error), "%s: %s", what,
				 text != NULL && *text != '\0' ? text : rd_kafka_err2str(err));
	if (status == KAFKA_FATAL)
		kafka_health_error(client, err, client->error);
	return status;
}

static void
on_error(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
	KafkaClient *client = opaque;
	char text[KAFKA_ERROR_SIZE];

	if (err == RD_KAFKA_RESP_ERR__FATAL)
	{
		rd_kafka_fatal_error(rk, text, sizeof(text));
	}
	else
	{
		char *tail;

		/* "(after 0ms in state CONNECT, 1 identical error(s) suppressed)" */
		snprintf(text, sizeof(text), "%s", reason);
		tail = strstr(text, " (after ");
		if (tail != NULL)
			*tail = '\0';
	}
	kafka_health_error(client, err, text);
}

static void
on_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
	KafkaClient *client = rd_kafka_opaque(rk);
	char line[1024];

	if (client == NULL || client->hook == NULL)
		return;
	snprintf(line, sizeof(line), "%s: %s", facility, text);
	client->hook(level, line, client->hook_arg);
}

/* ---- life ---- */

static void
client_free(KafkaClient *client)
{
	for (int i = 0; i < 2; i++)
	{
		if (client->fds[i] >= 0)
			close(client->fds[i]);
	}
	for (int i = 0; i < client->nparts; i++)
		free(client->parts[i].topic);
	free(client->parts);
	free(client->messages);
	free(client->topic_name);
	free(client->deliveries);
	free(client);
}

/* Ends the library's threads; they may write into the pipe until then. */
static void
client_destroy(KafkaClient *client)
{
	rd_kafka_queue_t *queues[3];

	queues[0] = client->main_queue;
	queues[1] = client->consumer_queue;
	queues[2] = client->probe_queue;
	if (client->topic != NULL)
		rd_kafka_topic_destroy(client->topic);
	for (int i = 0; i < 3; i++)
	{
		if (queues[i] == NULL)
			continue;
		rd_kafka_queue_io_event_enable(queues[i], -1, NULL, 0);
		rd_kafka_queue_destroy(queues[i]);
	}
	if (client->rk != NULL)
		rd_kafka_destroy_flags(client->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	client_free(client);
}

static size_t
conf_number(const rd_kafka_conf_t *settings, const char *name)
{
	char text[32];
	size_t size = sizeof(text);

	if (rd_kafka_conf_get(settings, name, text, &size) != RD_KAFKA_CONF_OK)
		return 0;
	return strtoull(text, NULL, 10);
}

static KafkaClient *
client_open(const KafkaConf *conf, bool producer, char *error)
{
	KafkaClient *client = calloc(1, sizeof(KafkaClient));
	rd_kafka_conf_t *settings;
	sigset_t all;
	sigset_t before;

	if (client == NULL)
	{
		snprintf(error, KAFKA_ERROR_SIZE, "out of memory");
		return NULL;
	}
	client->producer = producer;
	client->max_event_bytes = conf->max_event_bytes;
	client->fds[0] = client->fds[1] = -1;
	if (pipe2(client->fds, O_NONBLOCK | O_CLOEXEC) != 0)
	{
		snprintf(error, KAFKA_ERROR_SIZE, "could not create pipe: %s", strerror(errno));
		client_free(client);
		return NULL;
	}
	settings = kafka_conf_make(conf, producer, error);
	if (settings == NULL)
	{
		client_free(client);
		return NULL;
	}
	if (!producer && rd_kafka_version() < KAFKA_QUEUE_BACKOFF)
	{
		client->queue_bytes = conf_number(settings, "queued.max.messages.kbytes") * 1024;
		client->queue_messages = conf_number(settings, "queued.min.messages");
	}
	rd_kafka_conf_set_opaque(settings, client);
	rd_kafka_conf_set_error_cb(settings, on_error);
	rd_kafka_conf_set_log_cb(settings, on_log);
	if (producer)
		rd_kafka_conf_set_dr_msg_cb(settings, kafka_on_delivery);

	/* Its threads must never run a signal handler of the server. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	client->rk = rd_kafka_new(producer ? RD_KAFKA_PRODUCER : RD_KAFKA_CONSUMER, settings, error,
							  KAFKA_ERROR_SIZE);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (client->rk == NULL)
	{
		kafka_conf_scrub(conf, error);
		rd_kafka_conf_destroy(settings);
		client_free(client);
		return NULL;
	}

	rd_kafka_set_log_queue(client->rk, NULL);
	client->main_queue = rd_kafka_queue_get_main(client->rk);
	client->probe_queue = rd_kafka_queue_new(client->rk);
	rd_kafka_queue_io_event_enable(client->main_queue, client->fds[1], "m", 1);
	rd_kafka_queue_io_event_enable(client->probe_queue, client->fds[1], "p", 1);
	if (!producer)
	{
		client->consumer_queue = rd_kafka_queue_get_consumer(client->rk);
		rd_kafka_queue_io_event_enable(client->consumer_queue, client->fds[1], "c", 1);
	}
	return client;
}

KafkaClient *
kafka_producer_open(const KafkaConf *conf, char *error)
{
	return client_open(conf, true, error);
}

KafkaClient *
kafka_consumer_open(const KafkaConf *conf, char *error)
{
	return client_open(conf, false, error);
}

static void
closing_free(Closing *closing)
{
	pthread_mutex_destroy(&closing->lock);
	pthread_cond_destroy(&closing->ended);
	free(closing);
}

static void *
closing_main(void *arg)
{
	Closing *closing = arg;
	bool left;

	client_destroy(closing->client);
	pthread_mutex_lock(&closing->lock);
	closing->done = true;
	left = closing->left;
	pthread_cond_signal(&closing->ended);
	pthread_mutex_unlock(&closing->lock);
	if (left)
	{
		closing_free(closing);
		pthread_mutex_lock(&unfinished_lock);
		unfinished--;
		pthread_mutex_unlock(&unfinished_lock);
	}
	return NULL;
}

void
kafka_close(KafkaClient *client, int timeout_ms)
{
	Closing *closing;
	pthread_t thread;
	pthread_condattr_t attr;
	sigset_t all;
	sigset_t before;
	struct timespec until;
	bool done;
	int rc;

	if (client == NULL)
		return;
	closing = calloc(1, sizeof(Closing));
	if (closing == NULL)
	{
		client_destroy(client);
		return;
	}
	closing->client = client;
	pthread_mutex_init(&closing->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&closing->ended, &attr);
	pthread_condattr_destroy(&attr);

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&thread, NULL, closing_main, closing);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc != 0)
	{
		closing_free(closing);
		client_destroy(client);
		return;
	}

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += (long) (timeout_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000)
	{
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&closing->lock);
	rc = 0;
	while (!closing->done && rc != ETIMEDOUT)
		rc = pthread_cond_timedwait(&closing->ended, &closing->lock, &until);
	done = closing->done;
	if (!done)
	{
		/* Counted here, as the thread may end before we are asked. */
		pthread_mutex_lock(&unfinished_lock);
		unfinished++;
		pthread_mutex_unlock(&unfinished_lock);
		closing->left = true;
	}
	pthread_mutex_unlock(&closing->lock);
	if (done)
	{
		pthread_join(thread, NULL);
		closing_free(closing);
	}
	else
		pthread_detach(thread);
}

int
kafka_unfinished(void)
{
	int n;

	pthread_mutex_lock(&unfinished_lock);
	n = unfinished;
	pthread_mutex_unlock(&unfinished_lock);
	return n;
}

int
kafka_fd(KafkaClient *client)
{
	return client->fds[0];
}

void
kafka_poll(KafkaClient *client, KafkaLogHook hook, void *arg)
{
	char junk[256];

	while (read(client->fds[0], junk, sizeof(junk)) == (ssize_t) sizeof(junk))
		;
	client->hook = hook;
	client->hook_arg = arg;
	rd_kafka_poll(client->rk, 0);
	probe_poll(client);
	client->hook = NULL;
}
