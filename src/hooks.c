/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  Utility statements that concern the workers, and requests at commit.
 *
 * Statements that need a database, or the extension, for themselves: before
 * they take their locks the workers are asked to end and are held off until
 * the transaction has ended; else the deadlock detector might choose the DROP.
 * Statements that bring something new: the launcher looks again at commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "hooks.h"
#include "shared.h"
#include "status.h"
#include "worker.h"

#define HOLD_LIMIT_MS 10000
#define HOLD_TURN_MS  200

PG_FUNCTION_INFO_V1(evstream_restart_workers);
PG_FUNCTION_INFO_V1(evstream_wake_workers);

static ProcessUtility_hook_type prev_process_utility = NULL;

/* What this transaction asks for; done at its end. */
static bool holding = false;
static bool pending_look = false;
static bool pending_restart = false;
static bool pending_scan = false;
static uint32 pending_wakes = 0; /* bits by role */

static void
forget_pending(void)
{
	holding = pending_look = pending_restart = pending_scan = false;
	pending_wakes = 0;
}

/* Must not raise, but before a PREPARE. */
static void
at_end_of_transaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PRE_PREPARE && pending_restart)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot PREPARE a transaction that has restarted the workers of evstream"),
			 errhint(
				 "Call evstream_restart() or evstream_take_over() in a transaction of its own.")));
	if (!holding && !pending_look && !pending_restart && !pending_scan && pending_wakes == 0)
		return;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (pending_scan)
				shared_scan_again();
			if (pending_look || pending_restart)
				status_look_again(MyDatabaseId, pending_restart);
			for (WorkerRole role = ROLE_MAINTENANCE; role <= ROLE_NOTIFIER; role++)
			{
				if (pending_wakes & (1U << role))
					status_wake(MyDatabaseId, role);
			}
			break;
		case XACT_EVENT_PREPARE:
			if (pending_look)
				shared_set_unsettled(MyDatabaseId);
			break;
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	if (holding)
		shared_release_holds();
	forget_pending();
}

static void
at_exit(int code, Datum arg)
{
	if (holding)
		shared_release_holds();
}

/* Once for each backend: the list of callbacks only grows. */
static void
watch_transaction(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(at_end_of_transaction, NULL);
	before_shmem_exit(at_exit, (Datum) 0);
	registered = true;
}

/* ---- holding workers off ---- */

