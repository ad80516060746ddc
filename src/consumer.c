/*-------------------------------------------------------------------------
 *
 * consumer.c
 *	  The consumer worker: what its sources share, and the local logs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "consumer.h"
#include "event_id.h"
#include "outbox.h"
#include "poison.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

/* Values of one batch from the outbox */
#define LOCAL_BATCH_BYTES (32 * 1024 * 1024)

/* Safety against a wake-up that was not sent (PREPARE TRANSACTION) */
#define IDLE_MS   1000
#define PAUSED_MS 1000

/*
 * Many small commits make one batch: the clients lose less to a consumer that works
 * seldom and with warm caches.  The wait grows with the square of the events a second,
 * so that latency suffers only where there are very many, up to so long at so many.
 */
#define GATHER_MS   100
#define GATHER_RATE 10000

/* Tries of a batch as a whole before it is halved, and of one record alone */
#define TRIES_WHOLE 2
#define TRIES_ALONE 3
/* And before health names one for which there is not enough memory */
#define TRIES_NAMED 3

ConsumerState consumer;

PGDLLEXPORT void evstream_consumer_main(Datum main_arg);

/* ---- storing ---- */

typedef struct StoreUnit
{
	Batch batch;
	WorkerUnit extra; /* in the same transaction */
	void *extra_arg;
	bool paused;
} StoreUnit;

