/*-------------------------------------------------------------------------
 *
 * settings_text.h
 *	  What the texts of settings and of the secrets file say.
 *
 * No server headers here, so that it can be fuzzed alone.  Nothing raises, waits
 * or allocates memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SETTINGS_TEXT_H
#define EVSTREAM_SETTINGS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TEXT_TOPIC_MAX   249
#define TEXT_CHANNEL_MAX 63 /* of NOTIFY, in bytes */

/* Of text_start() */
#define TEXT_START_EARLIEST (-2)
#define TEXT_START_LATEST   (-1)

/*
 * The next item of a comma-separated text, without the blanks around it, from
 * *pos on; false behind the last.  *len may be 0.
 */
extern bool next_item(const char **pos, const char **item, size_t *len);

/* Nothing but blanks?  Any control characters? */
extern bool text_is_empty(const char *text);
extern bool text_has_control(const char *text);

/* The name of a topic; a list of topics, brokers or channels, which may be empty. */
extern bool text_is_topic(const char *name, size_t len);
extern bool text_is_topics(const char *text);
extern bool text_is_brokers(const char *text);
extern bool text_is_channels(const char *text);

/*
 * What is wrong with a URL of Redis without user and password, as a sentence;
 * NULL: nothing.  TEXT_NO_TLS: it asks for TLS, and has_tls is false.
 */
extern const char TEXT_NO_TLS[];
extern const char *text_redis_url(const char *url, bool has_tls);

/* TEXT_START_*, or milliseconds since 1970; false if it is neither. */
extern bool text_start(const char *text, int64_t *ms);

typedef enum TextLine
{
	TEXT_LINE_EMPTY, /* or a comment */
	TEXT_LINE_HEADING,
	TEXT_LINE_PAIR,
	TEXT_LINE_WRONG
} TextLine;

/*
 * Takes the line at *next, which is changed, and moves *next behind it (NULL: it
 * was the last).  Heading: its name in *key; pair: *key and *value.
 */
extern TextLine text_secrets_line(char **next, char **key, char **value);

#endif /* EVSTREAM_SETTINGS_TEXT_H */
