/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  The relay worker: takes tracked events from the outbox to Kafka.
 *
 * Reading runs ahead of delivering, within bounds.  The position that is
 * recorded moves only over rows whose delivery reports came back, without a
 * gap; whatever else happens, the relay goes on from there, and rows that went
 * out twice are recognised by their ids.
 *
 * Records go out in batches.  When the broker refuses a batch, any of its
 * records may be the cause, so the relay begins again at the recorded position
 * with batches of one record; what is refused then is a dead letter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/base64.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "clock.h"
#include "compat.h"
#include "event.h"
#include "kafka.h"
#include "outbox.h"
#include "relay.h"
#include "settings.h"
#include "sql.h"
#include "status.h"
#include "worker.h"

#define READ_ROWS  10000
#define READ_BYTES ((Size) 8 * 1024 * 1024)

#define RECORD_ROWS     10000
#define RECORD_US       (100 * INT64CONST(1000))
/* If that is all there is */
#define RECORD_ALL_US   (10 * INT64CONST(1000))
/* From one reading to the next where many commit, so that these make one tick, and not one each */
#define BUSY_PAUSE_US   (5 * INT64CONST(1000))
#define IDLE_MS         1000
/* Is the topic still the one that it was? */
#define LOOK_US         (2 * USECS_PER_SEC)
#define TIMELESS_US     (10 * SECS_PER_MINUTE * USECS_PER_SEC)
#define SINGLY_AGAIN_US (10 * SECS_PER_MINUTE * USECS_PER_SEC)

PGDLLEXPORT void evstream_relay_main(Datum main_arg);

Relay relay;

/* ---- positions ---- */

typedef enum RelayMay
{
	MAY_SEND,
	WAIT_FOR_TAKE_OVER,
	WAIT_FOR_POSITIONS
} RelayMay;

/* Loads where to go on, if this relay may send. */
static void
load_unit(void *arg)
{
	RelayMay *may = arg;
	Oid types[2] = {INT8OID, OIDOID};
	Datum values[2] = {Int64GetDatum((int64) GetSystemIdentifier()),
					   ObjectIdGetDatum(MyDatabaseId)};

	relay.log_id = batch_log_id(relay.cluster, relay.topic);
	if (sql_execute(
			"SELECT FROM evstream.identity WHERE system_identifier = $1 AND database_oid = $2", 2,
			types, values, NULL, SPI_OK_SELECT) == 0)
	{
		*may = WAIT_FOR_TAKE_OVER;
		return;
	}

	/*
	 * "latest" must not pass over what is sent before the consumers know
	 * where that is.
	 */
	if (setting_kafka_start_ms() != SETTING_START_EARLIEST &&
		!batch_log_has_positions(relay.log_id, relay.topic_partitions))
	{
		*may = WAIT_FOR_POSITIONS;
		return;
	}
	*may = MAY_SEND;
	outbox_adopt();
	relay.recorded_at = outbox_relay_position(relay.log_id);
	relay.origin = outbox_origin();

	/*
	 * Another reader may have made the present tick without flushing what it
	 * covers: this commit does.
	 */
	relay.flush.known = false;
	outbox_flush_begin(&relay.flush);
	outbox_flush_at_commit(&relay.flush);
}

static void
free_first(void)
{
	ReadBatch *batch = relay.first;

	relay.first = batch->next;
	if (relay.first == NULL)
		relay.last = NULL;
	relay.bytes -= batch->bytes;
	MemoryContextDelete(batch->context);
}

