/*
 * fuzz.h: what the fuzz targets share.
 */
#ifndef EVSTREAM_FUZZ_H
#define EVSTREAM_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void
require(bool good, const char *rule)
{
	if (!good)
	{
		fprintf(stderr, "broken: %s\n", rule);
		abort();
	}
}

#endif /* EVSTREAM_FUZZ_H */
