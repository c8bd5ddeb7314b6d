// The recurrence of LSAM, forward and backward: the loops of recurrence.py, which has the equations and the legend.
//
// Each thread computes all steps of a few sequences, so that threads never wait for each other and memories stay in its cache.
// A memory and its gradient are stored as matrices of keys by values: then a read, and the gradient of an update, are sums of rows.
// The backward recomputes memories: within a block, M_t = M_0 + sum_s u_s k_s^T over the steps of the block so far.

#include "../native/kernels.h"

namespace nam {

struct Sizes {
  int64_t steps, directions, batch, heads, width, block, squashed, threads;
  int64_t gates_by_step, gates_by_direction, gates_by_batch;  // strides of the gates
};

struct Shards {
  int rows, per_direction, count;
  Shards(const Sizes& s, int most) {
    const int fair = (int)((s.batch * s.directions + s.threads - 1) / s.threads);
    rows = (int)std::min<int64_t>(std::max(1, std::min(most, fair)), s.batch);
    per_direction = (int)((s.batch + rows - 1) / rows);
    count = per_direction * (int)s.directions;
  }
};

constexpr double kEps = 1e-12;

// x / |x| into y (padded), and |x|; zeros and an infinite length where |x| <= eps
template <typename T>
inline T unit(const T* x, int width, T* y) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int i = 0; i < width; ++i) squares += (double)x[i] * x[i];
  const double root = std::sqrt(squares);
  const T length = root <= kEps ? std::numeric_limits<T>::infinity() : (T)root;  // NaN stays NaN
  for (int i = 0; i < width; ++i) y[i] = x[i] / length;
  return length;
}

template <typename T>
void lsam_forward(const Sizes& s, const T* gates, const T* weight, const T* hidden, const T* memory, T* hiddens, T* last,
                  T* blocks, T* units, T* lengths, T* errors, T* probabilities, T* values) {
  const int e = (int)s.width, d = (int)s.heads * e, part = 3 * e + 2, all = (int)s.heads * part;
  const int wide = padded<T>(e), total_wide = to_panels<T>(all);
  const int64_t n = s.directions * s.batch * s.heads;
  const int64_t packed_size = (int64_t)total_wide * d;
  Scratch<T> packed(packed_size * s.directions);
  T* weights = packed.take(0);
  for (int64_t r = 0; r < s.directions; ++r) pack(weight + r * all * d, 1, d, d, all, weights + r * packed_size);

  const Shards shards(s, 16);
#pragma omp parallel num_threads((int)s.threads)
  {
    Scratch<T> scratch((size_t)shards.rows * (total_wide + s.heads * e * wide) + 6 * wide);
    T* const total = scratch.take((size_t)shards.rows * total_wide);
    T* const states = scratch.take((size_t)shards.rows * s.heads * e * wide);
    T *const query = scratch.take(wide), *const key = scratch.take(wide), *const value = scratch.take(wide);
    T *const recalled = scratch.take(wide), *const update = scratch.take(wide), *const found = scratch.take(wide);
#pragma omp for schedule(dynamic, 1)
    for (int shard = 0; shard < shards.count; ++shard) {
      const int64_t r = shard / shards.per_direction, b0 = (int64_t)(shard % shards.per_direction) * shards.rows;
      const int rows = (int)std::min<int64_t>(shards.rows, s.batch - b0);
      const int64_t n0 = (r * s.batch + b0) * s.heads;
      for (int64_t i = 0; i < rows * s.heads; ++i)
        for (int v = 0; v < e; ++v)
          for (int k = 0; k < e; ++k) states[(i * e + k) * wide + v] = memory[((n0 + i) * e + v) * e + k];
      const T* before = hidden + (r * s.batch + b0) * d;
      for (int64_t t = 0; t < s.steps; ++t) {
        if (t % s.block == 0) {
          T* kept = blocks + (t / s.block * n + n0) * e * e;
          for (int64_t i = 0; i < rows * s.heads; ++i)
            for (int v = 0; v < e; ++v)
              for (int k = 0; k < e; ++k) kept[(i * e + v) * e + k] = states[(i * e + k) * wide + v];
        }
        const T* now = gates + t * s.gates_by_step + r * s.gates_by_direction + b0 * s.gates_by_batch;
        for (int b = 0; b < rows; ++b)
          std::memcpy(total + b * total_wide, now + b * s.gates_by_batch, sizeof(T) * all);
        add_product(before, d, rows, weights + r * packed_size, d, all, total, total_wide);
        T* const after = hiddens + ((t * s.directions + r) * s.batch + b0) * d;
        for (int64_t i = 0; i < rows * s.heads; ++i) {
          const T* raw = total + i / s.heads * total_wide + i % s.heads * part;
          const int64_t place = t * n + n0 + i;
          T* const state = states + i * e * wide;
          lengths[2 * place] = unit(raw, e, query);
          lengths[2 * place + 1] = unit(raw + e, e, key);
          std::memcpy(units + 2 * place * e, query, sizeof(T) * e);
          std::memcpy(units + (2 * place + 1) * e, key, sizeof(T) * e);
          const T p_read = probabilities[2 * place] = sigmoid(raw[3 * e]);
          const T p_write = probabilities[2 * place + 1] = sigmoid(raw[3 * e + 1]);
          if (s.squashed) {
            for (int v = 0; v < e; ++v) values[place * e + v] = value[v] = std::tanh(raw[2 * e + v]);
          } else {
            std::memcpy(value, raw + 2 * e, sizeof(T) * e);
          }
          combine(state, e, wide, key, recalled);
          T* const error = errors + place * e;
          for (int v = 0; v < e; ++v) error[v] = value[v] - recalled[v];
          for (int v = 0; v < e; ++v) update[v] = p_write * error[v];
          add_outer_combine(state, e, wide, key, update, query, found);
          T* const read_out = after + i / s.heads * d + i % s.heads * e;
          for (int v = 0; v < e; ++v) read_out[v] = p_read * found[v];
        }
        before = after;
      }
      for (int64_t i = 0; i < rows * s.heads; ++i)
        for (int v = 0; v < e; ++v)
          for (int k = 0; k < e; ++k) last[((n0 + i) * e + v) * e + k] = states[(i * e + k) * wide + v];
    }
  }
}

