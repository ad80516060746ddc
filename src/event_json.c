/*-------------------------------------------------------------------------
 *
 * event_json.c
 *	  JSON scanner below event.c: syntax, strings and their escapes.
 *
 * One pass, no recursion, no allocation.  Input is not NUL-terminated, so that
 * every look ahead is preceded by a look at the end.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "event_json.h"

/* What numeric holds: digits before the point, and behind it. */
#define NUMERIC_INT_MAX      131072
#define NUMERIC_FRACTION_MAX 16383

/* Zeros that the exponents of all numbers of a value may stand for */
#define EXPONENT_ZEROS_MAX 1000000

/* ---------------------------------------------------------------- scanner */

static bool
syntax_error(JsonScan *scan, const char *message)
{
	scan->error = JSON_SYNTAX;
	scan->message = message;
	return false;
}

/*
 * Message for a byte that is not what the grammar asks for, or for the end.
 */
static bool
unexpected(JsonScan *scan, const char *message)
{
	return syntax_error(scan, scan->pos >= scan->end ? "the JSON ends too early" : message);
}

void
event_json_start(JsonScan *scan, const char *data, size_t len, int max_depth)
{
	scan->start = data;
	scan->pos = data;
	scan->end = data + len;
	scan->depth = 0;
	scan->deepest = 0;
	scan->max_depth = max_depth < JSON_DEPTH_LIMIT ? max_depth : JSON_DEPTH_LIMIT;
	scan->bad_text = false;
	scan->bad_number = false;
	scan->zeros = 0;
	scan->error = JSON_FINE;
	scan->message = NULL;
}

static inline void
skip_space(JsonScan *scan)
{
	const char *p = scan->pos;

	while (p < scan->end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r'))
		p++;
	scan->pos = p;
}

int
event_json_peek(JsonScan *scan)
{
	skip_space(scan);
	return scan->pos < scan->end ? (unsigned char) *scan->pos : -1;
}

int
event_utf8_len(const char *p, const char *end)
{
	const unsigned char *u = (const unsigned char *) p;
	size_t left = (size_t) (end - p);
	unsigned char c = u[0];

	/* The second byte's range shuts out overlong forms and surrogates. */
	if (c < 0xC2)
		return 0;
	if (c < 0xE0)
		return left >= 2 && (u[1] & 0xC0) == 0x80 ? 2 : 0;
	if (c < 0xF0)
	{
		unsigned char low = c == 0xE0 ? 0xA0 : 0x80;
		unsigned char high = c == 0xED ? 0x9F : 0xBF;

		return left >= 3 && u[1] >= low && u[1] <= high && (u[2] & 0xC0) == 0x80 ? 3 : 0;
	}
	if (c < 0xF5)
	{
		unsigned char low = c == 0xF0 ? 0x90 : 0x80;
		unsigned char high = c == 0xF4 ? 0x8F : 0xBF;

		return left >= 4 && u[1] >= low && u[1] <= high && (u[2] & 0xC0) == 0x80 &&
					   (u[3] & 0xC0) == 0x80
				   ? 4
				   : 0;
	}
	return 0;
}

bool
event_utf8_fits(const char *data, size_t len, size_t max)
{
	size_t chars = 0;

	if (len <= max)
		return true;
	if (len > max * 4)
		return false;
	for (size_t i = 0; i < len; i++)
		chars += ((unsigned char) data[i] & 0xC0) != 0x80;
	return chars <= max;
}

/*
 * The first byte from p on that a string scan must look at: a quote, a
 * backslash, a control character, or part of a longer UTF-8 character.
 */
static inline const char *
plain_run(const char *p, const char *end)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	const uint64_t ones = UINT64_C(0x0101010101010101);
	const uint64_t highs = UINT64_C(0x8080808080808080);

	while (end - p >= 8)
	{
		uint64_t word;
		uint64_t quote;
		uint64_t slash;
		uint64_t hit;

		memcpy(&word, p, 8);
		quote = word ^ (ones * '"');
		slash = word ^ (ones * '\\');

		/*
		 * Borrows make false hits only above a true one, and only the lowest
		 * counts.
		 */
		hit = (((quote - ones) & ~quote) | ((slash - ones) & ~slash) |
			   ((word - ones * 0x20) & ~word) | word) &
			  highs;
		if (hit != 0)
			return p + (__builtin_ctzll(hit) >> 3);
		p += 8;
	}
#endif
	while (p < end)
	{
		unsigned char c = (unsigned char) *p;

		if (c == '"' || c == '\\' || c < 0x20 || c >= 0x80)
			break;
		p++;
	}
	return p;
}

