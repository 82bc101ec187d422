"""The C++ text that kernels of attention use, beside that of matrix products: scores and weighted sums of a chunk."""

from __future__ import annotations

from fusion.kernels.backends.cpp.math import Section

ATTENTION: tuple[Section, ...] = (
    (
        ("scores_of", "weighted_of", "widen_rows"),
        """\
// Rows of `length` elements as the type they are added up in, one after the other; memory is read as one stream.
template <typename S, typename T> __attribute__((noinline)) void widen_rows(
    const typename S::element* RESTRICT from, int64_t stride, int64_t count, int64_t length, T* RESTRICT to) {
    enum { N = Tile<T>::count };
    for (int64_t i = 0; i < count; ++i) {
        const typename S::element* line = from + i * stride;
        int64_t k = 0;
        for (; k + N <= length; k += N) *(typename Tile<T>::vector*)(to + i * length + k) = S::lanes(line + k);
        for (; k < length; ++k) to[i * length + k] = S::one(line + k);
    }
}
FUSED_SUMS
// scores[i][l] = the sum over k of queries[i][k] * keys[l][k], for keys in the first cache: N of them at a time.
template <typename S, typename T> __attribute__((noinline)) void scores_of(
    const T* RESTRICT queries, int64_t rows, const typename S::element* RESTRICT keys, int64_t stride, int64_t count,
    int64_t depth, T* RESTRICT scores, int64_t width) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    const int64_t whole = depth / N * N;
    int64_t l = 0;
    for (; l + N <= count; l += N)
        for (int64_t i = 0; i < rows; ++i) {
            vector total[N] = {};
            for (int64_t k = 0; k < whole; k += N) {
                const vector x = *(const vector*)(queries + i * depth + k);
                for (int n = 0; n < N; ++n) total[n] += S::lanes(keys + (l + n) * stride + k) * x;
            }
            vector* to = (vector*)(scores + i * width + l);
            *to = sums_of<T>(total);
            for (int64_t k = whole; k < depth; ++k)
                for (int n = 0; n < N; ++n)
                    scores[i * width + l + n] += queries[i * depth + k] * S::one(keys + (l + n) * stride + k);
        }
    for (; l < count; ++l)
        for (int64_t i = 0; i < rows; ++i) {
            T total = 0;
            for (int64_t k = 0; k < depth; ++k) total += queries[i * depth + k] * S::one(keys + l * stride + k);
            scores[i * width + l] = total;
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
    int64_t depth, const T* scale, T* RESTRICT sums, int64_t lanes) {
    enum { N = Tile<T>::count };
    int64_t l = 0;
    for (; l + 4 * N <= lanes; l += 4 * N) {
        int64_t i = 0;
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
)
