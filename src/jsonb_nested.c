/*-------------------------------------------------------------------------
 *
 * jsonb_nested.c
 *	  jsonb from the text of a JSON object with containers or escapes in it.
 *
 * As convertToJsonb() of the server lays it out: each container is its header,
 * an entry for each key and value, and their data, aligned where it is a
 * number or a container again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "event_json.h"
#include "jsonb_int.h"

/* Beyond these the server's way is as good: a container's text is looked at once for each around it. */
#define NESTED_BYTES (64 * 1024)
#define NESTED_DEPTH 16
#define NESTED_PAIRS 100

typedef struct Member
{
	const char *key; /* without escapes; NULL in an array */
	uint32 key_len;
	JsonValue value;
} Member;

typedef struct Builder
{
	StringInfoData out;
	Member *members; /* of all containers that are open */
	int nmembers;
	int allocated;
	int depth;
} Builder;

static bool put_container(Builder *builder, const JsonValue *container);

/* ---- the members of a container ---- */

static Member *
new_member(Builder *builder)
{
	if (builder->nmembers == builder->allocated)
	{
		builder->allocated *= 2;
		builder->members = repalloc(builder->members, builder->allocated * sizeof(Member));
	}
	return &builder->members[builder->nmembers++];
}

/* Keeps those from the first one on sorted.  Of a key given twice the last one counts. */
static void
add_pair(Builder *builder, int first, const Member *pair)
{
	Member *members;
	int i;

	(void) new_member(builder);
	members = builder->members;
	for (i = builder->nmembers - 1; i > first; i--)
	{
		const Member *before = &members[i - 1];
		int cmp = jsonb_key_cmp(before->key, before->key_len, pair->key, pair->key_len);

		if (cmp == 0)
		{
			members[i - 1] = *pair;
			builder->nmembers--;
			memmove(&members[i], &members[i + 1], (builder->nmembers - i) * sizeof(Member));
			return;
		}
		if (cmp < 0)
			break;
		members[i] = members[i - 1];
	}
	members[i] = *pair;
}

static void
set_key(Member *pair, const JsonValue *key)
{
	pair->key = key->data + 1;
	pair->key_len = (uint32) (key->len - 2);
	if (key->escaped)
	{
		char *plain = palloc(pair->key_len);

		pair->key_len = (uint32) event_json_unescape(pair->key, pair->key_len, plain);
		pair->key = plain;
	}
}

/* False if there are too many, or something is wrong, which the server shall say. */
static bool
scan_members(Builder *builder, const JsonValue *container)
{
	bool is_object = container->type == JSON_OBJECT;
	int before = builder->nmembers;
	bool first = true;
	JsonScan scan;

	event_json_start(&scan, container->data, container->len, JSON_DEPTH_LIMIT);
	(void) event_json_open(&scan);
	if (is_object)
	{
		Member pair;
		JsonValue key;

		while (event_json_member(&scan, &first, &key))
		{
			if (builder->nmembers - before == NESTED_PAIRS || !event_json_value(&scan, &pair.value))
				return false;
			set_key(&pair, &key);
			add_pair(builder, before, &pair);
		}
	}
	else
	{
		while (event_json_element(&scan, &first))
		{
			Member *member = new_member(builder);

			member->key = NULL;
			if (!event_json_value(&scan, &member->value))
				return false;
		}
	}
	return scan.error == JSON_FINE;
}

/* ---- their data ---- */

static void
pad(StringInfo out)
{
	enlargeStringInfo(out, sizeof(JEntry));
	while (out->len % sizeof(JEntry) != 0)
		out->data[out->len++] = '\0';
}

static void
put_bytes(StringInfo out, const void *data, uint32 len)
{
	enlargeStringInfo(out, len);
	memcpy(out->data + out->len, data, len);
	out->len += len;
}

static void
put_string(StringInfo out, const JsonValue *string)
{
	if (!string->escaped)
	{
		put_bytes(out, string->data + 1, string->len - 2);
		return;
	}
	enlargeStringInfo(out, string->len);
	out->len += event_json_unescape(string->data + 1, string->len - 2, out->data + out->len);
}

/* *type is that of the entry; false as put_container(). */
static bool
put_value(Builder *builder, const JsonValue *value, uint32 *type)
{
	Numeric numeric;

	switch (value->type)
	{
		case JSON_STRING:
			*type = JENTRY_ISSTRING;
			put_string(&builder->out, value);
			return true;
		case JSON_NUMBER:
			*type = JENTRY_ISNUMERIC;
			numeric = jsonb_number(value->data, value->len);
			pad(&builder->out);
			put_bytes(&builder->out, numeric, VARSIZE_ANY(numeric));
			return true;
		case JSON_BOOLEAN:
			*type = value->data[0] == 't' ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE;
			return true;
		case JSON_NULL:
			*type = JENTRY_ISNULL;
			return true;
		default:
			*type = JENTRY_ISCONTAINER;
			return put_container(builder, value);
	}
}

/* False: it is too much for us, or wrong. */
static bool
put_container(Builder *builder, const JsonValue *container)
{
	StringInfo out = &builder->out;
	bool is_object = container->type == JSON_OBJECT;
	int first = builder->nmembers;
	uint32 header;
	int nmembers;
	int nkeys;
	int entries;
	uint32 data;

	if (builder->depth == NESTED_DEPTH || !scan_members(builder, container))
		return false;
	builder->depth++;
	nmembers = builder->nmembers - first;
	nkeys = is_object ? nmembers : 0;

	pad(out);
	header = nmembers | (is_object ? JB_FOBJECT : JB_FARRAY);
	put_bytes(out, &header, sizeof(header));
	entries = out->len;
	enlargeStringInfo(out, (nkeys + nmembers) * sizeof(JEntry));
	out->len += (nkeys + nmembers) * sizeof(JEntry);

	data = out->len;
	for (int i = 0; i < nkeys + nmembers; i++)
	{
		/* a copy, as there may come more */
		Member member = builder->members[first + (i < nkeys ? i : i - nkeys)];
		uint32 begin = out->len;
		uint32 type = JENTRY_ISSTRING;
		JEntry entry;

		if (i < nkeys)
			put_bytes(out, member.key, member.key_len);
		else if (!put_value(builder, &member.value, &type))
			return false;
		entry = jsonb_entry(i, type, out->len - begin, out->len - data);
		memcpy(out->data + entries + i * sizeof(JEntry), &entry, sizeof(JEntry));
	}
	builder->nmembers = first;
	builder->depth--;
	return true;
}

Jsonb *
jsonb_nested(const char *text, size_t len)
{
	JsonValue root = {.data = text, .len = len, .type = JSON_OBJECT};
	Builder builder = {.allocated = 64};
	Jsonb *result = NULL;

	if (len > NESTED_BYTES)
		return NULL;
	builder.members = palloc(builder.allocated * sizeof(Member));
	initStringInfo(&builder.out);
	/* for the length */
	builder.out.len = VARHDRSZ;
	if (put_container(&builder, &root))
	{
		result = palloc(builder.out.len);
		memcpy(result, builder.out.data, builder.out.len);
		SET_VARSIZE(result, builder.out.len);
	}
	pfree(builder.out.data);
	pfree(builder.members);
	return result;
}
