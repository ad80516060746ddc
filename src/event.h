/*-------------------------------------------------------------------------
 *
 * event.h
 *	  From the bytes of a record to an event, or to the reason why not.
 *
 * No server headers here: the parser is used by the server, by the event
 * generator and by the fuzzer alike.  Nothing in event.c raises an error,
 * keeps global state or takes longer than linear time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_EVENT_H
#define EVSTREAM_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EVENT_USER_ID_MAX       255 /* characters, not bytes */
#define EVENT_TYPE_MAX          100
#define EVENT_ID_MAX            255
#define EVENT_ITEM_ID_MAX       255
#define EVENT_DEPTH_MAX         100
#define EVENT_AMOUNT_INT_DIGITS 20 /* numeric(30,10) */
#define EVENT_AMOUNT_FRACTION   10
#define EVENT_DETAIL_SIZE       256

/* No time known. */
#define EVENT_NO_TIME INT64_MIN

/* Why an event was refused; the names are part of the contract. */
typedef enum EventReason
{
	EVENT_OK = 0,
	EVENT_NOT_JSON,
	EVENT_NOT_OBJECT,
	EVENT_BAD_TEXT,
	EVENT_TOO_LARGE,
	EVENT_BAD_USER_ID,
	EVENT_BAD_EVENT_TYPE,
	EVENT_BAD_EVENT_ID,
	EVENT_BAD_TIMESTAMP,
	EVENT_FUTURE_TIMESTAMP,
	EVENT_BAD_AMOUNT,
	EVENT_BAD_PROPERTIES,
	EVENT_REFUSED,  /* by the broker; never from event_parse */
	EVENT_CRASHED,  /* took the worker down; never from event_parse */
	EVENT_NO_MEMORY /* not the record's fault: raise it, do not
								 * store it */
} EventReason;

/* Text that is not NUL-terminated; data is NULL where the field is absent. */
typedef struct EventText
{
	const char *data;
	size_t len; /* bytes */
} EventText;

typedef struct Event
{
	EventText user_id;
	EventText event_type;
	EventText event_id;     /* as given; NULL = absent */
	bool event_id_is_uuid;  /* canonical 8-4-4-4-12 form, any case */
	uint8_t event_uuid[16]; /* only if event_id_is_uuid */
	int64_t occurred_us;    /* microseconds since 1970-01-01 UTC, or
								 * EVENT_NO_TIME */
	EventText item_id;
	EventText amount; /* plain decimal, at most 20.10 digits, no
								 * exponent, no superfluous zeros */
	EventText user_tier;
	EventText traceparent;
	EventText properties; /* valid JSON object text, never NULL; may hold
								 * a key twice, of which the last counts */
	int depth;            /* of the value's containers, itself one of them */
} Event;

typedef struct EventLimits
{
	size_t max_bytes;
	int64_t now_us; /* microseconds since 1970, for
								 * future_timestamp */
	int64_t max_skew_us;
	int64_t record_us;     /* the record's own time, used where the event
								 * has none; or EVENT_NO_TIME */
	EventText traceparent; /* of the record's header, or NULL; wins where
								 * it is valid */
} EventLimits;

/*
 * Memory for decoded texts.  Grows as needed; event_arena_reset() makes it
 * empty and keeps one chunk of at most 8 MB, so that a batch loop does not
 * allocate.
 */
typedef struct EventArena EventArena;

/* A new arena (malloc), or NULL. */
extern EventArena *event_arena_create(void);
extern void event_arena_reset(EventArena *arena);
extern void event_arena_free(EventArena *arena);

/*
 * Is it taking memory from malloc() just now?  For a signal handler: at any other
 * time an event_parse() may be left by a jump, and the arena be reset.
 */
extern bool event_arena_busy(const EventArena *arena);

/* len bytes, aligned for any type, or NULL. */
extern void *event_arena_alloc(EventArena *arena, size_t len);

/*
 * Parse one record's value.  The texts in *event point into value or into the
 * arena, and live as long as both do.  On any result but EVENT_OK, *event is
 * undefined, and detail (EVENT_DETAIL_SIZE bytes, or NULL) has a short English
 * sentence without capital or full stop, valid UTF-8, which never repeats more
 * than a few characters of the record.
 */
extern EventReason event_parse(const char *value, size_t len, const EventLimits *limits,
							   EventArena *arena, Event *event, char *detail);

/*
 * The event as evstream itself writes it: names of the contract's first
 * column, absent fields left out, properties only where not empty.  event_uuid
 * is written as event_id (event->event_id is ignored), occurred_us where it is
 * known.  extra, where it is not NULL, is JSON members without braces
 * (`"a": 1, "b": 2`) put at the end.  Result in the arena; data is NULL when
 * memory ran out.
 */
extern EventText event_format(const Event *event, const char *extra, EventArena *arena);

/*
 * RFC 3339 or what the contract calls one (no offset = UTC, a space in place
 * of T, date alone is refused); false where it is none.  Years 0001 to 9999.
 */
extern bool event_parse_time(const char *text, size_t len, int64_t *us);

/* "2026-11-20T12:45:40.049000Z"; buf has room for 33 bytes; returns length. */
extern size_t event_format_time(int64_t us, char *buf);

/* 00-<32 hex>-<16 hex>-<2 hex>, lower case, not all zeros, as W3C has it. */
extern bool event_traceparent_valid(const char *text, size_t len);

/* Valid UTF-8 without NUL? */
extern bool event_text_valid(const char *text, size_t len);

/* Canonical text of a UUID, 36 characters and a NUL; and back. */
extern void event_format_uuid(const uint8_t uuid[16], char buf[37]);
extern bool event_parse_uuid(const char *text, size_t len, uint8_t uuid[16]);

/* "not_json", ...; and back (EVENT_OK where there is no such reason). */
extern const char *event_reason_name(EventReason reason);
extern EventReason event_reason_by_name(const char *name);

#endif /* EVSTREAM_EVENT_H */
