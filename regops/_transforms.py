"""Which path a call takes: C++ in eager code, dispatcher ops or a Python Function elsewhere."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

_functorch_level = torch._C._functorch.maybe_current_level


def transform_active() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is running.

    A C++ autograd Function refuses to run under them, so ops take a Python one there.
    """
    return _functorch_level() is not None or forward_ad._current_level >= 0
