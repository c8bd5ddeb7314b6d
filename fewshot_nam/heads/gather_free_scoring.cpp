// Products of queries with class weights, where the queries are rows of a bank that an index picks. They are read in place:
// fewshot_nam/heads/gather_free_scoring.py, which also does the same in torch.
//
// Vectors are those of GCC and clang, so that one source serves every processor.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
constexpr size_t lanes = 16;
constexpr size_t most = 8;  // columns in one pass over two queries: their sums stay in registers
#else
constexpr size_t lanes = 8;
constexpr size_t most = 5;
#endif
constexpr size_t ahead = 4;  // queries between the one that is multiplied and the one that is fetched from memory meanwhile

typedef float Floats __attribute__((vector_size(4 * lanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * lanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * lanes)));

#define INLINE inline __attribute__((always_inline))

INLINE Floats load(const float *from, size_t count) {  // zeros beyond the count
    Floats floats = {};
    memcpy(&floats, from, count * sizeof *from);
    return floats;
}

INLINE Floats load(const uint16_t *from, size_t count) {
    Halves halves = {};
    memcpy(&halves, from, count * sizeof *from);
    return (Floats)(__builtin_convertvector(halves, Bits) << 16);  // a bfloat16 is the upper half of a float
}

INLINE Floats signed_root(Floats numbers) {  // as in power_norm.py
    const Bits sign = (Bits)numbers & 0x80000000u;
    const Floats sizes = (Floats)((Bits)numbers ^ sign);
    Floats roots;
    for (size_t i = 0; i < lanes; i++) roots[i] = __builtin_sqrtf(sizes[i]);
    return sizes < 1e-8f ? numbers * 1e4f : (Floats)((Bits)roots | sign);
}

INLINE float sum(Floats floats) {
    float total = 0;
    for (size_t i = 0; i < lanes; i++) total += floats[i];
    return total;
}

template <typename T>
struct Bank {
    const T *rows;
    size_t stride, width;
    const float *centre;  // null for none
};

// Where results of two queries go: products of one column are `between` apart from those of the next.
struct Out {
    float *products[2], *squares[2];
    size_t between;
};

// The products of the queries q[0] and q[1] with `count` columns, and where `squares` their squared lengths.
template <size_t count, bool power, bool squares, typename T>
static void pass(const Bank<T> &bank, const T *const q[2], const T *const next[2], const float *weights, const Out &out) {
    Floats sums[2][count] = {}, square[2] = {};
    const auto add = [&](size_t i, size_t n) __attribute__((always_inline)) {
        Floats x[2];
        for (size_t r = 0; r < 2; r++) {
            x[r] = power ? signed_root(load(q[r] + i, n)) : load(q[r] + i, n);
            if (bank.centre) x[r] -= load(bank.centre + i, n);
            if (squares) square[r] += x[r] * x[r];
        }
#pragma GCC unroll 8
        for (size_t c = 0; c < count; c++) {
            const Floats weight = load(weights + c * bank.width + i, n);
            sums[0][c] += x[0] * weight, sums[1][c] += x[1] * weight;
        }
    };
    size_t i = 0;
    for (; i + lanes <= bank.width; i += lanes) {
        __builtin_prefetch(next[0] + i), __builtin_prefetch(next[1] + i);
        add(i, lanes);
    }
    if (i < bank.width) add(i, bank.width - i);
    for (size_t r = 0; r < 2; r++) {
#pragma GCC unroll 8
        for (size_t c = 0; c < count; c++) out.products[r][c * out.between] = sum(sums[r][c]);
        if (squares) *out.squares[r] = sum(square[r]);
    }
}

// The same for any number of columns, in as few passes as their sums fit registers, as even as can be.
template <bool power, bool squares, typename T, size_t count = most>
static void multiply(const Bank<T> &bank, const T *const q[2], const T *const next[2], const float *weights, size_t columns,
                     const Out &out) {
    const size_t passes = (columns + most - 1) / most;
    if constexpr (count > 1)
        if ((columns + passes - 1) / passes < count)
            return multiply<power, squares, T, count - 1>(bank, q, next, weights, columns, out);
    pass<count, power, squares>(bank, q, next, weights, out);
    if (columns == count) return;
    const size_t done = count * out.between;
    const Out rest = {{out.products[0] + done, out.products[1] + done}, {out.squares[0], out.squares[1]}, out.between};
    multiply<power, false, T>(bank, q, next, weights + count * bank.width, columns - count, rest);
}

template <bool power, typename T>
static void products(const Bank<T> &bank, const float *weights, size_t columns, const int64_t *query, size_t queries,
                     size_t episodes, float *out, float *squares) {
    const auto row = [&](size_t j) { return bank.rows + query[j] * bank.stride; };
    const size_t all = episodes * queries;
    for (size_t j = 0; j < all;) {
        const size_t episode = j / queries, k = j + 1 < (episode + 1) * queries ? j + 1 : j;
        const size_t soon = k + ahead < all ? k + ahead : j;
        const T *const q[2] = {row(j), row(k)}, *const next[2] = {row(soon - (soon != j)), row(soon)};
        multiply<power, true>(bank, q, next, weights + episode * columns * bank.width, columns,
                              {{out + j, out + k}, {squares + j, squares + k}, all});
        j = k + 1;
    }
}

// What Python calls. Shapes: weights (episodes, columns, width), query (episodes, queries), out (columns, episodes, queries),
// squares (episodes, queries). Where `power`, signed square roots are multiplied.
#define EXPORT(NAME, T)                                                                                                       \
    extern "C" void products_##NAME(const T *rows, size_t stride, size_t width, size_t power, const float *centre,            \
                                    const float *weights, size_t columns, const int64_t *query, size_t queries,               \
                                    size_t episodes, float *out, float *squares) {                                            \
        const auto multiply_all = power ? products<true, T> : products<false, T>;                                             \
        multiply_all({rows, stride, width, centre}, weights, columns, query, queries, episodes, out, squares);                \
    }

EXPORT(float32, float)
EXPORT(bfloat16, uint16_t)
