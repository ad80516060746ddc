/*-------------------------------------------------------------------------
 *
 * bulk.c
 *	  Rows straight into one table and its indexes, and rows found by a key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "bulk.h"
#include "compat.h"

/* Rows given to the table at a time, as COPY has it; fewer where they are large */
#define BULK_CHUNK 1000
#define BULK_BYTES ((Size) 2 * 1024 * 1024)

/* With less on the page, the next version of a row might find no room */
#define ROOM_FOR_VERSION 512

/* Neighbours of a key that are told of: as many as cost less than to look for them one by one */
#define NEIGHBOURS_MAX 16

struct Bulk
{
	Relation rel;
	EState *estate;
	ResultRelInfo *result_rel;
	TupleDesc desc; /* a copy counts no references, and each slot has one */
	BulkInsertState bistate;
	TupleTableSlot *slots[BULK_CHUNK];
	int nmade; /* slots that exist */
	int nfilled;
	int64 nwritten;
	MemoryContext context; /* in which it was opened */
	MemoryContext values;  /* of the filled slots */
	BulkConflict conflict;
	void *conflict_arg;
	ItemPointerData *places; /* the caller's, or NULL */
	ItemPointerData *taken_back;
	int ntaken_back;
	int allocated;
	/* for rows that are found by a key */
	Relation index;
	ScanKeyData keys[INDEX_MAX_KEYS];
	int arguments[INDEX_MAX_KEYS]; /* of each key the place in the caller's values */
	TupleTableSlot *found;
	TupleTableSlot *changed;
	IndexScanDesc scan;
	IndexScanDesc neighbours; /* of keys, without their rows */
	Snapshot snapshot;
	ItemPointerData entry;
	HeapTupleData found_tuple; /* of a row that is found by a tid */
	BlockNumber nblocks;       /* that there are at least: our lock holds off who cuts them */
};

/* With other columns a row would crash its readers. */
static void
check_columns(Relation rel, const Oid *types, int ncolumns)
{
	int natts = RelationGetNumberOfAttributes(rel);
	bool good = natts >= ncolumns;

	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("\"%s\" is not a table", RelationGetRelationName(rel))));
	for (int i = 0; i < natts && good; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(rel), i);

		/* of a column that was added and dropped again something stays */
		good = i < ncolumns ? column->atttypid == types[i] : column->attisdropped;
	}
	if (!good)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("table \"%s\" has not the columns that evstream gave it",
							   RelationGetRelationName(rel))));
}

Bulk *
bulk_open(Oid relid, const Oid *types, int ncolumns, BulkConflict conflict, void *arg)
{
	Bulk *bulk = palloc0(sizeof(Bulk));

	bulk->context = CurrentMemoryContext;
	bulk->rel = table_open(relid, RowExclusiveLock);
	check_columns(bulk->rel, types, ncolumns);
	bulk->estate = CreateExecutorState();
	bulk->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(bulk->result_rel, bulk->rel, 0, NULL, 0);
	ExecOpenIndices(bulk->result_rel, false);
	bulk->desc = CreateTupleDescCopy(RelationGetDescr(bulk->rel));
	bulk->bistate = GetBulkInsertState();
	bulk->values =
		AllocSetContextCreate(CurrentMemoryContext, "evstream rows", ALLOCSET_DEFAULT_SIZES);
	bulk->conflict = conflict;
	bulk->conflict_arg = arg;
	return bulk;
}

Relation
bulk_relation(const Bulk *bulk)
{
	return bulk->rel;
}

/* ---- rows that are added ---- */

TupleTableSlot *
bulk_slot(Bulk *bulk)
{
	TupleTableSlot *slot;

	if (bulk->nfilled == bulk->nmade)
	{
		MemoryContext old = MemoryContextSwitchTo(bulk->context);

		bulk->slots[bulk->nmade++] =
			MakeSingleTupleTableSlot(bulk->desc, table_slot_callbacks(bulk->rel));
		MemoryContextSwitchTo(old);
	}
	slot = bulk->slots[bulk->nfilled];
	ExecClearTuple(slot);
	for (int i = 0; i < slot->tts_tupleDescriptor->natts; i++)
		slot->tts_isnull[i] = TupleDescAttr(slot->tts_tupleDescriptor, i)->attisdropped;
	return slot;
}

