/*-------------------------------------------------------------------------
 *
 * evgen_make.h
 *	  The events themselves: who does what when, and as which bytes.
 *
 * Event number n of a stream depends on the options and on n alone, so an
 * earlier event is repeated by making it again, and nothing has to be kept.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVGEN_MAKE_H
#define EVGEN_MAKE_H

#include <math.h>

#include "evgen_text.h"

#define MAX_TYPES     64
#define TYPE_NAME_MAX 100
#define MAX_LATE_DAYS 40
#define HUGE_BYTES    1100000 /* over the 1 MB that evstream takes */
#define HUGE_RECORDS  5       /* at most, in a stream */
#define TOO_DEEP      150     /* evstream takes 100 levels */

typedef enum Target
{
	TO_KAFKA, /* any bytes, keys, record times */
	TO_JSON,  /* one line of text each */
	TO_SQL    /* valid jsonb each */
} Target;

typedef struct EventType
{
	char name[TYPE_NAME_MAX + 1];
	double share; /* after prepare: cumulated, the last one 1 */
	bool has_item;
	bool has_amount;
} EventType;

typedef struct StreamOptions
{
	uint64_t seed;
	uint64_t events;
	uint32_t users;
	uint32_t items;
	double zipf;
	EventType types[MAX_TYPES];
	int type_count;
	double days;
	int64_t until_us;
	double late; /* share, 0 to 1 */
	bool shapes;
	Target target;
} StreamOptions;

/* Why a record is refused, in the order of the names. */
typedef enum Fault
{
	BAD_AMOUNT,
	BAD_EVENT_ID,
	BAD_EVENT_TYPE,
	BAD_PROPERTIES,
	BAD_TEXT,
	BAD_TIMESTAMP,
	BAD_USER_ID,
	FUTURE_TIMESTAMP,
	NOT_JSON,
	NOT_OBJECT,
	TOO_LARGE,
	FAULT_COUNT
} Fault;

static const char *const fault_names[FAULT_COUNT] = {
	"bad_amount", "bad_event_id",  "bad_event_type", "bad_properties",
	"bad_text",   "bad_timestamp", "bad_user_id",    "future_timestamp",
	"not_json",   "not_object",    "too_large"};

/* One record, and what a reader has to make of it. */
typedef struct Record
{
	const char *value; /* the generator's buffer; NULL: a tombstone */
	size_t value_len;
	char key[24];
	size_t key_len;    /* 0: no key */
	int64_t record_ms; /* the record's time; 0: when it is sent */
	bool has_id;       /* so that it can be repeated */
	bool late;
	uint32_t user; /* from 1 */
	uint32_t item; /* from 1; 0: none */
	uint32_t type; /* index into types */
	int64_t occurred_us;
	int64_t cents; /* 0: no amount */
} Record;

/* Numbers 1 to n with frequencies 1 / k^exponent, by the alias method. */
typedef struct Zipf
{
	uint32_t n;
	struct
	{
		uint32_t limit; /* of 2^32: stay in this cell */
		uint32_t other; /* else this one */
	} * cells;
} Zipf;

typedef struct Generator
{
	const StreamOptions *options;
	Zipf users;
	Zipf items;
	uint64_t state; /* of what is not part of a numbered event */
	int huge_left;
	char *buffer;
} Generator;

static void
zipf_prepare(Zipf *zipf, uint32_t n, double exponent)
{
	double *share = need_memory(n, sizeof(double));
	uint32_t *stack = need_memory(n, sizeof(uint32_t));
	uint32_t poor = 0, /* stack grows up from 0 */
		rich = n;      /* and down from n */
	double sum = 0;

	zipf->n = n;
	zipf->cells = need_memory(n, sizeof(zipf->cells[0]));
	for (uint32_t i = 0; i < n; i++)
		sum += share[i] = pow(i + 1.0, -exponent);
	for (uint32_t i = 0; i < n; i++)
	{
		share[i] *= n / sum;
		stack[share[i] < 1 ? poor++ : --rich] = i;
		zipf->cells[i].limit = UINT32_MAX;
		zipf->cells[i].other = i;
	}
	while (poor > 0 && rich < n)
	{
		uint32_t taker = stack[--poor];
		uint32_t giver = stack[rich];

		zipf->cells[taker].limit = (uint32_t) (share[taker] * UINT32_MAX);
		zipf->cells[taker].other = giver;
		share[giver] -= 1 - share[taker];
		if (share[giver] < 1)
		{
			rich++;
			stack[poor++] = giver;
		}
	}
	free(share);
	free(stack);
}

