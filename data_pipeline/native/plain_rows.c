/* Image links whose text needs no cleaning and whose address needs no parser, made into rows; see wat_native.py.

   The rules are those of text.py and urls.py, which take care of all the others. */

#include "buffer.h"

enum { DONE = 0, FAILED = 1 };

/* Kinds of characters, see text.py. */
enum { OTHER = 0, LETTER = 1, CAPITAL = 2, FAR_LETTER = 3, COMMON_SIGN = 4, SIGN = 5, ASCII = 6 };

typedef struct {
    const uint8_t *kinds; /* of the characters up to U+1FFFF */
    int64_t least, most;  /* characters of a text */
    int64_t longest_url;
} limits;

/* What became of image links: strings that end in a NUL. */
typedef struct {
    buffer rows;   /* address, text of each link that is not dropped, in order */
    buffer places; /* for each of those its place among the links given, int32 */
    buffer slow;   /* for each of those a byte: 0 it is ready, 1 it stands there as it was given */
    int64_t num_rows, num_slow, num_too_short, num_data_urls;
} plain_rows;

plain_rows *plain_rows_new(void) { return calloc(1, sizeof(plain_rows)); }

void plain_rows_free(plain_rows *r) {
    if (r == NULL) return;
    free(r->rows.data);
    free(r->places.data);
    free(r->slow.data);
    free(r);
}

typedef struct {
    const uint8_t *start;
    size_t size;
} bytes;

/* Finds a text without the spaces at its ends; its number of characters, -1 if it needs cleaning. */
static int64_t settled_length(bytes *text, const uint8_t *kinds, bool *has_quotes) {
    const uint8_t *p = text->start, *end = p + text->size;
    while (p < end && *p == ' ') p++;
    while (end > p && end[-1] == ' ') end--;
    text->start = p;
    text->size = (size_t)(end - p);
    int64_t length = 0;
    uint32_t code = ' ';
    uint8_t kind = ASCII;
    bool only_ascii_next = false, no_latin_next = false; /* what a sign asks of what follows it */
    *has_quotes = false;
    for (; p < end; length++) {
        uint32_t before = code;
        uint8_t kind_before = kind;
        if (*p < 0x80) {
            code = *p++;
            kind = ASCII;
            if (code < 0x20 || code == 0x7f || (code == ' ' && before == ' ')) return -1;
            if (code == '&' && p < end && *p != ' ') return -1; /* perhaps an entity */
        } else {
            size_t size = read_character(p, end, &code);
            if (size == 0 || code > 0x1ffff) return -1;
            p += size;
            kind = kinds[code];
        }
        if (only_ascii_next && kind != ASCII) return -1;
        if (no_latin_next && kind != ASCII && kind != FAR_LETTER) return -1;
        only_ascii_next = no_latin_next = false;
        switch (kind) {
            case OTHER:
                return -1;
            case CAPITAL:
                if (before != ' ') return -1;
                break;
            case COMMON_SIGN:
                if (kind_before == CAPITAL) return -1;
                break;
            case SIGN:
                if (kind_before != ASCII && kind_before != FAR_LETTER) return -1;
                only_ascii_next = kind_before == FAR_LETTER;
                no_latin_next = true;
                break;
        }
        if (code >= 0x2018 && code <= 0x201f) *has_quotes = true;
    }
    return length;
}

/* Writes a text with straight quotes, as ftfy does, and a NUL. */
static bool append_text(buffer *b, bytes text, bool has_quotes) {
    if (!reserve(b, text.size + 1)) return false;
    uint8_t *out = b->data + b->size;
    if (!has_quotes) {
        if (text.size) memcpy(out, text.start, text.size);
        out += text.size;
    } else {
        const uint8_t *p = text.start, *end = p + text.size;
        while (p < end) {
            if (end - p >= 3 && p[0] == 0xe2 && p[1] == 0x80 && p[2] >= 0x98 && p[2] <= 0x9f) {
                *out++ = p[2] < 0x9c ? '\'' : '"'; /* U+2018 to U+201B, U+201C to U+201F */
                p += 3;
            } else {
                *out++ = *p++;
            }
        }
    }
    *out++ = 0;
    b->size = (size_t)(out - b->data);
    return true;
}

static bool is_lower(uint8_t c) { return c >= 'a' && c <= 'z'; }

static bool is_word(uint8_t c) {
    return is_lower(c) || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '~' || c == '-';
}

/* _PLAIN of urls.py: one bit for each character of ASCII. */
static bool is_plain(uint8_t c) {
    static const uint64_t from_space = 0xafffff7200000000, from_at = 0x47fffffe87ffffff;
    return c < 64 ? from_space >> c & 1 : c < 128 && (from_at >> (c - 64) & 1);
}

static bool all_plain(const uint8_t *p, const uint8_t *end) {
    for (; p < end; p++)
        if (!is_plain(*p)) return false;
    return true;
}

