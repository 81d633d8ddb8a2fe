"""torch's modules and optimizers made ours in place, and back."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from regops._report import ConversionReport
from regops.nn._convert import convert_modules, revert_modules
from regops.optim._convert import convert_optimizer, revert_optimizer


def convert_(model_or_optimizer: nn.Module | Optimizer, /) -> ConversionReport:
    """Makes torch's modules in a model, or a running optimizer of torch's, ours; in place.

    Only the class of an object is changed, and options of ours are added at values by which they do
    nothing. So the object stays the same one: names, parameters, buffers, parametrizations, hooks,
    training flags, and whoever else holds it (a scheduler, GradScaler, DDP, `torch.compile`) stay
    valid. A second call swaps nothing.

    In a model: `torch.nn.Dropout` -> `regops.nn.Dropout`, `torch.nn.CrossEntropyLoss` ->
    `regops.nn.CrossEntropyLoss`, whose loss of bfloat16 and float16 logits is float32. Objects of
    subclasses are left, and so is what modules do by functions, `torch.nn.functional.dropout` for
    one: `docs/converting.md` says how to find it.

    Of optimizers: `torch.optim.AdamW`, and `torch.optim.Adam` whose weight decay is decoupled or
    0, -> `regops.optim.AdamW`; `torch.optim.SGD` without weight decay -> `regops.optim.SGDW`.
    State is kept, moments of bfloat16 and float16 parameters become float32, and training goes on
    as before. A method that was taken from the optimizer before, as by
    `torch.compile(optimizer.step)`, stays torch's.

    Args:
        model_or_optimizer: Of any kind; nothing to swap in it is no error.

    Returns:
        What was swapped, and what was left, with the reason; print it.

    Raises:
        TypeError: It is neither a module nor an optimizer.

    Example:
        >>> import torch, regops
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.1))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> print(regops.convert_(model))
        regops.convert_: 1 swapped, 0 left, 0 of regops already
        swapped: torch.nn.Dropout -> regops.nn.Dropout
          1
        >>> regops.convert_(optimizer).swapped[0].after
        'regops.optim.AdamW'
    """
    if isinstance(model_or_optimizer, nn.Module):
        return convert_modules(model_or_optimizer)
    if isinstance(model_or_optimizer, Optimizer):
        return convert_optimizer(model_or_optimizer)
    raise _wrong_type("convert_", model_or_optimizer)


def revert_(model_or_optimizer: nn.Module | Optimizer, /) -> ConversionReport:
    """Undoes `convert_`, in place: all of our modules in a model, or an optimizer, become torch's.

    So do those that `convert_` did not make, where torch has what they do: a model that was loaded
    or copied need not remember. What uses an option that torch lacks, `z_loss` for one, is left.
    Moments of bfloat16 and float16 parameters are rounded to the parameter's type, as torch has
    them.

    Args:
        model_or_optimizer: Of any kind; nothing to swap in it is no error.

    Returns:
        What was swapped, and what was left, with the reason.

    Raises:
        TypeError: It is neither a module nor an optimizer.

    Example:
        >>> import torch, regops
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.1))
        >>> report = regops.convert_(model)
        >>> print(regops.revert_(model))
        regops.revert_: 1 swapped, 0 left, 0 of torch already
        swapped: regops.nn.Dropout -> torch.nn.Dropout
          0
    """
    if isinstance(model_or_optimizer, nn.Module):
        return revert_modules(model_or_optimizer)
    if isinstance(model_or_optimizer, Optimizer):
        return revert_optimizer(model_or_optimizer)
    raise _wrong_type("revert_", model_or_optimizer)


def _wrong_type(call: str, got: object) -> TypeError:
    kind = f"the class {got.__name__}" if isinstance(got, type) else type(got).__name__
    return TypeError(
        f"regops.{call}: expected model_or_optimizer: torch.nn.Module or torch.optim.Optimizer, "
        f"got {kind}"
    )