MemoryContext
bulk_context(Bulk *bulk)
{
	return bulk->values;
}

/* A row that breaks what the table promises would mislead its readers, or even crash them. */
static void
check_constraints(Bulk *bulk, TupleTableSlot *slot)
{
	if (RelationGetDescr(bulk->rel)->constr != NULL)
		ExecConstraints(bulk->result_rel, slot, bulk->estate);
}

void
bulk_put(Bulk *bulk, TupleTableSlot *slot)
{
	Assert(slot == bulk->slots[bulk->nfilled]);
	slot->tts_tableOid = RelationGetRelid(bulk->rel);
	ExecStoreVirtualTuple(slot);
	check_constraints(bulk, slot);
	if (bulk->rel->rd_rel->relispartition)
		ExecPartitionCheck(bulk->result_rel, slot, bulk->estate, true);
	ResetPerTupleExprContext(bulk->estate);
	if (++bulk->nfilled == BULK_CHUNK ||
		MemoryContextMemAllocated(bulk->values, false) > BULK_BYTES)
		bulk_flush(bulk);
}

void
bulk_keep_places(Bulk *bulk, ItemPointerData *places)
{
	bulk->places = places;
}

static void
take_back(Bulk *bulk, ItemPointer tid)
{
	if (bulk->ntaken_back == bulk->allocated)
	{
		MemoryContext old = MemoryContextSwitchTo(bulk->context);

		bulk->allocated = bulk->allocated == 0 ? 64 : bulk->allocated * 2;
		bulk->taken_back =
			bulk->taken_back == NULL
				? palloc(bulk->allocated * sizeof(ItemPointerData))
				: repalloc(bulk->taken_back, bulk->allocated * sizeof(ItemPointerData));
		MemoryContextSwitchTo(old);
	}
	bulk->taken_back[bulk->ntaken_back++] = *tid;
}

static void
delete_taken_back(Bulk *bulk)
{
	Snapshot snapshot;

	/* what this command has written is to be seen */
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < bulk->ntaken_back; i++)
		simple_table_tuple_delete(bulk->rel, &bulk->taken_back[i], snapshot);
	UnregisterSnapshot(snapshot);
	/* and that they are gone: else they would be found in place of the others' rows */
	CommandCounterIncrement();
	bulk->ntaken_back = 0;
}

void
bulk_flush(Bulk *bulk)
{
	MemoryContext old;

	if (bulk->nfilled == 0)
		return;
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->estate));
	table_multi_insert(bulk->rel, bulk->slots, bulk->nfilled, GetCurrentCommandId(true), 0,
					   bulk->bistate);
	for (int i = 0; i < bulk->nfilled && bulk->result_rel->ri_NumIndices > 0; i++)
	{
		bool conflict = false;

		compat_ExecTryIndexTuples(bulk->result_rel, bulk->slots[i], bulk->estate,
								  bulk->conflict != NULL, &conflict);
		if (conflict &&
			bulk->conflict(bulk, bulk->nwritten + i, bulk->slots[i], bulk->conflict_arg))
			take_back(bulk, &bulk->slots[i]->tts_tid);
		ResetPerTupleExprContext(bulk->estate);
	}
	MemoryContextSwitchTo(old);
	for (int i = 0; i < bulk->nfilled; i++)
	{
		if (bulk->places != NULL)
			bulk->places[bulk->nwritten + i] = bulk->slots[i]->tts_tid;
		ExecClearTuple(bulk->slots[i]);
	}
	ResetPerTupleExprContext(bulk->estate);
	MemoryContextReset(bulk->values);
	bulk->nwritten += bulk->nfilled;
	bulk->nfilled = 0;
	if (bulk->ntaken_back > 0)
		delete_taken_back(bulk);
}

/* ---- rows that are found ---- */

/* Is it whole, and on these columns alone? */
static bool
is_on_key(Relation index, const IndexInfo *info, const BulkKey *key, int *arguments)
{
	Form_pg_index form = index->rd_index;

	if (!form->indisunique || !form->indimmediate || form->indnatts != key->ncolumns ||
		info->ii_Predicate != NIL)
		return false;
	for (int i = 0; i < key->ncolumns; i++)
	{
		arguments[i] = -1;
		for (int c = 0; c < key->ncolumns; c++)
			if (form->indkey.values[i] == key->columns[c])
				arguments[i] = c;
		if (arguments[i] < 0)
			return false;
	}
	return true;
}

