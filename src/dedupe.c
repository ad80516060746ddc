/*-------------------------------------------------------------------------
 *
 * dedupe.c
 *	  Ids within the dedup window, in segments.
 *
 * A segment is a partition of evstream.ids with a unique index.  Only the
 * newest is written to.  The older ones do not change any more: each is guarded
 * by a Bloom filter in this process, so that a new id costs a look into each
 * filter, and not into each index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "bulk.h"
#include "compat.h"
#include "dedupe.h"
#include "id_filter.h"
#include "partition.h"
#include "segment_filter.h"
#include "sql.h"
#include "status.h"

enum
{
	ID_SEGMENT_ID,
	ID_EVENT_ID,
	ID_COLUMNS
};

static const Oid id_types[ID_COLUMNS] = {INT4OID, UUIDOID};
static const BulkKey id_key = {.ncolumns = 1, .columns = {ID_EVENT_ID + 1}};

/* A segment as this process knows it */
typedef struct Segment
{
	int32 segment_id;
	bool seen;
	MemoryContext context;
	IdFilter *filter;
	bool said_full;
	struct Segment *next;
} Segment;

static Segment *closed_segments = NULL;

/*
 * The one that is written to.  Its filter lacks what other consumers have
 * added since: it only says which ids to look up before they are written.
 */
static Segment *open_segment_filter = NULL;

static Oid
segment_relid(int32 segment_id)
{
	char name[NAMEDATALEN];

	snprintf(name, sizeof(name), "ids_%d", segment_id);
	return get_relname_relid(name, get_namespace_oid("evstream", false));
}

/* Adds a segment behind the last one; the caller holds the lock on id_segments. */
static void
create_segment(void)
{
	int32 segment_id;

	sql_execute(
		"INSERT INTO evstream.id_segments (segment_id)"
		" SELECT COALESCE(max(segment_id), 0) + 1 FROM evstream.id_segments RETURNING segment_id",
		0, NULL, NULL, NULL, SPI_OK_INSERT_RETURNING);
	segment_id = DatumGetInt32(sql_column(0, 1, NULL));
	partition_make_ids(segment_id);
}

/* The open segment, or 0. */
static int32
open_segment(void)
{
	if (sql_execute_kept(
			"SELECT segment_id FROM evstream.id_segments WHERE closed_at IS NULL ORDER BY segment_id DESC LIMIT 1",
			0, NULL, NULL, NULL, false, SPI_OK_SELECT) == 0)
		return 0;
	return DatumGetInt32(sql_column(0, 1, NULL));
}

/* The open segment, or 0, and those that are closed, palloc'd. */
static int32
read_segments(int32 **closed, int *nclosed)
{
	int32 open = 0;
	uint64 n = sql_execute_kept(
		"SELECT segment_id, closed_at IS NOT NULL FROM evstream.id_segments ORDER BY segment_id", 0,
		NULL, NULL, NULL, false, SPI_OK_SELECT);

	*closed = palloc(Max(1, n) * sizeof(int32));
	*nclosed = 0;
	for (uint64 i = 0; i < n; i++)
	{
		int32 segment_id = DatumGetInt32(sql_column(i, 1, NULL));

		if (DatumGetBool(sql_column(i, 2, NULL)))
			(*closed)[(*nclosed)++] = segment_id;
		else
			open = segment_id;
	}
	return open;
}

/*
 * Locks the segment that is written to, until the end of the transaction: as
 * long as somebody holds this lock it is not closed, so that no id can get into
 * two segments.  It is likely the one of before.
 */
static int32
lock_open_segment(int32 likely, int32 **closed, int *nclosed)
{
	int32 segment_id = likely;

	for (;; segment_id = 0)
	{
		Oid relid;

		if (segment_id == 0)
			segment_id = open_segment();
		if (segment_id == 0)
		{
			sql_execute("LOCK TABLE evstream.id_segments IN SHARE ROW EXCLUSIVE MODE", 0, NULL,
						NULL, NULL, SPI_OK_UTILITY);
			if (open_segment() == 0)
				create_segment();
			continue;
		}
		relid = segment_relid(segment_id);
		if (!OidIsValid(relid) && segment_id == likely)
		{
			likely = 0;
			continue;
		}
		if (!OidIsValid(relid))
			elog(ERROR, "table \"evstream.ids_%d\" does not exist", segment_id);
		LockRelationOid(relid, RowExclusiveLock);
		if (read_segments(closed, nclosed) == segment_id)
			return segment_id;
		UnlockRelationOid(relid, RowExclusiveLock);
	}
}

