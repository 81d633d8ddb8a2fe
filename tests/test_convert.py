"""`regops.convert_` and `regops.revert_` of models; long, as each kind of module left is a case."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

import regops
import regops.functional as RF
import regops.nn
from regops.nn.dropout import Dropout


class Model(nn.Module):
    """A network whose last word is its loss, with a Dropout that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5, inplace=True), self.drop)
        self.loss = nn.CrossEntropyLoss(weight=torch.arange(1.0, 9.0), label_smoothing=0.1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.body(self.drop(x)), target)
        return loss


def by_hand(model: Any, x: Tensor, target: Tensor) -> Tensor:
    """What `Model` computes when all of it is ours."""
    x = RF.dropout(model.body[0](RF.dropout(x, 0.25)), 0.5)
    return RF.cross_entropy(RF.dropout(x, 0.25), target, model.loss.weight, label_smoothing=0.1)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 8, generator=generator)
    return x, torch.randint(8, (6,), generator=generator)


def seeded(function: Any, *arguments: Any) -> Tensor:
    torch.manual_seed(3)
    result: Tensor = function(*arguments)
    return result


def described(model: nn.Module) -> list[Any]:
    """Everything of a model but its modules' classes, and the attributes that ours add."""
    own = {"smoothing", "z_loss", "entropy_weight", "inplace_backward"}
    return [
        [
            (name, id(module), {k: v for k, v in vars(module).items() if k not in own})
            for name, module in model.named_modules(remove_duplicate=False)
        ],
        [(name, id(param)) for name, param in model.named_parameters()],
        [(name, id(buffer)) for name, buffer in model.named_buffers()],
        list(model.state_dict()),
    ]


# ---- swapping ------------------------------------------------------------------------------------


def test_a_model_computes_by_ours_and_is_the_same_otherwise() -> None:
    model = Model()
    model.body[1].eval()
    model.body[1].train()
    before = described(model)
    report = regops.convert_(model)
    assert type(model.drop) is type(model.body[1]) is regops.nn.Dropout
    assert type(model.loss) is regops.nn.CrossEntropyLoss
    assert described(model) == before
    assert torch.equal(seeded(model, *inputs()), seeded(by_hand, model, *inputs()))
    assert [entry.name for entry in report.swapped] == ["drop, body.2", "body.1", "loss"]
    assert not report.left
    assert not report.already


def test_the_report_in_words() -> None:
    model = Model()
    model.wide = nn.Dropout2d()
    assert str(regops.convert_(model)).splitlines() == [
        "regops.convert_: 3 swapped, 1 left, 0 of regops already",
        "swapped: torch.nn.Dropout -> regops.nn.Dropout",
        "  drop, body.2",
        "  body.1",
        "swapped: torch.nn.CrossEntropyLoss -> regops.nn.CrossEntropyLoss",
        "  loss",
        "left: torch.nn.Dropout2d: it drops whole channels",
        "  wide",
    ]


def test_a_second_call_swaps_nothing_and_says_so() -> None:
    model = Model()
    regops.convert_(model)
    before = described(model)
    report = regops.convert_(model)
    assert str(report) == "regops.convert_: 0 swapped, 0 left, 3 of regops already"
    assert report.already == ("drop, body.2", "body.1", "loss")
    assert described(model) == before


def test_revert_gives_torchs_back() -> None:
    model, untouched = Model(), Model()
    untouched.load_state_dict(model.state_dict())
    before = described(model)
    attributes = [set(vars(module)) for module in model.modules()]
    regops.convert_(model)
    report = regops.revert_(model)
    assert str(report).startswith("regops.revert_: 3 swapped, 0 left, 0 of torch already")
    assert type(model.drop) is nn.Dropout
    assert type(model.loss) is nn.CrossEntropyLoss
    assert described(model) == before
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(seeded(model, *inputs()), seeded(untouched, *inputs()))
    assert str(regops.revert_(model)) == "regops.revert_: 0 swapped, 0 left, 3 of torch already"


