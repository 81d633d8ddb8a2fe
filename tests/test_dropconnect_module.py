"""`regops.nn.DropConnect`: masks that reach the computation, of torch's RNNs above all.

The oracle is the plain module, called with weights that `RF.dropout` masks under the same seed.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize, parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import regops.functional as RF
import regops.nn
from regops.nn import DropConnect

nan = float("nan")
RNNS = [nn.RNN, nn.LSTM, nn.GRU]
ALL_RECURRENT = [
    f"weight_hh_l{layer}{direction}" for layer in range(2) for direction in ("", "_reverse")
]


def tensors(output: Any) -> list[Tensor]:
    """All tensors in what a module returns."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    return [tensor for part in output or () for tensor in tensors(part)]


def run(call: Callable[[], Any], module: nn.Module, seed: int = 7) -> dict[str, Tensor]:
    """Outputs and gradients of one call under a seed, by plain names."""
    module.zero_grad()
    torch.manual_seed(seed)
    outputs = tensors(call())
    sum((output * (1 + output)).sum() for output in outputs if output.requires_grad).backward()
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            results[plain_name(name)] = parameter.grad
    return results


def plain_name(name: str) -> str:
    name = re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def expected(
    plain: nn.Module, names: Sequence[str], p: float, inputs: Any, seed: int = 7
) -> dict[str, Tensor]:
    weights = dict(plain.named_parameters())

    def call() -> Any:
        dropped = {name: RF.dropout(weights[name], p) for name in names}
        return functional_call(plain, dropped, inputs)

    return run(call, plain, seed)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}")


def check(module: nn.Module, names: Sequence[str], *inputs: Any, p: float = 0.4) -> DropConnect:
    """A wrapped copy equals the oracle, twice, then in evaluation, then again in training."""
    plain = copy.deepcopy(module)
    drop = DropConnect(copy.deepcopy(module), names, p)
    for seed in (7, 8):
        want = expected(plain, names, p, inputs, seed)
        assert_same(run(lambda: drop(*inputs), drop, seed), want)
        for name in names:  # the mask was there, and reached the gradient
            assert (want[name] == 0).any()
    for each in (drop, plain):
        each.eval()
    assert_same(run(lambda: drop(*inputs), drop), run(lambda: plain(*inputs), plain))
    for each in (drop, plain):
        each.train()
    assert_same(run(lambda: drop(*inputs), drop), expected(plain, names, p, inputs))
    return drop


def an_lstm(p: float = 0.4, **options: Any) -> DropConnect:
    return DropConnect(nn.LSTM(3, 5, **options), "weight_hh_l0", p)


# ---- the computation -----------------------------------------------------------------------------


