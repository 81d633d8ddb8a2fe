"""Machine code: 16-byte accesses, no local memory, the budget of instructions for random numbers.

SASS is what a GPU runs. The interpreter runs PTX, from which ptxas makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cuda_library import ROOT, SOURCES, machine_code, resources
from tests.cuda_limits import DROPCONNECT, DROPOUT, Budget, Limit, limit_of
from tests.ptx import H200, assemble, require_nvcc
from tests.sass import (
    ARCHITECTURES,
    Instruction,
    bytes_per_second,
    disassemble,
    philox_products,
    random_path,
    require_nvdisasm,
    straight_path,
    template_of,
)
from tools import cuda_resources

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

# What a device copies, reads and writes counted: 90 % of an H200's 4.8 TB/s, as others measured it.
COPY_BYTES_PER_SECOND = 4.3e12


def path_of(budget: Budget) -> list[Instruction]:
    """The instructions that the budget is of."""
    return random_path(machine_code(ROOT / "csrc" / "cuda" / budget.source, "sm_90")[budget.kernel])


@pytest.mark.parametrize("budget", [*DROPOUT, *DROPCONNECT], ids=lambda budget: budget.kernel)
def test_random_numbers_keep_to_their_budget(budget: Budget) -> None:
    path = path_of(budget)
    # Ten rounds of two, in one instruction each; 2.5 an element where 8 share a block.
    assert philox_products(path) <= 20 * budget.blocks
    assert len(path) <= budget.instructions * budget.blocks


@pytest.mark.parametrize("budget", DROPOUT, ids=lambda budget: budget.kernel)
def test_instructions_would_hide_behind_memory(budget: Budget) -> None:
    """By counting: no resource of an H200 bounds dropout to less than 1.3 times a copy."""
    path = path_of(budget)
    bounds = bytes_per_second(path, budget.bytes, H200)
    assert min(bounds.values()) >= 1.3 * COPY_BYTES_PER_SECOND, bounds


def test_bounds_by_hand() -> None:
    path = [
        Instruction(16 * place, "", opcode, "")
        for place, opcode in enumerate(["LDG.E.128", "IMAD.WIDE.U32", "IMAD.MOV.U32", "LOP3.LUT"])
    ]
    bounds = bytes_per_second(path, 16, H200)
    a_clock = 132 * 1.98e9
    assert bounds == pytest.approx(
        {
            "issue": 16 * 128 / 4 * a_clock,
            "logic": 16 * 64 * a_clock,
            "multiply": 16 * 64 / 3 * a_clock,
        }
    )


def test_paths() -> None:
    """A loop that makes random numbers is the path; a kernel without one must not branch."""
    product = ("IMAD.WIDE.U32", "R2, R2, -0x2daee0ad, RZ")
    listing = [("S2R", "R0"), ("LOP3.LUT", "R1"), product, ("BRA", ""), ("EXIT", ""), ("BRA", "")]
    code = [Instruction(16 * place, "", *each) for place, each in enumerate(listing)]
    looping = [*code[:3], code[3]._replace(guard="P0", target=16), *code[4:]]
    assert random_path(looping) == looping[1:4]
    assert philox_products(looping) == 1
    straight = [*code[:3], *code[4:]]
    assert random_path(straight) == straight[:4]
    with pytest.raises(ValueError, match="a branch at 0x30"):
        random_path([*code[:3], code[3]._replace(guard="P0", target=64), *code[4:]])


def test_tables_name_every_kernel() -> None:
    text = cuda_resources.of_every_kernel()
    names = {kernel.name for source in SOURCES for kernel in resources(source, "sm_90")}
    assert all(f"`{name}`" in text for name in names)
    assert len(text.splitlines()) == 2 + len(ARCHITECTURES) * len(names)
    rows = cuda_resources.by_template().splitlines()[2:]
    assert {row.split("`")[1] for row in rows} == {template_of(name) for name in names}
    assert len({row.count("|") for row in rows}) == 1
    assert cuda_resources.of_random_numbers().count("TB/s") == 1
