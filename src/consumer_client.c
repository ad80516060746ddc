/*-------------------------------------------------------------------------
 *
 * consumer_client.c
 *	  The consumer's Kafka source: the client, its problems, and who owns the group.
 *
 * A worker has a fixed share of the partitions and never joins the group: the
 * positions in our tables count, and the group's offsets are a mirror of them
 * that carries the owner's mark.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "consumer_kafka.h"
#include "settings.h"
#include "status.h"
#include "worker.h"

#define CLOSE_MS 500
/* A first connection or a slow answer is no outage yet */
#define AWAY_US  (INT64CONST(5) * USECS_PER_SEC)

KafkaSource source;

/* ---- problems ---- */

static const struct
{
	StatusLevel level;
	const char *code;
	const char *hint;
} problem_kinds[PROBLEM_COUNT] = {
	[PROBLEM_CONFIGURATION] = {LEVEL_DOWN, "configuration",
							   "Check the settings evstream.kafka_* and the secrets file."},
	[PROBLEM_FOREIGN_MARK] =
		{LEVEL_DOWN, "foreign_mark",
		 "If this database is to be the owner, call evstream_take_over(); otherwise set another evstream.kafka_group."},
	[PROBLEM_DENIED] =
		{LEVEL_DEGRADED, "denied",
		 "Check the secrets file, and whether the user may read the topics and the group."},
	[PROBLEM_AWAY] =
		{LEVEL_DEGRADED, "away",
		 "Tracking goes on. Check the brokers and the setting evstream.kafka_brokers."},
	[PROBLEM_NO_TOPIC] =
		{LEVEL_DEGRADED, "no_topic",
		 "Create it, or correct evstream.kafka_topic or evstream.kafka_read_topics."},
	[PROBLEM_GAP] = {LEVEL_DEGRADED, "gap",
					 "Raise the topic's retention. evstream_restart() takes this message away."},
};

static char *problems[PROBLEM_COUNT];

/* Begins or ends (message = NULL) a standing problem. */
void
source_problem(KafkaProblem problem, const char *message)
{
	if (message == NULL && problems[problem] == NULL)
		return;
	if (problems[problem] != NULL)
		pfree(problems[problem]);
	problems[problem] = message == NULL ? NULL : MemoryContextStrdup(TopMemoryContext, message);
	for (int i = 0; i < PROBLEM_COUNT; i++)
	{
		if (problems[i] == NULL)
			continue;
		status_problem(COMPONENT_KAFKA, problem_kinds[i].level, problem_kinds[i].code, problems[i],
					   problem_kinds[i].hint);
		return;
	}
	status_problem(COMPONENT_KAFKA, LEVEL_OK, problem_kinds[problem].code, NULL, NULL);
}

void
source_away(const char *what, KafkaStatus status)
{
	int64 now = clock_us();
	char *message;

	status_state("waiting");
	if (!source.away)
		source.away_since = now;
	source.away = true;
	if (status == KAFKA_DENIED)
	{
		message = psprintf("Kafka denies access (%s): %s", what, kafka_error(source.client));
		source_problem(PROBLEM_DENIED, message);
	}
	else
	{
		message = psprintf("could not reach Kafka (%s): %s", what, kafka_error(source.client));
		if (status != KAFKA_AWAY || now - source.away_since >= AWAY_US ||
			kafka_health(source.client) != KAFKA_OK)
			source_problem(PROBLEM_AWAY, message);
	}
	pfree(message);
}

void
source_reached(void)
{
	source_problem(PROBLEM_DENIED, NULL);
	source_problem(PROBLEM_AWAY, NULL);
	source.away = false;
}

/* ---- client ---- */

void
source_close_fetched(void)
{
	for (int i = 0; i < source.nfetched; i++)
		kafka_record_free(&source.fetched[i]);
	source.nfetched = 0;
}

static void
close_client(void)
{
	if (source.client == NULL)
		return;
	source_close_fetched();
	kafka_close(source.client, CLOSE_MS);
	source.client = NULL;
}

static void
forget_client(int code, Datum arg)
{
	close_client();
}

/* The library's own exit handlers must not run beside its threads. */
static void
leave_at_exit(int code, Datum arg)
{
	if (kafka_unfinished() > 0)
		_exit(code);
}