static void
use_key(Bulk *bulk, const BulkKey *key)
{
	ResultRelInfo *result_rel = bulk->result_rel;

	if (bulk->index != NULL)
		return;
	for (int i = 0; i < result_rel->ri_NumIndices && bulk->index == NULL; i++)
		if (result_rel->ri_IndexRelationDescs[i]->rd_index->indisvalid &&
			is_on_key(result_rel->ri_IndexRelationDescs[i], result_rel->ri_IndexRelationInfo[i],
					  key, bulk->arguments))
			bulk->index = result_rel->ri_IndexRelationDescs[i];
	if (bulk->index == NULL)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table \"%s\" has not the unique index that evstream gave it",
							   RelationGetRelationName(bulk->rel))));
	for (int i = 0; i < key->ncolumns; i++)
	{
		Oid type = bulk->index->rd_opcintype[i];
		Oid equal =
			get_opfamily_member(bulk->index->rd_opfamily[i], type, type, BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&bulk->keys[i], 0, i + 1, BTEqualStrategyNumber, InvalidOid,
							   bulk->index->rd_indcollation[i], get_opcode(equal), (Datum) 0);
	}
	bulk->found = table_slot_create(bulk->rel, NULL);
	bulk->changed = table_slot_create(bulk->rel, NULL);
}

bool
bulk_has_other_keys(Bulk *bulk, const BulkKey *key)
{
	const ResultRelInfo *result_rel = bulk->result_rel;
	int arguments[INDEX_MAX_KEYS];

	for (int i = 0; i < result_rel->ri_NumIndices; i++)
	{
		IndexInfo *info = result_rel->ri_IndexRelationInfo[i];

		/* on the same key there is a second one, not valid yet, while REINDEX CONCURRENTLY runs */
		if ((info->ii_Unique || info->ii_ExclusionOps != NULL) &&
			!is_on_key(result_rel->ri_IndexRelationDescs[i], info, key, arguments))
			return true;
	}
	return false;
}

static void
rescan(Bulk *bulk, IndexScanDesc scan, const Datum *values)
{
	for (int i = 0; i < scan->numberOfKeys; i++)
		bulk->keys[i].sk_argument = values[bulk->arguments[i]];
	index_rescan(scan, bulk->keys, scan->numberOfKeys, NULL, 0);
}

static void
begin_finding(Bulk *bulk, const BulkKey *key)
{
	use_key(bulk, key);
	if (bulk->snapshot == NULL)
		bulk->snapshot = RegisterSnapshot(GetLatestSnapshot());
}

TupleTableSlot *
bulk_find(Bulk *bulk, const BulkKey *key, const Datum *values)
{
	/* the scan keeps things from one call to the next */
	MemoryContext old = MemoryContextSwitchTo(bulk->context);
	bool found = false;
	ItemPointer entry;

	begin_finding(bulk, key);
	if (bulk->scan == NULL)
		bulk->scan = compat_index_beginscan(bulk->rel, bulk->index, bulk->snapshot, key->ncolumns);
	rescan(bulk, bulk->scan, values);
	while (!found && (entry = index_getnext_tid(bulk->scan, ForwardScanDirection)) != NULL)
	{
		/* it becomes the place of the row's version */
		bulk->entry = *entry;
		found = index_fetch_heap(bulk->scan, bulk->found);
	}
	MemoryContextSwitchTo(old);
	return found ? bulk->found : NULL;
}

/* The key of an index entry; false if a value is stored otherwise than it is. */
static bool
get_key(Bulk *bulk, IndexTuple entry, Datum *values)
{
	TupleDesc desc = RelationGetDescr(bulk->index);

	for (int i = 0; i < desc->natts; i++)
	{
		bool isnull;
		Datum value = index_getattr(entry, i + 1, desc, &isnull);

		if (isnull ||
			(TupleDescAttr(desc, i)->attlen == -1 && VARATT_IS_COMPRESSED(DatumGetPointer(value))))
			return false;
		values[bulk->arguments[i]] = value;
	}
	return true;
}

