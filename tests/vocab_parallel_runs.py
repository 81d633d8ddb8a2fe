"""What each process of test_vocab_parallel_cross_entropy.py does: DTensors beside the whole."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing import assert_close

import regops.functional as RF
import regops.nn
from tests.cross_entropy_problems import logits
from tests.processes import full, group, raises
from tests.vocab_parallel_problems import (
    OPTIONS,
    ShardedProblem,
    ShardedResults,
    check,
    expected,
    problem_of,
    small_problem,
)


def process(rank: int, size: int, store: str) -> None:
    """All checks in one process, as starting one costs seconds."""
    with group(rank, size, store):
        mesh = init_device_mesh("cpu", (size,))
        placed: list[tuple[DeviceMesh, list[Any]]] = [
            (mesh, [Shard(1)]),
            (mesh, [Shard(0)]),
            (mesh, [Replicate()]),
        ]
        if size == 4:
            square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            placed += [
                (square, [Shard(0), Shard(1)]),
                (square, [Shard(1), Shard(0)]),
                (square, [Replicate(), Shard(1)]),
                (square, [Shard(0), Shard(0)]),
            ]
            strided(square)
        for of_mesh, placements in placed:
            for options in OPTIONS:
                as_whole(of_mesh, placements, small_problem(options, torch.float32, 10))
            for dtype in (torch.float64, torch.bfloat16, torch.float16):
                as_whole(of_mesh, placements, small_problem("everything", dtype, 11))
            for classes in (1, 3):  # fewer than processes
                as_whole(of_mesh, placements, small_problem("everything", torch.float32, classes))
            distributed_arguments(of_mesh, placements)
            out_of_range(of_mesh, placements)
        one_collective(mesh)
        as_loss_parallel(mesh)
        single_example(mesh)
        more_dimensions(mesh)
        module(mesh)
        no_rows(mesh)
        equal_bits(mesh)
        if size == 2:
            compiled(mesh)  # which takes seconds
        errors(mesh)


def disagrees(rank: int, size: int, store: str) -> None:
    """The first process has fewer rows than the second."""
    with group(rank, size, store, seconds=20.0):
        mesh = init_device_mesh("cpu", (size,))
        rows = 3 + rank
        x = DTensor.from_local(torch.randn(rows, 5), mesh, [Shard(1)])
        RF.cross_entropy(x, torch.zeros(rows, dtype=torch.int64))


def _seeded(problem_function: Any, *arguments: Any, **options: Any) -> Any:
    """The same in every process."""
    torch.manual_seed(0)
    return problem_function(*arguments, **options)


def _loss(x: Tensor, problem: ShardedProblem) -> tuple[Tensor, Tensor | None]:
    result = RF.cross_entropy(x, problem.target, **problem.options)
    return result if isinstance(result, tuple) else (result, None)


def as_whole(mesh: DeviceMesh, placements: list[Any], problem: ShardedProblem) -> None:
    """Loss, lse and gradient of every placement are those of one process."""
    # Tensors were drawn by each process for itself.
    for name, value in problem.options.items():
        if isinstance(value, Tensor):
            problem.options[name] = _agreed(value, mesh)
    for name in ("input", "target", "upstream", "upstream_lse"):
        value = getattr(problem, name)
        if value is not None:
            setattr(problem, name, _agreed(value, mesh))
    x = distribute_tensor(problem.input, mesh, placements).requires_grad_()
    loss, lse = _loss(x, problem)
    assert isinstance(loss, DTensor)
    assert loss.dtype == problem.real
    by_row = problem.options.get("reduction") == "none"
    assert loss.shape == (problem.target.shape if by_row else ())
    assert loss.placements == tuple(
        place if by_row and place == Shard(0) else Replicate() for place in placements
    )
    weighted = (loss * _like(problem.upstream, loss)).sum()
    if lse is not None:
        assert problem.upstream_lse is not None
        weighted = weighted + (lse * _like(problem.upstream_lse, lse)).sum()
    weighted.backward()
    assert isinstance(x.grad, DTensor)
    assert x.grad.placements == tuple(placements)
    assert x.grad.dtype == x.dtype
    got = ShardedResults(full(loss), None if lse is None else full(lse), full(x.grad))
    check(problem, got, expected(problem))


def _agreed(value: Tensor, mesh: DeviceMesh) -> Tensor:
    return distribute_tensor(value, mesh, [Replicate()] * mesh.ndim).to_local()


def _like(upstream: Tensor, of: Tensor) -> DTensor:
    assert isinstance(of, DTensor)
    placements = of.placements if upstream.dim() else [Replicate()] * of.device_mesh.ndim
    return distribute_tensor(upstream, of.device_mesh, placements)


def distributed_arguments(mesh: DeviceMesh, placements: list[Any]) -> None:
    """Target and weight as DTensors of several placements, and a sum of items still to be made."""
    problem = _seeded(problem_of, torch.randn(8, 12), weight=True, label_smoothing=0.1)
    x = distribute_tensor(problem.input, mesh, placements)
    by_row = [place if place == Shard(0) else Replicate() for place in placements]
    by_class = [Shard(0) if place == Shard(1) else Replicate() for place in placements]
    want = RF.cross_entropy(problem.input, problem.target, **problem.options)
    items = DTensor.from_local(torch.tensor(2.0), mesh, [Partial()] * mesh.ndim)
    for of_target, of_weight in (
        ([Replicate()] * mesh.ndim, [Replicate()] * mesh.ndim),
        (by_row, by_class),
        ([Shard(0)] * mesh.ndim, [Shard(0)] * mesh.ndim),
    ):
        target = distribute_tensor(problem.target, mesh, of_target)
        weight = distribute_tensor(problem.options["weight"], mesh, of_weight)
        got = RF.cross_entropy(x, target, weight, label_smoothing=0.1)
        assert_close(full(got), want)
        got = RF.cross_entropy(x, target, weight, label_smoothing=0.1, num_items=items)
        options = problem.options | {"num_items": 2.0 * mesh.size()}
        assert_close(full(got), RF.cross_entropy(problem.input, problem.target, **options))


def out_of_range(mesh: DeviceMesh, placements: list[Any]) -> None:
    """All processes raise, also those that have none of the row."""
    x = distribute_tensor(torch.randn(8, 12), mesh, placements)
    target = torch.zeros(8, dtype=torch.int64)
    target[5] = 12
    for reduction in ("mean", "sum"):
        loss_function = regops.nn.CrossEntropyLoss(reduction=reduction)
        raises(
            IndexError,
            "cross_entropy: expected target",
            functools.partial(loss_function, x, target),
        )
    x = distribute_tensor(torch.randn(8, 12), mesh, placements)  # they still work together
    assert full(RF.cross_entropy(x, target.clamp(max=11))).isfinite()


def one_collective(mesh: DeviceMesh) -> None:
    """A gather of 24 bytes a row forward, nothing backward."""
    x = distribute_tensor(torch.randn(6, 12), mesh, [Shard(1)]).requires_grad_()
    target = torch.arange(6)
    with CommDebugMode() as forward:
        loss = RF.cross_entropy(x, target, torch.ones(12), label_smoothing=0.1)
    assert forward.get_total_counts() == 1
    counts = {str(op): count for op, count in forward.get_comm_counts().items() if count}
    assert list(counts) == ["c10d_functional.all_gather_into_tensor"], counts
    with CommDebugMode() as backward:
        loss.backward()
    assert backward.get_total_counts() == 0


def as_loss_parallel(mesh: DeviceMesh) -> None:
    """Torch's own, where it applies."""
    torch.manual_seed(0)
    whole, target = torch.randn(6, 13), torch.tensor([0, 12, 3, -100, 5, 7])
    gradients = []
    for reduction in ("mean", "sum"):
        x = distribute_tensor(whole, mesh, [Shard(1)]).requires_grad_()
        with loss_parallel():
            theirs = torch.nn.functional.cross_entropy(x, target, reduction=reduction)
            theirs.backward()
        gradients.append(full(x.grad))
        x = distribute_tensor(whole, mesh, [Shard(1)]).requires_grad_()
        ours = RF.cross_entropy(x, target, reduction=reduction)
        ours.backward()
        assert_close(full(ours), full(theirs))
        assert_close(full(x.grad), gradients[-1])