template <typename T>
void lsam_backward(const Sizes& s, const T* grad_hiddens, const T* grad_memory, const T* weight, const T* blocks,
                   const T* units, const T* lengths, const T* errors, const T* probabilities, const T* values,
                   T* grad_gates, T* grad_first_memory) {
  const int e = (int)s.width, d = (int)s.heads * e, part = 3 * e + 2, all = (int)s.heads * part;
  const int wide = padded<T>(e), d_wide = to_panels<T>(d), block = (int)s.block;
  const int64_t n = s.directions * s.batch * s.heads;
  const int64_t packed_size = (int64_t)d_wide * all;
  Scratch<T> packed(packed_size * s.directions);
  T* weights = packed.take(0);
  for (int64_t r = 0; r < s.directions; ++r) pack(weight + r * all * d, d, 1, all, d, weights + r * packed_size);

  const Shards shards(s, 16);
  const size_t matrix = (size_t)e * wide, steps_of_block = (size_t)block * wide;
#pragma omp parallel num_threads((int)s.threads)
  {
    const size_t items = (size_t)shards.rows * s.heads;
    Scratch<T> scratch((size_t)shards.rows * d_wide + items * (2 * matrix + 2 * steps_of_block) + 8 * wide + 2 * block);
    T* const grad_hidden = scratch.take((size_t)shards.rows * d_wide);
    T *const grads = scratch.take(items * matrix), *const entries = scratch.take(items * matrix);
    T *const keys = scratch.take(items * steps_of_block), *const updates = scratch.take(items * steps_of_block);
    T *const query = scratch.take(wide), *const grad_read = scratch.take(wide), *const grad_update = scratch.take(wide);
    T *const grad_value = scratch.take(wide), *const grad_query = scratch.take(wide), *const grad_key = scratch.take(wide);
    T *const held = scratch.take(wide), *const along = scratch.take(block), *const across = scratch.take(block);
#pragma omp for schedule(dynamic, 1)
    for (int shard = 0; shard < shards.count; ++shard) {
      const int64_t r = shard / shards.per_direction, b0 = (int64_t)(shard % shards.per_direction) * shards.rows;
      const int rows = (int)std::min<int64_t>(shards.rows, s.batch - b0);
      const int64_t n0 = (r * s.batch + b0) * s.heads;
      for (int64_t i = 0; i < rows * s.heads; ++i)
        for (int v = 0; v < e; ++v)
          for (int k = 0; k < e; ++k) grads[(i * e + k) * wide + v] = grad_memory[((n0 + i) * e + v) * e + k];
      for (int64_t t = s.steps - 1; t >= 0; --t) {
        const int place = (int)(t % block);
        if (t + 1 == s.steps || place + 1 == block)
          for (int64_t i = 0; i < rows * s.heads; ++i) {
            const T* entry = blocks + (t / block * n + n0 + i) * e * e;
            for (int v = 0; v < e; ++v) std::memcpy(entries + i * matrix + v * wide, entry + v * e, sizeof(T) * e);
            for (int j = 0; j <= place; ++j) {
              const int64_t then = (t - place + j) * n + n0 + i;
              T* const u = updates + i * steps_of_block + j * wide;
              std::memcpy(keys + i * steps_of_block + j * wide, units + (2 * then + 1) * e, sizeof(T) * e);
              for (int v = 0; v < e; ++v) u[v] = probabilities[2 * then + 1] * errors[then * e + v];
            }
          }
        const T* given = grad_hiddens + ((t * s.directions + r) * s.batch + b0) * d;
        for (int b = 0; b < rows; ++b) std::memcpy(grad_hidden + b * d_wide, given + b * d, sizeof(T) * d);
        T* const grad_now = grad_gates + ((t * s.directions + r) * s.batch + b0) * all;
        if (t + 1 < s.steps)
          add_product(grad_now + s.directions * s.batch * all, all, rows, weights + r * packed_size, all, d, grad_hidden,
                      d_wide);
        for (int64_t i = 0; i < rows * s.heads; ++i) {
          const int64_t at_n = t * n + n0 + i;
          const T p_read = probabilities[2 * at_n], p_write = probabilities[2 * at_n + 1];
          const T* dh = grad_hidden + i / s.heads * d_wide + i % s.heads * e;
          const T *block_keys = keys + i * steps_of_block, *block_updates = updates + i * steps_of_block;
          const T *key = block_keys + place * wide, *update = block_updates + place * wide;
          T *const grad = grads + i * matrix, *const raw = grad_now + i / s.heads * all + i % s.heads * part;
          std::memcpy(query, units + 2 * at_n * e, sizeof(T) * e);
          for (int v = 0; v < e; ++v) grad_read[v] = p_read * dh[v];
          add_outer_combine(grad, e, wide, query, grad_read, key, grad_update);
          T slope = 0;
          const T* error = errors + at_n * e;
#pragma omp simd reduction(+ : slope)
          for (int v = 0; v < e; ++v) slope += grad_update[v] * error[v];
          raw[3 * e + 1] = slope * p_write * (1 - p_write);
          for (int v = 0; v < wide; v += Simd<T>::lanes) at(grad_value + v) = p_write * at(grad_update + v);
          for (int v = 0; v < e; ++v)
            raw[2 * e + v] = s.squashed ? grad_value[v] * (1 - values[at_n * e + v] * values[at_n * e + v]) : grad_value[v];
          dots_subtract_outer(grad, e, wide, update, grad_key, key, grad_value);

          // M_t^T do and M_(t-1)^T dv
          combine_two(entries + i * matrix, e, wide, grad_read, grad_value, grad_query, held);
          for (int j = 0; j <= place; ++j) along[j] = dot(block_updates + j * wide, grad_read, wide);
          for (int j = 0; j < place; ++j) across[j] = dot(block_updates + j * wide, grad_value, wide);
          combine(block_keys, place + 1, wide, along, grad_query, true);
          combine(block_keys, place, wide, across, held, true);
          for (int k = 0; k < wide; k += Simd<T>::lanes) at(grad_key + k) -= at(held + k);

          const T read_part = dot(query, grad_query, wide), key_part = dot(key, grad_key, wide);
          raw[3 * e] = read_part * (1 - p_read);
          const T *length = lengths + 2 * at_n;
          // gradient 0 for a vector of 0
          const T by_query = 1 / length[0], by_key = 1 / length[1];
          for (int k = 0; k < e; ++k) raw[k] = (grad_query[k] - read_part * query[k]) * by_query;
          for (int k = 0; k < e; ++k) raw[e + k] = (grad_key[k] - key_part * key[k]) * by_key;
        }
      }
      for (int64_t i = 0; i < rows * s.heads; ++i)
        for (int v = 0; v < e; ++v)
          for (int k = 0; k < e; ++k) grad_first_memory[((n0 + i) * e + v) * e + k] = grads[(i * e + k) * wide + v];
    }
  }
}

}  // namespace nam

#define LSAM(T, NAME)                                                                                                         \
  extern "C" void nam_lsam_forward_##NAME(const nam::Sizes* s, const T* gates, const T* weight, const T* hidden,              \
                                          const T* memory, T* hiddens, T* last, T* blocks, T* units, T* lengths, T* errors,   \
                                          T* probabilities, T* values) {                                                      \
    nam::lsam_forward(*s, gates, weight, hidden, memory, hiddens, last, blocks, units, lengths, errors, probabilities,        \
                      values);                                                                                                \
  }                                                                                                                           \
  extern "C" void nam_lsam_backward_##NAME(const nam::Sizes* s, const T* grad_hiddens, const T* grad_memory,                  \
                                           const T* weight, const T* blocks, const T* units, const T* lengths,                \
                                           const T* errors, const T* probabilities, const T* values, T* grad_gates,           \
                                           T* grad_first_memory) {                                                            \
    nam::lsam_backward(*s, grad_hiddens, grad_memory, weight, blocks, units, lengths, errors, probabilities, values,          \
                       grad_gates, grad_first_memory);                                                                        \
  }

LSAM(float, float32)
LSAM(double, float64)
