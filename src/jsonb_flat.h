/*-------------------------------------------------------------------------
 *
 * jsonb_flat.h
 *	  jsonb from the text of a JSON object, without a tree where it is flat.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_JSONB_FLAT_H
#define EVSTREAM_JSONB_FLAT_H

#include "postgres.h"

/*
 * What jsonb_in() makes of this text, byte for byte, palloc'd.  The text is a
 * valid JSON object (as event_parse() gives it) without NUL at its end.
 */
extern Datum jsonb_from_object(const char *text, size_t len);

#endif /* EVSTREAM_JSONB_FLAT_H */
