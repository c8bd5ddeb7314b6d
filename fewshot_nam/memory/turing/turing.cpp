// The tapes and heads of a NAM Turing Machine over a sequence, forward and backward: the equations are in machine.py.
//
// Each thread computes all steps of one tape of one sequence, with its heads and key tape, which stay in its cache.
// A tape is c rows of L cells. The backward recomputes the tapes before each step of a block from the one kept at its start, with
// bit-identical results; the heads of all steps are kept.

#include "../native/kernels.h"

namespace nam {

struct TuringSizes {
  int64_t batch, steps, tapes, width, cells, actions, block, threads;
  int64_t has_keys, by_position, norm_access, norm_state, write_first;
};

constexpr double kShortest = 1e-12;

// y = a x
template <typename T>
inline void scale(const T* x, T a, int wide, T* y) {
  for (int i = 0; i < wide; i += Simd<T>::lanes) at(y + i) = a * at(x + i);
}

// y += a x
template <typename T>
inline void add_scaled(const T* x, T a, int wide, T* y) {
  for (int i = 0; i < wide; i += Simd<T>::lanes) at(y + i) += a * at(x + i);
}

// x / |x| into y, and |x|; zeros and an infinite length where |x| <= eps
template <typename T>
inline T to_unit(const T* x, int wide, T* y) {
  const T root = std::sqrt(dot(x, x, wide)), length = root <= (T)kShortest ? std::numeric_limits<T>::infinity() : root;
  scale(x, 1 / length, wide, y);
  return length;
}

// The gradient of x, given the unit vector and the length of to_unit, and the gradient g of the unit vector
template <typename T>
inline void from_unit(const T* unit, T length, const T* g, int wide, T* grad, bool add) {
  const T along = dot(unit, g, wide), inverse = 1 / length;
  for (int i = 0; i < wide; i += Simd<T>::lanes) {
    const Vec<T> x = (at(g + i) - along * at(unit + i)) * inverse;
    at(grad + i) = add ? at(grad + i) + x : x;
  }
}

// Calls f(row, n) with n a compile-time 4 or 1 until all rows are through.
template <typename F>
inline void by_rows(int rows, F&& f) {
  int i = 0;
  for (; i + 4 <= rows; i += 4) f(i, std::integral_constant<int, 4>());
  for (; i < rows; ++i) f(i, std::integral_constant<int, 1>());
}

// to_i = from_i + a_i b, of matrices
template <typename T>
inline void add_outer(const T* from, T* to, int rows, int wide, const T* a, const T* b) {
  by_rows(rows, [=](int first, auto count) {
    constexpr int n = decltype(count)::value;
    T as[n];
    for (int i = 0; i < n; ++i) as[i] = a[first + i];
    for (int c = 0; c < wide; c += Simd<T>::lanes) {
      const Vec<T> bc = at(b + c);
      for (int i = 0; i < n; ++i) {
        const size_t place = (size_t)(first + i) * wide + c;
        at(to + place) = at(from + place) + as[i] * bc;
      }
    }
  });
}

// Writes what is wanted at the place w, erasing what was found there: found_i = M_i . w, M_i += (p_w wanted_i - p_e found_i) w;
// and, if x is given, seen_i = M_i . x, of the new or the old M.
template <typename T>
void write_at_position(T* m, int rows, int wide, const T* w, const T* wanted, T p_write, T p_erase, T* found, const T* x,
                       bool write_first, T* seen) {
  constexpr int lanes = Simd<T>::lanes;
  by_rows(rows, [=](int first, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n] = {}, reads[n] = {};
    T u[n];
    for (int c = 0; c < wide; c += lanes)
      for (int i = 0; i < n; ++i) sums[i] += at(m + (size_t)(first + i) * wide + c) * at(w + c);
    for (int i = 0; i < n; ++i) {
      found[first + i] = sum_of<T>(sums[i]);
      u[i] = p_write * wanted[first + i] - p_erase * found[first + i];
    }
    for (int c = 0; c < wide; c += lanes) {
      const Vec<T> wc = at(w + c), xc = x ? at(x + c) : Vec<T>{};
      for (int i = 0; i < n; ++i) {
        Vec<T>& place = at(m + (size_t)(first + i) * wide + c);
        const Vec<T> before = place, after = before + u[i] * wc;
        place = after;
        reads[i] += (write_first ? after : before) * xc;
      }
    }
    if (x)
      for (int i = 0; i < n; ++i) seen[first + i] = sum_of<T>(reads[i]);
  });
}

