/*-------------------------------------------------------------------------
 *
 * relay.h
 *	  What the files of the relay worker share among themselves.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVSTREAM_RELAY_H
#define EVSTREAM_RELAY_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "kafka.h"
#include "outbox.h"
#include "worker.h"

/* In flight: read and not yet recorded as delivered */
#define FLIGHT_ROWS    65536 /* a power of two */
#define FLIGHT_BYTES   ((Size) 32 * 1024 * 1024)
#define RETRY_FIRST_MS 200

typedef enum FlightState
{
	FLIGHT_PENDING,
	FLIGHT_DELIVERED,
	FLIGHT_REFUSED
} FlightState;

/* Rows that were read together, in memory of their own. */
typedef struct ReadBatch
{
	struct ReadBatch *next;
	MemoryContext context;
	OutboxBatch outbox;
	int64 tick;   /* of its rows */
	uint64 first; /* number of its first row */
	Size bytes;
} ReadBatch;

typedef struct Refusal
{
	uint64 number;
	char error[sizeof(((KafkaDelivery *) 0)->error)];
} Refusal;

typedef struct Relay
{
	KafkaClient *client;
	char *topic;
	char cluster[128];
	int topic_partitions;
	int32 log_id;
	pg_uuid_t origin;
	bool single;               /* one record in a batch */
	OutboxPosition single_end; /* batches again behind it */
	int64 single_since;
	long retry_ms; /* before the next client is opened */

	/* numbers of rows: recorded <= delivered <= produced <= read */
	uint64 recorded;
	uint64 delivered; /* all rows before it are */
	uint64 produced;
	uint64 read;
	Size bytes;                /* of the batches in the list */
	uint8 states[FLIGHT_ROWS]; /* FlightState, by number */
	ReadBatch *first;
	ReadBatch *last;
	ReadBatch *producing; /* where the next row to produce is */
	Refusal *refusals;    /* in no order */
	int nrefusals;
	int refusals_size;

	OutboxPosition read_at;
	OutboxFlush flush;
	OutboxPosition done_at; /* before the list; all of it is delivered */
	OutboxPosition recorded_at;
	int64 *next_offsets; /* by partition, 0 = nothing delivered */
	int nparts;

	/* by clock_us() */
	int64 recorded_since; /* the last time that something was recorded */
	int64 read_due;
	int64 look_due;
	int64 progress_at;    /* last delivery, or since when there is any to wait for */
	int64 timeless_until; /* records are sent without a timestamp */
	WorkerRate rate;
	bool look;        /* there may be something to read */
	bool broken;      /* begin again from the recorded position */
	bool failing;     /* records failed, and none was delivered since */
	bool topic_moved; /* it is another log now */
	MemoryContext client_context;
} Relay;

extern Relay relay;

/* Registers the client's end at the process's end. */
extern void relay_client_init(void);

/* Opens a client, and waits until the topic exists; sets relay.cluster. */
extern void relay_client_open(void);
extern void relay_client_close(void);

/* Serves the client's queues. */
extern void relay_client_poll(void);

/* What the client itself knows, and what its silence tells. */
extern void relay_client_health(int64 now);

/* Records cannot be sent with this client: it is to be opened again. */
extern void relay_client_broken(KafkaStatus status, const char *error);

/* Waits a delay that grows with each call until something was delivered. */
extern void relay_client_retry(void);

#endif /* EVSTREAM_RELAY_H */