static inline uint32_t
zipf_draw(const Zipf *zipf, uint64_t *state)
{
	uint64_t bits = random_bits(state);
	uint32_t cell = (uint32_t) (((bits >> 32) * zipf->n) >> 32);

	if ((uint32_t) bits > zipf->cells[cell].limit)
		cell = zipf->cells[cell].other;
	return cell + 1;
}

/* options must outlive the generator. */
static void
generator_prepare(Generator *gen, const StreamOptions *options)
{
	gen->options = options;
	zipf_prepare(&gen->users, options->users, options->zipf);
	zipf_prepare(&gen->items, options->items, options->zipf);
	gen->state = mix64(options->seed ^ UINT64_C(0x5bf03635));
	gen->huge_left = HUGE_RECORDS;
	gen->buffer = need_memory(HUGE_BYTES + 4096, 1);
}

/* ---- names ---- */

/* With foreign shapes some producers know their users and items by number. */
static inline bool
user_is_number(const StreamOptions *options, uint32_t user)
{
	return options->shapes && user % 10 == 3;
}

static inline bool
item_is_number(const StreamOptions *options, uint32_t item)
{
	return options->shapes && item % 10 == 7;
}

static char *
put_user(char *p, const StreamOptions *options, uint32_t user)
{
	if (!user_is_number(options, user))
		p = put_bytes(p, "u-", 2);
	return put_uint(p, user);
}

static char *
put_item(char *p, const StreamOptions *options, uint32_t item)
{
	if (!item_is_number(options, item))
		p = put_bytes(p, "sku-", 4);
	return put_uint(p, item);
}

static const char *
user_tier(uint32_t user)
{
	uint32_t share = mix64(user) % 100;

	return share < 5 ? "premium" : share < 30 ? "standard" : "free";
}

/* ---- values ---- */

static char *
put_user_value(char *p, const StreamOptions *options, uint32_t user, uint64_t *state)
{
	if (user_is_number(options, user) && random_below(state, 2))
		return put_uint(p, user);
	*p++ = '"';
	p = put_user(p, options, user);
	*p++ = '"';
	return p;
}

static char *
put_item_value(char *p, const StreamOptions *options, uint32_t item, uint64_t *state)
{
	if (item_is_number(options, item) && random_below(state, 2))
		return put_uint(p, item);
	*p++ = '"';
	p = put_item(p, options, item);
	*p++ = '"';
	return p;
}

static char *
put_amount_value(char *p, const StreamOptions *options, int64_t cents, uint64_t *state)
{
	uint32_t way = random_below(state, 100);

	if (options->shapes && way < 5)
	{
		*p++ = '"';
		p = put_cents(p, cents);
		*p++ = '"';
		return p;
	}
	if (options->shapes && way < 7)
	{
		if (cents < 0)
			*p++ = '-';
		p = put_uint(p, cents < 0 ? -cents : cents);
		return put_text(p, "e-2");
	}
	p = put_cents(p, cents);
	if (way < 60 && p[-1] == '0') /* as most serialisers do */
	{
		p--;
		if (p[-1] == '0')
			p -= 2;
	}
	return p;
}

static char *
put_uuid(char *p, uint64_t *state)
{
	uint64_t high = random_bits(state);
	uint64_t low = random_bits(state);

	p = put_hex(p, high >> 32, 8);
	*p++ = '-';
	p = put_hex(p, high >> 16, 4);
	p = put_bytes(p, "-4", 2);
	p = put_hex(p, high, 3);
	*p++ = '-';
	p = put_hex(p, (low >> 62) | 8, 1);
	p = put_hex(p, low >> 48, 3);
	*p++ = '-';
	return put_hex(p, low, 12);
}

static inline const char *
draw_device(uint64_t *state)
{
	static const char *const devices[] = {"mobile", "mobile", "desktop", "tablet"};

	return devices[random_below(state, 4)];
}

static char *
put_page(char *p, const StreamOptions *options, const Record *record)
{
	p = put_text(p, "\"/");
	if (record->item != 0)
	{
		p = put_text(p, "p/");
		p = put_item(p, options, record->item);
	}
	else
		p = put_text(p, options->types[record->type].name);
	*p++ = '"';
	return p;
}

