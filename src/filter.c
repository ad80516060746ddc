/*-------------------------------------------------------------------------
 *
 * filter.c
 *	  Behind the functions of filters: checks, locks, and who is told.
 *
 * A change of filters is told through the invalidation of the relation cache.
 * That comes a moment after others can see the change, so whoever changes
 * filters holds a lock as well until it was sent: a reader that gets the lock
 * has heard of all that it can see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "compat.h"
#include "event.h"
#include "filter.h"
#include "json_hash.h"

#define SUBSCRIBER_ID_MAX 255 /* characters */

/* What our locks on objects are for; nothing in the server uses these numbers. */
#define LOCK_CHANGES    1
#define LOCK_SUBSCRIBER 2
#define LOCK_ALL        3

/* Calls of a transaction that lock one subscriber each; with more it locks all. */
#define LOCKED_SINGLY 1000

PG_FUNCTION_INFO_V1(evstream_lock_subscriber);
PG_FUNCTION_INFO_V1(evstream_filters_changed);
PG_FUNCTION_INFO_V1(evstream_filter_condition);

Oid
filter_table(void)
{
	Oid schema = get_namespace_oid("evstream", true);
	Oid table = OidIsValid(schema) ? get_relname_relid("filters", schema) : InvalidOid;

	if (!OidIsValid(table))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation \"evstream.filters\" does not exist")));
	return table;
}

static void
changes_tag(Oid table, LOCKTAG *tag)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, RelationRelationId, table, LOCK_CHANGES);
}

bool
filter_changes_told(Oid table)
{
	LOCKTAG tag;

	/* no such lock can be had there */
	if (RecoveryInProgress())
	{
		AcceptInvalidationMessages();
		return false;
	}
	changes_tag(table, &tag);
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		AcceptInvalidationMessages();
		return false;
	}
	LockRelease(&tag, ShareLock, false);
	AcceptInvalidationMessages();
	return true;
}

static uint64 own_changes = 0;

uint64
filter_own_changes(void)
{
	return own_changes;
}

/*
 * To be called in the transaction of each change, before it ends.  Others are told
 * when it ends, so once is enough for each of its parts, as one that is rolled
 * back takes its message with it.  This session would look up the table, and plan
 * each statement on it, anew.
 */
Datum
evstream_filters_changed(PG_FUNCTION_ARGS)
{
	static LocalTransactionId told_in = InvalidLocalTransactionId;
	static SubTransactionId told_in_part = InvalidSubTransactionId;
	static Oid told_table = InvalidOid;
	Oid table = filter_table();
	LOCKTAG tag;

	own_changes++;
	if (told_table == table && told_in == compat_my_lxid() &&
		told_in_part == GetCurrentSubTransactionId())
		PG_RETURN_VOID();
	changes_tag(table, &tag);
	(void) LockAcquire(&tag, RowExclusiveLock, false, false);
	CacheInvalidateRelcacheByRelid(table);
	told_table = table;
	told_in = compat_my_lxid();
	told_in_part = GetCurrentSubTransactionId();
	PG_RETURN_VOID();
}

/* ---- subscribers ---- */

static bool
is_blank_or_control(pg_wchar c)
{
	return c <= 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0x1680 || c == 0x180E ||
		   (c >= 0x2000 && c <= 0x200F) || (c >= 0x2028 && c <= 0x202F) ||
		   (c >= 0x205F && c <= 0x206F) || c == 0x3000 || c == 0xFEFF;
}

static void
check_subscriber(const text *id)
{
	const char *p = VARDATA_ANY(id);
	const char *end = p + VARSIZE_ANY_EXHDR(id);
	int length = pg_mbstrlen_with_len(p, end - p);
	bool blank = false;

	for (; p < end && !blank; p += pg_mblen(p))
		blank = is_blank_or_control(utf8_to_unicode((const unsigned char *) p));
	if (length >= 1 && length <= SUBSCRIBER_ID_MAX && !blank)
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid subscriber_id"),
		 length == 0 ? errdetail("It is empty.")
		 : blank     ? errdetail("It contains white space or a control character.")
					 : errdetail("It has %d characters.", length),
		 errhint("A subscriber_id is text of 1 to %d characters without white space and control "
				 "characters.",
				 SUBSCRIBER_ID_MAX)));
}

/*
 * The table of locks is shared by the whole server, and not large: whoever
 * changes the filters of many subscribers locks all of them, unless another does
 * it, too, as to wait for that one would be a deadlock.  True: the subscriber has
 * to be locked by itself.
 */
static bool
lock_singly(Oid table)
{
	static LocalTransactionId counted_for = InvalidLocalTransactionId;
	static int count = 0;
	LOCKTAG all;

	if (counted_for != compat_my_lxid())
	{
		counted_for = compat_my_lxid();
		count = 0;
	}
	SET_LOCKTAG_OBJECT(all, MyDatabaseId, RelationRelationId, table, LOCK_ALL);
	if (++count > LOCKED_SINGLY &&
		LockAcquire(&all, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
		return false;
	(void) LockAcquire(&all, RowExclusiveLock, false, false);
	return true;
}

/*
 * Checks a subscriber's id, and keeps others from changing its filters until
 * the end of this transaction.
 */
Datum
evstream_lock_subscriber(PG_FUNCTION_ARGS)
{
	Oid table = filter_table();
	text *id;
	LOCKTAG tag;

	PreventCommandDuringRecovery("a change of filters");
	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("subscriber_id must not be null")));
	id = PG_GETARG_TEXT_PP(0);
	check_subscriber(id);
	if (lock_singly(table))
	{
		SET_LOCKTAG_OBJECT(tag, MyDatabaseId, table,
						   hash_bytes((unsigned char *) VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id)),
						   LOCK_SUBSCRIBER);
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
	}
	PG_RETURN_VOID();
}

