/*-------------------------------------------------------------------------
 *
 * relay_client.c
 *	  The relay's producer: opening it, its topic, and what is wrong with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "relay.h"
#include "settings.h"
#include "status.h"
#include "worker.h"

#define SILENCE_US    (10 * USECS_PER_SEC)
/* A question to a broker holds up a SIGTERM for at most so long */
#define ASK_MS        500
#define CLOSE_MS      500
#define RETRY_LAST_MS 10000

/* ---- problems ---- */

static void
problem(StatusLevel level, const char *code, const char *message, const char *hint)
{
	status_state("waiting");
	status_problem(COMPONENT_KAFKA, level, code, message, hint);
}

static void
problem_over(void)
{
	status_problem(COMPONENT_KAFKA, LEVEL_OK, "", NULL, NULL);
}

static void
problem_of(KafkaStatus status, const char *error)
{
	char message[KAFKA_ERROR_SIZE + 64];

	if (status == KAFKA_DENIED)
	{
		snprintf(message, sizeof(message), "Kafka denies access: %s", error);
		problem(LEVEL_DEGRADED, "denied", message,
				"Tracked events wait in the outbox. Check the secrets file, evstream.kafka_options "
				"and the access rules of the brokers.");
	}
	else if (status == KAFKA_AWAY)
	{
		snprintf(message, sizeof(message), "could not reach Kafka: %s", error);
		problem(LEVEL_DEGRADED, "away", message,
				"Tracking goes on, and events wait in the outbox. Check the brokers and the "
				"setting evstream.kafka_brokers.");
	}
	else
	{
		snprintf(message, sizeof(message), "could not send to Kafka: %s", error);
		problem(LEVEL_DEGRADED, "failed", message,
				"Tracked events wait in the outbox, and it is tried again.");
	}
}

/* What the client itself knows, and what its silence tells. */
void
relay_client_health(int64 now)
{
	KafkaStatus status = kafka_health(relay.client);
	char message[128];

	if (status == KAFKA_FATAL)
		relay_client_broken(status, kafka_error(relay.client));
	else if (status != KAFKA_OK)
		problem_of(status, kafka_error(relay.client));
	else if (relay.produced > relay.delivered && now - relay.progress_at > SILENCE_US)
	{
		snprintf(message, sizeof(message), "no answer to what was sent %d seconds ago",
				 (int) ((now - relay.progress_at) / USECS_PER_SEC));
		problem_of(KAFKA_AWAY, message);
	}
	else if (!relay.failing)
		problem_over();
}

/* Records cannot be sent with this client. */
void
relay_client_broken(KafkaStatus status, const char *error)
{
	if (relay.broken)
		return;
	relay.broken = true;
	if (status == KAFKA_UNKNOWN_TOPIC || status == KAFKA_UNSURE)
		return;
	if (status == KAFKA_FATAL && !relay.failing)
		ereport(LOG, (errmsg("Kafka producer failed and is opened again: %s", error)));
	else
		problem_of(status, error);
	relay.failing = true;
}

/* ---- the client ---- */

static void
log_line(int level, const char *text, void *arg)
{
	if (message_level_is_interesting(DEBUG1))
		ereport(DEBUG1, (errmsg_internal("librdkafka: %s", text)));
}

/* No interrupt may end the process inside of the library. */
void
relay_client_poll(void)
{
	HOLD_INTERRUPTS();
	kafka_poll(relay.client, log_line, NULL);
	RESUME_INTERRUPTS();
}

void
relay_client_close(void)
{
	KafkaClient *client = relay.client;

	relay.client = NULL;
	kafka_close(client, CLOSE_MS);
}

static void
close_at_exit(int code, Datum arg)
{
	relay_client_close();
}

/* The library's own exit handlers must not run beside its threads. */
static void
leave_at_exit(int code, Datum arg)
{
	if (kafka_unfinished() > 0)
		_exit(code);
}