/* A time as evstream's own producers write it, and, less often, as others do. */
static char *
put_time_value(char *p, Record *record, uint64_t *state)
{
	uint32_t way = random_below(state, 100);

	if (way < 8)
		record->occurred_us += random_below(state, 1000);
	if (way >= 97)
		return put_uint(p, record->occurred_us / 1000);
	*p++ = '"';
	if (way < 8)
		p = put_time(p, record->occurred_us, 6, 0);
	else if (way < 12)
		p = put_time(p, record->occurred_us, 3, 60);
	else if (way < 15)
		p = put_time(p, record->occurred_us, 3, -210);
	else if (way < 17)
		p = put_time(p, record->occurred_us, 3, NO_OFFSET);
	else
		p = put_time(p, record->occurred_us, 3, 0);
	*p++ = '"';
	return p;
}

/* ---- the shapes ---- */

static char *
put_own_shape(char *p, const StreamOptions *options, Record *record, uint64_t *state)
{
	bool outside = random_below(state, 2); /* of properties */
	uint64_t session;
	uint32_t extra;

	p = put_text(p, "{\"event_id\":\"");
	p = put_uuid(p, state);
	record->has_id = true;
	p = put_text(p, "\",\"user_id\":");
	p = put_user_value(p, options, record->user, state);
	p = put_text(p, ",\"event_type\":\"");
	p = put_text(p, options->types[record->type].name);
	p = put_text(p, "\",\"occurred_at\":");
	p = put_time_value(p, record, state);
	if (!outside)
		p = put_text(p, ",\"properties\":{");
	else
		*p++ = ',';
	if (record->item != 0)
	{
		p = put_text(p, "\"item_id\":");
		p = put_item_value(p, options, record->item, state);
		*p++ = ',';
	}
	if (record->cents != 0)
	{
		p = put_text(p, "\"amount\":");
		p = put_amount_value(p, options, record->cents, state);
		*p++ = ',';
	}
	p = put_text(p, "\"user_tier\":\"");
	p = put_text(p, user_tier(record->user));
	p = put_text(p, outside ? "\",\"properties\":{\"page\":" : "\",\"page\":");
	p = put_page(p, options, record);
	p = put_text(p, ",\"device\":\"");
	p = put_text(p, draw_device(state));
	p = put_text(p, "\",\"session\":\"");
	session =
		record->user * UINT64_C(0x9e3779b97f4a7c15) + record->occurred_us / (1800 * SECOND_US);
	p = put_hex(p, mix64(session), 8);
	extra = random_below(state, 100);
	if (extra < 3)
		p = put_text(p, "\",\"city\":\"S\xc3\xa3o Paulo \\u2615");
	else if (extra < 5)
		p = put_text(p, "\",\"query\":\"5\\\" \\\\ disk\\tblue");
	p = put_text(p, "\"}");
	if (extra >= 98)
	{
		p = put_text(p, ",\"traceparent\":\"00-");
		p = put_hex(p, random_bits(state), 16);
		p = put_hex(p, random_bits(state) | 1, 16);
		*p++ = '-';
		p = put_hex(p, random_bits(state) | 1, 16);
		p = put_text(p, "-01\"");
	}
	*p++ = '}';
	return p;
}

/* {"event","user_id"}: no time of its own, but only Kafka's records have one. */
static char *
put_bare_shape(char *p, const StreamOptions *options, Record *record, uint64_t *state)
{
	p = put_text(p, "{\"event\":\"");
	p = put_text(p, options->types[record->type].name);
	p = put_text(p, "\",\"user_id\":");
	p = put_user_value(p, options, record->user, state);
	if (options->target == TO_KAFKA)
		record->record_ms = record->occurred_us / 1000;
	else
	{
		p = put_text(p, ",\"ts\":");
		p = put_uint(p, record->occurred_us / 1000);
	}
	record->item = 0;
	record->cents = 0;
	*p++ = '}';
	return p;
}

/* {"eventId","userId","eventType","userTier","amount","timestamp"} */
static char *
put_camel_shape(char *p, const StreamOptions *options, Record *record, uint64_t *state)
{
	p = put_text(p, "{\"eventId\":\"");
	if (random_below(state, 2))
		p = put_uuid(p, state);
	else
	{
		p = put_text(p, "evt-");
		p = put_hex(p, random_bits(state), 16);
	}
	record->has_id = true;
	p = put_text(p, "\",\"userId\":");
	p = put_user_value(p, options, record->user, state);
	p = put_text(p, ",\"eventType\":\"");
	p = put_text(p, options->types[record->type].name);
	p = put_text(p, "\",\"userTier\":\"");
	p = put_text(p, user_tier(record->user));
	p = put_text(p, "\",\"amount\":");
	if (record->cents != 0)
		p = put_amount_value(p, options, record->cents, state);
	else
		p = put_text(p, "null");
	record->item = 0;
	p = put_text(p, ",\"timestamp\":");
	p = put_time_value(p, record, state);
	*p++ = '}';
	return p;
}