/* The value of four hexadecimal digits, or -1. */
static int
hex4(const char *p, const char *end)
{
	int value = 0;

	if (end - p < 4)
		return -1;
	for (int i = 0; i < 4; i++)
	{
		char c = p[i];

		if (event_is_digit(c))
			value = value * 16 + (c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value * 16 + (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			value = value * 16 + (c - 'A' + 10);
		else
			return -1;
	}
	return value;
}

static inline bool
is_high_surrogate(int code)
{
	return (code & 0xFC00) == 0xD800;
}

static inline bool
is_low_surrogate(int code)
{
	return (code & 0xFC00) == 0xDC00;
}

/*
 * Scan the escape at p (a backslash); returns what follows it, or NULL with
 * the error set.
 */
static const char *
scan_escape(JsonScan *scan, const char *p)
{
	const char *end = scan->end;
	int code;

	scan->pos = p;
	if (end - p < 2)
	{
		scan->pos = end;
		unexpected(scan, NULL);
		return NULL;
	}
	switch (p[1])
	{
		case '"':
		case '\\':
		case '/':
		case 'b':
		case 'f':
		case 'n':
		case 'r':
		case 't':
			return p + 2;
		case 'u':
			break;
		default:
			syntax_error(scan, "unknown escape in a string");
			return NULL;
	}

	code = hex4(p + 2, end);
	if (code < 0)
	{
		syntax_error(scan, "\\u without four hexadecimal digits");
		return NULL;
	}
	p += 6;
	if (code == 0 || is_low_surrogate(code))
		scan->bad_text = true;
	else if (is_high_surrogate(code))
	{
		if (end - p >= 6 && p[0] == '\\' && p[1] == 'u' && is_low_surrogate(hex4(p + 2, end)))
			p += 6;
		else
			scan->bad_text = true;
	}
	return p;
}

/*
 * Scan the string whose opening quote is at pos.
 */
static inline bool
scan_string(JsonScan *scan, bool *escaped)
{
	const char *p = scan->pos + 1;
	const char *end = scan->end;

	*escaped = false;
	for (;;)
	{
		unsigned char c;

		p = plain_run(p, end);
		if (p >= end)
		{
			scan->pos = end;
			return unexpected(scan, NULL);
		}
		c = (unsigned char) *p;
		if (c == '"')
		{
			scan->pos = p + 1;
			return true;
		}
		if (c == '\\')
		{
			*escaped = true;
			p = scan_escape(scan, p);
			if (p == NULL)
				return false;
		}
		else if (c >= 0x80)
		{
			int width = event_utf8_len(p, end);

			if (width == 0)
			{
				scan->bad_text = true;
				width = 1;
			}
			p += width;
		}
		else if (c == 0)
		{
			scan->bad_text = true;
			p++;
		}
		else
		{
			scan->pos = p;
			return syntax_error(scan, "unescaped control character in a string");
		}
	}
}

const char *
event_json_take_number(const char *p, const char *end, JsonNumber *number)
{
	number->negative = p < end && *p == '-';
	if (number->negative)
		p++;

	number->int_start = p;
	if (p >= end || !event_is_digit(*p))
		return NULL;
	if (*p == '0')
		p++;
	else
		while (p < end && event_is_digit(*p))
			p++;
	number->int_len = (size_t) (p - number->int_start);

	number->fraction = p;
	number->fraction_len = 0;
	if (p < end && *p == '.')
	{
		number->fraction = ++p;
		while (p < end && event_is_digit(*p))
			p++;
		number->fraction_len = (size_t) (p - number->fraction);
		if (number->fraction_len == 0)
			return NULL;
	}

	number->exponent = 0;
	if (p < end && (*p == 'e' || *p == 'E'))
	{
		bool negative = false;
		const char *digits;

		p++;
		if (p < end && (*p == '+' || *p == '-'))
			negative = *p++ == '-';
		digits = p;
		while (p < end && event_is_digit(*p))
		{
			if (number->exponent < JSON_EXPONENT_LIMIT)
				number->exponent = number->exponent * 10 + (*p - '0');
			p++;
		}
		if (p == digits)
			return NULL;
		if (number->exponent > JSON_EXPONENT_LIMIT)
			number->exponent = JSON_EXPONENT_LIMIT;
		if (negative)
			number->exponent = -number->exponent;
	}
	return p;
}

static inline bool
scan_number(JsonScan *scan, bool *unholdable)
{
	const char *p = scan->pos;
	const char *end = scan->end;
	JsonNumber number;

	/* Most numbers are short integers or prices. */
	if (*p == '-')
		p++;
	if (p < end && *p >= '1' && *p <= '9')
	{
		const char *start = p;

		while (p < end && event_is_digit(*p))
			p++;
		if (p < end && *p == '.' && end - p > 1 && event_is_digit(p[1]))
		{
			p += 2;
			while (p < end && event_is_digit(*p))
				p++;
		}
		if (p - start < NUMERIC_FRACTION_MAX && (p >= end || (*p != '.' && *p != 'e' && *p != 'E')))
		{
			*unholdable = false;
			scan->pos = p;
			return true;
		}
	}

	p = event_json_take_number(scan->pos, end, &number);
	if (p == NULL)
		return syntax_error(scan, "malformed number");
	scan->pos = p;

	/*
	 * numeric keeps the digits as written, zeros too, so that their count
	 * decides and not the value.
	 */
	*unholdable = (int64_t) number.int_len + number.exponent > NUMERIC_INT_MAX ||
				  (int64_t) number.fraction_len - number.exponent > NUMERIC_FRACTION_MAX;

	/*
	 * Written out again, as text, a number has all its zeros: a few thousand
	 * of 1e131071 could be stored and never be dumped.
	 */
	if (!*unholdable)
		scan->zeros += number.exponent < 0 ? -number.exponent : number.exponent;
	*unholdable |= scan->zeros > EXPONENT_ZEROS_MAX;
	scan->bad_number |= *unholdable;
	return true;
}

static bool
scan_word(JsonScan *scan, const char *word, size_t len)
{
	if ((size_t) (scan->end - scan->pos) < len || memcmp(scan->pos, word, len) != 0)
		return syntax_error(scan, "unknown word");
	scan->pos += len;
	return true;
}

/*
 * Scan a key and the colon behind it; pos is at the key.
 */
static inline bool
scan_key(JsonScan *scan, bool *escaped)
{
	if (scan->pos >= scan->end || *scan->pos != '"')
		return unexpected(scan, "a key in quotes was expected");
	if (!scan_string(scan, escaped))
		return false;
	skip_space(scan);
	if (scan->pos >= scan->end || *scan->pos != ':')
		return unexpected(scan, "a colon was expected");
	scan->pos++;
	return true;
}

static inline bool
push(JsonScan *scan)
{
	if (scan->depth >= scan->max_depth)
	{
		scan->error = JSON_TOO_DEEP;
		return false;
	}
	scan->depth++;
	if (scan->depth > scan->deepest)
		scan->deepest = scan->depth;
	scan->pos++;
	return true;
}

bool
event_json_value(JsonScan *scan, JsonValue *value)
{
	bool in_object[JSON_DEPTH_LIMIT + 1];
	int base = scan->depth;
	bool escaped = false;
	bool unholdable = false;
	bool key_escaped;
	JsonType type;

	skip_space(scan);
	value->data = scan->pos;
	value->type = JSON_NONE;

next_value:
	skip_space(scan);
	if (scan->pos >= scan->end)
		return unexpected(scan, NULL);
	switch (*scan->pos)
	{
		case '"':
			type = JSON_STRING;
			if (!scan_string(scan, &escaped))
				return false;
			break;
		case '-':
		case '0':
		case '1':
		case '2':
		case '3':
		case '4':
		case '5':
		case '6':
		case '7':
		case '8':
		case '9':
			type = JSON_NUMBER;
			if (!scan_number(scan, &unholdable))
				return false;
			break;
		case 't':
			type = JSON_BOOLEAN;
			if (!scan_word(scan, "true", 4))
				return false;
			break;
		case 'f':
			type = JSON_BOOLEAN;
			if (!scan_word(scan, "false", 5))
				return false;
			break;
		case 'n':
			type = JSON_NULL;
			if (!scan_word(scan, "null", 4))
				return false;
			break;
		case '{':
			if (!push(scan))
				return false;
			in_object[scan->depth] = true;
			if (value->type == JSON_NONE)
				value->type = JSON_OBJECT;
			skip_space(scan);
			if (scan->pos < scan->end && *scan->pos == '}')
				goto close;
			if (!scan_key(scan, &key_escaped))
				return false;
			goto next_value;
		case '[':
			if (!push(scan))
				return false;
			in_object[scan->depth] = false;
			if (value->type == JSON_NONE)
				value->type = JSON_ARRAY;
			skip_space(scan);
			if (scan->pos < scan->end && *scan->pos == ']')
				goto close;
			goto next_value;
		default:
			return syntax_error(scan, "a value was expected");
	}
	if (value->type == JSON_NONE)
		value->type = type;

after_value:
	if (scan->depth == base)
	{
		value->len = (size_t) (scan->pos - value->data);
		value->escaped = escaped;
		value->unholdable = unholdable;
		return true;
	}
	skip_space(scan);
	if (scan->pos >= scan->end)
		return unexpected(scan, NULL);
	if (*scan->pos == ',')
	{
		scan->pos++;
		if (in_object[scan->depth])
		{
			skip_space(scan);
			if (!scan_key(scan, &key_escaped))
				return false;
		}
		goto next_value;
	}
	if (*scan->pos != (in_object[scan->depth] ? '}' : ']'))
		return syntax_error(scan, "a comma or closing bracket was expected");

close:
	scan->pos++;
	scan->depth--;
	goto after_value;
}

bool
event_json_open(JsonScan *scan)
{
	return push(scan);
}

bool
event_json_member(JsonScan *scan, bool *first, JsonValue *key)
{
	int c = event_json_peek(scan);

	if (c == '}')
	{
		scan->pos++;
		scan->depth--;
		return false;
	}
	if (!*first)
	{
		if (c != ',')
			return unexpected(scan, "a comma or closing brace was expected");
		scan->pos++;
		skip_space(scan);
	}
	*first = false;
	if (scan->pos >= scan->end || *scan->pos != '"')
		return unexpected(scan, "a key in quotes was expected");
	key->data = scan->pos;
	key->type = JSON_STRING;
	key->unholdable = false;
	if (!scan_string(scan, &key->escaped))
		return false;
	key->len = (size_t) (scan->pos - key->data);
	if (scan->pos < scan->end && *scan->pos == ':')
	{
		scan->pos++;
		return true;
	}
	if (event_json_peek(scan) != ':')
		return unexpected(scan, "a colon was expected");
	scan->pos++;
	return true;
}

bool
event_json_element(JsonScan *scan, bool *first)
{
	int c = event_json_peek(scan);

	if (c == ']')
	{
		scan->pos++;
		scan->depth--;
		return false;
	}
	if (!*first)
	{
		if (c != ',')
			return unexpected(scan, "a comma or closing bracket was expected");
		scan->pos++;
	}
	*first = false;
	return true;
}

bool
event_json_finish(JsonScan *scan)
{
	if (event_json_peek(scan) >= 0)
		return syntax_error(scan, "there is more behind the JSON value");
	return true;
}

bool
event_json_is_blank(const char *data, size_t len)
{
	for (size_t i = 1; i + 1 < len; i++)
	{
		if (data[i] != ' ' && data[i] != '\n' && data[i] != '\t' && data[i] != '\r')
			return false;
	}
	return true;
}

/* ---------------------------------------------------------------- strings */

static char *
put_utf8(char *dst, int code)
{
	if (code < 0x80)
		*dst++ = (char) code;
	else if (code < 0x800)
	{
		*dst++ = (char) (0xC0 | (code >> 6));
		*dst++ = (char) (0x80 | (code & 0x3F));
	}
	else if (code < 0x10000)
	{
		*dst++ = (char) (0xE0 | (code >> 12));
		*dst++ = (char) (0x80 | ((code >> 6) & 0x3F));
		*dst++ = (char) (0x80 | (code & 0x3F));
	}
	else
	{
		*dst++ = (char) (0xF0 | (code >> 18));
		*dst++ = (char) (0x80 | ((code >> 12) & 0x3F));
		*dst++ = (char) (0x80 | ((code >> 6) & 0x3F));
		*dst++ = (char) (0x80 | (code & 0x3F));
	}
	return dst;
}

size_t
event_json_unescape(const char *data, size_t len, char *dst)
{
	const char *p = data;
	const char *end = data + len;
	char *out = dst;

	while (p < end)
	{
		const char *slash = memchr(p, '\\', (size_t) (end - p));
		int code;

		if (slash == NULL)
			slash = end;
		memcpy(out, p, (size_t) (slash - p));
		out += slash - p;
		p = slash;
		if (end - p < 2)
			break;
		switch (p[1])
		{
			case 'b':
				*out++ = '\b';
				break;
			case 'f':
				*out++ = '\f';
				break;
			case 'n':
				*out++ = '\n';
				break;
			case 'r':
				*out++ = '\r';
				break;
			case 't':
				*out++ = '\t';
				break;
			case 'u':
				code = hex4(p + 2, end);
				if (is_high_surrogate(code) && end - p >= 12 && p[6] == '\\' && p[7] == 'u')
				{
					int low = hex4(p + 8, end);

					if (is_low_surrogate(low))
					{
						code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
						p += 6;
					}
				}
				if (code < 0 || (code & 0xF800) == 0xD800)
					code = 0xFFFD;
				out = put_utf8(out, code);
				p += 4;
				break;
			default:
				*out++ = p[1];
				break;
		}
		p += 2;
	}
	return (size_t) (out - dst);
}

/* The letter of a control character's short escape, or 0. */
static char
short_escape(unsigned char c)
{
	switch (c)
	{
		case '"':
		case '\\':
			return (char) c;
		case '\b':
			return 'b';
		case '\f':
			return 'f';
		case '\n':
			return 'n';
		case '\r':
			return 'r';
		case '\t':
			return 't';
		default:
			return 0;
	}
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
/* High bits of those of the 8 bytes at p that have to be escaped; the lowest one is sure. */
static inline uint64_t
to_escape(const char *p)
{
	const uint64_t ones = UINT64_C(0x0101010101010101);
	uint64_t word;
	uint64_t quote;
	uint64_t slash;

	memcpy(&word, p, 8);
	quote = word ^ (ones * '"');
	slash = word ^ (ones * '\\');
	return (((quote - ones) & ~quote) | ((slash - ones) & ~slash) |
			((word - ones * 0x20) & ~word)) &
		   (ones * 0x80);
}
#endif

/*
 * The first byte from p on that has to be escaped.
 */
static inline const char *
unescaped_run(const char *p, const char *end)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	if (end - p >= 8)
	{
		uint64_t hit = 0;

		for (; end - p >= 8 && hit == 0; p += 8)
			hit = to_escape(p);
		if (hit != 0)
			return p - 8 + (__builtin_ctzll(hit) >> 3);
		/* what is left, and some of what was there before it */
		hit = to_escape(end - 8);
		return hit != 0 ? end - 8 + (__builtin_ctzll(hit) >> 3) : end;
	}
#endif
	while (p < end)
	{
		unsigned char c = (unsigned char) *p;

		if (c == '"' || c == '\\' || c < 0x20)
			break;
		p++;
	}
	return p;
}

size_t
event_json_escaped_len(const char *data, size_t len)
{
	const char *end = data + len;
	size_t total = len;

	for (const char *p = unescaped_run(data, end); p < end; p = unescaped_run(p + 1, end))
		total += short_escape((unsigned char) *p) != 0 ? 1 : 5;
	return total;
}

char *
event_json_escape(char *dst, const char *data, size_t len)
{
	static const char hex[] = "0123456789abcdef";
	const char *end = data + len;

	for (;;)
	{
		const char *hit = unescaped_run(data, end);
		unsigned char c;

		memcpy(dst, data, (size_t) (hit - data));
		dst += hit - data;
		if (hit >= end)
			return dst;
		c = (unsigned char) *hit;
		data = hit + 1;
		*dst++ = '\\';
		if (short_escape(c) != 0)
			*dst++ = short_escape(c);
		else
		{
			memcpy(dst, "u00", 3);
			dst[3] = hex[c >> 4];
			dst[4] = hex[c & 15];
			dst += 5;
		}
	}
}