/* Whether there is a segment that begins with a dot, or an escaped dot. */
static bool has_dots(bytes url) {
    for (size_t i = 0; i + 1 < url.size; i++) {
        if (url.start[i] == '/' && url.start[i + 1] == '.') return true;
        if (url.start[i] == '%' && url.start[i + 1] == '2' && i + 2 < url.size && (url.start[i + 2] | 0x20) == 'e') return true;
    }
    return false;
}

static bool holds_punycode(bytes url) {
    for (size_t i = 0; i + 4 <= url.size; i++)
        if (memcmp(url.start + i, "xn--", 4) == 0) return true;
    return false;
}

static bool is_plain_absolute(bytes url) {
    const uint8_t *p = url.start + 4, *end = url.start + url.size;
    if (p < end && *p == 's') p++;
    if (end - p < 3 || memcmp(p, "://", 3) != 0) return false;
    p += 3;
    int num_dots = 0;
    const uint8_t *label = p;
    for (; p < end && *p != '/'; p++) {
        if (*p == '.') {
            if (p == label) return false;
            num_dots++;
            label = p + 1;
        } else if (!is_lower(*p) && !(*p >= '0' && *p <= '9') && *p != '_' && *p != '-') {
            return false;
        }
    }
    if (p == end || num_dots == 0 || p - label < 2) return false;
    for (const uint8_t *c = label; c < p; c++)
        if (!is_lower(*c)) return false;
    return all_plain(p + 1, end) && !holds_punycode(url);
}

static bool is_plain_from_folder(bytes url) {
    const uint8_t *p = url.start, *end = p + url.size;
    if (!is_word(*p) && *p != '%') return false;
    while (p < end && (is_word(*p) || *p == '.' || *p == '%')) p++;
    return p == end || ((*p == '/' || *p == '?') && all_plain(p + 1, end));
}

/* What to put before an address to make it absolute; false if that takes a parser. */
static bool join_plain(bytes url, bytes origin, bytes folder, bytes *before) {
    before->start = NULL;
    before->size = 0;
    if (has_dots(url)) return false;
    if (url.start[0] == '/') {
        *before = origin;
        return !(url.size > 1 && url.start[1] == '/') && all_plain(url.start + 1, url.start + url.size);
    }
    if (url.size >= 4 && memcmp(url.start, "http", 4) == 0) return is_plain_absolute(url);
    *before = folder;
    return is_plain_from_folder(url);
}

static bool add_row(plain_rows *r, int32_t place, uint8_t slow) {
    r->num_rows++;
    r->num_slow += slow;
    return append(&r->places, &place, sizeof(place)) && append(&r->slow, &slow, 1);
}

static bool add_link(plain_rows *r, int32_t place, bytes url, bytes raw_text, bytes origin, bytes folder, const limits *l) {
    bytes text = raw_text, before;
    bool has_quotes;
    int64_t length = settled_length(&text, l->kinds, &has_quotes);
    if (length > 0 && length < l->least) {
        r->num_too_short++;
        return true;
    }
    if (length > 0 && length <= l->most && url.size > 0 && (int64_t)url.size <= l->longest_url) {
        if (join_plain(url, origin, folder, &before) && (int64_t)(before.size + url.size) <= l->longest_url)
            return append(&r->rows, before.start, before.size) && append(&r->rows, url.start, url.size) &&
                   append(&r->rows, "", 1) && append_text(&r->rows, text, has_quotes) && add_row(r, place, 0);
        if (url.size >= 5 && memcmp(url.start, "data:", 5) == 0) {
            r->num_data_urls++;
            return true;
        }
    }
    return append(&r->rows, url.start, url.size) && append(&r->rows, "", 1) &&
           append(&r->rows, raw_text.start, raw_text.size) && append(&r->rows, "", 1) && add_row(r, place, 1);
}

static bool next_string(const uint8_t **p, const uint8_t *end, bytes *found) {
    const uint8_t *nul = *p < end ? memchr(*p, 0, (size_t)(end - *p)) : NULL;
    if (nul == NULL) return false;
    found->start = *p;
    found->size = (size_t)(nul - *p);
    *p = nul + 1;
    return true;
}

/* Makes rows of image links.

   images: address, text of each, as `scan_wat` gives them, or of any other source.
   origin, folder: of the page's base, see urls.PageBase; plain ASCII.
   Gives DONE with the results in `r` until the next call; FAILED when there is no memory or a string has no end. */
int make_plain_rows(plain_rows *r, const uint8_t *images, size_t size, const uint8_t *origin, size_t origin_size,
                    const uint8_t *folder, size_t folder_size, const limits *l) {
    const uint8_t *p = images, *end = images + size;
    bytes url, text, from_origin = {origin, origin_size}, from_folder = {folder, folder_size};
    r->rows.size = r->places.size = r->slow.size = 0;
    r->num_rows = r->num_slow = r->num_too_short = r->num_data_urls = 0;
    for (int32_t place = 0; p < end; place++) {
        if (!next_string(&p, end, &url) || !next_string(&p, end, &text)) return FAILED;
        if (!add_link(r, place, url, text, from_origin, from_folder, l)) return FAILED;
    }
    return DONE;
}
