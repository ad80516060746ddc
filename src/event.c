/*-------------------------------------------------------------------------
 *
 * event.c
 *	  From the bytes of a record to an event, or to the reason why not.
 *
 * One pass finds the members of the top-level object and the few members of
 * "properties" that may become columns; the rules then look at these places
 * only.  Texts are copied only where an escape has to be resolved.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <string.h>

#include "event.h"
#include "event_json.h"
#include "event_value.h"

/* ------------------------------------------------------------ known names */

/* Each field's names, the first present one wins; fields are ranges. */
static const char *const names[] = {"user_id",
									"userId",
									"distinct_id",
									"anonymousId",
									"event_type",
									"eventType",
									"activity_type",
									"action",
									"event",
									"type",
									"event_id",
									"eventId",
									"message_id",
									"messageId",
									"uuid",
									"idempotency_key",
									"occurred_at",
									"timestamp",
									"originalTimestamp",
									"event_time",
									"ts",
									"created_at",
									"item_id",
									"itemId",
									"product_id",
									"amount",
									"user_tier",
									"userTier",
									"traceparent",
									"properties"};

#define N_NAMES ((int) (sizeof(names) / sizeof(names[0])))

typedef struct Field
{
	int first; /* index into names */
	int last;
} Field;

static const Field USER_ID = {0, 3};
static const Field EVENT_TYPE = {4, 9};
static const Field EVENT_ID = {10, 15};
static const Field OCCURRED_AT = {16, 21};
static const Field ITEM_ID = {22, 24};
static const Field AMOUNT = {25, 25};
static const Field USER_TIER = {26, 27};
static const Field TRACEPARENT = {28, 28};

#define NAME_PROPERTIES 29

/* The names that also count inside properties. */
#define INNER_FIRST 22
#define INNER_LAST  27

#define NO_NAME      (-1)
#define NAME_LEN_MAX 17

/* Indexes into names by length, each list ended by NO_NAME. */
static const signed char names_by_len[NAME_LEN_MAX + 1][7] = {{NO_NAME},
															  {NO_NAME},
															  {20, NO_NAME},
															  {NO_NAME},
															  {9, 14, NO_NAME},
															  {8, NO_NAME},
															  {7, 25, 1, 23, NO_NAME},
															  {0, 22, 11, NO_NAME},
															  {10, 27, NO_NAME},
															  {17, 26, 5, 13, NO_NAME},
															  {29, 4, 24, 21, 19, 12, NO_NAME},
															  {16, 28, 2, 3, NO_NAME},
															  {NO_NAME},
															  {6, NO_NAME},
															  {NO_NAME},
															  {15, NO_NAME},
															  {NO_NAME},
															  {18, NO_NAME}};

static int
find_name(const char *text, size_t len)
{
	const signed char *candidate;

	if (len > NAME_LEN_MAX)
		return NO_NAME;
	for (candidate = names_by_len[len]; *candidate != NO_NAME; candidate++)
	{
		const char *name = names[*candidate];

		if (name[0] == text[0] && memcmp(name, text, len) == 0)
			return *candidate;
	}
	return NO_NAME;
}

/*
 * The known name that a key is, after its escapes are resolved.
 */
static int
key_name(const JsonValue *key)
{
	char buf[NAME_LEN_MAX * 6];
	size_t len = key->len - 2;

	if (!key->escaped)
		return find_name(key->data + 1, len);
	if (len > sizeof(buf))
		return NO_NAME;
	len = event_json_unescape(key->data + 1, len, buf);
	return find_name(buf, len);
}

/* ---------------------------------------------------------------- parsing */

/* A member of the top-level object. */
typedef struct Member
{
	const char *key; /* its opening quote */
	JsonValue value;
	int name;    /* index into names, or NO_NAME */
	bool column; /* its value went into a column */
} Member;

#define FIRST_MEMBERS 32

