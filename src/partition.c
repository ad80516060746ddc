/*-------------------------------------------------------------------------
 *
 * partition.c
 *	  Leaves of the partitioned tables: made, found, adopted and dropped.
 *
 * CREATE TABLE and then ATTACH let readers and writers of the parent go on.
 * CREATE TABLE ... PARTITION OF would wait for the longest report, and everybody
 * else behind it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "partition.h"
#include "sql.h"

#define MONTHS_AHEAD 2

/* How long a drop may hold up those who come after it. */
#define DROP_LOCK_TIMEOUT "300ms"

/* The parents, with what their leaves have beside the columns. */
typedef struct Parent
{
	const char *name;
	const char *constraint; /* within the column list, or "" */
	const char *storage;    /* behind it, or "" */
	const char *index;      /* columns of a further index, or NULL */
	const char *brin;       /* column of a block range index, or NULL */
} Parent;

static const Parent events_parent = {"events", "", "", "log_id, log_partition, log_offset",
									 "received_at"};

static const Parent stats_parents[] = {
	[PARTITION_COUNTS] = {"daily_counts", ", PRIMARY KEY (user_id, day, event_type)",
						  " WITH (fillfactor = 80)", NULL, NULL},
	[PARTITION_ITEMS] = {"daily_items", ", PRIMARY KEY (user_id, item_id, day)",
						 " WITH (fillfactor = 80)", NULL, NULL},
};

static Oid
relation_oid(const char *name)
{
	return get_relname_relid(name, get_namespace_oid("evstream", false));
}

static Oid
relation_owner(Oid relid)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void define(const char *format, ...) pg_attribute_printf(1, 2);

/* Runs a statement that makes, changes or drops a leaf. */
static void
define(const char *format, ...)
{
	char command[2048];
	va_list args;
	int level;

	va_start(args, format);
	if (vsnprintf(command, sizeof(command), format, args) >= (int) sizeof(command))
		elog(ERROR, "command is too long");
	va_end(args);

	level = sql_without_event_triggers();
	sql_execute(command, 0, NULL, NULL, NULL, SPI_OK_UTILITY);
	AtEOXact_GUC(true, level);
}

/* One text of one row, or false; the answer goes into name. */
static bool
query_name(const char *query, int nargs, Oid *types, Datum *values, char name[NAMEDATALEN])
{
	int ret = SPI_execute_with_args(query, nargs, types, values, NULL, true, 1);

	if (ret != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(ret));
	if (SPI_processed == 0)
		return false;
	strlcpy(name, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1), NAMEDATALEN);
	return true;
}

static void
events_name(DateADT day, char name[NAMEDATALEN])
{
	int year;
	int month;
	int mday;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	snprintf(name, NAMEDATALEN, "events_%04d%02d%02d", year, month, mday);
}

static void
month_name(const Parent *parent, int year, int month, char name[NAMEDATALEN])
{
	snprintf(name, NAMEDATALEN, "%s_%04d%02d", parent->name, year, month);
}

static void
next_month(int *year, int *month)
{
	if (++*month > MONTHS_PER_YEAR)
	{
		*month = 1;
		++*year;
	}
}