/* A segment as this process is to know it; ids may be added to the open one. */
static Segment *
load_segment(int32 segment_id, bool closed)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "evstream id segment", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Segment *segment = palloc0(sizeof(Segment));
	Relation rel = table_open(segment_relid(segment_id), AccessShareLock);

	segment->segment_id = segment_id;
	segment->context = context;
	if (closed)
		segment->filter = segment_filter_kept(segment_id, rel);
	if (segment->filter == NULL)
		segment->filter = segment_filter_read(rel, closed ? 0 : SEGMENT_IDS);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);

	/* an error before leaves nothing behind */
	MemoryContextSetParent(context, TopMemoryContext);
	return segment;
}

/* Makes closed_segments what the table says. */
static void
sync_closed_segments(const int32 *numbers, int n)
{
	Segment **link = &closed_segments;

	for (Segment *segment = closed_segments; segment != NULL; segment = segment->next)
	{
		segment->seen = false;
		for (int i = 0; i < n; i++)
			if (numbers[i] == segment->segment_id)
				segment->seen = true;
	}
	while (*link != NULL)
	{
		Segment *segment = *link;

		if (segment->seen)
			link = &segment->next;
		else
		{
			*link = segment->next;
			MemoryContextDelete(segment->context);
		}
	}
	for (int i = 0; i < n; i++)
	{
		bool known = false;
		Segment *segment;

		for (segment = closed_segments; segment != NULL; segment = segment->next)
			if (segment->segment_id == numbers[i])
				known = true;
		if (known)
			continue;
		segment = load_segment(numbers[i], true);
		segment->next = closed_segments;
		closed_segments = segment;
	}
}

static void
load_segments(int32 open, const int32 *closed, int nclosed)
{
	sync_closed_segments(closed, nclosed);
	if (open_segment_filter != NULL && open_segment_filter->segment_id != open)
	{
		MemoryContextDelete(open_segment_filter->context);
		open_segment_filter = NULL;
	}
	if (open_segment_filter == NULL && open != 0)
		open_segment_filter = load_segment(open, false);
}

void
dedupe_load(void *unused)
{
	int32 *closed;
	int nclosed;
	int32 open = read_segments(&closed, &nclosed);

	load_segments(open, closed, nclosed);
}

/* How far ahead of a look its cache line is asked for */
#define AHEAD 32

/* Of the ids that are new so far, those that the segment may have. */
static int
likely_hits(const Segment *segment, const uint64 *hashes, int nids, const bool *is_new, int *hits)
{
	int nhits = 0;

	for (int i = 0; i < nids; i++)
	{
		if (i + AHEAD < nids)
			id_filter_prefetch(segment->filter, hashes[i + AHEAD]);
		if (id_filter_may_have(segment->filter, hashes[i]) && is_new[i])
			hits[nhits++] = i;
	}
	return nhits;
}

static void
look_up(Bulk *bulk, const pg_uuid_t *ids, const int *hits, int nhits, bool *is_new)
{
	for (int i = 0; i < nhits; i++)
	{
		Datum id = UUIDPGetDatum(&ids[hits[i]]);

		if (bulk_find(bulk, &id_key, &id) != NULL)
			is_new[hits[i]] = false;
	}
}

typedef struct Adding
{
	const pg_uuid_t *ids;
	bool *is_new;
	int *added; /* of the n-th row that is written the index in ids */
} Adding;

/*
 * Another consumer was first, or is about to be.  Ids are written in their
 * order, and so waited for in it: two consumers never wait for each other.
 */
static bool
settle_id(Bulk *bulk, int64 number, TupleTableSlot *slot, void *arg)
{
	Adding *adding = arg;
	int i = adding->added[number];

	Datum id = UUIDPGetDatum(&adding->ids[i]);

	if (!bulk_settle(bulk, &id_key, &id, &slot->tts_tid))
		return false;
	adding->is_new[i] = false;
	return true;
}

/*
 * Maintenance closes a full segment at its next turn; where very many ids come, it is to
 * have that turn now, as the filter and the index of the segment grow beyond their measure.
 */
static void
say_full(Segment *segment, Relation rel)
{
	if (segment->said_full || RelationGetNumberOfBlocks(rel) <= SEGMENT_PAGES)
		return;
	segment->said_full = true;
	status_wake(MyDatabaseId, ROLE_MAINTENANCE);
}

