"""Optimizers under the names of torch.optim, each step in one pass."""

from regops.optim._options import OptimizerOptions
from regops.optim.adamw import AdamW
from regops.optim.param_groups import ParamGroups, param_groups
from regops.optim.sgdw import SGDW

__all__ = ["SGDW", "AdamW", "OptimizerOptions", "ParamGroups", "param_groups"]