typedef struct Parse
{
	JsonScan scan;
	const EventLimits *limits;
	EventArena *arena;
	Event *event;
	char *detail;

	Member *members;
	int n_members;
	int room;                                      /* for members */
	int last[N_NAMES];                             /* the member that counts, or -1 */
	JsonValue inner[INNER_LAST - INNER_FIRST + 1]; /* JSON_NONE: absent */

	Member first_members[FIRST_MEMBERS];
} Parse;

static EventReason
refuse(Parse *parse, EventReason reason, const char *detail)
{
	if (parse->detail != NULL)
		snprintf(parse->detail, EVENT_DETAIL_SIZE, "%s", detail);
	return reason;
}

/*
 * Refuse for what stands under a known name; rule goes on from it.
 */
static EventReason
refuse_name(Parse *parse, EventReason reason, int name, const char *rule)
{
	if (parse->detail != NULL)
		snprintf(parse->detail, EVENT_DETAIL_SIZE, "\"%s\" %s", names[name], rule);
	return reason;
}

static EventReason
no_memory(Parse *parse)
{
	return refuse(parse, EVENT_NO_MEMORY, "out of memory");
}

static EventReason
refuse_scan(Parse *parse)
{
	JsonScan *scan = &parse->scan;

	if (scan->error == JSON_TOO_DEEP)
	{
		if (parse->detail != NULL)
			snprintf(parse->detail, EVENT_DETAIL_SIZE, "the JSON is nested deeper than %d",
					 scan->max_depth);
		return EVENT_TOO_LARGE;
	}
	if (parse->detail != NULL)
		snprintf(parse->detail, EVENT_DETAIL_SIZE, "%s, at byte %zu", scan->message,
				 (size_t) (scan->pos - scan->start) + 1);
	return EVENT_NOT_JSON;
}

static Member *
add_member(Parse *parse)
{
	if (parse->n_members == parse->room)
	{
		Member *members;

		if (parse->room > INT32_MAX / 2 / (int) sizeof(Member))
			return NULL;
		members = event_arena_alloc(parse->arena, 2 * sizeof(Member) * (size_t) parse->room);
		if (members == NULL)
			return NULL;
		memcpy(members, parse->members, sizeof(Member) * (size_t) parse->n_members);
		parse->members = members;
		parse->room *= 2;
	}
	return &parse->members[parse->n_members++];
}

/*
 * Scan the object that is the value of properties, and keep the places of the
 * members that may become columns.
 */
static bool
scan_properties(Parse *parse, JsonValue *value)
{
	JsonScan *scan = &parse->scan;
	JsonValue key;
	JsonValue member;
	bool first = true;

	value->data = scan->pos;
	value->type = JSON_OBJECT;
	value->escaped = false;
	value->unholdable = false;
	if (!event_json_open(scan))
		return false;
	while (event_json_member(scan, &first, &key))
	{
		int name = key_name(&key);

		if (!event_json_value(scan, &member))
			return false;
		if (name >= INNER_FIRST && name <= INNER_LAST)
			parse->inner[name - INNER_FIRST] = member;
	}
	value->len = (size_t) (scan->pos - value->data);
	return scan->error == JSON_FINE;
}

/*
 * Scan the whole value: syntax, depth, text, and where the members are.
 */