/* FOR VALUES of the leaf of that name; false if it is the name of none. */
static bool
bounds_of_name(const char *name, const Parent **parent, char *bounds, size_t size)
{
	int year;
	int month;
	int mday;
	int len = 0;

	if (sscanf(name, "events_%4d%2d%2d%n", &year, &month, &mday, &len) == 3 &&
		len == strlen("events_YYYYMMDD") && name[len] == '\0')
	{
		int day;
		int to_year;
		int to_month;
		int to_mday;

		if (month < 1 || month > MONTHS_PER_YEAR || mday < 1 || mday > 31)
			return false;
		day = date2j(year, month, mday);
		j2date(day + 1, &to_year, &to_month, &to_mday);
		snprintf(bounds, size,
				 "FROM ('%04d-%02d-%02d 00:00:00+00') TO ('%04d-%02d-%02d 00:00:00+00')", year,
				 month, mday, to_year, to_month, to_mday);
		*parent = &events_parent;
		return true;
	}

	for (int i = 0; i < lengthof(stats_parents); i++)
	{
		size_t prefix = strlen(stats_parents[i].name);

		len = 0;
		if (strncmp(name, stats_parents[i].name, prefix) == 0 &&
			sscanf(name + prefix, "_%4d%2d%n", &year, &month, &len) == 2 &&
			len == strlen("_YYYYMM") && name[prefix + len] == '\0')
		{
			int to_year = year;
			int to_month = month;

			if (month < 1 || month > MONTHS_PER_YEAR)
				return false;
			next_month(&to_year, &to_month);
			snprintf(bounds, size, "FROM ('%04d-%02d-01') TO ('%04d-%02d-01')", year, month,
					 to_year, to_month);
			*parent = &stats_parents[i];
			return true;
		}
	}
	return false;
}

static void
attach(const Parent *parent, const char *name, const char *bounds)
{
	define("ALTER TABLE evstream.%s ATTACH PARTITION evstream.%s FOR VALUES %s", parent->name, name,
		   bounds);
}

/* A leaf belongs to the owner of its parent, whoever makes it. */
static void
give_to_owner(const char *name, const char *parent)
{
	Oid owner = relation_owner(relation_oid(parent));

	if (owner != GetUserId())
		define("ALTER TABLE evstream.%s OWNER TO %s", name,
			   quote_identifier(GetUserNameFromId(owner, false)));
}

/* Whatever the default privileges are, as for its parent. */
static void
close_to_public(const char *name)
{
	define("REVOKE ALL ON evstream.%s FROM PUBLIC", name);
}

/* Makes a leaf and attaches it; the caller has the parent's lock. */
static void
make_leaf(const Parent *parent, const char *name)
{
	const Parent *found;
	char bounds[128];

	if (!bounds_of_name(name, &found, bounds, sizeof(bounds)) || found != parent)
		elog(ERROR, "\"%s\" is no name of a partition", name);

	define("CREATE TABLE evstream.%s (LIKE evstream.%s INCLUDING ALL%s)%s", name, parent->name,
		   parent->constraint, parent->storage);
	if (parent->index != NULL)
		define("CREATE INDEX ON evstream.%s (%s)", name, parent->index);
	/* Ranges so large that autovacuum, which looks once in a minute, is not asked for too many. */
	if (parent->brin != NULL)
		define("CREATE INDEX ON evstream.%s USING brin (%s)"
			   " WITH (pages_per_range = 512, autosummarize = on)",
			   name, parent->brin);
	give_to_owner(name, parent->name);
	close_to_public(name);
	attach(parent, name, bounds);
}

/*
 * Keeps others from making the same leaf; conflicts with no reader or writer.
 * Names looked up after it are those of now.
 */
static void
lock_parent(const Parent *parent)
{
	LockRelationOid(relation_oid(parent->name), ShareUpdateExclusiveLock);
}

DateADT
partition_day(TimestampTz at)
{
	return (DateADT) (at >= 0 ? at / USECS_PER_DAY : -((-at + USECS_PER_DAY - 1) / USECS_PER_DAY));
}

bool
partition_knows_days(void)
{
	return OidIsValid(relation_oid("stored_days"));
}