def single_example(mesh: DeviceMesh) -> None:
    whole = _seeded(torch.randn, 9)
    x = distribute_tensor(whole, mesh, [Shard(0)]).requires_grad_()
    loss, lse = RF.cross_entropy(x, torch.tensor(7), label_smoothing=0.1, return_lse=True)
    assert loss.shape == lse.shape == ()
    loss.backward()
    alone = whole.clone().requires_grad_()
    RF.cross_entropy(alone, torch.tensor(7), label_smoothing=0.1).backward()
    assert_close(full(x.grad), alone.grad)
    assert_close(full(lse), whole.logsumexp(0))


def more_dimensions(mesh: DeviceMesh) -> None:
    """(N, C, d1, d2), of both orders of memory."""
    torch.manual_seed(0)
    whole, target = torch.randn(3, 10, 2, 4), torch.randint(10, (3, 2, 4))
    for memory in (torch.contiguous_format, torch.channels_last):
        for reduction in ("none", "mean"):
            alone = whole.clone().requires_grad_()
            want = RF.cross_entropy(alone, target, reduction=reduction, label_smoothing=0.1)
            want.sum().backward()
            for placements in ([Shard(1)], [Shard(0)]):
                x = distribute_tensor(whole.to(memory_format=memory), mesh, placements)
                x.requires_grad_()
                got = RF.cross_entropy(x, target, reduction=reduction, label_smoothing=0.1)
                got.sum().backward()
                assert_close(full(got), want.detach())
                assert_close(full(x.grad), alone.grad)


