// The memory scan token by token for small memories: per head S <- S + k u^T with u = w v - e S^T k, then o = r S^T q, where S is
// the transposed memory (D_k rows of D_v). At these sizes a product costs less than torch's call of it. `chunk.py` has the
// equations, the torch form of the same, and the layouts; pointers are to contiguous memory.
#include <cstdint>
#include <cstring>
#include <vector>

namespace nam {

struct ScanSizes {
    int64_t batch, steps, heads, keys, values, segment, threads;
};

namespace {

// Each pointer may be null where there is no such gate. K and V are the sizes where they are known to the compiler, else 0.
template <typename Real>
struct ScanTokens {
    const Real *q, *k, *v, *r, *w, *e;
};

template <typename Real>
struct ScanGradients {
    Real *q, *k, *v, *r, *w, *e;
};

template <typename Real, int K, int V>
struct Scan {
    const ScanSizes& sizes;
    const int64_t keys = K ? K : sizes.keys, values = V ? V : sizes.values;

    // found = S^T x
    void look(const Real* __restrict state, const Real* __restrict x, Real* __restrict found) const {
        if constexpr (V > 0) {
            Real sum[V] = {};  // in registers
            for (int i = 0; i < K; ++i)
#pragma omp simd
                for (int j = 0; j < V; ++j) sum[j] += x[i] * state[i * V + j];
            for (int j = 0; j < V; ++j) found[j] = sum[j];
        } else {
            for (int64_t j = 0; j < values; ++j) found[j] = 0;
            for (int64_t i = 0; i < keys; ++i)
#pragma omp simd
                for (int64_t j = 0; j < values; ++j) found[j] += x[i] * state[i * values + j];
        }
    }

    // S <- S + scale x y^T
    void add(Real* __restrict state, const Real* __restrict x, const Real* __restrict y) const {
        for (int64_t i = 0; i < keys; ++i)
#pragma omp simd
            for (int64_t j = 0; j < values; ++j) state[i * values + j] += x[i] * y[j];
    }

    // Return row . y
    Real dot(const Real* row, const Real* y, int64_t size) const {
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < size; ++j) sum += row[j] * y[j];
        return sum;
    }

    // Write one token into `state`; `found` becomes S^T k before the write and `update` becomes u.
    void write(const ScanTokens<Real>& tokens, int64_t at, Real* state, Real* found, Real* update) const {
        const Real *k = tokens.k + at * keys, *v = tokens.v + at * values, w = tokens.w[at];
        for (int64_t j = 0; j < values; ++j) update[j] = w * v[j];
        if (tokens.e) {
            look(state, k, found);
            for (int64_t j = 0; j < values; ++j) update[j] -= tokens.e[at] * found[j];
        }
        add(state, k, update);
    }

    // states: the state at the start of every segment, (segments + 1, B H, D_k, D_v), the first given; the last is the result.
    void forward(const ScanTokens<Real>& tokens, Real* states, Real* reads) const {
        const int64_t size = keys * values, count = sizes.batch * sizes.heads;
#pragma omp parallel for num_threads(sizes.threads) if (sizes.threads > 1)
        for (int64_t n = 0; n < count; ++n) {
            std::vector<Real> room(size + 2 * values);
            Real *state = room.data(), *found = state + size, *update = found + values;
            std::memcpy(state, states + n * size, size * sizeof(Real));
            for (int64_t t = 0; t < sizes.steps; ++t) {
                if (t && t % sizes.segment == 0)
                    std::memcpy(states + (t / sizes.segment * count + n) * size, state, size * sizeof(Real));
                const int64_t at = place(n, t);
                write(tokens, at, state, found, update);
                Real* read = reads + at * values;
                look(state, tokens.q + at * keys, read);
                if (tokens.r)
                    for (int64_t j = 0; j < values; ++j) read[j] *= tokens.r[at];
            }
            const int64_t last = (sizes.steps + sizes.segment - 1) / sizes.segment;
            std::memcpy(states + (last * count + n) * size, state, size * sizeof(Real));
        }
    }

