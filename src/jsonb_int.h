/*-------------------------------------------------------------------------
 *
 * jsonb_int.h
 *	  What jsonb_flat.c and jsonb_nested.c share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_JSONB_INT_H
#define EVSTREAM_JSONB_INT_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/numeric.h"

/* The order of keys in jsonb: shorter ones first. */
static inline int
jsonb_key_cmp(const char *a, uint32 a_len, const char *b, uint32 b_len)
{
	if (a_len != b_len)
		return a_len < b_len ? -1 : 1;
	return memcmp(a, b, a_len);
}

/*
 * The entry of a key or value of a container: one in JB_OFFSET_STRIDE has where
 * it ends in the container's data, the others have their length.
 */
static inline JEntry
jsonb_entry(int index, uint32 type, uint32 len, uint32 end)
{
	if (index % JB_OFFSET_STRIDE == 0)
		return type | end | JENTRY_HAS_OFF;
	return type | len;
}

/* A JSON number, palloc'd; raises what numeric_in() does. */
extern Numeric jsonb_number(const char *text, size_t len);

/*
 * jsonb of the text of a valid JSON object, palloc'd; NULL where it is large, or
 * deeply nested, or has very many keys.
 */
extern Jsonb *jsonb_nested(const char *text, size_t len);

#endif /* EVSTREAM_JSONB_INT_H */