static EventReason
scan_event(Parse *parse)
{
	JsonScan *scan = &parse->scan;
	JsonValue key;
	bool first = true;
	int c = event_json_peek(scan);

	if (c < 0)
		return refuse(parse, EVENT_NOT_JSON, "the value is empty");
	if (c != '{')
	{
		JsonValue value;

		if (!event_json_value(scan, &value) || !event_json_finish(scan))
			return refuse_scan(parse);
		return refuse(parse, EVENT_NOT_OBJECT, "the JSON value is not an object");
	}

	if (!event_json_open(scan))
		return refuse_scan(parse);
	while (event_json_member(scan, &first, &key))
	{
		Member *member = add_member(parse);
		bool scanned;

		if (member == NULL)
			return no_memory(parse);
		member->key = key.data;
		member->column = false;
		member->name = key_name(&key);
		if (member->name != NO_NAME)
			parse->last[member->name] = parse->n_members - 1;

		if (member->name == NAME_PROPERTIES)
		{
			memset(parse->inner, 0, sizeof(parse->inner));
			if (event_json_peek(scan) == '{')
				scanned = scan_properties(parse, &member->value);
			else
				scanned = event_json_value(scan, &member->value);
		}
		else
			scanned = event_json_value(scan, &member->value);
		if (!scanned)
			return refuse_scan(parse);
	}
	if (scan->error != JSON_FINE || !event_json_finish(scan))
		return refuse_scan(parse);
	if (scan->bad_text)
		return refuse(parse, EVENT_BAD_TEXT,
					  "a string holds a NUL, invalid UTF-8 or a lone surrogate");
	return EVENT_OK;
}

/*
 * The next present alias of a field from name on, that is one which is not
 * null, at the top level; or NULL.
 */
static Member *
find_member(Parse *parse, int name, int last)
{
	for (; name <= last; name++)
	{
		if (parse->last[name] >= 0)
		{
			Member *member = &parse->members[parse->last[name]];

			if (member->value.type != JSON_NULL)
				return member;
		}
	}
	return NULL;
}

static Member *
find_field(Parse *parse, Field field)
{
	return find_member(parse, field.first, field.last);
}

/* The same inside properties. */
static const JsonValue *
find_inner(Parse *parse, int name, int last, int *found)
{
	for (; name <= last; name++)
	{
		const JsonValue *value = &parse->inner[name - INNER_FIRST];

		if (value->type != JSON_NONE && value->type != JSON_NULL)
		{
			*found = name;
			return value;
		}
	}
	return NULL;
}

/*
 * The text of a scanned string; false when memory ran out.
 */
static bool
string_text(Parse *parse, const JsonValue *value, EventText *text)
{
	text->data = value->data + 1;
	text->len = value->len - 2;
	if (value->escaped)
	{
		char *copy = event_arena_alloc(parse->arena, text->len);

		if (copy == NULL)
			return false;
		text->len = event_json_unescape(text->data, text->len, copy);
		text->data = copy;
	}
	return true;
}

/*
 * The decimal text of a scanned number, where it is written as an integer.
 */
static bool
integer_text(const JsonValue *value, EventText *text)
{
	for (size_t i = 0; i < value->len; i++)
	{
		if (value->data[i] == '.' || value->data[i] == 'e' || value->data[i] == 'E')
			return false;
	}
	text->data = value->data;
	text->len = value->len;
	if (text->len == 2 && memcmp(text->data, "-0", 2) == 0)
	{
		text->data++;
		text->len--;
	}
	return true;
}

/*
 * A text of min to max characters, or an integer where that is allowed.
 * *usable says whether it is one; false when memory ran out.
 */
static bool
limited_text(Parse *parse, const JsonValue *value, bool integers, size_t min, size_t max,
			 EventText *text, bool *usable)
{
	*usable = false;
	if (value->type == JSON_STRING)
	{
		if (!string_text(parse, value, text))
			return false;
		*usable = text->len >= min && event_utf8_fits(text->data, text->len, max);
	}
	else if (value->type == JSON_NUMBER && integers)
		*usable = integer_text(value, text) && text->len <= max;
	return true;
}