def test_a_model_that_is_a_dropout_itself() -> None:
    model = nn.Dropout(0.3)
    report = regops.convert_(model)
    assert type(model) is regops.nn.Dropout
    assert str(report).splitlines()[-1] == "  (itself)"
    regops.revert_(model)
    assert type(model) is nn.Dropout


def test_training_flags_and_evaluation() -> None:
    model = Model()
    model.drop.eval()
    regops.convert_(model)
    assert [module.training for module in model.modules()] == [True, False, True, True, True, True]
    x = inputs()[0]
    assert model.drop(x) is x
    assert model.eval().body[1](x) is x


def test_hooks_still_fire() -> None:
    model = Model()
    fired: list[str] = []
    for module in (model.drop, model.loss):
        module.register_forward_pre_hook(lambda *_: fired.append("before"))
        module.register_forward_hook(lambda *_: fired.append("after"))
        module.register_full_backward_hook(lambda *_: fired.append("backward"))
    x, target = inputs()
    for change in (regops.convert_, regops.revert_):
        change(model)
        fired.clear()
        model(x.clone().requires_grad_(), target).backward()
        assert fired == ["before", "after"] * 3 + ["backward"] * 3


def test_half_logits_give_a_float32_loss() -> None:
    loss = nn.CrossEntropyLoss()
    logits, target = torch.randn(4, 8).bfloat16(), torch.tensor([0, 1, 2, 3])
    assert loss(logits, target).dtype == torch.bfloat16
    regops.convert_(loss)
    assert loss(logits, target).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_the_deprecated_reduction_arguments() -> None:
    """The constructor makes `reduction` of them, which is all that is kept."""
    loss = nn.CrossEntropyLoss(size_average=False)
    logits, target = inputs()
    expected = loss(logits, target)
    regops.convert_(loss)
    assert type(loss) is regops.nn.CrossEntropyLoss
    torch.testing.assert_close(loss(logits, target), expected)


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_are_ours_and_can_be_reverted(copied: Any) -> None:
    model = Model()
    regops.convert_(model)
    twin = copied(model)
    assert torch.equal(seeded(twin, *inputs()), seeded(model, *inputs()))
    assert len(regops.revert_(twin).swapped) == 3
    assert type(twin.drop) is nn.Dropout
    assert type(model.drop) is regops.nn.Dropout


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_parametrized_loss_stays_parametrized() -> None:
    model = Model()
    parametrize.register_parametrization(model.loss, "weight", Doubled())
    twin = copy.deepcopy(model)  # shares the class that torch made
    expected = model.loss(*inputs())
    regops.convert_(model)
    assert isinstance(model.loss, regops.nn.CrossEntropyLoss)
    assert type(twin.loss).__bases__ == (nn.CrossEntropyLoss,)
    torch.testing.assert_close(model.loss(*inputs()), expected)
    torch.testing.assert_close(copy.deepcopy(model).loss(*inputs()), expected)
    assert regops.convert_(model).swapped == ()
    parametrize.remove_parametrizations(model.loss, "weight")
    assert type(model.loss) is regops.nn.CrossEntropyLoss
    regops.convert_(twin)
    regops.revert_(twin)
    assert type(twin.loss).__bases__ == (nn.CrossEntropyLoss,)
    torch.testing.assert_close(twin.loss(*inputs()), expected)


# ---- what is left --------------------------------------------------------------------------------


class OwnDropout(nn.Dropout):
    pass


class OwnLoss(nn.CrossEntropyLoss):
    pass


class OurOwnDropout(Dropout):
    pass


class ByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_dropout, self.drop_path, self.dropped = 0.1, 0.0, True


