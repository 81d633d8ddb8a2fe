"""What the machine can do, timed in the same run as the ops: streams of memory, a matrix product.

The op's own ceiling stands beside each row as well, in turns with it: as many bytes as it must
move, or its products alone. These here are those of the machine, for reading GB/s and GFLOP/s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.providers import Peer, copier
from bench.setting import USUAL, Setting, cache_state, lacking
from bench.summary import MACHINE
from bench.timing import Run
from bench.verify import verify_copy, verify_stream
from regops import _C
from regops.testing import make_input

# A tensor of what a stream moves: three of them are rewritten, and a fourth is read.
_STREAMED = 7

# Of a linear layer at a time: enough for a product's full speed.
_ROWS = 1024

_PROVIDERS = {
    "move": ("copy", "in-place", "4-read-3-write"),
    "multiply": ("matmul",),
}


@dataclass(frozen=True, eq=False)
class CeilingPoint:
    """Bytes to move, or a product to make, of one type on one device.

    Attributes:
        direction: "move" or "multiply".
        size: As in "128MiB" or "2048x2048x2048".
        count: Bytes that are read or written, all together; or rows of each square matrix.
        dtype: Of what is multiplied; where bytes are moved it says nothing.
        device: Where.
        setting: How.
    """

    direction: str
    size: str
    count: int
    dtype: torch.dtype
    device: str
    setting: Setting = USUAL

    op: str = MACHINE
    peers: Mapping[str, Peer] = field(default_factory=dict)

    @property
    def directions(self) -> tuple[str, ...]:
        """What is timed."""
        return (self.direction,)

    @property
    def dtype_name(self) -> str:
        """As in "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def providers(self) -> tuple[str, ...]:
        """Of what is timed in turns."""
        return _PROVIDERS[self.direction]

    @property
    def cache(self) -> str:
        """Far more is moved than a cache holds."""
        return cache_state(self.direction == "multiply", self.device)

    @property
    def too_large(self) -> str | None:
        """Why the device has no room for it, if it has none."""
        return lacking(2 * self.bytes_moved(self.direction), torch.device(self.device))

    @property
    def facts(self) -> dict[str, Any]:
        """What is on record beside the times."""
        moving = self.direction == "move"
        return {
            "tensors": 1,
            "numel": self.count if moving else self.count**2,
            "bytes_formula": "as many bytes for each, half of them read and half written but of "
            "4-read-3-write"
            if moving
            else "two matrices are read and one is written",
        }

    def flops(self, direction: str) -> int:
        """Operations of the product."""
        return 2 * self.count**3 if self.direction == "multiply" else 0

    def bytes_moved(self, direction: str) -> int:
        """Bytes that are read and written."""
        if self.direction == "move":
            return self.count
        return 3 * self.count**2 * self.dtype.itemsize

    def group(self, direction: str) -> str:
        """Name of the benchmark group, as in "machine-move-float32-128MiB-cpu"."""
        return self.setting.group(MACHINE, direction, self.dtype_name, self.size, self.device)


@dataclass(frozen=True)
class CeilingSpec:
    """What `bench_machine` times, as the specs of ops say what theirs do.

    Attributes:
        megabytes: Moved, by kind of device.
        rows: Of square matrices, by kind of device.
    """

    megabytes: Mapping[str, int]
    rows: Mapping[str, int]

    name: str = MACHINE

    def points(
        self, dtypes: tuple[torch.dtype, ...], device: str, setting: Setting = USUAL
    ) -> Iterator[CeilingPoint]:
        """A stream, and a product of each type."""
        kind = torch.device(device).type
        size, rows = self.megabytes[kind], self.rows[kind]
        yield CeilingPoint("move", f"{size}MiB", size << 20, torch.float32, device, setting)
        for dtype in dtypes:
            if kind == "cpu" and dtype == torch.float16:
                continue  # without instructions for it a product took 23 s, of bfloat16 0.05
            yield CeilingPoint("multiply", "x".join([str(rows)] * 3), rows, dtype, device, setting)


