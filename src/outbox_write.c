/*-------------------------------------------------------------------------
 *
 * outbox_write.c
 *	  Rows into the outbox, as part of the caller's transaction.
 *
 * Rows go straight into the table and its index, as COPY brings them there: a
 * statement would take longer to begin and to end than all the rest of
 * evstream_track().  No name is looked up on the caller's search_path, and no
 * privilege of the caller is asked for, as nothing is done in its name.  The
 * columns' order is that of the install script.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

#include "compat.h"
#include "outbox_int.h"

enum
{
	OB_ID,
	OB_XID,
	OB_EVENT_ID,
	OB_USER_ID,
	OB_TRACKED_AT,
	OB_TRACEPARENT,
	OB_VALUE,
	OB_COLUMNS
};

struct OutboxWriter
{
	Relation rel;
	Oid sequence;
	Datum xid;
	TimestampTz tracked_at;
	EState *estate;
	ResultRelInfo *result_rel;
	TupleTableSlot **slots;
	int nslots;
};

/* The table of this transaction's writes, as long as its lock is held */
static LocalTransactionId locked_lxid = InvalidLocalTransactionId;
static SubTransactionId locked_subid = InvalidSubTransactionId;
static int locked_number = 0;

/*
 * What each call needs, by name looked up only once: that takes longer than the
 * locks.  Forgotten when any relation comes, goes or is renamed.
 */
static struct
{
	bool known;
	Oid tables[OUTBOX_TABLES];
	Oid current;
	Oid sequence;
} relations;
static bool forgotten;

static void
forget_relations(Datum arg, int cache, uint32 hash)
{
	relations.known = false;
	forgotten = true;
}

static Oid
find_relation(Oid schema, const char *name)
{
	Oid relid = get_relname_relid(name, schema);

	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation \"evstream.%s\" does not exist", name)));
	return relid;
}

static void
find_relations(void)
{
	static bool registered = false;
	Oid schema;

	if (relations.known)
		return;
	if (!registered)
		CacheRegisterSyscacheCallback(RELNAMENSP, forget_relations, (Datum) 0);
	registered = true;
	forgotten = false;
	schema = get_namespace_oid("evstream", false);
	for (int i = 0; i < OUTBOX_TABLES; i++)
	{
		char name[NAMEDATALEN];

		snprintf(name, sizeof(name), "outbox_%d", i);
		relations.tables[i] = find_relation(schema, name);
	}
	relations.current = find_relation(schema, "outbox_current");
	relations.sequence = find_relation(schema, "outbox_id_seq");
	/* not if it was not read as a whole */
	relations.known = !forgotten;
}

/* Where the row of outbox_current was: on its first page, in this buffer */
static Buffer current_buffer = InvalidBuffer;
static OffsetNumber current_place;

static int
get_current(Relation rel, HeapTuple tuple)
{
	bool isnull;
	int current = DatumGetInt16(heap_getattr(tuple, 2, RelationGetDescr(rel), &isnull));

	if (current < 0 || current >= OUTBOX_TABLES)
		elog(ERROR, "unexpected table %d of the outbox", current);
	return current;
}

/*
 * The same row again, without a snapshot and a scan: it is the only one, so it
 * counts as long as nothing that is committed has replaced it.  False if it has
 * been replaced, or if the buffer holds something else by now.
 */
