/*-------------------------------------------------------------------------
 *
 * event_test.c
 *	  Unit tests of the event parser; standalone, prints TAP.
 *
 * What to compile it with: event.c, event_arena.c, event_format.c,
 * event_json.c and event_value.c of ../src, and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/event.h"
#include "../src/event_json.h"
#include "event_cases.h"

static int tests;
static int failures;
static EventArena *arena;
static EventLimits limits;

static void
report(bool good, const char *name, const char *got, const char *expected)
{
	tests++;
	printf("%sok %d - ", good ? "" : "not ", tests);
	for (const char *p = name; *p != '\0' && p - name < 100; p++)
		putchar(*p < 0x20 || *p > 0x7e || *p == '#' ? '?' : *p);
	putchar('\n');
	if (!good)
	{
		failures++;
		printf("# got      %s\n# expected %s\n", got, expected);
	}
}

static void
append(char **buf, size_t *used, const char *data, size_t len)
{
	*buf = realloc(*buf, *used + len + 1);
	if (*buf == NULL)
		abort();
	memcpy(*buf + *used, data, len);
	*used += len;
	(*buf)[*used] = '\0';
}

static void
append_column(char **buf, size_t *used, const char *name, EventText text)
{
	if (text.data == NULL)
		return;
	if (*used > 0)
		append(buf, used, " ", 1);
	append(buf, used, name, strlen(name));
	append(buf, used, "=", 1);
	append(buf, used, text.data, text.len);
}

/* Columns or reason, malloc'd; detail is checked for being sane. */
static char *
outcome(const char *value, size_t len)
{
	Event event;
	EventReason reason;
	char detail[EVENT_DETAIL_SIZE] = "";
	char *buf = NULL;
	size_t used = 0;
	char *exact = malloc(len > 0 ? len : 1);

	if (exact == NULL)
		abort();
	memcpy(exact, value, len); /* so that a read behind the end is seen */
	event_arena_reset(arena);
	reason = event_parse(exact, len, &limits, arena, &event, detail);
	append(&buf, &used, "", 0);
	if (reason != EVENT_OK)
	{
		append(&buf, &used, event_reason_name(reason), strlen(event_reason_name(reason)));
		if (detail[0] == '\0' || strlen(detail) >= EVENT_DETAIL_SIZE - 1 ||
			detail[strlen(detail) - 1] == '.')
			append(&buf, &used, " (bad detail)", 13);
	}
	else
	{
		EventText text;
		char time[33];
		char uuid[37];

		append_column(&buf, &used, "user_id", event.user_id);
		append_column(&buf, &used, "event_type", event.event_type);
		append_column(&buf, &used, "event_id", event.event_id);
		if (event.event_id_is_uuid)
		{
			event_format_uuid(event.event_uuid, uuid);
			text.data = uuid;
			text.len = 36;
			append_column(&buf, &used, "uuid", text);
		}
		if (event.occurred_us != EVENT_NO_TIME)
		{
			text.data = time;
			text.len = event_format_time(event.occurred_us, time);
			append_column(&buf, &used, "occurred_at", text);
		}
		append_column(&buf, &used, "item_id", event.item_id);
		append_column(&buf, &used, "amount", event.amount);
		append_column(&buf, &used, "user_tier", event.user_tier);
		append_column(&buf, &used, "traceparent", event.traceparent);
		if (event.properties.len != 2 || memcmp(event.properties.data, "{}", 2) != 0)
			append_column(&buf, &used, "properties", event.properties);
	}
	free(exact);
	return buf;
}

static void
check_bytes(const char *name, const char *value, size_t len, const char *expected)
{
	char *got = outcome(value, len);

	report(strcmp(got, expected) == 0, name, got, expected);
	free(got);
}

static void
check_cases(const Case *cases, size_t n)
{
	for (size_t i = 0; i < n; i++)
		check_bytes(cases[i].value, cases[i].value, strlen(cases[i].value), cases[i].expected);
}

