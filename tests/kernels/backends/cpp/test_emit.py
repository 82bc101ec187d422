"""The emitted C++ as text: the same each time, and free of what users wrote."""

import hashlib
import os
import subprocess
import sys

import graphs
import pytest
import torch
from compiled_examples import needs_compiler
from cpp_nests import compiled, flat, load

from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.loops import Axis, LoopNest
from fusion.kernels.lower import lower
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import Constant, apply


@pytest.mark.slow
@needs_compiler
def test_source_is_deterministic_and_free_of_what_users_wrote():
    value = apply("exp", load())
    origin = ("aten.exp.default @ we*/ird\n#include.py:3 \\",)
    plain = flat("exp; drop", value, [torch.float32], torch.float32)
    marked = LoopNest(**{**{f: getattr(plain, f) for f in plain.__dataclass_fields__}, "origin": origin})
    assert cpp_emit.symbol(plain) == cpp_emit.symbol(marked)
    assert cpp_emit.symbol(plain).isidentifier()
    assert "// aten.exp.default @ we?/ird?include.py:3 ?\n" in cpp_emit.emit(marked).replace("??", "?")
    assert cpp_emit.code(plain) == cpp_emit.code(marked)
    assert compiled(plain, marked)[0].digest == compiled(plain, marked)[1].digest
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import graphs, hashlib\nfrom fusion.kernels.lower import lower\n"
        "from fusion.kernels.backends.cpp import emit as cpp\n"
        "e = graphs.EXAMPLES['rope']\n"
        "print(hashlib.sha256(cpp.translation_unit([lower(graphs.trace(e.fn, *e.inputs()))]).encode()).hexdigest())"
    )
    here = os.path.dirname(graphs.__file__)
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other}
    command = [sys.executable, "-c", script, here]
    theirs = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    rope = graphs.EXAMPLES["rope"]
    ours = cpp_emit.translation_unit([lower(graphs.trace(rope.fn, *rope.inputs()))])
    assert theirs == hashlib.sha256(ours.encode()).hexdigest()


def test_names_and_dtypes_without_a_place_in_cpp_are_refused():
    with pytest.raises(LoweringError, match="complex64"):
        cpp_emit.emit(flat("c", Constant(torch.float32, 1.0), [torch.complex64], torch.float32))
    nest = flat("n", load(), [torch.float32], torch.float32)
    fields = {f: getattr(nest, f) for f in nest.__dataclass_fields__}
    with pytest.raises(LoweringError, match="'x1'"):
        cpp_emit.emit(LoopNest(**{**fields, "rows": (Axis("x1", 1),)}))