static bool
read_current_again(Relation rel, int *current)
{
	HeapTupleData tuple;
	Page page;
	bool found = false;

	if (!BufferIsValid(current_buffer) ||
		!ReadRecentBuffer(compat_locator(rel), MAIN_FORKNUM, 0, current_buffer))
		return false;
	LockBuffer(current_buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(current_buffer);
	if (current_place <= PageGetMaxOffsetNumber(page) &&
		ItemIdIsNormal(PageGetItemId(page, current_place)))
	{
		ItemId item = PageGetItemId(page, current_place);

		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		tuple.t_tableOid = RelationGetRelid(rel);
		ItemPointerSet(&tuple.t_self, 0, current_place);
		found = HeapTupleSatisfiesVisibility(&tuple, SnapshotSelf, current_buffer);
		if (found)
			*current = get_current(rel, &tuple);
	}
	UnlockReleaseBuffer(current_buffer);
	return found;
}

static int
scan_current(Relation rel)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple tuple = systable_getnext(scan);
	int current = 0;

	current_buffer = InvalidBuffer;
	if (HeapTupleIsValid(tuple))
	{
		current = get_current(rel, tuple);
		current_place = ItemPointerGetOffsetNumber(&tuple->t_self);
		if (rel->rd_rel->relam == HEAP_TABLE_AM_OID &&
			ItemPointerGetBlockNumber(&tuple->t_self) == 0)
		{
			current_buffer = ReadBuffer(rel, 0);
			ReleaseBuffer(current_buffer);
		}
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return current;
}

/* Which table is written to, as the latest commit has it; -1: look up the names again. */
static int
read_current(void)
{
	Relation rel = try_table_open(relations.current, AccessShareLock);
	int current;

	/* dropped while we waited */
	if (rel == NULL)
	{
		relations.known = false;
		return -1;
	}
	if (!read_current_again(rel, &current))
		current = scan_current(rel);
	table_close(rel, AccessShareLock);
	return current;
}

/*
 * Locks the table that is to be written to, and returns it.
 *
 * The lock is taken before the number is believed: a number that was read
 * before, or with an old snapshot, may be that of a table that has been emptied
 * since, and a row written there could be lost at the next emptying.  With the
 * lock held until the end of the transaction, or until the subtransaction that took
 * it is rolled back with its rows, the table is not emptied before.
 *
 * A portal would not hold it as long: one that fails in a later subtransaction ends
 * with that, and with it would go the locks of what it has fetched before.
 */
static Oid
lock_current(void)
{
	ResourceOwner owner = CurrentResourceOwner;
	int number = locked_number;
	Oid relid;
	int current;

	find_relations();
	relid = relations.tables[number];
	if (locked_lxid == compat_my_lxid() && SubTransactionIsActive(locked_subid))
		return relid;

	CurrentResourceOwner = CurTransactionResourceOwner;
	/* most likely it is the one of before; nobody is to be waited for if it is not */
	if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		number = -1;
	for (;;)
	{
		/* as they are called by now: who was waited for may have changed it */
		find_relations();
		current = read_current();
		if (current < 0)
			continue;
		if (current == number && relid == relations.tables[current])
			break;
		if (number >= 0)
			UnlockRelationOid(relid, RowExclusiveLock);
		number = current;
		relid = relations.tables[number];
		LockRelationOid(relid, RowExclusiveLock);
	}
	CurrentResourceOwner = owner;
	locked_lxid = compat_my_lxid();
	locked_subid = GetCurrentSubTransactionId();
	locked_number = current;
	return relid;
}

/* The columns that fill_slot() fills: with others a row would crash its readers. */
static void
check_columns(Relation rel)
{
	static const Oid types[OB_COLUMNS] = {
		[OB_ID] = INT8OID,
		[OB_XID] = XID8OID,
		[OB_EVENT_ID] = UUIDOID,
		[OB_USER_ID] = TEXTOID,
		[OB_TRACKED_AT] = TIMESTAMPTZOID,
		[OB_TRACEPARENT] = TEXTOID,
		[OB_VALUE] = TEXTOID,
	};
	bool good = rel->rd_rel->relkind == RELKIND_RELATION &&
				RelationGetNumberOfAttributes(rel) >= OB_COLUMNS;

	for (int i = 0; i < OB_COLUMNS && good; i++)
		good = TupleDescAttr(RelationGetDescr(rel), i)->atttypid == types[i];
	if (!good)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("\"%s\" is no table with the columns of the outbox",
							   RelationGetRelationName(rel))));
}

/* Is there an index by whose making the table's owner has code run? */
static bool
has_index_with_code(const ResultRelInfo *result_rel)
{
	for (int i = 0; i < result_rel->ri_NumIndices; i++)
	{
		const IndexInfo *index = result_rel->ri_IndexRelationInfo[i];

		if (index->ii_Expressions != NIL || index->ii_Predicate != NIL)
			return true;
	}
	return false;
}

