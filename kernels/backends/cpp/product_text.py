"""The C++ text that kernels of matrix products use: register-blocked tiles, and packing.

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
#define PANEL_ROWS ((256 + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS)  // 256 are one panel: each packs right factors anew
// Blocks of a product: `width` lanes of `depth` right factors fit the first cache, as do `height` rows of sums.
template <typename T> struct Tile {
    typedef T vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
    enum { count = VECTOR_BYTES / sizeof(T), width = 2 * count, depth = 256, height = PANEL_ROWS };
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
    // Elements of two rows, neighbours in a sum: the first in the lower halves.
    static INLINE_MEMBER vector pairs(const uint16_t* first, const uint16_t* second) {
        return (vector)(widened(*(const halves*)first) | widened(*(const halves*)second) << 16);
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
        ("Narrow", "Terms", "place_of"),
        """\
FUSED_SUMS
// A factor that is a bfloat16: kept as one where the processor adds up products of two neighbours at once (which takes
// subnormal numbers as 0, as torch's library does there), as a float elsewhere.
#if defined(__AVX512BF16__)
struct Narrow { uint16_t bits; };
#else
struct Narrow { float value; };
#endif
// How factors P are added up, `places` neighbours of a sum at a time.
template <typename P> struct Terms {
    typedef P sum;
    typedef typename Tile<P>::vector vector;
    enum { places = 1 };
    static INLINE_MEMBER P factor(P x) { return x; }
    static INLINE_MEMBER void add(vector& total, const P* left, vector right) { total += *left * right; }
};
template <> struct Terms<Narrow> {
    typedef float sum;
    typedef Tile<float>::vector vector;
#if defined(__AVX512BF16__)
    typedef uint32_t pairs __attribute__((vector_size(VECTOR_BYTES), aligned(2), may_alias));
    enum { places = 2 };
    static INLINE_MEMBER Narrow factor(float x) { return {(uint16_t)(bits_of(x) >> 16)}; }
    static INLINE_MEMBER void add(vector& total, const Narrow* left, vector right) {
        uint32_t pair;
        __builtin_memcpy(&pair, left, sizeof(pair));
        const pairs all = pairs{} + pair;
        vector sum = total;
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(right), "v"(all));
        total = sum;
    }
#else
    enum { places = 1 };
    static INLINE_MEMBER Narrow factor(float x) { return {x}; }
    static INLINE_MEMBER void add(vector& total, const Narrow* left, vector right) { total += left->value * right; }
#endif
};
SEPARATE_SUMS
// Where a block has the right factor of a lane at a place in the sum.
template <typename P> INLINE int64_t place_of(int64_t place, int64_t lane) {
    enum { N = Terms<P>::places };
    return place / N * N * Tile<typename Terms<P>::sum>::width + lane * N + place % N;
}
""",
    ),
    (
        ("tile",),
        """\
FUSED_SUMS
// sums[rows][width] += left[rows][depth] * right[depth][width]; rows of left are `pitch` apart.
template <typename P, int ROWS> INLINE void tile_rows(
    const P* RESTRICT left, int64_t pitch, const P* RESTRICT right, int64_t depth,
    typename Terms<P>::sum* RESTRICT sums) {
    typedef typename Terms<P>::vector vector;
    enum { N = Tile<typename Terms<P>::sum>::count, STEP = Terms<P>::places };
    vector total[ROWS][2] = {};
    for (int64_t k = 0; k < depth; k += STEP) {
        const vector a = *(const vector*)(right + k * 2 * N), b = *(const vector*)(right + k * 2 * N + N * STEP);
        for (int i = 0; i < ROWS; ++i) {
            Terms<P>::add(total[i][0], left + i * pitch + k, a);
            Terms<P>::add(total[i][1], left + i * pitch + k, b);
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        *(vector*)(sums + i * 2 * N) += total[i][0];
        *(vector*)(sums + i * 2 * N + N) += total[i][1];
    }
}
template <typename P> __attribute__((noinline)) void tile(
    const P* RESTRICT left, int64_t pitch, int64_t rows, const P* RESTRICT right, int64_t depth,
    typename Terms<P>::sum* RESTRICT sums) {
    enum { W = Tile<typename Terms<P>::sum>::width };
    int64_t i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile_rows<P, TILE_ROWS>(left + i * pitch, pitch, right, depth, sums + i * W);
    for (; i + 4 <= rows; i += 4) tile_rows<P, 4>(left + i * pitch, pitch, right, depth, sums + i * W);
    for (; i < rows; ++i) tile_rows<P, 1>(left + i * pitch, pitch, right, depth, sums + i * W);
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
template <typename S, typename P> static SHORT_LOOPS __attribute__((noinline)) void pack_rest(
    const typename S::element* from, int64_t stride, int64_t lanes, int64_t k, int64_t depth, P* to, int64_t width) {
    for (; k < depth || k % Terms<P>::places; ++k)
        for (int64_t l = 0; l < width; ++l)
            to[place_of<P>(k, l)] = Terms<P>::factor(l < lanes && k < depth ? S::one(from + l * stride + k) : 0);
}
template <typename S, typename P> __attribute__((noinline)) void pack_lanes(
    const typename S::element* RESTRICT from, int64_t stride, int64_t lanes, int64_t depth, P* RESTRICT to) {
    typedef typename Terms<P>::sum T;
    typedef typename Terms<P>::vector vector;
    enum { W = Tile<T>::width, N = Tile<T>::count, STEP = Terms<P>::places };
    int64_t l = 0;
    for (; l + N <= lanes; l += N) {
        const typename S::element* line = from + l * stride;
        int64_t k = 0;
        for (; k + N * STEP <= depth; k += N * STEP) {
            vector some[N];
            for (int i = 0; i < N; ++i) {
                if constexpr (STEP == 1) some[i] = S::lanes(line + i * stride + k);
                else some[i] = (vector)*(const typename Terms<P>::pairs*)(line + i * stride + k);
            }
            turn<T>(some);
            for (int i = 0; i < N; ++i) *(vector*)(to + (k + i * STEP) * W + l * STEP) = some[i];
        }
        if (k < depth) pack_rest<S, P>(line, stride, N, k, depth, to + l * STEP, N);
    }
    if (l < W) pack_rest<S, P>(from + l * stride, stride, lanes - l, 0, depth, to + l * STEP, W - l);
}
template <typename S, typename P> __attribute__((noinline)) void pack_rows(
    const typename S::element* RESTRICT from, int64_t stride, int64_t lanes, int64_t depth, P* RESTRICT to) {
    typedef typename Terms<P>::sum T;
    typedef typename Terms<P>::vector vector;
    enum { W = Tile<T>::width, N = Tile<T>::count, STEP = Terms<P>::places };
    for (int64_t k = 0; k < depth; k += STEP) {
        const typename S::element* line = from + k * stride;
        if (lanes == W && k + STEP <= depth) {
            for (int64_t l = 0; l < W; l += N) {
                if constexpr (STEP == 1) *(vector*)(to + k * W + l) = S::lanes(line + l);
                else *(vector*)(to + k * W + l * STEP) = S::pairs(line + l, line + stride + l);
            }
        } else {
            for (int64_t l = 0; l < W; ++l)
                for (int64_t at = k; at < k + STEP; ++at)
                    to[place_of<P>(at, l)] =
                        Terms<P>::factor(l < lanes && at < depth ? S::one(from + at * stride + l) : 0);
        }
    }
}
""",
    ),
)
