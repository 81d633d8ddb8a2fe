"""The project's CUDA kernels, compiled for the interpreter once for all tests."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.ptx import CompiledLibrary, Device, compile_cuda, require_nvcc

ROOT = Path(__file__).parents[1]
SOURCES = sorted(ROOT.glob("csrc/cuda/*.cu"))


@functools.cache
def library() -> CompiledLibrary:
    """All of csrc/cuda."""
    return compile_cuda(SOURCES, include=[ROOT / "csrc"])


LAUNCHED: set[str] = set()
"""Names of the kernels that any test has launched in this process."""


def interpreted() -> Device:
    """An interpreted device with the project's kernels; skips the test where nvcc is missing."""
    require_nvcc()
    return Device(library())


def call(device: Device, launcher: str, *arguments: object) -> None:
    """Calls a launcher that must succeed, and notes the kernels that it launched."""
    error = device.call(launcher, *arguments)
    LAUNCHED.update(device.launched)
    assert error == 0
