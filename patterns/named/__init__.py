"""Named patterns, as data. One file each; `PATTERNS` is the registry that `match` tries in order."""

from . import (
    add_layer_norm,
    add_rms_norm,
    bias_activation,
    causal_softmax,
    gated_rms_norm,
    geglu,
    gelu,
    layer_norm,
    qk_norm_rope,
    reglu,
    residual_scaling,
    rms_norm,
    rope,
    rope_interleaved,
    rotary_tables,
    router,
    sampling,
    soft_capping,
    softmax,
    state_space,
    swiglu,
)
from .add_layer_norm import create_add_layer_norm_pattern
from .add_rms_norm import create_add_rms_norm_pattern, create_rms_norm_add_pattern
from .bias_activation import create_bias_activation_pattern
from .causal_softmax import create_causal_softmax_pattern
from .gated_rms_norm import create_gated_rms_norm_pattern
from .geglu import create_geglu_pattern
from .gelu import create_gelu_pattern
from .layer_norm import create_layer_norm_pattern
from .pattern import GraphBuilder, Pattern
from .qk_norm_rope import create_qk_norm_rope_pattern
from .reglu import create_reglu_pattern
from .residual_scaling import create_residual_scaling_pattern
from .rms_norm import create_rms_norm_pattern
from .rope import create_rope_pattern
from .rope_interleaved import create_interleaved_rope_pattern
from .rotary_tables import create_rotary_tables_pattern
from .router import create_router_scores_pattern, create_router_weights_pattern
from .sampling import create_min_p_pattern, create_top_k_pattern, create_top_p_pattern
from .soft_capping import create_soft_capping_pattern
from .softmax import create_softmax_pattern
from .state_space import (
    create_state_space_decay_pattern,
    create_state_space_output_pattern,
    create_state_space_step_pattern,
    create_state_space_update_pattern,
)
from .swiglu import create_swiglu_pattern

PATTERNS: tuple[Pattern, ...] = (
    *swiglu.PATTERNS,
    *geglu.PATTERNS,
    *reglu.PATTERNS,
    *bias_activation.PATTERNS,
    *gated_rms_norm.PATTERNS,
    *add_rms_norm.PATTERNS,
    *rms_norm.PATTERNS,
    *add_layer_norm.PATTERNS,
    *layer_norm.PATTERNS,
    *qk_norm_rope.PATTERNS,
    *rope.PATTERNS,
    *rope_interleaved.PATTERNS,
    *rotary_tables.PATTERNS,
    *causal_softmax.PATTERNS,
    *softmax.PATTERNS,
    *soft_capping.PATTERNS,
    *router.PATTERNS,
    *state_space.PATTERNS,
    *sampling.PATTERNS,
    *residual_scaling.PATTERNS,
    *gelu.PATTERNS,
)

__all__ = [
    "PATTERNS", "GraphBuilder", "Pattern", "create_add_layer_norm_pattern", "create_add_rms_norm_pattern",
    "create_bias_activation_pattern", "create_causal_softmax_pattern", "create_gated_rms_norm_pattern",
    "create_geglu_pattern", "create_gelu_pattern", "create_interleaved_rope_pattern", "create_layer_norm_pattern",
    "create_min_p_pattern", "create_qk_norm_rope_pattern", "create_reglu_pattern", "create_residual_scaling_pattern",
    "create_rms_norm_add_pattern", "create_rms_norm_pattern", "create_rope_pattern", "create_rotary_tables_pattern",
    "create_router_scores_pattern", "create_router_weights_pattern", "create_soft_capping_pattern",
    "create_softmax_pattern", "create_state_space_decay_pattern", "create_state_space_output_pattern",
    "create_state_space_step_pattern", "create_state_space_update_pattern", "create_swiglu_pattern",
    "create_top_k_pattern", "create_top_p_pattern",
]  # fmt: skip
