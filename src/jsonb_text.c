/*-------------------------------------------------------------------------
 *
 * jsonb_text.c
 *	  jsonb as JSON text.
 *
 * The server's own iterator takes memory for each container and looks at each
 * entry several times; here a container is walked where it stands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"

#include "event_json.h"
#include "jsonb_text.h"

#define SHORT_STRING 128 /* bytes */

static void
append_string(StringInfo out, const char *data, int len)
{
	char *end;

	/* the length of a short one is not worth to be known */
	enlargeStringInfo(out, (len <= SHORT_STRING ? len * EVENT_JSON_ESCAPED_MAX
												: (int) event_json_escaped_len(data, len)) +
							   2);
	out->data[out->len++] = '"';
	end = event_json_escape(out->data + out->len, data, len);
	*end++ = '"';
	*end = '\0';
	out->len = (int) (end - out->data);
}

/* The value of an entry that begins at `offset` and ends before `end` of data. */
static void
append_value(StringInfo out, JEntry entry, const char *data, uint32 offset, uint32 end)
{
	if (JBE_ISSTRING(entry))
		append_string(out, data + offset, (int) (end - offset));
	else if (JBE_ISNUMERIC(entry))
	{
		Datum number = PointerGetDatum(data + INTALIGN(offset));
		char *text = DatumGetCString(DirectFunctionCall1(numeric_out, number));

		appendBinaryStringInfo(out, text, (int) strlen(text));
		pfree(text);
	}
	else if (JBE_ISCONTAINER(entry))
		jsonb_append_text(out, (const JsonbContainer *) (data + INTALIGN(offset)));
	else if (JBE_ISBOOL_TRUE(entry))
		appendBinaryStringInfo(out, "true", 4);
	else if (JBE_ISBOOL_FALSE(entry))
		appendBinaryStringInfo(out, "false", 5);
	else if (JBE_ISNULL(entry))
		appendBinaryStringInfo(out, "null", 4);
	else
		elog(ERROR, "unexpected entry of a jsonb: %x", entry);
}

void
jsonb_append_text(StringInfo out, const JsonbContainer *container)
{
	int count = (int) JsonContainerSize(container);
	bool object = JsonContainerIsObject(container);
	bool bare = JsonContainerIsScalar(container); /* which jsonb keeps in an array */
	const JEntry *values = container->children + (object ? count : 0);
	const char *data = (const char *) (values + count);
	uint32 key = 0; /* where the next one begins */
	uint32 value = 0;

	check_stack_depth();
	/* the values of an object stand behind all of its keys */
	for (int i = 0; object && i < count; i++)
		JBE_ADVANCE_OFFSET(value, container->children[i]);
	if (!bare)
		appendStringInfoCharMacro(out, object ? '{' : '[');
	for (int i = 0; i < count; i++)
	{
		uint32 begin;

		if (i > 0)
			appendStringInfoCharMacro(out, ',');
		if (object)
		{
			begin = key;
			JBE_ADVANCE_OFFSET(key, container->children[i]);
			append_string(out, data + begin, (int) (key - begin));
			appendStringInfoCharMacro(out, ':');
		}
		begin = value;
		JBE_ADVANCE_OFFSET(value, values[i]);
		append_value(out, values[i], data, begin, value);
	}
	if (!bare)
		appendStringInfoCharMacro(out, object ? '}' : ']');
}
