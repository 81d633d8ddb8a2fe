"""What each process of test_distributed.py does with dropout: DTensors beside the whole tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
import regops.nn
import regops.random
from tests.processes import full, raises

KEY = regops.random.key(7)
SHAPES = [(5, 3, 6), (4, 8), (7,), (3, 0, 2), (1, 2), ()]


def run(mesh: DeviceMesh, rank: int) -> None:
    meshes = [mesh]
    if mesh.size() == 4:
        meshes.append(init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner")))
    for each in meshes:
        every_placement(each)
        gradients_on_other_placements(each)
        second_derivatives(each)
        keys_of_ranks(each, rank)
        in_place(each)
        other_reductions(each)
    layouts(mesh)
    checkpointed(mesh, rank)
    errors(mesh)
    dropconnect_module(mesh, rank)
    if mesh.size() == 2:  # compilation takes seconds, and more of them the more processes do it
        compiled(mesh)
    if mesh.size() == 4:
        strided_shards(meshes[1])
        outside_of_the_mesh(rank)


def _values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Whole numbers, so that sums of a few are exact in every order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-64, 64, shape, generator=generator).float()


def _placed(whole: Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    """A whole tensor, which every rank has, as a DTensor; without communication.

    A pending sum or average is of the ranks' multiples of it, a maximum or minimum of the tensor
    and of less or more.
    """
    settled = [Replicate() if place.is_partial() else place for place in placements]
    local = distribute_tensor(whole.clone(), mesh, settled, src_data_rank=None).to_local()
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    for index, size, place in zip(coordinate, mesh.shape, placements, strict=True):
        if not place.is_partial():
            continue
        if place.reduce_op == "sum":  # 1 - n + 1, and 1 of each other
            local = local * (2 - size if index == 0 else 1)
        elif place.reduce_op == "avg":
            local = local * (size if index == 0 else 0)
        else:
            local = local + index * (1 if place.reduce_op == "min" else -1)
    shape, stride = whole.shape, whole.stride()
    return DTensor.from_local(local, mesh, placements, shape=shape, stride=stride)


def _placements(mesh: DeviceMesh, dims: int) -> list[tuple[Any, ...]]:
    kinds: list[Any] = [Replicate(), Partial(), *map(Shard, range(dims))]
    return list(itertools.product(kinds, repeat=mesh.ndim))


def _check(output: Tensor, expected: Tensor, placements: Any) -> None:
    assert isinstance(output, DTensor)
    assert output.placements == tuple(placements)
    assert output.shape == expected.shape
    assert torch.equal(full(output), expected), placements


def every_placement(mesh: DeviceMesh) -> None:
    """Bit for bit the slice of the one mask: uneven shards, empty ones, two on one dimension."""
    for shape in SHAPES:
        for placements in _placements(mesh, len(shape)):
            input = _placed(_values(shape), mesh, placements)
            # At p = 1/2 the scale is 2, with which sums commute exactly.
            pending = any(place.is_partial() for place in placements)
            for p in (0.5,) if pending else (0.5, 0.3, 2.0**-18):
                expected = RF.dropout(_values(shape), p, key=KEY)
                _check(RF.dropout(input, p, key=KEY), expected, placements)
    whole = _values((6, 9)).bfloat16()
    shards = [Shard(0), Shard(1)][: mesh.ndim]
    _check(
        RF.dropout(_placed(whole, mesh, shards), 0.1, key=KEY),
        RF.dropout(whole, 0.1, key=KEY),
        shards,
    )


def other_reductions(mesh: DeviceMesh) -> None:
    """Maxima, minima and averages pass through; what cannot is reduced first, as torch does."""
    whole = _values((4, 6))
    rest = [Replicate()] * (mesh.ndim - 1)
    for kind, p in (("avg", 0.5), ("max", 0.3), ("min", 0.3)):
        placements = [Partial(kind), *rest]
        _check(
            RF.dropout(_placed(whole, mesh, placements), p, key=KEY),
            RF.dropout(whole, p, key=KEY),
            placements,
        )
    product = DTensor.from_local(whole, mesh, [Partial("product"), *rest])
    expected = RF.dropout(whole.pow(mesh.shape[0]), 0.3, key=KEY)
    replicated = [Replicate()] * mesh.ndim
    _check(RF.dropout(product, 0.3, key=KEY), expected, replicated)
    # An embedding whose rows are sharded: each rank has the rows of some tokens, masked.
    tokens = torch.tensor([0, 5, 3, 7, 7])
    rows = nn.functional.embedding(
        distribute_tensor(tokens, mesh, replicated, src_data_rank=None),
        _placed(_values((8, 4)), mesh, [Shard(0), *rest]),
    )
    assert type(rows.placements[0]) is not Partial  # type: ignore[attr-defined]
    assert rows.placements[0].is_partial()  # type: ignore[attr-defined]
    expected = RF.dropout(_values((8, 4))[tokens], 0.3, key=KEY)
    _check(RF.dropout(rows, 0.3, key=KEY), expected, replicated)


def gradients_on_other_placements(mesh: DeviceMesh) -> None:
    """The gradient has the mask of its own slice, wherever it comes."""
    whole, upstream = _values((4, 6)), _values((4, 6), 1)
    expected = RF.dropout(upstream, 0.5, key=KEY)
    for placements in _placements(mesh, 2):
        input = _placed(whole, mesh, placements).requires_grad_()
        output = RF.dropout(input, 0.5, key=KEY)
        for arriving in _placements(mesh, 2):
            gradient = _placed(upstream, mesh, arriving)
            (of_input,) = torch.autograd.grad(output, input, gradient, retain_graph=True)
            assert torch.equal(full(of_input), expected), (placements, arriving)


def second_derivatives(mesh: DeviceMesh) -> None:
    def penalty(input: Tensor) -> Tensor:
        output = RF.dropout(input, 0.5, key=KEY)
        (gradient,) = torch.autograd.grad((output**3).sum(), input, create_graph=True)
        return torch.autograd.grad((gradient**2).sum(), input)[0]

    whole = _values((5, 6))
    expected = penalty(whole.clone().requires_grad_())
    assert expected.count_nonzero() > 5
    for place in (Shard(0), Shard(1), Replicate()):
        input = _placed(whole, mesh, [place] * mesh.ndim).requires_grad_()
        torch.testing.assert_close(full(penalty(input)), expected, rtol=1e-6, atol=0)


def _collectives(function: Callable[[], object]) -> int:
    with CommDebugMode() as mode:
        function()
    return int(mode.get_total_counts())


def keys_of_ranks(mesh: DeviceMesh, rank: int) -> None:
    """Without key=, all ranks take the first one's, whatever their random states."""
    whole, module = _values((4, 6)), regops.nn.Dropout(0.3)
    torch.manual_seed(0)
    expected = RF.dropout(whole, 0.3)
    next_expected = RF.dropout(whole, 0.3)
    for place in (Replicate(), Shard(0)):
        placements = [place] * mesh.ndim
        input = _placed(whole, mesh, placements)
        torch.manual_seed(rank)
        _check(module(input), expected, placements)
        _check(module(input), next_expected, placements)
        generator = torch.Generator().manual_seed(rank)
        _check(RF.dropout(input, 0.3, generator=generator), expected, placements)
    assert torch.equal(input.to_local(), _placed(whole, mesh, placements).to_local())
    # One broadcast for each dimension of the mesh, and none where nothing must be agreed on.
    assert _collectives(lambda: module(input)) == mesh.ndim
    state = torch.get_rng_state()
    assert _collectives(lambda: RF.dropout(input, 0.3, key=KEY)) == 0
    assert _collectives(lambda: RF.dropout(input, 0.0)) == 0
    assert _collectives(lambda: RF.dropout(input, 1.0)) == 0
    assert RF.dropout(input, 0.3, training=False) is input
    assert not full(RF.dropout(input, 1.0)).any()
    assert torch.equal(torch.get_rng_state(), state)