void
source_open(void)
{
	before_shmem_exit(forget_client, 0);
	on_proc_exit(leave_at_exit, 0);
	for (;;)
	{
		KafkaConf conf = {0};
		char error[KAFKA_ERROR_SIZE];
		char client_id[64];
		const char *warning;

		snprintf(client_id, sizeof(client_id), "evstream-consumer-%d", worker_self.index);
		setting_kafka_conf(&conf, client_id);
		source.client = kafka_consumer_open(&conf, error);
		if (source.client != NULL)
		{
			source_problem(PROBLEM_CONFIGURATION, NULL);
			warning = kafka_version_warning(&conf);
			if (warning != NULL)
				ereport(WARNING, (errmsg("%s", warning)));
			return;
		}
		source_problem(PROBLEM_CONFIGURATION, error);
		worker_backoff();
	}
}

/* ---- ownership ---- */

static void
owner_unit(void *arg)
{
	owner_read(arg);
}

static void
foreign(const char *message)
{
	source.foreign = true;
	status_state("stopped");
	source_problem(PROBLEM_FOREIGN_MARK, message);
}

typedef struct DroppedUnit
{
	const char *mark;
	bool dropped;
} DroppedUnit;

static void
dropped_unit(void *arg)
{
	DroppedUnit *unit = arg;

	unit->dropped = owner_was_dropped(&source.owner, unit->mark);
}

/* Metadata of others who commit offsets is no mark. */
static OwnerVerdict
judge(const char *mark)
{
	DroppedUnit unit = {mark};
	OwnerVerdict verdict;

	if (!owner_is_mark(mark))
		return OWNER_NOT_FOREIGN;
	verdict = owner_judge(&source.owner, mark);
	if (verdict == OWNER_FOREIGN &&
		worker_run("looking for the owner of the group", dropped_unit, &unit, NULL) && unit.dropped)
		return OWNER_NOT_FOREIGN;
	return verdict;
}

/*
 * Kafka forgets the offsets of a topic that is deleted.  If one is there again,
 * a client may go on as if it were the same, or, as that of librdkafka 2.8 where
 * the old one has had other leaders, never fetch again.  A new client compares
 * records at its start.
 */
static void
look_for_mirror(const KafkaAssignment *found)
{
	for (int i = 0; i < source.nparts; i++)
	{
		bool known = found[i].committed >= 0;

		if (source.parts[i]->mirrored && !known)
			worker_restart("Kafka has forgotten the offsets of the group");
		source.parts[i]->mirrored = known;
	}
}

/*
 * Reads the marks of the partitions and writes ours where it is missing.
 * False: somebody else owns the group, or Kafka does not answer; then we have
 * waited a bit.
 */
bool
source_check_owner(bool claim)
{
	KafkaAssignment *found;
	KafkaStatus status;

	if (!worker_run("reading the identity", owner_unit, &source.owner, NULL))
	{
		worker_backoff();
		return false;
	}
	if (!source.owner.ours)
	{
		foreign("this database was restored or moved, and has not taken over its Kafka group");
		(void) worker_wait(-1, IDLE_MS);
		return false;
	}
	if (source.nparts == 0)
		return true;

	found = palloc(source.nparts * sizeof(KafkaAssignment));
	memcpy(found, source.assignment, source.nparts * sizeof(KafkaAssignment));
	status = kafka_committed(source.client, found, source.nparts, ASK_MS);
	if (status != KAFKA_OK)
	{
		pfree(found);
		source_away("committed offsets", status);
		return false;
	}
	for (int i = 0; i < source.nparts; i++)
	{
		OwnerVerdict verdict = judge(found[i].mark);

		if (verdict != OWNER_NOT_FOREIGN)
		{
			char *message =
				owner_message(verdict, "the Kafka group", setting_group_name(), found[i].mark);

			foreign(message);
			pfree(message);
			pfree(found);
			(void) worker_wait(-1, IDLE_MS);
			return false;
		}
	}
	source.foreign = false;
	source_problem(PROBLEM_FOREIGN_MARK, NULL);

	look_for_mirror(found);

	for (int i = 0; i < source.nparts; i++)
	{
		found[i].committed = source.parts[i]->log.position;
		strlcpy(found[i].mark, source.owner.mark, KAFKA_MARK_SIZE);
	}
	status = kafka_commit(source.client, found, source.nparts, claim ? ASK_MS : 0);
	if (claim && status == KAFKA_OK)
	{
		status = kafka_committed(source.client, found, source.nparts, ASK_MS);
		if (status == KAFKA_OK)
			look_for_mirror(found);
	}
	pfree(found);
	if (claim && status != KAFKA_OK)
	{
		source_away("commit of offsets", status);
		return false;
	}
	return true;
}
