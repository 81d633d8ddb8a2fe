"""`regops.nn.DropConnect`: masks that reach the computation, of torch's RNNs above all.

The oracle is the plain module, called with weights that `RF.dropout` masks under the same seed.
"""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import regops.functional as RF
from regops.nn import DropConnect
from tests.dropconnect_module_call import (
    Steps,
    assert_same,
    check,
    expected,
    plain_name,
    run,
    tensors,
)

nan = float("nan")
RNNS = [nn.RNN, nn.LSTM, nn.GRU]
ALL_RECURRENT = [
    f"weight_hh_l{layer}{direction}" for layer in range(2) for direction in ("", "_reverse")
]


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


class PlusOne(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


@pytest.mark.parametrize("drop_first", [False, True])
def test_beside_other_parametrizations(drop_first: bool) -> None:
    """Applied in the order in which they were registered, as all parametrizations are."""
    linear = nn.Linear(30, 30, bias=False)
    weight = linear.weight.detach().clone()
    if not drop_first:
        parametrize.register_parametrization(linear, "weight", PlusOne())
    drop = DropConnect(linear, "weight", 0.5)
    if drop_first:
        parametrize.register_parametrization(linear, "weight", PlusOne())
    torch.manual_seed(4)
    want = RF.dropout(weight, 0.5) + 1 if drop_first else RF.dropout(weight + 1, 0.5)
    for each in (drop, copy.deepcopy(drop), pickle.loads(pickle.dumps(drop))):
        torch.manual_seed(4)
        torch.testing.assert_close(each(torch.eye(30)).t(), want)
        torch.testing.assert_close(each.eval()(torch.eye(30)).t(), weight + 1)


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


# ---- its face ------------------------------------------------------------------------------------


def test_attributes_of_the_module_are_read() -> None:
    drop = an_lstm(num_layers=2, bidirectional=True)
    assert (drop.hidden_size, drop.num_layers, drop.bidirectional) == (5, 2, True)
    assert drop.weight_hh_l0 is drop.module.weight_hh_l0
    drop.flatten_parameters()
    assert drop.names == ("weight_hh_l0",)
    assert not parametrize.is_parametrized(drop)
    with pytest.raises(AttributeError, match="hidden"):
        _ = drop.hidden


def test_the_text_names_weights_and_p() -> None:
    drop = an_lstm(0.25)
    assert "names=['weight_hh_l0'], p=0.25" in repr(drop)
    drop.p = 0.125
    assert "p=0.125" in repr(drop)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("weight_hh_l0", -0.1), ValueError, "expected p in [0, 1], got -0.1"),
        (("weight_hh_l0", 1.1), ValueError, "expected p in [0, 1], got 1.1"),
        (("weight_hh_l0", nan), ValueError, "expected p in [0, 1], got nan"),
        (("weight_hh_l0", "0.5"), TypeError, "expected p: float | Tensor, got str"),
        (("weight_hh_l0", True), TypeError, "expected p: float | Tensor, got bool"),
        (([],), ValueError, "expected names of parameters, got none"),
        ((None,), TypeError, "expected names: str or a sequence of str, got None"),
        (([1],), TypeError, "expected names: str or a sequence of str, got [1]"),
        (
            ("weight_hh_l1",),
            ValueError,
            "expected names of parameters of LSTM, got 'weight_hh_l1'; it has weight_ih_l0, "
            "weight_hh_l0, bias_ih_l0, bias_hh_l0",
        ),
        (("hidden_size",), ValueError, "got 'hidden_size'; it has"),
        ((["bias_hh_l0", ""],), ValueError, "got ''; it has"),
        (
            (["bias_hh_l0", "weight_hh_l0", "bias_hh_l0"],),
            ValueError,
            "expected each parameter once, got 'bias_hh_l0' twice",
        ),
    ],
)
def test_bad_arguments_change_nothing(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    lstm = nn.LSTM(3, 5)
    with pytest.raises(error, match="regops.nn.DropConnect: .*" + re.escape(words)):
        DropConnect(lstm, *arguments)
    assert type(lstm) is nn.LSTM


def test_bad_modules() -> None:
    with pytest.raises(TypeError, match=re.escape("expected module: torch.nn.Module, got Tensor")):
        DropConnect(torch.ones(3), "weight")
    with pytest.raises(ValueError, match="expected 'weight' to be initialized"):
        DropConnect(nn.LazyLinear(3), "weight")
    with pytest.raises(ValueError, match="of ReLU, got 'weight'; it has none"):
        DropConnect(nn.ReLU(), "weight")
    linear = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"got '0\.weight' and '1\.weight', which are one"):
        DropConnect(nn.Sequential(linear, linear), ["0.weight", "1.weight"])
    for dtype, name in ((torch.int8, "int8"), (torch.complex64, "complex64")):
        linear.weight = nn.Parameter(torch.ones(3, 3, dtype=dtype), requires_grad=False)
        with pytest.raises(TypeError, match=f"expected 'weight' of type float64, .*, got {name}"):
            DropConnect(linear, ["bias", "weight"])
        assert not parametrize.is_parametrized(linear)


def test_data_parallel_is_refused() -> None:
    dropped = DropConnect(nn.Linear(3, 4), "weight")
    with pytest.raises(NotImplementedError, match="DistributedDataParallel"):
        dropped._replicate_for_data_parallel()
