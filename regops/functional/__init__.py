"""The ops as functions: torch's names and defaults, and its order of all arguments still in use.

Extras are keyword-only.
"""

from regops.functional._step import StepOptions
from regops.functional.adamw import adamw_step_
from regops.functional.cross_entropy import cross_entropy
from regops.functional.dropconnect_linear import dropconnect_linear
from regops.functional.dropconnect_moments import dropconnect_moments
from regops.functional.dropout import dropout
from regops.functional.grad_norm import grad_norm
from regops.functional.linear_cross_entropy import linear_cross_entropy
from regops.functional.sgdw import sgdw_step_

__all__ = [
    "StepOptions",
    "adamw_step_",
    "cross_entropy",
    "dropconnect_linear",
    "dropconnect_moments",
    "dropout",
    "grad_norm",
    "linear_cross_entropy",
    "sgdw_step_",
]
