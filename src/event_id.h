/*-------------------------------------------------------------------------
 *
 * event_id.h
 *	  Ids of events: UUIDv7 for new ones, UUIDv5 for texts and places.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_EVENT_ID_H
#define EVSTREAM_EVENT_ID_H

#include "postgres.h"

#include "utils/uuid.h"

#include "event.h"

/* A new id: UUIDv7, growing within this process. Raises on lack of randomness. */
extern void event_id_generate(pg_uuid_t *id);

/* The id that a text becomes: a UUID itself, any other text its UUIDv5. */
extern void event_id_from_text(const char *text, Size len, pg_uuid_t *id);

/*
 * The id of a record without one: the same for the same record for ever.
 * log_name tells the incarnation of the topic ("<cluster>/<topic>/<count>").
 */
extern void event_id_derive(const char *log_name, int32 partition, int64 offset, pg_uuid_t *id);

/* The id of an event that has one; false where it has none. */
extern bool event_id_of(const Event *event, pg_uuid_t *id);

#endif /* EVSTREAM_EVENT_ID_H */
