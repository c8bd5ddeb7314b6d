// The gated write of STM's item memory, forward and backward: I' = sigmoid(L_i) * X + sigmoid(L_f) * I, see item_write.py.
//
// In torch, each of its dozen elementwise parts goes through the main memory once. Here a thread does all of them, and the product
// that makes the gates, for one sequence at a time, whose memory stays in its cache.

#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC target("prefer-vector-width=512")  // half as many instructions as GCC's choice, a third faster
#endif

#include <omp.h>

#include "../native/kernels.h"

namespace nam {

struct ItemSizes {
  int64_t batch, width, squashed, threads;
};

template <typename T, bool squashed>
inline T written(T a, T b) {
  return squashed ? squash(a * b) : a * b;
}

template <typename T, bool squashed>
void item_forward(const ItemSizes& s, const T* items, const T* as, const T* bs, const T* driven, const T* weight, T* afters,
                  T* gates) {
  const int d = (int)s.width, wide = to_panels<T>(2 * d);
  Scratch<T> packed((size_t)wide * d);
  T* const weights = packed.take((size_t)wide * d);
  pack(weight, 1, d, d, 2 * d, weights);
#pragma omp parallel num_threads((int)std::min(s.threads, s.batch))
  {
    Scratch<T> scratch((size_t)d * (wide + d));
    T *const logits = scratch.take((size_t)d * wide), *const squeezed = scratch.take((size_t)d * d);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < s.batch; ++n) {
      const T *const item = items + n * d * d, *const a = as + n * d, *const b = bs + n * d, *const drive = driven + n * 2 * d;
      T *const after = afters + n * d * d, *const kept = gates ? gates + n * 2 * d * d : nullptr;
#pragma omp simd
      for (int i = 0; i < d * d; ++i) squeezed[i] = squash(item[i]);
      for (int i = 0; i < d; ++i) std::memcpy(logits + i * wide, drive, sizeof(T) * 2 * d);
      add_product(squeezed, d, d, weights, d, 2 * d, logits, wide);
      for (int i = 0; i < d; ++i) {
        T* const gate = logits + i * wide;
#pragma omp simd
        for (int j = 0; j < 2 * d; ++j) gate[j] = sigmoid(gate[j]);
        if (kept) std::memcpy(kept + i * 2 * d, gate, sizeof(T) * 2 * d);
#pragma omp simd
        for (int j = 0; j < d; ++j)
          after[i * d + j] = gate[j] * written<T, squashed>(a[i], b[j]) + gate[d + j] * item[i * d + j];
      }
    }
  }
}

template <typename T, bool squashed>
void item_backward(const ItemSizes& s, const T* grads, const T* items, const T* as, const T* bs, const T* weight, const T* gates,
                   T* d_items, T* d_as, T* d_bs, T* d_driven, T* d_weight) {
  const int d = (int)s.width, wide = to_panels<T>(d);
  const int threads = (int)std::min(s.threads, s.batch);
  const size_t square = (size_t)d * wide;
  Scratch<T> shared(2 * square + threads * 2 * square);
  T* const weights = shared.take(2 * square);
  T* const partial = shared.take(threads * 2 * square);
  pack(weight, d, 1, 2 * d, d, weights);
#pragma omp parallel num_threads(threads)
  {
    Scratch<T> scratch(5 * square);
    T *const squeezed = scratch.take(square), *const panels = scratch.take(square);
    T *const d_logits = scratch.take(2 * square), *const d_squeezed = scratch.take(square);
    T* const sum = partial + omp_get_thread_num() * 2 * square;
#pragma omp for schedule(static)  // so that sums have one order
    for (int64_t n = 0; n < s.batch; ++n) {
      const T *const grad = grads + n * d * d, *const item = items + n * d * d, *const a = as + n * d, *const b = bs + n * d;
      T *const d_a = d_as + n * d, *const d_b = d_bs + n * d, *const d_drive = d_driven + n * 2 * d;
      std::memset(d_b, 0, sizeof(T) * d);
      std::memset(d_drive, 0, sizeof(T) * 2 * d);
#pragma omp simd
      for (int i = 0; i < d * d; ++i) squeezed[i] = squash(item[i]);
      for (int i = 0; i < d; ++i) {
        const T *const enter = gates + (n * d + i) * 2 * d, *const keep = enter + d;
        T* const d_gate = d_logits + i * 2 * d;
        T slope = 0;
#pragma omp simd reduction(+ : slope)
        for (int j = 0; j < d; ++j) {
          const T g = grad[i * d + j], x = written<T, squashed>(a[i], b[j]);
          const T d_product = g * enter[j] * (squashed ? 1 - x * x : T(1));
          slope += d_product * b[j];
          d_b[j] += d_product * a[i];
          d_gate[j] = g * x * enter[j] * (1 - enter[j]);
          d_gate[d + j] = g * item[i * d + j] * keep[j] * (1 - keep[j]);
          d_drive[j] += d_gate[j];
          d_drive[d + j] += d_gate[d + j];
        }
        d_a[i] = slope;
      }
      std::memset(d_squeezed, 0, sizeof(T) * square);
      add_product(d_logits, 2 * d, d, weights, 2 * d, d, d_squeezed, wide);
      for (int i = 0; i < d; ++i) {
        const T* const keep = gates + (n * d + i) * 2 * d + d;
#pragma omp simd
        for (int j = 0; j < d; ++j) {
          const T h = squeezed[i * d + j];
          d_items[(n * d + i) * d + j] = grad[i * d + j] * keep[j] + d_squeezed[i * wide + j] * (1 - h * h);
        }
      }
      pack(squeezed, d, 1, d, d, panels);
      add_product<T, true>(d_logits, 2 * d, 2 * d, panels, d, d, sum, wide);
    }
  }
  for (int i = 0; i < 2 * d; ++i)
    for (int j = 0; j < d; ++j) {
      T total = 0;
      for (int thread = 0; thread < threads; ++thread) total += partial[thread * 2 * square + i * wide + j];
      d_weight[i * d + j] = total;
    }
}

}  // namespace nam

#define NAM_STM(T, name)                                                                                                          \
  extern "C" void nam_stm_forward_##name(const nam::ItemSizes* s, const T* item, const T* a, const T* b, const T* driven,         \
                                         const T* weight, T* after, T* gates) {                                                   \
    (s->squashed ? nam::item_forward<T, true> : nam::item_forward<T, false>)(*s, item, a, b, driven, weight, after, gates);       \
  }                                                                                                                               \
  extern "C" void nam_stm_backward_##name(const nam::ItemSizes* s, const T* grad, const T* item, const T* a, const T* b,          \
                                          const T* weight, const T* gates, T* d_item, T* d_a, T* d_b, T* d_driven, T* d_weight) { \
    (s->squashed ? nam::item_backward<T, true> : nam::item_backward<T, false>)(*s, grad, item, a, b, weight, gates, d_item, d_a,  \
                                                                               d_b, d_driven, d_weight);                          \
  }

NAM_STM(float, float32)
NAM_STM(double, float64)