/* A new client, at the recorded position, with nothing in flight. */
static void
begin_again(void)
{
	if (relay.client != NULL)
		relay_client_close();
	while (relay.first != NULL)
		free_first();
	relay.producing = NULL;
	relay.nrefusals = 0;
	relay.recorded = relay.delivered = relay.produced = relay.read;
	relay.broken = relay.topic_moved = false;

	relay_client_open();
	for (;;)
	{
		RelayMay may = MAY_SEND;

		if (!worker_run("reading the relay's position", load_unit, &may, NULL))
		{
			worker_backoff();
			continue;
		}
		if (may == MAY_SEND)
		{
			outbox_flush_done(&relay.flush);
			break;
		}
		/* the consumers say in health that this database is no owner */
		status_state(may == WAIT_FOR_TAKE_OVER ? "stopped" : "waiting");
		(void) worker_wait(-1, may == WAIT_FOR_TAKE_OVER ? 1000 : 100);
		relay_client_poll();
	}
	relay.nparts = 0; /* what is recorded stays */
	relay.read_at = relay.done_at = relay.recorded_at;
	relay.look = true;
	relay.read_due = relay.recorded_since = 0;
	relay.look_due = clock_us() + LOOK_US;
	status_state("running");
}

/* Position behind the last delivered row. */
static OutboxPosition
delivered_position(void)
{
	OutboxPosition position = relay.done_at;

	for (ReadBatch *batch = relay.first; batch != NULL; batch = batch->next)
	{
		uint64 n = relay.delivered - batch->first;

		if (n >= (uint64) batch->outbox.nrows)
		{
			position = batch->outbox.after;
			continue;
		}
		if (n > 0)
		{
			position.tick = batch->tick - 1;
			position.xid = batch->outbox.rows[n - 1].xid;
			position.id = batch->outbox.rows[n - 1].id;
		}
		break;
	}
	return position;
}

/* ---- reading the outbox ---- */

typedef struct ReadUnit
{
	ReadBatch *batch;
	int max;
	bool made_tick;
} ReadUnit;

static void
look_at_log(void)
{
	if (batch_log_id(relay.cluster, relay.topic) != relay.log_id)
		relay.topic_moved = true;
}

static void
read_unit(void *arg)
{
	ReadUnit *unit = arg;

	if (clock_us() >= relay.look_due)
		look_at_log();
	outbox_flush_begin(&relay.flush);
	outbox_read(&relay.read_at, unit->max, READ_BYTES, unit->batch->context, &unit->batch->outbox,
				&unit->made_tick);
	if (unit->made_tick)
		outbox_flush_at_commit(&relay.flush);
}

static bool
may_read(void)
{
	if (!relay.look || relay.produced < relay.read ||
		relay.read - relay.recorded + READ_ROWS > FLIGHT_ROWS ||
		relay.bytes + READ_BYTES > FLIGHT_BYTES)
		return false;
	/* Before batches begin again, all that was sent one by one has to be in. */
	return !relay.single || outbox_position_cmp(&relay.read_at, &relay.single_end) < 0;
}

static void
read_outbox(void)
{
	ReadUnit unit;
	MemoryContext context;
	int64 now;
	bool done;

	context =
		AllocSetContextCreate(TopMemoryContext, "evstream relay batch", ALLOCSET_DEFAULT_SIZES);
	unit.batch = MemoryContextAllocZero(context, sizeof(ReadBatch));
	unit.batch->context = context;
	unit.max = relay.single ? READ_ROWS / 10 : READ_ROWS;

	done = worker_run("reading the outbox", read_unit, &unit, NULL);
	now = clock_us();
	if (!done)
	{
		MemoryContextDelete(context);
		worker_backoff();
		return;
	}
	outbox_flush_done(&relay.flush);
	if (now >= relay.look_due)
		relay.look_due = now + LOOK_US;
	if (worker_rate(&relay.rate, unit.batch->outbox.nrows, now) > WORKER_BUSY_RATE)
		relay.read_due = now + BUSY_PAUSE_US;
	if (relay.topic_moved)
	{
		MemoryContextDelete(context);
		return;
	}

	relay.read_at = unit.batch->outbox.after;
	/* behind a tick that was there already, there may be others */
	relay.look = unit.batch->outbox.nrows > 0 && !(unit.batch->outbox.tick_done && unit.made_tick);
	if (relay.look)
		relay.read_due = 0;
	if (unit.batch->outbox.nrows == 0)
	{
		/* A tick may have ended all the same. */
		if (relay.last != NULL)
			relay.last->outbox.after = relay.read_at;
		else
			relay.done_at = relay.read_at;
		MemoryContextDelete(context);
		return;
	}

	unit.batch->tick = unit.batch->outbox.tick_done ? unit.batch->outbox.after.tick
													: unit.batch->outbox.after.tick + 1;
	unit.batch->first = relay.read;
	unit.batch->bytes = MemoryContextMemAllocated(context, true);
	for (int i = 0; i < unit.batch->outbox.nrows; i++)
		relay.states[(relay.read + i) % FLIGHT_ROWS] = FLIGHT_PENDING;
	relay.read += unit.batch->outbox.nrows;
	relay.bytes += unit.batch->bytes;
	if (relay.last != NULL)
		relay.last->next = unit.batch;
	else
		relay.first = unit.batch;
	relay.last = unit.batch;
	if (relay.producing == NULL)
		relay.producing = unit.batch;
}

