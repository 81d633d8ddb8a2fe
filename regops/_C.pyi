"""The compiled extension."""

from typing import Any

from torch import Generator, Tensor

def dropout(
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    key: Tensor | None,
    generator: Generator | None,
) -> Tensor: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    entropy_weight: float,
    return_lse: bool,
    inplace_backward: bool,
    check: str | None,
    /,
) -> tuple[Tensor, Tensor]: ...
def check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    entropy_weight: float,
    return_lse: bool,
    inplace_backward: bool,
    /,
) -> None: ...
def linear_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    entropy_weight: float,
    return_lse: bool,
    inplace_backward: bool,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    chunk_rows: int,
    check: str | None,
    /,
) -> tuple[Tensor, Tensor]: ...
def check_linear_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    entropy_weight: float,
    return_lse: bool,
    inplace_backward: bool,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    chunk_rows: int,
    /,
) -> None: ...
def copy(input: Tensor) -> Tensor: ...
def copy_(output: Tensor, input: Tensor) -> None: ...
def build_info() -> dict[str, Any]: ...
def variate_blocks(seed: int, offset: int, first: int) -> list[int]: ...
def permuted_layout(tensor: Tensor) -> dict[str, Any] | None: ...
def parallel_threads() -> int: ...
def philox_block(key: int, counter_low: int, counter_high: int) -> tuple[int, int, int, int]: ...
def set_cpu_capability(name: str) -> None: ...
