"""The usual split of parameters: weight decay on matrices, none on biases and norms."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class ParamGroups(list[dict[str, Any]]):
    """Groups for an optimizer, whose str() says what is in them.

    Attributes:
        names: Of the parameters of each group.
        frozen: Names of parameters without `requires_grad`, which are in no group.
        shared: Further names of parameters that have several, with the one they are in a group by.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.names: list[list[str]] = [[] for _ in self]
        self.frozen: list[str] = []
        self.shared: dict[str, str] = {}

    def __str__(self) -> str:
        lines = []
        for group, names in zip(self, self.names, strict=True):
            elements = sum(param.numel() for param in group["params"])
            lines.append(
                f"weight_decay={group['weight_decay']}: {len(names)} parameters, "
                f"{elements:,} elements" + "".join(f"\n  {name}" for name in names)
            )
        if self.frozen:
            lines.append(f"frozen: {len(self.frozen)} parameters")
            lines += [f"  {name}" for name in self.frozen]
        if self.shared:
            lines.append(f"shared: {len(self.shared)} names")
            lines += [f"  {name} is {first}" for name, first in self.shared.items()]
        return "\n".join(lines)


def param_groups(
    model: nn.Module, weight_decay: float, *, no_decay: Iterable[str] = ()
) -> ParamGroups:
    """Two groups for an optimizer: parameters that decay, and those that should not.

    Weight decay pulls what scales activations or shifts them towards 0, which regularizes nothing
    (Goyal et al. 2017, He et al. 2019). So biases, parameters of norm layers, parameters of no or
    one dimension, and those named in `no_decay` have none. A norm layer is an instance of one of
    torch's, or of a class whose name ends in "Norm".

    Args:
        model: Its parameters are split. Frozen ones are in no group; one that has several names is
            in one group, without decay if any of its names is.
        weight_decay: Of the first group.
        no_decay: Patterns of names, as of `fnmatch`: "head.*", "*.position".

    Returns:
        A list of the two groups, {"params": ..., "weight_decay": ...}; str() says what it did.

    Raises:
        TypeError: `model` is no module; `no_decay` is one string.
        ValueError: `weight_decay` is negative; a pattern matches no parameter.

    Example:
        >>> import torch, regops.optim
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        >>> groups = regops.optim.param_groups(model, 0.1)
        >>> print(groups)
        weight_decay=0.1: 1 parameters, 6 elements
          0.weight
        weight_decay=0.0: 3 parameters, 9 elements
          0.bias
          1.weight
          1.bias
        >>> optimizer = regops.optim.AdamW(groups, lr=1e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"regops.optim.param_groups: expected a module, got {type(model).__name__}")
    if isinstance(no_decay, str):
        raise TypeError(f"regops.optim.param_groups: expected no_decay=[{no_decay!r}], a list")
    if not weight_decay >= 0.0:
        raise ValueError(
            f"regops.optim.param_groups: expected weight_decay at least 0, got {weight_decay}"
        )
    patterns = list(no_decay)
    unmatched = set(patterns)
    groups = ParamGroups(
        [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    )
    names: dict[Tensor, str] = {}
    exempt: set[Tensor] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local_name}" if prefix else local_name
            matching = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
            unmatched -= matching
            if names.setdefault(param, name) != name:
                groups.shared[name] = names[param]
            if matching or _is_exempt(module, local_name, param):
                exempt.add(param)
    if unmatched:
        raise ValueError(
            f"regops.optim.param_groups: expected no_decay to name parameters, got "
            f"{sorted(unmatched)[0]!r}, which matches none"
        )
    for param, name in names.items():
        if not param.requires_grad:
            groups.frozen.append(name)
            continue
        which = 1 if param in exempt else 0
        groups[which]["params"].append(param)
        groups.names[which].append(name)
    return groups


def _is_exempt(module: nn.Module, name: str, param: Tensor) -> bool:
    norm = isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")
    # Recurrent layers call theirs bias_ih_l0, attention in_proj_bias.
    return norm or param.dim() < 2 or name.startswith("bias") or name.endswith("bias")
