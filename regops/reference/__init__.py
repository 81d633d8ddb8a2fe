"""The oracle of each op: the same names and signatures in plain PyTorch, readable, slow."""

from regops.reference.adamw import adamw_step_
from regops.reference.cross_entropy import cross_entropy
from regops.reference.dropconnect_linear import dropconnect_linear, dropconnect_moments
from regops.reference.dropout import dropout
from regops.reference.linear_cross_entropy import linear_cross_entropy
from regops.reference.optimizer_step import grad_norm
from regops.reference.sgdw import sgdw_step_

__all__ = [
    "adamw_step_",
    "cross_entropy",
    "dropconnect_linear",
    "dropconnect_moments",
    "dropout",
    "grad_norm",
    "linear_cross_entropy",
    "sgdw_step_",
]
