// Products of rows that an index picks from a bank of features, read where they lie: what fewshot_nam/heads/picked.py does
// in torch, without writing the rows down first.
//
// A bank has rows of `width` numbers, `stride` apart: float, or bfloat16 as uint16_t. `mean` is null, or `width` floats that are
// subtracted from every row; of a bank of Rooted numbers the signed square roots are taken first. Indices are in range. Sums are float. What comes out for an episode depends on that episode alone.
// Vectors are those of GCC and clang, so that one source serves every processor.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
constexpr size_t lanes = 16;
constexpr size_t most = 8;  // rows that a pair of rows is multiplied with in one pass: their sums stay in registers
#else
constexpr size_t lanes = 8;
constexpr size_t most = 5;
#endif
constexpr size_t ahead = 4;  // picked rows from the one that is read to the one that is fetched from memory meanwhile

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * lanes)));

#define INLINE static inline __attribute__((always_inline))

INLINE size_t padded(size_t width) { return (width + lanes - 1) / lanes * lanes; }

INLINE Floats load(const float *from, size_t count) {  // zeros beyond the count
    Floats floats = {};
    memcpy(&floats, from, count * sizeof *from);
    return floats;
}

INLINE Floats load(const uint16_t *from, size_t count) {
    Halves halves = {};
    memcpy(&halves, from, count * sizeof *from);
    const Bits bits = __builtin_convertvector(halves, Bits) << 16;  // a bfloat16 is the upper half of a float
    Floats floats;
    memcpy(&floats, &bits, sizeof floats);
    return floats;
}

template <typename T>
struct Rooted {
    T number;
};

template <typename T>
INLINE Floats load(const Rooted<T> *from, size_t count) {  // signed_root in root.py
    const Floats numbers = load(&from->number, count);
    Bits bits;
    memcpy(&bits, &numbers, sizeof bits);
    const Bits sign = bits & 0x80000000u, positive = bits ^ sign;
    Floats sizes, roots;
    memcpy(&sizes, &positive, sizeof sizes);
    for (size_t i = 0; i < lanes; i++) roots[i] = __builtin_sqrtf(sizes[i]);
    Bits rooted;
    memcpy(&rooted, &roots, sizeof rooted);
    rooted |= sign;
    memcpy(&roots, &rooted, sizeof roots);
    return sizes < 1e-8f ? numbers * 1e4f : roots;
}

template <typename T>
INLINE Floats centred(const T *row, const float *mean, size_t i, size_t width) {
    if (i + lanes <= width) {  // a count that is known when this is compiled makes a load one instruction
        const Floats floats = load(row + i, lanes);
        return mean ? floats - load(mean + i, lanes) : floats;
    }
    const Floats floats = load(row + i, width - i);
    return mean ? floats - load(mean + i, width - i) : floats;
}

template <typename T>
INLINE void fetch(const T *row, size_t width) {
    for (size_t i = 0; i < width; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
}

INLINE float sum(Floats floats) {
    float total = 0;
    for (size_t i = 0; i < lanes; i++) total += floats[i];
    return total;
}

template <typename T>
struct Pair {  // two rows of a bank, and two that will be wanted soon
    const T *first, *second, *soon, *later;
    const float *mean;
    size_t width;
};

// The products of a pair with `count` other rows, `between` apart in `out`, and where asked for the squared lengths of the pair.
template <size_t count, bool lengths, typename T>
static void pass(const Pair<T> &rows, const float *others, float *const out[2], size_t between, float *const squares[2]) {
    const T *const first = rows.first, *const second = rows.second, *const soon = rows.soon, *const later = rows.later;
    const float *const mean = rows.mean;
    const size_t width = rows.width, row = padded(width);
    Floats of_first[count] = {}, of_second[count] = {}, square_first = {}, square_second = {};
    const auto add = [&](size_t i, Floats a, Floats b) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (size_t c = 0; c < count; c++) {
            const Floats other = load(others + c * row + i, lanes);
            of_first[c] += a * other, of_second[c] += b * other;
        }
        if (lengths) square_first += a * a, square_second += b * b;
    };
    size_t i = 0;
    for (; i + lanes <= width; i += lanes) {
        __builtin_prefetch(soon + i), __builtin_prefetch(later + i);
        Floats a = load(first + i, lanes), b = load(second + i, lanes);
        if (mean) a -= load(mean + i, lanes), b -= load(mean + i, lanes);
        add(i, a, b);
    }
    if (i < width) add(i, centred(first, mean, i, width), centred(second, mean, i, width));
#pragma GCC unroll 8
    for (size_t c = 0; c < count; c++) out[0][c * between] = sum(of_first[c]), out[1][c * between] = sum(of_second[c]);
    if (lengths) *squares[0] = sum(square_first), *squares[1] = sum(square_second);
}

// The same for any number of other rows, which are padded with zeros.
template <bool lengths, typename T, size_t count = most>
static void multiply(const Pair<T> &rows, const float *others, size_t columns, float *const out[2], size_t between,
                     float *const squares[2]) {
    const size_t passes = (columns + most - 1) / most, now = (columns + passes - 1) / passes;
    if constexpr (count > 1)
        if (now < count) return multiply<lengths, T, count - 1>(rows, others, columns, out, between, squares);
    pass<count, lengths>(rows, others, out, between, squares);
    float *const rest[2] = {out[0] + count * between, out[1] + count * between};
    if (columns > count)
        multiply<false, T>(rows, others + count * padded(rows.width), columns - count, rest, between, squares);
}