@pytest.mark.parametrize("rnn", RNNS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_layer_and_direction_of_rnns(rnn: type[nn.Module], batch_first: bool) -> None:
    module = rnn(3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    check(module, ALL_RECURRENT, torch.randn(4, 4, 3))
    check(module, ["weight_hh_l1_reverse"], torch.randn(4, 4, 3))
    check(module, ["weight_ih_l0", "bias_hh_l1", "weight_hh_l0"], torch.randn(4, 4, 3))


@pytest.mark.parametrize("rnn", RNNS)
def test_packed_sequences_and_a_given_state(rnn: type[nn.Module]) -> None:
    module = rnn(3, 5)
    packed = pack_padded_sequence(torch.randn(6, 3, 3), torch.tensor([6, 4, 1]))
    drop = check(module, ["weight_hh_l0"], packed)
    assert isinstance(drop(packed)[0], PackedSequence)
    state = torch.randn(1, 2, 5)
    given = (state, state) if rnn is nn.LSTM else state
    check(module, ["weight_hh_l0"], torch.randn(6, 2, 3), given)


def test_projections_and_no_bias() -> None:
    names = ["weight_hh_l0", "weight_hr_l0"]
    check(nn.LSTM(3, 6, proj_size=4, bidirectional=True), names, torch.randn(4, 2, 3))
    check(nn.LSTM(3, 6, bias=False), names[:1], torch.randn(4, 2, 3))


@pytest.mark.parametrize(
    ("module", "names", "inputs"),
    [
        (nn.Linear(6, 5), ["weight", "bias"], (torch.randn(4, 6),)),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), ["1.weight", "0.weight"], (6,)),
        (nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 5)), ["1.weight_hh_l0"], (5, 2, 3)),
        (nn.Conv2d(2, 3, 3), ["weight"], (1, 2, 6, 6)),
        (nn.Embedding(6, 5), ["weight"], (torch.tensor([[1, 2], [5, 1]]),)),
        (nn.LSTMCell(3, 5), ["weight_hh"], (2, 3)),
        (nn.GRUCell(3, 5), ["weight_hh", "weight_ih"], (2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_modules(module: nn.Module, names: list[str], inputs: tuple[Any, ...]) -> None:
    check(module, names, *(inputs if isinstance(inputs[0], Tensor) else [torch.randn(inputs)]))


def test_attention_whose_modules_read_each_others_weights() -> None:
    x = torch.randn(4, 2, 8)
    check(nn.MultiheadAttention(8, 2), ["in_proj_weight", "out_proj.weight"], x, x, x)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    names = ["self_attn.in_proj_weight", "linear1.weight"]
    check(layer, names, x)
    drop = DropConnect(layer, names).eval()
    fast, slow = drop(x).detach(), drop(x)
    with torch.inference_mode():  # torch's fast path
        torch.testing.assert_close(drop(x), fast)
    torch.testing.assert_close(fast, slow)


class Steps(nn.Module):
    """Reads its weight in each of several steps, and once where no graph is made."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(5, 5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        with torch.no_grad():
            self.seen = [self.cell.weight_hh.clone()]
        for _ in range(3):
            x = self.cell(x, x)
            self.seen.append(self.cell.weight_hh.detach().clone())
        if fail:
            raise KeyError("in forward")
        return x


def test_all_reads_of_a_call_see_one_mask() -> None:
    check(Steps(), ["cell.weight_hh"], torch.randn(2, 5))
    drop = DropConnect(Steps(), "cell.weight_hh")
    masks = []
    for _ in range(2):
        drop(torch.randn(2, 5))
        assert all(torch.equal(seen, drop.seen[0]) for seen in drop.seen)
        masks.append(drop.seen[0] == 0)
    assert not torch.equal(*masks)


def test_masks_are_drawn_with_p() -> None:
    drop = DropConnect(nn.Linear(200, 200, bias=False), "weight", 0.3)
    with torch.no_grad():
        drop.module.weight.fill_(1.0)
    share = torch.stack([(drop(torch.eye(200)) == 0).double() for _ in range(20)])
    assert abs(share.mean() - 0.3) < 5 * (0.3 * 0.7 / share.numel()) ** 0.5
    torch.testing.assert_close(drop(torch.eye(200)).max().item(), 1 / 0.7, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False), (1.0, True)])
def test_nothing_is_drawn_where_nothing_is_random(p: float, training: bool) -> None:
    drop, x = an_lstm(p).train(training), torch.randn(4, 2, 3)
    weight = drop.module.parametrizations.weight_hh_l0.original
    plain = nn.LSTM(3, 5)
    plain.load_state_dict({plain_name(name): value for name, value in drop.state_dict().items()})
    if p == 1.0:
        nn.init.zeros_(plain.weight_hh_l0)
    state = torch.get_rng_state()
    assert torch.equal(drop(x)[0], plain(x)[0])
    assert drop.module.weight_hh_l0 is weight
    assert torch.equal(torch.get_rng_state(), state)


def test_p_can_be_set_later() -> None:
    module, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(module), "weight_hh_l0")
    for p in (0.5, 0.9, 0.1):
        drop.p = p
        assert drop.p == p
        want = expected(module, ["weight_hh_l0"], p, (x,))
        assert_same(run(lambda: drop(x), drop), want)
    with pytest.raises(ValueError, match=re.escape("expected p in [0, 1], got 1.5")):
        drop.p = 1.5
    assert drop.p == 0.1


def test_two_calls_before_one_backward() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    want = expected(plain, ["weight_hh_l0"], 0.4, (x,), 1)
    want_too = expected(plain, ["weight_hh_l0"], 0.4, (x,), 2)
    torch.manual_seed(1)
    first = tensors(drop(x))
    torch.manual_seed(2)
    second = tensors(drop(x))
    sum((output * (1 + output)).sum() for output in [*first, *second]).backward()
    gradient = drop.module.parametrizations.weight_hh_l0.original.grad
    torch.testing.assert_close(gradient, want["weight_hh_l0"] + want_too["weight_hh_l0"])


# ---- nesting, ties, other parametrizations -------------------------------------------------------


def test_nested_wraps_of_two_weights_and_of_one() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    inner = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    outer = DropConnect(inner, "module.weight_ih_l0", 0.4)
    want = expected(plain, ["weight_ih_l0", "weight_hh_l0"], 0.4, (x,))
    assert_same(run(lambda: outer(x), outer), want)

    linear = nn.Linear(40, 40, bias=False)
    twice = DropConnect(DropConnect(linear, "weight", 0.5), "module.weight", 0.5)
    weight = linear.weight.detach().clone()
    output = twice(torch.eye(40)).t()
    kept = output != 0
    torch.testing.assert_close(output[kept], 4 * weight[kept])
    assert 0.15 < kept.double().mean() < 0.35
    assert torch.equal(twice.eval()(torch.eye(40)).t(), weight)


class Countdown(nn.Module):
    """Calls the module that wraps it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 30)
        self.seen: list[Tensor] = []

    def forward(self, wrapper: nn.Module, depth: int) -> None:
        before = self.linear.weight.detach().clone()
        if depth:
            wrapper(wrapper, depth - 1)
        assert torch.equal(self.linear.weight, before)
        self.seen.append(before)


def test_calls_within_a_call_have_masks_of_their_own() -> None:
    drop = DropConnect(Countdown(), "linear.weight")
    drop(drop, 2)
    assert len({tuple(seen.flatten().tolist()) for seen in drop.seen}) == 3


def test_tied_weights_are_dropped_where_named() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    x = torch.randn(3, 5)
    for names in (["0.weight"], ["1.weight"], ["0.weight", "1.weight"]):
        model, drop = tied(), DropConnect(tied(), names, 0.5)
        assert len(list(drop.parameters())) == 1
        (weight,) = drop.parameters()
        model[0].weight.data.copy_(weight)
        torch.manual_seed(3)
        used = {"0.weight": model[0].weight, "1.weight": model[0].weight}
        used |= {name: RF.dropout(model[0].weight, 0.5) for name in names}
        want = x @ used["0.weight"].t() @ used["1.weight"].t()
        want.sum().backward()
        torch.manual_seed(3)
        output = drop(x)
        output.sum().backward()
        torch.testing.assert_close(output, want)
        torch.testing.assert_close(weight.grad, model[0].weight.grad)


@pytest.mark.parametrize("wrap_first", [False, True])
def test_beside_other_parametrizations(wrap_first: bool) -> None:
    """The mask falls on the normalized weight, or on what the normalization then takes."""
    linear = parametrizations.weight_norm(nn.Linear(6, 5, bias=False))
    weight = linear.weight.detach().clone()
    drop = DropConnect(linear, "weight", 0.5)
    torch.manual_seed(4)
    want = RF.dropout(weight, 0.5)
    torch.manual_seed(4)
    torch.testing.assert_close(drop(torch.eye(6)).t(), want)
    for twin in (copy.deepcopy(drop), pickle.loads(pickle.dumps(drop))):
        torch.manual_seed(4)
        torch.testing.assert_close(twin(torch.eye(6)).t(), want)


def test_inside_parametrize_cached() -> None:
    """Torch's cache is keyed by name, and would give the second call the first one's mask."""
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    linear = DropConnect(nn.Linear(30, 30), "weight")
    with parametrize.cached():
        original = drop.module.weight_hh_l0
        for seed in (1, 2):
            want = expected(plain, ["weight_hh_l0"], 0.4, (x,), seed)
            assert_same(run(lambda: drop(x), drop, seed), want)
            assert drop.module.weight_hh_l0 is original
        assert not torch.equal(linear(torch.eye(30)), linear(torch.eye(30)))


# ---- state ---------------------------------------------------------------------------------------


def through_pickle(module: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(module))
    return twin


def through_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, weights_only=False)
    return twin


