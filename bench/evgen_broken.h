/*-------------------------------------------------------------------------
 *
 * evgen_broken.h
 *	  Records that break one rule each, so that the reason is certain.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVGEN_BROKEN_H
#define EVGEN_BROKEN_H

#include "evgen_make.h"

#define X50  "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
#define X300 X50 X50 X50 X50 X50 X50

/* Members that take the place of the good ones; some leave theirs out. */
static const char *const broken_user_ids[] = {"",
											  "\"user_id\":\"\",",
											  "\"user_id\":null,",
											  "\"user_id\":true,",
											  "\"userId\":\"\",",
											  "\"user_id\":{\"id\":7},",
											  "\"user_id\":[\"u-1\"],",
											  "\"user_id\":12.5,",
											  "\"user_id\":\"" X300 "\","};
static const char *const broken_event_types[] = {"",
												 "\"event_type\":\"\",",
												 "\"event_type\":null,",
												 "\"event_type\":7,",
												 "\"eventType\":\"\",",
												 "\"event_type\":{\"name\":\"view\"},",
												 "\"event_type\":\"" X300 "\","};
static const char *const broken_event_ids[] = {
	"\"event_id\":\"\",", "\"event_id\":true,",      "\"event_id\":[],",
	"\"eventId\":\"\",",  "\"event_id\":{\"a\":1},", "\"event_id\":\"" X300 "\","};
static const char *const broken_timestamps[] = {"\"occurred_at\":\"yesterday\",",
												"\"occurred_at\":\"\",",
												"\"occurred_at\":\"2026-13-01T00:00:00Z\",",
												"\"occurred_at\":\"2026-02-30T12:00:00Z\",",
												"\"occurred_at\":\"2026-01-20T25:00:00Z\",",
												"\"occurred_at\":\"2026-01-20\",",
												"\"timestamp\":\"20.01.2026 12:00\",",
												"\"occurred_at\":true,",
												"\"occurred_at\":{},"};
static const char *const broken_amounts[] = {
	"\"amount\":\"ten\",", "\"amount\":true,",      "\"amount\":{\"value\":1},",
	"\"amount\":[1],",     "\"amount\":\"12,50\",", "\"amount\":\"\",",
	"\"amount\":\"NaN\",", "\"amount\":1e25,",      "\"amount\":123456789012345678901,"};
static const char *const broken_properties[] = {"\"properties\":\"text\"", "\"properties\":[1,2]",
												"\"properties\":7", "\"properties\":true",
												"\"properties\":\"\""};

/* Of these the last is no UTF-8 and no line of text. */
static const char *const broken_texts[] = {
	"\"properties\":{\"page\":\"a\\u0000b\"}", "\"properties\":{\"page\":\"\\ud83d\"}",
	"\"properties\":{\"page\":\"\\ude00 \\ud83d\"}", "\"properties\":{\"page\":\"\xe4\xf6\xfc\"}"};

/* Of these the last two are no line of text. */
static const char *const broken_json[] = {
	"plain text",
	"{\"user_id\":\"u-1\",\"event_type\":\"view\"",
	"{user_id: 'u-1'}",
	"{\"user_id\":\"u-1\",\"event_type\":\"view\",}",
	"<event user=\"u-1\"/>",
	"{\"user_id\":\"u-1\",\"event_type\":\"view\"}{\"user_id\":\"u-1\",\"event_type\":\"view\"}",
	"{\"user_id\":\"u-1\",\n\"event_type\":",
	""};
static const char *const broken_objects[] = {
	"[1,2]", "\"text\"", "42", "true", "[]", "[{\"user_id\":\"u-1\",\"event_type\":\"view\"}]"};

#define DRAW(array, count) ((array)[random_below(state, (count))])
#define LENGTH(array)      (sizeof(array) / sizeof((array)[0]))

/* Can this target carry such a record? */
static bool
fault_possible(Target target, Fault fault)
{
	return target != TO_SQL || (fault != NOT_JSON && fault != BAD_TEXT && fault != TOO_LARGE);
}

