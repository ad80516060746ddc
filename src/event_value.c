/*-------------------------------------------------------------------------
 *
 * event_value.c
 *	  The texts inside an event: decimal numbers, times, UUIDs, trace contexts.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "event.h"
#include "event_json.h"
#include "event_value.h"

#define US_PER_SECOND INT64_C(1000000)
#define US_PER_DAY    (INT64_C(86400) * US_PER_SECOND)

/* ---------------------------------------------------------------- numbers */

bool
event_is_number(const char *data, size_t len)
{
	JsonNumber number;

	return event_json_take_number(data, data + len, &number) == data + len;
}

/*
 * The first significant digits of a number: value = 0.d1d2d3... * 10 ^ point,
 * where d1 is not zero.
 */
typedef struct Digits
{
	bool negative;
	bool zero;
	int64_t point;
	int count;                          /* of digits[], no zeros at the end */
	bool more;                          /* further digits, not all zero */
	char digits[EVENT_DECIMAL_MAX + 2]; /* 0 to 9, not '0' to '9' */
} Digits;

static void
add_digits(Digits *d, const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		char digit = (char) (data[i] - '0');

		if (d->zero)
		{
			if (digit == 0)
			{
				d->point--;
				continue;
			}
			d->zero = false;
		}
		if (d->count < (int) sizeof(d->digits))
			d->digits[d->count++] = digit;
		else if (digit != 0)
			d->more = true;
	}
}

/*
 * data is one JSON number.
 */
static void
take_digits(const char *data, size_t len, Digits *d)
{
	JsonNumber number;

	event_json_take_number(data, data + len, &number);
	d->negative = number.negative;
	d->zero = true;
	d->count = 0;
	d->more = false;
	d->point = (int64_t) number.int_len + number.exponent;
	add_digits(d, number.int_start, number.int_len);
	add_digits(d, number.fraction, number.fraction_len);
	if (d->more)
		return;
	while (d->count > 0 && d->digits[d->count - 1] == 0)
		d->count--;
}

static inline int
digit_at(const Digits *d, int64_t i)
{
	return i >= 0 && i < d->count ? d->digits[i] : 0;
}

size_t
event_decimal(const char *data, size_t len, int int_digits, int fraction, char *dst)
{
	Digits d;
	char text[EVENT_DECIMAL_MAX + 2]; /* one digit for the carry first */
	int total = int_digits + fraction;
	int first;
	int last;
	char *out = dst;

	take_digits(data, len, &d);
	if (!d.zero && d.point > int_digits)
		return 0;

	/* Right-aligned, so that text[int_digits] is the digit of the ones. */
	for (int i = 0; i <= total; i++)
	{
		int64_t at = d.point - int_digits - 1 + i;

		text[i] = (char) (d.zero ? 0 : digit_at(&d, at));
	}
	if (!d.zero && digit_at(&d, d.point + fraction) >= 5)
	{
		int i = total;

		while (text[i] == 9)
			text[i--] = 0;
		text[i]++;
		if (text[0] != 0)
			return 0;
	}

	first = 0;
	while (first < int_digits && text[first] == 0)
		first++;
	last = total;
	while (last > int_digits && text[last] == 0)
		last--;
	if (d.negative && !(first == int_digits && last == int_digits && text[first] == 0))
		*out++ = '-';
	for (int i = first; i <= last; i++)
	{
		*out++ = (char) ('0' + text[i]);
		if (i == int_digits && i < last)
			*out++ = '.';
	}
	return (size_t) (out - dst);
}

bool
event_epoch(const char *data, size_t len, int64_t *us)
{
	Digits d;
	bool milliseconds;
	int64_t whole; /* digits that microseconds have */
	int64_t value = 0;

	take_digits(data, len, &d);
	if (d.zero)
	{
		*us = 0;
		return true;
	}

	/* Over 1e11: twelve digits, and more than a one followed by zeros. */
	milliseconds = d.point > 12 || (d.point == 12 && (d.digits[0] > 1 || d.count > 1 || d.more));
	whole = d.point + (milliseconds ? 3 : 6);
	if (whole > 18)
		return false;
	for (int64_t i = 0; i < whole; i++)
		value = value * 10 + digit_at(&d, i);
	if (digit_at(&d, whole) >= 5)
		value++;
	if (d.negative)
		value = -value;
	*us = value;
	return value >= EVENT_TIME_MIN && value <= EVENT_TIME_MAX;
}

