"""Compiling, caching and running kernels; the toolchain; standalone scripts."""

import dataclasses
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import graphs
import pytest
from compiled_examples import NAMES, needs_compiler, nests, works

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.cpp import toolchain as toolchain_module
from fusion.kernels.backends.cpp.toolchain import compile_c_extension, find_toolchain, openmp_runtime, why_missing
from fusion.kernels.store import Store
from fusion.patterns.errors import BackendUnavailable, CompileError

pytestmark = pytest.mark.slow


@needs_compiler
def test_missing_kernels_are_compiled_to_one_library_and_found_again(tmp_path):
    store = Store(tmp_path / "cache")
    cold = cpp_compile.compile_cpp(nests(), store)
    assert len({k.library for k in cold}) == 1
    assert len({k.digest for k in cold}) == 4
    assert all(not k.from_cache and k.compile_seconds > 0 for k in cold)
    assert Path(cold[0].library).is_relative_to(tmp_path)
    warm = cpp_compile.compile_cpp(nests(), Store(tmp_path / "cache"))
    assert all(k.from_cache and k.compile_seconds == 0 for k in warm)
    assert [k.library for k in warm] == [k.library for k in cold]
    for kernel, name in zip(warm, NAMES, strict=True):
        works(kernel, name)
        assert (kernel.name, kernel.target, kernel.symbol in kernel.source) == (kernel.nest.name, "cpp", True)


