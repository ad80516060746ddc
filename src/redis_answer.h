/*-------------------------------------------------------------------------
 *
 * redis_answer.h
 *	  What evstream's scripts and keys in Redis say, whatever they say.
 *
 * Replies come from a server that is not ours to trust: anything may be nil, of
 * another type, missing, or no text.  No server headers here, so that it can be
 * fuzzed alone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_REDIS_ANSWER_H
#define EVSTREAM_REDIS_ANSWER_H

#include "redis.h"

/* Epochs are exact as numbers of Lua up to here */
#define REDIS_EPOCH_MAX INT64_C(9007199254740991)

/* Of the script that sends; texts are the reply's, as they came. */
typedef struct RedisSent
{
	int64_t epoch;       /* the highest new one; 0: none, or none that can be */
	int64_t unpublished; /* messages that were refused */
	const char *why;     /* of one of them; never NULL */
	size_t nasides;      /* subscribers that were set aside, and are named */
} RedisSent;

/* Does the array begin with 'ok'? */
extern bool redis_answer_is_ok(const RedisReply *reply);

/* Of a reply that is 'ok'. */
extern void redis_answer_sent(const RedisReply *reply, RedisSent *sent);

/* The i-th that was set aside, and why; false where the reply has it not as texts. */
extern bool redis_answer_aside(const RedisReply *reply, size_t i, const char **subscriber,
							   const char **why);

/*
 * "<microseconds since 1970> <event_id> <log_offset>", of which the last may be
 * missing (-1).  False: it is no cursor, or its time is none of the years 1 to 9999.
 */
extern bool redis_answer_cursor(const char *text, int64_t *us, uint8_t event_id[16],
								int64_t *log_offset);

#endif /* EVSTREAM_REDIS_ANSWER_H */
