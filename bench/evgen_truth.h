/*-------------------------------------------------------------------------
 *
 * evgen_truth.h
 *	  What has to come out: counts by user, type and day, by user, item and
 *	  day, and by type and day, kept in open hash tables and written as CSV.
 *
 * Days are UTC days, rows are sorted by their key columns as bytes (COLLATE
 * "C").
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVGEN_TRUTH_H
#define EVGEN_TRUTH_H

#include "evgen_make.h"

typedef struct DailyCount
{
	uint32_t user;
	uint16_t day; /* since 1970 */
	uint16_t type;
	uint32_t count; /* 0: a free slot */
	int64_t cents;
	int64_t first_us;
	int64_t last_us;
} DailyCount;

typedef struct ItemCount
{
	uint32_t user;
	uint32_t item;
	uint32_t views;
	uint32_t clicks;
	uint32_t purchases;
	uint32_t count; /* 0: a free slot */
	uint16_t day;
} ItemCount;

typedef struct Truth
{
	const StreamOptions *options;
	DailyCount *daily;
	ItemCount *items;
	uint64_t daily_size, /* powers of two */
		item_size;
	uint64_t daily_used, item_used;
	uint64_t dead[FAULT_COUNT];
	int view, /* indexes of the types with a column, or -1 */
		click, purchase;
} Truth;

static int
type_index(const StreamOptions *options, const char *name)
{
	for (int i = 0; i < options->type_count; i++)
		if (strcmp(options->types[i].name, name) == 0)
			return i;
	return -1;
}

/* options must outlive the truth. */
static void
truth_prepare(Truth *truth, const StreamOptions *options)
{
	memset(truth, 0, sizeof(*truth));
	truth->options = options;
	truth->daily_size = truth->item_size = 4096;
	truth->daily = need_memory(truth->daily_size, sizeof(DailyCount));
	truth->items = need_memory(truth->item_size, sizeof(ItemCount));
	truth->view = type_index(options, "view");
	truth->click = type_index(options, "click");
	truth->purchase = type_index(options, "purchase");
}

/* The slot of a key, or the free slot where it belongs. */
static DailyCount *
daily_slot(DailyCount *slots, uint64_t size, uint32_t user, uint16_t day, uint16_t type)
{
	uint64_t i = mix64((uint64_t) user << 32 | (uint32_t) day << 16 | type);

	for (;; i++)
	{
		DailyCount *slot = &slots[i & (size - 1)];

		if (slot->count == 0 || (slot->user == user && slot->day == day && slot->type == type))
			return slot;
	}
}

static ItemCount *
item_slot(ItemCount *slots, uint64_t size, uint32_t user, uint32_t item, uint16_t day)
{
	uint64_t i = mix64(((uint64_t) user << 32 | item) * 31 + day);

	for (;; i++)
	{
		ItemCount *slot = &slots[i & (size - 1)];

		if (slot->count == 0 || (slot->user == user && slot->item == item && slot->day == day))
			return slot;
	}
}

static void
daily_grow(Truth *truth)
{
	uint64_t size = truth->daily_size * 2;
	DailyCount *slots = need_memory(size, sizeof(DailyCount));

	for (uint64_t i = 0; i < truth->daily_size; i++)
	{
		const DailyCount *old = &truth->daily[i];

		if (old->count > 0)
			*daily_slot(slots, size, old->user, old->day, old->type) = *old;
	}
	free(truth->daily);
	truth->daily = slots;
	truth->daily_size = size;
}

static void
item_grow(Truth *truth)
{
	uint64_t size = truth->item_size * 2;
	ItemCount *slots = need_memory(size, sizeof(ItemCount));

	for (uint64_t i = 0; i < truth->item_size; i++)
	{
		const ItemCount *old = &truth->items[i];

		if (old->count > 0)
			*item_slot(slots, size, old->user, old->item, old->day) = *old;
	}
	free(truth->items);
	truth->items = slots;
	truth->item_size = size;
}