// The way back of write_at_position and of a read. Given M before the write, the updates u, the gradient G of M after it, and the
// gradients g_i of seen_i: read = sum_i r_i M_i (the M that was read), grad_u_i = G_i . w, grad_w += what both uses of w say, and
// G becomes the gradient of M before. If dots: dots_i = M_i . x, of the M that was read.
template <bool kWriteFirst, bool kDots, typename T>
void unwrite_at_position(const T* before, T* grad, int rows, int wide, const T* w, const T* u, T p_erase, const T* x, const T* g,
                         const T* r, T* read, T* grad_u, T* grad_w, T* dots) {
  constexpr int lanes = Simd<T>::lanes;
  std::memset(read, 0, sizeof(T) * wide);
  by_rows(rows, [=](int first, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n] = {}, seen[n] = {};
    T gone[n], us[n], rs[n], gs[n];  // copies: after every store the compiler would fetch them anew
    for (int i = 0; i < n; ++i) us[i] = u[first + i], rs[i] = r[first + i], gs[i] = g[first + i];
    for (int c = 0; c < wide; c += lanes) {
      const Vec<T> wc = at(w + c), xc = at(x + c);
      Vec<T> reads = at(read + c), grads = at(grad_w + c);
      for (int i = 0; i < n; ++i) {
        const size_t place = (size_t)(first + i) * wide + c;
        const Vec<T> m = kWriteFirst ? at(before + place) + us[i] * wc : at(before + place);
        reads += rs[i] * m;
        if (kDots) seen[i] += m * xc;
        Vec<T> gm = at(grad + place);
        if (kWriteFirst) at(grad + place) = gm = gm + gs[i] * xc;
        sums[i] += gm * wc;
        grads += us[i] * gm;
      }
      at(read + c) = reads;
      at(grad_w + c) = grads;
    }
    for (int i = 0; i < n; ++i) {
      grad_u[first + i] = sum_of<T>(sums[i]);
      gone[i] = -p_erase * grad_u[first + i];
      if (kDots) dots[first + i] = sum_of<T>(seen[i]);
    }
    for (int c = 0; c < wide; c += lanes) {
      const Vec<T> wc = at(w + c), xc = at(x + c);
      Vec<T> grads = at(grad_w + c);
      for (int i = 0; i < n; ++i) {
        const size_t place = (size_t)(first + i) * wide + c;
        Vec<T> gm = at(grad + place) + gone[i] * wc;
        if (!kWriteFirst) gm += gs[i] * xc;
        at(grad + place) = gm;
        grads += gone[i] * at(before + place);
      }
      at(grad_w + c) = grads;
    }
  });
}

