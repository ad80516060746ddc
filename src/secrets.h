/*-------------------------------------------------------------------------
 *
 * secrets.h
 *	  The secrets file, for settings.c; others use settings.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_SECRETS_H
#define EVSTREAM_SECRETS_H

#include "postgres.h"

#include "kafka.h"

/*
 * The librdkafka properties among the secrets, as an array of *count pairs;
 * lives until the file is read again.
 */
extern const KafkaPair *secrets_kafka(int *count);

/* Why no client of Kafka is to be made with them, or NULL; lives as long. */
extern const char *secrets_kafka_fault(void);

/* A hash of what this database takes from the file. */
extern uint64 secrets_hash(void);

#endif /* EVSTREAM_SECRETS_H */