/* ------------------------------------------------------------------ times */

/* Days since 1970-01-01 in the Gregorian calendar. */
static int64_t
days_from_date(int64_t year, int month, int day)
{
	int64_t era;
	int64_t year_of_era;
	int64_t day_of_year;

	year -= month <= 2;
	era = (year >= 0 ? year : year - 399) / 400;
	year_of_era = year - era * 400;
	day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
		   719468;
}

static void
date_from_days(int64_t days, int64_t *year, int *month, int *day)
{
	int64_t era;
	int64_t day_of_era;
	int64_t year_of_era;
	int64_t day_of_year;
	int64_t shifted;

	days += 719468;
	era = (days >= 0 ? days : days - 146096) / 146097;
	day_of_era = days - era * 146097;
	year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	shifted = (5 * day_of_year + 2) / 153;
	*day = (int) (day_of_year - (153 * shifted + 2) / 5 + 1);
	*month = (int) (shifted < 10 ? shifted + 3 : shifted - 9);
	*year = year_of_era + era * 400 + (*month <= 2);
}

/* The value of n digits, or -1. */
static int
fixed_digits(const char *p, int n)
{
	int value = 0;

	for (int i = 0; i < n; i++)
	{
		if (!event_is_digit(p[i]))
			return -1;
		value = value * 10 + (p[i] - '0');
	}
	return value;
}

/*
 * Z, z, +-hh:mm, +-hhmm, +-hh or nothing, up to the end; minutes east.
 */
static bool
parse_offset(const char *p, const char *end, int *minutes)
{
	size_t left = (size_t) (end - p);
	int hour;
	int minute = 0;

	*minutes = 0;
	if (left == 0 || (left == 1 && (*p == 'Z' || *p == 'z')))
		return true;
	if (*p != '+' && *p != '-')
		return false;
	if (left == 6 && p[3] == ':')
		minute = fixed_digits(p + 4, 2);
	else if (left == 5)
		minute = fixed_digits(p + 3, 2);
	else if (left != 3)
		return false;
	hour = fixed_digits(p + 1, 2);
	if (hour < 0 || hour > 15 || minute < 0 || minute > 59)
		return false;
	*minutes = hour * 60 + minute;
	if (*p == '-')
		*minutes = -*minutes;
	return true;
}

bool
event_parse_time(const char *text, size_t len, int64_t *us)
{
	static const char month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	const char *end = text + len;
	const char *p;
	int year;
	int month;
	int day;
	int hour;
	int minute;
	int second;
	int offset;
	int days_in_month;
	int64_t fraction = 0;

	if (len < 19 || text[4] != '-' || text[7] != '-' ||
		(text[10] != 'T' && text[10] != 't' && text[10] != ' ') || text[13] != ':' ||
		text[16] != ':')
		return false;
	year = fixed_digits(text, 4);
	month = fixed_digits(text + 5, 2);
	day = fixed_digits(text + 8, 2);
	hour = fixed_digits(text + 11, 2);
	minute = fixed_digits(text + 14, 2);
	second = fixed_digits(text + 17, 2);
	if (year < 1 || month < 1 || month > 12 || hour < 0 || hour > 23 || minute < 0 || minute > 59 ||
		second < 0 || second > 60)
		return false;
	days_in_month = month_days[month - 1];
	if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0))
		days_in_month++;
	if (day < 1 || day > days_in_month)
		return false;

	p = text + 19;
	if (p < end && *p == '.')
	{
		const char *digits = ++p;

		for (; p < end && event_is_digit(*p); p++)
		{
			if (p - digits < 6)
				fraction = fraction * 10 + (*p - '0');
			else if (p - digits == 6 && *p >= '5')
				fraction++;
		}
		if (p == digits)
			return false;
		for (int64_t n = p - digits; n < 6; n++)
			fraction *= 10;
	}
	if (!parse_offset(p, end, &offset))
		return false;

	*us = days_from_date(year, month, day) * US_PER_DAY +
		  (hour * 3600 + (minute - offset) * 60 + second) * US_PER_SECOND + fraction;
	return *us >= EVENT_TIME_MIN && *us <= EVENT_TIME_MAX;
}