    // grad_state: the gradient of the last state, (B H, D_k, D_v), which becomes that of the first.
    void backward(const ScanTokens<Real>& tokens, const Real* states, const Real* grad_reads, Real* grad_state,
                  const ScanGradients<Real>& grads) const {
        const int64_t size = keys * values, count = sizes.batch * sizes.heads;
#pragma omp parallel for num_threads(sizes.threads) if (sizes.threads > 1)
        for (int64_t n = 0; n < count; ++n) {
            const int64_t segment = sizes.segment < sizes.steps ? sizes.segment : sizes.steps;
            std::vector<Real> room((segment + 1) * size + 2 * segment * values + 3 * values);
            Real *kept = room.data(), *founds = kept + (segment + 1) * size, *updates = founds + segment * values;
            Real *grad_update = updates + segment * values, *through = grad_update + values, *read = through + values;
            Real* grad = grad_state + n * size;
            for (int64_t end = sizes.steps; end > 0;) {
                const int64_t start = (end - 1) / segment * segment;
                std::memcpy(kept, states + (start / segment * count + n) * size, size * sizeof(Real));
                for (int64_t i = 0; i < end - start; ++i) {
                    std::memcpy(kept + (i + 1) * size, kept + i * size, size * sizeof(Real));
                    write(tokens, place(n, start + i), kept + (i + 1) * size, founds + i * values, updates + i * values);
                }
                for (int64_t i = end - start - 1; i >= 0; --i) {
                    const int64_t at = place(n, start + i);
                    const Real *before = kept + i * size, *after = before + size, *update = updates + i * values;
                    const Real *q = tokens.q + at * keys, *k = tokens.k + at * keys, *v = tokens.v + at * values;
                    const Real *given = grad_reads + at * values, w = tokens.w[at];
                    const Real r = tokens.r ? tokens.r[at] : Real(1);
                    if (tokens.r) {
                        look(after, q, read);
                        grads.r[at] = dot(given, read, values);
                    }
                    for (int64_t j = 0; j < values; ++j) through[j] = r * given[j];
                    for (int64_t c = 0; c < keys; ++c) grads.q[at * keys + c] = dot(after + c * values, through, values);
                    add(grad, q, through);
                    look(grad, k, grad_update);
                    for (int64_t c = 0; c < keys; ++c) grads.k[at * keys + c] = dot(grad + c * values, update, values);
                    grads.w[at] = dot(grad_update, v, values);
                    for (int64_t j = 0; j < values; ++j) grads.v[at * values + j] = w * grad_update[j];
                    if (tokens.e) {
                        grads.e[at] = -dot(grad_update, founds + i * values, values);
                        for (int64_t j = 0; j < values; ++j) through[j] = -tokens.e[at] * grad_update[j];
                        for (int64_t c = 0; c < keys; ++c)
                            grads.k[at * keys + c] += dot(before + c * values, through, values);
                        add(grad, k, through);
                    }
                }
                end = start;
            }
        }
    }

    // The token of head n (of B H) at step t, in (B, T, H).
    int64_t place(int64_t n, int64_t t) const {
        return (n / sizes.heads * sizes.steps + t) * sizes.heads + n % sizes.heads;
    }
};

template <typename Real, typename Call>
void with_sizes(const ScanSizes& sizes, Call call) {
    if (sizes.keys == 4 && sizes.values == 4) return call(Scan<Real, 4, 4>{sizes});
    if (sizes.keys == 8 && sizes.values == 8) return call(Scan<Real, 8, 8>{sizes});
    if (sizes.keys == 16 && sizes.values == 16) return call(Scan<Real, 16, 16>{sizes});
    if (sizes.keys == 32 && sizes.values == 32) return call(Scan<Real, 32, 32>{sizes});
    call(Scan<Real, 0, 0>{sizes});
}

template <typename Real>
void scan_forward(const ScanSizes* sizes, void* const* tokens, void* states, void* reads) {
    const ScanTokens<Real>& given = *reinterpret_cast<const ScanTokens<Real>*>(tokens);
    with_sizes<Real>(*sizes, [&](const auto& scan) { scan.forward(given, (Real*)states, (Real*)reads); });
}

template <typename Real>
void scan_backward(const ScanSizes* sizes, void* const* tokens, const void* states, const void* grad_reads, void* grad_state,
                   void* const* grads) {
    const ScanTokens<Real>& given = *reinterpret_cast<const ScanTokens<Real>*>(tokens);
    const ScanGradients<Real>& found = *reinterpret_cast<const ScanGradients<Real>*>(grads);
    with_sizes<Real>(*sizes, [&](const auto& scan) {
        scan.backward(given, (const Real*)states, (const Real*)grad_reads, (Real*)grad_state, found);
    });
}

}  // namespace
}  // namespace nam

extern "C" {
void nam_scan_forward_float32(const nam::ScanSizes* sizes, void* const* tokens, void* states, void* reads) {
    nam::scan_forward<float>(sizes, tokens, states, reads);
}
void nam_scan_forward_float64(const nam::ScanSizes* sizes, void* const* tokens, void* states, void* reads) {
    nam::scan_forward<double>(sizes, tokens, states, reads);
}
void nam_scan_backward_float32(const nam::ScanSizes* sizes, void* const* tokens, const void* states, const void* grad_reads,
                               void* grad_state, void* const* grads) {
    nam::scan_backward<float>(sizes, tokens, states, grad_reads, grad_state, grads);
}
void nam_scan_backward_float64(const nam::ScanSizes* sizes, void* const* tokens, const void* states, const void* grad_reads,
                               void* grad_state, void* const* grads) {
    nam::scan_backward<double>(sizes, tokens, states, grad_reads, grad_state, grads);
}
}
