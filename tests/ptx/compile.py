"""Compiles CUDA sources to PTX and to a host library whose launches go to the interpreter.

The same PTX is assembled to machine code, which is read but not run.

Results are kept under build/ptx/, named by a hash of all that they depend on, so that a second run
compiles only what changed. A lock file for each keeps parallel test processes from doing the same
work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from .machine import Program
from .parser import Module, parse_module

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "ptx"
_RUNTIME = sorted(Path(__file__).parent.glob("fake_cudart*"))
_INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.M)


class NvccNotFound(Exception):  # noqa: N818
    """There is no nvcc on this machine."""


class CompileError(Exception):
    """A compiler refused a source; the message is the compiler's."""


@dataclass(frozen=True)
class CompiledLibrary:
    """The PTX of some CUDA sources for one architecture, and their host code as a library."""

    ptx: tuple[Path, ...]
    shared_object: Path
    architecture: str

    @cached_property
    def module(self) -> Module:
        """All kernels and variables of the sources."""
        whole = Module()
        for path in self.ptx:
            part = parse_module(path.read_text())
            for name in part.variables.keys() & whole.variables.keys():
                if part.variables[name].space != "shared":
                    raise CompileError(f"{path}: variable {name} of two sources")
            whole.kernels.update(part.kernels)
            whole.variables.update(part.variables)
            whole.functions.update(part.functions)
        return whole

    @cached_property
    def programs(self) -> dict[str, Program]:
        """Kernels made executable so far; all devices of the library share them."""
        return {}

    @property
    def kernels(self) -> set[str]:
        """Names of all kernels, mangled."""
        return set(self.module.kernels)


@dataclass(frozen=True)
class MachineCode:
    """What ptxas made of one source for one architecture, and what it said with -v."""

    architecture: str
    ptx: Path
    cubin: Path
    report: Path


def find_nvcc() -> Path:
    """$CUDA_HOME/bin/nvcc, else nvcc on PATH, else /usr/local/cuda/bin/nvcc."""
    candidates = [Path("/usr/local/cuda/bin/nvcc")]
    if on_path := shutil.which("nvcc"):
        candidates.insert(0, Path(on_path))
    if home := os.environ.get("CUDA_HOME"):
        candidates.insert(0, Path(home) / "bin" / "nvcc")
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise NvccNotFound("no nvcc in $CUDA_HOME/bin, on PATH or in /usr/local/cuda/bin")


def require_nvcc() -> Path:
    """Skips the calling test where nvcc is missing."""
    import pytest

    try:
        return find_nvcc()
    except NvccNotFound as reason:
        pytest.skip(f"CUDA sources cannot be compiled here: {reason}")


def compile_cuda(
    sources: Sequence[Path],
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    architecture: str = "compute_90",
) -> CompiledLibrary:
    """Compiles sources into one library.

    Args:
        sources: `.cu` files.
        include: folders for `-I`.
        flags: further options for nvcc.
        architecture: whose PTX is interpreted; "compute_80" takes the branches of a source that are
            meant for devices without clusters.

    Raises:
        NvccNotFound: there is no nvcc.
        CompileError: a source does not compile, or calls a runtime function that the stand-in
            lacks.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        units = list(
            pool.map(lambda source: _compile_unit(source, include, flags, architecture), sources)
        )
    key = _hash(*(path.read_text() for path in _RUNTIME), *(unit.name for unit in units))

    def link(folder: Path) -> None:
        # -z defs: a missing runtime function is an error now, not when a launcher runs.
        # -Bsymbolic: another CUDA runtime in the process must not take the stand-in's place.
        objects = [str(unit / "unit.o") for unit in units]
        for source in (path for path in _RUNTIME if path.suffix == ".c"):
            objects.append(str(folder / f"{source.stem}.o"))
            _call("gcc", "-O2", "-fPIC", "-c", str(source), "-o", objects[-1])
        strict = ["-Wl,-z,defs", "-Wl,-Bsymbolic"]
        _call("g++", "-shared", *strict, *objects, "-o", str(folder / "library.so"))

    folder = _build_once(key, link)
    ptx = tuple(unit / "unit.ptx" for unit in units)
    return CompiledLibrary(ptx, folder / "library.so", architecture)


def assemble(
    source: Path,
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    architecture: str = "sm_90",
) -> MachineCode:
    """Makes machine code of the PTX that `compile_cuda` interprets; a warning is an error.

    Args:
        source: a `.cu` file.
        include: folders for `-I`.
        flags: further options for nvcc.
        architecture: such as "sm_90".

    Raises:
        NvccNotFound: there is no nvcc.
        CompileError: the source does not compile.
    """
    nvcc = find_nvcc()
    virtual = architecture.replace("sm_", "compute_")
    ptx = _compile_unit(source, include, flags, virtual) / "unit.ptx"
    options = ["-O3", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]

    def build(folder: Path) -> None:
        command = [str(nvcc), *options, "-cubin", str(ptx), "-o", str(folder / "unit.cubin")]
        (folder / "report.txt").write_text(_call(*command))

    folder = _build_once(_hash(_version(nvcc), *options, ptx.read_text()), build)
    return MachineCode(architecture, ptx, folder / "unit.cubin", folder / "report.txt")


def compile_host_library(source: Path) -> Path:
    """A C++ source that includes headers of the CUDA toolkit, as a library without its runtime."""
    nvcc = find_nvcc()
    options = ["-shared", "-cudart", "none", "-Xcompiler", "-fPIC"]

    def build(folder: Path) -> None:
        _call(str(nvcc), *options, str(source), "-o", str(folder / "library.so"))

    return _build_once(_hash(_version(nvcc), *options, source.read_text()), build) / "library.so"


def _compile_unit(
    source: Path, include: Sequence[Path], flags: Sequence[str], architecture: str
) -> Path:
    nvcc, source = find_nvcc(), Path(source).resolve()
    include = [Path(folder).resolve() for folder in include]
    options = ["-O3", "-std=c++17", "-lineinfo", *flags, *(f"-I{folder}" for folder in include)]
    files = sorted(_dependencies(source, include))
    contents = [f"{path}\0{path.read_text()}" for path in files]
    key = _hash(_version(nvcc), architecture, *options, str(source), *contents)

    def build(folder: Path) -> None:
        # Only PTX goes into the object: assembling it for a GPU would take longer and is not looked
        # at.
        target = ["-gencode", f"arch={architecture},code={architecture}", "-Xcompiler", "-fPIC"]
        keep = ["--keep", "--keep-dir", str(folder)]
        command = [str(nvcc), *options, *target, *keep, "-c", str(source), "-o"]
        _call(*command, str(folder / "unit.o"))
        (folder / f"{source.stem}.ptx").rename(folder / "unit.ptx")
        for path in folder.iterdir():
            if path.name not in ("unit.o", "unit.ptx"):
                path.unlink()

    return _build_once(key, build)


def _dependencies(source: Path, include: list[Path]) -> set[Path]:
    """A source and the project's headers that it includes, directly or not."""
    found, front = set(), [source]
    while front:
        path = front.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            front += [
                (folder / name).resolve()
                for folder in (path.parent, *include)
                if (folder / name).is_file()
            ]
    return found


@cache
def _version(nvcc: Path) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _build_once(key: str, build: Callable[[Path], None]) -> Path:
    """Runs `build` on a new folder unless this key has one; a failed build leaves nothing."""
    final = CACHE / key
    if final.is_dir():
        return final
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f"{key}.lock"):
        if not final.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
                work = Path(temporary) / "work"
                work.mkdir()
                build(work)
                work.rename(final)
    return final


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stderr
