/*-------------------------------------------------------------------------
 *
 * event_fuzz.c
 *	  libFuzzer's way into the event parser.
 *
 * Beyond what the sanitizers see: columns keep to the contract's rules, and an
 * event as evstream writes it parses to the same columns again.
 *
 *-------------------------------------------------------------------------
 */
#include "../src/event.h"
#include "fuzz.h"

#define TRACE "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

static bool
same(EventText a, EventText b)
{
	if (a.data == NULL || b.data == NULL)
		return a.data == NULL && b.data == NULL;
	return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

static size_t
characters(EventText text)
{
	size_t n = 0;

	for (size_t i = 0; i < text.len; i++)
		n += ((unsigned char) text.data[i] & 0xC0) != 0x80;
	return n;
}

static void
check_text(EventText text, size_t min, size_t max, const char *rule)
{
	require(text.data == NULL || (event_text_valid(text.data, text.len) &&
								  characters(text) >= min && characters(text) <= max),
			rule);
}

/* -?(0|[1-9]\d{0,19})(\.\d{0,9}[1-9])?, and no -0 */
static void
check_amount(EventText amount)
{
	const char *p = amount.data;
	const char *end;
	const char *start;

	if (p == NULL)
		return;
	end = p + amount.len;
	require(amount.len > 0 && !(amount.len == 2 && memcmp(p, "-0", 2) == 0),
			"amount is no negative zero");
	if (*p == '-')
		p++;
	start = p;
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	require(p - start >= 1 && p - start <= EVENT_AMOUNT_INT_DIGITS, "amount's integer digits");
	require(*start != '0' || p - start == 1, "amount's leading zero");
	if (p == end)
		return;
	require(*p == '.', "amount's point");
	start = ++p;
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	require(p == end && p - start >= 1 && p - start <= EVENT_AMOUNT_FRACTION && p[-1] != '0',
			"amount's fraction");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	EventArena *arena = event_arena_create();
	EventLimits limits;
	Event event;
	Event again;
	EventText formatted;
	EventReason reason;
	char detail[EVENT_DETAIL_SIZE] = "";

	if (arena == NULL)
		return 0;
	memset(&limits, 0, sizeof(limits));
	limits.max_bytes = SIZE_MAX;
	limits.now_us = INT64_C(1795250000000000);
	limits.max_skew_us = INT64_C(86400000000);
	limits.record_us = size % 2 == 0 ? EVENT_NO_TIME : limits.now_us;
	if (size % 3 == 0)
	{
		limits.traceparent.data = TRACE;
		limits.traceparent.len = strlen(TRACE);
	}

	reason = event_parse((const char *) data, size, &limits, arena, &event, detail);
	if (reason != EVENT_OK)
	{
		require(detail[0] != '\0' && event_text_valid(detail, strlen(detail)),
				"a reason has a detail");
		require(event_reason_by_name(event_reason_name(reason)) == reason, "a reason has a name");
		event_arena_free(arena);
		return 0;
	}

	require(event.user_id.data != NULL && event.event_type.data != NULL &&
				event.properties.data != NULL,
			"required columns");
	check_text(event.user_id, 1, EVENT_USER_ID_MAX, "user_id");
	check_text(event.event_type, 1, EVENT_TYPE_MAX, "event_type");
	check_text(event.event_id, 1, EVENT_ID_MAX, "event_id");
	check_text(event.item_id, 0, EVENT_ITEM_ID_MAX, "item_id");
	check_text(event.user_tier, 0, SIZE_MAX, "user_tier");
	check_text(event.properties, 2, SIZE_MAX, "properties");
	require(event.properties.data[0] == '{' &&
				event.properties.data[event.properties.len - 1] == '}',
			"properties is an object");
	require(event.traceparent.data == NULL ||
				event_traceparent_valid(event.traceparent.data, event.traceparent.len),
			"traceparent");
	check_amount(event.amount);

	if (!event.event_id_is_uuid)
		memset(event.event_uuid, 0xAB, sizeof(event.event_uuid));
	formatted = event_format(&event, size % 5 == 0 ? "\"seq\": 1" : NULL, arena);
	require(formatted.data != NULL, "memory");
	reason = event_parse(formatted.data, formatted.len, &limits, arena, &again, detail);

	/* Members at the top level move one level down, into properties. */
	if (reason != EVENT_TOO_LARGE)
	{
		require(reason == EVENT_OK, "what was formatted parses");
		require(same(event.user_id, again.user_id) && same(event.event_type, again.event_type) &&
					same(event.item_id, again.item_id) && same(event.amount, again.amount) &&
					same(event.user_tier, again.user_tier) &&
					same(event.traceparent, again.traceparent),
				"the same columns");
		require(again.event_id_is_uuid && memcmp(event.event_uuid, again.event_uuid, 16) == 0,
				"the same id");
		require(event.occurred_us == again.occurred_us, "the same time");
		require(size % 5 == 0 || again.properties.len == 2 ||
					same(event.properties, again.properties),
				"the same properties");
	}
	event_arena_free(arena);
	return 0;
}