static EventReason
take_ids(Parse *parse)
{
	Event *event = parse->event;
	Member *member;
	bool usable;

	member = find_field(parse, USER_ID);
	if (member == NULL)
		return refuse(parse, EVENT_BAD_USER_ID, "\"user_id\" is missing");
	if (!limited_text(parse, &member->value, true, 1, EVENT_USER_ID_MAX, &event->user_id, &usable))
		return no_memory(parse);
	if (!usable)
		return refuse_name(parse, EVENT_BAD_USER_ID, member->name,
						   "is neither a string of 1 to 255 characters nor an integer");
	member->column = true;

	member = find_field(parse, EVENT_TYPE);
	if (member == NULL)
		return refuse(parse, EVENT_BAD_EVENT_TYPE, "\"event_type\" is missing");
	if (!limited_text(parse, &member->value, false, 1, EVENT_TYPE_MAX, &event->event_type, &usable))
		return no_memory(parse);
	if (!usable)
		return refuse_name(parse, EVENT_BAD_EVENT_TYPE, member->name,
						   "is not a string of 1 to 100 characters");
	member->column = true;

	member = find_field(parse, EVENT_ID);
	if (member != NULL)
	{
		if (!limited_text(parse, &member->value, false, 1, EVENT_ID_MAX, &event->event_id, &usable))
			return no_memory(parse);
		if (!usable)
			return refuse_name(parse, EVENT_BAD_EVENT_ID, member->name,
							   "is not a string of 1 to 255 characters");
		event->event_id_is_uuid =
			event_parse_uuid(event->event_id.data, event->event_id.len, event->event_uuid);
		member->column = true;
	}
	return EVENT_OK;
}

static EventReason
take_time(Parse *parse)
{
	Event *event = parse->event;
	const EventLimits *limits = parse->limits;
	Member *member = find_field(parse, OCCURRED_AT);
	int64_t latest;

	event->occurred_us = limits->record_us;
	if (member != NULL)
	{
		const JsonValue *value = &member->value;

		if (value->type == JSON_STRING)
		{
			EventText text;

			if (!string_text(parse, value, &text))
				return no_memory(parse);
			if (!event_parse_time(text.data, text.len, &event->occurred_us))
				return refuse_name(parse, EVENT_BAD_TIMESTAMP, member->name,
								   "is no RFC 3339 time of the years 0001 to 9999");
		}
		else if (value->type == JSON_NUMBER)
		{
			if (value->unholdable || !event_epoch(value->data, value->len, &event->occurred_us))
				return refuse_name(parse, EVENT_BAD_TIMESTAMP, member->name,
								   "is outside the years 0001 to 9999");
		}
		else
			return refuse_name(parse, EVENT_BAD_TIMESTAMP, member->name,
							   "is neither a string nor a number");
		member->column = true;
	}
	else if (event->occurred_us == EVENT_NO_TIME)
		return EVENT_OK;

	if (__builtin_add_overflow(limits->now_us, limits->max_skew_us, &latest))
		latest = INT64_MAX;
	if (event->occurred_us > latest)
	{
		if (member != NULL)
			return refuse_name(parse, EVENT_FUTURE_TIMESTAMP, member->name,
							   "is too far in the future");
		return refuse(parse, EVENT_FUTURE_TIMESTAMP,
					  "the record's own time is too far in the future");
	}
	if (event->occurred_us < EVENT_TIME_MIN || event->occurred_us > EVENT_TIME_MAX)
		return refuse(parse, EVENT_BAD_TIMESTAMP,
					  "the record's own time is outside the years 0001 to 9999");
	return EVENT_OK;
}

/*
 * Is it plain already: no exponent, no superfluous zeros, within the limits?
 */
static bool
is_plain_amount(const char *data, size_t len)
{
	JsonNumber number;

	if (event_json_take_number(data, data + len, &number) != data + len)
		return false;
	if (number.int_len > EVENT_AMOUNT_INT_DIGITS || number.fraction_len > EVENT_AMOUNT_FRACTION)
		return false;
	if (number.fraction_len == 0)
		return event_is_digit(data[len - 1]) && number.int_start + number.int_len == data + len &&
			   !(number.negative && *number.int_start == '0');
	return number.fraction + number.fraction_len == data + len && data[len - 1] != '0';
}

/*
 * The amount that a number, or a string that holds one, stands for.  *usable
 * says whether it is one within range; false when memory ran out.
 */
