"""torch's own samples for its ops, and inputs that they must refuse, run through ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.random
import regops.reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import OpInfo

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def opinfos(name: str) -> list[OpInfo]:
    """All variants of an op; none where this torch does not have it."""
    return [op for op in op_db if op.name == f"nn.functional.{name}"]


OPINFO = next(op for op in opinfos("dropout") if not op.variant_test_name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_dropout_samples(dtype: torch.dtype, requires_grad: bool, device: str) -> None:
    samples = list(OPINFO.sample_inputs(device, dtype, requires_grad))
    assert samples
    for sample in samples:
        key = regops.random.key(1)
        output = RF.dropout(sample.input, *sample.args, key=key, **sample.kwargs)
        expected = regops.reference.dropout(sample.input, *sample.args, key=key, **sample.kwargs)
        torchs = torch.nn.functional.dropout(sample.input, *sample.args, **sample.kwargs)
        assert torch.equal(output, expected)
        assert (output.shape, output.dtype, output.stride()) == (
            torchs.shape,
            torchs.dtype,
            torchs.stride(),
        )
        assert output.requires_grad == torchs.requires_grad


LOSSES = [
    pytest.param(op, getattr(RF, name), id=f"{name}-{op.variant_test_name}")
    for name in ("cross_entropy", "linear_cross_entropy")
    for op in opinfos(name)
]


@pytest.mark.filterwarnings("ignore:.*``options`` ignored")  # torch's chunks take few options
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "function"), LOSSES)
def test_loss_samples(
    op: OpInfo, function: Callable[..., Tensor], dtype: torch.dtype, device: str
) -> None:
    samples = list(op.sample_inputs(device, dtype, requires_grad=True))
    assert samples
    for sample in samples:
        arguments = (sample.input, *sample.args)
        wanted = [
            tensor
            for tensor in (*arguments, *sample.kwargs.values())
            if isinstance(tensor, Tensor) and tensor.requires_grad
        ]
        loss = function(*arguments, **sample.kwargs)
        expected = op(*arguments, **sample.kwargs)
        assert loss.shape == expected.shape
        assert loss.dtype == torch.promote_types(dtype, torch.float32)
        upstream = torch.ones_like(loss)
        found = torch.autograd.grad(loss, wanted, upstream, allow_unused=True)
        theirs = torch.autograd.grad(
            expected, wanted, upstream.to(expected.dtype), allow_unused=True
        )
        # torch's own results are rounded to the type several times over.
        eps = torch.finfo(dtype).eps
        for ours, other in zip((loss, *found), (expected, *theirs), strict=True):
            if other is None:
                assert ours is None or not ours.any()
                continue
            scale = float(other.detach().abs().nan_to_num(0.0).max()) if other.numel() else 0.0
            torch.testing.assert_close(
                ours.to(dtype), other, rtol=16 * eps, atol=16 * eps * scale, equal_nan=True
            )


@pytest.mark.parametrize(("op", "function"), LOSSES)
def test_loss_errors(op: OpInfo, function: Callable[..., Tensor], device: str) -> None:
    if op.error_inputs_func is None:
        pytest.skip("torch lists none")
    for refused in op.error_inputs(device):
        sample = refused.sample_input
        with pytest.raises(refused.error_type, match=refused.error_regex):
            function(sample.input, *sample.args, **sample.kwargs)
