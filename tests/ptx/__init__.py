"""Executes CUDA kernels without a GPU: nvcc's PTX in numpy, launched by the real host code.

    library = compile_cuda([Path("csrc/cuda/dropout.cu")], include=[Path("csrc")])
    device = Device(library)
    pointer = device.register(array)
    device.call("regops_dropout_cuda", pointer, ctypes.c_int64(array.size))

Every access is checked (bounds, alignment, initialised, races) and so is every barrier and warp-
wide instruction; a defect raises DeviceError with its line. It does not show speed, occupancy, the
error of approximate functions, or what ptxas makes of the PTX.
"""

from .compile import (
    CompiledLibrary,
    CompileError,
    NvccNotFound,
    compile_cuda,
    find_nvcc,
    require_nvcc,
)
from .errors import DeviceError, ParseError
from .runtime import Device

__all__ = [
    "CompileError",
    "CompiledLibrary",
    "Device",
    "DeviceError",
    "NvccNotFound",
    "ParseError",
    "compile_cuda",
    "find_nvcc",
    "require_nvcc",
]
