"""Kernels' names as their sources write them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """Names without namespaces and parameters, by mangled name; `columns<float, ByLabel>`."""
    names = list(mangled)
    # c++filt comes with the linker. -p leaves out the parameters.
    filtered = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    for noise in ("(anonymous namespace)::", "regops::"):
        filtered = filtered.replace(noise, "")
    return dict(zip(names, filtered.replace("> >", ">>").splitlines(), strict=True))


def template_of(name: str) -> str:
    """`columns` of `columns<float, ByLabel>`."""
    return name.partition("<")[0]
