"""The project's CUDA kernels, compiled for the interpreter once for all tests."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.ptx import (
    H200,
    CompiledLibrary,
    Device,
    NvccNotFound,
    Properties,
    compile_cuda,
    find_nvcc,
    require_nvcc,
)

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))


@functools.cache
def library(architecture: str = "compute_90") -> CompiledLibrary:
    """All of csrc/cuda."""
    return compile_cuda(SOURCES, include=[ROOT / "csrc"], architecture=architecture)


def has_nvcc() -> bool:
    """Whether kernels can be compiled here."""
    try:
        find_nvcc()
    except NvccNotFound:
        return False
    return True


LAUNCHED: set[str] = set()
"""Names of the kernels that any test has launched in this process."""


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
    LAUNCHED.update(device.launched)
    assert error == 0
