"""`make bench-peers`: installs the other libraries that this machine can run, each by itself.

One that fails does not keep the others out. None may bring another version of what this project
pins, torch above all; and one that then cannot be imported is removed again, with all it brought.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from bench.libraries import ON_CPU, ON_CUDA, ROOT, installed_version, requirements
from bench.peers import PEERS

# Compiled against the torch that is installed, with the kernels that are timed; pip's cache may
# hold a build without those.
_COMPILED = ("apex", "deepspeed", "flash-attn", "transformer-engine")
_KERNELS = {
    "DS_BUILD_CPU_ADAM": "1",
    "APEX_CPP_EXT": "1",
    "APEX_CUDA_EXT": "1",
    "APEX_XENTROPY": "1",
}
# Those compile in less time with ninja, which is beside Python.
_PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def chosen(cuda: bool) -> dict[str, Requirement]:
    """What to install, by package.

    Args:
        cuda: Whether there is a GPU.
    """
    pins = requirements(ON_CPU) | (requirements(ON_CUDA) if cuda else {})
    return {name: pin for name, pin in pins.items() if not pin.marker or pin.marker.evaluate()}


def constraints(development: Path) -> list[str]:
    """What may not change: installed versions of what development needs."""
    versions = {name: installed_version(name) for name in requirements(development)}
    return [f"{name}=={version}" for name, version in versions.items() if version]


def install(package: str, pin: Requirement, constraint: Path) -> str | None:
    """Installs a package.

    Args:
        package: Its name.
        pin: What of it.
        constraint: A file of what may not change.

    Returns:
        Why it failed, if it did.
    """
    before = _installed()
    command = ["install", "--quiet", "--constraint", str(constraint), str(pin)]
    if package in _COMPILED:
        command += ["--no-build-isolation", "--no-cache-dir"]
    reason = _run([sys.executable, "-m", "pip", *command])
    if reason is None:
        reason = _run([sys.executable, "-c", f"import torch, {', '.join(_modules(package))}"])
    if reason is not None:
        brought = sorted(_installed() - before)
        if brought:
            _run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *brought])
    return reason


def _modules(package: str) -> list[str]:
    peers = [peer for peers in PEERS.values() for peer in peers.values()]
    return sorted({peer.module for peer in peers if peer.package == package})


def _installed() -> set[str]:
    code = "import importlib.metadata as m; print(*{d.name for d in m.distributions()})"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return {canonicalize_name(name) for name in output.split()}


def _run(command: list[str]) -> str | None:
    result = subprocess.run(
        command,
        env={**os.environ, **_KERNELS, "PATH": _PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return errors[-1] if errors else f"exit status {result.returncode}"


def main() -> int:
    """Installs all.

    Returns:
        1 if nothing was installed, else 0.
    """
    console = Console(soft_wrap=True, highlight=False)
    failed = {}
    pins = chosen(torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder, "constraints.txt")
        constraint.write_text("\n".join(constraints(ROOT / "requirements-dev.txt")))
        for package, pin in pins.items():
            console.print(f"{package} ...")
            reason = install(package, pin, constraint)
            if reason is not None:
                failed[package] = reason
    console.print(f"installed: {', '.join(sorted(pins.keys() - failed.keys())) or 'nothing'}")
    for package, reason in failed.items():
        console.print(f"failed: {package}: {reason}", markup=False)
    return 1 if len(failed) == len(pins) else 0


if __name__ == "__main__":
    sys.exit(main())