/* ---- producing ---- */

/* A batch was refused: any of its records may be the cause. */
static void
send_singly(const char *error)
{
	int64 now = clock_us();

	if (relay.broken)
		return;
	relay.broken = true;
	relay.single = true;
	relay.single_end = relay.read_at;
	/* A topic with a small max.message.bytes would refuse batch after batch. */
	if (relay.single_since != 0 && now < relay.single_since + SINGLY_AGAIN_US)
		relay.single_end.tick = PG_INT64_MAX;
	else
		ereport(LOG,
				(errmsg("Kafka refused a batch of records, which are sent again one by one: %s",
						error)));
	relay.single_since = now;
}

/* Are records sent without a timestamp for now? */
static bool
timeless(void)
{
	return relay.timeless_until != 0 && clock_us() < relay.timeless_until;
}

/*
 * The broker refused the time of a record: its clock and ours differ by more
 * than it allows, or the record has waited for longer.  That is no fault of
 * the record, whose time then travels in a header.
 */
static void
send_timeless(const char *error)
{
	int64 now = clock_us();

	if (relay.broken)
		return;
	relay.broken = true;
	if (relay.timeless_until == 0 || now > relay.timeless_until + TIMELESS_US)
		ereport(
			WARNING,
			(errmsg("Kafka refuses the time of records, which are sent without one: %s", error),
			 errhint(
				 "Compare the clocks of this server and the brokers, and see the settings message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic.")));
	relay.timeless_until = now + TIMELESS_US;
}

/* The broker does not take this row, by itself. */
static void
refuse(uint64 number, const char *error)
{
	if (relay.nrefusals == relay.refusals_size)
	{
		relay.refusals_size = Max(16, 2 * relay.refusals_size);
		if (relay.refusals == NULL)
			relay.refusals =
				MemoryContextAlloc(TopMemoryContext, relay.refusals_size * sizeof(Refusal));
		else
			relay.refusals = repalloc(relay.refusals, relay.refusals_size * sizeof(Refusal));
	}
	relay.refusals[relay.nrefusals].number = number;
	strlcpy(relay.refusals[relay.nrefusals].error, error, sizeof(relay.refusals[0].error));
	relay.nrefusals++;
	relay.states[number % FLIGHT_ROWS] = FLIGHT_REFUSED;
}

/* What headers are written to */
typedef struct HeaderTexts
{
	char event_id[37];
	char origin[OUTBOX_ORIGIN_SIZE];
	char time[24];
} HeaderTexts;

/*
 * Headers of a row's record, at most four; their texts in *texts and the row.
 * time_ms is one of them, where it is not -1.
 */
