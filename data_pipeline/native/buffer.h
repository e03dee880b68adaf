/* Bytes that grow, and the two things that are written to them: strings as they are, and strings of JSON decoded. */

#ifndef CRAWL2CLIP_BUFFER_H
#define CRAWL2CLIP_BUFFER_H

#include <stdlib.h>

#include "json.h"

typedef struct {
    uint8_t *data;
    size_t size, capacity;
} buffer;

/* Makes room for so many bytes more; false when there is no memory. */
static inline bool reserve(buffer *b, size_t more) {
    if (more <= b->capacity - b->size) return true;
    if (more > SIZE_MAX / 4 || b->size > SIZE_MAX / 4) return false;
    size_t capacity = (b->size + more) * 2;
    uint8_t *data = realloc(b->data, capacity);
    if (data == NULL) return false;
    b->data = data;
    b->capacity = capacity;
    return true;
}

static inline bool append(buffer *b, const void *bytes, size_t size) {
    if (!reserve(b, size)) return false;
    if (size) memcpy(b->data + b->size, bytes, size);
    b->size += size;
    return true;
}

/* Reads one character of UTF-8 from [p, end), which is not empty: its length in bytes, 0 if it is none. */
static inline size_t read_character(const uint8_t *p, const uint8_t *end, uint32_t *code) {
    size_t left = (size_t)(end - p);
    uint8_t c = p[0];
    if (c < 0x80) {
        *code = c;
        return 1;
    }
    if (c >= 0xc2 && c < 0xe0 && left >= 2 && (p[1] & 0xc0) == 0x80) {
        *code = (uint32_t)(c & 0x1f) << 6 | (p[1] & 0x3f);
        return 2;
    }
    if (c >= 0xe0 && c < 0xf0 && left >= 3 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80) {
        *code = (uint32_t)(c & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        return *code >= 0x800 && (*code < 0xd800 || *code > 0xdfff) ? 3 : 0;
    }
    if (c >= 0xf0 && c < 0xf5 && left >= 4 && (p[1] & 0xc0) == 0x80 && (p[2] & 0xc0) == 0x80 && (p[3] & 0xc0) == 0x80) {
        *code = (uint32_t)(c & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
        return *code >= 0x10000 && *code <= 0x10ffff ? 4 : 0;
    }
    return 0;
}

static inline bool is_utf8(const uint8_t *p, const uint8_t *end) {
    uint32_t code;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        size_t size = read_character(p, end, &code);
        if (size == 0) return false;
        p += size;
    }
    return true;
}

/* Writes a character as UTF-8 to 4 bytes of room; its length. */
static inline size_t write_character(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (uint8_t)(0xc0 | code >> 6);
        out[1] = (uint8_t)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (uint8_t)(0xe0 | code >> 12);
        out[1] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
        out[2] = (uint8_t)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | code >> 18);
    out[1] = (uint8_t)(0x80 | (code >> 12 & 0x3f));
    out[2] = (uint8_t)(0x80 | (code >> 6 & 0x3f));
    out[3] = (uint8_t)(0x80 | (code & 0x3f));
    return 4;
}

/* The number that the four hexadecimal digits at p make. */
static inline uint32_t read_hex(const uint8_t *p) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t c = p[i];
        value = value << 4 | (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
}

/* Appends a string that `read_string` found, decoded, and a NUL.

   False when it is not UTF-8, has a NUL or half a surrogate pair in it, or there is no memory. Decoding makes nothing
   longer. */
static inline bool append_decoded(buffer *b, const text_span *text) {
    if (!reserve(b, text->size + 1)) return false;
    uint8_t *out = b->data + b->size;
    const uint8_t *p = text->start, *end = p + text->size;
    if (text->size && !text->escaped) {
        memcpy(out, p, text->size);
        out += text->size;
    } else {
        while (p < end) {
            if (*p != '\\') {
                *out++ = *p++;
                continue;
            }
            uint8_t kind = p[1];
            p += 2;
            if (kind == 'u') {
                uint32_t code = read_hex(p);
                p += 4;
                if (code >= 0xd800 && code < 0xdc00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
                    uint32_t low = read_hex(p + 2);
                    if (low < 0xdc00 || low > 0xdfff) return false;
                    code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
                    p += 6;
                }
                if (code == 0 || (code >= 0xd800 && code <= 0xdfff)) return false;
                out += write_character(out, code);
            } else {
                *out++ = kind == 'b' ? '\b' : kind == 'f' ? '\f' : kind == 'n' ? '\n' : kind == 'r' ? '\r' : kind == 't' ? '\t' : kind;
            }
        }
    }
    if (!is_utf8(b->data + b->size, out)) return false;
    *out++ = 0;
    b->size = (size_t)(out - b->data);
    return true;
}

#endif
