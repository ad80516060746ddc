/*-------------------------------------------------------------------------
 *
 * outbox_rotate.c
 *	  Going to the next table of the outbox, and emptying what is stored.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "outbox_int.h"
#include "sql.h"

/* An emptied table looks empty to a dump with an older snapshot: so long we wait for it */
#define EMPTY_GRACE_US (INT64CONST(600) * USECS_PER_SEC)

static Oid
outbox_relid(int number)
{
	char name[NAMEDATALEN];

	snprintf(name, sizeof(name), "outbox_%d", number);
	return get_relname_relid(name, get_namespace_oid("evstream", false));
}

static bool
table_has_pages(int number)
{
	Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(outbox_relid(number))};

	outbox_execute("SELECT pg_catalog.pg_relation_size($1::oid::regclass) > 0", 1, types, values,
				   SPI_OK_SELECT);
	return DatumGetBool(sql_column(0, 1, NULL));
}

static int
current_table(void)
{
	if (outbox_execute("SELECT current FROM evstream.outbox_current", 0, NULL, NULL,
					   SPI_OK_SELECT) == 0)
		return 0;
	return DatumGetInt16(sql_column(0, 1, NULL));
}

/* Goes to the next table that is empty, if this one has rows. */
void
outbox_rotate(void *unused)
{
	int current = current_table();

	if (!table_has_pages(current))
		return;
	/* one that a transaction holds cannot be emptied, and is passed over */
	for (int i = 1; i < OUTBOX_TABLES; i++)
	{
		int next = (current + i) % OUTBOX_TABLES;
		Oid types[1] = {INT2OID};
		Datum values[1] = {Int16GetDatum(next)};

		if (table_has_pages(next))
			continue;
		outbox_execute(
			"UPDATE evstream.outbox_current SET current = $1, rotated_at = pg_catalog.now()", 1,
			types, values, SPI_OK_UPDATE);
		break;
	}
}

/*
 * Empties one table, if all in it is stored.  With the exclusive lock nobody
 * is writing into it; whoever comes with the number of before finds it changed.
 *
 * TRUNCATE makes it look empty to older snapshots too.  A dump that has its
 * snapshot and not yet its locks would see the events neither here nor in the
 * stats, so we wait until all snapshots are newer than the storing, but not for ever.
 */
static void
empty_table(int number, const OutboxPosition *stored)
{
	static TransactionId stored_before[OUTBOX_TABLES];
	static int64 stored_since[OUTBOX_TABLES];
	Datum snapshot;
	Oid relid = outbox_relid(number);
	char sql[256];
	Oid types[1] = {PG_SNAPSHOTOID};

	if (!table_has_pages(number))
	{
		stored_before[number] = InvalidTransactionId;
		return;
	}
	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return;
	snapshot = outbox_tick_snapshot(stored->tick);
	snprintf(
		sql, sizeof(sql),
		"SELECT FROM evstream.outbox_%d WHERE xid = ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1)))"
		" OR xid >= pg_catalog.pg_snapshot_xmax($1) LIMIT 1",
		number);
	if (snapshot == (Datum) 0 || outbox_execute(sql, 1, types, &snapshot, SPI_OK_SELECT) > 0)
	{
		UnlockRelationOid(relid, AccessExclusiveLock);
		return;
	}
	if (!TransactionIdIsValid(stored_before[number]))
	{
		stored_before[number] = XidFromFullTransactionId(ReadNextFullTransactionId());
		stored_since[number] = clock_us();
	}
	if (TransactionIdPrecedes(GetOldestNonRemovableTransactionId(NULL), stored_before[number]) &&
		clock_us() < stored_since[number] + EMPTY_GRACE_US)
	{
		UnlockRelationOid(relid, AccessExclusiveLock);
		return;
	}
	snprintf(sql, sizeof(sql), "TRUNCATE evstream.outbox_%d", number);
	outbox_execute(sql, 0, NULL, NULL, SPI_OK_UTILITY);
	stored_before[number] = InvalidTransactionId;
}

/* Empties what is stored, and removes ticks and entries that nobody needs. */
void
outbox_empty(void *unused)
{
	OutboxPosition stored;
	OutboxPosition relayed;
	int current;
	Oid types[1] = {INT8OID};
	Datum values[1];

	if (!outbox_is_ours())
		return;
	stored = outbox_stored_position();
	current = current_table();
	for (int i = 0; i < OUTBOX_TABLES; i++)
		if (i != current)
			empty_table(i, &stored);

	/* entries of the relay before the newest that is stored */
	values[0] = Int64GetDatum(stored.tick);
	outbox_execute(
		"DELETE FROM evstream.relay_log WHERE tick < $1 AND seq < (SELECT max(seq) FROM evstream.relay_log)",
		1, types, values, SPI_OK_DELETE);
	/* a reader needs the snapshot of its last tick and the one it reads */
	relayed = outbox_sent_position();
	values[0] = Int64GetDatum(Min(stored.tick, relayed.tick));
	outbox_execute("DELETE FROM evstream.ticks WHERE tick < $1", 1, types, values, SPI_OK_DELETE);
}