class ReadsRate(nn.Module):
    """As attention in transformers does, in a method of a class that it inherits from."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.called = regops.nn.Dropout(0.1), regops.nn.Dropout(0.1)

    def attend(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, self.drop.p if self.training else 0.0)
        called: Tensor = self.called(x)
        return called


class InheritsRate(ReadsRate):
    pass


class SetsRate(nn.Module):
    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.drop = regops.nn.Dropout(p)

    def anneal(self, p: float) -> None:
        self.drop.p = p


def one_layer_with_dropout() -> nn.Module:
    """Dropout is between layers, so that this one has none; torch warns so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LSTM(4, 4, dropout=0.1)


def patched() -> nn.Dropout:
    module = nn.Dropout()
    module.forward = lambda input: input  # type: ignore[method-assign]
    return module


def with_reduction(reduction: str) -> nn.CrossEntropyLoss:
    loss = nn.CrossEntropyLoss()
    loss.reduction = reduction
    return loss


LEFT = [
    (OwnDropout(), "a subclass of torch.nn.Dropout, whose own code"),
    (OwnLoss(), "a subclass of torch.nn.CrossEntropyLoss, whose own code"),
    (nn.Dropout1d(), "whole channels"),
    (nn.Dropout2d(), "whole channels"),
    (nn.Dropout3d(), "whole channels"),
    (nn.AlphaDropout(), "another value than 0"),
    (nn.FeatureAlphaDropout(), "another value than 0"),
    (nn.MultiheadAttention(4, 2, dropout=0.1), "dropout=0.1 is inside torch's scaled_dot_product"),
    (nn.LSTM(4, 4, 2, dropout=0.1), "dropout=0.1 is inside torch's recurrent kernel"),
    (nn.GRU(4, 4, 2, dropout=0.1), "recurrent kernel"),
    (nn.RNN(4, 4, 2, dropout=0.1), "recurrent kernel"),
    (nn.NLLLoss(), "takes log-probabilities"),
    (nn.BCEWithLogitsLoss(), "no op here computes this loss"),
    (nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]), "no op here computes this loss"),
    (nn.CrossEntropyLoss(torch.ones(3, dtype=torch.int64)), "its weight is of type int64"),
    (nn.CrossEntropyLoss(ignore_index=0.5), "expected ignore_index: int, got float"),  # type: ignore[arg-type]
    (with_reduction("batchmean"), "expected reduction"),
    (patched(), "its forward was replaced on the object"),
    (InheritsRate(), "its code reads drop.p, and may drop by a function"),
    (ByFunction(), "with attention_dropout=0.1 it may drop by a function"),
]


@pytest.mark.parametrize(("module", "why"), LEFT, ids=lambda each: type(each).__name__)
def test_what_is_left_and_why(module: nn.Module, why: str) -> None:
    model = nn.Sequential(nn.Dropout(), module)
    before = [type(each) for each in module.modules()]
    report = regops.convert_(model)
    assert [entry.name for entry in report.swapped] == ["0"]
    assert [entry.name for entry in report.left] == ["1"]
    assert why in report.left[0].why
    assert [type(each) for each in module.modules()] == before
    assert why in str(report)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 2),
        nn.MultiheadAttention(4, 2),
        nn.LSTM(4, 4, 2),
        one_layer_with_dropout(),
        nn.Softmax(),
        SetsRate(),
        regops.nn.DropConnectLinear(2, 2),
        regops.nn.DropConnect(nn.LSTM(4, 4), "weight_hh_l0"),
    ],
)
def test_what_is_not_worth_a_word(module: nn.Module) -> None:
    report = regops.convert_(module)
    assert not report.swapped
    assert not report.left


