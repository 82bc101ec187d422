"""Vector math in C++: exp, log, tanh, erf, sin and cos of one float without a branch, so that loops vectorise.

The polynomials are minimax fits made for this project (Lawson's algorithm in 40 digits, coefficients rounded to float
one after the other, lowest order first). Each function states its greatest error against the exact value in ulp; what
remains is the rounding of the last two operations. They use fused multiply-add, which every CPU since 2015 has;
without it they are correct and slow. Doubles go to libm.
"""

from __future__ import annotations

Section = tuple[tuple[str, ...], str]  # names it defines, text; later sections may use the names of earlier ones

MATH: tuple[Section, ...] = (
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
    return x <= 88.7228317f ? bounded : x + __builtin_inff();  // inf and NaN
}
// the same where subnormal results do not matter, because something larger is added: those are 0
INLINE float exp_normal_of(float x) {
    float shifted;
    const float y = 1.0f + split_exp(x, shifted);
    const float scaled = float_of(bits_of(y) + (bits_of(shifted) << 23));
    const float bounded = x < -87.0f ? 0.0f : scaled;
    return x <= 88.7228317f ? bounded : x + __builtin_inff();  // inf and NaN
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
