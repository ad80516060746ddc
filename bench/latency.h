/*
 * What the files of latency share: the way to Kafka.
 */
#ifndef LATENCY_H
#define LATENCY_H

#include <stddef.h>

extern void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/*
 * Opens a producer (without linger, acks=all) and a consumer that begins behind the
 * last record of each partition; returns when it does.  The result is readable when
 * records have come.
 */
extern int kafka_open(const char *brokers, const char *topic);

/* Calls each, unless it is NULL, for the value of every record that has come. */
extern void kafka_take(void (*each)(const char *value, size_t len));

/* Sends a record, and serves what the producer has to say. */
extern void kafka_publish(const char *key, const char *value, size_t len);

#endif
