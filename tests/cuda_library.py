"""The project's CUDA kernels, compiled once for all tests, to be interpreted and read."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.launch_paths import LaunchShape
from tests.ptx import (
    H200,
    CompiledLibrary,
    Device,
    NvccNotFound,
    Properties,
    assemble,
    compile_cuda,
    find_nvcc,
    require_nvcc,
)
from tests.sass import Instruction, Resources, disassemble, read_resources

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))
_INCLUDE = [ROOT / "csrc"]
_FLAGS = ("-Werror", "all-warnings")


@functools.cache
def library(architecture: str = "compute_90") -> CompiledLibrary:
    """All of csrc/cuda."""
    return compile_cuda(SOURCES, _INCLUDE, _FLAGS, architecture)


@functools.cache
def resources(source: Path, architecture: str) -> list[Resources]:
    """What the kernels of one source need on one architecture."""
    return read_resources(assemble(source, _INCLUDE, _FLAGS, architecture))


@functools.lru_cache(maxsize=4)  # of all sources together they would take hundreds of megabytes
def machine_code(source: Path, architecture: str) -> dict[str, list[Instruction]]:
    """The instructions of one source's kernels."""
    return disassemble(assemble(source, _INCLUDE, _FLAGS, architecture))


def has_nvcc() -> bool:
    """Whether kernels can be compiled here."""
    try:
        find_nvcc()
    except NvccNotFound:
        return False
    return True


LAUNCHED: set[LaunchShape] = set()
"""How any test has launched which kernels in this process."""


def interpreted(properties: Properties = H200) -> Device:
    """An interpreted device with the project's kernels; skips the test where nvcc is missing.

    A device without clusters, such as A100, gets the kernels as compiled for it.
    """
    require_nvcc()
    architecture = f"compute_{properties.major}{properties.minor}"
    return Device(library(architecture), properties=properties)


def call(device: Device, launcher: str, *arguments: object) -> None:
    """Calls a launcher that must succeed, and notes the kernels that it launched."""
    error = device.call(launcher, *arguments)
    LAUNCHED.update(
        LaunchShape(kernel, device.library.architecture, block, cluster)
        for kernel, block, cluster in device.shapes
    )
    assert error == 0