#define CHECK_CASES(cases) check_cases(cases, sizeof(cases) / sizeof(cases[0]))

/* A case whose value holds NUL bytes. */
#define CHECK_LITERAL(name, value, expected) check_bytes(name, value, sizeof(value) - 1, expected)

/* ------------------------------------------------- what no table can hold */

/* head, n times unit, tail; malloc'd */
static char *
repeat(const char *head, const char *unit, size_t n, const char *tail)
{
	size_t unit_len = strlen(unit);
	char *buf = malloc(strlen(head) + n * unit_len + strlen(tail) + 1);
	char *p;

	if (buf == NULL)
		abort();
	p = stpcpy(buf, head);
	for (size_t i = 0; i < n; i++)
		p = stpcpy(p, unit);
	stpcpy(p, tail);
	return buf;
}

/* Only the start of the outcome is compared. */
static void
check_repeat(const char *name, const char *head, const char *unit, size_t n, const char *tail,
			 const char *expected)
{
	char *value = repeat(head, unit, n, tail);
	char *got = outcome(value, strlen(value));

	report(strncmp(got, expected, strlen(expected)) == 0, name, got, expected);
	free(got);
	free(value);
}

static void
test_lengths(void)
{
	const char *user = "{\"event_type\":\"t\",\"user_id\":\"";
	const char *number = "{\"event_type\":\"t\",\"user_id\":1";
	const char *type = "{\"user_id\":\"u\",\"event_type\":\"";
	const char *id = "{\"user_id\":\"u\",\"event_type\":\"t\",\"event_id\":\"";
	const char *item = "{\"user_id\":\"u\",\"event_type\":\"t\",\"item_id\":\"";
	const char *inner = "{\"user_id\":\"u\",\"event_type\":\"t\",\"properties\":{\"item_id\":\"";
	const char *tier = "{\"user_id\":\"u\",\"event_type\":\"t\",\"user_tier\":\"";

	check_repeat("user_id of 255 characters", user, "x", 255, "\"}", "user_id=x");
	check_repeat("user_id of 256 characters", user, "x", 256, "\"}", "bad_user_id");
	check_repeat("user_id of 255 wide characters", user, "\xf0\x9f\x98\x80", 255, "\"}",
				 "user_id=");
	check_repeat("user_id of 256 wide characters", user, "\xc3\xa9", 256, "\"}", "bad_user_id");
	check_repeat("user_id of 255 escaped characters", user, "\\ud83d\\ude00", 255, "\"}",
				 "user_id=");
	check_repeat("user_id of 256 escaped characters", user, "\\u0041", 256, "\"}", "bad_user_id");
	check_repeat("user_id of 255 digits", number, "0", 254, "}", "user_id=1");
	check_repeat("user_id of 256 digits", number, "0", 255, "}", "bad_user_id");
	check_repeat("user_id that numeric cannot hold", number, "0", 140000, "}", "bad_user_id");
	check_repeat("event_type of 100 characters", type, "\xc3\xa9", 100, "\"}",
				 "user_id=u event_type=\xc3\xa9");
	check_repeat("event_type of 101 characters", type, "x", 101, "\"}", "bad_event_type");
	check_repeat("event_id of 255 characters", id, "\xc3\xa9", 255, "\"}", UT " event_id=");
	check_repeat("event_id of 256 characters", id, "x", 256, "\"}", "bad_event_id");
	check_repeat("item_id of 255 characters", item, "\xc3\xa9", 255, "\"}", UT " item_id=");
	check_repeat("item_id of 256 characters", item, "x", 256, "\"}",
				 UT " properties={\"item_id\":\"x");
	check_repeat("inner item_id of 256 characters", inner, "x", 256, "\"}}",
				 UT " properties={\"item_id\":\"x");
	check_repeat("user_tier of any length", tier, "x", 5000, "\"}", UT " user_tier=x");
	check_repeat("many members", "{\"user_id\":\"u\",\"event_type\":\"t\"", ",\"a\":1", 5000, "}",
				 UT " properties={\"a\":1,\"a\":1");
	check_repeat("many repeated names", "{\"user_id\":\"u\"", ",\"event_type\":\"t\"", 5000, "}",
				 UT);
}

