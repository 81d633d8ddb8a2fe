"""Every CUDA source compiles without warning for each architecture; no kernel spills registers."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ptx import require_nvcc

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
SPILLING = ROOT / "tests" / "ptx" / "samples" / "spill.cu"
ARCHITECTURES = ["sm_80", "sm_90", "sm_100"]
# What ptxas -v prints for each kernel.
_REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.S,
)


@dataclass(frozen=True)
class Resources:
    """What a kernel needs on one architecture."""

    kernel: str
    registers: int
    stack: int
    spill: int

    def __str__(self) -> str:
        numbers = f"{self.registers:4} registers {self.stack:5} stack {self.spill:5} spilled"
        return f"{numbers}  {self.kernel}"


def build(source: Path, architecture: str, output: Path) -> list[Resources]:
    """Compiles a source to machine code; a warning is an error."""
    command = [require_nvcc(), "-O3", "-std=c++17", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += [f"-arch={architecture}", f"-I{ROOT / 'csrc'}", "-cubin", source, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        Resources(
            match["kernel"],
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )
        for match in _REPORT.finditer(done.stderr)
    ]


def check(resources: list[Resources]) -> None:
    """Fails if a kernel keeps values in local memory, which is device memory and slow."""
    wasteful = [str(each) for each in resources if each.stack or each.spill]
    assert not wasteful, "\n".join(["kernels with local memory:", *wasteful])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels_stay_in_registers(source, architecture, tmp_path, record_property):
    resources = build(source, architecture, tmp_path / "kernels.cubin")
    print(f"\n{source.name} {architecture}", *resources, sep="\n")
    for each in resources:
        record_property(f"{architecture} {each.kernel}", f"{each.registers} registers")
    assert resources, f"no kernel found in {source.name}"
    check(resources)


def test_spill_is_noticed(tmp_path):
    spilling, lean = sorted(build(SPILLING, "sm_90", tmp_path / "a.cubin"), key=lambda r: -r.spill)
    assert "spilling" in spilling.kernel
    assert spilling.spill > 0
    with pytest.raises(AssertionError, match=r"spilled  \w*spilling"):
        check([lean, spilling])
    assert lean.registers > 0
    check([lean])


def test_warning_is_an_error(tmp_path):
    source = tmp_path / "unused.cu"
    source.write_text("__global__ void k(int* out) { int unused; out[0] = 1; }\n")
    with pytest.raises(AssertionError, match="unused"):
        build(source, "sm_90", tmp_path / "a.cubin")
