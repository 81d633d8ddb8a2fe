"""What each CUDA kernel needs and does, by its machine code; needs nvcc and nvdisasm, but no GPU.

python -m tools.cuda_resources           registers and occupancy by template; random numbers
python -m tools.cuda_resources --all     registers and occupancy of every kernel
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from tests.cuda_library import ROOT, SOURCES, machine_code, resources
from tests.cuda_limits import DROPCONNECT, DROPOUT, limit_of
from tests.ptx import H200
from tests.sass import (
    ARCHITECTURES,
    Resources,
    bytes_per_second,
    philox_products,
    random_path,
    template_of,
)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def span(values: list[int]) -> str:
    """The least and the largest."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def by_template() -> str:
    """Ranges over a template's instances, on each architecture."""
    found: dict[str, dict[str, list[Resources]]] = defaultdict(lambda: defaultdict(list))
    for source in SOURCES:
        for architecture in ARCHITECTURES:
            for kernel in resources(source, architecture):
                if int(architecture.removeprefix("sm_")) >= limit_of(kernel.name).first:
                    found[template_of(kernel.name)][architecture].append(kernel)
    rows = []
    for name, kernels in found.items():
        each = [kernels[architecture] for architecture in ARCHITECTURES]
        local = max(kernel.stack + kernel.spill for some in each for kernel in some)
        rows.append(
            [f"`{name}`", str(len(kernels["sm_90"])), span([kernel.threads for kernel in each[1]])]
            + [span([kernel.registers for kernel in some]) for some in each]
            + [span([kernel.shared for kernel in each[1]])]
            + [span([kernel.resident_threads for kernel in some]) for some in each]
            + [str(local)]
        )
    short = [name.removeprefix("sm_") for name in ARCHITECTURES]
    head = ["kernel", "instances", "threads a block"]
    head += [f"registers {name}" for name in short] + ["shared memory"]
    head += [f"threads resident {name}" for name in short] + ["local memory"]
    return table(head, rows)


def of_every_kernel() -> str:
    """What each kernel needs on each architecture, and what is asked of it."""
    head = ["kernel", "architecture", "threads a block", "registers", "shared", "stack", "spilled"]
    head += ["threads resident", "occupancy", "asked for", "why"]
    rows = [
        [f"`{kernel.name}`", architecture]
        + [str(n) for n in (kernel.threads, kernel.registers, kernel.shared)]
        + [str(n) for n in (kernel.stack, kernel.spill, kernel.resident_threads)]
        + [f"{kernel.occupancy:.0%}", str(limit_of(kernel.name).threads), limit_of(kernel.name).why]
        for source in SOURCES
        for architecture in ARCHITECTURES
        for kernel in resources(source, architecture)
    ]
    return table(head, rows)


def of_random_numbers() -> str:
    """Instructions of paths that make random numbers, and what they bound an H200 to."""
    rows = []
    for budget in (*DROPOUT, *DROPCONNECT):
        source = ROOT / "csrc" / "cuda" / budget.source
        path = random_path(machine_code(source, "sm_90")[budget.kernel])
        elements = budget.blocks * budget.elements
        bounds = bytes_per_second(path, budget.bytes, H200)
        slowest = min(bounds, key=lambda resource: bounds[resource])
        each = f"{philox_products(path) / elements:.1f}", f"{len(path) / elements:.1f}"
        of_block = f"{len(path) / budget.blocks:.0f}", str(budget.instructions)
        bound = f"{bounds[slowest] / 1e12:.1f} ({slowest})" if budget.moved else "-"
        rows.append([f"`{budget.kernel}`", *each, *of_block, bound])
    head = ["sm_90", "products an element", "instructions an element", "a block of 128 bits"]
    return table([*head, "limit", "bound, TB/s"], rows)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="every kernel instead of templates")
    if parser.parse_args().all:
        print(of_every_kernel())
    else:
        print(by_template(), of_random_numbers(), sep="\n\n")


if __name__ == "__main__":
    main()
