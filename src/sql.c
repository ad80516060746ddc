/*-------------------------------------------------------------------------
 *
 * sql.c
 *	  Small helpers on SPI.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "executor/spi.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "sql.h"

/* Plans that are kept; one more than these takes the place of another. */
#define KEPT_PLANS 64

typedef struct KeptPlan
{
	uint32 hash;
	char *sql;
	SPIPlanPtr plan;
} KeptPlan;

static KeptPlan kept_plans[KEPT_PLANS];
static int nkept = 0; /* also those that were replaced */

uint64
sql_execute(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls, int expected)
{
	int rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

int
sql_by_index(void)
{
	int level = NewGUCNestLevel();

	set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
					  false);
	set_config_option("enable_bitmapscan", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
					  0, false);
	set_config_option("enable_sort", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
					  false);
	return level;
}

int
sql_without_event_triggers(void)
{
	int level = NewGUCNestLevel();

	set_config_option("session_replication_role", "replica", PGC_SUSET, PGC_S_SESSION,
					  GUC_ACTION_SAVE, true, 0, false);
	return level;
}

SPIPlanPtr
sql_plan(const char *sql, int nargs, Oid *types)
{
	size_t len = strlen(sql);
	uint32 hash = DatumGetUInt32(hash_any((const unsigned char *) sql, (int) len));
	KeptPlan *kept;
	SPIPlanPtr plan;
	char *copy;

	for (int i = 0; i < Min(nkept, KEPT_PLANS); i++)
		if (kept_plans[i].hash == hash && strcmp(kept_plans[i].sql, sql) == 0)
			return kept_plans[i].plan;
	plan = SPI_prepare_cursor(sql, nargs, types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
	copy = MemoryContextStrdup(TopMemoryContext, sql);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of \"%s\"", sql);
	kept = &kept_plans[nkept++ % KEPT_PLANS];
	if (kept->sql != NULL)
	{
		pfree(kept->sql);
		SPI_freeplan(kept->plan);
	}
	kept->hash = hash;
	kept->sql = copy;
	kept->plan = plan;
	return plan;
}

uint64
sql_execute_kept(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls,
				 bool read_only, int expected)
{
	SPIPlanPtr plan = sql_plan(sql, nargs, types);
	int level = sql_by_index();
	int rc = SPI_execute_plan(plan, values, nulls, read_only, 0);

	AtEOXact_GUC(true, level);
	if (rc != expected)
		elog(ERROR, "unexpected result %s of \"%s\"", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

Datum
sql_column(uint64 row, int number, bool *isnull)
{
	bool null;
	Datum value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number, &null);

	if (isnull)
		*isnull = null;
	else if (null)
		elog(ERROR, "unexpected null in column %d", number);
	return value;
}
