"""Every CUDA source compiles without warning; kernels stay in registers and fit multiprocessors."""

from pathlib import Path

import pytest

from tests.cuda_library import ROOT, SOURCES, resources
from tests.cuda_limits import LIMITS, limit_of
from tests.ptx import CompileError, assemble, require_nvcc
from tests.sass import ARCHITECTURES, MOST_THREADS, Resources, read_resources

SPILLING = ROOT / "tests" / "ptx" / "samples" / "spill.cu"


def check(kernels: list[Resources]) -> None:
    """Fails if a kernel keeps values in local memory, which is device memory and slow."""
    wasteful = [str(each) for each in kernels if each.stack or each.spill]
    assert not wasteful, "\n".join(["kernels with local memory:", *wasteful])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_kernels_stay_in_registers(source, architecture, record_property):
    require_nvcc()
    kernels = resources(source, architecture)
    print(f"\n{source.name}", *kernels, sep="\n")
    for each in kernels:
        record_property(f"{architecture} {each.name}", f"{each.registers} registers")
    # Otherwise the report was not understood.
    assert bool(kernels) == ("__global__" in source.read_text())
    check(kernels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_enough_threads_are_resident(source, architecture):
    require_nvcc()
    few = [
        f"{each}: {each.resident_threads} threads, {limit_of(each.name).threads} asked for"
        for each in resources(source, architecture)
        if each.resident_threads < limit_of(each.name).threads
    ]
    assert not few, "\n".join(few)


def test_no_limit_is_without_kernels():
    require_nvcc()
    names = [each.name for source in SOURCES for each in resources(source, "sm_90")]
    used = {limit_of(name) for name in names}
    assert [each.kernels for each in LIMITS if each not in used] == []


@pytest.mark.parametrize(
    ("needs", "threads"),
    [
        # (architecture, threads a block, registers, shared memory), and what that comes to by hand.
        (("sm_90", 256, 32, 0), 2048),
        (("sm_90", 256, 33, 0), 1536),  # registers come in eights: 65536 / 40 / 256 = 6 blocks
        (("sm_80", 256, 64, 0), 1024),
        (("sm_100", 256, 128, 0), 512),
        (("sm_90", 256, 255, 0), 256),
        (("sm_90", 1024, 38, 0), 1024),  # a second block does not fit
        (("sm_80", 256, 32, 40000), 4 * 256),  # shared memory: 164 KiB, 1 KiB a block reserved
        (("sm_90", 256, 32, 40000), 5 * 256),  # 228 KiB
        (("sm_90", 32, 16, 0), 32 * 32),  # no more than 32 blocks
    ],
)
def test_occupancy(needs, threads):
    require_nvcc()
    architecture, block, registers, shared = needs
    kernel = Resources("k", architecture, block, registers, shared, 0, 0)
    assert kernel.resident_threads == threads
    assert kernel.occupancy == threads / MOST_THREADS


def test_spill_is_noticed():
    require_nvcc()
    spilling, lean = sorted(read_resources(assemble(SPILLING)), key=lambda each: -each.spill)
    assert "spilling" in spilling.name
    assert spilling.spill > 0
    with pytest.raises(AssertionError, match=r"spilled  \w*spilling"):
        check([lean, spilling])
    assert lean.registers > 0
    check([lean])


def test_warning_is_an_error(tmp_path: Path):
    require_nvcc()
    source = tmp_path / "unused.cu"
    source.write_text("__global__ void k(int* out) { int unused; out[0] = 1; }\n")
    with pytest.raises(CompileError, match="unused"):
        assemble(source, flags=("-Werror", "all-warnings"))


def test_kernel_without_a_limit_is_an_error():
    with pytest.raises(LookupError, match="new_kernel<float>"):
        limit_of("new_kernel<float>")
