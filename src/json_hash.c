/*-------------------------------------------------------------------------
 *
 * json_hash.c
 *	  JSON objects as hashes: of each of their scalars, and as a whole.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "compat.h"
#include "json_hash.h"

/* What lies deeper makes no pairs. */
#define PAIR_DEPTH 32

/* Seeds of what is no scalar; any numbers that differ. */
#define SEED_ROOT    UINT64CONST(0x9ae16a3b2f90404f)
#define SEED_KEY     UINT64CONST(0xc3a5c85c97cb3127)
#define SEED_ELEMENT UINT64CONST(0xb492b66fbe98f273)
#define SEED_OBJECT  UINT64CONST(0x9ddfea08eb382d69)
#define SEED_ARRAY   UINT64CONST(0xe7037ed1a0b428db)
#define SEED_END     UINT64CONST(0x8ebc6af09c88c6e3)

/* As the types of JSON: the string "1" is not the number 1. */
static uint64
hash_scalar(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return 1;
		case jbvBool:
			return value->val.boolean ? 2 : 3;
		case jbvString:
			return hash_bytes_extended((const unsigned char *) value->val.string.val,
									   value->val.string.len, 4);
		case jbvNumeric:
			/* 1 and 1.0 are equal */
			return DatumGetUInt64(DirectFunctionCall2(
				hash_numeric_extended, NumericGetDatum(value->val.numeric), Int64GetDatum(5)));
		default:
			elog(ERROR, "unexpected type of a JSON scalar: %d", (int) value->type);
	}
	return 0;
}

void
json_pairs(Jsonb *object, JsonPairCallback callback, void *arg)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue value;
	uint64 paths[PAIR_DEPTH + 1]; /* [n]: to what is n deep; with the key, in an object */
	bool in_array[PAIR_DEPTH + 1];
	int depth = 0; /* containers that are open; the root is the first */
	uint64 path = SEED_ROOT;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_BEGIN_OBJECT:
			case WJB_BEGIN_ARRAY:
				depth++;
				if (depth > PAIR_DEPTH)
					break;
				in_array[depth] = token == WJB_BEGIN_ARRAY;
				if (depth > 1)
				{
					path =
						in_array[depth - 1] ? hash_combine64(paths[depth - 1], SEED_ELEMENT) : path;
					callback(hash_combine64(path, in_array[depth] ? SEED_ARRAY : SEED_OBJECT), arg);
				}
				paths[depth] = path;
				break;

			case WJB_END_OBJECT:
			case WJB_END_ARRAY:
				depth--;
				break;

			case WJB_KEY:
				if (depth > PAIR_DEPTH)
					break;
				path = hash_combine64(paths[depth], SEED_KEY ^ hash_scalar(&value));
				break;

			case WJB_VALUE:
				if (depth <= PAIR_DEPTH)
					callback(hash_combine64(path, hash_scalar(&value)), arg);
				break;

			case WJB_ELEM:
				if (depth <= PAIR_DEPTH)
					callback(hash_combine64(hash_combine64(paths[depth], SEED_ELEMENT),
											hash_scalar(&value)),
							 arg);
				break;

			default:
				break;
		}
	}
}

uint64
json_hash(Jsonb *object)
{
	JsonbIterator *it = JsonbIteratorInit(&object->root);
	JsonbIteratorToken token;
	JsonbValue value;
	uint64 hash = SEED_ROOT;

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		uint64 part;

		switch (token)
		{
			case WJB_BEGIN_OBJECT:
				part = SEED_OBJECT;
				break;
			case WJB_BEGIN_ARRAY:
				part = SEED_ARRAY;
				break;
			case WJB_END_OBJECT:
			case WJB_END_ARRAY:
				part = SEED_END;
				break;
			case WJB_KEY:
				part = SEED_KEY ^ hash_scalar(&value);
				break;
			default:
				part = hash_scalar(&value);
				break;
		}
		hash = hash_combine64(hash, part);
	}
	return hash;
}
