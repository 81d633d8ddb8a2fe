"""Values of the special registers: who a thread is in its warp, block, cluster and grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .shared_layout import static_shared_size

if TYPE_CHECKING:
    from .machine import Group

Array = np.ndarray
_THREES = ("tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid")
_THREES += ("cluster_ctaid", "cluster_nctaid")
SPECIAL_REGISTERS = {f"%{name}.{axis}" for name in _THREES for axis in "xyz"}
SPECIAL_REGISTERS |= {f"%lanemask_{which}" for which in ("eq", "le", "lt", "ge", "gt")}
SPECIAL_REGISTERS |= {"%laneid", "%warpid", "%dynamic_smem_size", "%total_smem_size"}
SPECIAL_REGISTERS |= {"%cluster_ctarank", "%cluster_nctarank"}
SPECIAL_PREDICATES = {"%is_explicit_cluster"}


def split(number: Any, extent: Sequence[int]) -> list[Any]:
    """Three-dimensional index of a linear one."""
    rest = number // extent[0]
    return [number % extent[0], rest % extent[1], rest // extent[1]]


def special_registers(group: Group) -> dict[str, Array]:
    """One element per thread for each register."""
    launch, u32 = group.launch, np.uint32
    values = {"%laneid": group.thread & u32(31), "%warpid": group.thread >> u32(5)}

    def add_three(name: str, parts: Sequence[Array], extent: Sequence[int]) -> None:
        for axis, part, size in zip("xyz", parts, extent, strict=True):
            values[f"%{name}.{axis}"] = part.astype(u32)
            prefix, _, rest = name.rpartition("_")
            values[f"%{prefix}{'_' * bool(prefix)}n{rest}.{axis}"] = np.full(group.count, size, u32)

    block = split(group.block_number, launch.grid)
    add_three("tid", split(group.thread, launch.block), launch.block)
    add_three("ctaid", block, launch.grid)
    counts = [g // c for g, c in zip(launch.grid, launch.cluster, strict=True)]
    pairs = list(zip(block, launch.cluster, strict=True))
    add_three("clusterid", [b // u32(c) for b, c in pairs], counts)
    add_three("cluster_ctaid", [b % u32(c) for b, c in pairs], launch.cluster)
    values["%cluster_ctarank"] = group.clusters.rank[group.block_row].astype(u32)
    values["%cluster_nctarank"] = np.full(group.count, launch.cluster_size, u32)
    values["%is_explicit_cluster"] = np.full(group.count, launch.explicit_cluster)

    one = u32(1) << values["%laneid"]
    below = one - u32(1)
    values |= {"%lanemask_eq": one, "%lanemask_lt": below, "%lanemask_le": below | one}
    values |= {"%lanemask_ge": ~below, "%lanemask_gt": ~(below | one)}
    kernel_shared = static_shared_size(group.program.kernel)
    values["%dynamic_smem_size"] = np.full(group.count, launch.dynamic_shared, u32)
    total = kernel_shared + launch.dynamic_shared
    values["%total_smem_size"] = np.full(group.count, total, u32)
    return values