/* {"user_id","action","page","device","timestamp"}, in seconds */
static char *
put_page_shape(char *p, const StreamOptions *options, Record *record, uint64_t *state)
{
	p = put_text(p, "{\"user_id\":");
	p = put_user_value(p, options, record->user, state);
	p = put_text(p, ",\"action\":\"");
	p = put_text(p, options->types[record->type].name);
	p = put_text(p, "\",\"page\":");
	p = put_page(p, options, record);
	p = put_text(p, ",\"device\":\"");
	p = put_text(p, draw_device(state));
	p = put_text(p, "\",\"timestamp\":");
	record->occurred_us -= record->occurred_us % SECOND_US;
	p = put_uint(p, record->occurred_us / SECOND_US);
	record->item = 0;
	record->cents = 0;
	*p++ = '}';
	return p;
}

/* {"user_id","activity_type","item_id","timestamp"} */
static char *
put_item_shape(char *p, const StreamOptions *options, Record *record, uint64_t *state)
{
	p = put_text(p, "{\"user_id\":");
	p = put_user_value(p, options, record->user, state);
	p = put_text(p, ",\"activity_type\":\"");
	p = put_text(p, options->types[record->type].name);
	*p++ = '"';
	if (record->item != 0)
	{
		p = put_text(p, ",\"item_id\":");
		p = put_item_value(p, options, record->item, state);
	}
	record->cents = 0;
	p = put_text(p, ",\"timestamp\":");
	p = put_time_value(p, record, state);
	*p++ = '}';
	return p;
}

/*
 * Valid event number no (from 0).  The value lives in the generator's buffer
 * until the next one is made.
 */
static void
make_event(Generator *gen, uint64_t no, Record *record)
{
	const StreamOptions *options = gen->options;
	uint64_t state = mix64(mix64(options->seed) + no);
	double span_us = options->days * DAY_US;
	double draw = random_share(&state);
	double age;
	uint32_t shape;
	char *p = gen->buffer;
	const EventType *type;

	memset(record, 0, sizeof(*record));
	while (draw >= options->types[record->type].share)
		record->type++;
	type = &options->types[record->type];
	record->user = zipf_draw(&gen->users, &state);
	if (type->has_item)
		record->item = zipf_draw(&gen->items, &state);
	if (type->has_amount)
	{
		double price = random_share(&state);

		record->cents = 100 + (int64_t) (price * price * price * 50000);
		if (random_below(&state, 100) == 0)
			record->cents = -record->cents; /* a refund */
	}

	/* In order of time, except that each arrives up to ten minutes after. */
	age = span_us * (options->events - no - random_share(&state)) / options->events;
	age += random_share(&state) * 600 * SECOND_US;
	if (age > span_us)
		age = span_us;
	record->occurred_us = options->until_us - (int64_t) age;
	record->late = random_share(&state) < options->late;
	if (record->late)
		record->occurred_us -=
			(int64_t) (DAY_US * (1 + random_share(&state) * (MAX_LATE_DAYS - 1)));
	record->occurred_us -= record->occurred_us % 1000;

	shape = options->shapes ? random_below(&state, 8) : 7;
	if (record->late && shape == 0)
		shape = 7; /* a record's own time is never late */
	if (shape == 7 && options->shapes && options->target == TO_KAFKA &&
		random_below(&state, 16) == 0)
	{
		/* a schema registry's frame */
		*p++ = 0;
		p = put_bytes(p, "\0\0\0\7", 4);
	}
	switch (shape)
	{
		case 0:
			p = put_bare_shape(p, options, record, &state);
			break;
		case 1:
			p = put_camel_shape(p, options, record, &state);
			break;
		case 2:
			p = put_page_shape(p, options, record, &state);
			break;
		case 3:
			p = put_item_shape(p, options, record, &state);
			break;
		default:
			p = put_own_shape(p, options, record, &state);
			break;
	}
	record->value = gen->buffer;
	record->value_len = p - gen->buffer;
	record->key_len = put_user(record->key, options, record->user) - record->key;
}

/* A record without a value. */
static void
make_tombstone(Generator *gen, Record *record)
{
	memset(record, 0, sizeof(*record));
	record->user = zipf_draw(&gen->users, &gen->state);
	record->key_len = put_user(record->key, gen->options, record->user) - record->key;
}

#endif /* EVGEN_MAKE_H */