def in_place(mesh: DeviceMesh) -> None:
    whole = _values((4, 6))
    for placements in _placements(mesh, 2):
        input = _placed(whole, mesh, placements)
        same = RF.dropout(input, 0.5, inplace=True, key=KEY)
        assert same is input
        _check(input, RF.dropout(whole, 0.5, key=KEY), placements)
        leaf = _placed(whole, mesh, placements).requires_grad_()
        moved = RF.dropout(leaf * 2.0, 0.5, inplace=True, key=KEY)
        (gradient,) = torch.autograd.grad(moved, leaf, _placed(whole, mesh, placements))
        assert torch.equal(full(gradient), RF.dropout(2.0 * whole, 0.5, key=KEY))
        raises(RuntimeError, "leaf", lambda leaf=leaf: RF.dropout(leaf, inplace=True, key=KEY))
        assert torch.equal(full(leaf), whole)


def layouts(mesh: DeviceMesh) -> None:
    """The logical index is that in the tensor's own shape, whatever its strides."""
    whole = _values((3, 6, 4))
    for place in (Shard(0), Shard(1), Shard(2)):
        of_whole = _placed(whole, mesh, [place])
        for view in (
            lambda x: x.transpose(0, 2),
            lambda x: x.permute(1, 2, 0),
            lambda x: x[:, :, 1:3] if place != Shard(2) else x[1:, :, :],  # noqa: B023
        ):
            input = view(of_whole)
            output = RF.dropout(input, 0.3, key=KEY)
            _check(output, RF.dropout(view(whole), 0.3, key=KEY), input.placements)


