/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between PostgreSQL 14 and 18, in one place.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_COMPAT_H
#define EVSTREAM_COMPAT_H

#include "postgres.h"

#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_namespace.h"
#include "fmgr.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM < 140000
#error "evstream needs PostgreSQL 14 or later"
#endif

#if PG_VERSION_NUM >= 180000
#define COMPAT_MODULE_MAGIC PG_MODULE_MAGIC_EXT(.name = "evstream", .version = "1.1")
#else
#define COMPAT_MODULE_MAGIC PG_MODULE_MAGIC
#endif

/* Before 18 that a function does not return was said behind its name. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* Since 15 shared memory is asked for in a hook, before in _PG_init(). */
#if PG_VERSION_NUM >= 150000
#define COMPAT_HAVE_SHMEM_REQUEST_HOOK 1
#endif

#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

/* A database that a failed DROP DATABASE has left behind; not in all minors. */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB (-2)
#endif

#if PG_VERSION_NUM >= 160000
#define compat_locator(rel) ((rel)->rd_locator)
#else
#define compat_locator(rel) ((rel)->rd_node)
#endif

#if PG_VERSION_NUM >= 160000
#define compat_owns_database(oid)  object_ownercheck(DatabaseRelationId, oid, GetUserId())
#define compat_owns_extension(oid) object_ownercheck(ExtensionRelationId, oid, GetUserId())
#define compat_owns_schema(oid)    object_ownercheck(NamespaceRelationId, oid, GetUserId())
#else
#define compat_owns_database(oid)  pg_database_ownercheck(oid, GetUserId())
#define compat_owns_extension(oid) pg_extension_ownercheck(oid, GetUserId())
#define compat_owns_schema(oid)    pg_namespace_ownercheck(oid, GetUserId())
#endif

/* Settings that exist since 17, NULL before. */
#if PG_VERSION_NUM >= 170000
#define COMPAT_TRANSACTION_TIMEOUT "transaction_timeout"
#else
#define COMPAT_TRANSACTION_TIMEOUT NULL
#endif

/*
 * Interval text to an interval, without raising: false where it is none.
 * Callable in the postmaster.
 */
static inline bool
compat_parse_interval(const char *text, Interval *span)
{
	char workbuf[256];
	char *field[MAXDATEFIELDS];
	int ftype[MAXDATEFIELDS];
	int nf;
	int dtype;
	int error;
#if PG_VERSION_NUM >= 150000
	struct pg_itm_in parsed;
#define COMPAT_PARSED &parsed
#else
	struct pg_tm parsed;
	fsec_t fsec = 0;
#define COMPAT_PARSED &parsed, &fsec
#endif

	memset(&parsed, 0, sizeof(parsed));
	error = ParseDateTime(text, workbuf, sizeof(workbuf), field, ftype, MAXDATEFIELDS, &nf);
	if (error == 0)
		error = DecodeInterval(field, ftype, nf, INTERVAL_FULL_RANGE, &dtype, COMPAT_PARSED);
	if (error == DTERR_BAD_FORMAT)
	{
		char copy[256];

		strlcpy(copy, text, sizeof(copy));
		error = DecodeISO8601Interval(copy, &dtype, COMPAT_PARSED);
	}
	if (error != 0 || dtype != DTK_DELTA)
		return false;

#if PG_VERSION_NUM >= 150000
	return itmin2interval(&parsed, span) == 0;
#else
	return tm2interval(&parsed, fsec, span) == 0;
#endif
#undef COMPAT_PARSED
}

/* A timeout that comes again and again: it did so by itself since 15. */
#if PG_VERSION_NUM >= 150000
#define compat_enable_timeout_every(id, ms)                                                        \
	enable_timeout_every(id, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms), ms)
#define compat_timeout_again(id, ms) ((void) 0)
#else
#define compat_enable_timeout_every(id, ms) enable_timeout_after(id, ms)
#define compat_timeout_again(id, ms)        enable_timeout_after(id, ms)
#endif

/* The local id of this backend's transaction. */
#if PG_VERSION_NUM >= 170000
#define compat_my_lxid() (MyProc->vxid.lxid)
#else
#define compat_my_lxid() (MyProc->lxid)
#endif

/* The oldest transaction whose end can be looked up; needs XactTruncationLock. */
#if PG_VERSION_NUM >= 170000
#define compat_oldest_known_xid() (TransamVariables->oldestClogXid)
#else
#define compat_oldest_known_xid() (ShmemVariableCache->oldestClogXid)
#endif

/* A set of events that lives as long as the process. */
#if PG_VERSION_NUM >= 170000
#define compat_CreateWaitEventSet(nevents) CreateWaitEventSet(NULL, nevents)
#else
#define compat_CreateWaitEventSet(nevents) CreateWaitEventSet(TopMemoryContext, nevents)
#endif

/* Index entries of a tuple that was just inserted, without ON CONFLICT. */
#define compat_ExecInsertIndexTuples(rel, slot, estate)                                            \
	compat_ExecTryIndexTuples(rel, slot, estate, false, NULL)

/* With by_flag a key that is there already sets *conflict, and raises nothing. */
#if PG_VERSION_NUM >= 160000
#define compat_ExecTryIndexTuples(rel, slot, estate, by_flag, conflict)                            \
	ExecInsertIndexTuples(rel, slot, estate, false, by_flag, conflict, NIL, false)
#else
#define compat_ExecTryIndexTuples(rel, slot, estate, by_flag, conflict)                            \
	ExecInsertIndexTuples(rel, slot, estate, false, by_flag, conflict, NIL)
#endif

/* The same of a new version of a row, whose key is the old one. */
#if PG_VERSION_NUM >= 160000
#define compat_update_indexes TU_UpdateIndexes
#define compat_ExecUpdateIndexTuples(rel, slot, estate, which)                                     \
	ExecInsertIndexTuples(rel, slot, estate, true, false, NULL, NIL, (which) == TU_Summarizing)
#else
#define compat_update_indexes bool
#define compat_ExecUpdateIndexTuples(rel, slot, estate, which)                                     \
	ExecInsertIndexTuples(rel, slot, estate, true, false, NULL, NIL)
#endif

#if PG_VERSION_NUM >= 180000
#define compat_index_beginscan(rel, index, snapshot, nkeys)                                        \
	index_beginscan(rel, index, snapshot, NULL, nkeys, 0)
#else
#define compat_index_beginscan(rel, index, snapshot, nkeys)                                        \
	index_beginscan(rel, index, snapshot, nkeys, 0)
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#endif /* EVSTREAM_COMPAT_H */

/*
 * The functions by which the server writes to its client, for who asks for
 * them and then includes this file as the last one, be it once more.  For the
 * connection's struct, which is not of interest here, libpq.h wants the headers
 * of Kerberos where the server was built with it; they are not among what an
 * extension is built with.
 */
#ifdef COMPAT_WANT_COMM_METHODS
#undef ENABLE_GSS
#include "libpq/libpq.h"
#endif