static void
store_unit(void *arg)
{
	StoreUnit *unit = arg;
	MemoryContext old;

	/* its neighbour may crash the server at once, and what is not flushed is not set aside */
	if (unit->batch.records[0].condemned == EVENT_CRASHED)
		(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	old = MemoryContextSwitchTo(consumer.batch_context);
	event_arena_reset(consumer.arena);
	poison_parse(&unit->batch);
	MemoryContextSwitchTo(old);
	unit->paused = !batch_store(&unit->batch);
	if (!unit->paused && unit->extra)
		unit->extra(unit->extra_arg);
}

static void
paused_unit(void *arg)
{
	*(bool *) arg = batch_is_paused();
}

/* Waits while consumption is paused. */
static void
wait_while_paused(void)
{
	for (;;)
	{
		bool paused = false;

		if (!worker_run("looking whether consumption is paused", paused_unit, &paused, NULL))
			worker_backoff();
		else if (!paused)
			return;
		else
		{
			status_state("paused");
			(void) worker_wait(-1, PAUSED_MS);
		}
	}
}

static void
count_dead_letters_unit(void *arg)
{
	int64 *count = arg;
	bool isnull;
	char sql[128];

	snprintf(sql, sizeof(sql),
			 "SELECT pg_catalog.count(*) FROM (SELECT FROM evstream.dead_letters LIMIT %d) d",
			 setting_dead_letter_limit);
	if (SPI_execute(sql, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not count dead letters");
	*count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

/* Waits while the dead letters are at their limit. */
static void
wait_for_dead_letters(void)
{
	bool waited = false;

	for (;;)
	{
		int64 before = status_dead_letters(MyDatabaseId);
		int64 count = before;

		if (count >= 0 && count < setting_dead_letter_limit)
			break;
		/* an upper bound, or not known: count */
		if (worker_run("counting dead letters", count_dead_letters_unit, &count, NULL))
		{
			status_dead_letters_counted(MyDatabaseId, before, count);
			if (count < setting_dead_letter_limit)
				break;
			status_state("waiting");
			status_problem(
				COMPONENT_DEAD_LETTERS, LEVEL_DOWN, "limit",
				"the number of dead letters has reached evstream.dead_letter_limit, consumption waits",
				"Look at evstream_dead_letters, retry or discard them, or raise evstream.dead_letter_limit.");
			waited = true;
			(void) worker_wait(-1, PAUSED_MS);
		}
		else
			worker_backoff();
	}
	if (waited)
		status_problem(COMPONENT_DEAD_LETTERS, LEVEL_OK, "limit", NULL, NULL);
}

/* Faults of the world, which pass by themselves or by an operator's hand */
static bool
is_fault_of_world(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
			return true;
		default:
			return false;
	}
}

static bool
is_fault_of_record(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		   ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/*
 * What PostgreSQL says of one datum that would take more than a gigabyte, as 64 MB
 * of JSON with some ten millions of elements do: never translated.
 */
static bool
is_beyond_memory(int sqlerrcode)
{
	static const char text[] = "invalid memory alloc request size";

	return sqlerrcode == ERRCODE_INTERNAL_ERROR &&
		   strncmp(worker_last_error(), text, strlen(text)) == 0;
}

/*
 * A record that is alone and does not fit into memory holds up its partition: it may be the
 * machine's fault, which passes, or the record's, which an operator has to judge.
 */
static void
name_for_memory(const BatchRecord *record)
{
	const char *log = record->part->topic ? record->part->topic : record->part->log_name;
	char *message =
		psprintf("there is not enough memory for the record at offset " INT64_FORMAT
				 " of partition %d of %s, of %zu bytes, which holds up those after it: %s",
				 record->offset, record->part->partition, log,
				 record->value == NULL ? 0 : (size_t) record->value_len, worker_last_error());

	/* in place of what worker_run() says, which takes it back when the record is stored */
	status_problem(COMPONENT_WORKERS, LEVEL_DOWN, "failing", message,
				   "Give the server more memory, or set evstream.max_event_bytes below the size "
				   "of the record, which makes a dead letter of it.");
	pfree(message);
}

static bool store_range(BatchRecord *records, int nrecords, BatchHeaders headers, WorkerUnit extra,
						void *extra_arg);

/* In as many transactions as a search for what crashes or hangs the worker asks for */
static bool
store_pieces(BatchRecord *records, int nrecords, BatchHeaders headers, WorkerUnit extra,
			 void *extra_arg)
{
	while (nrecords > 0)
	{
		int n = poison_cut(records, nrecords);

		if (!store_range(records, n, headers, extra, extra_arg))
			return false;
		records += n;
		nrecords -= n;
	}
	return true;
}

static bool
store_range(BatchRecord *records, int nrecords, BatchHeaders headers, WorkerUnit extra,
			void *extra_arg)
{
	int tries = 0;

	for (;;)
	{
		StoreUnit unit = {0};
		int sqlerrcode = 0;
		bool done;

		wait_for_dead_letters();
		status_state("running");
		unit.batch.records = records;
		unit.batch.nrecords = nrecords;
		unit.batch.headers = headers;
		unit.batch.writer = worker_self.index;
		unit.batch.arena = consumer.arena;
		unit.batch.zone = consumer.zone;
		unit.extra = extra;
		unit.extra_arg = extra_arg;

		poison_enter(records, nrecords);
		done = worker_run("storing a batch", store_unit, &unit, &sqlerrcode);
		if (poison_leave(done && !unit.paused))
		{
			worker_backoff();
			if (nrecords > 1)
				return store_pieces(records, nrecords, headers, extra, extra_arg);
			continue;
		}
		if (done)
		{
			if (unit.paused)
			{
				wait_while_paused();
				continue;
			}
			batch_stored(&unit.batch);
			status_count(unit.batch.nstored, 1);
			if (setting_redis_url[0] != '\0')
				status_wake(MyDatabaseId, ROLE_NOTIFIER);
			if (unit.batch.ndead > 0)
				status_dead_letters_add(MyDatabaseId, unit.batch.ndead);
			return true;
		}

		if (sqlerrcode == ERRCODE_EVSTREAM_MOVED)
		{
			worker_backoff();
			return false;
		}
		if (sqlerrcode == ERRCODE_EVSTREAM_ZONE)
			worker_restart("the time zone has changed");
		tries++;
		/* half of it may fit into memory, so that there is nothing to wait for */
		if (nrecords > 1 && (sqlerrcode == ERRCODE_OUT_OF_MEMORY ||
							 (!is_fault_of_world(sqlerrcode) && tries >= TRIES_WHOLE)))
		{
			int half = nrecords / 2;

			return store_range(records, half, headers, extra, extra_arg) &&
				   store_range(records + half, nrecords - half, headers, extra, extra_arg);
		}
		if (nrecords == 1 && records[0].condemned == EVENT_OK &&
			((tries >= TRIES_ALONE && is_fault_of_record(sqlerrcode)) ||
			 is_beyond_memory(sqlerrcode)))
		{
			records[0].condemned = EVENT_BAD_PROPERTIES;
			records[0].condemned_detail =
				MemoryContextStrdup(consumer.batch_context, worker_last_error());
			continue;
		}
		if (nrecords == 1 && sqlerrcode == ERRCODE_OUT_OF_MEMORY && tries >= TRIES_NAMED)
			name_for_memory(&records[0]);
		worker_backoff();
	}
}

bool
consumer_store(BatchRecord *records, int nrecords, BatchHeaders headers)
{
	return store_pieces(records, nrecords, headers, NULL, NULL);
}

/* ---- retried dead letters ---- */

typedef struct RetryUnit
{
	bool found;
	int64 id;
	BatchRecord record;
	LogPartition part;
} RetryUnit;

static void
retry_read_unit(void *arg)
{
	RetryUnit *unit = arg;
	HeapTuple tuple;
	TupleDesc desc;
	bool isnull;
	bytea *value;
	MemoryContext old;
	BatchRecord *record = &unit->record;
	int64 offset;
	char *place;
	Datum trace;

	if (SPI_execute(
			"SELECT r.id, r.log_id, r.log_partition, r.log_offset, r.record_key::pg_catalog.bytea,"
			" r.record_value::pg_catalog.bytea, r.record_timestamp,"
			/* 'escape' shows any byte, and a good traceparent as it is */
			" (SELECT pg_catalog.encode(pg_catalog.decode(h ->> 1, 'base64'), 'escape')"
			"   FROM pg_catalog.jsonb_array_elements(r.record_headers) WITH ORDINALITY AS e (h, n)"
			"   WHERE h ->> 0 = 'traceparent' AND h ->> 1 IS NOT NULL ORDER BY n DESC LIMIT 1)"
			" FROM evstream.retries r ORDER BY r.id LIMIT 1",
			true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.retries");
	unit->found = SPI_processed > 0;
	if (!unit->found)
		return;
	tuple = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;

	memset(record, 0, sizeof(*record));
	old = MemoryContextSwitchTo(consumer.batch_context);
	unit->id = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
	value = DatumGetByteaPCopy(sql_column(0, 6, NULL));
	record->value = VARDATA(value);
	record->value_len = VARSIZE(value) - VARHDRSZ;
	record->timestamp_us =
		DatumGetTimestampTz(SPI_getbinval(tuple, desc, 7, &isnull)) + UNIX_EPOCH_OFFSET_US;
	trace = SPI_getbinval(tuple, desc, 5, &isnull);
	if (!isnull)
	{
		bytea *key = DatumGetByteaPCopy(trace);

		record->key = VARDATA(key);
		record->key_len = VARSIZE(key) - VARHDRSZ;
	}
	trace = SPI_getbinval(tuple, desc, 8, &isnull);
	if (!isnull)
	{
		record->traceparent.data = TextDatumGetCString(trace);
		record->traceparent.len = strlen(record->traceparent.data);
	}
	MemoryContextSwitchTo(old);

	/* the id that it would have had where it came from */
	record->has_id = true;
	offset = DatumGetInt64(SPI_getbinval(tuple, desc, 4, &isnull));
	if (isnull)
	{
		place = psprintf("evstream dead letter " INT64_FORMAT, unit->id);
		event_id_from_text(place, strlen(place), &record->id);
	}
	else
	{
		int32 partition = DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull));
		int32 log_id = DatumGetInt32(SPI_getbinval(tuple, desc, 2, &isnull));

		event_id_derive(batch_log_name(log_id), partition, offset, &record->id);
	}
	batch_load_partition(&unit->part, LOG_RETRY, 0, consumer.batch_context);
	record->part = &unit->part;
	record->offset = unit->part.position;
}

/*
 * It has been counted, or is a dead letter again: then the one of before, with
 * its number, place and headers, and not a new one from the retry log.
 */
static void
retry_done_unit(void *arg)
{
	const RetryUnit *unit = arg;
	Oid types[1] = {INT8OID};
	Datum values[1] = {Int64GetDatum(unit->id)};

	if (unit->record.reason == EVENT_OK)
		sql_execute("DELETE FROM evstream.retries WHERE id = $1", 1, types, values, NULL,
					SPI_OK_DELETE);
	else
		sql_execute(
			"WITH r AS (DELETE FROM evstream.retries WHERE id = $1 RETURNING *),"
			" d AS (DELETE FROM evstream.dead_letters WHERE id ="
			"  pg_catalog.currval(pg_catalog.pg_get_serial_sequence('evstream.dead_letters', 'id'))"
			"  RETURNING *)"
			" INSERT INTO evstream.dead_letters (id, reason, detail, log_id, log_partition, log_offset,"
			"  record_key, record_value, record_timestamp, record_headers, received_at, attempts)"
			" OVERRIDING SYSTEM VALUE"
			" SELECT r.id, d.reason, d.detail, r.log_id, r.log_partition, r.log_offset, r.record_key,"
			"  r.record_value, r.record_timestamp, r.record_headers, d.received_at, r.attempts + 1 FROM r, d",
			1, types, values, NULL, SPI_OK_INSERT);
}

void
consumer_wishes(ConsumerWishes *wishes)
{
	bool isnull;

	sql_execute_kept(
		"SELECT EXISTS (SELECT FROM evstream.state WHERE paused) OR NOT EXISTS (SELECT FROM evstream.state)"
		"   OR EXISTS (SELECT FROM evstream.restored),"
		" EXISTS (SELECT FROM evstream.retries),"
		" (SELECT pg_catalog.max(seek_id) FROM evstream.seeks)",
		0, NULL, NULL, NULL, false, SPI_OK_SELECT);
	wishes->paused = DatumGetBool(sql_column(0, 1, NULL));
	/* one of the consumers takes these */
	wishes->retries =
		!wishes->paused && worker_self.index == 0 && DatumGetBool(sql_column(0, 2, NULL));
	wishes->seek_id = DatumGetInt64(sql_column(0, 3, &isnull));
	if (isnull)
		wishes->seek_id = 0;
}

bool
consumer_retries(void)
{
	bool any = false;

	for (;;)
	{
		RetryUnit unit;

		MemoryContextReset(consumer.batch_context);
		memset(&unit, 0, sizeof(unit));
		if (!worker_run("reading retried dead letters", retry_read_unit, &unit, NULL))
		{
			worker_backoff();
			continue;
		}
		if (!unit.found)
			return any;
		any = true;
		(void) store_range(&unit.record, 1, NULL, retry_done_unit, &unit);
	}
}

/* ---- the embedded log ---- */

typedef struct LocalReader
{
	OutboxPosition position;
	LogPartition part;
	OutboxBatch batch;
	int64 waiting; /* about so many rows behind the batch */
	WorkerRate rate;
	/* while paused, or as retries come first, it was not read */
	ConsumerWishes wishes;
} LocalReader;

static void
local_load_unit(void *arg)
{
	LocalReader *reader = arg;

	outbox_adopt();
	reader->position = outbox_local_position();
	batch_load_partition(&reader->part, LOG_EMBEDDED, 0, consumer.long_context);
}

static void
local_read_unit(void *arg)
{
	LocalReader *reader = arg;
	bool made_tick;

	consumer_wishes(&reader->wishes);
	if (reader->wishes.paused || reader->wishes.retries)
		return;
	outbox_read(&reader->position, setting_batch_size, LOCAL_BATCH_BYTES, consumer.batch_context,
				&reader->batch, &made_tick);
	reader->waiting = 0;
	if (reader->batch.nrows == 0 || reader->batch.tick_done)
		return;
	/* ids that were given out, some of them to transactions that rolled back */
	sql_execute_kept("SELECT last_value FROM evstream.outbox_id_seq", 0, NULL, NULL, NULL, true,
					 SPI_OK_SELECT);
	reader->waiting =
		DatumGetInt64(sql_column(0, 1, NULL)) - reader->batch.rows[reader->batch.nrows - 1].id;
}

static BatchRecord *
local_records(LocalReader *reader)
{
	OutboxBatch *batch = &reader->batch;
	BatchRecord *records =
		MemoryContextAllocExtended(consumer.batch_context, batch->nrows * sizeof(BatchRecord),
								   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	int64 tick = batch->tick_done ? batch->after.tick - 1 : batch->after.tick;

	for (int i = 0; i < batch->nrows; i++)
	{
		OutboxRow *row = &batch->rows[i];
		BatchRecord *record = &records[i];

		record->part = &reader->part;
		record->offset = reader->part.position + i;
		record->timestamp_us = row->tracked_at + UNIX_EPOCH_OFFSET_US;
		record->tracked = true;
		record->key = row->user_id;
		record->key_len = row->user_id_len;
		record->value = row->value;
		record->value_len = row->value_len;
		record->traceparent.data = row->traceparent;
		record->traceparent.len = row->traceparent_len;
		record->outbox_after.tick = tick;
		record->outbox_after.xid = row->xid;
		record->outbox_after.id = row->id;
	}
	records[batch->nrows - 1].outbox_after = batch->after;
	return records;
}

void
consumer_local_loop(void)
{
	LocalReader *reader = MemoryContextAllocZero(consumer.long_context, sizeof(LocalReader));
	bool loaded = false;

	for (;;)
	{
		BatchRecord *records;
		int64 read_at;
		double rows_per_second;

		MemoryContextReset(consumer.batch_context);
		if (!loaded)
		{
			wait_while_paused();
			loaded = worker_run("finding the position", local_load_unit, reader, NULL);
			if (!loaded)
			{
				worker_backoff();
				continue;
			}
			status_lag_clear();
		}
		read_at = clock_us();
		if (!worker_run("reading the outbox", local_read_unit, reader, NULL))
		{
			worker_backoff();
			continue;
		}
		if (reader->wishes.paused)
		{
			wait_while_paused();
			continue;
		}
		if (reader->wishes.retries)
		{
			(void) consumer_retries();
			continue;
		}
		if (reader->batch.nrows == 0)
		{
			reader->position = reader->batch.after;
			status_lag(LOG_EMBEDDED, NULL, 0, reader->part.position, reader->part.position, 0);
			status_state("idle");
			(void) worker_wait(-1, IDLE_MS);
			continue;
		}
		status_lag(LOG_EMBEDDED, NULL, 0, reader->part.position,
				   reader->part.position + reader->batch.nrows + Max(0, reader->waiting),
				   reader->batch.rows[0].tracked_at);
		records = local_records(reader);
		if (!consumer_store(records, reader->batch.nrows, NULL))
		{
			loaded = false;
			continue;
		}
		reader->position = reader->batch.after;
		rows_per_second = worker_rate(&reader->rate, reader->batch.nrows, read_at);
		if (reader->batch.tick_done && rows_per_second > WORKER_BUSY_RATE)
		{
			double part = Min(1, rows_per_second / GATHER_RATE);

			(void) worker_pause(-1, (long) (GATHER_MS * part * part));
		}
	}
}

/* ---- start ---- */

static void
zone_unit(void *arg)
{
	if (sql_execute("SELECT time_zone::pg_catalog.text FROM evstream.state", 0, NULL, NULL, NULL,
					SPI_OK_SELECT) > 0)
		*(bool *) arg = strcmp(TextDatumGetCString(sql_column(0, 1, NULL)), setting_time_zone) == 0;
}

static void
restored_unit(void *arg)
{
	*(bool *) arg = batch_is_restored();
}

/* Waits until a restored database is released. */
static void
wait_for_resume(void)
{
	for (;;)
	{
		bool restored = false;

		if (!worker_run("looking whether the database was restored", restored_unit, &restored,
						NULL))
			worker_backoff();
		else if (!restored)
			return;
		else
		{
			status_state("paused");
			(void) worker_wait(-1, PAUSED_MS);
		}
	}
}

/*
 * Maintenance writes down the zone of the days, so that a rebuild knows it;
 * nothing is counted before that.
 */
static void
wait_for_zone(void)
{
	bool agreed = false;

	for (;;)
	{
		if (!worker_run("comparing the time zone", zone_unit, &agreed, NULL))
			worker_backoff();
		else if (agreed)
			return;
		else
		{
			status_state("waiting");
			(void) worker_wait(-1, 200);
		}
	}
}

void
evstream_consumer_main(Datum main_arg)
{
	worker_begin(main_arg, ROLE_CONSUMER);

	consumer.long_context =
		AllocSetContextCreate(TopMemoryContext, "evstream consumer", ALLOCSET_DEFAULT_SIZES);
	consumer.batch_context =
		AllocSetContextCreate(consumer.long_context, "evstream batch", ALLOCSET_DEFAULT_SIZES);
	consumer.arena = event_arena_create();
	if (consumer.arena == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	consumer.zone = pg_tzset(setting_time_zone);
	if (consumer.zone == NULL)
		elog(ERROR, "time zone \"%s\" not recognized", setting_time_zone);

	poison_begin();
	wait_for_resume();
	wait_for_zone();

	if (setting_kafka_brokers[0] == '\0')
		consumer_local_loop();
	else
		consumer_kafka_loop();
}