bool
bulk_neighbours(Bulk *bulk, const BulkKey *key, const Datum *values, int ncolumns,
				BulkNeighbour tell, void *arg)
{
	MemoryContext old = MemoryContextSwitchTo(bulk->context);
	Datum found[INDEX_MAX_KEYS];
	bool all = true;
	ItemPointer tid;
	int n = 0;

	begin_finding(bulk, key);
	if (bulk->neighbours == NULL)
	{
		bulk->neighbours = compat_index_beginscan(bulk->rel, bulk->index, bulk->snapshot, ncolumns);
		bulk->neighbours->xs_want_itup = true;
	}
	rescan(bulk, bulk->neighbours, values);
	while ((tid = index_getnext_tid(bulk->neighbours, ForwardScanDirection)) != NULL)
	{
		if (n++ == NEIGHBOURS_MAX)
		{
			all = false;
			break;
		}
		if (get_key(bulk, bulk->neighbours->xs_itup, found))
			tell(found, tid, arg);
		else
			all = false;
	}
	/* one that is not at its end holds a page, for which VACUUM would wait as long as we do */
	if (tid != NULL)
	{
		index_endscan(bulk->neighbours);
		bulk->neighbours = NULL;
	}
	MemoryContextSwitchTo(old);
	return all;
}

const ItemPointerData *
bulk_entry(const Bulk *bulk)
{
	return &bulk->entry;
}

/* Texts are equal if their bytes are; what is stored otherwise counts as another. */
static bool
has_key(TupleTableSlot *slot, const BulkKey *key, const Datum *values)
{
	for (int i = 0; i < key->ncolumns; i++)
	{
		Form_pg_attribute column = TupleDescAttr(slot->tts_tupleDescriptor, key->columns[i] - 1);
		bool isnull;
		Datum value = slot_getattr(slot, key->columns[i], &isnull);

		if (isnull)
			return false;
		if (column->attlen != -1)
		{
			if (!datumIsEqual(value, values[i], column->attbyval, column->attlen))
				return false;
		}
		else
		{
			struct varlena *is = (struct varlena *) DatumGetPointer(value);
			struct varlena *wanted = (struct varlena *) DatumGetPointer(values[i]);

			if (VARATT_IS_COMPRESSED(is) || VARATT_IS_EXTERNAL(is) ||
				VARSIZE_ANY_EXHDR(is) != VARSIZE_ANY_EXHDR(wanted) ||
				memcmp(VARDATA_ANY(is), VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(is)) != 0)
				return false;
		}
	}
	return true;
}

/*
 * The version of the row that this place leads to, whatever its key is.
 *
 * By heap_hot_search_buffer(), as an index scan would look for dead versions to remove
 * each time that somebody comes by, once the room that the fill factor has left is
 * taken, where many can go at once later.
 */
static bool
fetch_at(Bulk *bulk, const ItemPointerData *tid)
{
	HeapTuple tuple = &bulk->found_tuple;
	ItemPointerData version = *tid;
	Buffer buffer;
	bool found;

	if (ItemPointerGetBlockNumber(tid) >= bulk->nblocks)
		bulk->nblocks = RelationGetNumberOfBlocks(bulk->rel);
	if (ItemPointerGetBlockNumber(tid) >= bulk->nblocks)
		return false;

	ExecClearTuple(bulk->found);
	buffer = ReadBuffer(bulk->rel, ItemPointerGetBlockNumber(tid));
	if (PageGetHeapFreeSpace(BufferGetPage(buffer)) < ROOM_FOR_VERSION)
		heap_page_prune_opt(bulk->rel, buffer);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	found = heap_hot_search_buffer(&version, bulk->rel, buffer, bulk->snapshot, tuple, NULL, true);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	if (!found)
	{
		ReleaseBuffer(buffer);
		return false;
	}
	tuple->t_tableOid = RelationGetRelid(bulk->rel);
	ExecStorePinnedBufferHeapTuple(tuple, bulk->found, buffer);
	return true;
}

TupleTableSlot *
bulk_find_at(Bulk *bulk, const BulkKey *key, const Datum *values, const ItemPointerData *tid)
{
	MemoryContext old;
	bool found;

	if (bulk->rel->rd_rel->relam != HEAP_TABLE_AM_OID)
		return NULL;
	old = MemoryContextSwitchTo(bulk->context);
	begin_finding(bulk, key);
	found = fetch_at(bulk, tid) && has_key(bulk->found, key, values);
	bulk->entry = *tid;
	MemoryContextSwitchTo(old);
	return found ? bulk->found : NULL;
}

