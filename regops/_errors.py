"""Messages for arguments of a wrong type, in place of the binding's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from regops._distributed import is_distributed


def wrong_types(
    error: Exception, function: Callable[..., object], **arguments: object
) -> Exception:
    """What to raise when the extension refuses its arguments.

    Args:
        error: As raised. One that names its op already, or comes of nothing in `arguments`, comes
            back unchanged. A RuntimeError comes of DTensors only.
        function: The public function, whose annotations say what it expects.
        arguments: As passed.

    Returns:
        A TypeError that names each argument that is not of its expected type, or a
        NotImplementedError that names each DTensor.
    """
    if isinstance(error, RuntimeError):
        return _refused_distributed(error, function, arguments)
    if str(error).startswith("regops."):
        return error
    hints, annotations = get_type_hints(function), dict(function.__annotations__)
    for options in get_args(hints.get("options")):  # Unpack of a TypedDict
        hints |= get_type_hints(options)
        annotations |= {
            name: hint.__forward_arg__ for name, hint in options.__annotations__.items()
        }
    wrong = [name for name, value in arguments.items() if not _fits(value, hints[name])]
    if not wrong and "incompatible function arguments" not in str(error):
        return error
    details = "; ".join(
        f"expected {name}: {annotations[name]}, got {_described(arguments[name], hints[name])}"
        for name in wrong or arguments
    )
    return TypeError(f"regops.{function.__name__}: {details}")


def _refused_distributed(
    error: RuntimeError, function: Callable[..., object], arguments: dict[str, object]
) -> RuntimeError:
    """In place of what torch says of an op that DTensor does not know."""
    names = [name for name, value in arguments.items() if is_distributed(value)]
    if not names:
        return error
    return NotImplementedError(
        f"regops.{function.__name__}: expected Tensors, got DTensors for {', '.join(names)}: call "
        "it on local tensors (to_local()) whose parts are whole problems, as rows of a batch with "
        "a replicated weight are, or on whole ones (full_tensor())"
    )


def _described(value: object, hint: Any) -> str:
    name = type(value).__name__
    of_items = any(get_origin(each) is Sequence for each in (hint, *get_args(hint)))
    if not of_items or not isinstance(value, (list, tuple)):
        return name
    return f"{name} of {', '.join(sorted({type(item).__name__ for item in value}))}"


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type, as the extension takes it."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if get_origin(hint) in (Sequence, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, options[0]) for item in value)
    if options:  # a union
        return any(_fits(value, option) for option in options)
    if hint is Any or hint is None:
        return hint is Any or value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