static void
fill_slot(TupleTableSlot *slot, Oid sequence, Datum xid, const OutboxNew *new,
		  TimestampTz tracked_at)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, OB_COLUMNS * sizeof(bool));
	/* what somebody else has added */
	for (int i = OB_COLUMNS; i < slot->tts_tupleDescriptor->natts; i++)
		slot->tts_isnull[i] = true;
	slot->tts_values[OB_ID] = Int64GetDatum(nextval_internal(sequence, false));
	slot->tts_values[OB_XID] = xid;
	slot->tts_values[OB_EVENT_ID] = UUIDPGetDatum(&new->event_id);
	slot->tts_values[OB_USER_ID] = new->user_id;
	slot->tts_values[OB_TRACKED_AT] = TimestampTzGetDatum(tracked_at);
	slot->tts_values[OB_TRACEPARENT] = new->traceparent;
	slot->tts_isnull[OB_TRACEPARENT] = new->traceparent == (Datum) 0;
	slot->tts_values[OB_VALUE] = new->value;
	ExecStoreVirtualTuple(slot);
}

OutboxWriter *
outbox_write_begin(int max_rows, TimestampTz tracked_at)
{
	OutboxWriter *writer = palloc(sizeof(OutboxWriter));
	Relation rel = table_open(lock_current(), NoLock);
	TupleDesc desc;

	check_columns(rel);
	writer->rel = rel;
	writer->sequence = relations.sequence;
	writer->xid = FullTransactionIdGetDatum(GetTopFullTransactionId());
	writer->tracked_at = tracked_at;
	writer->estate = CreateExecutorState();
	writer->result_rel = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->result_rel, rel, 1, NULL, 0);
	ExecOpenIndices(writer->result_rel, false);

	/* a copy counts no references, and each slot has one */
	desc = CreateTupleDescCopy(RelationGetDescr(rel));
	writer->nslots = max_rows;
	writer->slots = palloc(max_rows * sizeof(TupleTableSlot *));
	for (int i = 0; i < max_rows; i++)
		writer->slots[i] = MakeSingleTupleTableSlot(desc, table_slot_callbacks(rel));
	return writer;
}

void
outbox_write_rows(OutboxWriter *writer, const OutboxNew *rows, int nrows)
{
	Relation rel = writer->rel;
	TupleTableSlot **slots = writer->slots;
	CommandId cid = GetCurrentCommandId(true);
	MemoryContext old;
	Oid user;
	int context;
	int guc_level = 0;

	Assert(nrows > 0 && nrows <= writer->nslots);
	/* not with the rights of whoever tracks; an error's rollback sets them back */
	GetUserIdAndSecContext(&user, &context);
	if (has_index_with_code(writer->result_rel))
	{
		SetUserIdAndSecContext(rel->rd_rel->relowner, context | SECURITY_RESTRICTED_OPERATION);
		/* nor with what his names stand for; and what the code sets ends with it */
		guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	}

	for (int i = 0; i < nrows; i++)
		fill_slot(slots[i], writer->sequence, writer->xid, &rows[i], writer->tracked_at);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->estate));
	if (nrows == 1)
		table_tuple_insert(rel, slots[0], cid, 0, NULL);
	else
		table_multi_insert(rel, slots, nrows, cid, 0, NULL);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < nrows; i++)
		list_free(compat_ExecInsertIndexTuples(writer->result_rel, slots[i], writer->estate));
	ResetPerTupleExprContext(writer->estate);
	if (guc_level > 0)
		AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, context);
}

void
outbox_write_end(OutboxWriter *writer)
{
	for (int i = 0; i < writer->nslots; i++)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	ExecCloseIndices(writer->result_rel);
	FreeExecutorState(writer->estate);
	table_close(writer->rel, NoLock);
	CommandCounterIncrement();
	outbox_wake_at_commit();
}

void
outbox_write(const OutboxNew *row, TimestampTz tracked_at)
{
	OutboxWriter *writer = outbox_write_begin(1, tracked_at);

	outbox_write_rows(writer, row, 1);
	outbox_write_end(writer);
}
