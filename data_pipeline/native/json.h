/* A strict reader of JSON that makes no objects: it walks over the text and gives back where things stand.

   It only takes what every JSON parser takes alike. Whatever else it meets (a syntax error, a control character in a
   string, a key with escapes, a depth beyond reason) sets `unusual`, and a record that is unusual is read again in
   Python. So it need not know what Python's parsers make of such things.

   No function reads outside [p, end). */

#ifndef CRAWL2CLIP_JSON_H
#define CRAWL2CLIP_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { MAX_DEPTH = 32 };

typedef struct {
    const uint8_t *p, *end;
    bool unusual;
} reader;

/* What stands between the quotes of a string, as it stands there; start is NULL for null and for what is missing. */
typedef struct {
    const uint8_t *start;
    size_t size;
    bool escaped;
} text_span;

static inline bool fail(reader *r) {
    r->unusual = true;
    r->p = r->end;
    return false;
}

/* The byte at hand, 0 at the end. */
static inline uint8_t peek(const reader *r) { return r->p < r->end ? *r->p : 0; }

static inline void skip_space(reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\r' || *r->p == '\t')) r->p++;
}

static inline bool is_hex(uint8_t c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Moves to the next quote, backslash or control character. */
static inline void skip_plain(reader *r) {
    const uint8_t *p = r->p;
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1f);
    while (r->end - p >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)p);
        __m128i found = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, slash));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_max_epu8(bytes, control), control));
        int mask = _mm_movemask_epi8(found);
        if (mask) {
            r->p = p + __builtin_ctz((unsigned)mask);
            return;
        }
        p += 16;
    }
#endif
    while (p < r->end && *p != '"' && *p != '\\' && *p > 0x1f) p++;
    r->p = p;
}

/* Reads a string, whose opening quote is at hand. Its bytes need not be UTF-8. */
static inline bool read_string(reader *r, text_span *found) {
    if (peek(r) != '"') return fail(r);
    found->start = ++r->p;
    found->escaped = false;
    for (;;) {
        skip_plain(r);
        uint8_t c = peek(r);
        if (c == '"') break;
        if (c != '\\' || r->end - r->p < 2) return fail(r);
        found->escaped = true;
        uint8_t kind = r->p[1];
        r->p += 2;
        if (kind == 'u') {
            if (r->end - r->p < 4) return fail(r);
            for (int i = 0; i < 4; i++)
                if (!is_hex(r->p[i])) return fail(r);
            r->p += 4;
        } else if (kind == 0 || strchr("\"\\/bfnrt", kind) == NULL) {
            return fail(r);
        }
    }
    found->size = (size_t)(r->p - found->start);
    r->p++;
    return true;
}

/* Goes on to the next member of an object or array; false at its end. `started` is false before the first. */
static inline bool next_member(reader *r, uint8_t close, bool *started) {
    skip_space(r);
    if (peek(r) == close) {
        r->p++;
        return false;
    }
    if (*started) {
        if (peek(r) != ',') return fail(r);
        r->p++;
        skip_space(r);
        if (peek(r) == close) return fail(r);
    }
    *started = true;
    return true;
}

/* Goes on to the value of an object's next key; false at its end. */
static inline bool next_key(reader *r, text_span *key, bool *started) {
    if (!next_member(r, '}', started) || !read_string(r, key)) return false;
    if (key->escaped) return fail(r);
    skip_space(r);
    if (peek(r) != ':') return fail(r);
    r->p++;
    skip_space(r);
    return true;
}

static inline bool is_key(const text_span *key, const char *name, size_t size) {
    return key->size == size && memcmp(key->start, name, size) == 0;
}
#define IS_KEY(key, name) is_key(key, name, sizeof(name) - 1)

/* Enters an object or array, whose opening bracket must be at hand. */
static inline bool enter(reader *r, uint8_t open) {
    if (peek(r) != open) return fail(r);
    r->p++;
    return true;
}

static inline bool skip_literal(reader *r, const char *word, size_t size) {
    if ((size_t)(r->end - r->p) < size || memcmp(r->p, word, size) != 0) return fail(r);
    r->p += size;
    return true;
}

static inline bool skip_digits(reader *r) {
    const uint8_t *start = r->p;
    while (r->p < r->end && *r->p >= '0' && *r->p <= '9') r->p++;
    return r->p > start ? true : fail(r);
}

static inline bool skip_number(reader *r) {
    if (peek(r) == '-') r->p++;
    if (peek(r) == '0')
        r->p++;
    else if (!skip_digits(r))
        return false;
    if (peek(r) == '.') {
        r->p++;
        if (!skip_digits(r)) return false;
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        r->p++;
        if (peek(r) == '+' || peek(r) == '-') r->p++;
        if (!skip_digits(r)) return false;
    }
    return true;
}

/* Skips a value of any kind. */
static bool skip_value(reader *r, int depth) {
    text_span ignored;
    bool started = false;
    if (depth > MAX_DEPTH) return fail(r);
    switch (peek(r)) {
        case '"':
            return read_string(r, &ignored);
        case '{':
            r->p++;
            while (next_key(r, &ignored, &started))
                if (!skip_value(r, depth + 1)) return false;
            return !r->unusual;
        case '[':
            r->p++;
            while (next_member(r, ']', &started))
                if (!skip_value(r, depth + 1)) return false;
            return !r->unusual;
        case 't':
            return skip_literal(r, "true", 4);
        case 'f':
            return skip_literal(r, "false", 5);
        case 'n':
            return skip_literal(r, "null", 4);
        default:
            return skip_number(r);
    }
}

/* Reads a string or null, of a key that may stand once. */
static inline bool read_once(reader *r, text_span *found, bool *seen) {
    if (*seen) return fail(r);
    *seen = true;
    if (peek(r) == 'n') {
        found->start = NULL;
        found->size = 0;
        return skip_literal(r, "null", 4);
    }
    return read_string(r, found);
}

#endif
