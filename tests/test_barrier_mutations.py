"""Every barrier is needed, and the tests would notice its loss: each one is removed in turn.

A kernel file with a barrier needs a driver here, which runs its kernels on shapes that reach every
barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cross_entropy_call import Problem
from tests.cross_entropy_problems import check, labels, logits, weights
from tests.dropconnect_linear_call import PRODUCTS, make, product_interpreted
from tests.dropconnect_linear_call import check as check_product
from tests.ptx import Device, DeviceError, compile_cuda, require_nvcc
from tests.ptx.compile import CACHE
from tests.ptx.mutation import Mutant, barriers, without_each_barrier

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "tests" / "ptx" / "samples"
CUDA = ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Driver:
    """How to notice a missing barrier.

    Attributes:
        include: folder for `-I`; the other paths are relative to it.
        files: sources to compile, and the headers with barriers that they use.
        run: runs the kernels and asserts that their results are right.
        architectures: whose code is run, where sources have branches for more than one.
    """

    include: Path
    files: tuple[str, ...]
    run: Callable[[Device], None]
    architectures: tuple[str, ...] = ("compute_90",)

    @property
    def paths(self) -> list[Path]:
        return [self.include / file for file in self.files]

    def check(self, files: list[Path], include: list[Path]) -> None:
        """Compiles files, originals or copies, and runs their kernels."""
        sources = [file for file in files if file.suffix == ".cu"]
        for architecture in self.architectures:
            folders = [*include, self.include]
            self.run(Device(compile_cuda(sources, folders, architecture=architecture)))


def run_block_reduce(device: Device) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 1000)).astype(np.float32)
    means, deviations = np.zeros(3, np.float32), np.zeros(3, np.float32)
    pointers = [device.register(array) for array in (means, deviations, x)]
    assert device.call("run_row_moments", *pointers, *x.shape) == 0
    # Sums of 1000 float32 terms by a tree: an error of some 2^-24 of the sum of their sizes.
    np.testing.assert_allclose(means, x.mean(1, dtype=np.float64), atol=1e-6)
    np.testing.assert_allclose(deviations, x.var(1, dtype=np.float64) * 1000, rtol=1e-5)
    values = rng.standard_normal(256).astype(np.float32)
    out = np.zeros_like(values)
    assert (
        device.call("run_reverse_in_warps", device.register(out), device.register(values), 3) == 0
    )
    np.testing.assert_array_equal(out, values.reshape(8, 32)[:, ::-1].ravel())


def run_cluster_reduce(device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    lse, out, values = (np.zeros(n, np.float32) for n in (3, 256, 256))
    values[:] = np.arange(256)
    for blocks in (2, 4):
        pointers = device.register(lse), device.register(x)
        assert device.call("run_row_lse", *pointers, *x.shape, blocks) == 0
        exact = np.log(np.exp(x.astype(np.float64)).sum(1))
        # As above, of the sum's logarithm.
        np.testing.assert_allclose(lse, exact, atol=1e-6)
    assert device.call("run_from_next_block", device.register(out), device.register(values), 4) == 0
    np.testing.assert_array_equal(out, np.roll(values, -64))


def run_cross_entropy(device: Device) -> None:
    """In place, in each kernel with a barrier, and a mean over rows of more than a warp."""
    torch.manual_seed(0)
    for shape, dtype in (
        ((40, 9), torch.float32),
        ((5, 40), torch.float32),
        ((5, 40), torch.float64),
        ((2, 1100), torch.bfloat16),
        ((2, 16500), torch.float32),
    ):
        x = logits(shape, dtype)
        check(Problem(x, labels(x), weight=weights(x), gradient="inplace"), device)


def run_dropconnect(device: Device) -> None:
    """Sums over blocks and within them, by plain kernels and by tensor cores."""
    for shape, dtype, per_sample in (
        ((3, 64, 70), torch.bfloat16, True),
        ((40, 8, 10), torch.float32, True),
        ((9, 64, 40), torch.float32, False),
        ((3, 13, 70), torch.float32, False),
        ((33, 264, 24), torch.bfloat16, False),
        ((3, 1032, 24), torch.bfloat16, False),
        ((3, 24, 1032), torch.bfloat16, False),
        ((600, 3, 70), torch.float32, True),  # more blocks than fit at once: no sum is split
    ):
        problem = make(*shape, dtype)
        problem.per_sample = per_sample
        for product in PRODUCTS:
            check_product(problem, product, product_interpreted(problem, product, device))


DRIVERS = {
    "block_reduce": Driver(SAMPLES, ("block_reduce.cu", "block_reduce.cuh"), run_block_reduce),
    "cross_entropy": Driver(
        CUDA.parent,
        (
            "cuda/cross_entropy.cu",
            "cuda/cross_entropy_columns.cu",
            "cuda/cross_entropy_rows.cu",
            "cuda/cross_entropy_streamed.cu",
            "cuda/current_device.cu",
            "cuda/reduce.cuh",
            "cuda/softmax_sums.cuh",
        ),
        run_cross_entropy,
    ),
    "dropconnect": Driver(
        CUDA.parent,
        (
            "cuda/current_device.cu",
            "cuda/dropconnect_linear.cu",
            "cuda/dropconnect_linear_grad_input.cu",
            "cuda/dropconnect_linear_grad_weight.cu",
            "cuda/dropconnect_linear_output.cu",
            "cuda/dropconnect_mma.cuh",
            "cuda/dropconnect_mma_grad_input.cu",
            "cuda/dropconnect_mma_output.cu",
        ),
        run_dropconnect,
        ("compute_90", "compute_80"),  # the latter without clusters
    ),
    "cluster_reduce": Driver(SAMPLES, ("cluster_reduce.cu",), run_cluster_reduce),
}


def mutants(name: str) -> list[Mutant]:
    """Mutants of a driver's files, at a fixed place, so that a second run finds them compiled."""
    driver = DRIVERS[name]
    return list(without_each_barrier(driver.paths, driver.include, CACHE / "mutants" / name))


