/*-------------------------------------------------------------------------
 *
 * redis_answer.c
 *	  What evstream's scripts and keys in Redis say, whatever they say.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "event.h"
#include "redis_answer.h"

/* {'ok', highest new epoch, deliveries, failed publications, why, number set aside, name, why, ...} */
#define AT_EPOCH       1
#define AT_UNPUBLISHED 3
#define AT_WHY         4
#define AT_NASIDES     5
#define AT_ASIDES      6

#define FIRST_US INT64_C(-62135596800000000) /* year 1 */
#define LAST_US  INT64_C(253402300799999999) /* year 9999 */

bool
redis_answer_is_ok(const RedisReply *reply)
{
	const char *word = redis_reply_text(redis_reply_at(reply, 0), NULL);

	return word != NULL && strcmp(word, "ok") == 0;
}

void
redis_answer_sent(const RedisReply *reply, RedisSent *sent)
{
	int64_t nasides = redis_reply_integer(redis_reply_at(reply, AT_NASIDES));
	size_t named = redis_reply_count(reply);

	named = named > AT_ASIDES ? (named - AT_ASIDES) / 2 : 0;
	sent->epoch = redis_reply_integer(redis_reply_at(reply, AT_EPOCH));
	if (sent->epoch < 0 || sent->epoch > REDIS_EPOCH_MAX)
		sent->epoch = 0;
	sent->unpublished = redis_reply_integer(redis_reply_at(reply, AT_UNPUBLISHED));
	if (sent->unpublished < 0 || sent->unpublished > INT32_MAX)
		sent->unpublished = INT32_MAX;
	sent->why = redis_reply_text(redis_reply_at(reply, AT_WHY), NULL);
	if (sent->why == NULL)
		sent->why = "";
	sent->nasides = nasides > 0 ? named : 0;
}

bool
redis_answer_aside(const RedisReply *reply, size_t i, const char **subscriber, const char **why)
{
	*subscriber = redis_reply_text(redis_reply_at(reply, AT_ASIDES + 2 * i), NULL);
	*why = redis_reply_text(redis_reply_at(reply, AT_ASIDES + 2 * i + 1), NULL);
	return *subscriber != NULL && *why != NULL;
}

bool
redis_answer_cursor(const char *text, int64_t *us, uint8_t event_id[16], int64_t *log_offset)
{
	char *end;

	errno = 0;
	*us = strtoll(text, &end, 10);
	*log_offset = -1;
	if (errno != 0 || *us < FIRST_US || *us > LAST_US || end == text || *end != ' ' ||
		strlen(end) < 37 || !event_parse_uuid(end + 1, 36, event_id))
		return false;
	if (end[37] == ' ')
		*log_offset = strtoll(end + 38, NULL, 10);
	return true;
}
