"""All ops in one model, as training code uses them: compiled, in mixed precision, checkpointed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import regops.functional as RF
import regops.nn
import regops.optim
import regops.random
from regops.random import fold_in

WIDTH, CLASSES, ROWS = 16, 11, 12
KEY = regops.random.key(9)


class Model(nn.Module):
    """Every public op and module; two losses of one head."""

    def __init__(self, p: float | Tensor = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.dropout = regops.nn.Dropout(p)
        self.batch = regops.nn.DropConnectLinear(WIDTH, WIDTH, p=p)
        self.sample = regops.nn.DropConnectLinear(WIDTH, WIDTH, p=p, mask="sample")
        self.wrapped = regops.nn.DropConnect(nn.Linear(WIDTH, WIDTH), "weight", p=p)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.loss = regops.nn.CrossEntropyLoss(label_smoothing=0.1, z_loss=1e-3)

    def hidden(self, x: Tensor) -> Tensor:
        """Of all layers but the head."""
        x = self.dropout(self.first(x).relu())
        x = self.sample(self.batch(x).relu()).relu()
        mean, variance = RF.dropconnect_moments(x, self.batch.weight, p=0.3)
        return RF.dropout(self.wrapped(x).relu(), 0.2) + mean.tanh() / (1 + variance).to(mean.dtype)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss."""
        x = self.hidden(x)
        chunked = RF.linear_cross_entropy(
            x, self.head.weight, y, linear_bias=self.head.bias, label_smoothing=0.1
        )
        return self.loss(self.head(x), y) + chunked


def batch(step: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(rows, WIDTH, generator=generator)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def train(
    model: nn.Module,
    call: Callable[..., Tensor],
    steps: int = 4,
    lr: Callable[[int], float] = lambda step: 0.01,
    rows: Callable[[int], int] = lambda step: ROWS,
) -> list[float]:
    """Steps of AdamW with clipping from one random state; returns the losses."""
    optimizer = regops.optim.AdamW(model.parameters(), max_grad_norm=1.0)
    torch.manual_seed(3)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        loss = call(*batch(step, rows(step)))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def made(p: float | Tensor = 0.1) -> Model:
    """The model, always from the same weights."""
    torch.manual_seed(0)
    return Model(p)


# ---- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def in_order() -> Iterator[None]:
    """Inductor's scheduler may else change the order of draws that nothing makes depend.

    Here the wrapped weight's: docs/randomness.md.
    """
    with torch._inductor.config.patch(reorder_for_peak_memory=False):
        yield


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training_is_eager_training(backend: str) -> None:
    torch._dynamo.reset()
    eager, model = made(), made()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert train(model, compiled) == pytest.approx(train(eager, eager), rel=1e-5)
    for ours, expected in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("in_order")
def test_schedules_and_batches_of_any_size_compile_once() -> None:
    torch._dynamo.reset()
    models = [made(torch.tensor(0.5)) for _ in range(2)]
    compiled = torch.compile(models[1], fullgraph=True, dynamic=True)
    compiled(*batch(0)).backward()
    losses = []
    for model, function in zip(models, (models[0], compiled), strict=True):

        def call(x: Tensor, y: Tensor, model: Any = model, function: Any = function) -> Tensor:
            model.dropout.p.mul_(0.8)
            loss: Tensor = function(x, y)
            return loss

        with torch.compiler.set_stance("fail_on_recompile"):
            losses.append(train(model, call, 5, lambda t: 0.01 / (t + 1), lambda t: ROWS + 3 * t))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("ours", [regops.optim.AdamW, regops.optim.SGDW])
def test_a_compiled_step_does_not_compile_anew_for_a_learning_rate(ours: Any) -> None:
    torch._dynamo.reset()
    parameter = nn.Parameter(torch.ones(3))
    optimizer = ours([parameter], lr=0.1)
    counter = CompileCounterWithBackend("eager")

    @torch.compile(backend=counter)
    def step(x: Tensor) -> None:
        (parameter * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step(torch.ones(3))
    count = counter.frame_count
    for k in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 2)
        step(torch.ones(3))
    assert counter.frame_count == count


def test_the_functional_steps_in_a_graph_take_any_learning_rate() -> None:
    torch._dynamo.reset()

    def step(states: list[Tensor], x: Tensor, lr: float | Tensor) -> Tensor:
        w, m, v, t, u, b, s = states
        gradients = [(w * x).sin(), (u * x).cos()]
        norm = RF.grad_norm(gradients)
        RF.adamw_step_(
            [w], gradients[:1], [m], [v], [], [t], lr=lr, max_grad_norm=1.0, grad_norm=norm
        )
        RF.sgdw_step_([u], gradients[1:], [b], [s], lr=lr, momentum=0.9, max_grad_norm=1.0)
        return norm

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (compiled, step):
        states = [torch.full((9,), 1.0 * (k in (0, 4))) for k in range(7)]
        states[3], states[6] = torch.zeros(()), torch.zeros(())
        norms = []
        for k in range(5):
            stance = "fail_on_recompile" if k and function is compiled else "default"
            with torch.compiler.set_stance(stance):
                norms.append(function(states, torch.arange(9.0), torch.tensor(0.1 / (k + 1))))
        results.append([*states, *norms])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][3] == results[0][6] == 5


def test_a_key_for_each_step_compiles_once_for_all_steps() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def call(x: Tensor, step: int) -> Tensor:
        return RF.dropout(x, 0.5, key=fold_in(KEY, step))

    x = torch.ones(50)
    for step in (2, 3, 500, 1 << 40):
        assert torch.equal(call(x, step), RF.dropout(x, 0.5, key=fold_in(KEY, step)))
    assert counter.frame_count == 1