// The way back of a write by key, K_i += k_i n, and of j = sum_i q_i K_i after it. Given K before, and the gradients G of K and
// grad_j: j itself, the gradients of q, of k and of n, and G becomes the gradient of K before, were n not a function of it.
template <typename T>
void unwrite_by_key(const T* before, T* grad, int rows, int wide, const T* k, const T* q, const T* n, const T* grad_j, T* j,
                    T* grad_q, T* grad_k, T* grad_n) {
  constexpr int lanes = Simd<T>::lanes;
  std::memset(j, 0, sizeof(T) * wide);
  std::memset(grad_n, 0, sizeof(T) * wide);
  by_rows(rows, [=](int first, auto count) {
    constexpr int size = decltype(count)::value;
    Vec<T> of_q[size] = {}, of_k[size] = {};
    T ks[size], qs[size];
    for (int i = 0; i < size; ++i) ks[i] = k[first + i], qs[i] = q[first + i];
    for (int c = 0; c < wide; c += lanes) {
      const Vec<T> nc = at(n + c), gc = at(grad_j + c);
      Vec<T> js = at(j + c), grads = at(grad_n + c);
      for (int i = 0; i < size; ++i) {
        const size_t place = (size_t)(first + i) * wide + c;
        const Vec<T> m = at(before + place) + ks[i] * nc;
        const Vec<T> gm = at(grad + place) + qs[i] * gc;
        at(grad + place) = gm;
        js += qs[i] * m;
        grads += ks[i] * gm;
        of_q[i] += m * gc;
        of_k[i] += gm * nc;
      }
      at(j + c) = js;
      at(grad_n + c) = grads;
    }
    for (int i = 0; i < size; ++i) {
      grad_q[first + i] = sum_of<T>(of_q[i]);
      grad_k[first + i] = sum_of<T>(of_k[i]);
    }
  });
}

// y_i += M_i . x, and G_i += a_i x
template <typename T>
void add_dots_and_outer(const T* m, T* grad, int rows, int wide, const T* x, const T* a, T* y) {
  constexpr int lanes = Simd<T>::lanes;
  by_rows(rows, [=](int first, auto count) {
    constexpr int n = decltype(count)::value;
    Vec<T> sums[n] = {};
    T as[n];
    for (int i = 0; i < n; ++i) as[i] = a[first + i];
    for (int c = 0; c < wide; c += lanes) {
      const Vec<T> xc = at(x + c);
      for (int i = 0; i < n; ++i) {
        const size_t place = (size_t)(first + i) * wide + c;
        sums[i] += at(m + place) * xc;
        at(grad + place) += as[i] * xc;
      }
    }
    for (int i = 0; i < n; ++i) y[first + i] += sum_of<T>(sums[i]);
  });
}

// A head written twice over, so that it is rolled by o cells where one begins to read at L - o; with room for a whole vector more.
template <typename T>
inline void twice(const T* head, int cells, T* doubled) {
  std::memcpy(doubled, head, sizeof(T) * cells);
  std::memcpy(doubled + cells, head, sizeof(T) * cells);
}

// sum_a p_a times the head rolled by offset_a, or jumped where that is -1
template <typename T>
void blend(const T* head, const T* jumped, const T* probabilities, const int64_t* offsets, int actions, int cells, int wide,
           T* doubled, T* moved) {
  twice(head, cells, doubled);
  std::memset(moved, 0, sizeof(T) * wide);
  for (int a = 0; a < actions; ++a)
    add_scaled(offsets[a] < 0 ? jumped : doubled + (cells - offsets[a]) % cells, probabilities[a], wide, moved);
  std::fill(moved + cells, moved + wide, T(0));
}

// Where the numbers of a tape of a sequence are.
struct Unit {
  int64_t n, base, step;  // row among tapes of all sequences; place (in numbers of one each) at step 0, and from step to step
  Unit(const TuringSizes& s, int64_t n) : n(n), base(n / s.tapes * s.steps * s.tapes + n % s.tapes), step(s.tapes) {}
  int64_t at(int64_t t) const { return base + t * step; }
};

template <typename T>
struct Inputs {
  const T *values, *actions[2], *p_read, *p_write, *p_erase, *keys, *queries, *value_tape, *key_tape, *first[2];
  const uint8_t* mask;
  const int64_t* offsets;
};

// What the way back needs, by tape and step: heads (2, L), what a write found on either tape, lengths (2), tapes at each block
template <typename T>
struct Kept {
  T *heads, *found, *found_keys, *lengths, *value_blocks, *key_blocks;
};

