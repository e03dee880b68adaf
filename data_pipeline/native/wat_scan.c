/* A WAT record's page: its image links with a text, and what is said of the page; see wat_native.py.

   Nearly all of a record is links that are no images. They are walked over and not made into anything. */

#include "buffer.h"

enum { DONE = 0, UNUSUAL = 1 };
enum { MAX_RECORD_BYTES = 4 << 20, MAX_IMAGES = 10000 };

/* What a scan found. Strings are UTF-8 and end in a NUL, which none of them holds; "" stands for what is missing. */
typedef struct {
    buffer page;    /* url, date, base, title; then name, property, content of each meta that may count */
    buffer images;  /* url, text of each image link with a text, in order */
    buffer sources; /* a byte for each of those: 0 the text is its alt, 1 its title */
    buffer metas;
    int64_t num_images, num_titles, num_textless;
} scan;

scan *scan_new(void) { return calloc(1, sizeof(scan)); }

void scan_free(scan *s) {
    if (s == NULL) return;
    free(s->page.data);
    free(s->images.data);
    free(s->sources.data);
    free(s->metas.data);
    free(s);
}

/* Python's str.isspace */
static bool is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x20) || code == 0x85 || code == 0xa0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 ||
           code == 0x202f || code == 0x205f || code == 0x3000;
}

static bool is_blank(const uint8_t *p, const uint8_t *end) {
    uint32_t code;
    while (p < end) {
        size_t size = read_character(p, end, &code);
        if (size == 0 || !is_space(code)) return false;
        p += size;
    }
    return true;
}

/* Appends a text if it is more than white space. */
static bool append_text(reader *r, buffer *b, const text_span *text, bool *appended) {
    size_t start = b->size;
    *appended = false;
    if (text->size == 0) return true;
    if (!append_decoded(b, text)) return fail(r);
    *appended = !is_blank(b->data + start, b->data + b->size - 1);
    if (!*appended) b->size = start;
    return true;
}

static bool add_image(reader *r, scan *s, const text_span *url, const text_span *alt, const text_span *title, bool wants_title) {
    size_t start = s->images.size;
    bool has_text = false;
    uint8_t source = 0;
    if (alt->size != 0 || (title->size != 0 && wants_title)) {
        if (!append_decoded(&s->images, url) || !append_text(r, &s->images, alt, &has_text)) return fail(r);
        if (!has_text && wants_title) {
            source = 1;
            if (!append_text(r, &s->images, title, &has_text)) return false;
        }
    }
    if (!has_text) {
        s->images.size = start;
        s->num_textless++;
        return true;
    }
    if (s->num_images >= MAX_IMAGES || !append(&s->sources, &source, 1)) return fail(r);
    s->num_images++;
    s->num_titles += source;
    return true;
}

static bool is_ascii_word(const uint8_t *p, const char *word, size_t size) {
    for (size_t i = 0; i < size; i++)
        if ((p[i] >= 'A' && p[i] <= 'Z' ? p[i] | 0x20 : p[i]) != (uint8_t)word[i]) return false;
    return true;
}

/* Whether an address may be that of a Creative Commons licence; page.py has the rule. */
static bool may_be_license(const text_span *url) {
    const uint8_t *p = url->start, *end = p + url->size;
    while (p < end && *p == ' ') p++;
    if (end - p < 27) return false; /* http://creativecommons.org/ */
    if (*p <= 0x20 || *p == '\\' || *p >= 0x80) return true; /* other white space, perhaps */
    if (!is_ascii_word(p, "http", 4)) return false;
    for (const uint8_t *c = p; c < end && c < p + 32; c++)
        if (*c == '\\' || *c >= 0x80) return true; /* \/ for /, or a letter that folds to one of ASCII */
    p += p[4] == 's' || p[4] == 'S' ? 5 : 4;
    p += 3;
    if (end - p >= 24 && is_ascii_word(p, "www.", 4)) p += 4;
    return end - p >= 19 && is_ascii_word(p, "creativecommons.org", 19);
}

