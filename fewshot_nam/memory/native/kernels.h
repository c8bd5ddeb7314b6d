// What the compiled kernels share: vectors, padded matrices and vectors of one thread, and loops over time for many rows.
//
// Plain C++17 for GCC and Clang, without torch's headers: pointers come in, and all memory that is kept is the caller's.
// A matrix of a thread is padded to whole vectors with zeros, so that no loop has a remainder; padding never meets a sum.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

namespace nam {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename T, int bytes = kBytes>
struct Simd {
  static constexpr int lanes = bytes / sizeof(T);
  typedef T type __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vec = typename Simd<T>::type;

template <typename T>
inline Vec<T>& at(T* p) {
  return *reinterpret_cast<Vec<T>*>(p);
}
template <typename T>
inline const Vec<T>& at(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <typename T>
inline int padded(int n) {
  return (n + Simd<T>::lanes - 1) / Simd<T>::lanes * Simd<T>::lanes;
}

// The sum of a vector's numbers, by halves.
template <typename T, int bytes = kBytes>
inline T sum_of(typename Simd<T, bytes>::type v) {
  if constexpr (bytes == sizeof(T)) {
    return v[0];
  } else {
    typename Simd<T, bytes / 2>::type halves[2];
    std::memcpy(halves, &v, bytes);
    return sum_of<T, bytes / 2>(halves[0] + halves[1]);
  }
}

// Zeroed, aligned memory of one thread, cut into pieces; freed as a whole.
template <typename T>
class Scratch {
 public:
  explicit Scratch(size_t numbers) {
    const size_t bytes = (numbers * sizeof(T) + 4095) / 4096 * 4096;
    data_ = static_cast<T*>(std::aligned_alloc(4096, bytes ? bytes : 4096));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
    next_ = data_;
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* take(size_t numbers) {
    T* piece = next_;
    next_ += numbers;
    return piece;
  }

 private:
  T *data_, *next_;
};

// --- functions without branches and calls, so that compilers make loops over them into vectors ------------------------------------
//
// The C library offers its own for vectors only with -ffast-math, which changes more than them. These are within a few units of the
// last place.

// e^x = scale (1 + rest), for -limit <= x <= limit and NaN
template <typename T>
struct Exponential {
  T scale, rest;
  static constexpr bool kDouble = sizeof(T) == 8;
  static constexpr T limit = kDouble ? T(708) : T(87);
  explicit inline Exponential(T x) {
    using Bits = std::conditional_t<kDouble, int64_t, int32_t>;
    constexpr int mantissa = kDouble ? 52 : 23, terms = kDouble ? 13 : 7;
    constexpr T round = T(3) * T(Bits(1) << (mantissa - 1));  // adding it leaves no digits behind the point
    const T shifted = x * T(1.44269504088896340736) + round, whole = shifted - round;
    // x - whole ln 2, in two parts so that the difference is exact
    constexpr T ln2 = kDouble ? T(0x1.62e42fefa3800p-1) : T(0x1.63p-1);
    constexpr T ln2_rest = kDouble ? T(0x1.ef35793c76730p-45) : T(-0x1.bd0106p-13);
    const T r = (x - whole * ln2) - whole * ln2_rest;
    T sum = 1;
#pragma GCC unroll 16
    for (int n = terms; n > 1; --n) sum = 1 + sum * r * (T(1) / T(n));
    rest = sum * r;
    Bits bits;  // whole, as the last digits of `shifted`, becomes an exponent
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = Bits((std::make_unsigned_t<Bits>(bits) << mantissa) + (std::make_unsigned_t<Bits>(kDouble ? 1023 : 127) << mantissa));
    std::memcpy(&scale, &bits, sizeof bits);
  }
};

template <typename T>
inline T between(T low, T x, T high) {  // NaN stays NaN
  x = x < low ? low : x;
  return x > high ? high : x;
}

template <typename T>
inline T sigmoid(T x) {
  using E = Exponential<T>;
  const E e(between(-E::limit, -x, E::limit));
  return 1 / (1 + (e.scale + e.scale * e.rest));
}

// by e^(-2|x|) - 1, which keeps the digits of a small x
template <typename T>
inline T squash(T x) {
  const Exponential<T> e(between(T(-40), -2 * std::fabs(x), T(0)));
  const T less = e.scale * e.rest + (e.scale - 1);
  return std::copysign(-less / (less + 2), x);
}

// --- vectors of `wide` numbers, a whole number of lanes ------------------------------------------------------------------

template <typename T>
inline T dot(const T* x, const T* y, int wide) {
  Vec<T> s = {};
  for (int i = 0; i < wide; i += Simd<T>::lanes) s += at(x + i) * at(y + i);
  return sum_of<T>(s);
}

// --- matrices of `rows` rows, each `wide` numbers apart and long ------------------------------------------------------------

// Calls f.template operator()<n>(column) for tiles of n vectors that together are `wide`, so that sums stay in registers.
template <typename T, typename F>
inline void tiles(int wide, F&& f) {
  constexpr int lanes = Simd<T>::lanes;
  int column = 0;
  for (; column + 4 * lanes <= wide; column += 4 * lanes) f(column, std::integral_constant<int, 4>());
  if (column + 2 * lanes <= wide) {
    f(column, std::integral_constant<int, 2>());
    column += 2 * lanes;
  }
  if (column < wide) f(column, std::integral_constant<int, 1>());
}

// y (+)= sum_i x_i M_i
template <typename T>
inline void combine(const T* m, int rows, int wide, const T* x, T* y, bool add = false) {
  constexpr int lanes = Simd<T>::lanes;
  tiles<T>(wide, [=](int column, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n];
    for (int j = 0; j < n; ++j) sums[j] = add ? at(y + column + j * lanes) : Vec<T>{};
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < n; ++j) sums[j] += x[i] * at(m + (size_t)i * wide + column + j * lanes);
    for (int j = 0; j < n; ++j) at(y + column + j * lanes) = sums[j];
  });
}

// y = sum_i x_i M_i and y2 = sum_i x2_i M_i, in one pass over M
template <typename T>
inline void combine_two(const T* m, int rows, int wide, const T* x, const T* x2, T* y, T* y2) {
  constexpr int lanes = Simd<T>::lanes;
  tiles<T>(wide, [=](int column, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n] = {}, sums2[n] = {};
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < n; ++j) {
        const Vec<T> row = at(m + (size_t)i * wide + column + j * lanes);
        sums[j] += x[i] * row;
        sums2[j] += x2[i] * row;
      }
    for (int j = 0; j < n; ++j) {
      at(y + column + j * lanes) = sums[j];
      at(y2 + column + j * lanes) = sums2[j];
    }
  });
}

