"""Machine code as text: nvdisasm's, parsed into instructions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from tests.ptx import MachineCode

from .names import readable

# nvdisasm comes with the CUDA toolkit; those that come in wheels leave it to a package of its own.
PACKAGE = "nvidia-cuda-nvdisasm"
_KERNEL = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_x_\d+):$")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"(?P<operands>[^;]*);"
)


class NvdisasmNotFound(Exception):  # noqa: N818
    """There is no nvdisasm on this machine."""


class Instruction(NamedTuple):
    """One instruction.

    `guard` is the predicate under which it runs, or empty; `target` is where a branch leads.
    """

    address: int
    guard: str
    opcode: str
    operands: str
    target: int | None = None

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]


def find_nvdisasm() -> Path:
    """$CUDA_HOME/bin/nvdisasm, else nvdisasm on PATH, else the package's.

    Raises:
        NvdisasmNotFound: there is none.
    """
    if (home := os.environ.get("CUDA_HOME")) and (Path(home) / "bin" / "nvdisasm").is_file():
        return Path(home) / "bin" / "nvdisasm"
    if on_path := shutil.which("nvdisasm"):
        return Path(on_path)
    try:
        files = metadata.files(PACKAGE) or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == "nvdisasm":
            return Path(str(file.locate()))
    raise NvdisasmNotFound(f"no nvdisasm in $CUDA_HOME/bin or on PATH, nor the package {PACKAGE}")


def require_nvdisasm() -> None:
    """Skips the calling test where nvdisasm is missing."""
    import pytest

    try:
        find_nvdisasm()
    except NvdisasmNotFound as reason:
        pytest.skip(f"machine code cannot be read here: {reason}")


def disassemble(code: MachineCode) -> dict[str, list[Instruction]]:
    """The instructions of each kernel.

    Raises:
        NvdisasmNotFound: there is none.
    """
    text = subprocess.run(
        [find_nvdisasm(), "--print-code", code.cubin], capture_output=True, text=True, check=True
    ).stdout
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    labels: dict[str, int] = {}
    pending: list[str] = []  # labels of the next instruction
    for line in text.splitlines():
        if kernel := _KERNEL.match(line):
            current = kernels.setdefault(kernel[1], [])
        elif label := _LABEL.match(line):
            pending.append(label[1])
        elif match := _INSTRUCTION.match(line):
            address, guard = int(match["address"], 16), match["guard"] or ""
            labels.update(dict.fromkeys(pending, address))
            pending.clear()
            current.append(Instruction(address, guard, match["opcode"], match["operands"].strip()))
    names = readable(kernels)
    return {names[kernel]: _with_targets(found, labels) for kernel, found in kernels.items()}


def _with_targets(found: list[Instruction], labels: dict[str, int]) -> list[Instruction]:
    # A label stands after the branches that lead forward to it.
    return [
        each._replace(target=labels[label[1]])
        if each.name in ("BRA", "BSSY") and (label := _TARGET.search(each.operands))
        else each
        for each in found
    ]