def module(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    whole, target = torch.randn(6, 13), torch.randint(13, (6,))
    loss_function = regops.nn.CrossEntropyLoss(torch.rand(13), label_smoothing=0.1)
    loss = loss_function(distribute_tensor(whole, mesh, [Shard(1)]), target)
    assert_close(full(loss), loss_function(whole, target))


def no_rows(mesh: DeviceMesh) -> None:
    for placement in (Shard(0), Shard(1)):
        x = distribute_tensor(torch.randn(0, 13), mesh, [placement]).requires_grad_()
        target = torch.zeros(0, dtype=torch.int64)
        loss = RF.cross_entropy(x, target)
        assert full(loss).isnan()
        loss.backward()
        assert x.grad.shape == (0, 13)
        assert full(RF.cross_entropy(x, target, reduction="sum")) == 0


def equal_bits(mesh: DeviceMesh) -> None:
    """Every process has the same loss, or their parameters would drift apart."""
    problem = _seeded(problem_of, logits((64, 50), torch.float32), label_smoothing=0.1)
    x = distribute_tensor(problem.input, mesh, [Shard(1)])
    loss = RF.cross_entropy(x, problem.target, reduction="none", label_smoothing=0.1)
    of_all = DTensor.from_local(loss.to_local(), mesh, [Shard(0)]).full_tensor()
    for other in of_all.chunk(mesh.size()):
        assert torch.equal(other, loss.to_local())


def compiled(mesh: DeviceMesh) -> None:
    """In one graph with the layer before it."""
    torch.manual_seed(0)
    x, target = torch.randn(6, 5), torch.randint(13, (6,))
    weight = torch.randn(13, 5)

    def loss_of(x: Tensor, weight: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(x, weight)
        return RF.cross_entropy(logits, target, label_smoothing=0.1)

    alone = weight.clone().requires_grad_()
    want = loss_of(x, alone)
    want.backward()
    for function in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        sharded = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
        got = function(distribute_tensor(x, mesh, [Replicate()]), sharded)
        got.backward()
        assert_close(full(got), want.detach())
        assert_close(full(sharded.grad), alone.grad)


def strided(mesh: DeviceMesh) -> None:
    """Classes over two dimensions of a mesh."""
    x = distribute_tensor(torch.randn(8, 12), mesh, [Shard(1), Shard(1)])
    target = torch.zeros(8, dtype=torch.int64)
    raises(NotImplementedError, "in one dimension of the mesh", lambda: RF.cross_entropy(x, target))


def errors(mesh: DeviceMesh) -> None:
    """None of them waits for another process."""
    target = torch.zeros(4, dtype=torch.int64)
    x = distribute_tensor(torch.randn(4, 12), mesh, [Shard(1)])

    def fails(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
        raises(kind, message, lambda: RF.cross_entropy(*arguments, **options))

    for name, value in (
        ("target_b", target),
        ("lam", torch.tensor(0.5)),
        ("entropy_weight", 0.1),
        ("inplace_backward", True),
        ("check", "sync"),
    ):
        fails(NotImplementedError, f"got {name}", x, target, **{name: value})
    fails(NotImplementedError, "got probabilities", x, torch.rand(4, 12))
    pending = DTensor.from_local(torch.randn(4, 12), mesh, [Partial()])
    fails(NotImplementedError, "to be placed as", pending, target)
    other = distribute_tensor(torch.randn(4, 12, 4), mesh, [Shard(2)])
    fails(NotImplementedError, "Shard(dim=2)", other, torch.zeros(4, 4, dtype=torch.int64))
    fails(ValueError, "target of shape (4,), that of all processes", x, target[:3])
    fails(RuntimeError, "weight of shape [12]", x, target, torch.ones(6))
    fails(RuntimeError, "label_smoothing in [0, 1]", x, target, label_smoothing=1.5)
    fails(ValueError, 'reduction "none", "mean" or "sum"', x, target, reduction="median")
    fails(TypeError, "ignore_index", x, target, ignore_index=True)
    uneven = DTensor.from_local(torch.randn(4, 5 + (mesh.get_rank() == 0)), mesh, [Shard(1)])
    fails(ValueError, "from_local needs shape=", uneven, target)
    whole = distribute_tensor(target, init_device_mesh("cpu", (1, mesh.size())))
    fails(ValueError, "target on the input's mesh", x, whole)
    fails(TypeError, "expected target: Tensor, got list", x, [0, 0, 0, 0])
    fails(NotImplementedError, "got DTensors for target", x.full_tensor(), whole)
    grown = x.detach().requires_grad_()
    loss = RF.cross_entropy(grown, target)
    raises(
        NotImplementedError,
        "create_graph=False",
        lambda: torch.autograd.grad(loss, grown, create_graph=True),
    )
    assert math.isfinite(full(loss).item())
