/* Area averaging of 8-bit RGB by factors that are not whole, with the very pixels of OpenCV's INTER_AREA; see
   area_resize.py.

   A pixel of the result is a weighted mean of those that it covers, taken in two steps: along each row, then down the
   columns. Sums are float32, left to right and top to bottom, and each product is rounded before it is added. Another
   order, or fused multiply-adds, would give other last bits and now and then another pixel. OpenCV works on one number
   at a time; here the channels of a pixel, and those of the pixel below it, are the lanes of one vector, and a row on
   the edge of two rows of the result is averaged once for both.

   The weights of a column are padded with zeros to as many as the widest column needs: adding 0 changes nothing, and a
   loop of a known length has no branch to guess. */

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, NOT_MINE = 1 };

/* Elsewhere OpenCV is compiled with fused multiply-adds, or not as fast as it could be but untried here. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2"))) static
#define INLINE AVX2 inline __attribute__((always_inline))

enum { MAX_SIDE = 65535 };                          /* of JPEG; keeps the tables small */
enum { BLOCK = 5, BLOCK_BYTES = 16, MIN_WIDTH = 6 }; /* pixels of a load, its bytes; a load ends in the next row at most */

/* Which bytes of a block go into the lanes for each of its pixels; 255 makes a 0. */
#define LANES(a) (a), 255, 255, 255, (a) + 1, 255, 255, 255, (a) + 2, 255, 255, 255, 255, 255, 255, 255
static const uint8_t SPREAD[BLOCK][32] __attribute__((aligned(32))) = {
    {LANES(0), LANES(0)}, {LANES(3), LANES(3)}, {LANES(6), LANES(6)}, {LANES(9), LANES(9)}, {LANES(12), LANES(12)}};

typedef struct {
    int32_t size; /* of the source, pixels */
    double scale; /* pixels of the source to one of the result */
} axis;

/* The pixels of the source under one of the result, on one axis: `count` of them, from `first` on. */
typedef struct {
    int32_t first, count, num_before, num_inside;
    float before, inside, after; /* weights: of the first if it is cut, of whole ones, of the last if it is cut */
} cell;

/* OpenCV's rule, with its order of operations on doubles: pieces of a thousandth of a pixel do not count. */
static cell cell_of(axis a, int32_t index) {
    double start = index * a.scale, end = start + a.scale;
    double left = a.size - start, width = a.scale < left ? a.scale : left;
    int32_t low = (int32_t)start, high = (int32_t)end;
    if (low < start) low++;
    if (high > a.size - 1) high = a.size - 1;
    if (low > high) low = high;
    cell c = {.first = low, .num_inside = high - low, .inside = (float)(1.0 / width)};
    if (low - start > 1e-3) {
        c.first = low - 1;
        c.num_before = 1;
        c.before = (float)((low - start) / width);
    }
    double rest = end - high;
    c.count = c.num_before + c.num_inside + (rest > 1e-3);
    if (rest > 1.0) rest = 1.0;
    if (rest > width) rest = width;
    c.after = (float)(rest / width);
    return c;
}

static bool is_inside(axis a, const cell *c) { return c->count > 0 && c->first >= 0 && c->first + c->count <= a.size; }

static float weight_of(const cell *c, int32_t place) {
    if (place < c->num_before) return c->before;
    return place < c->num_before + c->num_inside ? c->inside : c->after;
}

/* The columns of the result: where in a row each begins, and `width` weights for each. */
typedef struct {
    int32_t number, width;
    int32_t *starts; /* bytes */
    float *weights;
} columns;

