"""The C++ text every translation unit starts with: DLPack's layout, element types, and vector math.

All of it is branch-free straight-line code over one element, so that a loop around it vectorises. The
polynomials are minimax fits made for this project (Lawson's algorithm in 40 digits, coefficients rounded to float
one after the other); each section states the error that remains. Only the sections a unit uses are printed.
"""

from __future__ import annotations

import re

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

INLINE bool is_kind(const DLTensor& t, int32_t ndim, int code, int bits) {
    return t.ndim == ndim && t.code == code && t.bits == bits && t.lanes == 1 && t.device_type == 1;
}
INLINE int64_t stride_of(const DLTensor& t, int dim) {
    if (t.strides) return t.strides[dim];
    int64_t stride = 1;  // DLPack: no strides means row-major
    for (int d = t.ndim - 1; d > dim; --d) stride *= t.shape[d];
    return stride;
}
INLINE int64_t clamp_index(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
INLINE bool is_empty(const DLTensor& t) {
    for (int d = 0; d < t.ndim; ++d)
        if (t.shape[d] == 0) return true;
    return false;
}
"""

# In order; a section may use the names that earlier ones define. Each: (names it defines, text).
_SECTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
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
        ("max_of", "min_of", "is_nan"),
        """\
template <typename T> INLINE bool is_nan(T x) { return x != x; }
template <typename T> INLINE T max_of(T a, T b) { return a > b || a != a ? a : b; }  // hands NaN on
template <typename T> INLINE T min_of(T a, T b) { return a < b || a != a ? a : b; }
""",
    ),
    (
        ("sum_of", "highest_of", "lowest_of"),
        """\
// Reductions of a buffer of n elements with room for 32 more: two vectors of partial results, then a tree, of floats
// in double. An `omp simd reduction` would add its lanes one after the other: slow for short rows, and less exact.
template <typename T> struct widened { typedef T type; };
template <> struct widened<float> { typedef double type; };
#define REDUCING(NAME, RESULT, START, STEP) \\
    template <typename T> INLINE RESULT NAME(T* values, int64_t n) { \\
        typedef T lanes __attribute__((vector_size(16 * sizeof(T)), aligned(sizeof(T)), may_alias)); \\
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
#define STEP_HIGHEST(a, b) (((b) > (a)) | ((b) != (b)) ? (b) : (a))
#define STEP_LOWEST(a, b) (((b) < (a)) | ((b) != (b)) ? (b) : (a))
REDUCING(sum_of, typename widened<T>::type, 0, STEP_SUM)
REDUCING(highest_of, T, -(T)__builtin_inf(), STEP_HIGHEST)
REDUCING(lowest_of, T, (T)__builtin_inf(), STEP_LOWEST)
""",
    ),
    (
        ("floor_of", "ceil_of", "trunc_of", "round_of", "sqrt_of", "rsqrt_of", "pow_of"),
        """\
INLINE float floor_of(float x) { return __builtin_floorf(x); }
INLINE float ceil_of(float x) { return __builtin_ceilf(x); }
INLINE float trunc_of(float x) { return __builtin_truncf(x); }
INLINE float round_of(float x) { return __builtin_nearbyintf(x); }  // halves to even
INLINE float sqrt_of(float x) { return __builtin_sqrtf(x); }
INLINE float rsqrt_of(float x) { return 1.0f / __builtin_sqrtf(x); }
INLINE float pow_of(float x, float y) { return __builtin_powf(x, y); }
INLINE double floor_of(double x) { return __builtin_floor(x); }
INLINE double ceil_of(double x) { return __builtin_ceil(x); }
INLINE double trunc_of(double x) { return __builtin_trunc(x); }
INLINE double round_of(double x) { return __builtin_nearbyint(x); }
INLINE double sqrt_of(double x) { return __builtin_sqrt(x); }
INLINE double rsqrt_of(double x) { return 1.0 / __builtin_sqrt(x); }
INLINE double pow_of(double x, double y) { return __builtin_pow(x, y); }
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
    (
        ("exp_of", "exp_normal_of", "expm1_of"),
        """\
// x = n*ln2 + r with |r| <= ln2/2; e^r - 1 = r + r*r*P(r). n sits in the low bits of `shifted`.
INLINE float split_exp(float x, float& shifted) {
    shifted = __builtin_fmaf(x, 1.44269502f, 12582912.0f);
    const float n = shifted - 12582912.0f;
    const float r = __builtin_fmaf(n, 1.90465421e-9f, __builtin_fmaf(n, -0.693147182f, x));
    float p = 0.00019764334f;
    p = __builtin_fmaf(p, r, 0.0013932365f);
    p = __builtin_fmaf(p, r, 0.008333543f);
    p = __builtin_fmaf(p, r, 0.041666493f);
    p = __builtin_fmaf(p, r, 0.16666666f);
    p = __builtin_fmaf(p, r, 0.5f);
    return __builtin_fmaf(r * r, p, r);
}
// within 1 ulp; n is added to the exponent. Small results are made 2^64 too large first, so that subnormals round once
INLINE float exp_of(float x) {
    float shifted;
    const float y = 1.0f + split_exp(x, shifted);
    const uint32_t u = bits_of(y) + (bits_of(shifted) << 23);
    const float small = float_of(u + (64u << 23)) * 5.42101086e-20f;
    const float scaled = x < -87.0f ? small : float_of(u);
    const float bounded = x < -104.0f ? 0.0f : scaled;
    return x <= 88.7228394f ? bounded : x + __builtin_inff();  // inf and NaN
}
// the same where subnormal results do not matter, because something larger is added: those are 0
INLINE float exp_normal_of(float x) {
    float shifted;
    const float y = 1.0f + split_exp(x, shifted);
    const float scaled = float_of(bits_of(y) + (bits_of(shifted) << 23));
    const float bounded = x < -87.0f ? 0.0f : scaled;
    return x <= 88.7228394f ? bounded : x + __builtin_inff();  // inf and NaN
}
INLINE double exp_normal_of(double x) { return __builtin_exp(x); }
// within 2 ulp; 2^n*(q + 1) - 1 with one rounding, halved so that 2^n does not overflow early
INLINE float expm1_of(float x) {
    const float low = x < -40.0f ? -40.0f : x;
    float shifted;
    const float q = split_exp(low > 90.0f ? 90.0f : low, shifted);
    const int32_t n = (int32_t)(bits_of(shifted) - 0x4b400000u);
    const int32_t capped = n > 128 ? 128 : n;
    const float scale = float_of((uint32_t)(capped + 126) << 23);
    const float y = 2.0f * __builtin_fmaf(q, scale, scale - 0.5f);
    const float high = x > 88.8f ? __builtin_inff() : y;
    return __builtin_fabsf(x) < 1e-8f ? x : high;
}
INLINE double exp_of(double x) { return __builtin_exp(x); }
INLINE double expm1_of(double x) { return __builtin_expm1(x); }
""",
    ),
    (
        ("log_of", "log1p_of"),
        """\
// k*ln2 + log(1 + f) for f in [-1/3, 1/3]
INLINE float log_core(float k, float f) {
    float p = -0.11417034f;
    p = __builtin_fmaf(p, f, 0.1211669f);
    p = __builtin_fmaf(p, f, -0.0956011f);
    p = __builtin_fmaf(p, f, 0.10723419f);
    p = __builtin_fmaf(p, f, -0.1252852f);
    p = __builtin_fmaf(p, f, 0.14307489f);
    p = __builtin_fmaf(p, f, -0.16665824f);
    p = __builtin_fmaf(p, f, 0.19999477f);
    p = __builtin_fmaf(p, f, -0.2500001f);
    p = __builtin_fmaf(p, f, 0.33333337f);
    return __builtin_fmaf(k, 0.693147182f, __builtin_fmaf(__builtin_fmaf(p, f, -0.5f), f * f, f));
}
// within 1 ulp
INLINE float log_of(float x) {
    const bool tiny = x < 1.17549435e-38f;
    const float scaled = tiny ? x * 8388608.0f : x;
    const int32_t k = (int32_t)(bits_of(scaled) - 0x3f2aaaabu) >> 23;  // 2/3 <= scaled / 2^k < 4/3
    const float f = float_of(bits_of(scaled) - ((uint32_t)k << 23)) - 1.0f;
    const float y = log_core((float)k - (tiny ? 23.0f : 0.0f), f);
    const float zero = x == 0.0f ? -__builtin_inff() : y;
    const float negative = x < 0.0f ? __builtin_nanf("") : zero;
    return x < __builtin_inff() ? negative : x;  // inf and NaN
}
// within 2 ulp; f = (1 + x) / 2^k - 1 with one rounding
INLINE float log1p_of(float x) {
    const float raised = 1.0f + x;
    const int32_t k = (int32_t)(bits_of(raised) - 0x3f2aaaabu) >> 23;
    const float scale = float_of((uint32_t)(127 - k) << 23);
    const float large = float_of(bits_of(raised) - ((uint32_t)k << 23)) - 1.0f;
    const float f = x > 16777216.0f ? large : __builtin_fmaf(x, scale, scale - 1.0f);
    const float y = log_core((float)k, f);
    const float end = x == -1.0f ? -__builtin_inff() : y;
    const float negative = x < -1.0f ? __builtin_nanf("") : end;
    const float small = __builtin_fabsf(x) < 1e-8f ? x : negative;
    return x < __builtin_inff() ? small : x;
}
INLINE double log_of(double x) { return __builtin_log(x); }
INLINE double log1p_of(double x) { return __builtin_log1p(x); }
""",
    ),
    (
        ("tanh_of",),
        """\
// within 2 ulp: x + x^3*T(x^2) near 0, else 1 - 2/(1 + e^(2|x|))
INLINE float tanh_of(float x) {
    const float a = __builtin_fabsf(x);
    const float u = x * x;
    float p = -0.006249666f;
    p = __builtin_fmaf(p, u, 0.021054806f);
    p = __builtin_fmaf(p, u, -0.05384832f);
    p = __builtin_fmaf(p, u, 0.13332549f);
    p = __builtin_fmaf(p, u, -0.33333316f);
    const float near = __builtin_fmaf(a * u, p, a);
    const float far = 1.0f - 2.0f / (1.0f + exp_normal_of(2.0f * a));
    return __builtin_copysignf(a < 0.55f ? near : far, x);
}
INLINE double tanh_of(double x) { return __builtin_tanh(x); }
""",
    ),
    (
        ("erf_of",),
        """\
// within 2 ulp: x + x*E(x^2) below 1, else 1 - e^-Q(|x| - 1), which is 1 from 4 on
INLINE float erf_of(float x) {
    const float a = __builtin_fabsf(x);
    const float u = x * x;
    float p = 7.8069745e-05f;
    p = __builtin_fmaf(p, u, -0.0007997865f);
    p = __builtin_fmaf(p, u, 0.0051871627f);
    p = __builtin_fmaf(p, u, -0.026853347f);
    p = __builtin_fmaf(p, u, 0.11283579f);
    p = __builtin_fmaf(p, u, -0.37612626f);
    p = __builtin_fmaf(p, u, 0.12837917f);
    const float t = (a > 4.0f ? 4.0f : a) - 1.0f;
    float q = -8.266885e-05f;
    q = __builtin_fmaf(q, t, 0.0014575361f);
    q = __builtin_fmaf(q, t, -0.0094280755f);
    q = __builtin_fmaf(q, t, 0.041252423f);
    q = __builtin_fmaf(q, t, 0.84317356f);
    q = __builtin_fmaf(q, t, 2.6389627f);
    q = __builtin_fmaf(q, t, 1.8496056f);
    const float far = __builtin_copysignf(1.0f - exp_normal_of(-q), x);
    return a < 1.0f ? __builtin_fmaf(x, p, x) : far;
}
INLINE double erf_of(double x) { return __builtin_erf(x); }
""",
    ),
    (
        ("sin_of", "cos_of", "reduce_angle"),
        """\
// 2/pi as binary digits after one word of zeros. Payne and Hanek: with x = m*2^(e-23), the digits from place e-24 on,
// times m, are x*2/pi modulo 4 in fixed point with 62 places; digits before it only add whole turns. Exact to 2^-60
// of a quarter turn for every float, where the nearest a float comes to a multiple of it is 2^-30.
// Masks, not a table: gcc makes guarded loads of a table, also of a chain of ?:, and those do not vectorise.
INLINE uint64_t masked(uint32_t word, uint32_t wanted, uint64_t digits) { return -(uint64_t)(word == wanted) & digits; }
INLINE uint64_t two_over_pi(uint32_t word) {
    return masked(word, 0, 0x00000000a2f9836eu) | masked(word, 1, 0xa2f9836e4e441529u)
        | masked(word, 2, 0x4e441529fc2757d1u) | masked(word, 3, 0xfc2757d1f534ddc0u)
        | masked(word, 4, 0xf534ddc0db629599u) | masked(word, 5, 0xdb6295993c439041u)
        | masked(word, 6, 0x3c439041fe5163abu);
}
INLINE float reduce_angle(float x, uint32_t& quarter) {
    const uint32_t u = bits_of(x) & 0x7fffffffu;
    const int32_t e = (int32_t)(u >> 23) - 127;
    const uint32_t place = (uint32_t)((e < -1 ? -1 : e > 127 ? 127 : e) + 7);
    const uint64_t m = (u & 0x7fffffu) | 0x800000u;
    const uint32_t word = place >> 5;
    const uint64_t shift = place & 31u;
    const uint64_t high = two_over_pi(word);
    const uint64_t low = two_over_pi(word + 2);
    const uint64_t digits = (high << shift) | ((low >> 1) >> (63 - shift));
    const uint64_t turns = m * digits + ((m * ((low << shift) >> 32)) >> 32);
    const uint64_t nearest = (turns + 0x2000000000000000u) >> 62;
    const uint64_t rest = turns - (nearest << 62);
    const double upper = (double)(int32_t)(uint32_t)(rest >> 32) * 4294967296.0;
    const double lower = (double)(int32_t)((uint32_t)rest >> 1) * 2.0;
    const float r = (float)((upper + lower) * 3.406121580086554589e-19);  // pi/2 * 2^-62
    const bool small = u < 0x3f490fdbu;  // below pi/4
    quarter = small ? 0u : (uint32_t)nearest;
    const float magnitude = small ? float_of(u) : r;
    return u < 0x7f800000u ? magnitude : __builtin_nanf("");
}
INLINE float sin_core(float r) {
    const float u = r * r;
    float p = 2.832806e-06f;
    p = __builtin_fmaf(p, u, -0.00019853079f);
    p = __builtin_fmaf(p, u, 0.008333379f);
    p = __builtin_fmaf(p, u, -0.16666667f);
    return __builtin_fmaf(r * u, p, r);
}
INLINE float cos_core(float r) {
    const float u = r * r;
    float p = 2.4432338e-05f;
    p = __builtin_fmaf(p, u, -0.001388731f);
    p = __builtin_fmaf(p, u, 0.041666646f);
    p = __builtin_fmaf(p, u, -0.5f);
    return __builtin_fmaf(u, p, 1.0f);
}
// within 2 ulp for every float
INLINE float sin_of(float x) {
    uint32_t quarter;
    const float r = reduce_angle(x, quarter);
    const float y = quarter & 1u ? cos_core(r) : sin_core(r);
    return float_of(bits_of(y) ^ ((quarter & 2u) << 30) ^ (bits_of(x) & 0x80000000u));
}
INLINE float cos_of(float x) {
    uint32_t quarter;
    const float r = reduce_angle(x, quarter);
    const float y = quarter & 1u ? sin_core(r) : cos_core(r);
    return float_of(bits_of(y) ^ (((quarter + 1u) & 2u) << 30));
}
INLINE double sin_of(double x) { return __builtin_sin(x); }
INLINE double cos_of(double x) { return __builtin_cos(x); }
""",
    ),
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
