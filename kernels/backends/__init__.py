"""The backends of this package, each registered by a line."""

from fusion.kernels.backend import register
from fusion.kernels.backends.cpp.backend import CppBackend
from fusion.kernels.backends.triton.backend import TritonBackend

register(CppBackend())
register(TritonBackend())