def checkpointed(mesh: DeviceMesh, rank: int) -> None:
    """Recomputation draws the same key again, and the ranks agree again."""
    whole = _values((4, 6))
    for reentrant in (False, True):
        torch.manual_seed(rank)
        input = _placed(whole, mesh, [Shard(0)]).requires_grad_()

        def twice(x: Tensor) -> Tensor:
            return RF.dropout(RF.dropout(x * x, 0.5) ** 2, 0.25)

        output = checkpoint(twice, input, use_reentrant=reentrant)
        torch.randn(rank + 1)
        output.sum().backward()
        torch.manual_seed(0)
        plain = whole.clone().requires_grad_()
        twice(plain).sum().backward()
        torch.testing.assert_close(full(input.grad), plain.grad, rtol=1e-6, atol=0)


def compiled(mesh: DeviceMesh) -> None:
    """One graph, the masks of eager code, and gradients through it."""
    module = regops.nn.Dropout(0.5)

    def keyed(x: Tensor, key: Tensor) -> Tensor:
        return RF.dropout(x * 2.0, 0.5, key=key) + 1.0

    def drawn(x: Tensor) -> Tensor:
        return module(x * 2.0) + 1.0

    torch._dynamo.reset()
    compiled_keyed = torch.compile(keyed, fullgraph=True, backend="aot_eager")
    compiled_drawn = torch.compile(drawn, fullgraph=True, backend="aot_eager")
    whole, upstream = _values((5, 6)), _values((5, 6), 1)
    for placements in ([Shard(0)], [Shard(1)]):
        for function, reference, arguments in (
            (compiled_keyed, keyed, (KEY,)),
            (compiled_drawn, drawn, ()),
        ):
            input = _placed(whole, mesh, placements).requires_grad_()
            torch.manual_seed(3)
            output = function(input, *arguments)
            output.backward(_placed(upstream, mesh, placements))
            plain = whole.clone().requires_grad_()
            torch.manual_seed(3)
            expected = reference(plain, *arguments)
            expected.backward(upstream)
            _check(output, expected.detach(), placements)
            assert torch.equal(full(input.grad), plain.grad)


