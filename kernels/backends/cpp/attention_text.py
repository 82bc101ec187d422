"""The C++ text that kernels of attention use, beside that of matrix products: scores and weighted sums of a chunk."""

from __future__ import annotations

from fusion.kernels.backends.cpp.math import Section

ATTENTION: tuple[Section, ...] = (
    (
        ("MOST_ROWS", "STRETCH"),
        """\
#define MOST_ROWS 252  // of a unit of attention
#define STRETCH 128  // of a head, added up by itself: the sum of a wide one is as exact as a narrow one's
""",
    ),
    (
        ("scores_of", "weighted_of", "Next"),
        """\
// Rows that are needed next: on their way to the cache while others are computed with.
struct Next {
    const void* from;
    int64_t pitch, bytes;  // from one row to the next; of a row
    INLINE_MEMBER void fetch(int64_t row, int64_t end) const {
        for (; row < end; ++row)
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)from + row * pitch + at);
    }
};
FUSED_SUMS
// scores[i][n] = the sum over k of queries[i][k] * keys[n][k], for ROWS rows and as many keys as fill a vector of sums.
template <typename S, typename T, int ROWS> INLINE void scores_rows(
    const T* RESTRICT queries, const typename S::element* RESTRICT keys, int64_t stride, int64_t depth,
    T* RESTRICT scores, int64_t width) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count, KEYS = N / ROWS };
    const int64_t whole = depth / N * N;
    vector total[N] = {};
    for (int64_t begin = 0; begin < whole; begin += STRETCH) {
        const int64_t end = begin + STRETCH < whole ? begin + STRETCH : whole;
        vector part[N] = {};
        for (int64_t k = begin; k < end; k += N)
            for (int n = 0; n < KEYS; ++n) {
                const vector some = S::lanes(keys + n * stride + k);
                for (int i = 0; i < ROWS; ++i)
                    part[i * KEYS + n] += some * *(const vector*)(queries + i * depth + k);
            }
        for (int n = 0; n < N; ++n) total[n] += part[n];
    }
    const vector sums = sums_of<T>(total);
    for (int i = 0; i < ROWS; ++i) {
        for (int n = 0; n < KEYS; ++n) {
            T rest = 0;
            for (int64_t k = whole; k < depth; ++k) rest += queries[i * depth + k] * S::one(keys + n * stride + k);
            scores[i * width + n] = sums[i * KEYS + n] + rest;
        }
    }
}
// The same for any number of rows and keys.
template <typename S, typename T> __attribute__((noinline)) void scores_of(
    const T* RESTRICT queries, int64_t rows, const typename S::element* RESTRICT keys, int64_t stride, int64_t count,
    int64_t depth, T* RESTRICT scores, int64_t width, Next next) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    const int64_t whole = depth / N * N;
    int64_t l = 0;
    for (; l + N <= count; l += N) {
        next.fetch(l, l + N);
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4)
            for (int n = 0; n < N; n += N / 4)
                scores_rows<S, T, 4>(
                    queries + i * depth, keys + (l + n) * stride, stride, depth, scores + i * width + l + n, width);
        for (; i + 2 <= rows; i += 2)
            for (int n = 0; n < N; n += N / 2)
                scores_rows<S, T, 2>(
                    queries + i * depth, keys + (l + n) * stride, stride, depth, scores + i * width + l + n, width);
        for (; i < rows; ++i)
            scores_rows<S, T, 1>(queries + i * depth, keys + l * stride, stride, depth, scores + i * width + l, width);
    }
    for (; l < count; ++l)
        for (int64_t i = 0; i < rows; ++i) {
            vector total = {};
            int64_t k = 0;
            for (; k < whole; k += N)
                total += S::lanes(keys + l * stride + k) * *(const vector*)(queries + i * depth + k);
            for (int n = N / 2; n; n /= 2)
                for (int at = 0; at < n; ++at) total[at] += total[at + n];
            for (; k < depth; ++k) total[0] += queries[i * depth + k] * S::one(keys + l * stride + k);
            scores[i * width + l] = total[0];
        }
}
// sums[i][l] = sums[i][l] * scale[i] + the sum over k of weights[i][k] * values[k][l].
template <typename S, typename T, int ROWS, int VECTORS> INLINE void weighted_rows(
    const T* RESTRICT weights, int64_t width, const typename S::element* RESTRICT values, int64_t stride, int64_t depth,
    const T* scale, T* RESTRICT sums, int64_t lanes) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    vector total[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; ++k) {
        vector some[VECTORS];
        for (int v = 0; v < VECTORS; ++v) some[v] = S::lanes(values + k * stride + v * N);
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < VECTORS; ++v) total[i][v] += weights[i * width + k] * some[v];
    }
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) {
            vector* to = (vector*)(sums + i * lanes + v * N);
            *to = *to * scale[i] + total[i][v];
        }
}
template <typename S, typename T> __attribute__((noinline)) void weighted_of(
    const T* RESTRICT weights, int64_t width, int64_t rows, const typename S::element* RESTRICT values, int64_t stride,
    int64_t depth, const T* scale, T* RESTRICT sums, int64_t lanes, Next next) {
    enum { N = Tile<T>::count };
    int64_t l = 0;
    for (; l + 4 * N <= lanes; l += 4 * N) {
        next.fetch(depth * l / lanes, depth * (l + 4 * N) / lanes);
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4)
            for (int64_t at = l; at < l + 4 * N; at += 2 * N)
                weighted_rows<S, T, 4, 2>(
                    weights + i * width, width, values + at, stride, depth, scale + i, sums + i * lanes + at, lanes);
        for (; i + 2 <= rows; i += 2)
            weighted_rows<S, T, 2, 4>(
                weights + i * width, width, values + l, stride, depth, scale + i, sums + i * lanes + l, lanes);
        for (; i < rows; ++i)
            weighted_rows<S, T, 1, 4>(
                weights + i * width, width, values + l, stride, depth, scale + i, sums + i * lanes + l, lanes);
    }
    for (; l + N <= lanes; l += N)
        for (int64_t i = 0; i < rows; ++i)
            weighted_rows<S, T, 1, 1>(
                weights + i * width, width, values + l, stride, depth, scale + i, sums + i * lanes + l, lanes);
    for (; l < lanes; ++l)
        for (int64_t i = 0; i < rows; ++i) {
            T total = 0;
            for (int64_t k = 0; k < depth; ++k) total += weights[i * width + k] * S::one(values + k * stride + l);
            sums[i * lanes + l] = sums[i * lanes + l] * scale[i] + total;
        }
}
SEPARATE_SUMS
""",
    ),
    (
        ("weights_of",),
        """\
// Makes weights of a row's scores: exponentials of what they are less than the highest one so far, which it raises.
// Adds them to the total, which it scales to that; returns that scale, for what was weighted before.
template <typename T> __attribute__((noinline)) T weights_of(T* RESTRICT scores, int64_t count, T* best, T* total) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    T highest = *best;
    int64_t k = 0;
    if (count >= N) {
        vector most = *(const vector*)scores;
        for (k = N; k + N <= count; k += N) {
            const vector some = *(const vector*)(scores + k);
            most = (some > most) | (some != some) ? some : most;
        }
        for (int n = N / 2; n; n /= 2)
            for (int at = 0; at < n; ++at) most[at] = max_of(most[at], most[at + n]);
        highest = max_of(highest, most[0]);
    }
    for (; k < count; ++k) highest = max_of(highest, scores[k]);
    const T safe = highest == -__builtin_inff() ? 0 : highest;  // no place counts yet
    #pragma omp simd
    for (int64_t j = 0; j < count; ++j) scores[j] = exp_of(scores[j] - safe);
    vector added = {};
    for (k = 0; k + N <= count; k += N) added += *(const vector*)(scores + k);
    for (int n = N / 2; n; n /= 2)
        for (int at = 0; at < n; ++at) added[at] += added[at + n];
    for (; k < count; ++k) added[0] += scores[k];
    const T scale = highest == *best ? 1 : exp_of(*best - safe);
    *total = *total * scale + added[0];
    *best = highest;
    return scale;
}
""",
    ),
    (
        ("scores_of_many", "weighted_of_many"),
        """\
// As scores_of and weighted_of, for many rows: what they are multiplied with is packed, and read tile by tile.
template <typename S, typename T> __attribute__((noinline)) void scores_of_many(
    const T* RESTRICT queries, int64_t rows, const typename S::element* RESTRICT keys, int64_t stride, int64_t count,
    int64_t depth, T* RESTRICT scores, int64_t width) {
    enum { W = Tile<T>::width };
    T right[STRETCH * W], sums[MOST_ROWS * W];
    for (int64_t l = 0; l < count; l += W) {
        const int64_t lanes = l + W < count ? W : count - l;
        __builtin_memset(sums, 0, sizeof(T) * rows * W);
        for (int64_t k = 0; k < depth; k += STRETCH) {
            const int64_t length = k + STRETCH < depth ? STRETCH : depth - k;
            pack_lanes<S, T>(keys + l * stride + k, stride, lanes, length, right);
            tile<T>(queries + k, depth, rows, right, length, sums);
        }
        for (int64_t i = 0; i < rows; ++i) __builtin_memcpy(scores + i * width + l, sums + i * W, sizeof(T) * lanes);
    }
}
template <typename S, typename T> __attribute__((noinline)) void weighted_of_many(
    const T* RESTRICT weights, int64_t width, int64_t rows, const typename S::element* RESTRICT values, int64_t stride,
    int64_t depth, const T* scale, T* RESTRICT sums, int64_t lanes) {
    enum { W = Tile<T>::width };
    T right[Tile<T>::depth * W], some[MOST_ROWS * W];
    for (int64_t l = 0; l < lanes; l += W) {
        const int64_t count = l + W < lanes ? W : lanes - l;
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t k = 0; k < W; ++k) some[i * W + k] = k < count ? sums[i * lanes + l + k] * scale[i] : 0;
        pack_rows<S, T>(values + l, stride, count, depth, right);
        tile<T>(weights, width, rows, right, depth, some);
        for (int64_t i = 0; i < rows; ++i) __builtin_memcpy(sums + i * lanes + l, some + i * W, sizeof(T) * count);
    }
}
""",
    ),
)