static bool
take_amount_value(Parse *parse, const JsonValue *value, bool *usable)
{
	EventText text;
	char *plain;

	*usable = false;
	if (value->type == JSON_NUMBER && !value->unholdable)
	{
		text.data = value->data;
		text.len = value->len;
	}
	else if (value->type == JSON_STRING)
	{
		if (!string_text(parse, value, &text))
			return false;
		if (!event_is_number(text.data, text.len))
			return true;
	}
	else
		return true;

	if (!is_plain_amount(text.data, text.len))
	{
		plain =
			event_arena_alloc(parse->arena, EVENT_AMOUNT_INT_DIGITS + EVENT_AMOUNT_FRACTION + 3);
		if (plain == NULL)
			return false;
		text.len = event_decimal(text.data, text.len, EVENT_AMOUNT_INT_DIGITS,
								 EVENT_AMOUNT_FRACTION, plain);
		text.data = plain;
		if (text.len == 0)
			return true;
	}
	parse->event->amount = text;
	*usable = true;
	return true;
}

static EventReason
take_amount(Parse *parse)
{
	Member *member = find_field(parse, AMOUNT);
	const JsonValue *value;
	bool usable;
	int found;

	if (member != NULL)
	{
		if (!take_amount_value(parse, &member->value, &usable))
			return no_memory(parse);
		if (!usable)
			return refuse(parse, EVENT_BAD_AMOUNT,
						  "\"amount\" is no number of at most 20 digits before the point");
		member->column = true;
		return EVENT_OK;
	}
	value = find_inner(parse, AMOUNT.first, AMOUNT.last, &found);
	if (value != NULL && !take_amount_value(parse, value, &usable))
		return no_memory(parse);
	return EVENT_OK;
}

/*
 * item_id and user_tier: the first usable alias, at the top level or else in
 * properties.
 */
static bool
take_loose_field(Parse *parse, Field field, bool integers, size_t max, EventText *text)
{
	Member *member;
	const JsonValue *value;
	EventText candidate;
	bool usable;
	int name = field.first;

	while ((member = find_member(parse, name, field.last)) != NULL)
	{
		if (!limited_text(parse, &member->value, integers, 0, max, &candidate, &usable))
			return false;
		if (usable)
		{
			*text = candidate;
			member->column = true;
			return true;
		}
		name = member->name + 1;
	}

	name = field.first;
	while ((value = find_inner(parse, name, field.last, &name)) != NULL)
	{
		if (!limited_text(parse, value, integers, 0, max, &candidate, &usable))
			return false;
		if (usable)
		{
			*text = candidate;
			return true;
		}
		name++;
	}
	return true;
}

static bool
take_traceparent(Parse *parse)
{
	Member *member = find_field(parse, TRACEPARENT);
	EventText header = parse->limits->traceparent;
	EventText body;

	if (header.data != NULL && event_traceparent_valid(header.data, header.len))
		parse->event->traceparent = header;
	if (member == NULL || member->value.type != JSON_STRING)
		return true;
	if (!string_text(parse, &member->value, &body))
		return false;
	if (!event_traceparent_valid(body.data, body.len))
		return true;

	/* Our own records have it twice, in the header and in the body. */
	if (parse->event->traceparent.data == NULL)
		parse->event->traceparent = body;
	else if (memcmp(body.data, header.data, body.len) != 0)
		return true;
	member->column = true;
	return true;
}

/*
 * Does this member go to properties?  Not if it is a column, a null under a
 * known name, or one that a later member of the same name replaces.
 */
static inline bool
goes_to_properties(const Parse *parse, const Member *member)
{
	if (member->name == NO_NAME)
		return true;
	return !member->column && member->value.type != JSON_NULL &&
		   parse->last[member->name] == member - parse->members;
}