/* Count one valid event (not its repetitions). */
static void
truth_count(Truth *truth, const Record *record)
{
	uint16_t day = (uint16_t) (record->occurred_us / DAY_US);
	DailyCount *daily =
		daily_slot(truth->daily, truth->daily_size, record->user, day, record->type);

	if (daily->count == 0)
	{
		daily->user = record->user;
		daily->day = day;
		daily->type = record->type;
		daily->first_us = daily->last_us = record->occurred_us;
		truth->daily_used++;
	}
	daily->count++;
	daily->cents += record->cents;
	if (record->occurred_us < daily->first_us)
		daily->first_us = record->occurred_us;
	if (record->occurred_us > daily->last_us)
		daily->last_us = record->occurred_us;
	if (truth->daily_used > truth->daily_size / 4 * 3)
		daily_grow(truth);

	if (record->item == 0)
		return;

	ItemCount *item = item_slot(truth->items, truth->item_size, record->user, record->item, day);

	if (item->count == 0)
	{
		item->user = record->user;
		item->item = record->item;
		item->day = day;
		truth->item_used++;
	}
	item->count++;
	item->views += (int) record->type == truth->view;
	item->clicks += (int) record->type == truth->click;
	item->purchases += (int) record->type == truth->purchase;
	if (truth->item_used > truth->item_size / 4 * 3)
		item_grow(truth);
}

/* ---- writing ---- */

/*
 * Where each number of 1 to n stands among the names put_name() gives them,
 * and the reverse.  Names differ in a prefix by is_number() only, and digits
 * come before letters.
 */
static void
rank_names(const StreamOptions *options, uint32_t n,
		   bool (*is_number)(const StreamOptions *, uint32_t), uint32_t **rank, uint32_t **number)
{
	uint32_t next = 0;

	*rank = need_memory((size_t) n + 1, sizeof(uint32_t));
	*number = need_memory((size_t) n, sizeof(uint32_t));
	for (int prefixed = 0; prefixed < 2; prefixed++)
	{
		uint64_t k = 1;

		/* 1, 10, 100, 101, ...: numbers in the order of their digits */
		for (uint32_t i = 0; i < n; i++)
		{
			if (is_number(options, k) == !prefixed)
			{
				(*rank)[k] = next;
				(*number)[next++] = k;
			}
			if (k * 10 <= n)
				k *= 10;
			else
			{
				while (k % 10 == 9 || k + 1 > n)
					k /= 10;
				k++;
			}
		}
	}
}

static int
compare_daily(const void *a, const void *b)
{
	const DailyCount *x = a, *y = b;
	uint64_t key_x = (uint64_t) x->user << 32 | (uint32_t) x->day << 16 | x->type;
	uint64_t key_y = (uint64_t) y->user << 32 | (uint32_t) y->day << 16 | y->type;

	return (key_x > key_y) - (key_x < key_y);
}

static int
compare_items(const void *a, const void *b)
{
	const ItemCount *x = a, *y = b;
	uint64_t key_x = (uint64_t) x->user << 32 | x->item;
	uint64_t key_y = (uint64_t) y->user << 32 | y->item;

	if (key_x != key_y)
		return key_x > key_y ? 1 : -1;
	return (int) x->day - (int) y->day;
}

static void
open_csv(Writer *writer, char *name, size_t size, const char *prefix, const char *suffix,
		 const char *header)
{
	snprintf(name, size, "%s.%s", prefix, suffix);
	writer_open(writer, name);
	writer_put(writer, header, strlen(header));
}

#define LINE_MAX_BYTES 512

typedef struct DayTotal
{
	uint64_t count;
	uint64_t users;
	int64_t cents;
} DayTotal;