void
partition_give_up_days(const char *name, bool if_empty)
{
	Oid types[] = {TEXTOID, BOOLOID};
	Datum values[] = {CStringGetTextDatum(name), BoolGetDatum(!if_empty)};

	if (partition_knows_days())
		sql_execute(
			"WITH gone AS (DELETE FROM evstream.stored_days"
			" WHERE pg_catalog.to_char(received_day::timestamp, '\"events_\"YYYYMMDD') = $1"
			/* with the snapshot that sees these days: the events were committed with them */
			" AND ($2 OR NOT EXISTS (SELECT FROM evstream.events"
			"   WHERE received_at >= received_day::timestamp AT TIME ZONE 'UTC'"
			"   AND received_at < (received_day + 1)::timestamp AT TIME ZONE 'UTC'))"
			" RETURNING day, time_zone)"
			" INSERT INTO evstream.unstored_days (day, time_zone)"
			" SELECT DISTINCT day, time_zone FROM gone ON CONFLICT DO NOTHING",
			2, types, values, NULL, SPI_OK_INSERT);
}

void
partition_ensure_events(TimestampTz received_at)
{
	char name[NAMEDATALEN];

	events_name(partition_day(received_at), name);
	if (OidIsValid(relation_oid(name)))
		return;
	lock_parent(&events_parent);
	if (!OidIsValid(relation_oid(name)))
	{
		partition_give_up_days(name, false);
		make_leaf(&events_parent, name);
	}
}

void
partition_make_ids(int32 segment_id)
{
	char name[NAMEDATALEN];

	snprintf(name, sizeof(name), "ids_%d", segment_id);
	define("CREATE TABLE evstream.%s (LIKE evstream.ids)", name);
	define("CREATE UNIQUE INDEX %s_event_id_idx ON evstream.%s (event_id)", name, name);
	give_to_owner(name, "ids");
	close_to_public(name);
	define("ALTER TABLE evstream.ids ATTACH PARTITION evstream.%s FOR VALUES IN (%d)", name,
		   segment_id);
}

static bool
default_has_month(const Parent *parent, int year, int month)
{
	char query[256];
	int to_year = year;
	int to_month = month;

	next_month(&to_year, &to_month);
	snprintf(query, sizeof(query),
			 "SELECT 'x' FROM evstream.%s_default"
			 " WHERE day >= '%04d-%02d-01' AND day < '%04d-%02d-01' LIMIT 1",
			 parent->name, year, month, to_year, to_month);

	/* not read-only: each look is to see what was committed before it */
	if (SPI_execute(query, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read evstream.%s_default", parent->name);
	return SPI_processed > 0;
}

/* False: somebody uses the default leaf. */
static bool
ensure_month(const Parent *parent, int year, int month)
{
	char name[NAMEDATALEN];
	char default_name[NAMEDATALEN];

	month_name(parent, year, month, name);
	if (OidIsValid(relation_oid(name)) || default_has_month(parent, year, month))
		return true;
	lock_parent(parent);
	if (OidIsValid(relation_oid(name)))
		return true;

	/*
	 * ATTACH takes this lock on the default leaf too, to look through it.  It
	 * is not waited for, as all that comes later would wait behind us.
	 */
	snprintf(default_name, sizeof(default_name), "%s_default", parent->name);
	if (!ConditionalLockRelationOid(relation_oid(default_name), AccessExclusiveLock))
		return false;
	if (!default_has_month(parent, year, month))
		make_leaf(parent, name);
	return true;
}

bool
partition_ensure_months(DateADT today)
{
	bool all = true;

	for (int i = 0; i < lengthof(stats_parents); i++)
	{
		int year;
		int month;
		int mday;

		j2date(today + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
		for (int n = 0; n <= MONTHS_AHEAD; n++)
		{
			all &= ensure_month(&stats_parents[i], year, month);
			next_month(&year, &month);
		}
	}
	return all;
}

Oid
partition_leaf(PartitionStats stats, DateADT day)
{
	const Parent *parent = &stats_parents[stats];
	char name[NAMEDATALEN];
	int year;
	int month;
	int mday;
	Oid relid;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	month_name(parent, year, month, name);
	relid = relation_oid(name);
	if (OidIsValid(relid) && get_rel_relispartition(relid))
		return relid;

	snprintf(name, sizeof(name), "%s_default", parent->name);
	relid = relation_oid(name);
	if (!OidIsValid(relid))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table \"evstream.%s\" does not exist", name)));
	if (!get_rel_relispartition(relid))
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table \"evstream.%s\" is not attached to \"evstream.%s\"", name,
							   parent->name)));
	return relid;
}