static void
hold_database(Oid dboid)
{
	int64 limit = clock_us() + HOLD_LIMIT_MS * INT64CONST(1000);

	watch_transaction();
	holding = true;
	if (!shared_hold(dboid))
		return;

	while (shared_running(dboid) > 0 && clock_us() < limit)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, HOLD_TURN_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Whoever may not do it must not be able to stop the workers by trying. */
static void
hold_named_database(const char *name)
{
	Oid dboid = name ? get_database_oid(name, true) : InvalidOid;

	if (OidIsValid(dboid) && (superuser() || compat_owns_database(dboid)))
		hold_database(dboid);
}

static void
hold_own_database(void)
{
	Oid extension = get_extension_oid("evstream", true);

	if (OidIsValid(extension) && (superuser() || compat_owns_extension(extension)))
	{
		hold_database(MyDatabaseId);
		pending_look = true;
	}
}

static bool
names_evstream(const char *name)
{
	return name != NULL && strcmp(name, "evstream") == 0;
}

/* Is it a schema with objects of the extension? */
static bool
is_schema_of_extension(const char *name)
{
	Oid extension = get_extension_oid("evstream", true);
	Oid schema = get_namespace_oid(name, true);

	if (!OidIsValid(extension) || !OidIsValid(schema))
		return false;
	if (names_evstream(name))
		return true;
	return worker_extension_schema(extension) == schema;
}

static void
before_drop(DropStmt *stmt)
{
	ListCell *cell;

	foreach (cell, stmt->objects)
	{
		const char *name;

		if (stmt->removeType == OBJECT_EXTENSION)
		{
			/* CASCADE may reach it from plpgsql. */
			name = strVal(lfirst(cell));
			if (names_evstream(name) || stmt->behavior == DROP_CASCADE)
			{
				hold_own_database();
				return;
			}
		}
		else if (stmt->removeType == OBJECT_SCHEMA && stmt->behavior == DROP_CASCADE)
		{
			name = strVal(lfirst(cell));
			if (is_schema_of_extension(name))
			{
				hold_own_database();
				return;
			}
		}
	}
}

/*
 * Leaves that workers make meanwhile would be missed, and they work with the
 * rights of the extension's owner.
 */
static void
before_reassign(ReassignOwnedStmt *stmt)
{
	Oid extension = get_extension_oid("evstream", true);
	Oid owner = OidIsValid(extension) ? worker_extension_owner(extension) : InvalidOid;
	ListCell *cell;

	if (!OidIsValid(owner) || (!superuser() && !compat_owns_extension(extension)))
		return;
	foreach (cell, stmt->roles)
	{
		if (get_rolespec_oid(lfirst_node(RoleSpec, cell), true) == owner)
		{
			hold_own_database();
			pending_restart = true;
			return;
		}
	}
}

static void
before_create_database(CreatedbStmt *stmt)
{
	const char *template = "template1";
	ListCell *cell;

	foreach (cell, stmt->options)
	{
		DefElem *option = lfirst(cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			template = defGetString(option);
	}
	hold_named_database(template);
	pending_scan = true;
}

static void
before_alter_database(AlterDatabaseStmt *stmt)
{
	ListCell *cell;

	foreach (cell, stmt->options)
	{
		if (strcmp(((DefElem *) lfirst(cell))->defname, "tablespace") == 0)
			hold_named_database(stmt->dbname);
	}
	/* It may have become a template, or one that allows no connections. */
	pending_scan = true;
}

/* What is to be done before the statement, or noted for the end of the transaction. */
static void
look_at_statement(Node *parsetree)
{
	switch (nodeTag(parsetree))
	{
		case T_AlterExtensionStmt:
			if (names_evstream(((AlterExtensionStmt *) parsetree)->extname))
				hold_own_database();
			break;
		case T_AlterObjectSchemaStmt:
		{
			AlterObjectSchemaStmt *stmt = (AlterObjectSchemaStmt *) parsetree;

			if (stmt->objectType == OBJECT_EXTENSION && names_evstream(strVal(stmt->object)))
				hold_own_database();
			break;
		}
		case T_DropStmt:
			before_drop((DropStmt *) parsetree);
			break;
		case T_DropOwnedStmt:
			hold_own_database();
			break;
		case T_ReassignOwnedStmt:
			before_reassign((ReassignOwnedStmt *) parsetree);
			break;
		case T_RenameStmt:
		{
			RenameStmt *stmt = (RenameStmt *) parsetree;

			if (stmt->renameType == OBJECT_DATABASE)
			{
				hold_named_database(stmt->subname);
				pending_scan = true;
			}
			else if (stmt->renameType == OBJECT_SCHEMA && is_schema_of_extension(stmt->subname))
				pending_restart = true;
			break;
		}
		case T_CreatedbStmt:
			before_create_database((CreatedbStmt *) parsetree);
			break;
		case T_DropdbStmt:
			hold_named_database(((DropdbStmt *) parsetree)->dbname);
			pending_scan = true;
			break;
		case T_AlterDatabaseStmt:
			before_alter_database((AlterDatabaseStmt *) parsetree);
			break;
		case T_TransactionStmt:
		{
			TransactionStmtKind kind = ((TransactionStmt *) parsetree)->kind;

			if ((kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED) &&
				shared_unsettled(MyDatabaseId))
				pending_look = true;
			else
				return;
			break;
		}
		default:
			return;
	}
	watch_transaction();
}

/*
 * CREATE EXTENSION is for everybody where it does nothing, and may bring evstream
 * by CASCADE: so only what it has brought counts.
 */
static void
after_create_extension(Oid before)
{
	Oid now = get_extension_oid("evstream", true);

	if (OidIsValid(now) && now != before)
	{
		pending_look = true;
		watch_transaction();
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *environment,
				DestReceiver *dest, QueryCompletion *completion)
{
	bool concerned = status_available() && IsTransactionState() && !RecoveryInProgress();
	bool creates = concerned && IsA(pstmt->utilityStmt, CreateExtensionStmt);
	Oid before = creates ? get_extension_oid("evstream", true) : InvalidOid;

	if (concerned)
		look_at_statement(pstmt->utilityStmt);

	if (prev_process_utility)
		prev_process_utility(pstmt, query, read_only_tree, context, params, environment, dest,
							 completion);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, environment, dest,
								completion);
	if (creates)
		after_create_extension(before);
}

void
hooks_install(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}

/* ---- requests of the administrative functions; done at commit ---- */

/* evstream.restart_workers() */
Datum
evstream_restart_workers(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery("evstream_restart()");
	if (status_available())
	{
		pending_restart = true;
		watch_transaction();
	}
	PG_RETURN_VOID();
}

/* evstream.wake_workers(role text): null means all */
Datum
evstream_wake_workers(PG_FUNCTION_ARGS)
{
	char *name = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	bool any = false;

	for (WorkerRole role = ROLE_MAINTENANCE; role <= ROLE_NOTIFIER; role++)
	{
		if (name == NULL || strcmp(shared_role_name(role), name) == 0)
		{
			any = true;
			if (status_available())
				pending_wakes |= 1U << role;
		}
	}
	if (!any)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("there is no role of workers named \"%s\"", name),
						errhint("The roles are maintenance, consumer, relay and notifier.")));
	if (status_available())
		watch_transaction();
	PG_RETURN_VOID();
}
