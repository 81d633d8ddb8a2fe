"""Reads what ptxas made of CUDA kernels: what they need, and their machine code (SASS).

    code = assemble(Path("csrc/cuda/dropout.cu"), include=[Path("csrc")], architecture="sm_90")
    for kernel in read_resources(code):
        print(kernel.name, kernel.registers, kernel.occupancy)
    for name, instructions in disassemble(code).items():
        print(name, sum(each.name == "LDG" for each in instructions))

Kernels are named as in their source, template arguments included.
"""

from .disassembly import Instruction, disassemble, require_nvdisasm
from .issue import bytes_per_second
from .names import readable, template_of
from .paths import philox_products, random_path, straight_path
from .resources import ARCHITECTURES, MOST_THREADS, Resources, read_resources

__all__ = [
    "ARCHITECTURES",
    "MOST_THREADS",
    "Instruction",
    "Resources",
    "bytes_per_second",
    "disassemble",
    "philox_products",
    "random_path",
    "read_resources",
    "readable",
    "require_nvdisasm",
    "straight_path",
    "template_of",
]