def strided_shards(mesh: DeviceMesh) -> None:
    """Shards that are no range of the dimension, as flattening and FSDP2 with TP make them."""
    whole = _values((4, 6, 5))
    input = _placed(whole, mesh, [Shard(0), Shard(1)]).flatten(0, 1)
    assert isinstance(input.placements[1], _StridedShard)
    output = RF.dropout(input, 0.3, key=KEY)
    _check(output, RF.dropout(whole.flatten(0, 1), 0.3, key=KEY), input.placements)
    whole = _values((8, 3))
    for placements in (
        [_StridedShard(0, split_factor=2), Shard(0)],
        [_StridedShard(0, split_factor=2), Replicate()],
        [_StridedShard(0, split_factor=4), Shard(1)],
        [_StridedShard(0, split_factor=2), _StridedShard(0, split_factor=2)],
    ):
        input = _placed(whole, mesh, placements)
        output = RF.dropout(input, 0.3, key=KEY)
        expected = _placed(RF.dropout(whole, 0.3, key=KEY), mesh, placements)
        assert output.placements == tuple(placements)
        assert torch.equal(output.to_local(), expected.to_local())
    uneven = _placed(_values((7, 3)), mesh, [_StridedShard(0, split_factor=2), Replicate()])
    if uneven.to_local().shape[0] == 4:  # 2 of 4 and 2 of 3; the others have 2 and 1
        rows = RF.dropout(_values((7, 3)), 0.3, key=KEY)[[0, 1, 4, 5]]
        assert torch.equal(RF.dropout(uneven, 0.3, key=KEY).to_local(), rows)
    else:
        raises(
            NotImplementedError,
            "regops.dropout: expected shards of dimension 0 that are ranges of one length",
            lambda: RF.dropout(uneven, 0.3, key=KEY),
        )


def outside_of_the_mesh(rank: int) -> None:
    """A tensor of some ranks only: the others have none of it, and wait for nobody."""
    mesh = DeviceMesh("cpu", [1, 3])
    input = distribute_tensor(_values((4, 6)), mesh, [Shard(0)])
    torch.manual_seed(rank)
    output = RF.dropout(input, 0.3)
    torch.manual_seed(1)
    expected = RF.dropout(_values((4, 6)), 0.3)
    if mesh.get_coordinate() is None:
        assert output.to_local().numel() == 0
    else:
        assert torch.equal(full(output), expected)


def dropconnect_module(mesh: DeviceMesh, rank: int) -> None:
    """`regops.nn.DropConnect` around sharded weights: dropout of the whole weight."""
    whole = nn.Linear(6, 8, bias=False)
    nn.init.ones_(whole.weight)
    sharded = nn.Linear(6, 8, bias=False)
    sharded.weight = nn.Parameter(_placed(torch.ones(8, 6), mesh, [Shard(0)]))
    rows = torch.eye(6)
    torch.manual_seed(0)
    expected = regops.nn.DropConnect(whole, "weight", p=0.5)(rows)
    torch.manual_seed(rank)
    dropped = regops.nn.DropConnect(sharded, "weight", p=0.5)
    output = dropped(distribute_tensor(rows, mesh, [Replicate()], src_data_rank=None))
    _check(output, expected.detach(), [Shard(1)])


def errors(mesh: DeviceMesh) -> None:
    input = _placed(_values((4, 6)), mesh, [Replicate()])
    weight = _placed(_values((5, 6)), mesh, [Shard(0)])
    plain, half = torch.ones(5, 6), torch.tensor(0.5)
    target = torch.zeros(4, dtype=torch.int64)
    key = _placed(KEY, mesh, [Replicate()])
    for kind, message, function in (
        (TypeError, "regops.dropout: expected key", lambda: RF.dropout(input, key=key)),
        (TypeError, "regops.dropout: expected p: float", lambda: RF.dropout(input, "a")),
        (NotImplementedError, "regops.dropout: expected p: float", lambda: RF.dropout(input, half)),
        (ValueError, "regops.dropout: expected p in", lambda: RF.dropout(input, 1.5)),
        (ValueError, "regops.dropout: expected key", lambda: RF.dropout(input, key=KEY[:1])),
        (
            NotImplementedError,
            "regops.dropconnect_linear: expected Tensors, got DTensors for input, weight",
            lambda: RF.dropconnect_linear(input, weight),
        ),
        (
            NotImplementedError,
            "regops.dropconnect_moments: expected Tensors, got DTensors for input",
            lambda: RF.dropconnect_moments(input, plain),
        ),
        (
            NotImplementedError,
            "regops.linear_cross_entropy: expected Tensors, got DTensors for linear_weight",
            lambda: RF.linear_cross_entropy(torch.ones(4, 6), weight, target),
        ),
    ):
        raises(kind, message, function)
