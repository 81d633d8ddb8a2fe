"""Machine code: 16-byte accesses, no local memory, the budget of instructions for random numbers.

SASS is what a GPU runs. The interpreter runs PTX, from which ptxas makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_library import ROOT, SOURCES, machine_code
from tests.cuda_limits import Limit, limit_of
from tests.ptx import H200, assemble, require_nvcc
from tests.sass import (
    ARCHITECTURES,
    Instruction,
    bytes_per_second,
    disassemble,
    loops,
    require_nvdisasm,
    straight_path,
)

SAMPLES = ROOT / "tests" / "ptx" / "samples"
EVERY_SOURCE = pytest.mark.parametrize(
    ("source", "architecture"),
    [
        pytest.param(source, architecture, id=f"{source.name}-{architecture}")
        for source in SOURCES
        for architecture in ARCHITECTURES
    ],
)


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_nvcc()
    require_nvdisasm()


# ---- memory --------------------------------------------------------------------------------------


def local_accesses(code: Sequence[Instruction]) -> list[str]:
    """Loads and stores of local memory, which is device memory and slow."""
    return [each.opcode for each in code if each.name in ("LDL", "STL")]


def wide_accesses(code: Sequence[Instruction], name: str) -> int:
    """Loads (LDG) or stores (STG) of 16 bytes in global memory."""
    return sum(each.name == name and ".128" in each.opcode for each in code)


def check_accesses(kernel: str, code: Sequence[Instruction], limit: Limit) -> None:
    """Fails if the main path does not move 16 bytes at a time."""
    assert wide_accesses(code, "LDG") >= limit.loads, f"{kernel} loads less than 16 bytes"
    assert wide_accesses(code, "STG") >= limit.stores, f"{kernel} stores less than 16 bytes"


@EVERY_SOURCE
def test_kernels_use_memory_well(source: Path, architecture: str) -> None:
    kernels = machine_code(source, architecture)
    assert bool(kernels) == ("__global__" in source.read_text())
    for name, code in kernels.items():
        assert not local_accesses(code), name
        limit = limit_of(name)
        if int(architecture.removeprefix("sm_")) >= limit.first:
            check_accesses(name, code, limit)
        else:
            assert len(straight_path(code)) < 8, f"{name} is not empty"


def test_local_memory_is_noticed() -> None:
    kernels = disassemble(assemble(SAMPLES / "spill.cu"))
    (spilling,) = (code for name, code in kernels.items() if "spilling" in name)
    (lean,) = (code for name, code in kernels.items() if "lean" in name)
    assert {opcode[:3] for opcode in local_accesses(spilling)} == {"LDL", "STL"}
    assert not local_accesses(lean)


def test_narrow_accesses_are_noticed(tmp_path: Path) -> None:
    source = tmp_path / "copies.cu"
    source.write_text(
        "__global__ void wide(const float4* from, float4* to) { to[threadIdx.x] ="
        " from[threadIdx.x]; }\n"
        "__global__ void narrow(const float4* from, float* to) {\n"
        "  const float4 x = from[threadIdx.x];\n"
        "  to += 4 * threadIdx.x;\n"
        "  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;\n"
        "}\n"
    )
    kernels = disassemble(assemble(source))
    limit = Limit(".*", 0, 1, 1, "a copy")
    check_accesses("wide", kernels["wide"], limit)
    with pytest.raises(AssertionError, match="narrow stores less"):
        check_accesses("narrow", kernels["narrow"], limit)


# ---- random numbers ------------------------------------------------------------------------------

# Multipliers of Philox4x32, as nvdisasm writes them. They stand in no other product.
_MULTIPLIERS = ("-0x2daee0ad", "-0x326172a9")
# What a device copies, reads and writes counted: 90 % of an H200's 4.8 TB/s, as others measured it.
COPY_BYTES_PER_SECOND = 4.3e12


@dataclass(frozen=True)
class Budget:
    """A main path that makes random numbers, and the most that it may take.

    `blocks` are those of 128 random bits that a thread makes on it, each for `elements` elements.
    """

    source: str
    kernel: str
    blocks: int
    elements: int
    instructions: int  # a block

    def path(self) -> list[Instruction]:
        """The loop with the most products, or the whole of a kernel without loops."""
        code = machine_code(ROOT / "csrc" / "cuda" / self.source, "sm_90")[self.kernel]
        return max(loops(code), key=products, default=None) or straight_path(code)


def products(path: Sequence[Instruction]) -> int:
    """Multiplications of Philox rounds."""
    return sum(
        each.name == "IMAD" and any(word in each.operands for word in _MULTIPLIERS) for each in path
    )


# Beside the rounds, dropout compares, selects, scales and converts. DropConnect's products also
# multiply, and load what they multiply with.
DROPOUT = (
    Budget("dropout.cu", "dropout_run<__half, 8, RuleOfHost<false>>", 4, 8, 128),
    Budget("dropout.cu", "dropout_run<__nv_bfloat16, 8, RuleOfHost<false>>", 4, 8, 132),
    Budget("dropout.cu", "dropout_run<float, 4, RuleOfHost<false>>", 4, 4, 106),
    Budget("dropout.cu", "dropout_run<double, 2, RuleOfHost<false>>", 4, 2, 102),
    Budget("dropout.cu", "dropout_run<__half, 8, RuleOfHost<true>>", 8, 4, 81),
    Budget("dropout.cu", "dropout_run<__nv_bfloat16, 8, RuleOfHost<true>>", 8, 4, 83),
    Budget("dropout.cu", "dropout_run<float, 4, RuleOfHost<true>>", 8, 2, 72),
    Budget("dropout.cu", "dropout_run<double, 2, RuleOfHost<true>>", 8, 1, 70),
)
DROPCONNECT = (
    Budget("dropconnect_mma_output.cu", "mma_output<__nv_bfloat16, 1, false>", 8, 8, 76),
    Budget("dropconnect_mma_output.cu", "mma_output<__nv_bfloat16, 8, false>", 8, 8, 88),
    Budget("dropconnect_mma_grad_input.cu", "mma_grad_input<__nv_bfloat16, 1, false>", 4, 8, 79),
    Budget("dropconnect_mma_grad_input.cu", "mma_grad_input<__nv_bfloat16, 4, false>", 4, 8, 89),
    Budget("dropconnect_linear_output.cu", "sum_products<float, (Masks)1, true, 4, 4>", 16, 8, 81),
)


@pytest.mark.parametrize("budget", [*DROPOUT, *DROPCONNECT], ids=lambda budget: budget.kernel)
def test_random_numbers_keep_to_their_budget(budget: Budget) -> None:
    path = budget.path()
    # Ten rounds of two, in one instruction each; 2.5 an element where 8 share a block.
    assert products(path) <= 20 * budget.blocks
    assert len(path) <= budget.instructions * budget.blocks


@pytest.mark.parametrize("budget", DROPOUT, ids=lambda budget: budget.kernel)
def test_instructions_would_hide_behind_memory(budget: Budget) -> None:
    """By counting: no resource of an H200 bounds dropout to less than 1.3 times a copy."""
    path = budget.path()
    wide = [each for each in path if each.opcode.startswith(("LDG.E.128", "STG.E.128"))]
    bounds = bytes_per_second(path, 16 * len(wide), H200)
    assert min(bounds.values()) >= 1.3 * COPY_BYTES_PER_SECOND, bounds
