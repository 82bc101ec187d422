"""The language of the compiler: graphs and operators as values, named patterns, and what fused results are held to.

`fusion.patterns.match` is both the function, for callers, and the module it comes from, for imports.
"""

from .errors import (
    BackendUnavailable,
    CompileError,
    ConfigError,
    FusionError,
    GraphError,
    LoweringError,
    RecordingError,
    StructureMismatch,
    UnsupportedOperator,
)
from .graph import SubGraph
from .leaves import Ref
from .match import Found, constants, contained, match
from .named import (
    PATTERNS,
    Pattern,
    create_add_layer_norm_pattern,
    create_add_rms_norm_pattern,
    create_bias_activation_pattern,
    create_causal_softmax_pattern,
    create_gated_rms_norm_pattern,
    create_geglu_pattern,
    create_gelu_pattern,
    create_interleaved_rope_pattern,
    create_layer_norm_pattern,
    create_min_p_pattern,
    create_qk_norm_rope_pattern,
    create_reglu_pattern,
    create_residual_scaling_pattern,
    create_rms_norm_add_pattern,
    create_rms_norm_pattern,
    create_rope_pattern,
    create_rotary_tables_pattern,
    create_router_scores_pattern,
    create_router_weights_pattern,
    create_soft_capping_pattern,
    create_softmax_pattern,
    create_state_space_decay_pattern,
    create_state_space_output_pattern,
    create_state_space_step_pattern,
    create_state_space_update_pattern,
    create_swiglu_pattern,
    create_top_k_pattern,
    create_top_p_pattern,
)
from .nodes import OpNode
from .python_nodes import NewObject, ObjectRead, OpaqueCall, TensorRead
from .recorded import GraphInput, RecordedGraph
from .reference import bind_symbols, run, run_fp64
from .specs import TensorSpec
from .verify import Verdict, accept, accept_all

__all__ = [
    "PATTERNS", "BackendUnavailable", "CompileError", "ConfigError", "Found", "FusionError", "GraphError", "GraphInput",
    "LoweringError", "NewObject", "ObjectRead", "OpNode", "OpaqueCall", "Pattern", "RecordedGraph", "RecordingError",
    "Ref", "StructureMismatch", "SubGraph", "TensorRead", "TensorSpec", "UnsupportedOperator", "Verdict", "accept",
    "accept_all", "bind_symbols", "constants", "contained", "create_add_layer_norm_pattern",
    "create_add_rms_norm_pattern", "create_bias_activation_pattern", "create_causal_softmax_pattern",
    "create_gated_rms_norm_pattern", "create_geglu_pattern", "create_gelu_pattern", "create_interleaved_rope_pattern",
    "create_layer_norm_pattern", "create_min_p_pattern", "create_qk_norm_rope_pattern", "create_reglu_pattern",
    "create_residual_scaling_pattern", "create_rms_norm_add_pattern", "create_rms_norm_pattern", "create_rope_pattern",
    "create_rotary_tables_pattern", "create_router_scores_pattern", "create_router_weights_pattern",
    "create_soft_capping_pattern", "create_softmax_pattern", "create_state_space_decay_pattern",
    "create_state_space_output_pattern", "create_state_space_step_pattern", "create_state_space_update_pattern",
    "create_swiglu_pattern", "create_top_k_pattern", "create_top_p_pattern", "match", "run", "run_fp64",
]  # fmt: skip