def test_scripted_modules_are_left() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Dropout(), nn.Linear(2, 2))))
    report = regops.convert_(model)
    assert [(entry.name, entry.why) for entry in report.left] == [
        ("0.0", "a scripted Dropout: convert before scripting, or not at all")
    ]
    model(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (regops.nn.CrossEntropyLoss(z_loss=0.1), "torch has no z_loss=0.1"),
        (regops.nn.CrossEntropyLoss(smoothing="others"), "torch has no smoothing='others'"),
        (regops.nn.CrossEntropyLoss(inplace_backward=True), "torch has no inplace_backward=True"),
        (regops.nn.DropConnectLinear(2, 2), "torch has no such module"),
        (regops.nn.DropConnect(nn.Linear(2, 2), "weight"), "torch has no such module"),
        (OurOwnDropout(), "a subclass of regops.nn.Dropout, whose own code"),
    ],
)
def test_what_revert_leaves(module: nn.Module, why: str) -> None:
    report = regops.revert_(nn.Sequential(regops.nn.Dropout(), module))
    assert [entry.name for entry in report.swapped] == ["0"]
    assert [(entry.name, why in entry.why) for entry in report.left] == [("1", True)]
    if type(module) is OurOwnDropout:
        assert regops.convert_(module).already == ("",)


@pytest.mark.parametrize("call", [regops.convert_, regops.revert_])
@pytest.mark.parametrize(
    ("argument", "got"),
    [([nn.Dropout()], "list"), (nn.Dropout, "the class Dropout"), (None, "NoneType")],
)
def test_other_arguments(call: Any, argument: Any, got: str) -> None:
    expected = rf"regops\.{call.__name__}: expected model_or_optimizer: torch\.nn\.Module or "
    with pytest.raises(TypeError, match=expected + rf"torch\.optim\.Optimizer, got {got}"):
        call(argument)


# ---- torch's own blocks --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformer_layers_train_and_keep_their_fused_inference() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True  # the fused path makes nested tensors of it
    model.eval()
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
    report = regops.convert_(model)
    assert len(report.swapped) == 6
    assert [entry.name for entry in report.left] == ["layers.0.self_attn", "layers.1.self_attn"]
    with torch.no_grad(), torch.profiler.profile() as profile:
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)
    names = {event.key for event in profile.key_averages()}
    assert "aten::_transformer_encoder_layer_fwd" in names
    model.train()
    model(x).sum().backward()
    assert all(param.grad is not None for param in model.parameters())


# ---- wrapped models ------------------------------------------------------------------------------


def test_compiled_before_and_after() -> None:
    """Compiled code of torch's class must not serve the object after its class changed."""
    torch._dynamo.reset()
    model = Model()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain = seeded(compiled, *inputs())
    report = regops.convert_(compiled)
    assert [entry.name for entry in report.swapped] == [
        "_orig_mod.drop, _orig_mod.body.2",
        "_orig_mod.body.1",
        "_orig_mod.loss",
    ]
    expected = seeded(by_hand, model, *inputs())
    assert not torch.equal(plain, expected)
    torch.testing.assert_close(seeded(compiled, *inputs()), expected)
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(seeded(model, *inputs()), expected)
    regops.revert_(model)
    torch.testing.assert_close(seeded(compiled, *inputs()), plain)
    torch.testing.assert_close(seeded(model, *inputs()), plain)


def test_a_compiled_dropout_alone() -> None:
    model: Any = torch.compile(nn.Dropout(0.5), fullgraph=True, backend="aot_eager")
    x = torch.ones(64)
    model(x)
    assert [entry.name for entry in regops.convert_(model).swapped] == ["_orig_mod"]
    assert torch.equal(seeded(model, x), seeded(RF.dropout, x, 0.5))


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_data_parallel_and_fully_sharded_models(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(Model())
        report = regops.convert_(parallel)
        assert [entry.name for entry in report.swapped][1:] == ["module.body.1", "module.loss"]
        loss = seeded(parallel, *inputs())
        assert torch.equal(loss, seeded(by_hand, parallel.module, *inputs()))
        loss.backward()
        assert parallel.module.body[0].weight.grad is not None
        sharded = Model()
        for module in (sharded.body[0], sharded):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        sharded_class = type(sharded)
        assert len(regops.convert_(sharded).swapped) == 3
        assert type(sharded) is sharded_class
        seeded(sharded, *inputs()).backward()
        assert len(regops.revert_(sharded).swapped) == 3
        seeded(sharded, *inputs()).backward()
    finally:
        dist.destroy_process_group()