static EventReason
take_properties(Parse *parse)
{
	EventText *properties = &parse->event->properties;
	Member *inner = find_member(parse, NAME_PROPERTIES, NAME_PROPERTIES);
	size_t size = 2;
	char *out;

	if (inner != NULL && inner->value.type != JSON_OBJECT)
		return refuse(parse, EVENT_BAD_PROPERTIES, "\"properties\" is not an object");
	if (parse->scan.bad_number)
		return refuse(parse, EVENT_BAD_PROPERTIES,
					  "a number is too large or too finely divided for numeric");
	if (inner != NULL)
		inner->column = true;

	for (int i = 0; i < parse->n_members; i++)
	{
		const Member *member = &parse->members[i];

		if (goes_to_properties(parse, member))
			size += (size_t) (member->value.data + member->value.len - member->key) + 1;
	}
	if (inner != NULL && (size == 2 || !event_json_is_blank(inner->value.data, inner->value.len)))
	{
		properties->data = inner->value.data;
		properties->len = inner->value.len;
		if (size == 2)
			return EVENT_OK;
		size += inner->value.len;
	}
	else
	{
		inner = NULL;
		properties->data = "{}";
		properties->len = 2;
		if (size == 2)
			return EVENT_OK;
	}

	out = event_arena_alloc(parse->arena, size);
	if (out == NULL)
		return no_memory(parse);
	properties->data = out;
	for (int i = 0; i < parse->n_members; i++)
	{
		const Member *member = &parse->members[i];
		size_t len;

		if (!goes_to_properties(parse, member))
			continue;
		len = (size_t) (member->value.data + member->value.len - member->key);
		*out = out == properties->data ? '{' : ',';
		memcpy(out + 1, member->key, len);
		out += len + 1;
	}

	/* Behind them, so that in jsonb the ones inside properties win. */
	if (inner != NULL)
	{
		*out++ = ',';
		memcpy(out, inner->value.data + 1, inner->value.len - 1);
		out += inner->value.len - 1;
	}
	else
		*out++ = '}';
	properties->len = (size_t) (out - properties->data);
	return EVENT_OK;
}

EventReason
event_parse(const char *value, size_t len, const EventLimits *limits, EventArena *arena,
			Event *event, char *detail)
{
	Parse parse;
	EventReason reason;

	parse.limits = limits;
	parse.arena = arena;
	parse.event = event;
	parse.detail = detail;
	if (len > limits->max_bytes)
	{
		if (detail != NULL)
			snprintf(detail, EVENT_DETAIL_SIZE,
					 "the value has %zu bytes, and at most %zu are allowed", len,
					 limits->max_bytes);
		return EVENT_TOO_LARGE;
	}
	if (len == 0)
		return refuse(&parse, EVENT_NOT_JSON, "the value is empty");

	/* The frame of a schema registry: a zero byte and the schema's number. */
	if (value[0] == 0 && len >= 5)
	{
		value += 5;
		len -= 5;
	}

	event_json_start(&parse.scan, value, len, EVENT_DEPTH_MAX);
	parse.members = parse.first_members;
	parse.n_members = 0;
	parse.room = FIRST_MEMBERS;
	memset(parse.last, -1, sizeof(parse.last));
	memset(parse.inner, 0, sizeof(parse.inner));
	memset(event, 0, sizeof(*event));

	reason = scan_event(&parse);
	event->depth = parse.scan.deepest;
	if (reason == EVENT_OK)
		reason = take_ids(&parse);
	if (reason == EVENT_OK)
		reason = take_time(&parse);
	if (reason == EVENT_OK)
		reason = take_amount(&parse);
	if (reason != EVENT_OK)
		return reason;
	if (!take_loose_field(&parse, ITEM_ID, true, EVENT_ITEM_ID_MAX, &event->item_id) ||
		!take_loose_field(&parse, USER_TIER, false, SIZE_MAX / 4, &event->user_tier) ||
		!take_traceparent(&parse))
		return no_memory(&parse);
	return take_properties(&parse);
}