template <typename T>
void copy_in(const T* from, int rows, int cells, int wide, T* to) {
  for (int i = 0; i < rows; ++i) std::memcpy(to + (size_t)i * wide, from + (size_t)i * cells, sizeof(T) * cells);
}
template <typename T>
void copy_out(const T* from, int rows, int cells, int wide, T* to) {
  for (int i = 0; i < rows; ++i) std::memcpy(to + (size_t)i * cells, from + (size_t)i * wide, sizeof(T) * cells);
}

template <typename T>
void turing_forward(const TuringSizes& s, const Inputs<T>& in, T* reads, T* last_value_tape, T* last_key_tape, T* last_read,
                    T* last_write, const Kept<T>& kept) {
  const int rows = (int)s.width, cells = (int)s.cells, wide = padded<T>(cells), actions = (int)s.actions;
  const size_t tape = (size_t)rows * cells, matrix = (size_t)rows * wide;
  const int64_t blocks = (s.steps + s.block - 1) / s.block, found_wide = s.by_position ? rows : cells;
  T* const last[2] = {last_read, last_write};
#pragma omp parallel num_threads((int)s.threads)
  {
    Scratch<T> scratch(2 * matrix + 7 * wide + 3 * wide + rows);
    T *const values = scratch.take(matrix), *const keys = scratch.take(matrix);
    T* const heads[2] = {scratch.take(wide), scratch.take(wide)};
    T* const units[2] = {scratch.take(wide), scratch.take(wide)};
    T *const held = scratch.take(wide), *const update = scratch.take(wide), *const jumped = scratch.take(wide);
    T* const found_keys = scratch.take(rows);
    T* const doubled = scratch.take(3 * wide);
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < s.batch * s.tapes; ++n) {
      const Unit unit(s, n);
      copy_in(in.value_tape + n * tape, rows, cells, wide, values);
      if (s.has_keys) copy_in(in.key_tape + n * tape, rows, cells, wide, keys);
      for (int i = 0; i < 2; ++i) std::memcpy(heads[i], in.first[i] + n * cells, sizeof(T) * cells);
      for (int64_t t = 0; t < s.steps; ++t) {
        const int64_t p = unit.at(t), row = n * s.steps + t;
        if (t % s.block == 0) {
          copy_out(values, rows, cells, wide, kept.value_blocks + (n * blocks + t / s.block) * tape);
          if (s.has_keys) copy_out(keys, rows, cells, wide, kept.key_blocks + (n * blocks + t / s.block) * tape);
        }
        const T *now[2] = {heads[0], heads[1]}, p_write = in.p_write[p], p_erase = in.p_erase[p];
        for (int i = 0; i < 2; ++i) {
          std::memcpy(kept.heads + (2 * row + i) * cells, heads[i], sizeof(T) * cells);
          if (s.norm_access) {
            kept.lengths[2 * row + i] = to_unit(heads[i], wide, units[i]);
            now[i] = units[i];
          }
        }
        T* const out = reads + p * rows;
        write_at_position(values, rows, wide, now[1], in.values + p * rows, p_write, p_erase, kept.found + row * rows, now[0],
                          s.write_first, out);
        for (int i = 0; i < rows; ++i) out[i] *= in.p_read[p];
        if (s.has_keys) {
          const T *key = in.keys + p * rows, *query = in.queries + p * rows;
          if (s.by_position) {
            write_at_position<T>(keys, rows, wide, heads[1], key, p_write, p_erase, found_keys, nullptr, true, nullptr);
            std::memcpy(kept.found_keys + row * found_wide, found_keys, sizeof(T) * rows);
            combine(keys, rows, wide, query, jumped);
          } else {
            combine(keys, rows, wide, key, held);
            std::memcpy(kept.found_keys + row * found_wide, held, sizeof(T) * cells);
            for (int i = 0; i < wide; i += Simd<T>::lanes)
              at(update + i) = p_write * at(heads[1] + i) - p_erase * at(held + i);
            add_outer_combine(keys, rows, wide, key, update, query, jumped);
          }
        }
        if (!in.mask || in.mask[n / s.tapes * s.steps + t])
          for (int i = 0; i < 2; ++i) {
            blend(heads[i], jumped, in.actions[i] + p * actions, in.offsets, actions, cells, wide, doubled, update);
            if (s.norm_state)
              kept.lengths[2 * row + i] = to_unit(update, wide, heads[i]);
            else
              std::memcpy(heads[i], update, sizeof(T) * wide);
          }
      }
      copy_out(values, rows, cells, wide, last_value_tape + n * tape);
      if (s.has_keys) copy_out(keys, rows, cells, wide, last_key_tape + n * tape);
      for (int i = 0; i < 2; ++i) std::memcpy(last[i] + n * cells, heads[i], sizeof(T) * cells);
    }
  }
}

