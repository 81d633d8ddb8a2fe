"""torch's own samples for its dropout, run through ours."""

from __future__ import annotations

import warnings

import pytest
import torch

import regops.functional as RF
import regops.random
import regops.reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

OPINFO = next(op for op in op_db if op.name == "nn.functional.dropout" and not op.variant_test_name)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_samples(dtype: torch.dtype, requires_grad: bool, device: str) -> None:
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
