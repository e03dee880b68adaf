/* Image links whose text needs no cleaning and whose address needs no parser, made into (url, text) pairs; see
   packed_pairs.py.

   The rules are those of text.py and urls.py, which take care of all the others. */

#include "buffer.h"

enum { DONE = 0, STOPPED = 1, FAILED = 2 };

/* Kinds of characters, see text.py. */
enum { OTHER = 0, LETTER = 1, CAPITAL = 2, FAR_LETTER = 3, COMMON_SIGN = 4, SIGN = 5, ASCII = 6 };

typedef struct {
    const uint8_t *kinds; /* of the characters up to U+1FFFF */
    int64_t least, most;  /* characters of a text */
    int64_t longest_url;
} limits;

/* Pairs that wait to be written, in the form of Arrow's columns. */
typedef struct {
    buffer urls, url_ends;   /* all of them, one after the other; int32, 0 and then where each of them ends */
    buffer texts, text_ends; /* the same */
    buffer sources;          /* a byte for each: place in page.TEXT_SOURCES */
    buffer hashed;           /* what is hashed: url, NUL, text, and 0xff, which UTF-8 does not have */
    int64_t num_pairs, num_too_short, num_data_urls;
    /* Where `extend_pairs` is among the links given, and the one at which it stopped. */
    size_t position, url_start, text_start;
    int64_t place;
} pairs;

pairs *pairs_new(void) { return calloc(1, sizeof(pairs)); }

void pairs_free(pairs *p) {
    if (p == NULL) return;
    buffer *all[] = {&p->urls, &p->url_ends, &p->texts, &p->text_ends, &p->sources, &p->hashed};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]->data);
    free(p);
}

void pairs_clear(pairs *p) {
    buffer *all[] = {&p->urls, &p->url_ends, &p->texts, &p->text_ends, &p->sources, &p->hashed};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) all[i]->size = 0;
    p->num_pairs = 0;
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

/* Writes a text with straight quotes, as ftfy does. */
static bool append_text(buffer *b, bytes text, bool has_quotes) {
    if (!has_quotes) return append(b, text.start, text.size);
    if (!reserve(b, text.size)) return false;
    uint8_t *out = b->data + b->size;
    const uint8_t *p = text.start, *end = p + text.size;
    while (p < end) {
        if (end - p >= 3 && p[0] == 0xe2 && p[1] == 0x80 && p[2] >= 0x98 && p[2] <= 0x9f) {
            *out++ = p[2] < 0x9c ? '\'' : '"'; /* U+2018 to U+201B, U+201C to U+201F */
            p += 3;
        } else {
            *out++ = *p++;
        }
    }
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

static bool append_end(buffer *ends, size_t end) {
    int32_t value = 0;
    if (end > INT32_MAX || (ends->size == 0 && !append(ends, &value, sizeof(value)))) return false;
    value = (int32_t)end;
    return append(ends, &value, sizeof(value));
}

static bool add_pair(pairs *p, bytes before, bytes url, bytes text, bool has_quotes, uint8_t source) {
    size_t url_start = p->urls.size, text_start = p->texts.size;
    if (!append(&p->urls, before.start, before.size) || !append(&p->urls, url.start, url.size) ||
        !append_text(&p->texts, text, has_quotes) || !append_end(&p->url_ends, p->urls.size) ||
        !append_end(&p->text_ends, p->texts.size) || !append(&p->sources, &source, 1) ||
        !append(&p->hashed, p->urls.data + url_start, p->urls.size - url_start) || !append(&p->hashed, "", 1) ||
        !append(&p->hashed, p->texts.data + text_start, p->texts.size - text_start) || !append(&p->hashed, "\xff", 1))
        return false;
    p->num_pairs++;
    return true;
}

/* Appends a pair as it is; DONE, or FAILED when there is no memory. */
int append_pair(pairs *p, const uint8_t *url, size_t url_size, const uint8_t *text, size_t text_size, int source) {
    bytes nothing = {NULL, 0}, whole_url = {url, url_size}, whole_text = {text, text_size};
    return add_pair(p, nothing, whole_url, whole_text, false, (uint8_t)source) ? DONE : FAILED;
}

static bool next_string(const uint8_t *data, size_t size, size_t *position, bytes *found) {
    const uint8_t *start = data + *position;
    const uint8_t *nul = *position < size ? memchr(start, 0, size - *position) : NULL;
    if (nul == NULL) return false;
    found->start = start;
    found->size = (size_t)(nul - start);
    *position += found->size + 1;
    return true;
}

/* Makes pairs of image links, from `position` and `place` on, which the caller sets to 0 at first.

   images: address and text of each link, as `scan_wat` gives them, each with a NUL after it.
   sources: a byte for each link, or NULL when all are 0.
   origin, folder: of the page's base, see urls.PageBase; plain ASCII.
   Gives DONE; STOPPED past a link that Python has to make a pair of, whose address begins at `url_start` and whose text
   at `text_start`; FAILED when there is no memory or a string has no end. */
int extend_pairs(pairs *p, const uint8_t *images, size_t size, const uint8_t *sources, const uint8_t *origin,
                 size_t origin_size, const uint8_t *folder, size_t folder_size, const limits *l) {
    bytes url, raw_text, before, from_origin = {origin, origin_size}, from_folder = {folder, folder_size};
    p->num_too_short = p->num_data_urls = 0;
    while (p->position < size) {
        p->url_start = p->position;
        if (!next_string(images, size, &p->position, &url)) return FAILED;
        p->text_start = p->position;
        if (!next_string(images, size, &p->position, &raw_text)) return FAILED;
        uint8_t source = sources == NULL ? 0 : sources[p->place];
        p->place++;
        bytes text = raw_text;
        bool has_quotes;
        int64_t length = settled_length(&text, l->kinds, &has_quotes);
        if (length > 0 && length < l->least) {
            p->num_too_short++;
            continue;
        }
        if (length <= 0 || length > l->most || url.size == 0 || (int64_t)url.size > l->longest_url) return STOPPED;
        if (join_plain(url, from_origin, from_folder, &before) && (int64_t)(before.size + url.size) <= l->longest_url) {
            if (!add_pair(p, before, url, text, has_quotes, source)) return FAILED;
        } else if (url.size >= 5 && memcmp(url.start, "data:", 5) == 0) {
            p->num_data_urls++;
        } else {
            return STOPPED;
        }
    }
    return DONE;
}