// Gradients of what Inputs holds.
template <typename T>
struct Gradients {
  T *values, *actions[2], *p_read, *p_write, *p_erase, *keys, *queries, *value_tape, *key_tape, *first[2];
};

template <typename T>
void turing_backward(const TuringSizes& s, const Inputs<T>& in, const Kept<T>& kept, const T* grad_reads,
                     const T* grad_last_value_tape, const T* grad_last_key_tape, const T* grad_last_read,
                     const T* grad_last_write, const T* const last[2], const Gradients<T>& out) {
  const int rows = (int)s.width, cells = (int)s.cells, wide = padded<T>(cells), actions = (int)s.actions;
  const int block = (int)s.block;
  const size_t tape = (size_t)rows * cells, matrix = (size_t)rows * wide;
  const int64_t blocks = (s.steps + block - 1) / block, found_wide = s.by_position ? rows : cells;
  const T* const grad_last[2] = {grad_last_read, grad_last_write};
#pragma omp parallel num_threads((int)s.threads)
  {
    Scratch<T> scratch((2 * block + 2) * matrix + 17 * wide + 3 * wide + 4 * rows);
    T *const values = scratch.take(block * matrix), *const keys = scratch.take(block * matrix);
    T *const grad_values = scratch.take(matrix), *const grad_keys = scratch.take(matrix);
    T* const heads[2] = {scratch.take(wide), scratch.take(wide)};
    T* const units[2] = {scratch.take(wide), scratch.take(wide)};
    T* const next[2] = {scratch.take(wide), scratch.take(wide)};
    T* const grads[2] = {scratch.take(wide), scratch.take(wide)};
    T* const grads_moved[2] = {scratch.take(wide), scratch.take(wide)};
    T *const read = scratch.take(wide), *const grad_writer = scratch.take(wide), *const held = scratch.take(wide);
    T *const update = scratch.take(wide), *const grad_update = scratch.take(wide), *const jumped = scratch.take(wide);
    T *const grad_jumped = scratch.take(wide);
    T *const u = scratch.take(rows), *const grad_u = scratch.take(rows), *const coefficients = scratch.take(rows);
    T* const grad_key = scratch.take(rows);
    T* const doubled = scratch.take(3 * wide);
#pragma omp for schedule(dynamic, 1)
    for (int64_t n = 0; n < s.batch * s.tapes; ++n) {
      const Unit unit(s, n);
      const auto updates = [&](int64_t row, int64_t p, T* to) {
        for (int i = 0; i < rows; ++i)
          to[i] = in.p_write[p] * in.values[p * rows + i] - in.p_erase[p] * kept.found[row * rows + i];
      };
      const auto key_updates = [&](int64_t row, int64_t p) {  // into u by position, into update by key
        const T* found = kept.found_keys + row * found_wide;
        if (s.by_position) {
          for (int i = 0; i < rows; ++i) u[i] = in.p_write[p] * in.keys[p * rows + i] - in.p_erase[p] * found[i];
        } else {
          const T* writer = kept.heads + (2 * row + 1) * cells;
          for (int i = 0; i < cells; ++i) update[i] = in.p_write[p] * writer[i] - in.p_erase[p] * found[i];
        }
      };
      const auto load_head = [&](int64_t row, int i) {
        std::memcpy(heads[i], kept.heads + (2 * row + i) * cells, sizeof(T) * cells);
        scale(heads[i], s.norm_access ? 1 / kept.lengths[2 * row + i] : T(1), wide, units[i]);
      };
      copy_in(grad_last_value_tape + n * tape, rows, cells, wide, grad_values);
      if (s.has_keys) copy_in(grad_last_key_tape + n * tape, rows, cells, wide, grad_keys);
      for (int i = 0; i < 2; ++i) {
        std::memcpy(grads[i], grad_last[i] + n * cells, sizeof(T) * cells);
        std::memcpy(next[i], last[i] + n * cells, sizeof(T) * cells);
      }
      for (int64_t t = s.steps - 1; t >= 0; --t) {
        const int place = (int)(t % block);
        if (t + 1 == s.steps || place + 1 == block) {
          copy_in(kept.value_blocks + (n * blocks + t / block) * tape, rows, cells, wide, values);
          if (s.has_keys) copy_in(kept.key_blocks + (n * blocks + t / block) * tape, rows, cells, wide, keys);
          for (int i = 0; i < place; ++i) {
            const int64_t then = t - place + i, row = n * s.steps + then, p = unit.at(then);
            load_head(row, 1);
            updates(row, p, u);
            add_outer(values + i * matrix, values + (i + 1) * matrix, rows, wide, u, units[1]);
            if (!s.has_keys) continue;
            key_updates(row, p);
            const T *a = s.by_position ? u : in.keys + p * rows, *b = s.by_position ? heads[1] : update;
            add_outer(keys + i * matrix, keys + (i + 1) * matrix, rows, wide, a, b);
          }
        }
        const int64_t p = unit.at(t), row = n * s.steps + t;
        const T p_read = in.p_read[p], p_write = in.p_write[p], p_erase = in.p_erase[p];
        T grad_p_write = 0, grad_p_erase = 0;
        for (int i = 0; i < 2; ++i) load_head(row, i);

        // The moves, from the gradients of the new heads to those of what was blended.
        const bool stays = in.mask && !in.mask[n / s.tapes * s.steps + t];
        if (s.has_keys) std::memset(grad_jumped, 0, sizeof(T) * wide);
        for (int i = 0; i < 2; ++i) {
          if (stays)
            std::memset(grads_moved[i], 0, sizeof(T) * wide);
          else if (s.norm_state)
            from_unit(next[i], kept.lengths[2 * row + i], grads[i], wide, grads_moved[i], false);
          else
            std::memcpy(grads_moved[i], grads[i], sizeof(T) * wide);
          if (!stays) std::memset(grads[i], 0, sizeof(T) * wide);
          for (int a = 0; s.has_keys && a < actions; ++a)
            if (in.offsets[a] < 0) add_scaled(grads_moved[i], in.actions[i][p * actions + a], wide, grad_jumped);
        }

        // The key tape.
        if (s.has_keys) {
          const T *key = in.keys + p * rows, *query = in.queries + p * rows, *before = keys + place * matrix;
          T* const grad_query = out.queries + p * rows;
          key_updates(row, p);
          if (s.by_position) {
            unwrite_at_position<true, true>(before, grad_keys, rows, wide, heads[1], u, p_erase, grad_jumped, query, query, jumped,
                                            grad_u, grads[1], grad_query);
            for (int i = 0; i < rows; ++i) {
              out.keys[p * rows + i] = p_write * grad_u[i];
              grad_p_write += grad_u[i] * key[i];
              grad_p_erase -= grad_u[i] * kept.found_keys[row * found_wide + i];
            }
          } else {
            unwrite_by_key(before, grad_keys, rows, wide, key, query, update, grad_jumped, jumped, grad_query, grad_key,
                           grad_update);
            std::memcpy(held, kept.found_keys + row * found_wide, sizeof(T) * cells);
            grad_p_write += dot(grad_update, heads[1], wide);
            grad_p_erase -= dot(grad_update, held, wide);
            add_scaled(grad_update, p_write, wide, grads[1]);
            scale(grad_update, -p_erase, wide, grad_update);
            add_dots_and_outer(before, grad_keys, rows, wide, grad_update, key, grad_key);
            std::memcpy(out.keys + p * rows, grad_key, sizeof(T) * rows);
          }
        }

        // Actions, and what the heads before the move get: rolling a gradient back serves both.
        for (int i = 0; i < 2; ++i) {
          const T* const probabilities = in.actions[i] + p * actions;
          twice(grads_moved[i], cells, doubled);
          for (int a = 0; a < actions; ++a) {
            const T* const back = in.offsets[a] < 0 ? grads_moved[i] : doubled + in.offsets[a];
            const T* const from = in.offsets[a] < 0 ? jumped : heads[i];
            out.actions[i][p * actions + a] = dot(back, from, wide);  // what follows a rolled gradient meets padding
            if (in.offsets[a] >= 0) add_scaled(back, probabilities[a], wide, grads[i]);
          }
          std::fill(grads[i] + cells, grads[i] + wide, T(0));
        }

        // The value tape.
        const T* grad_read = grad_reads + p * rows;
        updates(row, p, u);
        for (int i = 0; i < rows; ++i) coefficients[i] = p_read * grad_read[i];
        std::memset(grad_writer, 0, sizeof(T) * wide);
        const auto unwrite = s.write_first ? unwrite_at_position<true, false, T> : unwrite_at_position<false, false, T>;
        unwrite(values + place * matrix, grad_values, rows, wide, units[1], u, p_erase, units[0], coefficients, grad_read, read,
                grad_u, grad_writer, nullptr);
        out.p_read[p] = dot(read, units[0], wide);
        for (int i = 0; i < rows; ++i) {
          out.values[p * rows + i] = p_write * grad_u[i];
          grad_p_write += grad_u[i] * in.values[p * rows + i];
          grad_p_erase -= grad_u[i] * kept.found[row * rows + i];
        }
        out.p_write[p] = grad_p_write;
        out.p_erase[p] = grad_p_erase;
        scale(read, p_read, wide, read);
        const T* const grad_units[2] = {read, grad_writer};
        for (int i = 0; i < 2; ++i) {
          if (s.norm_access)
            from_unit(units[i], kept.lengths[2 * row + i], grad_units[i], wide, grads[i], true);
          else
            add_scaled(grad_units[i], T(1), wide, grads[i]);
          std::memcpy(next[i], heads[i], sizeof(T) * wide);
        }
      }
      copy_out(grad_values, rows, cells, wide, out.value_tape + n * tape);
      if (s.has_keys) copy_out(grad_keys, rows, cells, wide, out.key_tape + n * tape);
      for (int i = 0; i < 2; ++i) std::memcpy(out.first[i] + n * cells, grads[i], sizeof(T) * cells);
    }
  }
}

}  // namespace nam

// Pointers in the order of the fields of Inputs, then of the rest; see turing_kernel.py.
#define TURING(T, NAME)                                                                                                       \
  extern "C" void nam_turing_forward_##NAME(const nam::TuringSizes* s, const nam::Inputs<T>* in, const nam::Kept<T>* kept,    \
                                            T* const* o) {                                                                    \
    nam::turing_forward(*s, *in, o[0], o[1], o[2], o[3], o[4], *kept);                                                        \
  }                                                                                                                           \
  extern "C" void nam_turing_backward_##NAME(const nam::TuringSizes* s, const nam::Inputs<T>* in, const nam::Kept<T>* kept,   \
                                             const T* const* g, const T* const* last, const nam::Gradients<T>* out) {         \
    nam::turing_backward(*s, *in, *kept, g[0], g[1], g[2], g[3], g[4], last, *out);                                           \
  }

TURING(float, float32)
TURING(double, float64)
