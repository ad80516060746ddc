/*-------------------------------------------------------------------------
 *
 * jsonb_flat.c
 *	  jsonb from the text of a JSON object, without a tree where it is flat.
 *
 * Most properties are a few short strings and numbers: these are laid out
 * directly as convertToJsonb() of the server does it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/fmgrprotos.h"

#include "compat.h"
#include "event_json.h"
#include "jsonb_flat.h"
#include "jsonb_int.h"

#define FLAT_PAIRS     32
#define SHORT_INTEGERS 9 /* digits */

typedef struct FlatPair
{
	const char *key;
	uint32 key_len;
	JsonType type;
	const char *value; /* inside of a string, else its text */
	uint32 value_len;
	Numeric numeric;
	uint32 numeric_len;
} FlatPair;

Numeric
jsonb_number(const char *text, size_t len)
{
	bool negative = text[0] == '-';
	int64 value = 0;
	size_t i = negative ? 1 : 0;

	for (; i < len && len <= SHORT_INTEGERS && event_is_digit(text[i]); i++)
		value = value * 10 + (text[i] - '0');
	if (i == len)
		return int64_to_numeric(negative ? -value : value);
	return DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(pnstrdup(text, len)),
											   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

/*
 * Keeps the pairs sorted.  Of a key given twice the last one counts.
 */
static void
add_pair(FlatPair *pairs, int *npairs, const FlatPair *pair)
{
	int i = *npairs;

	while (i > 0)
	{
		int cmp = jsonb_key_cmp(pairs[i - 1].key, pairs[i - 1].key_len, pair->key, pair->key_len);

		if (cmp == 0)
		{
			pairs[i - 1] = *pair;
			return;
		}
		if (cmp < 0)
			break;
		i--;
	}
	memmove(&pairs[i + 1], &pairs[i], (*npairs - i) * sizeof(FlatPair));
	pairs[i] = *pair;
	(*npairs)++;
}

/* The pairs of a flat object; -1 if it is not flat, or has too many. */
static int
scan_pairs(const char *text, size_t len, FlatPair *pairs)
{
	JsonScan scan;
	JsonValue key;
	bool first = true;
	int npairs = 0;

	event_json_start(&scan, text, len, 2);
	if (event_json_peek(&scan) != '{' || !event_json_open(&scan))
		return -1;
	while (event_json_member(&scan, &first, &key))
	{
		FlatPair pair = {0};
		JsonValue value;
		int c = event_json_peek(&scan);

		if (npairs == FLAT_PAIRS || key.escaped || c == '{' || c == '[' ||
			!event_json_value(&scan, &value) || value.escaped)
			return -1;
		pair.key = key.data + 1;
		pair.key_len = (uint32) (key.len - 2);
		pair.type = value.type;
		pair.value = value.data;
		pair.value_len = (uint32) value.len;
		if (value.type == JSON_STRING)
		{
			pair.value++;
			pair.value_len -= 2;
		}
		add_pair(pairs, &npairs, &pair);
	}
	return scan.error == JSON_FINE ? npairs : -1;
}

Datum
jsonb_from_object(const char *text, size_t len)
{
	FlatPair pairs[FLAT_PAIRS];
	int npairs = scan_pairs(text, len, pairs);
	Size size;
	Jsonb *result;
	JEntry *entries;
	char *data;
	uint32 used = 0;

	if (npairs < 0)
	{
		result = jsonb_nested(text, len);
		return result != NULL ? JsonbPGetDatum(result)
							  : DirectFunctionCall1(jsonb_in, CStringGetDatum(pnstrdup(text, len)));
	}

	size = VARHDRSZ + sizeof(uint32) + 2 * npairs * sizeof(JEntry);
	for (int i = 0; i < npairs; i++)
	{
		FlatPair *pair = &pairs[i];

		size += pair->key_len;
		if (pair->type == JSON_STRING)
			size += pair->value_len;
		else if (pair->type == JSON_NUMBER)
		{
			pair->numeric = jsonb_number(pair->value, pair->value_len);
			pair->numeric_len = VARSIZE_ANY(pair->numeric);
			size += pair->numeric_len + sizeof(JEntry); /* and padding */
		}
	}

	result = palloc(size);
	result->root.header = npairs | JB_FOBJECT;
	entries = result->root.children;
	data = (char *) &entries[2 * npairs];
	for (int i = 0; i < npairs; i++)
	{
		memcpy(data + used, pairs[i].key, pairs[i].key_len);
		used += pairs[i].key_len;
		entries[i] = jsonb_entry(i, JENTRY_ISSTRING, pairs[i].key_len, used);
	}
	for (int i = 0; i < npairs; i++)
	{
		const FlatPair *pair = &pairs[i];
		uint32 begin = used;
		uint32 type = JENTRY_ISNULL;

		if (pair->type == JSON_STRING)
		{
			type = JENTRY_ISSTRING;
			memcpy(data + used, pair->value, pair->value_len);
			used += pair->value_len;
		}
		else if (pair->type == JSON_NUMBER)
		{
			type = JENTRY_ISNUMERIC;
			while (used % sizeof(JEntry) != 0)
				data[used++] = '\0';
			memcpy(data + used, pair->numeric, pair->numeric_len);
			used += pair->numeric_len;
		}
		else if (pair->type == JSON_BOOLEAN)
			type = pair->value[0] == 't' ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
		entries[npairs + i] = jsonb_entry(npairs + i, type, used - begin, used);
	}
	SET_VARSIZE(result, (data + used) - (char *) result);
	return JsonbPGetDatum(result);
}