static bool make_columns(columns *made, axis a, int32_t number) {
    int32_t width = 0;
    for (int32_t i = 0; i < number; i++) {
        cell c = cell_of(a, i);
        if (!is_inside(a, &c)) return false;
        if (c.count > width) width = c.count;
    }
    made->number = number;
    made->width = width;
    made->starts = malloc((size_t)number * sizeof *made->starts);
    made->weights = calloc((size_t)number * width, sizeof *made->weights);
    if (made->starts == NULL || made->weights == NULL) return false;
    for (int32_t i = 0; i < number; i++) {
        cell c = cell_of(a, i);
        int32_t too_far = c.first + width - a.size; /* the padding of the last columns goes before their pixels */
        int32_t padding = too_far > 0 ? too_far : 0;
        made->starts[i] = 3 * (c.first - padding);
        for (int32_t k = 0; k < c.count; k++)
            made->weights[(size_t)i * width + padding + k] = weight_of(&c, k);
    }
    return true;
}

/* A block of a row in one half, the one below it in the other. */
INLINE __m256i load_blocks(const uint8_t *upper, const uint8_t *lower) {
    __m256i both = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)upper));
    return _mm256_inserti128_si256(both, _mm_loadu_si128((const __m128i *)lower), 1);
}

INLINE __m256 weighted_pixels(__m256i blocks, int place, const float *weights) {
    __m256i spread = _mm256_shuffle_epi8(blocks, _mm256_load_si256((const __m256i *)SPREAD[place]));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(spread), _mm256_broadcast_ss(weights + place));
}

INLINE void average_pair(const columns *c, const uint8_t *upper, const uint8_t *lower, float *above, float *below,
                         const int width) {
    const int32_t *starts = c->starts, number = c->number;
    const float *weights = c->weights;
    for (int32_t i = 0; i < number; i++, weights += width) {
        const uint8_t *u = upper + starts[i], *l = lower + starts[i];
        __m256 sum = _mm256_setzero_ps();
        for (int place = 0; place < width; place += BLOCK) {
            __m256i blocks = load_blocks(u + 3 * (size_t)place, l + 3 * (size_t)place);
            const int last = width - place < BLOCK ? width - place : BLOCK;
            for (int k = 0; k < last; k++) sum = _mm256_add_ps(sum, weighted_pixels(blocks, k, weights + place));
        }
        _mm_storeu_ps(above + 4 * (size_t)i, _mm256_castps256_ps128(sum));
        _mm_storeu_ps(below + 4 * (size_t)i, _mm256_extractf128_ps(sum, 1));
    }
}

/* Two rows of the source, averaged along: 4 numbers for each pixel, of which the last is 0. */
AVX2 void average_rows(const columns *c, const uint8_t *upper, const uint8_t *lower, float *above, float *below) {
    switch (c->width) {
        case 2: average_pair(c, upper, lower, above, below, 2); break;
        case 3: average_pair(c, upper, lower, above, below, 3); break;
        case 4: average_pair(c, upper, lower, above, below, 4); break;
        case 5: average_pair(c, upper, lower, above, below, 5); break;
        default: average_pair(c, upper, lower, above, below, c->width);
    }
}

AVX2 void add_row(float *sums, const float *row, float weight, size_t number, bool is_first) {
    const __m256 factor = _mm256_set1_ps(weight);
    for (size_t i = 0; i < number; i += 8) {
        __m256 product = _mm256_mul_ps(factor, _mm256_loadu_ps(row + i));
        _mm256_storeu_ps(sums + i, is_first ? product : _mm256_add_ps(_mm256_loadu_ps(sums + i), product));
    }
}

