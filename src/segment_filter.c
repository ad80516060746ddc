/*-------------------------------------------------------------------------
 *
 * segment_filter.c
 *	  Which ids a segment may have: its filter, read from the segment's table,
 *	  or kept in evstream.id_filters when the segment was closed.
 *
 * A consumer that begins would else read all ids of the dedup window before its
 * first batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "segment_filter.h"
#include "sql.h"

/* The column of evstream.ids */
#define EVENT_ID 2

/* As many as are on a page, with some to spare */
#define PAGE_IDS (BLCKSZ / (SizeofHeapTupleHeader + UUID_LEN))

/*
 * All ids of the page, those of rows that are dead, or not visible yet, as well:
 * what a filter may have is looked up with a snapshot.  Nothing, if the page was
 * not changed since then.
 */
static void
add_page(IdFilter *filter, Relation rel, BlockNumber block, BufferAccessStrategy strategy,
		 XLogRecPtr since)
{
	Buffer buffer = ReadBufferExtended(rel, MAIN_FORKNUM, block, RBM_NORMAL, strategy);
	uint64 hashes[PAGE_IDS];
	int n = 0;
	Page page;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	if (BufferGetLSNAtomic(buffer) >= since)
		for (OffsetNumber o = FirstOffsetNumber; o <= PageGetMaxOffsetNumber(page) && n < PAGE_IDS;
			 o++)
		{
			ItemId item = PageGetItemId(page, o);
			HeapTupleData tuple;
			Datum id;
			bool isnull;

			if (!ItemIdIsNormal(item))
				continue;
			tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
			tuple.t_len = ItemIdGetLength(item);
			tuple.t_tableOid = RelationGetRelid(rel);
			ItemPointerSet(&tuple.t_self, block, o);
			id = heap_getattr(&tuple, EVENT_ID, RelationGetDescr(rel), &isnull);
			if (isnull)
				continue;
			hashes[n] = id_filter_hash(DatumGetUUIDP(id));
			id_filter_prefetch(filter, hashes[n++]);
		}
	UnlockReleaseBuffer(buffer);
	for (int i = 0; i < n; i++)
		id_filter_add(filter, hashes[i]);
}

static void
add_pages(IdFilter *filter, Relation rel, BlockNumber nblocks, XLogRecPtr since)
{
	BufferAccessStrategy strategy = GetAccessStrategy(BAS_BULKREAD);

	for (BlockNumber block = 0; block < nblocks; block++)
	{
		CHECK_FOR_INTERRUPTS();
		add_page(filter, rel, block, strategy, since);
	}
	FreeAccessStrategy(strategy);
}

static bool
is_heap(Relation rel)
{
	return rel->rd_rel->relam == HEAP_TABLE_AM_OID;
}

IdFilter *
segment_filter_read(Relation rel, int64 nids)
{
	BlockNumber nblocks = is_heap(rel) ? RelationGetNumberOfBlocks(rel) : 0;
	IdFilter *filter =
		id_filter_create(Max(nids, (int64) nblocks * SEGMENT_IDS / SEGMENT_PAGES + 1));

	/* one that was moved to another access method is always looked into */
	if (!is_heap(rel))
		id_filter_fill(filter);
	add_pages(filter, rel, nblocks, InvalidXLogRecPtr);
	return filter;
}

void
segment_filter_read_changed(IdFilter *filter, Relation rel, XLogRecPtr since)
{
	if (is_heap(rel))
		add_pages(filter, rel, RelationGetNumberOfBlocks(rel),
				  RelationNeedsWAL(rel) ? since : InvalidXLogRecPtr);
}

/* ---- kept ---- */

/* 1.0 has not got the table. */
static bool
can_keep(void)
{
	return OidIsValid(get_relname_relid("id_filters", get_namespace_oid("evstream", false)));
}

/*
 * In slices: a consumer that begins reads the filters of the whole window, each of
 * some MB, which are not to be there twice.
 */
#define SLICE (256 * 1024)

