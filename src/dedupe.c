/*-------------------------------------------------------------------------
 *
 * dedupe.c
 *	  Ids within the dedup window, in segments.
 *
 * A segment is a partition of evstream.ids with a unique index.  Only the
 * newest is written to.  The older ones do not change any more: each is guarded
 * by a Bloom filter in this process, so that the cost of a new id does not grow
 * with the window.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/bloomfilter.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "dedupe.h"
#include "partition.h"
#include "sql.h"

/* About 2 M ids: 48 bytes a row and 4 for its pointer */
#define SEGMENT_PAGES 13000
#define SEGMENT_IDS   2000000

/* Memory of one filter; 4 MB give 2 M ids under 1 % of false hits */
#define FILTER_KB 4096
#define FETCH_IDS 10000

/* A closed segment as this process knows it */
typedef struct Segment
{
	int32 segment_id;
	bool seen;
	MemoryContext context;
	bloom_filter *filter;
	struct Segment *next;
} Segment;

static Segment *closed_segments = NULL;

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

/*
 * Locks the segment that is written to, until the end of the transaction: as
 * long as somebody holds this lock it is not closed, so that no id can get into
 * two segments.
 */
static int32
lock_open_segment(void)
{
	for (;;)
	{
		int32 segment_id = open_segment();
		Oid relid;

		if (segment_id == 0)
		{
			sql_execute("LOCK TABLE evstream.id_segments IN SHARE ROW EXCLUSIVE MODE", 0, NULL,
						NULL, NULL, SPI_OK_UTILITY);
			if (open_segment() == 0)
				create_segment();
			continue;
		}
		relid = segment_relid(segment_id);
		if (!OidIsValid(relid))
			elog(ERROR, "table \"evstream.ids_%d\" does not exist", segment_id);
		LockRelationOid(relid, RowExclusiveLock);
		if (open_segment() == segment_id)
			return segment_id;
		UnlockRelationOid(relid, RowExclusiveLock);
	}
}

static void
load_filter(Segment *segment)
{
	char *sql = psprintf("SELECT event_id FROM evstream.ids_%d", segment->segment_id);
	Portal portal;
	MemoryContext old = MemoryContextSwitchTo(segment->context);

	segment->filter = bloom_create(SEGMENT_IDS, FILTER_KB, (uint64) segment->segment_id);
	MemoryContextSwitchTo(old);

	/* not read-only: with a snapshot of now, newer than the last writer's commit */
	portal = SPI_cursor_open_with_args(NULL, sql, 0, NULL, NULL, NULL, false, 0);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, FETCH_IDS);
		if (SPI_processed == 0)
			break;
		for (uint64 i = 0; i < SPI_processed; i++)
			bloom_add_element(segment->filter, DatumGetUUIDP(sql_column(i, 1, NULL))->data,
							  UUID_LEN);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	pfree(sql);
}

