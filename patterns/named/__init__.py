"""Named patterns, as data. One file each; `PATTERNS` is the registry that `match` tries in order."""

from . import add_rms_norm, geglu, qk_norm_rope, rms_norm, rope, softmax, swiglu
from .add_rms_norm import create_add_rms_norm_pattern
from .geglu import create_geglu_pattern
from .pattern import GraphBuilder, Pattern
from .qk_norm_rope import create_qk_norm_rope_pattern
from .rms_norm import create_rms_norm_pattern
from .rope import create_rope_pattern
from .softmax import create_softmax_pattern
from .swiglu import create_swiglu_pattern

PATTERNS: tuple[Pattern, ...] = (
    *swiglu.PATTERNS,
    *geglu.PATTERNS,
    *add_rms_norm.PATTERNS,
    *rms_norm.PATTERNS,
    *qk_norm_rope.PATTERNS,
    *rope.PATTERNS,
    *softmax.PATTERNS,
)

__all__ = [
    "PATTERNS", "GraphBuilder", "Pattern", "create_add_rms_norm_pattern", "create_geglu_pattern",
    "create_qk_norm_rope_pattern", "create_rms_norm_pattern", "create_rope_pattern", "create_softmax_pattern",
    "create_swiglu_pattern",
]  # fmt: skip
