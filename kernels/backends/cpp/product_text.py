"""The C++ text that kernels of matrix products use: register-blocked tiles, dots for few rows, packing.

All of it is vector code for whatever width the compiler is told that the processor has. A sum is fused here with the
product that is added to it: the order of a sum is the kernel's own, and one rounding less is never worse.
"""

from __future__ import annotations

from fusion.kernels.backends.cpp.math import Section

PRODUCTS: tuple[Section, ...] = (
    (
        ("Tile", "FEW_ROWS", "MANY_LANES", "SOME_LANES", "panel_height", "new_panel", "free"),
        """\
#include <stdlib.h>
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE_ROWS 12  // 24 of 32 registers hold sums
#else
#define TILE_ROWS 6  // 12 of 16
#endif
#define FEW_ROWS 8  // up to so many rows, what is read of the right factors is what takes the time
#define SOME_LANES 16  // that a thread takes at once of few rows, where right factors lie along the sum
#define MANY_LANES 256  // the same where they lie along the lanes
// Blocks of a product: `width` lanes of `depth` right factors are 16 KiB, `height` rows of sums are as many.
template <typename T> struct Tile {
    typedef T vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
    enum { count = VECTOR_BYTES / sizeof(T), width = 2 * count, depth = 256, height = 252 };
    enum { sums = height * width > FEW_ROWS * MANY_LANES ? height * width : FEW_ROWS * MANY_LANES };
};
// Rows of left factors that are kept at once: 4 MiB of floats at most, but for very long rows.
INLINE int64_t panel_height(int64_t rows, int64_t columns, int64_t most) {
    const int64_t fits = (1 << 20) / (columns > 0 ? columns : 1) / TILE_ROWS * TILE_ROWS;
    const int64_t height = fits < 4 * TILE_ROWS ? 4 * TILE_ROWS : fits < most ? fits : most;
    return rows < height ? rows : height;
}
template <typename T> INLINE T* new_panel(int64_t elements) { return (T*)malloc((elements + 1) * sizeof(T)); }
""",
    ),
    (
        ("Bfloat16", "Float16", "Whole"),
        """\
// How vectors of right factors are read: bfloat16, float16, or elements of the type they are added up in.
template <typename T> struct Whole {
    typedef T element;
    typedef typename Tile<T>::vector vector;
    static INLINE_MEMBER vector lanes(const T* from) { return *(const vector*)from; }
    static INLINE_MEMBER T one(const T* from) { return *from; }
};
struct Bfloat16 {
    typedef uint16_t element;
    typedef Tile<float>::vector vector;
    typedef uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
    typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES)));
    static INLINE_MEMBER vector lanes(const uint16_t* from) {
#if defined(__AVX2__) && VECTOR_BYTES == 32 && !defined(__clang__)
        // Both halves of a vector are loaded with all elements, and pick theirs: widening and shifting takes one more
        // instruction, and on some processors twice the time.
        typedef long long plain __attribute__((vector_size(16)));
        typedef char bytes __attribute__((vector_size(32)));
        const bytes both = (bytes)__builtin_ia32_vbroadcastsi256((plain)*(const halves*)from);
        const bytes place = {-1, -1, 0, 1, -1, -1, 2,  3,  -1, -1, 4,  5,  -1, -1, 6,  7,
                             -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15};
        return (vector)__builtin_ia32_pshufb256(both, place);
#else
        return (vector)(widened(*(const halves*)from) << 16);
#endif
    }
    static INLINE_MEMBER words widened(halves some) {
#if VECTOR_BYTES == 64 && !defined(__clang__)
        typedef int16_t plain __attribute__((vector_size(32)));
        typedef int32_t numbers __attribute__((vector_size(64)));
        return (words)__builtin_ia32_pmovzxwd512_mask((plain)some, numbers{}, (uint16_t)-1);
#else
        return __builtin_convertvector(some, words);
#endif
    }
    static INLINE_MEMBER float one(const uint16_t* from) { return widen_bfloat16(*from); }
};
struct Float16 {
    typedef uint16_t element;
    typedef Tile<float>::vector vector;
    typedef int16_t halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
    typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES)));
    static INLINE_MEMBER vector lanes(const uint16_t* from) {
        typedef int16_t plain __attribute__((vector_size(VECTOR_BYTES / 2)));
#if VECTOR_BYTES == 64
        return (vector)__builtin_ia32_vcvtph2ps512_mask((plain)*(const halves*)from, vector{}, (uint16_t)-1, 4);
#elif defined(__F16C__) && VECTOR_BYTES == 32
        return (vector)__builtin_ia32_vcvtph2ps256((plain)*(const halves*)from);
#else
        vector result;
        for (int k = 0; k < Tile<float>::count; ++k) result[k] = widen_float16(from[k]);
        return result;
#endif
    }
    static INLINE_MEMBER float one(const uint16_t* from) { return widen_float16(*from); }
};
""",
    ),
    (
        ("tile",),
        """\
FUSED_SUMS
// sums[rows][width] += left[rows][depth] * right[depth][width]; rows of left are `pitch` apart.
template <typename T, int ROWS> INLINE void tile_rows(
    const T* RESTRICT left, int64_t pitch, const T* RESTRICT right, int64_t depth, T* RESTRICT sums) {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    vector total[ROWS][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
        const vector a = *(const vector*)(right + k * 2 * N), b = *(const vector*)(right + k * 2 * N + N);
        for (int i = 0; i < ROWS; ++i) {
            total[i][0] += left[i * pitch + k] * a;
            total[i][1] += left[i * pitch + k] * b;
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        *(vector*)(sums + i * 2 * N) += total[i][0];
        *(vector*)(sums + i * 2 * N + N) += total[i][1];
    }
}
template <typename T> __attribute__((noinline)) void tile(
    const T* RESTRICT left, int64_t pitch, int64_t rows, const T* RESTRICT right, int64_t depth, T* RESTRICT sums) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile_rows<T, TILE_ROWS>(left + i * pitch, pitch, right, depth, sums + i * Tile<T>::width);
    for (; i + 3 <= rows; i += 3) tile_rows<T, 3>(left + i * pitch, pitch, right, depth, sums + i * Tile<T>::width);
    for (; i < rows; ++i) tile_rows<T, 1>(left + i * pitch, pitch, right, depth, sums + i * Tile<T>::width);
}
SEPARATE_SUMS
""",
    ),
    (
        ("Weave", "Numbers", "turn", "sums_of"),
        """\
template <int... I> struct Numbers {};
template <int N, int... I> struct Counted : Counted<N - 1, N - 1, I...> {};
template <int... I> struct Counted<0, I...> { typedef Numbers<I...> numbers; };
// Of two vectors, the elements whose number lacks bit D (low) or has it (high), those of the second at places with it.
template <typename T, int D> struct Weave {
    typedef typename Tile<T>::vector vector;
    enum { N = Tile<T>::count };
    typedef typename Counted<N>::numbers numbers;
#if defined(__clang__)
    template <int... I> static INLINE_MEMBER vector low(vector a, vector b, Numbers<I...>) {
        return __builtin_shufflevector(a, b, (I & D ? N + I - D : I)...);
    }
    template <int... I> static INLINE_MEMBER vector high(vector a, vector b, Numbers<I...>) {
        return __builtin_shufflevector(a, b, (I & D ? N + I : I + D)...);
    }
#else
    typedef int32_t places __attribute__((vector_size(VECTOR_BYTES)));
    template <int... I> static INLINE_MEMBER vector low(vector a, vector b, Numbers<I...>) {
        return __builtin_shuffle(a, b, places{(I & D ? N + I - D : I)...});
    }
    template <int... I> static INLINE_MEMBER vector high(vector a, vector b, Numbers<I...>) {
        return __builtin_shuffle(a, b, places{(I & D ? N + I : I + D)...});
    }
#endif
};
// Turns N vectors of N elements: the elements of one number become one vector.
template <typename T, int D = 1> INLINE void turn(typename Tile<T>::vector* rows) {
    typedef Weave<T, D> weave;
    for (int i = 0; i < weave::N; ++i) {
        if (i & D) continue;
        const typename Tile<T>::vector a = rows[i], b = rows[i + D];
        rows[i] = weave::low(a, b, typename weave::numbers());
        rows[i + D] = weave::high(a, b, typename weave::numbers());
    }
    if constexpr (2 * D < weave::N) turn<T, 2 * D>(rows);
}
// The sums of N vectors, as one vector; the vectors are lost.
template <typename T, int D = 1> INLINE typename Tile<T>::vector sums_of(typename Tile<T>::vector* rows) {
    typedef Weave<T, D> weave;
    for (int i = 0; i < weave::N; i += 2 * D)
        rows[i] = weave::low(rows[i], rows[i + D], typename weave::numbers()) +
                  weave::high(rows[i], rows[i + D], typename weave::numbers());
    if constexpr (2 * D < weave::N) return sums_of<T, 2 * D>(rows);
    return rows[0];
}
""",
    ),
    (
        ("pack_lanes", "pack_rows"),
        """\
// Right factors as tile() takes them: [depth][width], the lanes that are missing as 0.
// pack_lanes: those of one lane are neighbours; pack_rows: those of one place in the sum are.
template <typename S, typename T> static SHORT_LOOPS __attribute__((noinline)) void pack_rest(
    const typename S::element* from, int64_t stride, int64_t lanes, int64_t k, int64_t depth, T* to, int64_t width) {
    for (; k < depth; ++k)
        for (int64_t l = 0; l < width; ++l)
            to[k * Tile<T>::width + l] = l < lanes ? S::one(from + l * stride + k) : 0;
}
template <typename S, typename T> __attribute__((noinline)) void pack_lanes(
    const typename S::element* RESTRICT from, int64_t stride, int64_t lanes, int64_t depth, T* RESTRICT to) {
    enum { W = Tile<T>::width, N = Tile<T>::count };
    int64_t l = 0;
    for (; l + N <= lanes; l += N) {
        const typename S::element* line = from + l * stride;
        int64_t k = 0;
        for (; k + N <= depth; k += N) {
            typename Tile<T>::vector some[N];
            for (int i = 0; i < N; ++i) some[i] = S::lanes(line + i * stride + k);
            turn<T>(some);
            for (int i = 0; i < N; ++i) *(typename Tile<T>::vector*)(to + (k + i) * W + l) = some[i];
        }
        if (k < depth) pack_rest<S, T>(line, stride, N, k, depth, to + l, N);
    }
    if (l < W) pack_rest<S, T>(from + l * stride, stride, lanes - l, 0, depth, to + l, W - l);
}
template <typename S, typename T> __attribute__((noinline)) void pack_rows(
    const typename S::element* RESTRICT from, int64_t stride, int64_t lanes, int64_t depth, T* RESTRICT to) {
    enum { W = Tile<T>::width, N = Tile<T>::count };
    for (int64_t k = 0; k < depth; ++k) {
        const typename S::element* line = from + k * stride;
        if (lanes == W) {
            *(typename Tile<T>::vector*)(to + k * W) = S::lanes(line);
            *(typename Tile<T>::vector*)(to + k * W + N) = S::lanes(line + N);
        } else {
            for (int64_t l = 0; l < W; ++l) to[k * W + l] = l < lanes ? S::one(line + l) : 0;
        }
    }
}
""",
    ),
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
