"""Where a kernel's static shared variables stand; its dynamic shared memory starts behind them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parser import Kernel, Variable


def static_shared_size(kernel: Kernel) -> int:
    """Bytes of a kernel's static shared variables."""
    used = max((v.offset + v.size for v in kernel.shared.values()), default=0)
    return -(-used // 16) * 16


def place_module_variables(kernel: Kernel, variables: dict[str, Variable]) -> None:
    """Places shared variables of the module, those of functions that several kernels use."""
    static = {v.name: v for v in variables.values() if v.space == "shared" and v.size}
    words = " ".join(text for i in kernel.instructions for text in i.operands)
    for name in dict.fromkeys(re.findall(r"[$\w]+", words)) if static else ():
        if name in static and name not in kernel.shared:
            variable = static[name]
            used = max((v.offset + v.size for v in kernel.shared.values()), default=0)
            offset = -(-used // variable.alignment) * variable.alignment
            kernel.shared[name] = replace(variable, offset=offset)