@pytest.mark.parametrize("processors", [1, 2, 3, 64])
def test_units_hold_each_kernel_once_and_share_the_work(processors, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    some = nests()
    units = cpp_compile._units(some, shared=False)
    assert len(units) == min(processors, len(some))
    for nest in some:
        assert sum(cpp_emit.code(nest) in unit for unit in units) == 1
    lengths = [sum(len(cpp_emit.code(nest)) for nest in some if cpp_emit.code(nest) in unit) for unit in units]
    assert max(lengths) - min(lengths) <= max(len(cpp_emit.code(nest)) for nest in some)


@needs_compiler
@pytest.mark.parametrize("processors", [1, 2])
def test_kernels_do_the_same_in_however_many_units(processors, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    for kernel, name in zip(cpp_compile.compile_cpp(nests(), None), NAMES, strict=True):
        works(kernel, name)


@needs_compiler
def test_only_what_is_missing_is_compiled(tmp_path):
    store = Store(tmp_path / "cache")
    cpp_compile.compile_cpp(nests(("swiglu",)), store)
    made = cpp_compile.compile_cpp(nests(("swiglu", "rms_norm", "swiglu")), store)
    assert [k.from_cache for k in made] == [True, False, True]
    assert made[0].library != made[1].library


@needs_compiler
def test_four_kernels_compile_in_well_under_a_second_unless_the_machine_is_busy(tmp_path):
    toolchain = find_toolchain()
    began = time.process_time() + sum(os.times()[2:4])
    cpp_compile.compile_cpp(nests(), None, dataclasses.replace(toolchain, cpu="other"))
    seconds = time.process_time() + sum(os.times()[2:4]) - began  # of processor time, children included
    assert seconds < 2.0  # four times what it takes here: a guard against a header or an unrolling gone wild


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path):
    store = Store(tmp_path / "cache")
    (kernel,) = cpp_compile.compile_cpp(nests(("swiglu",)), store)
    Path(kernel.library).write_bytes(b"\x7fELF no more")
    (again,) = cpp_compile.compile_cpp(nests(("swiglu",)), store)
    assert not again.from_cache
    works(again, "swiglu")


@needs_compiler
def test_without_a_store_or_with_a_broken_one_kernels_still_run(tmp_path):
    (tmp_path / "file").write_text("")
    for store in (None, Store(tmp_path / "file" / "cache")):
        (kernel,) = cpp_compile.compile_cpp(nests(("rope",)), store)
        assert not kernel.from_cache
        works(kernel, "rope")


@needs_compiler
def test_the_digest_covers_flags_compiler_and_processor():
    toolchain = find_toolchain()
    others = [
        dataclasses.replace(toolchain, flags=(*toolchain.flags, "-O2")),
        dataclasses.replace(toolchain, version="g++ 99"),
        dataclasses.replace(toolchain, cpu="another"),
        dataclasses.replace(toolchain, runtime="/lib/libother.so"),
    ]
    assert len({t.identity for t in (toolchain, *others)}) == 5
    (nest,) = nests(("swiglu",))
    assert cpp_compile._digest(nest, toolchain) != cpp_compile._digest(nest, others[0])


@needs_compiler
@pytest.mark.parametrize("name", ["swiglu", "qk_norm_rope", "masked_fill"])
def test_a_script_runs_alone(tmp_path, name):
    (kernel,) = cpp_compile.compile_cpp(nests((name,)), None)
    path = tmp_path / "kernel.py"
    path.write_text(kernel.to_script())
    code = "import sys, runpy; sys.modules['fusion'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "o0: torch.float32" in done.stdout
    assert f"{kernel.symbol}: " in done.stdout


def test_no_compiler_is_an_error_that_names_the_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert find_toolchain() is None
    assert "apt install g++" in why_missing()
    with pytest.raises(BackendUnavailable, match=r"no-such-compiler.*apt install g\+\+"):
        cpp_compile.compile_cpp(nests(("swiglu",)), None)


@needs_compiler
def test_cxx_is_asked_first(monkeypatch, tmp_path):
    real = find_toolchain().command[0]
    monkeypatch.setenv("CXX", f"{real} -DMARK=1")
    assert find_toolchain().command == (real, "-DMARK=1")
    assert why_missing() == ""


@needs_compiler
def test_a_c_extension_is_built_and_imported(tmp_path):
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        pytest.skip("no Python.h")
    source = tmp_path / "tiny.c"
    source.write_text(
        "#include <Python.h>\n"
        "static PyObject* answer(PyObject* self, PyObject* none) { return PyLong_FromLong(42); }\n"
        'static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};\n'
        'static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny", 0, -1, methods};\n'
        "PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&module); }\n"
    )
    compile_c_extension(source, tmp_path / "tiny.so")
    done = subprocess.run(
        [sys.executable, "-c", "import tiny; print(tiny.answer())"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "42\n", done.stderr
    source.write_text("#error broken\n")
    with pytest.raises(CompileError, match="#error broken"):
        compile_c_extension(source, tmp_path / "broken.so")


def test_no_python_headers_is_an_error_that_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain_module.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(CompileError, match="python3-dev"):
        compile_c_extension(tmp_path / "x.c", tmp_path / "x.so")


@needs_compiler
def test_threads_are_torchs_own():
    assert openmp_runtime()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import graphs, os, re, torch\nfrom fusion.kernels.backends.cpp import compile as compiler\n"
        "from fusion.kernels.lower import lower\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "def runtimes():\n"
        "    files = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "    return {f for f in files if re.match('lib(g|i)?omp', os.path.basename(f))}\n"
        "torch.set_num_threads(3)\n"
        "x = torch.randn(512, 4096); (x * x).sum(); before = threads(), runtimes()\n"
        "k, = compiler.compile_cpp([lower(graphs.trace(graphs.swiglu, x, x))], None)\n"
        "assert 'parallel' in k.source\n"
        "compiler.run_ctypes(k, (x, x))\n"
        "assert (threads(), runtimes()) == before, (threads(), runtimes(), before)\n"
        "print(threads())"
    )
    here = os.path.dirname(graphs.__file__)
    done = subprocess.run([sys.executable, "-c", script, here], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


@needs_compiler
def test_a_compile_error_carries_the_compilers_words(tmp_path):
    with pytest.raises(CompileError, match=r"error: .*nonsense"):
        find_toolchain().compile_library(("int f() { return nonsense; }",), tmp_path / "x.so")


@needs_compiler
def test_one_unit_in_error_is_an_error_whatever_the_others_are(tmp_path):
    good, bad = 'extern "C" int g() { return 1; }', "int f() { return nonsense; }"
    for units in ((good, bad), (bad, good)):
        with pytest.raises(CompileError, match=r"error: .*nonsense"):
            find_toolchain().compile_library(units, tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()
