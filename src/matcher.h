/*-------------------------------------------------------------------------
 *
 * matcher.h
 *	  The subscribers' filters in memory, and which of them hold for an event.
 *
 * A matcher is a copy of evstream.filters, indexed so that the cost of an event
 * follows the filters that match it and not those that there are.  All
 * functions run in a transaction, but for matcher_match(), matcher_use_snapshot()
 * and those that only look; they raise errors as SQL does.  After an error
 * within matcher_refresh() the next one reads everything again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_MATCHER_H
#define EVSTREAM_MATCHER_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "event.h"

typedef struct Matcher Matcher;

/* What filters ask of an event; all of it detoasted, and the caller's. */
typedef struct MatchEvent
{
	EventText event_type; /* data is NULL where a field is absent */
	EventText user_id;
	EventText user_tier;
	bool has_amount;
	Numeric amount;
	Jsonb *properties; /* NULL: {} */
} MatchEvent;

/*
 * An empty matcher in a memory context of its own below parent, which lives
 * until matcher_free() or as long as parent.
 */
extern Matcher *matcher_create(MemoryContext parent);

/*
 * The same, filled with the filters that one subscriber has now, and not to be
 * refreshed.  In a transaction with SPI connected.
 */
extern Matcher *matcher_create_for(MemoryContext parent, const char *subscriber_id);

extern void matcher_free(Matcher *matcher);

/*
 * Takes the changes since the last call, if there may have been any.  In a
 * transaction with SPI connected.  Whatever the snapshot of a batch sees that
 * was read before this call is in the matcher after it.  Indexes of subscribers
 * that were given before have no meaning any more, and the filters that hold now
 * count until matcher_use_snapshot().  False: there were no changes, and indexes of
 * subscribers stay.
 */
extern bool matcher_refresh(Matcher *matcher);

/*
 * From now on those filters count that this snapshot sees (the text of a
 * pg_snapshot), or, if it is NULL, those that hold now, which is so at first.
 */
extern void matcher_use_snapshot(Matcher *matcher, const char *snapshot);

/*
 * The subscribers with a filter that matches the event: how many, and in
 * *subscribers their indexes, ascending, each once, in memory of the matcher
 * until the next call.  Leaks nothing into the caller's memory context beyond
 * what JSON numbers take, so reset that now and then.
 */
extern int matcher_match(Matcher *matcher, const MatchEvent *event, const int **subscribers);

/* The id of a subscriber; until the next matcher_refresh(). */
extern const char *matcher_subscriber(const Matcher *matcher, int index);

/* Versions of filters that are held, ended ones among them. */
extern int64 matcher_filters(const Matcher *matcher);

/* Bytes. */
extern Size matcher_memory(const Matcher *matcher);

#endif /* EVSTREAM_MATCHER_H */
