"""The C++ text every translation unit starts with: DLPack's layout, element types, arithmetic and reductions.

All of it is branch-free straight-line code over one element, so that a loop around it vectorises. Only the sections a
unit uses are printed.
"""

from __future__ import annotations

import re

from fusion.kernels.backends.cpp.attention_text import ATTENTION
from fusion.kernels.backends.cpp.few_rows_text import FEW_ROWS_PRODUCTS
from fusion.kernels.backends.cpp.math import MATH, Section
from fusion.kernels.backends.cpp.panels_text import PANELS
from fusion.kernels.backends.cpp.product_text import PRODUCTS

_ALWAYS = """\
#include <stdint.h>

typedef struct {
    void* data; int32_t device_type; int32_t device_id; int32_t ndim; uint8_t code; uint8_t bits; uint16_t lanes;
    int64_t* shape; int64_t* strides; uint64_t byte_offset;
} DLTensor;

#if defined(_OPENMP)
extern "C" int omp_get_max_threads(void);
extern "C" int omp_get_num_threads(void);
extern "C" int omp_get_thread_num(void);
#endif
#define RESTRICT __restrict__
#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

// Checks before a kernel runs. They are called: inlined, they would be a fifth of what the compiler has to do.
#define CHECK static __attribute__((noinline, unused))
CHECK bool is_kind(const DLTensor& t, int32_t ndim, int code, int bits) {
    return t.ndim == ndim && t.code == code && t.bits == bits && t.lanes == 1 && t.device_type == 1;
}
CHECK int64_t stride_of(const DLTensor& t, int dim) {
    if (t.strides) return t.strides[dim];
    int64_t stride = 1;  // DLPack: no strides means row-major
    for (int d = t.ndim - 1; d > dim; --d) stride *= t.shape[d];
    return stride;
}
CHECK bool has_other_stride(const DLTensor& t, int dim, int64_t stride) {
    return t.shape[dim] != 1 && stride_of(t, dim) != stride;
}
CHECK bool is_empty(const DLTensor& t) {
    for (int d = 0; d < t.ndim; ++d)
        if (t.shape[d] == 0) return true;
    return false;
}
INLINE int64_t clamp_index(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
"""

