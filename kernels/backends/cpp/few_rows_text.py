"""The C++ text of matrix products of few rows: right factors are read once, as they lie, and meet every row."""

from __future__ import annotations

from fusion.kernels.backends.cpp.math import Section

FEW_ROWS_PRODUCTS: tuple[Section, ...] = (
    (
        ("dots_of", "dots_of_one"),
        """\
#define AHEAD 1024  // bytes that a stream is read before they are needed
FUSED_SUMS
template <typename S, typename T> static SHORT_LOOPS __attribute__((noinline)) T rest_of(
    const T* left, const typename S::element* right, int64_t count) {
    T sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += left[k] * S::one(right + k);
    return sum;
}
// sums[i][l] = the sum over k of left[i][k] * right[l][k]; rows of left, right and sums are pitch, stride, width apart.
template <typename S, typename T, int ROWS, int LANES, int WAYS> INLINE void dots_of(
    const T* RESTRICT left, int64_t pitch, const typename S::element* RESTRICT right, int64_t stride, int64_t depth,
    T* RESTRICT sums, int64_t width) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    vector total[ROWS][LANES][WAYS] = {};
    int64_t k = 0;
    for (; k + N * WAYS <= depth; k += N * WAYS) {
        if (ROWS * LANES == 1)  // nothing but this stream: it runs on into the next lane, where those are dense
            for (int at = 0; at < N * WAYS * (int)sizeof(*right); at += 64)
                __builtin_prefetch((const char*)(right + k) + AHEAD + at);
        for (int w = 0; w < WAYS; ++w) {
            vector some[LANES];
            for (int l = 0; l < LANES; ++l) some[l] = S::lanes(right + l * stride + k + w * N);
            for (int i = 0; i < ROWS; ++i) {
                const vector x = *(const vector*)(left + i * pitch + k + w * N);
                for (int l = 0; l < LANES; ++l) total[i][l][w] += some[l] * x;
            }
        }
    }
    for (; k + N <= depth; k += N)
        for (int l = 0; l < LANES; ++l) {
            const vector some = S::lanes(right + l * stride + k);
            for (int i = 0; i < ROWS; ++i) total[i][l][0] += some * *(const vector*)(left + i * pitch + k);
        }
    for (int i = 0; i < ROWS; ++i)
        for (int l = 0; l < LANES; ++l) {
            vector all = total[i][l][0];
            for (int w = 1; w < WAYS; ++w) all += total[i][l][w];
            const T rest = k < depth ? rest_of<S, T>(left + i * pitch + k, right + l * stride + k, depth - k) : 0;
            for (int n = N / 2; n; n /= 2)
                for (int at = 0; at < n; ++at) all[at] += all[at + n];
            sums[i * width + l] = all[0] + rest;
        }
}
template <typename S, typename T> __attribute__((noinline)) void dots_of_one(
    const T* RESTRICT left, int64_t pitch, int64_t rows, const typename S::element* RESTRICT right, int64_t stride,
    int64_t lanes, int64_t depth, T* RESTRICT sums, int64_t width) {
    for (int64_t l = 0; l < lanes; ++l)
        dots_of<S, T, 1, 1, 4>(left, pitch, right + l * stride, stride, depth, sums + l, width);
}
SEPARATE_SUMS
""",
    ),
    (
        ("dots",),
        """\
FUSED_SUMS
template <typename S, typename T> __attribute__((noinline)) void dots(
    const T* RESTRICT left, int64_t pitch, int64_t rows, const typename S::element* RESTRICT right, int64_t stride,
    int64_t lanes, int64_t depth, T* RESTRICT sums, int64_t width) {
    int64_t l = 0;
    if (rows > 2)
        for (; l + 2 <= lanes; l += 2) {  // the first rows read two lanes from memory, the others from the cache
            const typename S::element* from = right + l * stride;
            int64_t i = 0;
            for (; i + 4 <= rows; i += 4)
                dots_of<S, T, 4, 2, 1>(left + i * pitch, pitch, from, stride, depth, sums + i * width + l, width);
            for (; i < rows; ++i)
                for (int n = 0; n < 2; ++n)
                    dots_of<S, T, 1, 1, 4>(
                        left + i * pitch, pitch, from + n * stride, stride, depth, sums + i * width + l + n, width);
        }
    for (; l < lanes; ++l) {  // lane after lane, which is one stream where weights are dense
        const typename S::element* from = right + l * stride;
        for (int64_t i = 0; i < rows; ++i)
            dots_of<S, T, 1, 1, 4>(left + i * pitch, pitch, from, stride, depth, sums + i * width + l, width);
    }
}
SEPARATE_SUMS
""",
    ),
    (
        ("sum_rows",),
        """\
FUSED_SUMS
// sums[i][l] = the sum over k of left[i][k] * right[k][l], for MANY_LANES lanes at most. Stretches of the sum are added
// up by themselves, so that a long one is as exact as a short one.
template <typename S, typename T> __attribute__((noinline)) void sum_rows(
    const T* RESTRICT left, int64_t pitch, int64_t rows, const typename S::element* RESTRICT right, int64_t stride,
    int64_t lanes, int64_t depth, T* RESTRICT sums, int64_t width) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count, PART = 64 };
    T part[FEW_ROWS * MANY_LANES];
    for (int64_t i = 0; i < rows; ++i) __builtin_memset(sums + i * width, 0, sizeof(T) * lanes);
    for (int64_t begin = 0; begin < depth; begin += PART) {
        const int64_t end = begin + PART < depth ? begin + PART : depth;
        __builtin_memset(part, 0, sizeof(T) * rows * MANY_LANES);
        int64_t k = begin;
        for (; k + 4 <= end; k += 4) {
            const typename S::element* RESTRICT line = right + k * stride;
            int64_t l = 0;
            for (; l + N <= lanes; l += N) {
                const vector a = S::lanes(line + l), b = S::lanes(line + stride + l);
                const vector c = S::lanes(line + 2 * stride + l), d = S::lanes(line + 3 * stride + l);
                for (int64_t i = 0; i < rows; ++i) {
                    const T* x = left + i * pitch + k;
                    vector* to = (vector*)(part + i * MANY_LANES + l);
                    *to += (x[0] * a + x[1] * b) + (x[2] * c + x[3] * d);
                }
            }
            for (; l < lanes; ++l)
                for (int64_t i = 0; i < rows; ++i)
                    for (int at = 0; at < 4; ++at)
                        part[i * MANY_LANES + l] += left[i * pitch + k + at] * S::one(line + at * stride + l);
        }
        for (; k < end; ++k)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t l = 0; l < lanes; ++l)
                    part[i * MANY_LANES + l] += left[i * pitch + k] * S::one(right + k * stride + l);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t l = 0; l < lanes; ++l) sums[i * width + l] += part[i * MANY_LANES + l];
    }
}
SEPARATE_SUMS
""",
    ),
)
