"""What is asked of each kernel's machine code, and why.

Threads: how many one multiprocessor holds at least, on every architecture. That times the bytes
that a thread loads before it waits is what is in flight: where a load takes 0.8 us, each of 132
multiprocessors needs 29 KiB for 4.8 TB/s.

Loads and stores: instructions that move 16 bytes from or to global memory, at least; as many as the
main path has when all of it moves 16 bytes at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """What is asked of the kernels whose whole name matches a pattern, and of no earlier one."""

    kernels: str
    threads: int
    loads: int
    stores: int
    why: str
    first: int = 80
    """Compiled for what comes before this compute capability, the kernel is empty: not launched."""

    def applies_to(self, name: str) -> bool:
        """Whether the pattern matches."""
        return re.fullmatch(self.kernels, name) is not None


_ANY = "of any alignment or stride: elements one by one"
_SMALL = "little work, of one block or on partial results"

LIMITS = (
    Limit(r"dropout_run<\w+, 1, .*", 1536, 0, 0, _ANY),
    Limit(r"dropout_run<.*, RuleOfDevice>", 1024, 4, 4, "64 bytes in flight a thread: 64 KiB"),
    Limit(r"dropout_run<.*", 1280, 4, 4, "64 bytes in flight a thread: 80 KiB"),
    Limit(r"dropout_permuted<\w+, 1, .*", 1280, 0, 0, _ANY),
    Limit(r"dropout_permuted<.*", 1024, 4, 4, "64 bytes in flight a thread: 64 KiB"),
    # Stores of on_chip: with and without class weights, and zeros.
    Limit(r"on_chip<\w+, 1, .*", 1536, 0, 0, "up to 32 classes, 8 threads a row: one by one"),
    Limit(r"on_chip<.*, true>", 1024, 8, 17, "128 bytes in flight a thread: 128 KiB", 90),
    Limit(r"on_chip<.*", 1024, 8, 17, "128 bytes in flight a thread: 128 KiB"),
    # Loads of streamed: twice 2 vectors of logits, and as many of probabilities.
    Limit(r"streamed<double, ByLabel>", 256, 4, 3, "32 bytes in flight a thread; exp is the bound"),
    Limit(r"streamed<double, double>", 256, 8, 5, "64 bytes in flight a thread; exp is the bound"),
    Limit(r"streamed<\w+, ByLabel>", 512, 4, 3, "32 bytes in flight a thread: 16 KiB"),
    Limit(r"streamed<__\w+, float>", 512, 12, 7, "96 bytes in flight a thread: 48 KiB"),
    Limit(r"streamed<.*", 512, 8, 5, "64 bytes in flight a thread: 32 KiB"),
    Limit(r"columns<double, \w+>", 512, 0, 0, "a row a thread: 32 bytes in flight, 16 KiB"),
    Limit(r"columns<.*", 768, 0, 0, "a row a thread, neighbours side by side: 16 to 32 bytes"),
    Limit(r"scale<.*", 1024, 4, 4, "64 bytes in flight a thread: 64 KiB"),
    Limit(r"statistics<.*", 512, 4, 0, "64 bytes in flight a thread: 32 KiB"),
    Limit(r"gradient<double>", 256, 2, 3, "32 bytes in flight a thread; exp is the bound"),
    Limit(r"gradient<.*", 512, 2, 3, "32 bytes in flight a thread: 16 KiB"),
    Limit(r"(prepare|add_losses|losses)<.*", 1024, 0, 0, _SMALL),
    # Tiles of 128 sums a thread leave room for one block only.
    Limit(r"mma_output<.*", 512, 24, 0, "128 bytes of weights in flight a thread: 64 KiB"),
    Limit(r"mma_grad_input<.*", 512, 10, 0, "64 bytes of weights in flight a thread: 32 KiB"),
    Limit(r"sum_products<\w+, \(Masks\)\d, false, .*", 256, 0, 0, _ANY),
    Limit(r"sum_products<float, \(Masks\)0, true, 32, 4>", 256, 72, 0, "128 sums a thread"),
    Limit(r"sum_products<float, \(Masks\)1, .*", 256, 16, 0, "bound by random numbers"),
    Limit(r"sum_products<__\w+, \(Masks\)1, .*", 256, 8, 0, "bound by random numbers"),
    Limit(r"sum_products<float, .*", 512, 24, 0, "128 bytes of weights in flight a thread"),
    Limit(r"sum_products<__\w+, .*", 512, 12, 0, "64 bytes of weights in flight a thread"),
    Limit(r"sum_over_outputs<\w+, \w+, false, .*", 256, 0, 0, _ANY),
    Limit(r"sum_over_outputs<float, false, true, 16>", 256, 4, 0, "128 sums a thread"),
    Limit(r"sum_over_outputs<__\w+, false, true, 16>", 256, 2, 0, "128 sums a thread"),
    Limit(r"sum_over_outputs<float, false, .*", 512, 4, 0, "64 bytes in flight a thread: 32 KiB"),
    Limit(r"sum_over_outputs<__\w+, false, .*", 512, 2, 0, "32 bytes in flight a thread: 16 KiB"),
    Limit(r"sum_over_outputs<float, true, .*", 512, 2, 0, "bound by random numbers"),
    Limit(r"sum_over_outputs<__\w+, true, .*", 512, 1, 0, "bound by random numbers"),
    Limit(r"sum_over_samples<\w+, \w+, false, .*", 512, 0, 0, _ANY),
    Limit(r"sum_over_samples<float, false, .*", 512, 4, 16, "one store of 32 bytes each of 8 rows"),
    Limit(r"sum_over_samples<__\w+, false, .*", 512, 2, 8, "one store of 16 bytes each of 8 rows"),
    # Their gradients of 4 rows, and the same as partial sums in float32.
    Limit(r"sum_over_samples<float, true, .*", 768, 2, 16, "bound by random numbers"),
    Limit(r"sum_over_samples<__\w+, true, .*", 768, 1, 12, "bound by random numbers"),
    Limit(r"add_(parts|partials)<.*", 2048, 0, 0, _SMALL),
    # Gradients are stored in two places, of general steps every operand in every type it may have.
    Limit(r"step_plain<\(StepRule\)0>", 1024, 8, 10, "128 bytes in flight a thread: 128 KiB"),
    Limit(r"step_plain<\(StepRule\)1>", 1024, 6, 8, "64 bytes or more in flight a thread: 64 KiB"),
    Limit(r"step_general<double, 4, false>", 512, 17, 20, "128 bytes in flight a thread: 64 KiB"),
    Limit(r"step_general<float, 8, false>", 512, 29, 37, "64 bytes or more in flight a thread"),
    Limit(r"step_general<\w+, 1, true>", 512, 0, 0, _ANY),
    Limit(r"sum_squares", 1024, 20, 0, "64 bytes in flight a thread: 64 KiB"),
    Limit(r"total_norm|count_and_prepare", 1024, 0, 0, _SMALL),
    Limit(r"normal_numbers", 2048, 0, 1, "no loads: as many as hide the arithmetic"),
    Limit(r"philox_blocks", 1024, 0, 0, "for tests"),
    Limit(r"store_key|fold_in_key", 1, 0, 0, "one thread"),
)


def limit_of(name: str) -> Limit:
    """The limit of a kernel.

    Raises:
        LookupError: none is stated.
    """
    for limit in LIMITS:
        if limit.applies_to(name):
            return limit
    raise LookupError(f"{name}: state in {__name__} what its machine code must be like")


@dataclass(frozen=True)
class Budget:
    """The most instructions a block of 128 random bits, on a main path that makes `blocks` of them.

    On that path nothing else is left out: the op's loads, stores and arithmetic are counted, too. A
    block serves `elements` elements, for each of which `moved` bytes come from or go to memory.
    """

    source: str
    kernel: str
    blocks: int
    elements: int
    moved: int
    instructions: int

    @property
    def bytes(self) -> int:
        """Moved on the whole path."""
        return self.blocks * self.elements * self.moved


# Beside the rounds, dropout compares, selects, scales and converts. With 32 bits an element, for p
# near 0 and 1, a block serves half as many.
DROPOUT = tuple(
    Budget("dropout.cu", f"dropout_run<{dtype}, RuleOfHost<{fine}>>", *rest)
    for dtype, fine, *rest in (
        ("__half, 8", "false", 4, 8, 4, 128),
        ("__nv_bfloat16, 8", "false", 4, 8, 4, 132),
        ("float, 4", "false", 4, 4, 8, 106),
        ("double, 2", "false", 4, 2, 16, 102),
        ("__half, 8", "true", 8, 4, 4, 81),
        ("__nv_bfloat16, 8", "true", 8, 4, 4, 83),
        ("float, 4", "true", 8, 2, 8, 72),
        ("double, 2", "true", 8, 1, 16, 70),
    )
)
# DropConnect's products also multiply, and load what they multiply with. Of few samples, weights
# are what comes from memory; with a mask for each sample next to nothing does.
DROPCONNECT = tuple(
    Budget(f"dropconnect_{source}.cu", kernel, *rest)
    for source, kernel, *rest in (
        ("mma_output", "mma_output<__nv_bfloat16, 1, false>", 8, 8, 2, 76),
        ("mma_output", "mma_output<__nv_bfloat16, 8, false>", 8, 8, 2, 88),
        ("mma_grad_input", "mma_grad_input<__nv_bfloat16, 1, false>", 4, 8, 2, 79),
        ("mma_grad_input", "mma_grad_input<__nv_bfloat16, 4, false>", 4, 8, 2, 89),
        ("linear_output", "sum_products<float, (Masks)1, true, 4, 4>", 16, 8, 0, 81),
    )
)