def prepare(point: CeilingPoint) -> Callable[[str], Run]:
    """Makes what a provider runs, verified, from its name."""
    if point.direction == "multiply":
        return lambda name: _product(point)
    return lambda name: _MOVES[name](point)


def _product(point: CeilingPoint) -> Run:
    shape = (point.count, point.count)
    first, second = (make_input(shape, point.dtype, point.device, seed=seed) for seed in (1, 2))
    out = torch.empty_like(first)

    def run() -> Tensor:
        return torch.mm(first, second, out=out)

    # Of some rows only: float64 takes long. The roundings of a sum of n add up as its root does.
    some = first[:8].double()
    unit = torch.finfo(torch.float32).eps / 2
    most = (some.abs() @ second.double().abs()).max().item()
    torch.testing.assert_close(
        run()[:8].double(),
        some @ second.double(),
        rtol=torch.finfo(point.dtype).eps,
        atol=point.count**0.5 * unit * most,
    )
    return run


def linear_products(x: Tensor, weight: Tensor) -> Run:
    """The three products of a linear layer and its backward, with no more memory than results take.

    Args:
        x: Rows of features.
        weight: Outputs by features.

    Returns:
        What makes them, verified. The gradient of the output is the output here.
    """
    x, weight = x.detach(), weight.detach()
    rows = min(len(x), _ROWS)
    if len(x) % rows:
        raise ValueError(f"expected a multiple of {rows} rows, got {len(x)}")
    y = torch.empty(rows, len(weight), dtype=x.dtype, device=x.device)
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)

    def run() -> None:
        dweight.zero_()
        for piece, of_piece in zip(x.split(rows), dx.split(rows), strict=True):
            torch.mm(piece, weight.T, out=y)
            torch.mm(y, weight, out=of_piece)
            dweight.addmm_(y.T, piece)

    run()
    some = slice(0, 2)
    expected = x[some].double() @ weight.double().T @ weight.double()
    atol = 16 * torch.finfo(x.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(dx[some].double(), expected, rtol=0.0, atol=atol)
    some_weights = (x.double() @ weight[some].double().T).T @ x.double()
    atol = 16 * torch.finfo(x.dtype).eps * some_weights.abs().max().item()
    torch.testing.assert_close(dweight[some].double(), some_weights, rtol=0.0, atol=atol)
    return run


def _copy(point: CeilingPoint) -> Run:
    copy, (source,) = copier(point.device), _filled(point, point.count // 2, 1)
    verify_copy(copy, source)
    return lambda: copy(source)


def _in_place(point: CeilingPoint) -> Run:
    written = _filled(point, point.count // 2, 1)
    return _stream(point, written, [])


def _four_read_three_written(point: CeilingPoint) -> Run:
    tensors = _filled(point, point.count // _STREAMED, 4)
    return _stream(point, tensors[:3], tensors[3:])


_MOVES: dict[str, Callable[[CeilingPoint], Run]] = dict(
    zip(_PROVIDERS["move"], (_copy, _in_place, _four_read_three_written), strict=True)
)


def _filled(point: CeilingPoint, size: int, count: int) -> list[Tensor]:
    """Written to, for pages of zeros that never were would all be one page of memory."""
    elements = size // 4
    return [torch.ones(elements, dtype=torch.int32, device=point.device) for _ in range(count)]


def _stream(point: CeilingPoint, written: list[Tensor], read: list[Tensor]) -> Run:
    if torch.device(point.device).type == "cpu":
        lists = [[[tensor] for tensor in tensors] for tensors in (written, read)]
        verify_stream(*lists)
        return lambda: _C.read_write_(*lists)

    # One kernel, and as many bytes: what is read has to show in what is written.
    @torch.compile(dynamic=False)
    def run() -> None:
        for tensor in written:
            tensor.bitwise_xor_(read[0]) if read else tensor.bitwise_not_()

    before = [tensor.clone() for tensor in written]
    run()
    for tensor, old in zip(written, before, strict=True):
        if not torch.equal(tensor, old ^ read[0] if read else ~old):
            raise AssertionError("the stream did not rewrite its tensors")
    return run
