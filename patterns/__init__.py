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
from .graph import GraphInput, IslandNode, OpNode, RecordedGraph, Ref, SubGraph, TensorSpec
from .match import Found, constants, contained, match
from .named import (
    PATTERNS,
    Pattern,
    create_add_rms_norm_pattern,
    create_geglu_pattern,
    create_qk_norm_rope_pattern,
    create_rms_norm_pattern,
    create_rope_pattern,
    create_softmax_pattern,
    create_swiglu_pattern,
)
from .reference import bind_symbols, run, run_fp64
from .verify import Verdict, accept, accept_all

__all__ = [
    "PATTERNS", "BackendUnavailable", "CompileError", "ConfigError", "Found", "FusionError", "GraphError",
    "GraphInput", "IslandNode", "LoweringError", "OpNode", "Pattern", "RecordedGraph", "RecordingError", "Ref",
    "StructureMismatch", "SubGraph", "TensorSpec", "UnsupportedOperator", "Verdict", "accept", "accept_all",
    "bind_symbols", "constants", "contained", "create_add_rms_norm_pattern", "create_geglu_pattern",
    "create_qk_norm_rope_pattern", "create_rms_norm_pattern", "create_rope_pattern", "create_softmax_pattern",
    "create_swiglu_pattern", "match", "run", "run_fp64",
]  # fmt: skip