/* Waits a delay that grows with each call until something was delivered. */
void
relay_client_retry(void)
{
	int64 end = clock_us() + relay.retry_ms * INT64CONST(1000);
	int64 left = relay.retry_ms;

	status_state("waiting");
	/* Commits set the latch often: they do not make it shorter. */
	while (left > 0)
	{
		worker_wait(relay.client != NULL ? kafka_fd(relay.client) : -1, left);
		if (relay.client != NULL)
			relay_client_poll();
		left = (end - clock_us() + 999) / 1000;
	}
	relay.retry_ms = Min(2 * relay.retry_ms, RETRY_LAST_MS);
}

static void
open_producer(void)
{
	static bool warned = false;

	while (relay.client == NULL)
	{
		KafkaConf conf = {0};
		char error[KAFKA_ERROR_SIZE] = "";
		const char *warning;

		MemoryContextReset(relay.client_context);
		MemoryContextSwitchTo(relay.client_context);
		setting_kafka_conf(&conf, "evstream-relay");
		conf.single_records = relay.single;
		MemoryContextSwitchTo(TopMemoryContext);

		warning = kafka_version_warning(&conf);
		if (warning != NULL && !warned)
			ereport(WARNING,
					(errmsg("%s", warning),
					 errhint("Use SASL mechanism PLAIN over TLS, or a newer librdkafka.")));
		warned = true;

		relay.client = kafka_producer_open(&conf, error);
		if (relay.client == NULL)
		{
			problem(LEVEL_DEGRADED, "configuration", error,
					"Tracked events wait in the outbox. Check the settings evstream.kafka_* and "
					"the secrets file.");
			relay_client_retry();
		}
	}
}

/* Metadata names leaders that do not know of it yet: a record would be refused. */
static KafkaStatus
look_for_leaders(int nparts)
{
	int64 low;
	int64 high;
	KafkaStatus status = KAFKA_OK;

	for (int i = 0; i < nparts && status == KAFKA_OK; i++)
	{
		status = kafka_watermarks(relay.client, relay.topic, i, ASK_MS, &low, &high);
		worker_check();
	}
	return status;
}

/* Waits until the topic exists, and makes it where it does not. */
static void
ensure_topic(void)
{
	bool created = false;

	for (;;)
	{
		KafkaStatus status;
		int nparts = 0;

		status = kafka_topic_partitions(relay.client, relay.topic, ASK_MS, &nparts);
		relay.topic_partitions = nparts;
		relay_client_poll();
		worker_check();
		if (status == KAFKA_OK)
			status = kafka_cluster_id(relay.client, ASK_MS, relay.cluster, sizeof(relay.cluster));
		else if (status == KAFKA_UNKNOWN_TOPIC)
		{
			status =
				kafka_topic_create(relay.client, relay.topic, setting_kafka_partitions, ASK_MS);
			if (status == KAFKA_OK)
			{
				created = true;
				ereport(LOG, (errmsg("created Kafka topic \"%s\" with %d partitions", relay.topic,
									 setting_kafka_partitions)));
				status = KAFKA_UNKNOWN_TOPIC; /* until it can be seen */
			}
			else if (status != KAFKA_AWAY)
			{
				char message[KAFKA_ERROR_SIZE + 128];

				snprintf(message, sizeof(message), "Kafka topic \"%s\" does not exist: %s",
						 relay.topic, kafka_error(relay.client));
				problem(LEVEL_DEGRADED, "no_topic", message,
						"Tracked events wait in the outbox. Create the topic, or allow evstream to "
						"do so.");
				relay_client_retry();
				continue;
			}
		}
		if (status == KAFKA_OK && created)
			status = look_for_leaders(nparts);
		if (status == KAFKA_OK)
			return;
		if (status == KAFKA_UNKNOWN_TOPIC)
		{
			worker_wait(-1, 100);
			continue;
		}
		problem_of(status, kafka_error(relay.client));
		relay_client_retry();
	}
}

void
relay_client_open(void)
{
	open_producer();
	ensure_topic();
}

void
relay_client_init(void)
{
	before_shmem_exit(close_at_exit, 0);
	on_proc_exit(leave_at_exit, 0);
}