/* Both files that the daily counts give; the table is used up. */
static void
write_daily(Truth *truth, const char *prefix)
{
	const StreamOptions *options = truth->options;
	int types = options->type_count;
	uint32_t type_rank[MAX_TYPES] = {0};
	uint32_t type_number[MAX_TYPES];
	uint32_t *user_rank, *user_number;
	uint16_t first_day = UINT16_MAX, last_day = 0;
	uint64_t n = 0;
	DayTotal *totals;
	Writer writer;
	char name[4096];
	char *p;

	rank_names(options, options->users, user_is_number, &user_rank, &user_number);
	for (int i = 0; i < types; i++)
	{
		for (int j = 0; j < types; j++)
			type_rank[i] += strcmp(options->types[j].name, options->types[i].name) < 0;
		type_number[type_rank[i]] = i;
	}
	for (uint64_t i = 0; i < truth->daily_size; i++)
	{
		DailyCount daily = truth->daily[i];

		if (daily.count == 0)
			continue;
		if (daily.day < first_day)
			first_day = daily.day;
		if (daily.day > last_day)
			last_day = daily.day;
		daily.user = user_rank[daily.user];
		daily.type = type_rank[daily.type];
		truth->daily[n++] = daily;
	}
	qsort(truth->daily, n, sizeof(DailyCount), compare_daily);

	totals =
		need_memory(n == 0 ? 1 : (size_t) (last_day - first_day + 1) * types, sizeof(DayTotal));
	open_csv(&writer, name, sizeof(name), prefix, "counts.csv",
			 "user_id,day,event_type,event_count,amount_total,first_event_at,last_event_at\n");
	for (uint64_t i = 0; i < n; i++)
	{
		const DailyCount *daily = &truth->daily[i];
		DayTotal *total = &totals[(daily->day - first_day) * types + daily->type];

		total->count += daily->count;
		total->users++;
		total->cents += daily->cents;

		p = writer_room(&writer, LINE_MAX_BYTES);
		p = put_user(p, options, user_number[daily->user]);
		*p++ = ',';
		p = put_day(p, daily->day);
		*p++ = ',';
		p = put_text(p, options->types[type_number[daily->type]].name);
		*p++ = ',';
		p = put_uint(p, daily->count);
		*p++ = ',';
		p = put_cents(p, daily->cents);
		*p++ = ',';
		p = put_time(p, daily->first_us, 6, 0);
		*p++ = ',';
		p = put_time(p, daily->last_us, 6, 0);
		*p++ = '\n';
		writer_end(&writer, p);
	}
	writer_close(&writer);

	open_csv(&writer, name, sizeof(name), prefix, "totals.csv",
			 "day,event_type,event_count,user_count,amount_total\n");
	for (uint64_t i = 0; n > 0 && i < (uint64_t) (last_day - first_day + 1) * types; i++)
	{
		if (totals[i].count == 0)
			continue;
		p = writer_room(&writer, LINE_MAX_BYTES);
		p = put_day(p, first_day + i / types);
		*p++ = ',';
		p = put_text(p, options->types[type_number[i % types]].name);
		*p++ = ',';
		p = put_uint(p, totals[i].count);
		*p++ = ',';
		p = put_uint(p, totals[i].users);
		*p++ = ',';
		p = put_cents(p, totals[i].cents);
		*p++ = '\n';
		writer_end(&writer, p);
	}
	writer_close(&writer);
	free(totals);
	free(user_rank);
	free(user_number);
	free(truth->daily);
	truth->daily = NULL;
}

/* The table is used up. */
static void
write_items(Truth *truth, const char *prefix)
{
	const StreamOptions *options = truth->options;
	uint32_t *user_rank, *user_number;
	uint32_t *item_rank, *item_number;
	uint64_t n = 0;
	Writer writer;
	char name[4096];

	rank_names(options, options->users, user_is_number, &user_rank, &user_number);
	rank_names(options, options->items, item_is_number, &item_rank, &item_number);
	for (uint64_t i = 0; i < truth->item_size; i++)
	{
		ItemCount item = truth->items[i];

		if (item.count == 0)
			continue;
		item.user = user_rank[item.user];
		item.item = item_rank[item.item];
		truth->items[n++] = item;
	}
	qsort(truth->items, n, sizeof(ItemCount), compare_items);

	open_csv(&writer, name, sizeof(name), prefix, "items.csv",
			 "user_id,item_id,day,view_count,click_count,purchase_count,event_count\n");
	for (uint64_t i = 0; i < n; i++)
	{
		const ItemCount *item = &truth->items[i];
		char *p = writer_room(&writer, LINE_MAX_BYTES);

		p = put_user(p, options, user_number[item->user]);
		*p++ = ',';
		p = put_item(p, options, item_number[item->item]);
		*p++ = ',';
		p = put_day(p, item->day);
		*p++ = ',';
		p = put_uint(p, item->views);
		*p++ = ',';
		p = put_uint(p, item->clicks);
		*p++ = ',';
		p = put_uint(p, item->purchases);
		*p++ = ',';
		p = put_uint(p, item->count);
		*p++ = '\n';
		writer_end(&writer, p);
	}
	writer_close(&writer);
	free(user_rank);
	free(user_number);
	free(item_rank);
	free(item_number);
	free(truth->items);
	truth->items = NULL;
}

/* PREFIX.counts.csv, .totals.csv, .items.csv and .dead.csv; frees the truth. */
static void
truth_write(Truth *truth, const char *prefix)
{
	Writer writer;
	char name[4096];

	write_daily(truth, prefix);
	write_items(truth, prefix);
	open_csv(&writer, name, sizeof(name), prefix, "dead.csv", "reason,count\n");
	for (int i = 0; i < FAULT_COUNT; i++)
	{
		char *p = writer_room(&writer, LINE_MAX_BYTES);

		if (truth->dead[i] == 0)
			continue;
		p = put_text(p, fault_names[i]);
		*p++ = ',';
		p = put_uint(p, truth->dead[i]);
		*p++ = '\n';
		writer_end(&writer, p);
	}
	writer_close(&writer);
}

#endif /* EVGEN_TRUTH_H */
