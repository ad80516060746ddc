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
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
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

static Oid
evstream_relation(const char *name)
{
	Oid relid = get_relname_relid(name, get_namespace_oid("evstream", false));

	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table \"evstream.%s\" does not exist", name)));
	return relid;
}

static Oid
outbox_relation(int number)
{
	char name[NAMEDATALEN];

	snprintf(name, sizeof(name), "outbox_%d", number);
	return evstream_relation(name);
}

/* Which table is written to, as the latest commit has it. */
static int
read_current(Oid relid)
{
	Relation rel = table_open(relid, AccessShareLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0, NULL);
	HeapTuple tuple = systable_getnext(scan);
	int current = 0;

	if (HeapTupleIsValid(tuple))
	{
		bool isnull;

		current = DatumGetInt16(heap_getattr(tuple, 2, RelationGetDescr(rel), &isnull));
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return current;
}

/*
 * Locks the table that is to be written to, and returns it.
 *
 * The lock is taken before the number is believed: a number that was read
 * before, or with an old snapshot, may be that of a table that has been emptied
 * since, and a row written there could be lost at the next emptying.  With the
 * lock held until the end of the transaction, the table is not emptied before.
 */
static Oid
lock_current(void)
{
	Oid current_relid;
	Oid relid = outbox_relation(locked_number);
	int number = locked_number;
	int current;

	if (locked_lxid == compat_my_lxid() && SubTransactionIsActive(locked_subid))
		return relid;

	/* most likely it is the one of before; nobody is to be waited for if it is not */
	current_relid = evstream_relation("outbox_current");
	if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		number = -1;
	for (;;)
	{
		current = read_current(current_relid);
		if (current == number)
			break;
		if (number >= 0)
			UnlockRelationOid(relid, RowExclusiveLock);
		number = current;
		relid = outbox_relation(number);
		LockRelationOid(relid, RowExclusiveLock);
	}
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
	writer->sequence = evstream_relation("outbox_id_seq");
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

	Assert(nrows > 0 && nrows <= writer->nslots);
	/* not with the rights of whoever tracks; an error's rollback sets them back */
	GetUserIdAndSecContext(&user, &context);
	if (has_index_with_code(writer->result_rel))
		SetUserIdAndSecContext(rel->rd_rel->relowner, context | SECURITY_RESTRICTED_OPERATION);

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