def through_state_dict(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = an_lstm(num_layers=2)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


def through_assigned_state_dict(module: nn.Module) -> nn.Module:
    twin = an_lstm(num_layers=2)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    twin.load_state_dict(state, assign=True)
    return twin


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, through_pickle, through_save, through_state_dict, through_assigned_state_dict],
)
@pytest.mark.parametrize("before", ["new", "called", "trained", "evaluated"])
def test_copies_are_whole_and_independent(
    copied: Callable[[nn.Module], nn.Module], before: str
) -> None:
    drop, x = an_lstm(num_layers=2), torch.randn(4, 2, 3)
    if before != "new":
        output = drop.train(before != "evaluated")(x)[0]
        if before == "trained":
            output.sum().backward()
        drop.train()
    want = run(lambda: drop(x), drop)
    twin = copied(drop)
    assert_same(run(lambda: twin(x), twin), want)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert tensors(twin.eval()(x))[0].abs().max() == 0
    assert_same(run(lambda: drop(x), drop), want)
    parametrize.remove_parametrizations(twin.module, "weight_hh_l0")
    assert type(twin.module) is nn.LSTM
    assert_same(run(lambda: drop(x), drop), want)


@pytest.mark.parametrize(
    "moved",
    [
        lambda module: module.double(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.float64),
        lambda module: module.float(),
        lambda module: module.requires_grad_(True).share_memory(),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_moved_modules(moved: Callable[[nn.Module], nn.Module], called: bool) -> None:
    plain = nn.LSTM(3, 5, num_layers=2)
    drop, x = DropConnect(copy.deepcopy(plain), ALL_RECURRENT[::2], 0.4), torch.randn(4, 2, 3)
    if called:
        drop(x)
    state = torch.get_rng_state()
    moved(drop), moved(plain)
    assert torch.equal(torch.get_rng_state(), state)
    x = x.to(plain.weight_hh_l0.dtype)
    want = expected(plain, ALL_RECURRENT[::2], 0.4, (x,))
    assert_same(run(lambda: drop(x), drop), want)


def test_to_empty_device() -> None:
    with torch.device("meta"):
        drop = an_lstm()
    assert drop(torch.randn(4, 2, 3, device="meta"))[0].is_meta
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop.to_empty(device="cpu")
    drop.load_state_dict(DropConnect(copy.deepcopy(plain), "weight_hh_l0").state_dict())
    assert_same(run(lambda: drop(x), drop), expected(plain, ["weight_hh_l0"], 0.4, (x,)))


def test_the_optimizer_moves_the_weight_that_is_used() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    for step in range(3):
        want = expected(plain, ["weight_hh_l0"], 0.4, (x,), step)
        assert_same(run(lambda: drop(x), drop, step), want)
        for each in (plain, drop):
            torch.optim.SGD(each.parameters(), 0.1).step()
    assert torch.equal(drop.eval()(x)[0], plain.eval()(x)[0])


def test_assigned_weights_are_used() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    value = torch.randn(20, 5)
    plain.weight_hh_l0.data.copy_(value)
    drop.module.weight_hh_l0 = nn.Parameter(value)
    for mode in (False, True):
        want = run(lambda: plain(x), plain)
        if mode:
            want = expected(plain, ["weight_hh_l0"], 0.4, (x,))
        drop.train(mode)
        assert_same(run(lambda: drop(x), drop), want)


def test_removal_gives_the_plain_module_back() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    for leave_parametrized in (False, True):
        drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0")
        drop(x)[0].sum().backward()
        parametrize.remove_parametrizations(drop.module, "weight_hh_l0", leave_parametrized)
        assert type(drop.module) is nn.LSTM
        assert sorted(drop.module.state_dict()) == sorted(plain.state_dict())
        assert torch.equal(drop.module.weight_hh_l0, plain.weight_hh_l0)
        assert_same(run(lambda drop=drop: drop(x), drop), run(lambda: plain(x), plain))


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_of_a_call_is_left_behind(fail: bool) -> None:
    drop = DropConnect(
        nn.Sequential(nn.LSTM(5, 5), Steps()), ["0.weight_hh_l0", "1.cell.weight_hh"]
    )
    made: list[weakref.ref[Tensor]] = []
    for host, name in ((drop.module[0], "weight_hh_l0"), (drop.module[1].cell, "weight_hh")):
        host.register_forward_pre_hook(
            lambda module, inputs, name=name: made.append(weakref.ref(getattr(module, name)))
        )
    drop.module[0].register_forward_hook(lambda module, inputs, output: output[0][0])
    if fail:
        drop.module[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop(torch.randn(3, 2, 5))
    else:
        drop(torch.randn(3, 2, 5))
    gc.collect()
    assert len(made) == 4
    assert [each() for each in made] == [None] * 4
    lstm, cell = drop.module[0], drop.module[1].cell
    assert lstm.weight_hh_l0 is lstm.parametrizations.weight_hh_l0.original
    assert lstm._flat_weights[1] is lstm.weight_hh_l0
    assert cell.weight_hh is cell.parametrizations.weight_hh.original