/* A link of the head is of interest as a licence only. */
static bool read_link(reader *r, scan *s, bool wants_title, bool in_head) {
    text_span key, path = {0}, url = {0}, alt = {0}, title = {0};
    bool started = false, has_path = false, has_url = false, has_alt = false, has_title = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "path")) {
            if (!read_once(r, &path, &has_path) || path.start == NULL || path.escaped) return fail(r);
        } else if (IS_KEY(&key, "url")) {
            if (!read_once(r, &url, &has_url)) return false;
        } else if (IS_KEY(&key, "alt")) {
            if (!read_once(r, &alt, &has_alt)) return false;
        } else if (IS_KEY(&key, "title")) {
            if (!read_once(r, &title, &has_title)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    if (r->unusual) return false;
    if (may_be_license(&url)) return fail(r);
    return !in_head && IS_KEY(&path, "IMG@/src") ? add_image(r, s, &url, &alt, &title, wants_title) : true;
}

static bool read_links(reader *r, scan *s, bool wants_title, bool in_head) {
    bool started = false;
    if (!enter(r, '[')) return false;
    while (next_member(r, ']', &started))
        if (!read_link(r, s, wants_title, in_head)) return false;
    return !r->unusual;
}

static bool starts_with(const text_span *text, const char *prefix, size_t size) {
    return text->size >= size && memcmp(text->start, prefix, size) == 0;
}

static bool is_robots(const text_span *name) {
    static const char word[] = "robots";
    if (name->size != sizeof(word) - 1) return false;
    for (size_t i = 0; i < name->size; i++)
        if ((name->start[i] | 0x20) != word[i]) return false;
    return true;
}

static bool read_meta(reader *r, scan *s, bool wants_shared) {
    text_span key, name = {0}, property = {0}, content = {0};
    bool started = false, has_name = false, has_property = false, has_content = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "name")) {
            if (!read_once(r, &name, &has_name)) return false;
        } else if (IS_KEY(&key, "property")) {
            if (!read_once(r, &property, &has_property)) return false;
        } else if (IS_KEY(&key, "content")) {
            if (!read_once(r, &content, &has_content)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    if (r->unusual) return false;
    bool counts = name.escaped || property.escaped || starts_with(&name, "HTML@/", 6) || is_robots(&name) ||
                  (wants_shared && (starts_with(&name, "og:", 3) || starts_with(&property, "og:", 3)));
    if (!counts) return true;
    return (append_decoded(&s->metas, &name) && append_decoded(&s->metas, &property) &&
            append_decoded(&s->metas, &content)) || fail(r);
}

typedef struct {
    text_span url, date, base, title;
} page_spans;

static bool read_head(reader *r, scan *s, page_spans *page, bool wants_shared) {
    text_span key;
    bool started = false, has_base = false, has_title = false, has_metas = false, has_link = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "Base")) {
            if (!read_once(r, &page->base, &has_base)) return false;
        } else if (IS_KEY(&key, "Title")) {
            if (!read_once(r, &page->title, &has_title)) return false;
        } else if (IS_KEY(&key, "Metas")) {
            bool started_metas = false;
            if (has_metas || !enter(r, '[')) return fail(r);
            has_metas = true;
            while (next_member(r, ']', &started_metas))
                if (!read_meta(r, s, wants_shared)) return false;
            if (r->unusual) return false;
        } else if (IS_KEY(&key, "Link")) {
            if (has_link) return fail(r);
            has_link = true;
            if (!read_links(r, s, false, true)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual;
}

static bool read_html(reader *r, scan *s, page_spans *page, bool wants_title, bool wants_shared) {
    text_span key;
    bool started = false, has_head = false, has_links = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "Head")) {
            if (has_head) return fail(r);
            has_head = true;
            if (!read_head(r, s, page, wants_shared)) return false;
        } else if (IS_KEY(&key, "Links")) {
            if (has_links) return fail(r);
            has_links = true;
            if (!read_links(r, s, wants_title, false)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual;
}

/* Whether a header may be X-Robots-Tag. */
static bool holds_robots(const uint8_t *p, const uint8_t *end) {
    for (; end - p >= 6; p++) {
        text_span here = {p, 6, false};
        if (is_robots(&here)) return true;
    }
    return false;
}

static bool read_response(reader *r, scan *s, page_spans *page, bool wants_title, bool wants_shared, bool *has_html) {
    text_span key;
    bool started = false, has_headers = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "Headers")) {
            const uint8_t *start = r->p;
            if (has_headers || !skip_value(r, 0) || holds_robots(start, r->p)) return fail(r);
            has_headers = true;
        } else if (IS_KEY(&key, "HTML-Metadata")) {
            if (*has_html) return fail(r);
            *has_html = true;
            if (!read_html(r, s, page, wants_title, wants_shared)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual;
}

static bool read_payload(reader *r, scan *s, page_spans *page, bool wants_title, bool wants_shared, bool *has_html) {
    text_span key;
    bool started = false, has_response = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "HTTP-Response-Metadata")) {
            if (has_response) return fail(r);
            has_response = true;
            if (!read_response(r, s, page, wants_title, wants_shared, has_html)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual;
}

static bool read_warc_header(reader *r, page_spans *page) {
    text_span key;
    bool started = false, has_url = false, has_date = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "WARC-Target-URI")) {
            if (!read_once(r, &page->url, &has_url)) return false;
        } else if (IS_KEY(&key, "WARC-Date")) {
            if (!read_once(r, &page->date, &has_date)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual && page->url.start != NULL;
}

static bool read_envelope(reader *r, scan *s, page_spans *page, bool wants_title, bool wants_shared) {
    text_span key;
    bool started = false, has_header = false, has_payload = false, has_html = false;
    if (!enter(r, '{')) return false;
    while (next_key(r, &key, &started)) {
        if (IS_KEY(&key, "WARC-Header-Metadata")) {
            if (has_header || !read_warc_header(r, page)) return fail(r);
            has_header = true;
        } else if (IS_KEY(&key, "Payload-Metadata")) {
            if (has_payload) return fail(r);
            has_payload = true;
            if (!read_payload(r, s, page, wants_title, wants_shared, &has_html)) return false;
        } else if (!skip_value(r, 0)) {
            return false;
        }
    }
    return !r->unusual && has_header && has_html;
}

/* Reads a record.

   Gives DONE with the results in `s` until the next call, or UNUSUAL for one that is to be read in Python. */
int scan_wat(scan *s, const uint8_t *payload, size_t size, int wants_title, int wants_shared) {
    reader r = {payload, payload + size, false};
    page_spans page = {0};
    text_span key;
    bool started = false, has_envelope = false;
    s->page.size = s->images.size = s->sources.size = s->metas.size = 0;
    s->num_images = s->num_titles = s->num_textless = 0;
    if (size > MAX_RECORD_BYTES) return UNUSUAL;
    skip_space(&r);
    if (!enter(&r, '{')) return UNUSUAL;
    while (next_key(&r, &key, &started)) {
        if (IS_KEY(&key, "Envelope")) {
            if (has_envelope || !read_envelope(&r, s, &page, wants_title, wants_shared)) return UNUSUAL;
            has_envelope = true;
        } else if (!skip_value(&r, 0)) {
            return UNUSUAL;
        }
    }
    skip_space(&r);
    if (r.unusual || r.p != r.end || !has_envelope) return UNUSUAL;
    bool written = append_decoded(&s->page, &page.url) && append_decoded(&s->page, &page.date) &&
                   append_decoded(&s->page, &page.base) && append_decoded(&s->page, &page.title) &&
                   append(&s->page, s->metas.data, s->metas.size);
    return written ? DONE : UNUSUAL;
}