static IdFilter *
read_kept(Datum kept)
{
	Size size = toast_raw_datum_size(kept) - VARHDRSZ;
	IdFilter *filter;

	if (size < sizeof(IdFilterBlock))
		return NULL;
	filter = id_filter_create_sized(size);
	size = id_filter_size(filter);
	for (Size done = 0; done < size; done += SLICE)
	{
		Size n = Min(SLICE, size - done);
		bytea *slice = DatumGetByteaPSlice(kept, done, n);

		memcpy((char *) filter->blocks + done, VARDATA_ANY(slice), n);
		pfree(slice);
	}
	return filter;
}

/*
 * It holds as long as ids are hashed in that way, and the table is the one that was
 * read: one that was written anew may have other ids.
 */
IdFilter *
segment_filter_kept(int32 segment_id, Relation rel)
{
	Oid types[3] = {INT4OID, INT4OID, OIDOID};
	Datum values[3] = {Int32GetDatum(segment_id), Int32GetDatum(ID_FILTER_KIND),
					   ObjectIdGetDatum(rel->rd_rel->relfilenode)};
	/* SPI leaves its own behind */
	MemoryContext context = CurrentMemoryContext;
	IdFilter *filter = NULL;

	if (can_keep() && sql_execute("SELECT filter::pg_catalog.bytea FROM evstream.id_filters"
								  " WHERE segment_id = $1 AND kind = $2 AND relfilenode = $3",
								  3, types, values, NULL, SPI_OK_SELECT) > 0)
	{
		MemoryContextSwitchTo(context);
		filter = read_kept(sql_column(0, 1, NULL));
	}
	MemoryContextSwitchTo(context);
	return filter;
}

int32
segment_filter_missing(void)
{
	Oid types[2] = {INT4OID, OIDOID};
	Datum values[2] = {Int32GetDatum(ID_FILTER_KIND), ObjectIdGetDatum(HEAP_TABLE_AM_OID)};

	if (!can_keep() ||
		sql_execute("SELECT s.segment_id FROM evstream.id_segments s JOIN pg_catalog.pg_class c"
					" ON c.oid = pg_catalog.to_regclass('evstream.ids_' || s.segment_id)"
					" WHERE s.closed_at IS NOT NULL AND c.relam = $2"
					" AND NOT EXISTS (SELECT FROM evstream.id_filters f"
					"   WHERE f.segment_id = s.segment_id AND f.kind = $1"
					"   AND f.relfilenode = c.relfilenode)"
					" ORDER BY s.segment_id DESC LIMIT 1",
					2, types, values, NULL, SPI_OK_SELECT) == 0)
		return 0;
	return DatumGetInt32(sql_column(0, 1, NULL));
}

void
segment_filter_forget(void)
{
	if (can_keep())
		sql_execute("DELETE FROM evstream.id_filters f WHERE NOT EXISTS"
					" (SELECT FROM evstream.id_segments s WHERE s.segment_id = f.segment_id)",
					0, NULL, NULL, NULL, SPI_OK_DELETE);
}

void
segment_filter_keep(int32 segment_id, Relation rel, const IdFilter *filter)
{
	Oid types[4] = {INT4OID, INT4OID, OIDOID, BYTEAOID};
	Datum values[4];
	size_t size = id_filter_size(filter);
	bytea *bytes;

	if (!is_heap(rel) || !can_keep())
		return;
	bytes = palloc(VARHDRSZ + size);
	SET_VARSIZE(bytes, VARHDRSZ + size);
	memcpy(VARDATA(bytes), filter->blocks, size);
	values[0] = Int32GetDatum(segment_id);
	values[1] = Int32GetDatum(ID_FILTER_KIND);
	values[2] = ObjectIdGetDatum(rel->rd_rel->relfilenode);
	values[3] = PointerGetDatum(bytes);
	sql_execute(
		"INSERT INTO evstream.id_filters (segment_id, kind, relfilenode, filter) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (segment_id) DO UPDATE SET kind = excluded.kind,"
		" relfilenode = excluded.relfilenode, filter = excluded.filter",
		4, types, values, NULL, SPI_OK_INSERT);
	pfree(bytes);
}
