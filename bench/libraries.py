"""What is known of a library that is timed beside torch and regops: versions, devices, options.

The versions are those of `requirements-bench-peers.txt` and `requirements-bench-peers-cuda.txt`,
which `make bench-peers` installs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor

Call = Callable[[Tensor], Tensor]
Arguments = Mapping[str, Any]

ROOT = Path(__file__).parent.parent
ON_CPU = ROOT / "requirements-bench-peers.txt"
ON_CUDA = ROOT / "requirements-bench-peers-cuda.txt"


@cache
def requirements(path: Path) -> dict[str, Requirement]:
    """What a requirements file pins, by package."""
    lines = (line.partition(" #")[0].strip() for line in path.read_text().splitlines())
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def installed_version(package: str) -> str | None:
    """The version of a package that is installed, if one is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Peer:
    """Another library's version of an op.

    Attributes:
        module: What must be importable; where it is not, the report names the peer as absent.
        devices: Kinds of device that it runs on.
        build: Imports the library itself. Of an op, from a `Point` and the op's arguments: the
            function to time, of the input alone. Of a step, from parameters and the step's
            arguments: the optimizer.
        distribution: The package's name where the module's is another.
        lacks: Options of a case that it does not have: where one is set, it would do other work.
        note: What a reader must know to read its figures.
    """

    module: str
    devices: tuple[str, ...]
    build: Callable[..., Any]
    distribution: str | None = None
    lacks: tuple[str, ...] = ()
    note: str = ""

    @property
    def package(self) -> str:
        """Its name on PyPI."""
        return canonicalize_name(self.distribution or self.module)

    @property
    def version(self) -> str | None:
        """What is pinned, and `bench.peers` written for; the commit of what has no releases."""
        for path in (ON_CPU, ON_CUDA, ROOT / "requirements-dev.txt"):
            pin = requirements(path).get(self.package)
            if pin:
                return pin.url.rpartition("@")[2] if pin.url else str(pin.specifier).lstrip("=")
        return None

    @property
    def installed(self) -> str | None:
        """The version that is installed."""
        return installed_version(self.package)

    @property
    def importable(self) -> bool:
        """Whether the library is installed."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def absent(self) -> str | None:
        """Why it is not timed on this machine, in words; None if it is."""
        if "cpu" not in self.devices and not torch.cuda.is_available():
            return "needs CUDA"
        if self.importable:
            return None
        if self.package == "torch":
            return f"not in torch {torch.__version__}"
        return "not installed: make bench-peers"


def peers_on(device: str, peers: Mapping[str, Peer], options: Arguments) -> dict[str, Peer]:
    """Those that run on a device and have all that a case asks for."""
    kind = torch.device(device).type
    return {
        name: peer
        for name, peer in peers.items()
        if kind in peer.devices and not any(options.get(option) for option in peer.lacks)
    }


def absence(name: str, peer: Peer) -> str | None:
    """Which peer is absent and why; None if it is there."""
    named = f"{name} {peer.version}" if peer.version else name
    return f"{named}: {peer.absent}" if peer.absent else None