static void
test_numbers(void)
{
	const char *a = "{\"user_id\":\"u\",\"event_type\":\"t\",\"a\":";

	for (int fraction = 0; fraction < 2; fraction++)
	{
		char head[100];
		size_t most = fraction ? 16383 : 131072;

		snprintf(head, sizeof(head), "%s%s", a, fraction ? "0." : "");
		check_repeat("number at numeric's limit", head, "1", most, "}", UT " properties");
		check_repeat("number over numeric's limit", head, "1", most + 1, "}", "bad_properties");
	}
	check_repeat("amount of 16000 digits", "{\"user_id\":\"u\",\"event_type\":\"t\",\"amount\":0.",
				 "1", 16000, "}", UT " amount=0.1111111111");
	check_repeat("amount with digits balanced by its exponent",
				 "{\"user_id\":\"u\",\"event_type\":\"t\",\"amount\":5", "0", 1000, "e-1000}",
				 UT " amount=5");
}

static void
test_depth(void)
{
	const size_t depths[] = {99, 100, 10000, 500000};
	const char *openers[] = {"[", "{\"a\":"};
	char name[100];

	for (int i = 0; i < 2; i++)
	{
		for (size_t k = 0; k < sizeof(depths) / sizeof(depths[0]); k++)
		{
			char *close = repeat("", i == 0 ? "]" : "}", depths[k] - 1, "");
			char *tail = malloc(strlen(close) + 10);
			char *tail2 = malloc(strlen(close) + 10);

			if (tail == NULL || tail2 == NULL)
				abort();
			sprintf(tail, "%s%s}", i == 0 ? "[]" : "{}", close);
			sprintf(tail2, "%s%s}", i == 0 ? "[]" : "{}", close);
			snprintf(name, sizeof(name), "%s nested %zu deep in an object", openers[i], depths[k]);
			check_repeat(name, "{\"user_id\":\"u\",\"event_type\":\"t\",\"x\":", openers[i],
						 depths[k] - 1, tail, depths[k] < 100 ? UT " properties" : "too_large");
			snprintf(name, sizeof(name), "%s nested %zu deep in properties", openers[i], depths[k]);
			if (i == 1)
				check_repeat(
					name, "{\"user_id\":\"u\",\"event_type\":\"t\",\"properties\":", openers[i],
					depths[k] - 1, tail2, depths[k] < 100 ? UT " properties" : "too_large");
			free(close);
			free(tail);
			free(tail2);
		}
	}
	check_repeat("array nested 100 deep, not an object", "", "[", 100, "", "not_json");
	check_repeat("array nested 101 deep, unclosed", "", "[", 101, "", "too_large");
	check_repeat("depth before syntax", "{\"x\":", "[", 100, "!", "too_large");
	check_repeat("syntax before depth", "{\"x\":!", "[", 100, "", "not_json");
}