/* Makes closed_segments what the table says. */
static void
sync_closed_segments(void)
{
	uint64 n = sql_execute_kept(
		"SELECT segment_id FROM evstream.id_segments WHERE closed_at IS NOT NULL ORDER BY segment_id",
		0, NULL, NULL, NULL, false, SPI_OK_SELECT);
	int32 *numbers = palloc(Max(1, n) * sizeof(int32));
	Segment **link = &closed_segments;

	for (uint64 i = 0; i < n; i++)
		numbers[i] = DatumGetInt32(sql_column(i, 1, NULL));
	for (Segment *segment = closed_segments; segment != NULL; segment = segment->next)
	{
		segment->seen = false;
		for (uint64 i = 0; i < n; i++)
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
	for (uint64 i = 0; i < n; i++)
	{
		bool known = false;
		MemoryContext context;
		Segment *segment;

		for (segment = closed_segments; segment != NULL; segment = segment->next)
			if (segment->segment_id == numbers[i])
				known = true;
		if (known)
			continue;
		/* linked only when it is complete: an error in between leaves nothing behind */
		context = AllocSetContextCreate(CurrentMemoryContext, "evstream id segment",
										ALLOCSET_SMALL_SIZES);
		segment = MemoryContextAllocZero(context, sizeof(Segment));
		segment->segment_id = numbers[i];
		segment->context = context;
		load_filter(segment);
		MemoryContextSetParent(context, TopMemoryContext);
		segment->next = closed_segments;
		closed_segments = segment;
	}
	pfree(numbers);
}

static Datum
uuid_array(const pg_uuid_t *ids, int n)
{
	Datum *elements = palloc(Max(1, n) * sizeof(Datum));
	Datum result;

	for (int i = 0; i < n; i++)
		elements[i] = UUIDPGetDatum(&ids[i]);
	result = PointerGetDatum(construct_array(elements, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
	pfree(elements);
	return result;
}

static int
compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, UUID_LEN);
}

static void
set_found(const pg_uuid_t *ids, int nids, const pg_uuid_t *id, bool *flags, bool value)
{
	const pg_uuid_t *found = bsearch(id, ids, nids, sizeof(pg_uuid_t), compare_ids);

	if (found != NULL)
		flags[found - ids] = value;
}

void
dedupe_ids(const pg_uuid_t *ids, int nids, bool *is_new)
{
	int32 current = lock_open_segment();
	pg_uuid_t *hits = palloc(nids * sizeof(pg_uuid_t));
	int nfresh = 0;
	Oid types[1] = {UUIDARRAYOID};
	Datum values[1];
	char *sql;
	uint64 ninserted;

	for (int i = 0; i < nids; i++)
		is_new[i] = true;

	sync_closed_segments();
	for (Segment *segment = closed_segments; segment != NULL; segment = segment->next)
	{
		int nhits = 0;

		for (int i = 0; i < nids; i++)
			if (is_new[i] &&
				!bloom_lacks_element(segment->filter, (unsigned char *) ids[i].data, UUID_LEN))
				hits[nhits++] = ids[i];
		if (nhits == 0)
			continue;
		sql = psprintf("SELECT event_id FROM evstream.ids_%d WHERE event_id = ANY ($1)",
					   segment->segment_id);
		values[0] = uuid_array(hits, nhits);
		sql_execute(sql, 1, types, values, NULL, SPI_OK_SELECT);
		for (uint64 i = 0; i < SPI_processed; i++)
			set_found(ids, nids, DatumGetUUIDP(sql_column(i, 1, NULL)), is_new, false);
	}

	for (int i = 0; i < nids; i++)
		if (is_new[i])
			hits[nfresh++] = ids[i];
	if (nfresh == 0)
		return;
	sql = psprintf(
		"INSERT INTO evstream.ids_%d (segment_id, event_id)"
		" SELECT %d, i FROM pg_catalog.unnest($1) AS i ON CONFLICT (event_id) DO NOTHING RETURNING event_id",
		current, current);
	values[0] = uuid_array(hits, nfresh);
	ninserted = sql_execute_kept(sql, 1, types, values, NULL, false, SPI_OK_INSERT_RETURNING);
	if (ninserted == nfresh)
		return;
	memset(is_new, 0, nids * sizeof(bool));
	for (uint64 i = 0; i < ninserted; i++)
		set_found(ids, nids, DatumGetUUIDP(sql_column(i, 1, NULL)), is_new, true);
}

void
dedupe_rotate(void *unused)
{
	int32 segment_id = open_segment();
	Oid relid;
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

	sql_execute("LOCK TABLE evstream.id_segments IN SHARE ROW EXCLUSIVE MODE", 0, NULL, NULL, NULL,
				SPI_OK_UTILITY);
	relid = segment_relid(segment_id);
	LockRelationOid(relid, ShareLock);
	if (open_segment() != segment_id)
		return;
	sql = psprintf("UPDATE evstream.id_segments SET closed_at = pg_catalog.clock_timestamp(),"
				   " last_day = " DEDUPE_RECEIVED_DAY " WHERE segment_id = %d",
				   segment_id);
	sql_execute(sql, 0, NULL, NULL, NULL, SPI_OK_UPDATE);
	create_segment();
}