/* ---- conditions ---- */

/* A list of a condition; the longest value in characters, 0 = any text. */
typedef struct ListRule
{
	const char *name;
	const char *what;
	int longest;
} ListRule;

static int
compare_texts(const void *a, const void *b)
{
	const text *x = *(text *const *) a;
	const text *y = *(text *const *) b;
	int xlen = VARSIZE_ANY_EXHDR(x);
	int ylen = VARSIZE_ANY_EXHDR(y);
	int result = memcmp(VARDATA_ANY(x), VARDATA_ANY(y), Min(xlen, ylen));

	return result != 0 ? result : (xlen > ylen) - (xlen < ylen);
}

/* The list in order and without repeats; its hash goes into *key. */
static Datum
check_list(Datum list, const ListRule *rule, uint64 *key)
{
	ArrayType *array = DatumGetArrayTypeP(list);
	Datum *values;
	bool *nulls;
	int nvalues;
	int n = 0;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("%s must be a one-dimensional array", rule->name)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &nvalues);
	if (nvalues == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", rule->name),
				 errdetail("A filter with an empty list would match no event."),
				 errhint("Leave %s out, or give NULL, to match any %s.", rule->name, rule->what)));
	for (int i = 0; i < nvalues; i++)
	{
		text *value;
		int length;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", rule->name),
					 errhint("Leave %s out, or give NULL in place of the array, to match any "
							 "%s.",
							 rule->name, rule->what)));
		value = DatumGetTextPP(values[i]);
		length = pg_mbstrlen_with_len(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
		if (rule->longest > 0 && (length == 0 || length > rule->longest))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s contains a value that no event has", rule->name),
					 length == 0 ? errdetail("It is empty.")
								 : errdetail("It has %d characters.", length),
					 errhint("Values of %s have 1 to %d characters.", rule->name, rule->longest)));
		values[i] = PointerGetDatum(value);
	}

	qsort(values, nvalues, sizeof(Datum), compare_texts);
	for (int i = 0; i < nvalues; i++)
	{
		text *value = DatumGetTextPP(values[i]);

		if (n > 0 && compare_texts(&values[n - 1], &values[i]) == 0)
			continue;
		values[n++] = values[i];
		*key = hash_combine64(*key, hash_bytes_extended((unsigned char *) VARDATA_ANY(value),
														VARSIZE_ANY_EXHDR(value), 0));
	}
	return PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
check_amount(Numeric amount, uint64 *key)
{
	Datum datum = NumericGetDatum(amount);
	Datum zero = DirectFunctionCall1(int4_numeric, Int32GetDatum(0));

	if (numeric_is_nan(amount) || numeric_is_inf(amount))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_amount must be a finite number"),
				 errhint("Leave min_amount out, or give NULL, to match any amount and none.")));
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, datum, zero)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_amount must not be negative"),
				 errhint("Leave min_amount out, or give NULL, to match any amount and none.")));
	datum = DirectFunctionCall1(numeric_trim_scale, datum);
	*key = hash_combine64(
		*key, DatumGetUInt64(DirectFunctionCall2(hash_numeric_extended, datum, Int64GetDatum(0))));
	return datum;
}

/* What a JSON value is that should be an object. */
static const char *
json_type(Jsonb *value)
{
	JsonbValue scalar;

	if (!JB_ROOT_IS_SCALAR(value))
		return "an array";
	(void) JsonbExtractScalar(&value->root, &scalar);
	switch (scalar.type)
	{
		case jbvString:
			return "a string";
		case jbvNumeric:
			return "a number";
		case jbvBool:
			return "a boolean";
		default:
			return "null";
	}
}

/*
 * evstream.filter_condition(event_types, user_tiers, min_amount, user_ids,
 * properties): checks the condition of a filter, and gives it in the form in
 * which it is kept, with a hash of it.
 */
Datum
evstream_filter_condition(PG_FUNCTION_ARGS)
{
	enum
	{
		EVENT_TYPES,
		USER_TIERS,
		MIN_AMOUNT,
		USER_IDS,
		PROPERTIES,
		KEY
	};
	static const ListRule rules[] = {
		[EVENT_TYPES] = {"event_types", "event type", EVENT_TYPE_MAX},
		[USER_TIERS] = {"user_tiers", "user tier", 0},
		[USER_IDS] = {"user_ids", "user id", EVENT_USER_ID_MAX},
	};
	Datum values[KEY + 1] = {0};
	bool nulls[KEY + 1] = {false};
	TupleDesc desc;
	uint64 key = 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	for (int i = EVENT_TYPES; i <= PROPERTIES; i++)
	{
		nulls[i] = PG_ARGISNULL(i);
		/* so that no value can take the place of another argument's */
		key = hash_combine64(key, i + 1);
		if (nulls[i])
			continue;
		if (i == MIN_AMOUNT)
			values[i] = check_amount(PG_GETARG_NUMERIC(i), &key);
		else if (i == PROPERTIES)
		{
			Jsonb *object = PG_GETARG_JSONB_P(i);

			if (!JB_ROOT_IS_OBJECT(object))
				ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
								errmsg("properties must be a JSON object"),
								errdetail("It is %s.", json_type(object)),
								errhint("Give what the event's properties have to contain, such as "
										"'{\"item_id\": \"sku-7\"}'.")));
			nulls[i] = JB_ROOT_COUNT(object) == 0;
			if (!nulls[i])
				key = hash_combine64(key, json_hash(object));
			values[i] = JsonbPGetDatum(object);
		}
		else
			values[i] = check_list(PG_GETARG_DATUM(i), &rules[i], &key);
	}
	values[KEY] = Int64GetDatum((int64) key);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