static char *
put_digits(char *dst, int64_t value, int n)
{
	for (int i = n - 1; i >= 0; i--)
	{
		dst[i] = (char) ('0' + value % 10);
		value /= 10;
	}
	return dst + n;
}

size_t
event_format_time(int64_t us, char *buf)
{
	int64_t days = us / US_PER_DAY;
	int64_t rest = us % US_PER_DAY;
	int64_t year;
	int month;
	int day;
	char *out = buf;

	if (rest < 0)
	{
		rest += US_PER_DAY;
		days--;
	}
	date_from_days(days, &year, &month, &day);
	if (year < 0)
	{
		*out++ = '-';
		year = -year;
	}
	out = put_digits(out, year, year > 9999 ? 6 : 4);
	*out++ = '-';
	out = put_digits(out, month, 2);
	*out++ = '-';
	out = put_digits(out, day, 2);
	*out++ = 'T';
	out = put_digits(out, rest / (3600 * US_PER_SECOND), 2);
	*out++ = ':';
	out = put_digits(out, rest / (60 * US_PER_SECOND) % 60, 2);
	*out++ = ':';
	out = put_digits(out, rest / US_PER_SECOND % 60, 2);
	*out++ = '.';
	out = put_digits(out, rest % US_PER_SECOND, 6);
	*out++ = 'Z';
	*out = '\0';
	return (size_t) (out - buf);
}

/* ------------------------------------------------------ text, ids, traces */

bool
event_text_valid(const char *text, size_t len)
{
	const char *end;

	if (len == 0)
		return true;
	end = text + len;
	while (text < end)
	{
		int width = 1;

		if (*text == 0)
			return false;
		if ((unsigned char) *text >= 0x80)
			width = event_utf8_len(text, end);
		if (width == 0)
			return false;
		text += width;
	}
	return true;
}

/* The value of a hexadecimal digit, or -1. */
static inline int
hex_value(char c)
{
	if (event_is_digit(c))
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

void
event_format_uuid(const uint8_t uuid[16], char buf[37])
{
	static const char hex[] = "0123456789abcdef";
	char *out = buf;

	for (int i = 0; i < 16; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = hex[uuid[i] >> 4];
		*out++ = hex[uuid[i] & 15];
	}
	*out = '\0';
}

bool
event_parse_uuid(const char *text, size_t len, uint8_t uuid[16])
{
	if (len != 36)
		return false;
	for (int i = 0; i < 16; i++)
	{
		int high;
		int low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
			return false;
		high = hex_value(text[0]);
		low = hex_value(text[1]);
		if (high < 0 || low < 0)
			return false;
		uuid[i] = (uint8_t) (high << 4 | low);
		text += 2;
	}
	return true;
}

/* Are these n lower-case hexadecimal digits; and is one of them not 0? */
static bool
lower_hex(const char *p, int n, bool *nonzero)
{
	*nonzero = false;
	for (int i = 0; i < n; i++)
	{
		if (!event_is_digit(p[i]) && !(p[i] >= 'a' && p[i] <= 'f'))
			return false;
		*nonzero |= p[i] != '0';
	}
	return true;
}

bool
event_traceparent_valid(const char *text, size_t len)
{
	bool trace;
	bool parent;
	bool flags;

	return len == 55 && memcmp(text, "00-", 3) == 0 && text[35] == '-' && text[52] == '-' &&
		   lower_hex(text + 3, 32, &trace) && trace && lower_hex(text + 36, 16, &parent) &&
		   parent && lower_hex(text + 53, 2, &flags);
}
