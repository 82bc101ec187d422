"""Launchers: the C one against ctypes and eager, its outputs, its errors, and that it leaks nothing."""

from __future__ import annotations

import functools
import resource
import threading

import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, trace

from fusion.kernels.backend import backend_named
from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp, run_ctypes
from fusion.kernels.backends.cpp.launch import CtypesLauncher
from fusion.kernels.backends.cpp.toolchain import find_toolchain, why_missing
from fusion.kernels.backends.triton import launch as triton_launch
from fusion.kernels.lower import lower
from fusion.patterns.errors import StructureMismatch
from fusion.runtime import launch, native
from fusion.runtime.launch import make_launcher

if find_toolchain() is None:
    pytest.skip(why_missing(), allow_module_level=True)


@functools.cache
def kernels() -> dict[str, CompiledKernel]:
    """The examples with a free size, all compiled as one unit."""
    nests = {name: lower(trace(example.fn, *example.inputs(), dynamic=DYNAMIC)) for name, example in EXAMPLES.items()}
    return dict(zip(nests, compile_cpp(list(nests.values()), None), strict=True))


def both(kernel: CompiledKernel) -> list[launch.Launcher]:
    module = native.load_native()
    if module is None:
        pytest.skip(str(native.native_available()))
    fast = make_launcher(kernel)
    assert isinstance(fast, module.Launcher)
    return [fast, CtypesLauncher(kernel)]


def listed(result: object) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("length", [7, 13])
@pytest.mark.parametrize("name", EXAMPLES)
def test_c_and_ctypes_agree_bit_for_bit(name: str, length: int) -> None:
    kernel, inputs = kernels()[name], EXAMPLES[name].inputs(length=length)
    given = [length] * CtypesLauncher(kernel).given
    eager = listed(EXAMPLES[name].fn(*inputs))
    wanted = run_ctypes(kernel, inputs, given)
    for launcher in both(kernel):
        made = listed(launcher(*inputs, *given))
        assert len(made) == len(wanted) == len(eager)
        for have, want, reference in zip(made, wanted, eager, strict=True):
            assert torch.equal(have, want)
            assert (have.dtype, have.shape, have.stride()) == (want.dtype, want.shape, want.stride())
            assert (have.shape, have.stride()) == (reference.shape, reference.stride())


def swish(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def compiled(fn, *inputs: torch.Tensor) -> CompiledKernel:
    return compile_cpp([lower(trace(fn, *inputs, dynamic=DYNAMIC))], None)[0]


def test_a_permuted_output_has_the_strides_of_eager() -> None:
    inputs = [torch.randn(7, 3, 5).permute(2, 0, 1) for _ in range(2)]
    kernel = compiled(swish, *inputs)
    assert kernel.nest.outputs[0].order != (0, 1, 2)
    for launcher in both(kernel):
        made = launcher(*inputs)
        assert made.stride() == swish(*inputs).stride()
        torch.testing.assert_close(made, swish(*inputs))
        assert made.untyped_storage().nbytes() == made.numel() * 4
        assert made.storage_offset() == 0


def test_outputs_are_plain_tensors_of_the_mode_they_are_made_in() -> None:
    inputs = [torch.randn(7, 8, requires_grad=True) for _ in range(2)]
    for launcher in both(compiled(swish, *(x.detach() for x in inputs))):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                made = launcher(*inputs)
                assert type(made) is torch.Tensor
                assert made.is_inference() == torch.empty(1).is_inference()
                assert not made.requires_grad and made.grad_fn is None
                made.add_(1)  # writable
                torch.testing.assert_close(made - 1, swish(*inputs))


def test_no_elements() -> None:
    inputs = [torch.randn(7, 8) for _ in range(2)]
    for launcher in both(compiled(swish, *inputs)):
        made = launcher(torch.empty(0, 8), torch.empty(0, 8))
        assert (made.shape, made.stride()) == ((0, 8), torch.empty(0, 8).stride())


def test_an_input_may_start_inside_its_storage() -> None:
    whole = torch.randn(2, 30, 8)
    inputs = [whole[0, 3:10], whole[1, 20:27]]
    assert inputs[0].storage_offset()
    for launcher in both(compiled(swish, *(x.clone() for x in inputs))):
        torch.testing.assert_close(launcher(*inputs), swish(*inputs))


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(7, 9),
        torch.zeros(8, 7).t(),
        torch.zeros(7, 8, dtype=torch.float64),
        torch.zeros(7),
        torch.zeros(7, 8, device="meta"),
        torch.zeros(7, 8).to_sparse(),
        torch.zeros(7, 8).as_subclass(Named),
        torch._neg_view(torch.zeros(7, 8)),
        torch._efficientzerotensor(7, 8),
        None,
        3,
    ],
    ids=str,
)
def test_a_wrong_input_is_named(wrong: object) -> None:
    right = torch.zeros(7, 8)
    for launcher in both(compiled(swish, right, right.clone())):
        with pytest.raises(StructureMismatch, match=r"input a1 of the kernel"):
            launcher(right, wrong)
        with pytest.raises(StructureMismatch, match="2 tensors"):
            launcher(right)
        launcher(right, right)


def test_sizes_that_no_input_shows_are_given() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 7)

    x = torch.randn(3, 8)
    kernel = compiled(scaled, x)
    assert [s.source for s in kernel.nest.sizes] == ["given"]
    for launcher in both(kernel):
        assert torch.equal(launcher(x, 7), x * 7)
        assert torch.equal(launcher(x, 12), x * 12)
        with pytest.raises(StructureMismatch, match="1 integers"):
            launcher(x)
        with pytest.raises(TypeError):
            launcher(x, "7")


def test_nothing_leaks_in_a_hundred_thousand_calls() -> None:
    kernel, inputs = kernels()["add_rms_norm"], EXAMPLES["add_rms_norm"].inputs()
    fast, _ = both(kernel)

    def resident() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    for _ in range(2000):
        fast(*inputs)
    before = resident()
    for _ in range(100_000):
        fast(*inputs)
    # One leaked object a call, of the smallest size there is, would be 100 000 * 16 bytes.
    assert resident() - before < 1_600_000


def test_threads_may_share_a_launcher() -> None:
    inputs = [torch.randn(7, 40_000) for _ in range(2)]  # large enough for the GIL to be released
    fast, _ = both(compiled(swish, *inputs))
    wanted = fast(*inputs)
    results: list[bool] = []

    def work() -> None:
        results.extend(torch.equal(fast(*inputs), wanted) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_without_the_extension_ctypes_runs_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "load_native", lambda: None)
    inputs = [torch.randn(7, 8) for _ in range(2)]
    launcher = make_launcher(compiled(swish, *inputs))
    assert isinstance(launcher, CtypesLauncher)
    torch.testing.assert_close(launcher(*inputs), swish(*inputs))


def test_a_kernel_goes_to_the_backend_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = backend_named("triton")
    nest = kernels()["swiglu"].nest
    (kernel,) = triton.compile([(nest, triton.schedules(nest)[0])], None)
    monkeypatch.setattr(triton_launch, "make_cuda_launcher", lambda nest, schedule: (nest, schedule))
    assert make_launcher(kernel) == (nest, kernel.schedule)
