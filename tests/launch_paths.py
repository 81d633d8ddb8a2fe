"""The ways in which launchers launch kernels, all of which the tests must take.

Which kernel serves a call needs no table: each instance of a template is a kernel of its own. Here
stand the kernels that are launched in blocks or clusters of several shapes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from tests.sass import readable, template_of

Dimensions = tuple[int, int, int]


class LaunchShape(NamedTuple):
    """How a kernel was launched; its name is mangled."""

    kernel: str
    architecture: str
    block: Dimensions
    cluster: Dimensions


_ONE = (1, 1, 1)
_ROWS_OF_A_WARP_OR_BLOCK = {((32, 4, 1), _ONE), ((128, 1, 1), _ONE), ((256, 1, 1), _ONE)}

# By kernels' names; those that match one pattern share their launches.
SHAPES: dict[str, set[tuple[Dimensions, Dimensions]]] = {
    **{
        rf"on_chip<{dtype}, .*, true>": {((512, 1, 1), (1, 1, blocks)) for blocks in (2, 4, 8)}
        for dtype in ("float", "__nv_bfloat16", "__half")
    },
    r"on_chip<.*, 512, false>": {((512, 1, 1), _ONE)},
    r"on_chip<.*": {((128, 1, 1), _ONE)},
    r"streamed<.*": _ROWS_OF_A_WARP_OR_BLOCK,
    r"statistics<.*": _ROWS_OF_A_WARP_OR_BLOCK,
    r"gradient<.*": _ROWS_OF_A_WARP_OR_BLOCK,
    r"mma_output<.*": {((256, 1, 1), (1, splits, 1)) for splits in (1, 2, 4, 8)},
    r"mma_grad_input<.*": {((256, 1, 1), (1, splits, 1)) for splits in (1, 2, 4, 8)},
    r"dropout_permuted<.*": {((1 << n, 256 >> n, 1), _ONE) for n in range(9)},
}
# What runs otherwise, or only, where there are no clusters.
WITHOUT_CLUSTERS = {"on_chip", "streamed", "mma_output", "mma_grad_input", "add_partials"}


def missing_paths(kernels: Iterable[str], launched: Iterable[LaunchShape]) -> list[str]:
    """What no test has launched, and what was launched in a way that is not stated here."""
    launched = set(launched)
    names = readable({*kernels, *(shape.kernel for shape in launched)})
    never = {names[kernel] for kernel in kernels} - {names[shape.kernel] for shape in launched}
    problems = [f"kernel that no test has launched: {name}" for name in sorted(never)]

    seen = defaultdict(set)
    for shape in launched:
        if shape.architecture == "compute_90":
            seen[_group(names[shape.kernel])].add((shape.block, shape.cluster))
    for group, shapes in sorted(seen.items()):
        stated = SHAPES.get(group, shapes if len(shapes) == 1 else set())
        for what, some in (("never", stated - shapes), ("not stated, but", shapes - stated)):
            problems += [
                f"{group}: {what} launched in blocks of {block}, clusters of {cluster}"
                for block, cluster in sorted(some)
            ]

    older = {template_of(names[s.kernel]) for s in launched if s.architecture == "compute_80"}
    problems += [f"{name}: not launched for compute_80" for name in WITHOUT_CLUSTERS - older]
    return problems


def _group(name: str) -> str:
    return next((each for each in SHAPES if re.fullmatch(each, name)), template_of(name))
