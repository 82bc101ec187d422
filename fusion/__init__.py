"""opfusion: automatic operator fusion for PyTorch inference.

import fusion
fusion.enable(model)          # the same model: recorded on first calls, then dispatched to proved kernels
print(fusion.report(model))   # what was fused, what was not, and why
"""

from __future__ import annotations

from fusion.api import (
    Recording,
    disable,
    enable,
    fuse,
    kernels_in_use,
    record,
    register_island,
    register_made,
    register_op,
    report,
    start_recording,
    stop_recording,
    wait,
    warmup,
)
from fusion.choices.decision import Decision
from fusion.choices.heuristics import FusionHeuristics
from fusion.config import FusionConfig
from fusion.integrations.growing_cache import growing_cache
from fusion.patterns import (
    OpNode,
    RecordedGraph,
    SubGraph,
    create_add_rms_norm_pattern,
    create_swiglu_pattern,
)
from fusion.patterns.errors import (
    BackendUnavailable,
    CompileError,
    ConfigError,
    FusionError,
    GraphError,
    RecordingError,
    StructureMismatch,
    UnsupportedOperator,
)
from fusion.reporting.model import FusionReport
from fusion.scheduler import FusionScheduler

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable", "CompileError", "ConfigError", "Decision", "FusionConfig", "FusionError",
    "FusionHeuristics", "FusionReport", "FusionScheduler", "GraphError", "OpNode", "RecordedGraph", "Recording",
    "RecordingError", "StructureMismatch", "SubGraph", "UnsupportedOperator", "create_add_rms_norm_pattern",
    "create_swiglu_pattern", "disable", "enable", "fuse", "growing_cache", "kernels_in_use", "record",
    "register_island", "register_made", "register_op", "report", "start_recording", "stop_recording", "wait", "warmup",
]  # fmt: skip
