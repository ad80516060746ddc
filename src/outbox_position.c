/*-------------------------------------------------------------------------
 *
 * outbox_position.c
 *	  Positions in the outbox: of the relay, of the embedded log, of what is stored.
 *
 * They come from the rows that the readers add with their progress, and so
 * move in the transactions of the data.  The stretches that the embedded log
 * has read are kept, to know their records when they come out of Kafka.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"
#include "utils/xid8.h"

#include "compat.h"
#include "event.h"
#include "outbox_int.h"
#include "sql.h"

typedef struct LocalRange
{
	pg_uuid_t origin;
	OutboxPosition from;
	OutboxPosition to;
} LocalRange;

static LocalRange *local_ranges = NULL;
static int nlocal_ranges = 0;

bool outbox_use_active_snapshot = false;

/* ---- small things ---- */

uint64
outbox_execute(const char *sql, int nargs, Oid *types, Datum *values, int expected)
{
	int rc = SPI_execute_with_args(sql, nargs, types, values, NULL, outbox_use_active_snapshot, 0);

	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

uint64
outbox_execute_kept(const char *sql, int nargs, Oid *types, Datum *values, int expected)
{
	return sql_execute_kept(sql, nargs, types, values, NULL, outbox_use_active_snapshot, expected);
}

int
outbox_position_cmp(const OutboxPosition *a, const OutboxPosition *b)
{
	if (a->tick != b->tick)
		return a->tick < b->tick ? -1 : 1;
	if (a->xid != b->xid)
		return a->xid < b->xid ? -1 : 1;
	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return 0;
}

static OutboxPosition
position_from_row(int row, int first_column)
{
	OutboxPosition position;

	position.tick = DatumGetInt64(sql_column(row, first_column, NULL));
	position.xid = U64FromFullTransactionId(
		DatumGetFullTransactionId(sql_column(row, first_column + 1, NULL)));
	position.id = DatumGetInt64(sql_column(row, first_column + 2, NULL));
	return position;
}

Datum
outbox_xid_datum(uint64 xid)
{
	return FullTransactionIdGetDatum(FullTransactionIdFromU64(xid));
}

/* ---- positions ---- */

/*
 * Runs a query for a position; one lower than the base counts as the base,
 * since below it xids are those of another system.
 */
static OutboxPosition
query_position(const char *sql)
{
	OutboxPosition position = {0, 0, 0};

	outbox_execute("SELECT outbox_base FROM evstream.identity", 0, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
		position.tick = DatumGetInt64(sql_column(0, 1, NULL));
	outbox_execute(sql, 0, NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		OutboxPosition found = position_from_row(0, 1);

		if (outbox_position_cmp(&found, &position) > 0)
			position = found;
	}
	return position;
}

static OutboxPosition
read_locally_position(void)
{
	return query_position("SELECT tick, xid, id FROM evstream.batch_log"
						  " WHERE log_id = 1 AND log_partition = 0 AND tick IS NOT NULL"
						  " ORDER BY generation DESC, from_offset DESC LIMIT 1");
}

static OutboxPosition
relayed_position(void)
{
	return query_position("SELECT tick, xid, id FROM evstream.relay_log ORDER BY seq DESC LIMIT 1");
}

/*
 * Entries of the relay's log of which every record is consumed.  What is
 * consumed does not shrink by a seek, so it is not the position that is asked.
 */
#define CONSUMED_ENTRIES                                                                              \
	"SELECT r.seq, r.tick, r.xid, r.id FROM evstream.relay_log r"                                     \
	" WHERE NOT EXISTS (SELECT FROM pg_catalog.unnest(r.next_offsets) WITH ORDINALITY AS o (next, n)" \
	"   WHERE o.next > 0 AND o.next > GREATEST(0,"                                                    \
	"     (SELECT GREATEST(pg_catalog.upper(p.consumed), (SELECT max(newest.to_offset)"               \
	"         FROM pg_catalog.generate_series(0, p.generation) g,"                                    \
	"         LATERAL (SELECT b.to_offset FROM evstream.batch_log b WHERE b.log_id = p.log_id"        \
	"           AND b.log_partition = p.log_partition AND b.generation = g"                           \
	"           ORDER BY b.from_offset DESC LIMIT 1) newest))"                                        \
	"       FROM evstream.partitions p WHERE p.log_id = r.log_id AND p.log_partition = o.n - 1)))"

static OutboxPosition
relayed_and_stored_position(void)
{
	SPIPlanPtr plan;
	Portal portal;
	OutboxPosition position = query_position("SELECT 1 WHERE false");

	/* newest first in case all is consumed, which is the common one */
	outbox_execute(CONSUMED_ENTRIES " AND r.seq = (SELECT max(seq) FROM evstream.relay_log)", 0,
				   NULL, NULL, SPI_OK_SELECT);
	if (SPI_processed > 0)
	{
		OutboxPosition found = position_from_row(0, 2);

		return outbox_position_cmp(&found, &position) > 0 ? found : position;
	}

	plan = SPI_prepare("SELECT s.tick, s.xid, s.id, EXISTS (SELECT FROM (" CONSUMED_ENTRIES
					   " AND r.seq = s.seq) c)"
					   " FROM evstream.relay_log s ORDER BY s.seq",
					   0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, outbox_use_active_snapshot);
	for (;;)
	{
		OutboxPosition found;

		SPI_cursor_fetch(portal, true, 1);
		if (SPI_processed == 0 || !DatumGetBool(sql_column(0, 4, NULL)))
			break;
		found = position_from_row(0, 1);
		if (outbox_position_cmp(&found, &position) > 0)
			position = found;
	}
	SPI_cursor_close(portal);
	SPI_freeplan(plan);
	return position;
}

OutboxPosition
outbox_stored_position(void)
{
	OutboxPosition local = read_locally_position();
	OutboxPosition relayed = relayed_and_stored_position();

	return outbox_position_cmp(&local, &relayed) >= 0 ? local : relayed;
}

OutboxPosition
outbox_sent_position(void)
{
	OutboxPosition local = read_locally_position();
	OutboxPosition relayed = relayed_position();

	return outbox_position_cmp(&local, &relayed) >= 0 ? local : relayed;
}

OutboxPosition
outbox_relay_position(int32 log_id)
{
	Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(log_id)};
	OutboxPosition position;

	if (outbox_execute("SELECT FROM evstream.relay_log WHERE log_id <> $1", 1, types, values,
					   SPI_OK_SELECT) == 0)
		return outbox_sent_position();

	/*
	 * The topic was made again, or another one is set: what went into the old
	 * one and was not consumed is sent again.
	 */
	position = outbox_stored_position();
	outbox_execute("DELETE FROM evstream.relay_log", 0, NULL, NULL, SPI_OK_DELETE);
	outbox_relay_advance(&position, log_id, NULL, 0);
	return position;
}

/*
 * The embedded log goes on at the last position known to be stored: what is in
 * Kafka and was not consumed is read again here.  That stretch is kept as a
 * local range, so that it is passed over when it comes out of Kafka later.
 */
OutboxPosition
outbox_local_position(void)
{
	OutboxPosition stored = outbox_stored_position();
	Oid types[3] = {INT8OID, XID8OID, INT8OID};
	Datum values[3];

	values[0] = Int64GetDatum(stored.tick);
	values[1] = outbox_xid_datum(stored.xid);
	values[2] = Int64GetDatum(stored.id);
	outbox_execute("INSERT INTO evstream.local_ranges (origin, from_tick, from_xid, from_id)"
				   " SELECT origin, $1, $2, $3 FROM evstream.identity"
				   " WHERE NOT EXISTS (SELECT FROM evstream.local_ranges WHERE to_tick IS NULL)",
				   3, types, values, SPI_OK_INSERT);
	return stored;
}

void
outbox_relay_advance(const OutboxPosition *position, int32 log_id, const int64 *offsets, int nparts)
{
	Oid types[5] = {INT8OID, XID8OID, INT8OID, INT4OID, INT8ARRAYOID};
	Datum values[5];
	Datum *elements = palloc(Max(1, nparts) * sizeof(Datum));

	for (int i = 0; i < nparts; i++)
		elements[i] = Int64GetDatum(offsets[i]);
	values[0] = Int64GetDatum(position->tick);
	values[1] = outbox_xid_datum(position->xid);
	values[2] = Int64GetDatum(position->id);
	values[3] = Int32GetDatum(log_id);
	values[4] = PointerGetDatum(
		construct_array(elements, nparts, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	/* a relay that has just started does not know what was delivered before */
	outbox_execute_kept(
		"INSERT INTO evstream.relay_log (tick, xid, id, log_id, next_offsets)"
		" SELECT $1, $2, $3, $4, COALESCE(pg_catalog.array_agg(GREATEST(x.now, x.before, 0) ORDER BY x.n), '{}')"
		" FROM ROWS FROM (pg_catalog.unnest($5), pg_catalog.unnest("
		"   (SELECT l.next_offsets FROM evstream.relay_log l ORDER BY l.seq DESC LIMIT 1)))"
		" WITH ORDINALITY AS x (now, before, n)",
		5, types, values, SPI_OK_INSERT);
}

/* ---- local ranges ---- */

pg_uuid_t
outbox_origin(void)
{
	if (outbox_execute("SELECT origin::pg_catalog.uuid FROM evstream.identity", 0, NULL, NULL,
					   SPI_OK_SELECT) == 0)
		elog(ERROR, "evstream.identity is empty");
	return *DatumGetUUIDP(sql_column(0, 1, NULL));
}

int
outbox_origin_text(const pg_uuid_t *origin, int64 tick, uint64 xid, int64 id, char *buf)
{
	char *end = buf + 36;

	event_format_uuid(origin->data, buf);
	*end++ = '/';
	end += pg_lltoa(tick, end);
	*end++ = '/';
	end += pg_ulltoa_n(xid, end);
	*end++ = '/';
	end += pg_lltoa(id, end);
	return (int) (end - buf);
}

void
outbox_local_ranges_load(void)
{
	OutboxPosition read = read_locally_position();
	Oid types[3] = {INT8OID, XID8OID, INT8OID};
	Datum values[3] = {Int64GetDatum(read.tick), outbox_xid_datum(read.xid),
					   Int64GetDatum(read.id)};

	outbox_execute(
		"UPDATE evstream.local_ranges SET to_tick = $1, to_xid = $2, to_id = $3 WHERE to_tick IS NULL",
		3, types, values, SPI_OK_UPDATE);
	outbox_execute(
		"SELECT origin::pg_catalog.uuid, from_tick, from_xid, from_id, to_tick, to_xid, to_id FROM evstream.local_ranges"
		" WHERE (from_tick, from_xid, from_id) < (to_tick, to_xid, to_id) ORDER BY range_id",
		0, NULL, NULL, SPI_OK_SELECT);
	if (local_ranges)
		pfree(local_ranges);
	nlocal_ranges = SPI_processed;
	local_ranges = MemoryContextAlloc(TopMemoryContext, Max(1, nlocal_ranges) * sizeof(LocalRange));
	for (int i = 0; i < nlocal_ranges; i++)
	{
		local_ranges[i].origin = *DatumGetUUIDP(sql_column(i, 1, NULL));
		local_ranges[i].from = position_from_row(i, 2);
		local_ranges[i].to = position_from_row(i, 5);
	}
}

bool
outbox_was_read_locally(const char *origin, Size len)
{
	char text[128];
	pg_uuid_t uuid;
	OutboxPosition place;
	char *end;

	if (nlocal_ranges == 0 || len < 38 || len >= sizeof(text) || origin[36] != '/')
		return false;
	if (!event_parse_uuid(origin, 36, uuid.data))
		return false;
	memcpy(text, origin, len);
	text[len] = '\0';
	/* as a position: within the tick, behind the one before */
	place.tick = strtoll(text + 37, &end, 10) - 1;
	if (*end != '/')
		return false;
	place.xid = strtoull(end + 1, &end, 10);
	if (*end != '/')
		return false;
	place.id = strtoll(end + 1, &end, 10);
	if (*end != '\0')
		return false;

	for (int i = 0; i < nlocal_ranges; i++)
	{
		LocalRange *range = &local_ranges[i];

		if (memcmp(range->origin.data, uuid.data, UUID_LEN) == 0 &&
			outbox_position_cmp(&place, &range->from) > 0 &&
			outbox_position_cmp(&place, &range->to) <= 0)
			return true;
	}
	return false;
}