# In order; a section may use the names that earlier ones define. Each: (names it defines, text).
_SECTIONS: tuple[Section, ...] = (
    (
        ("INLINE_MEMBER",),
        """\
#define INLINE_MEMBER inline __attribute__((always_inline))
""",
    ),
    (
        ("SHORT_LOOPS",),
        """\
// Of functions whose loops are short: they are not worth a vector, nor the compiler's time.
#if defined(__clang__)
#define SHORT_LOOPS
#else
#define SHORT_LOOPS __attribute__((optimize("no-tree-vectorize")))
#endif
""",
    ),
    (
        ("FUSED_SUMS", "SEPARATE_SUMS"),
        """\
// Between the two, the compiler may make one instruction of a product and the sum it is added to.
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FUSED_SUMS PRAGMA(clang fp contract(fast))
#define SEPARATE_SUMS PRAGMA(clang fp contract(off))
#else
#define FUSED_SUMS PRAGMA(GCC push_options) PRAGMA(GCC optimize("fp-contract=fast"))
#define SEPARATE_SUMS PRAGMA(GCC pop_options)
#endif
""",
    ),
    (
        ("bits_of", "float_of"),
        """\
INLINE uint32_t bits_of(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
""",
    ),
    (
        ("widen_bfloat16", "narrow_bfloat16", "round_bfloat16", "narrow_bfloat16_plain", "round_bfloat16_plain"),
        """\
// bfloat16 is the upper half of a float: round to nearest even. Adding to a NaN could carry it into the sign; the
// plain forms are for values whose NaNs have no bits in the lower half, as those from bfloat16 inputs and arithmetic.
INLINE uint32_t nearest_bfloat16(float x) {
    const uint32_t u = bits_of(x);
    return u + 0x7fffu + ((u >> 16) & 1u);
}
INLINE uint32_t nearest_bfloat16_or_nan(float x) { return x != x ? bits_of(x) | 0x400000u : nearest_bfloat16(x); }
INLINE float widen_bfloat16(uint16_t u) { return float_of((uint32_t)u << 16); }
INLINE uint16_t narrow_bfloat16(float x) { return (uint16_t)(nearest_bfloat16_or_nan(x) >> 16); }
INLINE float round_bfloat16(float x) { return float_of(nearest_bfloat16_or_nan(x) & 0xffff0000u); }
INLINE uint16_t narrow_bfloat16_plain(float x) { return (uint16_t)(nearest_bfloat16(x) >> 16); }
INLINE float round_bfloat16_plain(float x) { return float_of(nearest_bfloat16(x) & 0xffff0000u); }
""",
    ),
    (
        ("widen_float16", "narrow_float16", "round_float16"),
        """\
// float16 by integer arithmetic, which vectorises everywhere (gcc 12 does not vectorise conversions of _Float16).
// Subnormals: adding 0.5, whose ulp is float16's smallest step, rounds to that step.
INLINE float widen_float16(uint16_t h) {
    const float scaled = float_of((uint32_t)(h & 0x7fffu) << 13) * 5.19229686e33f;  // 2^112, the bias between the two
    const uint32_t u = bits_of(scaled) | (scaled >= 65536.0f ? 0x7f800000u : 0u);
    return float_of(u | ((uint32_t)(h & 0x8000u) << 16));
}
INLINE float round_float16(float x) {
    const float a = __builtin_fabsf(x);
    const uint32_t u = bits_of(a);
    const float normal = float_of((u + 0xfffu + ((u >> 13) & 1u)) & 0xffffe000u);
    const float rounded = a < 6.10351562e-05f ? (a + 0.5f) - 0.5f : normal;
    const float finite = a < 65520.0f ? rounded : a * __builtin_inff();  // inf or NaN
    return __builtin_copysignf(finite, x);
}
INLINE uint16_t narrow_float16(float x) {
    const float a = __builtin_fabsf(x);
    const uint32_t u = bits_of(a);
    const uint32_t normal = (u + 0xfffu + ((u >> 13) & 1u) - 0x38000000u) >> 13;
    const uint32_t rounded = a < 6.10351562e-05f ? bits_of(a + 0.5f) - 0x3f000000u : normal;
    const uint32_t bounded = a >= 65520.0f ? 0x7c00u : rounded;
    return (uint16_t)((x != x ? 0x7e00u : bounded) | ((bits_of(x) >> 16) & 0x8000u));
}
""",
    ),
    (
        ("add_of", "sub_of", "mul_of", "neg_of", "abs_of"),
        """\
INLINE float abs_of(float x) { return __builtin_fabsf(x); }
INLINE double abs_of(double x) { return __builtin_fabs(x); }
// integers wrap, as they do in torch
#define WRAPPING(T, U) \\
    INLINE T add_of(T a, T b) { return (T)((U)a + (U)b); } \\
    INLINE T sub_of(T a, T b) { return (T)((U)a - (U)b); } \\
    INLINE T mul_of(T a, T b) { return (T)((U)a * (U)b); } \\
    INLINE T neg_of(T a) { return (T)(0 - (U)a); } \\
    INLINE T abs_of(T a) { return a < 0 ? (T)(0 - (U)a) : a; }
WRAPPING(int32_t, uint32_t)
WRAPPING(int64_t, uint64_t)
""",
    ),
    (
        ("fma_of",),
        """\
INLINE float fma_of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INLINE double fma_of(double a, double b, double c) { return __builtin_fma(a, b, c); }
""",
    ),
    (
        ("flipped",),
        """\
// The negative of an fma, by its sign bit: g++ makes one instruction of the two, which gives the other zero.
INLINE float flipped(float x) { return float_of(bits_of(x) ^ 0x80000000u); }
INLINE double flipped(double x) {
    uint64_t u;
    __builtin_memcpy(&u, &x, 8);
    u ^= (uint64_t)1 << 63;
    __builtin_memcpy(&x, &u, 8);
    return x;
}
""",
    ),
    (
        ("unseen",),
        """\
// g++ takes a float's way through an integer for a truncation, which makes -0.5 a negative zero; here it cannot see it
template <typename T> INLINE T unseen(T x) {
    __asm__("" : "+r"(x));
    return x;
}
""",
    ),
    (
        ("quotient_of", "fmod_of"),
        """\
INLINE float fmod_of(float a, float b) { return __builtin_fmodf(a, b); }
INLINE double fmod_of(double a, double b) { return __builtin_fmod(a, b); }
// a division that would trap gives 0
#define DIVIDING(T) \\
    INLINE T quotient_of(T a, T b) { return b == 0 ? 0 : b == -1 ? neg_of(a) : a / b; } \\
    INLINE T fmod_of(T a, T b) { return b == 0 || b == -1 ? 0 : a % b; }
DIVIDING(int32_t)
DIVIDING(int64_t)
""",
    ),
    (
        ("shl_of", "shr_of"),
        """\
// by a number outside the bits of T, nothing but zeros or the sign is left, as in torch
#define SHIFTING(T, U, BITS) \\
    INLINE T shl_of(T a, T b) { return (U)b < BITS ? (T)((U)a << b) : 0; } \\
    INLINE T shr_of(T a, T b) { return a >> ((U)b < BITS ? b : BITS - 1); }
SHIFTING(int32_t, uint32_t, 32)
SHIFTING(int64_t, uint64_t, 64)
""",
    ),
    (
        ("max_of", "min_of", "is_nan"),
        """\
template <typename T> INLINE bool is_nan(T x) { return x != x; }
// They hand NaN on. Of two zeros they give the first, whose sign clamp keeps.
template <typename T> INLINE T max_of(T a, T b) { return b > a || b != b ? b : a; }
template <typename T> INLINE T min_of(T a, T b) { return b < a || b != b ? b : a; }
""",
    ),
    (
        ("sum_of", "product_of", "highest_of", "lowest_of"),
        """\
// Reductions of a buffer of n elements with room for 32 more: two vectors of partial results, then a tree, of floats
// in double. An `omp simd reduction` would add its lanes one after the other: slow for short rows, and less exact.
template <typename T> struct widened { typedef T type; };
template <> struct widened<float> { typedef double type; };
template <typename T> INLINE T least() { return (T)((uint64_t)1 << (8 * sizeof(T) - 1)); }
template <> inline float least<float>() { return -__builtin_inff(); }
template <> inline double least<double>() { return -__builtin_inf(); }
template <typename T> INLINE T greatest() { return ~least<T>(); }
template <> inline float greatest<float>() { return __builtin_inff(); }
template <> inline double greatest<double>() { return __builtin_inf(); }
#define REDUCING(NAME, RESULT, START, STEP) \\
    template <typename T> INLINE RESULT NAME(T* values, int64_t n) { \\
        typedef T lanes __attribute__((vector_size(16 * sizeof(T)), aligned(sizeof(T)), may_alias)); \\
        if (n % 32 || !n) \\
            for (int k = 0; k < 32; ++k) values[n + k] = START; \\
        lanes a = *(const lanes*)values, b = *(const lanes*)(values + 16), v; \\
        for (int64_t i = 32; i < n; i += 32) { \\
            v = *(const lanes*)(values + i); \\
            a = STEP(a, v); \\
            v = *(const lanes*)(values + i + 16); \\
            b = STEP(b, v); \\
        } \\
        RESULT half[16]; \\
        for (int k = 0; k < 16; ++k) half[k] = STEP((RESULT)a[k], (RESULT)b[k]); \\
        for (int k = 0; k < 8; ++k) half[k] = STEP(half[k], half[k + 8]); \\
        for (int k = 0; k < 4; ++k) half[k] = STEP(half[k], half[k + 4]); \\
        return STEP(STEP(half[0], half[2]), STEP(half[1], half[3])); \\
    }
#define STEP_SUM(a, b) ((a) + (b))
#define STEP_PRODUCT(a, b) ((a) * (b))
#define STEP_HIGHEST(a, b) (((b) > (a)) | ((b) != (b)) ? (b) : (a))
#define STEP_LOWEST(a, b) (((b) < (a)) | ((b) != (b)) ? (b) : (a))
REDUCING(sum_of, typename widened<T>::type, 0, STEP_SUM)
REDUCING(product_of, typename widened<T>::type, 1, STEP_PRODUCT)
REDUCING(highest_of, T, least<T>(), STEP_HIGHEST)
REDUCING(lowest_of, T, greatest<T>(), STEP_LOWEST)
""",
    ),
    (
        ("Partial",),
        """\
union Partial { float as_float; double as_double; int32_t as_int32; int64_t as_int64; };
""",
    ),
    (
        ("run_sum", "run_product"),
        """\
// Scans of a buffer in place, from what came before it; both return what comes after.
template <typename T, typename W> INLINE W run_sum(T* values, int64_t n, W total) {
    for (int64_t i = 0; i < n; ++i) values[i] = (T)(total += values[i]);
    return total;
}
template <typename T, typename W> INLINE W run_product(T* values, int64_t n, W total) {
    for (int64_t i = 0; i < n; ++i) values[i] = (T)(total *= values[i]);
    return total;
}
""",
    ),
    (
        ("floor_of", "ceil_of", "trunc_of", "round_of", "sqrt_of", "rsqrt_of", "pow_of", "atan2_of"),
        """\
INLINE float floor_of(float x) { return __builtin_floorf(x); }
INLINE float ceil_of(float x) { return __builtin_ceilf(x); }
INLINE float trunc_of(float x) { return __builtin_truncf(x); }
INLINE float round_of(float x) { return __builtin_nearbyintf(x); }  // halves to even
INLINE float sqrt_of(float x) { return __builtin_sqrtf(x); }
INLINE float rsqrt_of(float x) { return 1.0f / __builtin_sqrtf(x); }
INLINE float pow_of(float x, float y) { return __builtin_powf(x, y); }
INLINE float atan2_of(float y, float x) { return __builtin_atan2f(y, x); }
INLINE double floor_of(double x) { return __builtin_floor(x); }
INLINE double ceil_of(double x) { return __builtin_ceil(x); }
INLINE double trunc_of(double x) { return __builtin_trunc(x); }
INLINE double round_of(double x) { return __builtin_nearbyint(x); }
INLINE double sqrt_of(double x) { return __builtin_sqrt(x); }
INLINE double rsqrt_of(double x) { return 1.0 / __builtin_sqrt(x); }
INLINE double pow_of(double x, double y) { return __builtin_pow(x, y); }
INLINE double atan2_of(double y, double x) { return __builtin_atan2(y, x); }
""",
    ),
    (
        ("whole_pow",),
        """\
template <typename T> INLINE T whole_pow(T x, T n) {
    if (n < 0) return x == 1 ? 1 : x == -1 ? (n % 2 ? -1 : 1) : 0;
    T y = 1;
    for (; n; n >>= 1, x = mul_of(x, x))
        if (n & 1) y = mul_of(y, x);
    return y;
}
""",
    ),
    *MATH,
    *PRODUCTS,
    *FEW_ROWS_PRODUCTS,
    *PANELS,
    *ATTENTION,
)


def prelude(kernels: str) -> str:
    """The prelude for the text of some kernels: what every unit needs, then each section that is used."""
    chosen: list[str] = []
    used = set(re.findall(r"\w+", kernels))
    for names, text in reversed(_SECTIONS):
        if used & set(names):
            chosen.append(text)
            used |= set(re.findall(r"\w+", text))
    return "\n".join([_ALWAYS, *reversed(chosen)])