bool
partition_adopt_next(const char *after, char name[NAMEDATALEN])
{
	const Parent *parent;
	char bounds[128];
	int segment;
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(after)};

	if (!query_name(
			"SELECT c.relname FROM pg_catalog.pg_class c"
			" WHERE c.relnamespace = 'evstream'::regnamespace"
			" AND c.relkind = 'r' AND NOT c.relispartition"
			/* one of somebody else's could have triggers that lie in wait */
			" AND c.relowner IN (SELECT p.relowner FROM pg_catalog.pg_class p WHERE p.oid = 'evstream.events'::regclass"
			"  UNION SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper)"
			" AND c.relname ~ '^(events_[0-9]{8}|daily_(counts|items)_[0-9]{6}|ids_[0-9]{1,9})$'"
			" AND c.relname > $1::name"
			" ORDER BY c.relname",
			1, types, values, name))
		return false;

	if (sscanf(name, "ids_%d", &segment) == 1)
		define("ALTER TABLE evstream.ids ATTACH PARTITION evstream.%s FOR VALUES IN (%d)", name,
			   segment);
	else if (bounds_of_name(name, &parent, bounds, sizeof(bounds)))
	{
		lock_parent(parent);
		attach(parent, name, bounds);
	}
	return true;
}

/* The first leaf of the parent with the name of a leaf below `limit`. */
static bool
oldest_leaf(const Parent *parent, const char *limit, char name[NAMEDATALEN])
{
	Oid types[] = {OIDOID, TEXTOID, INT4OID};
	Datum values[] = {
		ObjectIdGetDatum(relation_oid(parent->name)),
		CStringGetTextDatum(limit),
		Int32GetDatum((int32) strlen(limit)),
	};

	/* all leaves of a parent but the default one have names of one length */
	return query_name("SELECT c.relname"
					  " FROM pg_catalog.pg_inherits i"
					  " JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid"
					  " WHERE i.inhparent = $1 AND c.relkind = 'r'"
					  " AND pg_catalog.length(c.relname::text) = $3"
					  " AND c.relname ~ '_[0-9]+$' AND c.relname < $2::name"
					  " ORDER BY c.relname",
					  3, types, values, name);
}

bool
partition_oldest_events(DateADT before, char name[NAMEDATALEN])
{
	char limit[NAMEDATALEN];

	events_name(before, limit);
	return oldest_leaf(&events_parent, limit, name);
}

bool
partition_oldest_month(PartitionStats stats, DateADT before, char name[NAMEDATALEN])
{
	char limit[NAMEDATALEN];
	int year;
	int month;
	int mday;

	j2date(before + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	month_name(&stats_parents[stats], year, month, limit);
	return oldest_leaf(&stats_parents[stats], limit, name);
}

void
partition_record_days(const char *name)
{
	char *sql = psprintf("INSERT INTO evstream.unstored_days (day, time_zone)"
						 " SELECT DISTINCT evstream.day_of(e.occurred_at, s.time_zone), s.time_zone"
						 " FROM evstream.%s e CROSS JOIN evstream.state s"
						 " ON CONFLICT DO NOTHING",
						 quote_identifier(name));

	sql_execute(sql, 0, NULL, NULL, NULL, SPI_OK_INSERT);
}

bool
partition_drop(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	/* That somebody reads the table is no error: a subtransaction hides it. */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		sql_execute("SET LOCAL lock_timeout = '" DROP_LOCK_TIMEOUT "'", 0, NULL, NULL, NULL,
					SPI_OK_UTILITY);
		define("DROP TABLE IF EXISTS evstream.%s", quote_identifier(name));
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		done = true;
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
			ReThrowError(error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	return done;
}