static void
test_frame_and_size(void)
{
	size_t saved = limits.max_bytes;
	const char *value = E("\"a\":1");

	CHECK_LITERAL("schema registry frame", "\0\0\0\0\x07{\"user_id\":\"u\",\"event_type\":\"t\"}",
				  UT);
	CHECK_LITERAL("frame with any bytes", "\0{\"[\xff{\"user_id\":\"u\",\"event_type\":\"t\"}", UT);
	CHECK_LITERAL("frame without JSON", "\0\0\0\0\x07", "not_json");
	CHECK_LITERAL("frame and white space", "\0\0\0\0\x07 \n", "not_json");
	CHECK_LITERAL("frame twice", "\0\0\0\0\x07\0\0\0\0\x07{}", "not_json");
	CHECK_LITERAL("frame cut short", "\0\0\0\0", "not_json");
	CHECK_LITERAL("a NUL byte alone", "\0", "not_json");
	CHECK_LITERAL("NUL in a string", E("\"a\":\"x\0y\""), "bad_text");
	CHECK_LITERAL("NUL in a long string", E("\"a\":\"01234567\0\""), "bad_text");
	CHECK_LITERAL("NUL in a key", E("\"\0\":1"), "bad_text");
	CHECK_LITERAL("NUL and a syntax error", "{\"a\":\"\0\"", "not_json");
	CHECK_LITERAL("NUL outside strings", "{\"a\":1\0}", "not_json");
	CHECK_LITERAL("NUL behind the value", "{}\0", "not_json");

	limits.max_bytes = strlen(value);
	check_bytes("as large as allowed", value, strlen(value), UT " properties={\"a\":1}");
	limits.max_bytes--;
	check_bytes("one byte too large", value, strlen(value), "too_large");
	check_bytes("too large and no JSON", "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
				54, "too_large");
	limits.max_bytes = saved;
}

static void
test_limits(void)
{
	const char *plain = "{\"user_id\":\"u\",\"event_type\":\"t\"}";
	const char *traced = E("\"traceparent\":\"" TRACE "\"");
	const char *timed = TIME("\"9999-12-31T23:59:59Z\"");
	const char *past = TIME("5");

	limits.record_us = NOW_US;
	check_bytes("the record's time", plain, strlen(plain), AT("2026-11-21T08:33:20.000000Z"));
	check_bytes("the event's time wins", past, strlen(past), AT("1970-01-01T00:00:05.000000Z"));
	limits.record_us = NOW_US + DAY_US;
	check_bytes("the record's time at the limit", plain, strlen(plain),
				AT("2026-11-22T08:33:20.000000Z"));
	limits.record_us = NOW_US + DAY_US + 1;
	check_bytes("the record's time in the future", plain, strlen(plain), "future_timestamp");
	check_bytes("the record's time is not used", past, strlen(past),
				AT("1970-01-01T00:00:05.000000Z"));
	limits.record_us = INT64_MAX;
	check_bytes("the record's time far away", plain, strlen(plain), "future_timestamp");
	limits.record_us = INT64_MIN + 1;
	check_bytes("the record's time long ago", plain, strlen(plain), "bad_timestamp");
	limits.record_us = EVENT_NO_TIME;

	limits.max_skew_us = INT64_MAX;
	check_bytes("unlimited skew", timed, strlen(timed), AT("9999-12-31T23:59:59.000000Z"));
	limits.max_skew_us = DAY_US;

	limits.traceparent.data = TRACE2;
	limits.traceparent.len = strlen(TRACE2);
	check_bytes("header's traceparent", plain, strlen(plain), UT " traceparent=" TRACE2);
	check_bytes("header's traceparent wins", traced, strlen(traced),
				UT " traceparent=" TRACE2 " properties={\"traceparent\":\"" TRACE "\"}");
	limits.traceparent.data = TRACE;
	check_bytes("the same traceparent twice", traced, strlen(traced), UT " traceparent=" TRACE);
	limits.traceparent.len = 54;
	check_bytes("malformed traceparent in the header", traced, strlen(traced),
				UT " traceparent=" TRACE);
	limits.traceparent.len = 0;
	check_bytes("empty traceparent in the header", plain, strlen(plain), UT);
	limits.traceparent.data = NULL;
}

