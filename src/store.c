/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Rows of evstream.events and evstream.dead_letters.
 *
 * Events go straight into the partition of their received day, many tuples to
 * a page at a time, as COPY does it.  The columns' order is that of the install
 * script.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "bulk.h"
#include "compat.h"
#include "jsonb_flat.h"
#include "partition.h"
#include "settings.h"
#include "sql.h"
#include "store.h"

enum
{
	EV_EVENT_ID,
	EV_USER_ID,
	EV_EVENT_TYPE,
	EV_OCCURRED_AT,
	EV_RECEIVED_AT,
	EV_ITEM_ID,
	EV_AMOUNT,
	EV_USER_TIER,
	EV_PROPERTIES,
	EV_LOG_ID,
	EV_LOG_PARTITION,
	EV_LOG_OFFSET,
	EV_TRACEPARENT,
	EV_COLUMNS
};

static const Oid event_types[EV_COLUMNS] = {
	UUIDOID, TEXTOID,  TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, NUMERICOID,
	TEXTOID, JSONBOID, INT4OID, INT4OID,        INT8OID,        TEXTOID};

static Bulk *
open_leaf(TimestampTz received_at)
{
	char name[NAMEDATALEN];
	int year;
	int month;
	int day;
	Oid relid;
	Bulk *bulk;

	partition_ensure_events(received_at);
	j2date(partition_day(received_at) + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	snprintf(name, sizeof(name), "events_%04d%02d%02d", year, month, day);
	relid = get_relname_relid(name, get_namespace_oid("evstream", false));
	if (!OidIsValid(relid))
		elog(ERROR, "table \"evstream.%s\" does not exist", name);
	bulk = bulk_open(relid, event_types, EV_COLUMNS, NULL, NULL);
	/* somebody may have emptied it */
	if (RelationGetNumberOfBlocks(bulk_relation(bulk)) == 0)
		partition_give_up_days(name, true);
	if (!bulk_relation(bulk)->rd_rel->relispartition)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"evstream.%s\" is not attached to \"evstream.events\"", name)));
	return bulk;
}

static Datum
text_datum(EventText source, bool *isnull)
{
	*isnull = source.data == NULL;
	return *isnull ? (Datum) 0 : PointerGetDatum(cstring_to_text_with_len(source.data, source.len));
}

static Datum
numeric_datum(EventText text)
{
	return DirectFunctionCall3(numeric_in, CStringGetDatum(pnstrdup(text.data, text.len)),
							   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}

static void
put_event(Bulk *bulk, const BatchRecord *record)
{
	TupleTableSlot *slot = bulk_slot(bulk);
	const Event *event = &record->event;
	MemoryContext old = MemoryContextSwitchTo(bulk_context(bulk));

	slot->tts_values[EV_EVENT_ID] = UUIDPGetDatum(&record->id);
	slot->tts_values[EV_USER_ID] = text_datum(event->user_id, &slot->tts_isnull[EV_USER_ID]);
	slot->tts_values[EV_EVENT_TYPE] =
		text_datum(event->event_type, &slot->tts_isnull[EV_EVENT_TYPE]);
	slot->tts_values[EV_OCCURRED_AT] = TimestampTzGetDatum(record->occurred_at);
	slot->tts_values[EV_RECEIVED_AT] = TimestampTzGetDatum(record->received_at);
	slot->tts_values[EV_ITEM_ID] = text_datum(event->item_id, &slot->tts_isnull[EV_ITEM_ID]);
	slot->tts_isnull[EV_AMOUNT] = event->amount.data == NULL;
	slot->tts_values[EV_AMOUNT] =
		event->amount.data == NULL ? (Datum) 0 : numeric_datum(event->amount);
	slot->tts_values[EV_USER_TIER] = text_datum(event->user_tier, &slot->tts_isnull[EV_USER_TIER]);
	slot->tts_values[EV_PROPERTIES] =
		jsonb_from_object(event->properties.data, event->properties.len);
	slot->tts_values[EV_LOG_ID] = Int32GetDatum(record->part->log_id);
	slot->tts_values[EV_LOG_PARTITION] = Int32GetDatum(record->part->partition);
	slot->tts_values[EV_LOG_OFFSET] = Int64GetDatum(record->offset);
	slot->tts_values[EV_TRACEPARENT] =
		text_datum(event->traceparent, &slot->tts_isnull[EV_TRACEPARENT]);
	MemoryContextSwitchTo(old);
	bulk_put(bulk, slot);
}

void
store_events(const Batch *batch)
{
	Bulk *bulk = NULL;
	DateADT day = 0;

	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];

		if (!batch_is_new(record))
			continue;
		if (bulk != NULL && partition_day(record->received_at) != day)
		{
			bulk_close(bulk);
			bulk = NULL;
		}
		if (bulk == NULL)
		{
			bulk = open_leaf(record->received_at);
			day = partition_day(record->received_at);
		}
		put_event(bulk, record);
	}
	if (bulk != NULL)
		bulk_close(bulk);
	CommandCounterIncrement();
}

static Datum
bytea_datum(const char *data, size_t len)
{
	return PointerGetDatum(cstring_to_text_with_len(data, len));
}

int64
store_dead_letters(const Batch *batch)
{
	Oid types[10] = {TEXTOID,  TEXTOID,  INT4OID,        INT4OID, INT8OID,
					 BYTEAOID, BYTEAOID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID};
	SPIPlanPtr plan = SPI_prepare(
		"INSERT INTO evstream.dead_letters (reason, detail, log_id, log_partition, log_offset,"
		" record_key, record_value, record_timestamp, record_headers, received_at)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10)",
		10, types);
	int64 count = 0;

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	for (int i = 0; i < batch->nrecords; i++)
	{
		const BatchRecord *record = &batch->records[i];
		char *headers;
		Datum values[10];
		char nulls[10];

		if (record->pass_over || record->value == NULL || record->reason == EVENT_OK)
			continue;
		memset(nulls, ' ', sizeof(nulls));
		headers = batch->headers ? batch->headers(record) : NULL;
		values[0] = CStringGetTextDatum(event_reason_name(record->reason));
		values[1] = CStringGetTextDatum(record->detail ? record->detail : "");
		values[2] = Int32GetDatum(record->part->log_id);
		values[3] = Int32GetDatum(record->part->partition);
		values[4] = Int64GetDatum(record->offset);
		if (record->key == NULL)
			nulls[5] = 'n';
		else
			values[5] = bytea_datum(record->key, record->key_len);
		values[6] = bytea_datum(record->value, record->value_len);
		values[7] = TimestampTzGetDatum(record->timestamp_us - UNIX_EPOCH_OFFSET_US);
		if (headers == NULL)
			nulls[8] = 'n';
		else
			values[8] = CStringGetTextDatum(headers);
		values[9] = TimestampTzGetDatum(record->received_at);
		if (SPI_execute_plan(plan, values, nulls, false, 0) != SPI_OK_INSERT)
			elog(ERROR, "could not write dead letter");
		count++;
	}
	SPI_freeplan(plan);
	return count;
}
