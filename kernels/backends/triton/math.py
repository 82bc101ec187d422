"""Functions of one float32 that Triton has only as approximations, or not at all, as Triton source.

The text is pasted into the modules that use it, so that an emitted kernel is a program that runs alone. Each function
is made of operations that round to nearest on every target and under Triton's interpreter; the bounds below were
measured against float64 over the ranges `tests/support/triton_primitive_cases.py` states.

Formulas: Cody and Waite, Software Manual for the Elementary Functions (1980), for the argument reductions; the
polynomials are Taylor series, cut where the next term is below a quarter ulp.
"""

from __future__ import annotations

# name -> (names it calls, source)
HELPERS: dict[str, tuple[tuple[str, ...], str]] = {
    "_power_of_two": (
        (),
        '''
@triton.jit
def _power_of_two(n):
    """2**n for an integral float32 n in [-126, 127], by its bits."""
    return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
''',
    ),
    "_exp_reduce": (
        (),
        '''
@triton.jit
def _exp_reduce(x):
    """x = n*ln(2) + r, with ln(2) in two parts: (n, r, e**r - 1), |r| <= 0.35."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 0.00021219444005469057
    p = tl.fma(r, 1.0 / 40320, 1.0 / 5040)
    p = tl.fma(p, r, 1.0 / 720)
    p = tl.fma(p, r, 1.0 / 120)
    p = tl.fma(p, r, 1.0 / 24)
    p = tl.fma(p, r, 1.0 / 6)
    p = tl.fma(p, r, 0.5)
    return n, tl.fma(p, r * r, r)
''',
    ),
    "_exp": (
        ("_power_of_two", "_exp_reduce"),
        '''
@triton.jit
def _exp(x):
    """e**x; the power of two is applied in two halves, so that the result overflows and underflows gradually."""
    n, p = _exp_reduce(tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x)))
    half = tl.floor(n * 0.5)
    return (1.0 + p) * _power_of_two(half) * _power_of_two(n - half)
''',
    ),
    "_expm1": (
        ("_power_of_two", "_exp_reduce"),
        '''
@triton.jit
def _expm1(x):
    """e**x - 1, accurate near 0: 2**n * (e**r - 1) + (2**n - 1), halved against overflow."""
    n, p = _exp_reduce(tl.where(x > 89.0, 89.0, tl.where(x < -30.0, -30.0, x)))
    half = _power_of_two(n - 1.0)
    return 2.0 * (p * half + (half - 0.5))
''',
    ),
    "_tanh": (
        ("_exp",),
        '''
@triton.jit
def _tanh(x):
    """tanh(x): below 0.625 x + x**3 * P(x**2), P interpolated at Chebyshev nodes; above it 1 - 2 / (e**2|x| + 1)."""
    z = x * x
    p = tl.fma(z, 0.002292557619512081, -0.008343780413269997)
    p = tl.fma(p, z, 0.02176886796951294)
    p = tl.fma(p, z, -0.053959254175424576)
    p = tl.fma(p, z, 0.13333304226398468)
    p = tl.fma(p, z, -0.3333333432674408)
    size = tl.abs(x)
    far = 1.0 - tl.div_rn(2.0, _exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, tl.fma(p * z, x, x), tl.where(x < 0.0, -1.0 * far, far))
''',
    ),
    "_log1p_near": (
        (),
        '''
@triton.jit
def _log1p_near(f):
    """log(1 + f) for f in [-0.293, 0.415]: 2 atanh(s), s = f / (2 + f), with 2s written as f - s*f, f being exact."""
    s = tl.div_rn(f, 2.0 + f)
    z = s * s
    tail = z * (2.0 / 3 + z * (2.0 / 5 + z * (2.0 / 7 + z * (2.0 / 9))))
    return f - s * (f - tail)
''',
    ),
    "_log": (
        ("_log1p_near",),
        '''
@triton.jit
def _log(x):
    """log(x): x = 2**n * m with m in [sqrt(1/2), sqrt(2)); subnormals are scaled up first."""
    tiny = x < 1.1754943508222875e-38
    bits = tl.where(tiny, x * 8388608.0, x).to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    m = (bits - (n << 23)).to(tl.float32, bitcast=True)
    n = n.to(tl.float32) - tl.where(tiny, 23.0, 0.0)
    result = n * 0.693359375 + (_log1p_near(m - 1.0) - n * 0.00021219444005469057)
    outside = tl.where(x == 0.0, float("-inf"), tl.where(x > 0.0, x, float("nan")))
    return tl.where((x > 0.0) & (x < float("inf")), result, outside)
''',
    ),
    "_log1p": (
        ("_log", "_log1p_near"),
        '''
@triton.jit
def _log1p(x):
    """log(1 + x); away from 0 the rounding error of 1 + x is added back, divided by 1 + x."""
    u = 1.0 + x
    lost = tl.where((u > 0.0) & (u < float("inf")), tl.div_rn(x - (u - 1.0), u), 0.0)
    return tl.where((x > -0.29) & (x < 0.41), _log1p_near(x), _log(u) + lost)
''',
    ),
    "_quadrant": (
        (),
        '''
@triton.jit
def _quadrant(x):
    """x = k*pi/2 + r: (r, k mod 4), reduced in float64 with pi/2 in two parts; exact enough up to 2**30."""
    wide = x.to(tl.float64)
    k = tl.floor(wide * 0.6366197723675814 + 0.5)
    r = (wide - k * 1.5707963267341256) - k * 6.077100506506192e-11
    r = tl.where(tl.abs(r) > 1.0, 0.0, r)  # x too large for the reduction: still a number in [-1, 1]
    return r.to(tl.float32), (k - 4.0 * tl.floor(k * 0.25)).to(tl.int32)
''',
    ),
    "_sine": (
        (),
        '''
@triton.jit
def _sine(r, quarter):
    """sin(r + quarter*pi/2) for |r| <= pi/4 and quarter in 0..4."""
    z = r * r
    s = -1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880)))
    s = r + r * z * s
    c = 1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800)))
    c = 1.0 + z * (z * c - 0.5)
    value = tl.where((quarter & 1) == 0, s, c)
    return tl.where((quarter & 2) == 0, value, -1.0 * value)
''',
    ),
    "_sin": (
        ("_quadrant", "_sine"),
        '''
@triton.jit
def _sin(x):
    """sin(x)."""
    r, quarter = _quadrant(x)
    return _sine(r, quarter)
''',
    ),
    "_cos": (
        ("_quadrant", "_sine"),
        '''
@triton.jit
def _cos(x):
    """cos(x) = sin(x + pi/2)."""
    r, quarter = _quadrant(x)
    return _sine(r, quarter + 1)
''',
    ),
    "_pow": (
        (),
        '''
@triton.jit
def _pow(x, y):
    """x**y through float64, which has the bits that y*log|x| loses in float32; special cases as in C99 F.10.4.4."""
    size = tl.exp(y.to(tl.float64) * tl.log(tl.abs(x).to(tl.float64))).to(tl.float32)
    size = tl.where((tl.abs(x) == 1.0) & (y == y), 1.0, size)
    whole = tl.floor(y) == y
    odd = whole & (y - 2.0 * tl.floor(y * 0.5) == 1.0)
    negative = x.to(tl.int32, bitcast=True) < 0
    power = tl.where(negative & odd, -1.0 * size, size)
    power = tl.where((x < 0.0) & (x != float("-inf")) & ((whole == 0) & (y == y)), float("nan"), power)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, power)
''',
    ),
    "_fmod": (
        (),
        '''
@triton.jit
def _fmod(x, y):
    """C's fmod, through float64: exact while |x / y| < 2**28."""
    wide, by = x.to(tl.float64), y.to(tl.float64)
    quotient = wide / by
    whole = tl.where(quotient < 0.0, tl.ceil(quotient), tl.floor(quotient))
    rest = (wide - whole * by).to(tl.float32)
    rest = tl.where(rest == 0.0, x * 0.0, rest)
    return tl.where((tl.abs(y) == float("inf")) & (tl.abs(x) < float("inf")), x, rest)
''',
    ),
    "_round": (
        (),
        '''
@triton.jit
def _round(x):
    """x to the nearest integer, ties to even: adding 2**23 leaves no bit for a fraction."""
    size = tl.abs(x)
    whole = (size + 8388608.0) - 8388608.0
    whole = tl.where(x < 0.0, -1.0 * whole, whole)
    return tl.where(size < 8388608.0, tl.where(whole == 0.0, x * 0.0, whole), x)
''',
    ),
    "_exp_below": (
        ("_exp",),
        '''
@triton.jit
def _exp_below(x, top):
    """exp(x - top) of x <= top; 0 where both are -inf."""
    return tl.where(top == float("-inf"), 0.0, _exp(x - top))
''',
    ),
    "_product": (
        (),
        '''
@triton.jit
def _product(a, b):
    """a * b, for tl.reduce."""
    return a * b
''',
    ),
    "_maximum": (
        (),
        '''
@triton.jit
def _maximum(a, b):
    """The larger one; NaN if either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    ),
    "_minimum": (
        (),
        '''
@triton.jit
def _minimum(a, b):
    """The smaller one; NaN if either is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    ),
}


def source_of(names: set[str]) -> str:
    """The source of the named helpers and what they call, each once, callees first."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for callee in HELPERS[name][0]:
                visit(callee)
            order.append(name)

    for name in HELPERS:
        if name in names:
            visit(name)
    return "\n\n".join(HELPERS[name][1].lstrip() for name in order)
