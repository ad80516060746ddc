/*-------------------------------------------------------------------------
 *
 * jsonb_text.c
 *	  jsonb as JSON text.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "event_json.h"
#include "jsonb_text.h"

static void
append_string(StringInfo out, const char *data, int len)
{
	char *end;

	enlargeStringInfo(out, (int) event_json_escaped_len(data, len) + 2);
	out->data[out->len++] = '"';
	end = event_json_escape(out->data + out->len, data, len);
	*end++ = '"';
	*end = '\0';
	out->len = (int) (end - out->data);
}

static void
append_scalar(StringInfo out, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			appendBinaryStringInfo(out, "null", 4);
			break;
		case jbvString:
			append_string(out, value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			appendStringInfoString(out, DatumGetCString(DirectFunctionCall1(
											numeric_out, NumericGetDatum(value->val.numeric))));
			break;
		case jbvBool:
			if (value->val.boolean)
				appendBinaryStringInfo(out, "true", 4);
			else
				appendBinaryStringInfo(out, "false", 5);
			break;
		default:
			elog(ERROR, "unexpected type of a JSON scalar: %d", (int) value->type);
	}
}

void
jsonb_append_text(StringInfo out, JsonbContainer *container)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue value;
	bool comma = false; /* before the next element or key */
	bool bare = false;  /* a scalar, which jsonb keeps in an array */

	while ((token = JsonbIteratorNext(&it, &value, false)) != WJB_DONE)
	{
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
			case WJB_BEGIN_OBJECT:
				if (comma)
					appendStringInfoCharMacro(out, ',');
				comma = false;
				bare = token == WJB_BEGIN_ARRAY && value.val.array.rawScalar;
				if (!bare)
					appendStringInfoCharMacro(out, token == WJB_BEGIN_ARRAY ? '[' : '{');
				break;
			case WJB_END_ARRAY:
			case WJB_END_OBJECT:
				if (!bare)
					appendStringInfoCharMacro(out, token == WJB_END_ARRAY ? ']' : '}');
				comma = true;
				break;
			case WJB_KEY:
				if (comma)
					appendStringInfoCharMacro(out, ',');
				append_scalar(out, &value);
				appendStringInfoCharMacro(out, ':');
				comma = false;
				break;
			case WJB_VALUE:
			case WJB_ELEM:
				if (comma)
					appendStringInfoCharMacro(out, ',');
				append_scalar(out, &value);
				comma = true;
				break;
			default:
				elog(ERROR, "unexpected token of a jsonb: %d", (int) token);
		}
	}
}