/* One of the faults that the target can carry, future_timestamp not among them. */
static Fault
draw_fault(Generator *gen)
{
	Fault fault;

	do
		fault = random_below(&gen->state, FAULT_COUNT);
	while (fault == FUTURE_TIMESTAMP || !fault_possible(gen->options->target, fault));
	return fault;
}

/* Properties that make the record too large, or nested too deep. */
static char *
put_too_large(char *p, Generator *gen)
{
	p = put_text(p, "\"properties\":{\"blob\":");
	if (gen->options->target == TO_KAFKA && gen->huge_left > 0 && random_below(&gen->state, 4) == 0)
	{
		gen->huge_left--;
		*p++ = '"';
		memset(p, 'x', HUGE_BYTES);
		p += HUGE_BYTES;
		*p++ = '"';
	}
	else
	{
		memset(p, '[', TOO_DEEP);
		memset(p + TOO_DEEP, ']', TOO_DEEP);
		p += 2 * TOO_DEEP;
	}
	*p++ = '}';
	return p;
}

/* A record that must become a dead letter with this reason. */
static void
make_broken(Generator *gen, Fault fault, Record *record)
{
	const StreamOptions *options = gen->options;
	uint64_t *state = &gen->state;
	bool lines = options->target != TO_KAFKA;
	char *p = gen->buffer;

	make_tombstone(gen, record); /* who, and its key */
	record->value = gen->buffer;
	if (fault == NOT_JSON || fault == NOT_OBJECT || fault == BAD_USER_ID)
		record->key_len = 0;
	if (fault == NOT_JSON || fault == NOT_OBJECT)
	{
		p = put_text(p, fault == NOT_JSON ? DRAW(broken_json, LENGTH(broken_json) - (lines ? 2 : 0))
										  : DRAW(broken_objects, LENGTH(broken_objects)));
		record->value_len = p - gen->buffer;
		return;
	}

	*p++ = '{';
	if (fault == BAD_EVENT_ID)
		p = put_text(p, DRAW(broken_event_ids, LENGTH(broken_event_ids)));
	else
	{
		p = put_text(p, "\"event_id\":\"");
		p = put_uuid(p, state);
		p = put_text(p, "\",");
	}
	if (fault == BAD_USER_ID)
		p = put_text(p, DRAW(broken_user_ids, LENGTH(broken_user_ids)));
	else
	{
		p = put_text(p, "\"user_id\":");
		p = put_user_value(p, options, record->user, state);
		*p++ = ',';
	}
	if (fault == BAD_EVENT_TYPE)
		p = put_text(p, DRAW(broken_event_types, LENGTH(broken_event_types)));
	else
	{
		p = put_text(p, "\"event_type\":\"");
		p = put_text(p, options->types[random_below(state, options->type_count)].name);
		p = put_text(p, "\",");
	}
	if (fault == BAD_TIMESTAMP)
		p = put_text(p, DRAW(broken_timestamps, LENGTH(broken_timestamps)));
	else
	{
		int64_t age = (int64_t) (random_share(state) * options->days * DAY_US);

		p = put_text(p, "\"occurred_at\":\"");
		if (fault == FUTURE_TIMESTAMP)
			/* the year 2099: too early whenever the stream is read */
			p = put_time(p, (47117 + random_below(state, 365)) * DAY_US, 3, 0);
		else
			p = put_time(p, options->until_us - age, 3, 0);
		p = put_text(p, "\",");
	}
	if (fault == BAD_AMOUNT)
		p = put_text(p, DRAW(broken_amounts, LENGTH(broken_amounts)));
	if (fault == BAD_PROPERTIES)
		p = put_text(p, DRAW(broken_properties, LENGTH(broken_properties)));
	else if (fault == BAD_TEXT)
		p = put_text(p, DRAW(broken_texts, LENGTH(broken_texts) - (lines ? 1 : 0)));
	else if (fault == TOO_LARGE)
		p = put_too_large(p, gen);
	else
		p = put_text(p, "\"properties\":{\"page\":\"/\",\"device\":\"desktop\"}");
	*p++ = '}';
	record->value_len = p - gen->buffer;
}

#endif /* EVGEN_BROKEN_H */