static int
row_headers(const ReadBatch *batch, const OutboxRow *row, int64 time_ms, HeaderTexts *texts,
			KafkaHeader *headers)
{
	int n = 0;

	event_format_uuid(row->event_id.data, texts->event_id);
	headers[n].name = "event_id";
	headers[n].value = texts->event_id;
	headers[n++].len = sizeof(texts->event_id) - 1;
	headers[n].name = "evstream-origin";
	headers[n].value = texts->origin;
	headers[n++].len =
		outbox_origin_text(&relay.origin, batch->tick, row->xid, row->id, texts->origin);
	if (row->traceparent != NULL)
	{
		headers[n].name = "traceparent";
		headers[n].value = row->traceparent;
		headers[n++].len = row->traceparent_len;
	}
	if (time_ms >= 0)
	{
		headers[n].name = "evstream-time";
		headers[n].value = texts->time;
		headers[n++].len = pg_lltoa(time_ms, texts->time);
	}
	return n;
}

/* Hands rows to the library until it is full. */
static void
produce(void)
{
	if (relay.produced == relay.delivered)
		relay.progress_at = clock_us();
	while (relay.producing != NULL && !relay.broken)
	{
		ReadBatch *batch = relay.producing;
		OutboxRow *row = &batch->outbox.rows[relay.produced - batch->first];
		KafkaHeader headers[4];
		HeaderTexts texts;
		KafkaStatus status;
		bool bare = timeless();
		int64 time_ms = row->tracked_at / 1000 +
						(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;
		int n;

		n = row_headers(batch, row, bare ? time_ms : -1, &texts, headers);
		status =
			kafka_produce(relay.client, relay.topic, row->user_id, row->user_id_len, row->value,
						  row->value_len, bare ? -1 : time_ms, headers, n, relay.produced);
		if (status == KAFKA_QUEUE_FULL)
			break;
		if (status == KAFKA_REFUSED)
			refuse(relay.produced, kafka_error(relay.client)); /* alone */
		else if (status != KAFKA_OK)
			relay_client_broken(status, kafka_error(relay.client));
		if (relay.broken)
			break;
		relay.produced++;
		if (relay.produced == batch->first + batch->outbox.nrows)
			relay.producing = batch->next;
		/* A long batch must not keep delivery reports waiting. */
		if (relay.produced % 1000 == 0)
			relay_client_poll();
	}
}

static void
note_offset(int partition, int64 offset)
{
	if (partition < 0 || offset < 0)
		return;
	if (partition >= relay.nparts)
	{
		static int size = 0;

		if (partition >= size)
		{
			size = partition + 16;
			if (relay.next_offsets == NULL)
				relay.next_offsets = MemoryContextAlloc(TopMemoryContext, size * sizeof(int64));
			else
				relay.next_offsets = repalloc(relay.next_offsets, size * sizeof(int64));
		}
		while (relay.nparts <= partition)
			relay.next_offsets[relay.nparts++] = 0;
	}
	relay.next_offsets[partition] = Max(relay.next_offsets[partition], offset + 1);
}

static void
take_deliveries(int64 now)
{
	static KafkaDelivery deliveries[1000];
	int n;

	while ((n = kafka_deliveries(relay.client, deliveries, lengthof(deliveries))) > 0)
	{
		for (int i = 0; i < n; i++)
		{
			KafkaDelivery *delivery = &deliveries[i];

			relay.progress_at = now;
			if (delivery->status == KAFKA_OK)
			{
				relay.states[delivery->tag % FLIGHT_ROWS] = FLIGHT_DELIVERED;
				note_offset(delivery->partition, delivery->offset);
				relay.retry_ms = RETRY_FIRST_MS;
				relay.failing = false;
			}
			else if (delivery->status != KAFKA_REFUSED)
				relay_client_broken(delivery->status, delivery->error);
			else if (delivery->bad_time && !timeless())
				send_timeless(delivery->error);
			else if (!relay.single)
				send_singly(delivery->error);
			/* what comes after that is of batches still, and blames none */
			else if (!relay.broken)
				refuse(delivery->tag, delivery->error);
		}
	}
	while (relay.delivered < relay.produced &&
		   relay.states[relay.delivered % FLIGHT_ROWS] != FLIGHT_PENDING)
		relay.delivered++;
}

/* ---- recording ---- */

/* As a JSON array of [name, value in base64]. */
static char *
headers_json(const KafkaHeader *headers, int nheaders)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < nheaders; i++)
	{
		int size = pg_b64_enc_len((int) headers[i].len) + 1;
		char *value = palloc0(size);

		if (pg_b64_encode((const void *) headers[i].value, (int) headers[i].len, value, size) < 0)
			elog(ERROR, "could not encode a header");
		appendStringInfo(&json, "%s[\"%s\", \"%s\"]", i == 0 ? "[" : ", ", headers[i].name, value);
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

static void
write_dead_letter(const Refusal *refusal)
{
	Oid types[6] = {TEXTOID, INT4OID, BYTEAOID, BYTEAOID, TIMESTAMPTZOID, TEXTOID};
	Datum values[6];
	KafkaHeader headers[3];
	HeaderTexts texts;
	ReadBatch *batch = relay.first;
	OutboxRow *row;
	int n;

	while (refusal->number >= batch->first + batch->outbox.nrows)
		batch = batch->next;
	row = &batch->outbox.rows[refusal->number - batch->first];
	n = row_headers(batch, row, -1, &texts, headers);
	values[0] = CStringGetTextDatum(refusal->error);
	values[1] = Int32GetDatum(relay.log_id);
	/* text and bytea are the same inside */
	values[2] = PointerGetDatum(cstring_to_text_with_len(row->user_id, row->user_id_len));
	values[3] = PointerGetDatum(cstring_to_text_with_len(row->value, row->value_len));
	values[4] = TimestampTzGetDatum(row->tracked_at);
	values[5] = CStringGetTextDatum(headers_json(headers, n));
	if (SPI_execute_with_args(
			"INSERT INTO evstream.dead_letters (reason, detail, log_id, record_key,"
			" record_value, record_timestamp, record_headers)"
			" VALUES ('refused', $1, $2, $3, $4, $5, $6::pg_catalog.jsonb)",
			6, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write dead letter");
}

typedef struct RecordUnit
{
	OutboxPosition position;
	int ndead;
} RecordUnit;

static void
record_unit(void *arg)
{
	RecordUnit *unit = arg;

	unit->ndead = 0;
	if (clock_us() >= relay.look_due)
		look_at_log();
	/* Offsets of another incarnation would say nothing. */
	if (relay.topic_moved)
		return;
	for (int i = 0; i < relay.nrefusals; i++)
	{
		if (relay.refusals[i].number >= relay.delivered)
			continue;
		write_dead_letter(&relay.refusals[i]);
		unit->ndead++;
	}
	outbox_relay_advance(&unit->position, relay.log_id, relay.next_offsets, relay.nparts);
}

/* When what was delivered is to be recorded, sooner if it is all. */
static int64
record_due(void)
{
	return relay.recorded_since + (relay.delivered == relay.read ? RECORD_ALL_US : RECORD_US);
}

/* Records what was delivered, if that is due; false if it could not be. */
static bool
record(int64 now, bool at_once)
{
	RecordUnit unit;
	int kept = 0;

	unit.position = delivered_position();
	if (outbox_position_cmp(&unit.position, &relay.recorded_at) == 0)
		return true;
	if (!at_once && now < record_due() && relay.delivered - relay.recorded < RECORD_ROWS)
		return true;
	if (!worker_run("recording what was delivered", record_unit, &unit, NULL))
		return false;
	now = clock_us();
	if (now >= relay.look_due)
		relay.look_due = now + LOOK_US;
	if (relay.topic_moved)
		return true;

	if (relay.delivered > relay.recorded)
		status_count(relay.delivered - relay.recorded, 1);
	if (unit.ndead > 0)
		status_dead_letters_add(MyDatabaseId, unit.ndead);
	for (int i = 0; i < relay.nrefusals; i++)
	{
		if (relay.refusals[i].number >= relay.delivered)
			relay.refusals[kept++] = relay.refusals[i];
	}
	relay.nrefusals = kept;
	relay.recorded = relay.delivered;
	relay.recorded_at = relay.done_at = unit.position;
	relay.recorded_since = now;
	while (relay.first != NULL && relay.recorded >= relay.first->first + relay.first->outbox.nrows)
		free_first();
	return true;
}

/* ---- the loop ---- */

static void
restored_unit(void *arg)
{
	*(bool *) arg = batch_is_restored();
}

/* What waits in a restored database is not sent before it is released. */
static void
wait_while_restored(void)
{
	for (;;)
	{
		bool restored = false;

		if (!worker_run("looking whether the database was restored", restored_unit, &restored,
						NULL))
		{
			worker_backoff();
			continue;
		}
		if (!restored)
			return;
		status_state("paused");
		worker_wait(-1, IDLE_MS);
	}
}

static long
time_to_wait(int64 now)
{
	int64 until = now + IDLE_MS * INT64CONST(1000);
	OutboxPosition delivered = delivered_position();

	if (outbox_position_cmp(&delivered, &relay.recorded_at) != 0)
		until = Min(until, record_due());
	if (may_read())
		until = Min(until, relay.read_due);
	return until <= now ? 0 : (long) ((until - now + 999) / 1000);
}

static bool
single_is_done(void)
{
	return relay.single && relay.recorded == relay.read &&
		   outbox_position_cmp(&relay.read_at, &relay.single_end) >= 0;
}

void
evstream_relay_main(Datum main_arg)
{
	int64 now;

	worker_begin(main_arg, ROLE_RELAY);
	relay_client_init();
	relay.client_context =
		AllocSetContextCreate(TopMemoryContext, "evstream relay client", ALLOCSET_DEFAULT_SIZES);
	relay.retry_ms = RETRY_FIRST_MS;
	relay.topic = MemoryContextStrdup(TopMemoryContext, setting_kafka_topic);

	wait_while_restored();
	begin_again();

	for (;;)
	{
		relay_client_poll();
		now = clock_us();
		take_deliveries(now);
		relay_client_health(now);
		if (!record(now, relay.broken))
		{
			worker_backoff();
			relay.look = true;
			continue;
		}
		if (relay.broken)
		{
			relay_client_retry();
			begin_again();
			continue;
		}
		if (relay.topic_moved)
		{
			ereport(LOG, (errmsg("Kafka topic \"%s\" was made again, events that were not consumed "
								 "are sent again",
								 relay.topic)));
			begin_again();
			continue;
		}
		if (single_is_done())
		{
			relay.single = false;
			begin_again();
			continue;
		}
		produce();
		if (may_read() && now >= relay.read_due)
		{
			status_state("running");
			read_outbox();
			continue;
		}
		if (relay.read == relay.recorded)
			status_state("idle");
		if (relay.broken)
			continue;
		if (may_read())
			(void) worker_pause(kafka_fd(relay.client), time_to_wait(now));
		/* what was delivered is needed only for recording, and for what is sent after it */
		else if (relay.delivered < relay.produced && relay.produced == relay.read &&
				 now < relay.progress_at + RECORD_ALL_US)
		{
			(void) worker_wait(-1, RECORD_ALL_US / 1000);
			if (worker_woken())
				relay.look = true;
		}
		/* what Kafka has to say is no reason to look; a commit would come first */
		else if (!worker_wait(kafka_fd(relay.client), time_to_wait(now)))
			relay.look = true;
	}
}
