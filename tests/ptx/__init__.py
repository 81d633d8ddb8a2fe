"""Executes CUDA kernels without a GPU: nvcc's PTX in numpy, launched by the real host code.

    library = compile_cuda([Path("csrc/cuda/dropout.cu")], include=[Path("csrc")])
    device = Device(library)
    pointer = device.register(array)
    device.call("regops_dropout_cuda", pointer, ctypes.c_int64(array.size))

Every access is checked (bounds, alignment, initialised, races) and so is every barrier and
warp-wide instruction; a defect raises DeviceError with its line. What is not known raises
ParseError when its kernel is launched: asynchronous copies, mbarriers, clocks, calls that are not
inlined, tensor cores but for mma.sync of 16-bit floats in its shape m16n8k16.

Devices are an H200 unless said otherwise; an older one gets PTX of its own:

    library = compile_cuda(sources, architecture="compute_80")
    device = Device(library, properties=A100)

Not shown: speed, occupancy, the error of approximate functions (computed in float64 here) and of
tensor cores' sums, the order of memory accesses between blocks beyond fences and cluster barriers,
and what ptxas makes of the PTX: it may fuse an `add.f32` and a `mul.f32` that carry no `.rn`.
"""

from .compile import (
    CompiledLibrary,
    CompileError,
    MachineCode,
    NvccNotFound,
    assemble,
    compile_cuda,
    compile_host_library,
    find_nvcc,
    require_nvcc,
)
from .errors import DeviceError, ParseError
from .runtime import A100, H200, Device, Properties

__all__ = [
    "A100",
    "H200",
    "CompileError",
    "CompiledLibrary",
    "Device",
    "DeviceError",
    "MachineCode",
    "NvccNotFound",
    "ParseError",
    "Properties",
    "assemble",
    "compile_cuda",
    "compile_host_library",
    "find_nvcc",
    "require_nvcc",
]
