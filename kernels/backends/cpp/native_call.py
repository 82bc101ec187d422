"""Calls a compiled C++ kernel through ctypes. Needs torch only: a kernel's standalone script holds this very file."""

import ctypes

import torch

Form = tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]
_CODES = {torch.bool: 6, torch.bfloat16: 4, torch.uint8: 1}


class DLTensor(ctypes.Structure):
    """DLPack's tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def type_code(dtype: torch.dtype) -> int:
    """DLPack's code for the kind of number that `dtype` is."""
    return _CODES.get(dtype, 2 if dtype.is_floating_point else 0)


def describe(tensor: torch.Tensor) -> DLTensor:
    """A DLTensor of `tensor`, which must outlive it."""
    dims = ctypes.c_int64 * max(tensor.dim(), 1)
    code = type_code(tensor.dtype)
    device = 1 if tensor.device.type == "cpu" else 2
    return DLTensor(
        tensor.data_ptr(), device, 0, tensor.dim(), code, 8 * tensor.dtype.itemsize, 1,
        dims(*tensor.shape), dims(*tensor.stride()), 0,
    )  # fmt: skip


class NativeKernel:
    """A kernel of a loaded library.

    Args:
        library: path of the shared library.
        symbol: the kernel's C name.
        sizes: how many size symbols it has.
        outputs: dtype of each output, its dimensions from outermost to innermost in memory, and those of size 1 whose
            strides the kernel tells after the sizes.
    """

    def __init__(self, library: str, symbol: str, sizes: int, outputs: list[Form]) -> None:
        loaded = ctypes.CDLL(library)
        self._prepare = loaded[f"{symbol}_prepare"]
        self._prepare.restype = ctypes.c_int32
        self._run = loaded[f"{symbol}_run"]
        self._run.restype = ctypes.c_int32
        self._sizes = sizes
        self._outputs = outputs

    def __call__(self, inputs: list[torch.Tensor], given: list[int]) -> tuple[int, tuple[torch.Tensor, ...]]:
        """Runs the kernel.

        Returns:
            0 and the outputs, or the number (from 1) of the first input that does not fit and no outputs.

        Raises:
            MemoryError: there is no memory for what the kernel keeps while it runs.
        """
        sizes = (ctypes.c_int64 * max(self._sizes, 1))()
        shape = (ctypes.c_int64 * max(sum(len(order) + len(loose) for _, order, loose in self._outputs), 1))()
        described = (DLTensor * max(len(inputs), 1))(*map(describe, inputs))
        wrong = self._prepare(described, (ctypes.c_int64 * max(len(given), 1))(*given), sizes, shape)
        if wrong:
            return wrong, ()
        outputs = []
        at = 0
        for dtype, order, loose in self._outputs:
            dense = torch.empty(shape[at : at + len(order)], dtype=dtype)
            output = dense.permute([order.index(d) for d in range(len(order))])
            at += len(order)
            strides = list(output.stride())
            for dim in loose:
                strides[dim] = shape[at]
                at += 1
            outputs.append(output.as_strided(output.shape, strides))
        sources = (ctypes.c_void_p * max(len(inputs), 1))(*(t.data_ptr() for t in inputs))
        targets = (ctypes.c_void_p * max(len(outputs), 1))(*(t.data_ptr() for t in outputs))
        if self._run(sources, targets, sizes):
            raise MemoryError
        return 0, tuple(outputs)
