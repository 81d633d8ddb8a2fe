"""Messages for arguments of a wrong type, in place of the binding's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints


def wrong_types(
    error: TypeError, function: Callable[..., object], **arguments: object
) -> TypeError:
    """What to raise when the extension refuses its arguments.

    Args:
        error: As raised. One that names its op already comes back unchanged.
        function: The public function, whose annotations say what it expects.
        arguments: As passed.

    Returns:
        A TypeError that names each argument that is not of its expected type.
    """
    if "incompatible function arguments" not in str(error):
        return error
    hints = get_type_hints(function)
    wrong = [name for name, value in arguments.items() if not _fits(value, hints[name])]
    details = "; ".join(
        f"expected {name}: {function.__annotations__[name]}, got {type(arguments[name]).__name__}"
        for name in wrong or arguments
    )
    return TypeError(f"regops.{function.__name__}: {details}")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type, as the extension takes it."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if options:  # a union
        return any(_fits(value, option) for option in options)
    if hint is Any or hint is None:
        return hint is Any or value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