template <typename T>
static int gram(const T *bank, size_t stride, size_t width, const float *mean, const int64_t *index, size_t episodes,
                size_t n, size_t block, float *out) {
    const size_t row = padded(width);
    float *const rows = (float *)malloc(n * row * sizeof(float));
    if (!rows) return 1;
    for (size_t e = 0; e < episodes; e++, index += n, out += n * n) {
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < width; k += lanes) {
                __builtin_prefetch(bank + index[i + 2 < n ? i + 2 : i] * stride + k);
                const Floats floats = centred(bank + index[i] * stride, mean, k, width);
                memcpy(rows + i * row + k, &floats, sizeof floats);
            }
        for (size_t i = 0; i < n; i += 2) {  // of a symmetric matrix half is enough
            const size_t j = i + 1 < n ? i + 1 : i;
            const float *a = rows + i * row, *b = rows + j * row;
            if (e + 1 < episodes) fetch(bank + index[n + i] * stride, width), fetch(bank + index[n + j] * stride, width);
            const Pair<float> pair = {a, b, a, b, nullptr, row};
            const size_t start = i / block * block;
            float *const to[2] = {out + i * n + start, out + j * n + start};
            multiply<false>(pair, rows + start * row, j + 1 - start, to, 1, to);
        }
        for (size_t i = 0; i < n; i++)
            for (size_t j = i + 1; j < n; j++)
                out[i * n + j] = out[j * n + i] = i / block == j / block ? out[j * n + i] : 0;
    }
    free(rows);
    return 0;
}

// The weighted sums of `count` rows, added to `rows` or, for the first ones of an episode, put there.
template <size_t count, typename T>
static void weigh(const T *bank, size_t stride, size_t width, const float *mean, const int64_t *support, const int64_t *soon,
                  const float *weights, size_t n, size_t columns, bool first, float *rows) {
    const size_t row = padded(width);
    for (size_t k = 0; k < width; k += lanes) {
        Floats floats[count];
#pragma GCC unroll 4
        for (size_t i = 0; i < count; i++) {
            __builtin_prefetch(bank + soon[i] * stride + k);
            floats[i] = centred(bank + support[i] * stride, mean, k, width);
        }
        for (size_t c = 0; c < columns; c++) {
            Floats sums = first ? Floats{} : load(rows + c * row + k, lanes);
#pragma GCC unroll 4
            for (size_t i = 0; i < count; i++) sums += weights[c * n + i] * floats[i];
            memcpy(rows + c * row + k, &sums, sizeof sums);
        }
    }
}

template <typename T>
static int products(const T *bank, size_t stride, size_t width, const float *mean, const int64_t *support, size_t n,
                    const float *weights, size_t columns, const int64_t *query, size_t queries, size_t episodes,
                    float *out, float *squares) {
    const size_t row = padded(width), between = episodes * queries;
    float *const rows = (float *)malloc(columns * row * sizeof(float));
    if (!rows) return 1;
    for (size_t e = 0; e < episodes; e++) {
        for (size_t i = 0; i < n;) {
            const size_t count = n - i < 4 ? n - i : 4;
            const int64_t *const soon = (episodes - e) * n >= i + 8 ? support + i + 4 : support + i;
            const auto add = count == 4 ? weigh<4, T> : count == 3 ? weigh<3, T> : count == 2 ? weigh<2, T> : weigh<1, T>;
            add(bank, stride, width, mean, support + i, soon, weights + i, n, columns, i == 0, rows);
            i += count;
        }
        const size_t left = (episodes - e) * queries;  // what is fetched ahead may be the next episode's
        for (size_t j = 0; j < queries; j += 2) {
            const size_t other = j + 1 < queries ? j + 1 : j;
            const size_t soon = j + ahead < left ? j + ahead : j, later = j + ahead + 1 < left ? j + ahead + 1 : j;
            const Pair<T> pair = {bank + query[j] * stride,    bank + query[other] * stride, bank + query[soon] * stride,
                                  bank + query[later] * stride, mean,                        width};
            float *const to[2] = {out + j, out + other}, *const lengths[2] = {squares + j, squares + other};
            multiply<true>(pair, rows, columns, to, between, lengths);
        }
        support += n, weights += columns * n, query += queries, out += queries, squares += queries;
    }
    free(rows);
    return 0;
}

// What Python calls; 0, or 1 where there is no memory. Shapes: gram (episodes, n, n), 0 outside of squares of `block` along the
// diagonal; weights (episodes, columns, n); products (columns, episodes, queries); squares (episodes, queries).
#define EXPORT(NAME, T)                                                                                                   \
    extern "C" int gram_##NAME(const T *bank, size_t stride, size_t width, const float *mean, const int64_t *index,       \
                               size_t episodes, size_t n, size_t block, float *out) {                                     \
        return gram(bank, stride, width, mean, index, episodes, n, block, out);                                           \
    }                                                                                                                     \
    extern "C" int products_##NAME(const T *bank, size_t stride, size_t width, const float *mean, const int64_t *support, \
                                   size_t n, const float *weights, size_t columns, const int64_t *query, size_t queries,  \
                                   size_t episodes, float *out, float *squares) {                                         \
        return products(bank, stride, width, mean, support, n, weights, columns, query, queries, episodes, out, squares); \
    }

EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
EXPORT(float32_rooted, Rooted<float>)
EXPORT(bfloat16_rooted, Rooted<uint16_t>)