static void
test_format(void)
{
	static const char value[] =
		"{\"user_id\":\"a\\\"\\\\\\n\\u0001\\u00e9\",\"type\":\"t\",\"event_id\":\"0190F5C2-7A0E-7cc1-b2a4-8D2F2f0c9a11\","
		"\"ts\":1700000000.5,\"item_id\":5,\"amount\":\"1.50\",\"user_tier\":\"\",\"traceparent\":\"" TRACE
		"\",\"x\":[1, 2]}";
	static const char full[] =
		"{\"event_id\":\"0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11\",\"user_id\":\"a\\\"\\\\\\n\\u0001\xc3\xa9\",\"event_type\":\"t\","
		"\"occurred_at\":\"2023-11-14T22:13:20.500000Z\",\"item_id\":\"5\",\"amount\":1.5,\"user_tier\":\"\","
		"\"traceparent\":\"" TRACE "\",\"properties\":{\"x\":[1, 2]},\"seq\": 1}";
	static const char least[] =
		"{\"event_id\":\"00000000-0000-0000-0000-000000000000\",\"user_id\":\"u\",\"event_type\":\"t\"}";
	Event event;
	EventText got;
	char detail[EVENT_DETAIL_SIZE];

	event_arena_reset(arena);
	report(event_parse(value, strlen(value), &limits, arena, &event, detail) == EVENT_OK,
		   "the event to format parses", detail, "ok");
	got = event_format(&event, "\"seq\": 1", arena);
	report(got.len == strlen(full) && memcmp(got.data, full, got.len) == 0,
		   "formatted with everything", got.data, full);

	event_parse(E("\"properties\":{ \n}"), strlen(E("\"properties\":{ \n}")), &limits, arena,
				&event, NULL);
	got = event_format(&event, NULL, arena);
	report(got.len == strlen(least) && memcmp(got.data, least, got.len) == 0,
		   "formatted with the least", got.data, least);
	got = event_format(&event, "", arena);
	report(got.len == strlen(least), "formatted with an empty extra", got.data, least);
}

/* Each byte that a string can hold, at each place of strings that are short and long. */
static void
test_escapes(void)
{
	bool good = true;

	for (int len = 0; len <= 40; len++)
	{
		for (int at = 0; at < len; at++)
		{
			for (int c = 1; c < 256; c++)
			{
				/* of its own size, so that a sanitizer sees what reads behind it */
				char *text = malloc(len);
				char expected[64];
				char back[256];
				char *escaped;
				size_t size = 0;

				memset(text, c == 'a' ? 'b' : 'a', len);
				text[at] = (char) c;
				memcpy(expected, text, at);
				size = at;
				if (c == '"' || c == '\\')
					size += sprintf(expected + size, "\\%c", c);
				else if (c < 0x20 && strchr("\b\f\n\r\t", c) != NULL)
					size += sprintf(expected + size, "\\%c", "btn?fr"[c - 8]);
				else if (c < 0x20)
					size += sprintf(expected + size, "\\u%04x", c);
				else
					expected[size++] = (char) c;
				memcpy(expected + size, text + at + 1, len - at - 1);
				size += len - at - 1;

				good &= event_json_escaped_len(text, len) == size;
				escaped = malloc(size);
				good &= event_json_escape(escaped, text, len) == escaped + size;
				good &= memcmp(escaped, expected, size) == 0;
				good &= event_json_unescape(escaped, size, back) == (size_t) len;
				good &= memcmp(back, text, len) == 0;
				free(escaped);
				free(text);
			}
		}
	}
	report(good, "escapes at every place", "", "");
}

