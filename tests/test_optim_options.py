"""What the optimizers do beyond torch's: closed forms, the oracle, and torch in several passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from regops.optim import SGDW, AdamW
from tests.optimizer_runs import assert_near, assert_same, make_params, run, set_gradients

BOTH = pytest.mark.parametrize("optimizer", [AdamW, SGDW])


def _zero_gradients(params: list[Parameter]) -> None:
    for param in params:
        param.grad = torch.zeros_like(param)


def _copies(params: list[Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


# ---- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.5, 1e6, math.inf, 0.0])
@BOTH
def test_max_grad_norm_is_clip_grad_norm_over_all_groups(optimizer: Any, limit: float) -> None:
    params, expected = make_params(), make_params()
    each = optimizer([{"params": params[:2]}, {"params": params[2:]}], max_grad_norm=limit)
    reference = optimizer(expected)
    assert each.grad_norm is None
    for step in range(3):
        run(params, each, [step])
        set_gradients(expected, step)
        norm = torch.nn.utils.clip_grad_norm_(expected, limit)
        reference.step()
        torch.testing.assert_close(each.grad_norm.float(), norm)
    assert_near(params, expected)
    grads = [param.grad for param in params if param.grad is not None]
    set_gradients(params, 2)
    assert_same(grads, [param.grad for param in params])  # not clipped in memory
    assert reference.grad_norm is None


def test_norm_over_several_dtypes() -> None:
    params = [*make_params(torch.float32), *make_params(torch.float64)]
    params += make_params(torch.bfloat16)
    optimizer = AdamW(params, max_grad_norm=1.0)
    run(params, optimizer, [0])
    squares = [param.grad.double().square().sum() for param in params]
    expected = torch.stack(squares).sum().sqrt()
    torch.testing.assert_close(optimizer.grad_norm, expected)


@BOTH
def test_a_norm_that_is_not_finite(optimizer: Any) -> None:
    """As `clip_grad_norm_`: infinity clips all else to 0, and is nan itself; or it is an error."""
    for value in (math.inf, math.nan):
        params, expected = make_params(), make_params()
        each = optimizer(params, max_grad_norm=1.0)
        reference = optimizer(expected)
        for of_params in (params, expected):
            set_gradients(of_params, 0)
            of_params[3].grad[2] = value
        torch.nn.utils.clip_grad_norm_(expected, 1.0)
        each.step()
        reference.step()
        for one, other in zip(params, expected, strict=True):
            torch.testing.assert_close(one.detach(), other.detach(), equal_nan=True)
        each.error_if_nonfinite = True
        set_gradients(params, 1)
        params[3].grad[2] = value
        with pytest.raises(RuntimeError, match="expected gradients of finite norm, got"):
            each.step()


def test_no_gradients_have_the_norm_0() -> None:
    optimizer = AdamW(make_params(), max_grad_norm=1.0, error_if_nonfinite=True)
    optimizer.step()
    assert optimizer.grad_norm == 0


@BOTH
def test_clip_value(optimizer: Any) -> None:
    params, expected = make_params(), make_params()
    reference = optimizer(expected)
    run(params, optimizer(params, clip_value=0.3), [0])
    set_gradients(expected, 0)
    torch.nn.utils.clip_grad_value_(expected, 0.3)
    reference.step()
    assert_near(params, expected)


# ---- decay ---------------------------------------------------------------------------------------


@BOTH
def test_decay_alone_is_a_power(optimizer: Any) -> None:
    params = make_params(torch.float64)
    before = _copies(params)
    each = optimizer(params, lr=0.1, weight_decay=0.2)
    for _ in range(20):
        _zero_gradients(params)
        each.step()
    for param, first in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), first * (1 - 0.1 * 0.2) ** 20)


@BOTH
def test_independent_decay_follows_the_schedule_alone(optimizer: Any) -> None:
    """Of the paper: w <- (1 - eta_t wd) w, whatever the learning rate."""

    def train(lr: float, decay: str) -> list[Parameter]:
        params = make_params(torch.float64)
        each = optimizer(params, lr=lr, weight_decay=0.2, decay=decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(each, lambda epoch: 1.0 / (1 + epoch))
        for _ in range(3):
            _zero_gradients(params)
            each.step()
            scheduler.step()
        return params

    factor = (1 - 0.2) * (1 - 0.2 / 2) * (1 - 0.2 / 3)
    before = make_params(torch.float64)
    for lr in (0.1, 0.01):
        assert_near(train(lr, "independent"), [param * factor for param in before])
    assert not torch.allclose(train(0.1, "lr")[0], train(0.01, "lr")[0])


def test_base_lr_is_each_groups_first() -> None:
    params = make_params()
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    optimizer = AdamW(groups, lr=0.1, decay="independent")
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    resumed = AdamW(groups, lr=7.0, decay="independent")
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["base_lr"] for group in resumed.param_groups] == [0.5, 0.1]
    assert "base_lr" not in AdamW(params).param_groups[0]
    by_hand = AdamW(params, lr=0.1)
    by_hand.param_groups[0]["decay"] = "independent"
    run(params, by_hand, [0])
    assert by_hand.param_groups[0]["base_lr"] == 0.1
    with pytest.raises(ValueError, match='expected lr > 0 with decay="independent", got 0'):
        AdamW(params, lr=0.0, decay="independent")


def test_l2_is_the_decay_of_adam_and_sgd() -> None:
    for ours, theirs in ((AdamW, torch.optim.Adam), (SGDW, torch.optim.SGD)):
        params, expected = make_params(), make_params()
        run(params, ours(params, lr=0.1, l2=0.3, weight_decay=0.0), range(5))
        assert_near(params, run(expected, theirs(expected, lr=0.1, weight_decay=0.3), range(5)))


def test_adamw_differs_from_adam_with_l2_as_the_paper_says() -> None:
    """l2 shrinks weights of large gradients less (section 3): v normalizes the decay as well.

    Without momentum, and v as it is after a step, l2 moves a weight by at most lr; decoupled decay
    by lr wd w.
    """
    changes = {}
    for name, options in (("l2", {"l2": 0.1, "weight_decay": 0.0}), ("decoupled", {})):
        weight = Parameter(torch.full((2,), 10.0, dtype=torch.float64))
        kwargs: dict[str, Any] = {"weight_decay": 0.1, **options}
        optimizer = AdamW([weight], lr=1e-3, betas=(0.0, 0.9), eps=0.0, **kwargs)
        for sign in (1.0, -1.0) * 100:  # gradients that cancel, of two sizes
            weight.grad = torch.tensor([100.0, 1e-2], dtype=torch.float64) * sign
            optimizer.step()
        changes[name] = 10.0 - weight.detach()
    expected = 10.0 * (1 - (1 - 1e-3 * 0.1) ** 200)
    torch.testing.assert_close(changes["decoupled"][0].item(), expected, rtol=0.02, atol=0)
    large, small = changes["l2"].tolist()
    assert large < 0.02 * expected  # a hundredth of the gradient's 100, normalized
    assert small > 0.9 * 200 * 1e-3  # lr a step


@BOTH
def test_l1_alone_reaches_exact_zeros_at_the_predicted_step(optimizer: Any) -> None:
    start = torch.linspace(-2.0, 2.0, 41, dtype=torch.float64)
    weight = Parameter(start.clone())
    each = optimizer([weight], lr=0.25, weight_decay=0.0, l1=0.5)
    for step in range(1, 18):
        weight.grad = torch.zeros_like(weight)
        each.step()
        # 1/8 is exact in binary; half a step of tolerance decides no case
        expected = start.sign() * (start.abs() - 0.125 * step).clamp(min=0.0)
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)
        zeros = (start.abs() - 0.125 * step) < -1e-9
        assert torch.equal(weight.detach()[zeros], torch.zeros(int(zeros.sum())).double())
    assert not weight.any()


def test_elastic_net() -> None:
    weight = Parameter(torch.tensor([1.0, -1.0, 0.01], dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    SGDW([weight], lr=0.1, weight_decay=0.5, l1=0.2).step()
    expected = torch.tensor([0.95 - 0.02, -0.95 + 0.02, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected)


# ---- noise, rows, averages, clearing -------------------------------------------------------------


def test_gradient_noise_has_the_papers_variance() -> None:
    weight = Parameter(torch.zeros(200_000))
    optimizer = SGDW([weight], lr=1.0, gradient_noise=(0.3, 0.55))
    for step in range(3):
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        change = (weight.detach() - before).double()
        variance = 0.3 / (1 + step) ** 0.55
        # of 200,000 squares: relative standard deviation sqrt(2 / n) = 0.3 %
        assert change.square().mean().item() == pytest.approx(variance, rel=0.02)
        assert abs(change.mean().item()) < 5 * math.sqrt(variance / 200_000)


@BOTH
def test_max_norm_projects_rows(optimizer: Any) -> None:
    params = make_params()
    before = _copies(params)
    each = optimizer(params, lr=0.0, max_norm=1.5)
    run(params, each, [0])
    for param, first in zip(params, before, strict=True):
        expected = first
        if first.dim() >= 2 and first.numel():
            expected = first.renorm(2, 0, 1.5)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-5, atol=1e-6)


@BOTH
def test_averages_are_those_of_swa_utils(optimizer: Any) -> None:
    model = torch.nn.Linear(3, 4)
    averages = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    averages.update_parameters(model)  # the first is a copy
    params = list(model.parameters())
    each = optimizer(params, lr=0.1, ema_decay=0.9)
    for step in range(5):
        run(params, each, [step])
        averages.update_parameters(model)
    trained = _copies(params)
    with each.averaged_parameters():
        assert_near(params, averages.module.parameters())
    assert_same(params, trained)


def test_averaged_parameters() -> None:
    params = make_params(torch.bfloat16)
    optimizer = AdamW([{"params": params[:2]}, {"params": params[2:], "ema_decay": 0.5}])
    run(params, optimizer, range(2))
    inside = _copies(params)

    def evaluate() -> None:
        assert_same(params[:2], inside[:2])
        for param in params[2:]:
            assert_same([param], [optimizer.state[param]["ema"].bfloat16()])
        with pytest.raises(RuntimeError, match=r"expected no step inside averaged_parameters\(\)"):
            optimizer.step()
        with (
            pytest.raises(RuntimeError, match="inside itself"),
            optimizer.averaged_parameters(),
        ):
            pass
        raise KeyError("of the body")

    with pytest.raises(KeyError, match="of the body"), optimizer.averaged_parameters():
        evaluate()
    assert_same(params, inside)
    run(params, optimizer, [2])
    without = AdamW(params)
    with pytest.raises(RuntimeError, match="expected ema_decay"), without.averaged_parameters():
        pass


@BOTH
def test_zero_grad_clears_in_the_step(optimizer: Any) -> None:
    params, expected = make_params(), make_params()
    run(params, optimizer(params, zero_grad=True, max_grad_norm=1.0), range(2))
    run(expected, optimizer(expected, max_grad_norm=1.0), range(2))
    assert_same(params, expected)
    for param in params:
        assert param.grad is not None
        assert not param.grad.any()


def test_the_method_zero_grad_is_beside_the_option() -> None:
    params = make_params()
    optimizer = AdamW(params, zero_grad=True)
    optimizer.step()
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize(
    ("option", "value", "error", "match"),
    [
        ("max_grad_norm", -1.0, ValueError, "max_grad_norm at least 0, got -1.0"),
        ("max_grad_norm", "1", TypeError, "max_grad_norm a number, got '1'"),
        ("error_if_nonfinite", 1, TypeError, "error_if_nonfinite True or False, got 1"),
        ("clip_value", math.nan, ValueError, "clip_value at least 0, got nan"),
        ("decay", "none", ValueError, "decay one of 'lr', 'independent', got 'none'"),
        ("l2", -0.1, ValueError, "l2 at least 0, got -0.1"),
        ("l1", None, TypeError, "l1 a number, got None"),
        ("gradient_noise", 0.1, TypeError, r"gradient_noise \(eta, gamma\), two numbers, got 0.1"),
        (
            "gradient_noise",
            (-1.0, 0.5),
            ValueError,
            "gradient_noise eta at least 0 and both finite",
        ),
        ("max_norm", -1.0, ValueError, "max_norm at least 0, got -1.0"),
        ("ema_decay", 1.5, ValueError, r"ema_decay in \[0, 1\], got 1.5"),
        ("zero_grad", None, TypeError, "zero_grad True or False, got None"),
        ("master", "bf16", ValueError, "master one of 'none', .* got 'bf16'"),
        ("state_dtype", torch.float16, ValueError, "state_dtype one of None, torch.bfloat16, got"),
    ],
)
@BOTH
def test_wrong_options(
    optimizer: Any, option: str, value: Any, error: Any, match: str, in_group: bool
) -> None:
    match = f"regops.optim.{optimizer.__name__}: expected {match}"
    if not in_group:
        with pytest.raises(error, match=match):
            optimizer(make_params(), **{option: value})
    elif option not in ("max_grad_norm", "error_if_nonfinite"):
        with pytest.raises(error, match=match):
            optimizer([{"params": make_params(), option: value}])


@pytest.mark.parametrize(
    ("option", "value"), [("max_grad_norm", 1.0), ("error_if_nonfinite", True)]
)
@BOTH
def test_options_of_all_groups_together_are_no_groups(
    optimizer: Any, option: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"expected {option} as an argument of the optimizer"):
        optimizer([{"params": make_params(), option: value}])
    each = optimizer(make_params()[:2], max_grad_norm=1.0)
    with pytest.raises(ValueError, match=f"expected {option} as an argument of the optimizer"):
        each.add_param_group({"params": make_params()[2:], option: value})
    assert len(each.param_groups) == 1


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="AdamW: unexpected keyword argument 'max_gradnorm'"):
        AdamW(make_params(), max_gradnorm=1.0)  # type: ignore[call-arg]