// M_i += a_i b, then y = sum_i x_i M_i
template <typename T>
inline void add_outer_combine(T* m, int rows, int wide, const T* a, const T* b, const T* x, T* y) {
  constexpr int lanes = Simd<T>::lanes;
  tiles<T>(wide, [=](int column, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n] = {}, added[n];
    for (int j = 0; j < n; ++j) added[j] = at(b + column + j * lanes);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < n; ++j) {
        Vec<T>& place = at(m + (size_t)i * wide + column + j * lanes);
        const Vec<T> row = place + a[i] * added[j];
        place = row;
        sums[j] += x[i] * row;
      }
    for (int j = 0; j < n; ++j) at(y + column + j * lanes) = sums[j];
  });
}

// y_i = M_i . x, then M_i -= a_i b
template <typename T>
inline void dots_subtract_outer(T* m, int rows, int wide, const T* x, T* y, const T* a, const T* b) {
  constexpr int lanes = Simd<T>::lanes;
  for (int i = 0; i < rows; ++i) {
    Vec<T> sum = {};
    for (int c = 0; c < wide; c += lanes) {
      Vec<T>& place = at(m + (size_t)i * wide + c);
      sum += at(x + c) * place;
      place -= a[i] * at(b + c);
    }
    y[i] = sum_of<T>(sum);
  }
}

// --- a product with a matrix that is packed once and used at every step -------------------------------------------------------

constexpr int kPanelVectors = 2;
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif

template <typename T>
inline int panel() {
  return kPanelVectors * Simd<T>::lanes;
}
template <typename T>
inline int to_panels(int n) {
  return (n + panel<T>() - 1) / panel<T>() * panel<T>();
}

// Packs B (inner x columns; element (k, j) at b[k * by_k + j * by_j]) into panels of columns, padded with zeros: inner numbers of
// to_panels(columns) each.
template <typename T>
void pack(const T* b, int64_t by_k, int64_t by_j, int inner, int columns, T* packed) {
  const int wide = panel<T>();
  for (int first = 0; first < columns; first += wide)
    for (int k = 0; k < inner; ++k)
      for (int j = 0; j < wide; ++j) *packed++ = first + j < columns ? b[k * by_k + (first + j) * by_j] : T(0);
}

template <typename T, int kRows, bool kTransposed>
inline void product_tile(const T* a, int64_t lda, const T* packed, int inner, T* c, int64_t ldc) {
  constexpr int lanes = Simd<T>::lanes;
  Vec<T> sums[kRows][kPanelVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kPanelVectors; ++j) sums[i][j] = at(c + i * ldc + j * lanes);
  for (int k = 0; k < inner; ++k) {
    Vec<T> row[kPanelVectors];
    for (int j = 0; j < kPanelVectors; ++j) row[j] = at(packed + (int64_t)k * kPanelVectors * lanes + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const T x = kTransposed ? a[k * lda + i] : a[i * lda + k];
      for (int j = 0; j < kPanelVectors; ++j) sums[i][j] += x * row[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kPanelVectors; ++j) at(c + i * ldc + j * lanes) = sums[i][j];
}

// C (rows x to_panels(columns), its rows ldc apart) += A (rows x inner) times the packed B. A, or where kTransposed A^T, lies in
// memory with rows lda apart.
template <typename T, bool kTransposed = false>
void add_product(const T* a, int64_t lda, int rows, const T* packed, int inner, int columns, T* c, int64_t ldc) {
  const int wide = panel<T>();
  const int64_t next = kTransposed ? 1 : lda;
  for (int first = 0; first < columns; first += wide, packed += (int64_t)inner * wide) {
    T* const to = c + first;
    int i = 0;
    for (; i + kTileRows <= rows; i += kTileRows)
      product_tile<T, kTileRows, kTransposed>(a + i * next, lda, packed, inner, to + i * ldc, ldc);
    for (; i + 2 <= rows; i += 2) product_tile<T, 2, kTransposed>(a + i * next, lda, packed, inner, to + i * ldc, ldc);
    if (i < rows) product_tile<T, 1, kTransposed>(a + i * next, lda, packed, inner, to + i * ldc, ldc);
  }
}

}  // namespace nam