void
dedupe_ids(const pg_uuid_t *ids, int nids, bool *is_new)
{
	int32 *closed;
	int nclosed;
	int32 current = lock_open_segment(
		open_segment_filter != NULL ? open_segment_filter->segment_id : 0, &closed, &nclosed);
	uint64 *hashes = palloc(nids * sizeof(uint64));
	int *hits = palloc(nids * sizeof(int));
	int nhits;
	int nadded = 0;
	Adding adding = {.ids = ids, .is_new = is_new, .added = palloc(nids * sizeof(int))};
	Bulk *bulk;

	for (int i = 0; i < nids; i++)
	{
		is_new[i] = true;
		hashes[i] = id_filter_hash(&ids[i]);
	}

	load_segments(current, closed, nclosed);
	for (Segment *segment = closed_segments; segment != NULL; segment = segment->next)
	{
		nhits = likely_hits(segment, hashes, nids, is_new, hits);
		if (nhits == 0)
			continue;
		bulk = bulk_open(segment_relid(segment->segment_id), id_types, ID_COLUMNS, NULL, NULL);
		look_up(bulk, ids, hits, nhits, is_new);
		bulk_close(bulk);
	}

	bulk = bulk_open(segment_relid(current), id_types, ID_COLUMNS, settle_id, &adding);
	nhits = likely_hits(open_segment_filter, hashes, nids, is_new, hits);
	look_up(bulk, ids, hits, nhits, is_new);
	for (int i = 0; i < nids; i++)
	{
		TupleTableSlot *slot;

		if (!is_new[i])
			continue;
		adding.added[nadded++] = i;
		slot = bulk_slot(bulk);
		slot->tts_values[ID_SEGMENT_ID] = Int32GetDatum(current);
		slot->tts_values[ID_EVENT_ID] = UUIDPGetDatum(&ids[i]);
		id_filter_add(open_segment_filter->filter, hashes[i]);
		bulk_put(bulk, slot);
	}
	bulk_flush(bulk);
	say_full(open_segment_filter, bulk_relation(bulk));
	bulk_close(bulk);
	CommandCounterIncrement();
}

void
dedupe_rotate(void *unused)
{
	int32 segment_id = open_segment();
	XLogRecPtr since;
	IdFilter *filter;
	Relation rel;
	char *sql;

	if (segment_id == 0)
		return;
	sql = psprintf(
		"SELECT pg_catalog.pg_relation_size('evstream.ids_%d') / pg_catalog.current_setting('block_size')::bigint > %d"
		" OR (pg_catalog.pg_relation_size('evstream.ids_%d') > 0"
		" AND (s.created_at AT TIME ZONE 'UTC')::date < (pg_catalog.now() AT TIME ZONE 'UTC')::date)"
		" FROM evstream.id_segments s WHERE s.segment_id = %d",
		segment_id, SEGMENT_PAGES, segment_id, segment_id);
	if (sql_execute(sql, 0, NULL, NULL, NULL, SPI_OK_SELECT) == 0 ||
		!DatumGetBool(sql_column(0, 1, NULL)))
		return;

	/* nearly all of its filter while consumers go on */
	rel = table_open(segment_relid(segment_id), AccessShareLock);
	since = GetXLogInsertRecPtr();
	filter = segment_filter_read(rel, 0);

	sql_execute("LOCK TABLE evstream.id_segments IN SHARE ROW EXCLUSIVE MODE", 0, NULL, NULL, NULL,
				SPI_OK_UTILITY);
	LockRelationOid(RelationGetRelid(rel), ShareLock);
	if (open_segment() == segment_id)
	{
		segment_filter_read_changed(filter, rel, since);
		segment_filter_keep(segment_id, rel, filter);
		sql = psprintf("UPDATE evstream.id_segments SET closed_at = pg_catalog.clock_timestamp(),"
					   " last_day = " DEDUPE_RECEIVED_DAY " WHERE segment_id = %d",
					   segment_id);
		sql_execute(sql, 0, NULL, NULL, NULL, SPI_OK_UPDATE);
		create_segment();
	}
	table_close(rel, NoLock);
}

void
dedupe_keep_filter(void *kept)
{
	int32 segment_id = segment_filter_missing();
	Relation rel;

	*(bool *) kept = segment_id != 0;
	if (segment_id == 0)
		return;
	rel = table_open(segment_relid(segment_id), AccessShareLock);
	segment_filter_keep(segment_id, rel, segment_filter_read(rel, 0));
	table_close(rel, NoLock);
}