@pytest.mark.parametrize("name", DRIVERS)
def test_original_passes(name):
    require_nvcc()
    driver = DRIVERS[name]
    driver.check(driver.paths, [])


@pytest.mark.parametrize("name", DRIVERS)
def test_every_dropped_barrier_is_noticed(name):
    require_nvcc()
    driver = DRIVERS[name]
    unnoticed = []
    for mutant in mutants(name):
        copy = mutant.sources[0].parents[len(Path(driver.files[0]).parts) - 1]
        try:
            driver.check(list(mutant.sources), [copy])
        except (DeviceError, AssertionError):
            continue
        unnoticed.append(f"{mutant.file}:{mutant.line}: {mutant.barrier}")
    assert not unnoticed, "these barriers can go without any test failing"


def test_sample_has_all_kinds_of_barriers():
    found = mutants("block_reduce")
    assert (
        sorted(mutant.barrier for mutant in found)
        == ["__syncthreads();"] * 2 + ["__syncwarp();"] * 2
    )
    for mutant in found:
        originals = [path.read_text() for path in DRIVERS["block_reduce"].paths]
        copies = [path.read_text() for path in mutant.sources]
        changed = [a for a, b in zip(originals, copies, strict=True) if a != b]
        assert changed == [mutant.file.read_text()]


def test_sample_has_all_kinds_of_cluster_barriers():
    found = sorted(mutant.barrier for mutant in mutants("cluster_reduce"))
    kinds = ["cg::this_cluster().sync();", "cluster.barrier_wait();"]
    assert found == kinds + ["cluster.sync();"] * 2


@pytest.mark.parametrize(
    "call",
    [
        "__cluster_barrier_wait();",
        "cg::sync(cg::this_cluster());",
        "cluster.barrier_wait(std::move(token));",
        "cooperative_groups::this_cluster().sync();",
    ],
)
def test_barriers_of_other_spellings(call):
    assert [match[0] for match in barriers(f"f(x); {call} g();")] == [call]


def test_barriers_in_comments_do_not_count():
    assert barriers("// __syncthreads();\n/* __syncwarp();\n */ f();") == []
    assert len(barriers("__syncthreads(); // __syncthreads();\n__syncwarp(mask);")) == 2


def without_driver(files: list[Path]) -> list[Path]:
    driven = {path for driver in DRIVERS.values() for path in driver.paths}
    return [file for file in files if barriers(file.read_text()) and file not in driven]


def test_every_project_kernel_with_a_barrier_has_a_driver():
    files = sorted(path for pattern in ("*.cu", "*.cuh") for path in CUDA.glob(pattern))
    assert without_driver(files) == []


def test_missing_driver_is_noticed():
    assert without_driver(sorted(SAMPLES.glob("*.cuh"))) == []
    assert SAMPLES / "legal.cu" in without_driver(sorted(SAMPLES.glob("*.cu")))
