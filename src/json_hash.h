/*-------------------------------------------------------------------------
 *
 * json_hash.h
 *	  JSON objects as hashes: of each of their scalars, and as a whole.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_JSON_HASH_H
#define EVSTREAM_JSON_HASH_H

#include "postgres.h"

#include "utils/jsonb.h"

typedef void (*JsonPairCallback)(uint64 hash, void *arg);

/*
 * Calls back for each pair of an object: a scalar, or the begin of an array or
 * object, with the path that leads to it.  Whatever contains the object (@>) has
 * all of its pairs.  Leaves nothing behind in the current memory context.
 */
extern void json_pairs(Jsonb *object, JsonPairCallback callback, void *arg);

/* Equal objects (=) have the same hash, others hardly ever. */
extern uint64 json_hash(Jsonb *object);

#endif /* EVSTREAM_JSON_HASH_H */
