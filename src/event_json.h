/*-------------------------------------------------------------------------
 *
 * event_json.h
 *	  JSON scanner below event.c: syntax, strings and their escapes.
 *
 * The scanner checks syntax and remembers where things are; it copies nothing
 * and never reads behind the end.  No server headers here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_EVENT_JSON_H
#define EVSTREAM_EVENT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum JsonType
{
	JSON_NONE = 0,
	JSON_NULL,
	JSON_BOOLEAN,
	JSON_NUMBER,
	JSON_STRING,
	JSON_OBJECT,
	JSON_ARRAY
} JsonType;

/* A value where it stands; data includes the quotes or braces. */
typedef struct JsonValue
{
	const char *data;
	size_t len; /* bytes */
	JsonType type;
	bool escaped;    /* string with at least one backslash */
	bool unholdable; /* number that numeric cannot hold */
} JsonValue;

typedef enum JsonError
{
	JSON_FINE = 0,
	JSON_SYNTAX,
	JSON_TOO_DEEP
} JsonError;

typedef struct JsonScan
{
	const char *start;
	const char *pos;
	const char *end;
	int depth;       /* containers open at pos */
	int deepest;     /* the most of them so far */
	int max_depth;   /* at most JSON_DEPTH_LIMIT */
	bool bad_text;   /* some string so far holds no valid text */
	bool bad_number; /* some number so far is unholdable */
	int64_t zeros;   /* that exponents so far stand for */
	JsonError error;
	const char *message; /* where error is JSON_SYNTAX; static */
} JsonScan;

#define JSON_DEPTH_LIMIT 256

extern void event_json_start(JsonScan *scan, const char *data, size_t len, int max_depth);

/*
 * Scan one value of any kind, after white space; pos is behind it afterwards.
 * False: scan->error says why, and pos is where.
 */
extern bool event_json_value(JsonScan *scan, JsonValue *value);

/* The next byte that is no white space, not consumed; -1 at the end. */
extern int event_json_peek(JsonScan *scan);

/*
 * To walk through one object: event_json_open() consumes the brace that
 * event_json_peek() saw, then each event_json_member() gives a key and stands
 * before its value, which event_json_value() or another event_json_open() must
 * consume; it gives false at the closing brace (consumed) and on an error.
 * *first must be true at the first call and is kept by event_json_member().
 */
extern bool event_json_open(JsonScan *scan);
extern bool event_json_member(JsonScan *scan, bool *first, JsonValue *key);

/* The same for an array: stands before its next element. */
extern bool event_json_element(JsonScan *scan, bool *first);

/* Only white space left?  Sets the error otherwise. */
extern bool event_json_finish(JsonScan *scan);

/* Nothing but white space between the braces of a valid object's text? */
extern bool event_json_is_blank(const char *data, size_t len);

/*
 * Resolve the escapes of a scanned string's inside (without the quotes) into
 * dst, which has room for len bytes; returns the bytes written.
 */
extern size_t event_json_unescape(const char *data, size_t len, char *dst);

/*
 * Bytes that event_json_escape() will write, without quotes, at most
 * EVENT_JSON_ESCAPED_MAX for each; and do so.
 */
#define EVENT_JSON_ESCAPED_MAX 6
extern size_t event_json_escaped_len(const char *data, size_t len);
extern char *event_json_escape(char *dst, const char *data, size_t len);

/* A JSON number taken apart; the value is int.fraction * 10 ^ exponent. */
typedef struct JsonNumber
{
	bool negative;
	const char *int_start;
	size_t int_len; /* at least 1 */
	const char *fraction;
	size_t fraction_len; /* 0 = none */
	int64_t exponent;    /* within +-JSON_EXPONENT_LIMIT */
} JsonNumber;

/* All exponents beyond are alike to every caller. */
#define JSON_EXPONENT_LIMIT INT64_C(1000000000)

/*
 * Take apart the number at p; returns what follows it, or NULL where there is
 * no number.
 */
extern const char *event_json_take_number(const char *p, const char *end, JsonNumber *number);

static inline bool
event_is_digit(char c)
{
	return (unsigned char) (c - '0') <= 9;
}

/*
 * The length (1-4) of the valid UTF-8 character that begins at p with a byte
 * of 0x80 or more; 0 where there is none.
 */
extern int event_utf8_len(const char *p, const char *end);

/* At most max characters (code points)?  The text is valid UTF-8. */
extern bool event_utf8_fits(const char *data, size_t len, size_t max);

#endif /* EVSTREAM_EVENT_JSON_H */
