/*-------------------------------------------------------------------------
 *
 * event_format.c
 *	  An event as evstream itself writes it, and the reasons' names.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "event.h"
#include "event_json.h"

#define SHORT_STRING 128 /* bytes */

static const char *const reason_names[] = {[EVENT_OK] = "ok",
										   [EVENT_NOT_JSON] = "not_json",
										   [EVENT_NOT_OBJECT] = "not_object",
										   [EVENT_BAD_TEXT] = "bad_text",
										   [EVENT_TOO_LARGE] = "too_large",
										   [EVENT_BAD_USER_ID] = "bad_user_id",
										   [EVENT_BAD_EVENT_TYPE] = "bad_event_type",
										   [EVENT_BAD_EVENT_ID] = "bad_event_id",
										   [EVENT_BAD_TIMESTAMP] = "bad_timestamp",
										   [EVENT_FUTURE_TIMESTAMP] = "future_timestamp",
										   [EVENT_BAD_AMOUNT] = "bad_amount",
										   [EVENT_BAD_PROPERTIES] = "bad_properties",
										   [EVENT_REFUSED] = "refused",
										   [EVENT_CRASHED] = "crashed",
										   [EVENT_NO_MEMORY] = "out_of_memory"};

const char *
event_reason_name(EventReason reason)
{
	return reason_names[reason];
}

EventReason
event_reason_by_name(const char *name)
{
	for (int i = EVENT_NOT_JSON; i <= EVENT_CRASHED; i++)
	{
		if (strcmp(name, reason_names[i]) == 0)
			return (EventReason) i;
	}
	return EVENT_OK;
}

static char *
put(char *out, const char *text, size_t len)
{
	memcpy(out, text, len);
	return out + len;
}

/* ,"name": and the member's text, in quotes; nothing for an absent one. */
static char *
put_string(char *out, const char *name, EventText text)
{
	if (text.data == NULL)
		return out;
	*out++ = ',';
	*out++ = '"';
	out = put(out, name, strlen(name));
	out = put(out, "\":\"", 3);
	out = event_json_escape(out, text.data, text.len);
	*out++ = '"';
	return out;
}

static char *
put_raw(char *out, const char *name, EventText text)
{
	*out++ = ',';
	*out++ = '"';
	out = put(out, name, strlen(name));
	out = put(out, "\":", 2);
	return put(out, text.data, text.len);
}

EventText
event_format(const Event *event, const char *extra, EventArena *arena)
{
	const EventText *strings[] = {&event->user_id, &event->event_type, &event->item_id,
								  &event->user_tier, &event->traceparent};
	char uuid[37];
	size_t size = 256; /* names, quotes, id and time */
	EventText result = {NULL, 0};
	char *out;

	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
	{
		/* the length of a short one is not worth to be known */
		if (strings[i]->len <= SHORT_STRING)
			size += strings[i]->len * EVENT_JSON_ESCAPED_MAX;
		else
			size += event_json_escaped_len(strings[i]->data, strings[i]->len);
	}
	size += event->amount.len + event->properties.len;
	if (extra != NULL)
		size += strlen(extra);
	out = event_arena_alloc(arena, size);
	if (out == NULL)
		return result;
	result.data = out;

	event_format_uuid(event->event_uuid, uuid);
	out = put(out, "{\"event_id\":\"", 13);
	out = put(out, uuid, 36);
	*out++ = '"';
	out = put_string(out, "user_id", event->user_id);
	out = put_string(out, "event_type", event->event_type);
	if (event->occurred_us != EVENT_NO_TIME)
	{
		char time[33];
		EventText text;

		text.data = time;
		text.len = event_format_time(event->occurred_us, time);
		out = put_string(out, "occurred_at", text);
	}
	out = put_string(out, "item_id", event->item_id);
	if (event->amount.data != NULL)
		out = put_raw(out, "amount", event->amount);
	out = put_string(out, "user_tier", event->user_tier);
	out = put_string(out, "traceparent", event->traceparent);
	if (event->properties.data != NULL &&
		!event_json_is_blank(event->properties.data, event->properties.len))
		out = put_raw(out, "properties", event->properties);
	if (extra != NULL && extra[0] != '\0')
	{
		*out++ = ',';
		out = put(out, extra, strlen(extra));
	}
	*out++ = '}';
	result.len = (size_t) (out - result.data);
	return result;
}
