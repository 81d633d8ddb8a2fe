"""Fused CPU and CUDA kernels for regularization in PyTorch.

    import regops.functional as RF    # the ops as functions
    import regops.nn                  # as modules
    import regops.optim               # AdamW and SGDW
    import regops.random              # keys: where their random numbers come from
    regops.convert_(model)            # torch's modules, or a running optimizer, made ours

`python -m regops info` says what this installation can do, and why not the rest.
"""

import importlib
from pathlib import Path

import torch  # its libraries must be loaded before the extension's

__version__ = "0.1.0"

try:
    importlib.import_module("regops._C")
except ImportError as error:
    _folder = Path(__file__).parent
    if any(_folder.glob("_C.*.so")):
        _reason = f"regops: its extension was built for another torch than {torch.__version__}"
        _reason += f" ({error}): run `pip install --no-build-isolation .` again"
    elif (_folder.parent / "setup.py").exists():
        _reason = "regops: this is the source folder, and its extension is not built in place: "
        _reason += "start Python in another folder, or run `make build` here"
    else:
        _reason = "regops: its compiled extension is missing: install regops again"
    raise ImportError(_reason) from None

from regops import functional, nn, optim, random, reference
from regops._convert import convert_, revert_
from regops._info import info
from regops._report import ConversionReport

__all__ = [
    "ConversionReport",
    "convert_",
    "functional",
    "info",
    "nn",
    "optim",
    "random",
    "reference",
    "revert_",
]
