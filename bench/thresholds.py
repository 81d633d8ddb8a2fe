"""The goals of regops, a line each: how fast, against whom, where, and where the figure comes from.

Every goal is a ratio of two figures of one run, of medians whose providers took turns or of peaks
of memory: absolute times say more about the machine than about regops. Only memory has limits in
bytes, too. There is no slack; `bench.check` reports a miss as a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.summary import Row


@dataclass(frozen=True)
class Threshold:
    """A bound on one ratio, for every row that matches.

    Attributes:
        op: The op.
        device: Kind of device.
        directions: Directions that it holds for, each by itself.
        dtypes: Types that it holds for, each by itself.
        sizes: Names of sizes, or the least number of elements.
        rival: Whose figure regops's is compared with; of extra memory there is none.
        bound: "at most": regops takes at most `limit` times the rival's time, or memory. "at
            least": regops is at least `limit` times as fast as the rival. "faster": it is faster.
        limit: The bound's figure.
        source: Where the figure comes from.
        quantity: What is bounded; memory is the peak of forward and backward beyond the inputs,
            extra memory what of it is beyond output and gradients too, in 10^6 bytes.
    """

    op: str
    device: str
    directions: tuple[str, ...]
    dtypes: tuple[str, ...]
    sizes: tuple[str, ...] | int
    rival: str
    bound: Literal["at most", "at least", "faster"]
    limit: float
    source: str
    quantity: Literal["time", "memory", "extra memory"] = "time"

    def matches(self, row: Row) -> bool:
        """Whether it holds for a row."""
        of_size = row.numel >= self.sizes if isinstance(self.sizes, int) else row.size in self.sizes
        return (
            of_size
            and row.op == self.op
            and row.device.split(":")[0] == self.device
            and row.direction in self.directions
            and row.dtype in self.dtypes
        )

    def measured(self, row: Row) -> float | None:
        """What is bounded; None if regops or the rival was not measured."""
        if self.quantity == "extra memory":
            return row.extra["regops"] / 1e6 if "regops" in row.extra else None
        if self.quantity == "memory":
            return row.memory_ratio(self.rival)
        speedup = row.speedup(self.rival)
        return 1 / speedup if speedup and self.bound == "at most" else speedup

    def met(self, measured: float) -> bool:
        """Whether what was measured is within the bound."""
        if self.bound == "at most":
            return measured <= self.limit
        return measured >= self.limit if self.bound == "at least" else measured > self.limit

    @property
    def wording(self) -> str:
        """The bound in words, as in "at least 15x as fast as eager"."""
        if self.quantity == "extra memory":
            return f"at most {self.limit:.4g} MB of memory beyond output and gradients"
        if self.bound == "at most":
            return f"at most {self.limit:.4g}x the {self.quantity} of {self.rival}"
        if self.bound == "at least":
            return f"at least {self.limit:.4g}x as fast as {self.rival}"
        return f"faster than {self.rival}"

    @property
    def unit(self) -> str:
        """Of what is bounded."""
        return " MB" if self.quantity == "extra memory" else "x"

    @property
    def scope(self) -> str:
        """The rows that it holds for, in words."""
        sizes = f">= {self.sizes} elements" if isinstance(self.sizes, int) else "/".join(self.sizes)
        return " ".join(("/".join(self.directions), "/".join(self.dtypes), sizes))


_COPY_SOURCE = "an AVX-512 loop of Philox took 1.02 copies (33.5M float32, one thread)"
_EAGER_SOURCE = "torch 2.13's dropout took as long as 18 to 40 copies"
_CALL_SOURCE = "a C++ op with C++ autograd took a third of F.dropout's time a call"
_TARGET_SOURCE = "a goal, not derived from a measurement"
_LOSS_SOURCE = (
    "a first trial took 1.45 copies, eager 16 and torch.compile 6 times as long as it (512 x 32768 "
    "float32, two threads)"
)
_FUSED_SOURCE = "torch 2.13's fused AdamW reaches 90 to 95 % of the stream"
_LIST_SOURCE = "torch's fused step took 14.5 ms where memory takes 3.5 (1000 tensors of 4096)"
_CLIP_SOURCE = "clipping in the step moves 32 bytes an element, beside it 40"
_AROUND_SOURCE = "all in the step moves 44 bytes an element, around it 56"
_STATES_SOURCE = "20 bytes an element and not 28, less what random rounding costs"
_LOGITS_SOURCE = "eager holds all logits and their log-probabilities; rows can be done in pieces"

_DROPCONNECT_SOURCE = "eager masks all weights first, at 13 to 20 ns a weight on one core"
_PANELS_SOURCE = "panels of weights are masked in cache, in place of a masked copy of all"
_MASKS_SOURCE = "the einsum's masks and masked weights, rows x out x in, are never in memory"

_FWD = ("forward",)
_PASSES = ("forward", "backward")
_ALL = ("forward", "backward", "full")
_FULL = ("full",)
_F32, _BF16 = ("float32",), ("bfloat16",)
_BOTH = ("float32", "bfloat16")

# "Forward" where torch is the rival at 16M and 64k: its backward is a multiplication by a stored
# mask, which costs memory (the report's column "state") rather than time.
_DROPOUT = tuple(
    Threshold("dropout", *columns)
    for columns in (
        ("cpu", _PASSES, _BOTH, ("16M",), "copy", "at most", 1.15, _COPY_SOURCE),
        ("cpu", _FWD, _F32, ("16M",), "eager", "at least", 15, _EAGER_SOURCE),
        ("cpu", _FWD, _BF16, ("16M",), "eager", "at least", 20, _EAGER_SOURCE),
        ("cpu", _FWD, _BOTH, ("16M",), "compile", "at least", 10, _TARGET_SOURCE),
        ("cpu", _FWD, _BOTH, ("64k",), "eager", "at least", 20, _TARGET_SOURCE),
        ("cpu", ("forward", "full"), _BOTH, ("64",), "eager", "at most", 1.0, _CALL_SOURCE),
        # 95 % of the copy's bandwidth.
        ("cuda", _PASSES, _BOTH, ("256M",), "copy", "at most", 1 / 0.95, _TARGET_SOURCE),
        ("cuda", _ALL, _BOTH, 1 << 20, "eager", "faster", 1.0, _TARGET_SOURCE),
        ("cuda", _ALL, _BOTH, 1 << 20, "compile", "faster", 1.0, _TARGET_SOURCE),
    )
)

_LARGE, _SHORT_ROWS = ("512x32768", "64x128256"), ("8192x10", "4096x1000")
_CROSS_ENTROPY = tuple(
    Threshold("cross_entropy", "cpu", *columns)
    for columns in (
        (_FULL, _BOTH, _LARGE, "copy", "at most", 1.8, _LOSS_SOURCE),
        (_FULL, _BOTH, _LARGE, "eager", "at least", 10, _LOSS_SOURCE),
        (_FULL, _BOTH, _LARGE, "compile", "at least", 4, _LOSS_SOURCE),
        (_FULL, _BOTH, _SHORT_ROWS, "eager", "at least", 3, _TARGET_SOURCE),
        (("full", "inference"), _BOTH, ("1x10",), "eager", "at most", 1.0, _CALL_SOURCE),
    )
)

_VOCABULARY = ("4096x512x32768",)
_LINEAR_CROSS_ENTROPY = tuple(
    Threshold("linear_cross_entropy", "cpu", *columns)
    for columns in (
        (_FULL, _BOTH, _VOCABULARY, "eager", "at most", 1.0, _TARGET_SOURCE),
        (_FULL, _BOTH, _VOCABULARY, "eager", "at most", 0.25, _LOGITS_SOURCE, "memory"),
    )
)

_STEP = ("step",)
_CLIP, _AROUND = ("16M-clip", "1000x4096-clip"), ("16M-clip-zero-ema", "1000x4096-clip-zero-ema")
_ADAMW = tuple(
    Threshold("adamw", columns[0], _STEP, _F32, *columns[1:])
    for columns in (
        ("cpu", ("16M",), "fused", "at least", 0.97, _FUSED_SOURCE),
        ("cpu", ("16M",), "stream", "at most", 1 / 0.9, _FUSED_SOURCE),
        ("cpu", ("1000x4096",), "fused", "at least", 2.5, _LIST_SOURCE),
        ("cpu", _CLIP, "fused", "at least", 1.2, _CLIP_SOURCE),
        ("cpu", _AROUND, "fused", "at least", 1.5, _AROUND_SOURCE),
        ("cpu", ("16M-bf16-states",), "float32-states", "at least", 1.25, _STATES_SOURCE),
        # 93 % of the copy's bandwidth.
        ("cuda", ("1G",), "copy", "at most", 1 / 0.93, _TARGET_SOURCE),
        ("cuda", ("GPT1.3B",), "fused", "at least", 1.0, _TARGET_SOURCE),
        ("cuda", ("GPT1.3B-clip",), "fused", "at least", 1.2, _CLIP_SOURCE),
    )
)

_WIDE, _LAYERS = ("256x4096-4096",), ("8x4096-4096", "256x4096-4096")
_SAMPLE_SIZE = ("64x1024-1024-sample",)
_DROPCONNECT_LINEAR = tuple(
    Threshold("dropconnect_linear", *columns)
    for columns in (
        ("cpu", _FULL, _F32, _WIDE, "linear", "at most", 1.2, _PANELS_SOURCE),
        ("cpu", _FULL, _F32, _WIDE, "eager", "at least", 3, _DROPCONNECT_SOURCE),
        ("cpu", _FULL, _F32, _LAYERS[:1], "eager", "at least", 4, _DROPCONNECT_SOURCE),
        ("cpu", _FULL, _F32, _SAMPLE_SIZE, "eager", "at least", 10, _MASKS_SOURCE),
        ("cpu", _FULL, _BOTH, _LAYERS, "", "at most", 4, _PANELS_SOURCE, "extra memory"),
        ("cpu", _FULL, _F32, _SAMPLE_SIZE, "", "at most", 4, _MASKS_SOURCE, "extra memory"),
        ("cuda", _FULL, _BF16, ("2048x4096-4096",), "linear", "at most", 1.08, _TARGET_SOURCE),
        # 85 % of the bandwidth at which the weights could be read: of the copy's, which moves as
        # many bytes as forward must, half of them in and half out.
        (
            "cuda",
            _FWD,
            _BOTH,
            ("8x4096-4096", "64x4096-4096"),
            "copy",
            "at most",
            1 / 0.85,
            _TARGET_SOURCE,
        ),
    )
)

THRESHOLDS = _DROPOUT + _CROSS_ENTROPY + _LINEAR_CROSS_ENTROPY + _DROPCONNECT_LINEAR + _ADAMW
