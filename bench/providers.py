"""Who is timed: torch's op eager and compiled, regops, a plain copy, and other libraries.

Where the op is more than its bytes, what is left of it without its regularization is timed as well:
a ceiling, as the copy is, and no rival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

from bench.libraries import Arguments, Call, Peer, peers_on
from bench.peers import PEERS
from bench.setting import USUAL, Setting, cache_state, lacking
from bench.timing import Run
from regops import _C
from regops.testing import BenchCase, Direction, OpSpec, differentiated, make_input

BUILT_IN = ("eager", "compile", "regops", "copy")


@dataclass(frozen=True)
class Inputs:
    """What every provider of a point is called on.

    Attributes:
        x: Requires grad, so that forward records the graph for everyone.
        arguments: Keyword arguments, less the key of ops that draw random numbers.
    """

    x: Tensor
    arguments: Arguments

    @property
    def differentiated(self) -> tuple[Tensor, ...]:
        """The tensors whose gradients backward makes."""
        return differentiated(self.x, self.arguments)


@dataclass(frozen=True, eq=False)
class Point:
    """An op at one dtype and size on one device: what a set of providers is compared on."""

    spec: OpSpec
    case: BenchCase
    dtype: torch.dtype
    device: str
    setting: Setting = USUAL

    @property
    def op(self) -> str:
        """The op's name."""
        return self.spec.name

    @property
    def size(self) -> str:
        """As in "16M" or "512x32768"."""
        return self.case.name

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What is timed."""
        return self.case.directions or self.spec.directions

    @property
    def dtype_name(self) -> str:
        """As in "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache(self) -> str:
        """Where its buffers are when a turn begins, as of `bench.summary.Row`."""
        return cache_state(self.case.in_cache, self.device)

    @property
    def too_large(self) -> str | None:
        """Why the device has no room for it, if it has none."""
        # Inputs, results and gradients; the masks and copies in float64 of comparing them.
        return lacking(100 * self.case.numel, torch.device(self.device))

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Other libraries that have the op, and all of its options, on this device."""
        return peers_on(self.device, PEERS.get(self.op, {}), self.case.kwargs)

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of all, installed or not."""
        above = () if self.case.ceiling in BUILT_IN else (self.case.ceiling,)
        return (*BUILT_IN, *above, *self.peers)

    @property
    def facts(self) -> dict[str, Any]:
        """What is on record beside the times."""
        return {
            "shape": list(self.case.shape),
            "kwargs": dict(self.case.kwargs),
            "tensors": 1,
            "numel": self.case.numel,
            "bytes_formula": self.spec.bytes_formula,
        }

    def flops(self, direction: Direction) -> int:
        """Operations of the matrix products that it must make."""
        return self.spec.flops(self.case, direction) if self.spec.flops else 0

    def bytes_moved(self, direction: Direction) -> int:
        """Bytes that the operation must read and write."""
        return self.spec.bytes_moved(self.case, self.dtype.itemsize, direction)

    def inputs(self) -> Inputs:
        """The same for every provider, and made once: they may fill much of the memory."""
        x = make_input(self.case.shape, self.dtype, self.device).requires_grad_()
        return Inputs(x, self.spec.arguments(self.case, self.dtype, self.device))

    def group(self, direction: Direction) -> str:
        """Name of the benchmark group, as in "dropout-forward-float32-16M-cpu"."""
        return self.setting.group(
            self.spec.name, direction, self.dtype_name, self.case.name, self.device
        )


def replayed(run: Run) -> Run:
    """Replays of what a call does on the GPU, captured once as a CUDA graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):  # what allocates or compiles at its first calls cannot be captured
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def build(name: str, point: Point, arguments: Arguments) -> Call:
    """The function that a provider offers for an op, as its user would call it.

    `regops` draws its key from torch's generator within the call, as eager draws its mask.
    """
    spec = point.spec
    if name == "eager":
        return lambda x: spec.eager(x, **arguments)
    if name == "regops":
        return lambda x: spec.functional(x, **arguments)
    if name == "compile":
        return _compiled(point, arguments)
    if name in spec.ceilings:
        return lambda x: spec.ceilings[name](x, **arguments)
    call: Call = point.peers[name].build(point, arguments)
    return call


def _compiled(point: Point, arguments: Arguments) -> Call:
    # Inductor's pool of compile workers would import torch on every core while others are timed: a
    # parallel region that waits for a busy core took milliseconds instead of microseconds.
    torch._inductor.config.compile_threads = 1
    # Without the reset the ninth size of an op would run into dynamo's recompile limit: all sizes
    # share the code of `call`.
    torch.compiler.reset()
    # The backward alone is timed with retain_graph=True, which compiled code only allows if it may
    # not reuse the buffers that forward saved.
    torch._functorch.config.donated_buffer = False

    def call(x: Tensor) -> Tensor:
        return point.spec.eager(x, **arguments)

    return torch.compile(call, fullgraph=True, dynamic=False)


def copier(device: str) -> Call:
    """The copy that others are compared with; like them it allocates what it returns."""
    return torch.clone if torch.device(device).type == "cuda" else _C.copy


def copy_sources(point: Point) -> dict[Direction, tuple[Tensor, ...]]:
    """Random bytes whose copy moves as many as the op: each is read once and written once."""

    def filled(direction: Direction) -> Tensor:
        count = point.bytes_moved(direction) // (2 * point.dtype.itemsize)
        source = torch.empty(count, dtype=point.dtype, device=point.device)
        source.view(torch.uint8).random_()
        return source

    # In full, as one after the other where both are timed: a cache may hold one and not both.
    directions = point.directions
    alone = {name: (filled(name),) for name in directions if name != "full"}
    if {"forward", "backward"} <= alone.keys():
        both = alone["forward"] + alone["backward"]
    else:
        both = (filled("full"),)
    return {name: alone.get(name, both) for name in directions}


def upstream_gradient(y: Tensor) -> Tensor | None:
    """Gradient of an output: random, or for a loss none, of which backward makes a 1."""
    if y.dim() == 0:
        return None
    return make_input(tuple(y.shape), y.dtype, y.device, seed=1)


def runs(call: Call, inputs: Inputs, directions: tuple[Direction, ...]) -> dict[Direction, Run]:
    """The things that are timed of an op.

    Args:
        call: The op.
        inputs: What it is called on.
        directions: Which of them.
    """
    x, tensors = inputs.x, inputs.differentiated
    y: Tensor | None = call(x)
    grad = upstream_gradient(y)
    if "backward" not in directions:
        y = None  # with all that it keeps for backward

    def inference() -> Tensor:
        with torch.no_grad():
            return call(x)

    every: dict[Direction, Run] = {
        "forward": lambda: call(x),
        "backward": lambda: torch.autograd.grad(y, tensors, grad, retain_graph=True),
        "full": lambda: torch.autograd.grad(call(x), tensors, grad),
        "inference": inference,
    }
    return {direction: every[direction] for direction in directions}


def copy_runs(copy: Call, sources: dict[Direction, tuple[Tensor, ...]]) -> dict[Direction, Run]:
    """The copy in place of each of `runs`."""

    def run(tensors: tuple[Tensor, ...]) -> Run:
        if len(tensors) == 1:
            return lambda only=tensors[0]: copy(only)
        return lambda: [copy(tensor) for tensor in tensors]

    return {direction: run(tensors) for direction, tensors in sources.items()}
