"""What this installation is, and what it can do here."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from regops import _C


def info() -> dict[str, Any]:
    """Versions, instruction sets, CUDA build and GPU.

    Returns:
        Flat dictionary of plain values. `cpu_capability` is the instruction set in use,
        `cpu_capabilities` those that this processor and build can run; `cuda_build` and `gpu` are
        None, with `cuda_reason` in words, where there is none.
    """
    import regops

    build = _C.build_info()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "regops": regops.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_compiled_with": build["torch_compiled_with"],
        "numpy": np.__version__,
        "compiler": build["compiler"],
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": build["cpu_capability"],
        "cpu_capabilities": build["cpu_capabilities"],
        "cuda_build": None if build["cuda"] is None else _version(build["cuda"]),
        "cuda_architectures": build["cuda_architectures"],
        "cuda_torch": torch.version.cuda,
        "gpu": gpu,
        "cuda_reason": _cuda_reason(build["cuda"], gpu),
    }


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _cuda_reason(build: int | None, gpu: str | None) -> str:
    if build is None:
        return "off: built without CUDA (nvcc was not found, or REGOPS_CUDA=0)"
    if torch.version.cuda is None:
        return "off: compiled in, but this torch is a CPU build"
    if gpu is None:
        return "off: compiled in, but torch sees no GPU"
    return "on"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