static void
test_small_functions(void)
{
	static const char *const reasons[] = {
		"not_json",       "not_object",   "bad_text",      "too_large",        "bad_user_id",
		"bad_event_type", "bad_event_id", "bad_timestamp", "future_timestamp", "bad_amount",
		"bad_properties", "refused",      "crashed"};
	const int64_t instants[] = {0,
								-1,
								1,
								INT64_C(-62135596800000000),
								INT64_C(253402300799999999),
								INT64_C(951782400000000),
								NOW_US,
								INT64_C(-11676096000000000),
								INT64_C(4107542399999999)};
	char buf[37];
	int64_t us;
	uint8_t uuid[16];
	bool good = true;
	char *last = NULL;

	for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
		good &= strcmp(event_reason_name(event_reason_by_name(reasons[i])), reasons[i]) == 0;
	report(good, "reasons by name", "", "");
	report(event_reason_by_name("ok") == EVENT_OK &&
			   event_reason_by_name("out_of_memory") == EVENT_OK &&
			   event_reason_by_name("") == EVENT_OK,
		   "no such reason", "", "");

	for (size_t i = 0; i < sizeof(instants) / sizeof(instants[0]); i++)
	{
		size_t len = event_format_time(instants[i], buf);

		report(len == 27 && strlen(buf) == 27 && event_parse_time(buf, len, &us) &&
				   us == instants[i],
			   "time there and back", buf, "");
	}
	good = true;
	for (us = INT64_C(-62135596800000000); us <= INT64_C(253402300799999999);
		 us += INT64_C(86399999999) * 3)
	{
		int64_t back;

		good &= event_parse_time(buf, event_format_time(us, buf), &back) && back == us;
	}
	report(good, "every third day there and back", buf, "");
	report(event_format_time(INT64_MAX, buf) < 33 && event_format_time(INT64_MIN, buf) < 33,
		   "times out of range", buf, "");

	report(event_text_valid("a\xc3\xa9\xf0\x9f\x98\x80", 7), "valid text", "", "");
	report(event_text_valid(NULL, 0), "empty text", "", "");
	report(!event_text_valid("a\0b", 3) && !event_text_valid("\xc3", 1) &&
			   !event_text_valid("\xed\xa0\x80", 3),
		   "invalid text", "", "");
	report(event_parse_uuid("0190F5C2-7a0e-7cc1-b2a4-8d2f2f0c9a11", 36, uuid) && uuid[0] == 0x01 &&
			   uuid[2] == 0xf5 && uuid[15] == 0x11,
		   "uuid", "", "");
	event_format_uuid(uuid, buf);
	report(strcmp(buf, "0190f5c2-7a0e-7cc1-b2a4-8d2f2f0c9a11") == 0, "uuid back", buf, "");
	report(!event_parse_uuid("0190F5C2-7a0e-7cc1-b2a4-8d2f2f0c9a1", 35, uuid), "uuid cut short", "",
		   "");

	event_arena_reset(arena);
	good = true;
	for (size_t i = 0; i < 3000; i++)
	{
		char *data = event_arena_alloc(arena, i * 7);

		good &= data != NULL && ((uintptr_t) data & 15) == 0 && data != last;
		memset(data, 1, i * 7);
		if (i > 0)
			last = data;
	}
	report(good, "arena gives aligned memory", "", "");
	report(event_arena_alloc(arena, SIZE_MAX - 20) == NULL &&
			   event_arena_alloc(arena, SIZE_MAX) == NULL,
		   "arena out of memory", "", "");
	report(event_arena_alloc(arena, 20 * 1024 * 1024) != NULL, "arena gives much at once", "", "");
}

int
main(void)
{
	arena = event_arena_create();
	if (arena == NULL)
		return 1;
	memset(&limits, 0, sizeof(limits));
	limits.max_bytes = 4 * 1024 * 1024;
	limits.now_us = NOW_US;
	limits.max_skew_us = DAY_US;
	limits.record_us = EVENT_NO_TIME;

	CHECK_CASES(shapes);
	CHECK_CASES(syntax);
	CHECK_CASES(texts);
	CHECK_CASES(ids);
	CHECK_CASES(times);
	CHECK_CASES(amounts);
	CHECK_CASES(loose);
	test_lengths();
	test_numbers();
	test_depth();
	test_frame_and_size();
	test_limits();
	test_format();
	test_escapes();
	test_small_functions();

	event_arena_free(arena);
	printf("1..%d\n", tests);
	return failures == 0 ? 0 : 1;
}