/* Rounds to the nearest number, to the even one of two. */
AVX2 void store_row(uint8_t *out, const float *sums, int32_t number) {
    const __m128i lowest = _mm_setr_epi8(0, 4, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    for (int32_t i = 0; i < number; i++, out += 3, sums += 4) {
        __m128i whole = _mm_cvtps_epi32(_mm_min_ps(_mm_loadu_ps(sums), _mm_set1_ps(255.0f)));
        int32_t packed = _mm_cvtsi128_si32(_mm_shuffle_epi8(whole, lowest));
        memcpy(out, &packed, i + 1 < number ? 4 : 3); /* the next pixel takes the place of the fourth byte */
    }
}

typedef struct {
    const uint8_t *source, *last; /* `last` is a copy of the last row with room behind it: loads go past a row's end */
    uint8_t *result;
    int32_t source_width, height;
    axis down;
    columns across;
    float *above, *below, *sums; /* rows of the result, 4 numbers a pixel; `row_numbers` each, a multiple of 8 */
    size_t row_numbers;
} work;

static const uint8_t *row_of(const work *w, int32_t row) {
    return row < w->down.size - 1 ? w->source + (size_t)row * 3 * w->source_width : w->last;
}

AVX2 void resize_rows(work *w) {
    int32_t held = -2; /* row of the source that `above` was made of; the one after it is in `below` */
    for (int32_t i = 0; i < w->height; i++) {
        cell c = cell_of(w->down, i);
        for (int32_t k = 0; k < c.count; k++) {
            int32_t row = c.first + k;
            if (row > held + 1) {
                average_rows(&w->across, row_of(w, row), row_of(w, row + 1), w->above, w->below);
                held = row;
            }
            const float *averaged = row == held ? w->above : w->below;
            add_row(w->sums, averaged, weight_of(&c, k), w->row_numbers, k == 0);
        }
        store_row(w->result + (size_t)i * 3 * w->across.number, w->sums, w->across.number);
    }
}

static bool is_whole(double scale) {
    double off = scale - (int32_t)(scale + 0.5);
    return (off < 0 ? -off : off) < DBL_EPSILON;
}

static bool is_usual(axis across, axis down, int32_t width, int32_t height) {
    if (width < 1 || height < 1 || across.size < width || down.size < height) return false;
    if (across.size < MIN_WIDTH || across.size > MAX_SIDE || down.size > MAX_SIDE) return false;
    if (is_whole(across.scale) && is_whole(down.scale)) return false;
    for (int32_t i = 0; i < height; i++) {
        cell c = cell_of(down, i);
        if (!is_inside(down, &c)) return false;
    }
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

static bool resize_usual(work *w, axis across, int32_t width) {
    size_t row_bytes = 3 * (size_t)across.size, numbers = ((size_t)width + 1) / 2 * 8;
    uint8_t *last = calloc(1, row_bytes + BLOCK_BYTES);
    float *rows = calloc(3 * numbers, sizeof *rows);
    bool ready = last != NULL && rows != NULL && make_columns(&w->across, across, width);
    if (ready) {
        memcpy(last, w->source + (w->down.size - 1) * row_bytes, row_bytes);
        w->last = last;
        w->above = rows;
        w->below = rows + numbers;
        w->sums = rows + 2 * numbers;
        w->row_numbers = numbers;
        resize_rows(w);
    }
    free(w->across.starts);
    free(w->across.weights);
    free(rows);
    free(last);
    return ready;
}

/* Makes `result` [height, width, 3] of `source` [source_height, source_width, 3], both without gaps between rows.
   NOT_MINE leaves it to OpenCV: whole factors, for which it has other rules, enlarging, odd sizes, too little memory. */
int area_resize(const uint8_t *source, int32_t source_width, int32_t source_height, uint8_t *result, int32_t width,
                int32_t height) {
    axis across = {source_width, 1.0 / ((double)width / source_width)};
    axis down = {source_height, 1.0 / ((double)height / source_height)};
    if (!is_usual(across, down, width, height)) return NOT_MINE;
    work w = {.source = source, .result = result, .source_width = source_width, .height = height, .down = down};
    return resize_usual(&w, across, width) ? DONE : NOT_MINE;
}

#else

int area_resize(const uint8_t *source, int32_t source_width, int32_t source_height, uint8_t *result, int32_t width,
                int32_t height) {
    (void)source, (void)source_width, (void)source_height, (void)result, (void)width, (void)height;
    return NOT_MINE;
}

#endif