@pytest.mark.gpu
def test_reduced_overhead_is_eager_training() -> None:
    torch._dynamo.reset()
    eager, model = made().cuda(), made().cuda()
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")

    def on_device(function: Any) -> Callable[..., Tensor]:
        return lambda x, y: function(x.cuda(), y.cuda())

    assert train(model, on_device(compiled), 6) == pytest.approx(
        train(eager, on_device(eager), 6), rel=1e-4
    )


# ---- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_scaler(dtype: torch.dtype, compiled: bool) -> None:
    """Follows training in float32, under the same masks, as near as the type's rounding lets it."""
    torch._dynamo.reset()
    exact, model = made(), made()
    expected = train(exact, exact)
    forward = torch.compile(model, backend="aot_eager") if compiled else model
    optimizer = regops.optim.AdamW(model.parameters(), lr=0.01, max_grad_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    torch.manual_seed(3)
    for step, loss_of_exact in enumerate(expected):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = forward(*batch(step))
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        # A handful of layers of products, each rounded to 2^-8 or 2^-11.
        assert loss.item() == pytest.approx(loss_of_exact, rel=0.02)
    for ours, value in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours.dtype == torch.float32
        # Each step of AdamW moves a weight by at most about lr, whatever its gradient's rounding.
        torch.testing.assert_close(ours, value, rtol=0, atol=2 * 4 * 0.01)


# ---- activation checkpointing --------------------------------------------------------------------


def _gradients(model: Model, hidden: Callable[[Tensor], Tensor]) -> list[Tensor]:
    x, y = batch(0)
    torch.manual_seed(3)
    loss = model.loss(model.head(hidden(x.requires_grad_())), y)
    torch.rand(5)  # the world goes on
    used = [each for each in model.parameters() if each.requires_grad]
    loss.backward()
    found = [each.grad for each in used if each.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant: bool, compiled: bool) -> None:
    if compiled and reentrant:
        pytest.skip("torch compiles around reentrant checkpoints only")
    torch._dynamo.reset()
    model = made()

    def whole(x: Tensor) -> Tensor:
        return checkpoint(model.hidden, x, use_reentrant=reentrant)

    call = torch.compile(whole, backend="aot_eager") if compiled else whole
    torch.testing.assert_close(_gradients(model, call), _gradients(model, model.hidden))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_without_random_states_where_keys_are_passed(reentrant: bool) -> None:
    model = made()

    def hidden(x: Tensor) -> Tensor:
        x = model.dropout(model.first(x).relu(), key=fold_in(KEY, 0))
        x = RF.dropconnect_linear(x, model.batch.weight, p=0.3, key=fold_in(KEY, 1))
        return RF.dropconnect_linear(
            x, model.sample.weight, p=0.3, mask="sample", key=fold_in(KEY, 2)
        )

    def whole(x: Tensor) -> Tensor:
        return checkpoint(hidden, x, use_reentrant=reentrant, preserve_rng_state=False)

    torch.testing.assert_close(_gradients(model, whole), _gradients(model, hidden))


SAVED = {
    "nothing": [],
    "masked": [torch.ops.regops.dropout.default, torch.ops.regops.dropconnect_linear.default],
    "products": [torch.ops.aten.addmm.default, torch.ops.aten.mm.default],
    "keys": [torch.ops.regops.new_key.default],
}


@pytest.mark.parametrize("saved", SAVED)
def test_selectively_checkpointed(saved: str) -> None:
    model = made()

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op in SAVED[saved]
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def whole(x: Tensor) -> Tensor:
        return checkpoint(
            model.hidden,
            x,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(policy),
        )

    torch.testing.assert_close(_gradients(model, whole), _gradients(model, model.hidden))


# ---- transforms, copies, export ------------------------------------------------------------------


def test_functional_derivatives_of_the_model() -> None:
    model = made()
    x, y = batch(0)
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (x, y))

    torch.manual_seed(3)
    gradients, value = torch.func.grad_and_value(loss)(parameters, x, y)
    torch.manual_seed(3)
    expected = model(x, y)
    torch.testing.assert_close(value, expected)
    expected.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)
    each = torch.vmap(torch.func.grad(loss), (None, 0, 0), randomness="different")(
        {name: value.detach() for name, value in parameters.items()}, x[:, None], y[:, None]
    )
    assert all(gradient.isfinite().all() for gradient in each.values())
    assert each["first.weight"].shape == (ROWS, WIDTH, WIDTH)


COPIES: dict[str, Callable[[Model], Model]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: _saved_and_loaded(model),
    "state_dict": lambda model: _with_state(made(), model.state_dict()),
}


def _saved_and_loaded(model: Model) -> Model:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: Model = torch.load(buffer, weights_only=False)
    return loaded


def _with_state(model: Model, state: dict[str, Tensor]) -> Model:
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_goes_on_alike(way: str) -> None:
    model = made()
    train(model, model, 2)
    twin = COPIES[way](model)
    assert train(twin, twin, 2) == train(model, model, 2)
    for ours, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("training", [False, True])
def test_exported(training: bool) -> None:
    model = made().train(training)
    rows = torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(
        model, batch(0), dynamic_shapes={"x": {0: rows}, "y": {0: rows}}, strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for count in (ROWS, 20):
        torch.manual_seed(3)
        expected = model(*batch(1, count))
        torch.manual_seed(3)
        torch.testing.assert_close(loaded(*batch(1, count)), expected)
