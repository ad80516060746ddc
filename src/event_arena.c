/*-------------------------------------------------------------------------
 *
 * event_arena.c
 *	  Memory for the texts of a batch of events, freed all at once.
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <stdlib.h>

#include "event.h"

/*
 * With both at 1 each text has a chunk of its own, so that a sanitizer sees
 * what is written behind its end.
 */
#ifndef ARENA_FIRST_CHUNK
#define ARENA_FIRST_CHUNK   ((size_t) 64 * 1024)
#define ARENA_LARGEST_CHUNK ((size_t) 8 * 1024 * 1024)
#endif

#define ARENA_ALIGN ((size_t) 16)

typedef struct Chunk
{
	struct Chunk *next;
	size_t size; /* of what follows the header */
	size_t used;
} Chunk;

/* The header's size, so that what follows it is aligned. */
#define CHUNK_HEADER ((sizeof(Chunk) + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN)

struct EventArena
{
	Chunk *current; /* head of the list of all chunks */
	size_t next_size;
	volatile sig_atomic_t busy; /* in malloc() */
};

static bool
arena_grow(EventArena *arena, size_t len)
{
	size_t size = arena->next_size > len ? arena->next_size : len;
	Chunk *chunk;

	if (size > SIZE_MAX - CHUNK_HEADER)
		return false;
	chunk = malloc(CHUNK_HEADER + size);
	if (chunk == NULL)
		return false;
	chunk->next = arena->current;
	chunk->size = size;
	chunk->used = 0;
	arena->current = chunk;
	if (arena->next_size < ARENA_LARGEST_CHUNK)
		arena->next_size *= 2;
	return true;
}

EventArena *
event_arena_create(void)
{
	EventArena *arena = malloc(sizeof(EventArena));

	if (arena == NULL)
		return NULL;
	arena->current = NULL;
	arena->next_size = ARENA_FIRST_CHUNK;
	arena->busy = 0;
	return arena;
}

/*
 * Keeps the largest chunk, so that batches of one size soon fit into it; but
 * not the memory of an exceptional one.
 */
void
event_arena_reset(EventArena *arena)
{
	Chunk *keep = NULL;
	Chunk *chunk = arena->current;

	while (chunk != NULL)
	{
		Chunk *next = chunk->next;

		if (chunk->size <= ARENA_LARGEST_CHUNK && (keep == NULL || chunk->size > keep->size))
		{
			free(keep);
			keep = chunk;
		}
		else
			free(chunk);
		chunk = next;
	}
	if (keep != NULL)
	{
		keep->next = NULL;
		keep->used = 0;
	}
	arena->current = keep;
}

void
event_arena_free(EventArena *arena)
{
	Chunk *chunk;

	if (arena == NULL)
		return;
	chunk = arena->current;
	while (chunk != NULL)
	{
		Chunk *next = chunk->next;

		free(chunk);
		chunk = next;
	}
	free(arena);
}

bool
event_arena_busy(const EventArena *arena)
{
	return arena->busy != 0;
}

void *
event_arena_alloc(EventArena *arena, size_t len)
{
	Chunk *chunk;
	char *data;

	if (len > SIZE_MAX - ARENA_ALIGN)
		return NULL;
	len = (len + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
	if (arena->current == NULL || len > arena->current->size - arena->current->used)
	{
		bool grown;

		arena->busy = 1;
		grown = arena_grow(arena, len);
		arena->busy = 0;
		if (!grown)
			return NULL;
	}
	chunk = arena->current;
	data = (char *) chunk + CHUNK_HEADER + chunk->used;
	chunk->used += len;
	return data;
}
