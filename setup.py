"""Builds regops: the C++ extension, with the CUDA kernels where nvcc is found.

Environment:
    REGOPS_CUDA: 1 demands the CUDA kernels, 0 leaves them out; by default nvcc's presence decides.
    CUDA_HOME: CUDA toolkit; else the one whose nvcc is on PATH, else /usr/local/cuda.
    REGOPS_CUDA_ARCHITECTURES: for example "80;90"; default "80;90;100", with PTX of the last.
    REGOPS_SANITIZE: for example "address,undefined", for the tests.
    MAX_JOBS: compilers at a time; default one for each core and each 4 GB of memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "regops compiles against the torch that is installed, and none can be imported here: "
        "install torch first, then run `pip install --no-build-isolation .` (isolation hides torch)"
    ) from error

ROOT = Path(__file__).parent.resolve()
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-I", "csrc", "-lineinfo"]


def cuda_home() -> Path | None:
    """The CUDA toolkit to build with, or None to build without."""
    wanted = os.environ.get("REGOPS_CUDA")
    if wanted == "0":
        return None
    on_path = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME"),
        # nvcc on PATH may be a wrapper elsewhere, so its own word counts, not its place.
        _toolkit_of(on_path) if on_path else None,
        "/usr/local/cuda",
    ]
    for candidate in candidates:
        if candidate and (Path(candidate) / "bin" / "nvcc").exists():
            return Path(candidate)
    if wanted == "1":
        raise SystemExit(
            "REGOPS_CUDA=1, but no nvcc: looked in CUDA_HOME, on PATH, in /usr/local/cuda"
        )
    return None


def _toolkit_of(nvcc: str) -> str | None:
    shown = subprocess.run(
        [nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False
    )
    for line in shown.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return line.removeprefix("#$ TOP=").strip()
    return None


def max_jobs() -> int:
    """Compilers at a time: a file that includes torch's headers takes up to 2 GB."""
    if "MAX_JOBS" in os.environ:
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        gigabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    except (ValueError, OSError):
        gigabytes = 8
    return max(1, min(cores, gigabytes // 4))


class Build(BuildExtension):
    """Compiles .cu files, which know nothing of torch, to objects that the extension links.

    torch's CUDAExtension refuses a CPU-only torch; this way the full extension, CUDA included,
    builds with any torch and on any machine that has nvcc.
    """

    def build_extensions(self) -> None:
        """Compiles the CUDA sources, then all else by torch's own rules."""
        os.environ.setdefault("MAX_JOBS", str(max_jobs()))
        if home := cuda_home():
            objects = self._compile_cuda(home)
            for extension in self.extensions:
                extension.extra_objects += [str(path) for path in objects]
        super().build_extensions()

    def _compile_cuda(self, home: Path) -> list[Path]:
        folder = Path(self.build_temp).resolve() / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        flags = [*NVCC_FLAGS, *architecture_flags()]
        headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), Path(__file__)]
        newest_header = max(path.stat().st_mtime for path in headers)

        version = subprocess.check_output([home / "bin" / "nvcc", "--version"], text=True)

        def compile_one(source: Path) -> Path:
            target = folder / f"{source.stem}.o"
            stamp = folder / f"{source.stem}.flags"
            command = [str(home / "bin" / "nvcc"), *flags, "-c", str(source), "-o", str(target)]
            line = " ".join(command) + version
            newest = max(newest_header, source.stat().st_mtime)
            current = target.exists() and target.stat().st_mtime > newest
            if current and stamp.exists() and stamp.read_text() == line:
                return target
            print(" ".join(command))
            stamp.unlink(missing_ok=True)  # an interrupted compiler may leave half an object
            subprocess.check_call(command, cwd=ROOT)
            stamp.write_text(line)
            return target

        with ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
            return list(pool.map(compile_one, sorted(ROOT.glob("csrc/cuda/*.cu"))))


def architectures() -> list[str]:
    """Compute capabilities to compile for, without the dot."""
    return os.environ.get("REGOPS_CUDA_ARCHITECTURES", "80;90;100").replace(".", "").split(";")


def architecture_flags() -> list[str]:
    """Machine code for each architecture, and PTX of the last for those to come."""
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures()]
    last = architectures()[-1]
    return [*flags, f"-gencode=arch=compute_{last},code=compute_{last}"]


def extension() -> CppExtension:
    """regops._C."""
    # Contraction to fused multiply-add would round differently on each instruction set.
    # GCC 12's own AVX-512 header trips its uninitialized warnings.
    compile_args = ["-O3", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-g0"]
    if torch.backends.openmp.is_available():
        # at::parallel_for is a header: without this it is a plain loop, and nothing says so.
        compile_args.append("-fopenmp")
    compile_args += [
        "-Wall",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
        "-Wno-unknown-pragmas",
    ]
    link_args = ["-Wl,-z,now", "-Wl,--exclude-libs,ALL"]
    if "-fopenmp" in compile_args:
        link_args.append("-fopenmp")  # libgomp.so.1, of which torch has loaded its own by then
    macros: list[tuple[str, str | None]] = []
    library_dirs, libraries = [], []
    if sanitizers := os.environ.get("REGOPS_SANITIZE"):
        compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O1", "-g1"]
        link_args += [f"-fsanitize={sanitizers}"]
    if home := cuda_home():
        macros += [
            ("REGOPS_WITH_CUDA", None),
            ("REGOPS_CUDA_ARCHITECTURES", f'"{";".join(architectures())}"'),
        ]
        places = [home / "lib64", home / "lib", home / "targets" / "x86_64-linux" / "lib"]
        library_dirs = [str(place) for place in places if place.is_dir()]
        libraries = ["cudart_static", "dl", "rt", "pthread"]
    folders = ("csrc", "csrc/cpu", "csrc/ops")
    return CppExtension(
        "regops._C",
        sorted(str(path.relative_to(ROOT)) for f in folders for path in (ROOT / f).glob("*.cpp")),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        library_dirs=library_dirs,
        libraries=libraries,
        # Without ninja, setuptools compares times itself.
        depends=[str(path) for path in (*ROOT.glob("csrc/**/*.*"), ROOT / "setup.py")],
    )


setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
