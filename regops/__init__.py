"""Fused CPU and CUDA kernels for regularization in PyTorch.

    import regops.functional as RF    # the ops as functions
    import regops.nn                  # as modules
    import regops.random              # keys: where their random numbers come from

`python -m regops info` says what this installation can do, and why not the rest.
"""

import torch  # noqa: F401  (its libraries must be loaded before the extension's)

__version__ = "0.1.0"

try:
    from regops import _C  # noqa: F401
except ImportError as error:
    raise ImportError(
        "regops: its compiled extension is missing or was built for another torch "
        f"({error}). Rebuild it with this one: pip install --no-build-isolation ."
    ) from error

from regops import functional, nn, random, reference
from regops._info import info

__all__ = ["functional", "info", "nn", "random", "reference"]
