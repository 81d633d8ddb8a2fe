"""Messages for arguments of a wrong type, in place of the binding's own."""

from __future__ import annotations

from collections.abc import Callable


def wrong_types(
    error: TypeError, function: Callable[..., object], **arguments: object
) -> TypeError:
    """What to raise when the extension refuses its arguments.

    Args:
        error: As raised. One that names its op already comes back unchanged.
        function: The public function, whose annotations say what it expects.
        arguments: As passed.

    Returns:
        A TypeError that gives each argument's expected and actual type.
    """
    if "incompatible function arguments" not in str(error):
        return error
    expected = ", ".join(f"{name}: {function.__annotations__[name]}" for name in arguments)
    got = ", ".join(f"{name}: {type(value).__name__}" for name, value in arguments.items())
    return TypeError(f"regops.{function.__name__}: expected ({expected}), got ({got})")