void
bulk_forget(Bulk *bulk)
{
	if (bulk->scan != NULL)
		index_endscan(bulk->scan);
	if (bulk->neighbours != NULL)
		index_endscan(bulk->neighbours);
	if (bulk->snapshot != NULL)
		UnregisterSnapshot(bulk->snapshot);
	bulk->scan = bulk->neighbours = NULL;
	bulk->snapshot = NULL;
}

TupleTableSlot *
bulk_changed(Bulk *bulk)
{
	TupleTableSlot *changed = bulk->changed;
	int n = changed->tts_tupleDescriptor->natts;

	slot_getallattrs(bulk->found);
	ExecClearTuple(changed);
	memcpy(changed->tts_values, bulk->found->tts_values, n * sizeof(Datum));
	memcpy(changed->tts_isnull, bulk->found->tts_isnull, n * sizeof(bool));
	return changed;
}

bool
bulk_replace(Bulk *bulk)
{
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->estate));
	TupleTableSlot *changed = bulk->changed;
	compat_update_indexes update_indexes;
	LockTupleMode mode;
	TM_FailureData failure;
	TM_Result result;

	changed->tts_tableOid = RelationGetRelid(bulk->rel);
	ExecStoreVirtualTuple(changed);
	check_constraints(bulk, changed);
	result =
		table_tuple_update(bulk->rel, &bulk->found->tts_tid, changed, GetCurrentCommandId(true),
						   bulk->snapshot, InvalidSnapshot, true, &failure, &mode, &update_indexes);
	if (result == TM_Ok && update_indexes)
	{
		compat_ExecUpdateIndexTuples(bulk->result_rel, changed, bulk->estate, update_indexes);
		bulk->entry = changed->tts_tid;
	}
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(bulk->estate);
	ExecClearTuple(changed);
	if (result == TM_Ok)
		return true;
	if (result != TM_Updated && result != TM_Deleted)
		elog(ERROR, "unexpected result %d of an update of \"%s\"", result,
			 RelationGetRelationName(bulk->rel));
	ExecClearTuple(bulk->found);
	bulk_forget(bulk);
	return false;
}

bool
bulk_settle(Bulk *bulk, const BulkKey *key, const Datum *values, ItemPointer own)
{
	MemoryContext old = MemoryContextSwitchTo(bulk->context);
	TupleTableSlot *slot;
	bool other = false;

	use_key(bulk, key);
	slot = bulk->found;
	for (;;)
	{
		TransactionId waited_for = InvalidTransactionId;
		SnapshotData dirty;
		IndexScanDesc scan;

		InitDirtySnapshot(dirty);
		scan = compat_index_beginscan(bulk->rel, bulk->index, &dirty, key->ncolumns);
		rescan(bulk, scan, values);
		other = false;
		while (!other && index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			if (ItemPointerEquals(&slot->tts_tid, own))
				continue;
			other = true;
			waited_for = TransactionIdIsValid(dirty.xmin) ? dirty.xmin : dirty.xmax;
		}
		ExecClearTuple(slot);
		index_endscan(scan);
		if (!TransactionIdIsValid(waited_for))
			break;
		XactLockTableWait(waited_for, bulk->rel, own, XLTW_InsertIndex);
	}
	MemoryContextSwitchTo(old);
	return other;
}

void
bulk_close(Bulk *bulk)
{
	bulk_flush(bulk);
	bulk_forget(bulk);
	if (bulk->found != NULL)
	{
		ExecDropSingleTupleTableSlot(bulk->found);
		ExecDropSingleTupleTableSlot(bulk->changed);
	}
	for (int i = 0; i < bulk->nmade; i++)
		ExecDropSingleTupleTableSlot(bulk->slots[i]);
	FreeBulkInsertState(bulk->bistate);
	table_finish_bulk_insert(bulk->rel, 0);
	ExecCloseIndices(bulk->result_rel);
	FreeExecutorState(bulk->estate);
	table_close(bulk->rel, NoLock);
	MemoryContextDelete(bulk->values);
	pfree(bulk);
}
