"""A run with all that a report has to show."""

from __future__ import annotations

from typing import Any

from bench.summary import Row, Summary
from tests.bench_runs import row, summary

SIZES = {"64": 64, "4k": 1 << 12, "64k": 1 << 16, "1M": 1 << 20, "16M": 1 << 24}
LISTS = {"1x4096": 1, "16x4096": 16, "128x4096": 128, "1000x4096": 1000}


def spread(seconds: float) -> tuple[float, ...]:
    """Rounds around a median, 2 % to either side."""
    return 0.96 * seconds, 0.98 * seconds, seconds, 1.02 * seconds, 1.04 * seconds


def memory(numel: int, **bytes_each: float) -> dict[str, Any]:
    """What providers hold, by bytes an element at the peak of forward and backward."""
    peaks = {name: int(each * numel) for name, each in bytes_each.items()}
    return {
        "peak": {name: peak // 2 for name, peak in peaks.items()},
        "state": {name: 16 if name == "regops" else peak // 4 for name, peak in peaks.items()},
        "full_peak": peaks,
        "extra": dict.fromkeys(peaks, 0),
    }


def dropout(device: str = "cpu", **more: Any) -> list[Row]:
    """Overhead and cost of an element are those of these figures, in seconds."""
    costs = {
        "eager": (4e-6, 8e-9),
        "compile": (2e-5, 6e-9),
        "regops": (2e-6, 5e-10),
        "copy": (1e-6, 4e-10),
    }
    return [
        row(
            "dropout",
            direction,
            dtype,
            size,
            {name: spread(call + each * numel) for name, (call, each) in costs.items()},
            device,
            numel=numel,
            cache="memory" if numel > 1 << 22 else "hot",
            bytes_moved=8 * numel,
            **memory(numel, eager=12, compile=9, regops=8),
            **more,
        )
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "backward", "full")
        for size, numel in SIZES.items()
    ]


def steps() -> list[Row]:
    """Of lists of tensors, of one, and with an option; regops is slower with the option."""
    shapes = {name: (count, 4096) for name, count in LISTS.items()}
    shapes |= {name: (1, SIZES[name]) for name in ("64", "1M", "16M")}
    rows = []
    for size, (count, each) in {**shapes, "16M-clip": (1, 1 << 24)}.items():
        numel = count * each
        fused = 5e-10 if size == "16M-clip" else 8e-10
        seconds = {
            "eager": 2e-5 * count + 2e-9 * numel,
            "foreach": 1e-5 * count + 2e-9 * numel,
            "fused": 5e-6 * count + fused * numel,
            "regops": 1e-6 + 1e-7 * count + 7e-10 * numel,
            "stream": 6e-10 * numel,
            "optimi": 2e-5 * count + 1.5e-9 * numel,
        }
        rows.append(
            row(
                "adamw",
                "step",
                "float32",
                size,
                {name: spread(second) for name, second in seconds.items()},
                numel=numel,
                tensors=count,
                cache="memory" if numel > 1 << 22 else "hot",
                bytes_moved=28 * numel,
                **memory(numel, eager=8, foreach=4, fused=0, regops=0),
            )
        )
    return rows


def loss() -> Row:
    """Its ceiling are its products."""
    seconds = {"eager": 1.5, "compile": 1.2, "regops": 1.0, "copy": 1e-3, "matmul": 0.9}
    return row(
        "linear_cross_entropy",
        "full",
        "float32",
        "4096x512x32768",
        {name: spread(second) for name, second in seconds.items()},
        numel=1 << 21,
        flops=10**11,
        **memory(1 << 21, eager=768, compile=700, regops=64),
    )


def ceilings() -> list[Row]:
    """Of the machine."""
    moved = {"copy": 0.02, "in-place": 0.01, "4-read-3-write": 0.012}
    return [
        row("machine", "move", "float32", "224MiB", {n: spread(s) for n, s in moved.items()}),
        row(
            "machine",
            "multiply",
            "float32",
            "1536x1536x1536",
            {"matmul": spread(0.04)},
            flops=7 * 10**9,
        ),
    ]


PEERS = [
    {
        "name": "optimi",
        "package": "torch-optimi",
        "ops": ["adamw"],
        "devices": ["cpu", "cuda"],
        "installed": "0.3.3",
        "pinned": "0.3.3",
        "absent": None,
        "notes": ["moments of float32"],
    },
    {
        "name": "liger",
        "package": "liger-kernel",
        "ops": ["cross_entropy"],
        "devices": ["cuda"],
        "installed": None,
        "pinned": "0.6.4",
        "absent": "needs CUDA",
        "notes": [],
    },
]

EXAMPLE = {
    "name": "digits",
    "steps": 200,
    "runs": {
        "torch": {"seconds": 9.0, "accuracy": 0.97, "loss": 0.0812},
        "regops": {"seconds": 6.0, "accuracy": 0.971, "loss": 0.0799},
    },
    "of_seeds": [{"impl": impl, "seed": 0} for impl in ("torch", "regops")],
}


def sample() -> Summary:
    """Some rows wrong, failed, disturbed and throttled; fewer threads; a GPU and its graphs."""
    cpu, cuda = dropout(), dropout("cuda", slowdown=1.0)
    named = {each.group: each for each in (*cpu, *steps(), loss())}
    named["dropout-full-float32-16M-cpu"].others = 0.23
    named["dropout-forward-float32-1M-cpu"].slowdown = 1.44
    wrong = named["dropout-forward-bfloat16-1M-cpu"]
    del wrong.median["compile"]
    wrong.wrong["compile"] = "31 of 1048576 elements <differ> & more"
    failed = named["adamw-step-float32-16M-cpu"]
    failed.failed["deepspeed"] = "RuntimeError: no compiler"
    fewer = [
        each
        for each in dropout(threads=1)
        if (each.direction, each.dtype, each.size) == ("forward", "float32", "16M")
    ]
    graphs = [each for each in dropout("cuda", launch="graph") if each.in_cache]
    for each in (*fewer, *graphs):
        each.group += "-1-threads" if each in fewer else "-graph"
    return summary(
        *named.values(),
        *fewer,
        *cuda,
        *graphs,
        ceilings=ceilings(),
        peers=PEERS,
        end_to_end=[EXAMPLE],
    )
