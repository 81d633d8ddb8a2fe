"""Trains a small network with dropout on scikit-learn's handwritten digits.

Once with torch's dropout and AdamW and once with regops's, on the same batches from the same
initial weights:

    PYTHONPATH=. python examples/digits.py                # both
    PYTHONPATH=. python examples/digits.py --impl regops

It needs scikit-learn and rich beside regops.

The only difference is where `Dropout` and `AdamW` come from. Two wide hidden layers, each followed
by dropout, are far more than 8 x 8 pixels need; they make dropout a visible part of the training
time, as it is in large networks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import regops.nn
import regops.optim

DROPOUT: dict[str, Callable[[float], nn.Module]] = {
    "torch": nn.Dropout,
    "regops": regops.nn.Dropout,
}
OPTIMIZER: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "torch": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
    "regops": lambda model: regops.optim.AdamW(model.parameters(), lr=1e-3),
}
WIDTH = 1024
BATCH = 256
EPOCHS = 40


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, training labels, test labels; images are in [0, 1]."""
    digits = load_digits()
    parts = train_test_split(
        digits.data, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    train_x, test_x = (torch.tensor(x / 16, dtype=torch.float32) for x in parts[:2])
    train_y, test_y = (torch.tensor(y) for y in parts[2:])
    return train_x, test_x, train_y, test_y


def make_model(dropout: Callable[[float], nn.Module]) -> nn.Module:
    """A multilayer perceptron. Dropout has no parameters: one seed gives both the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, WIDTH),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(WIDTH, 10),
    )


def batches(x: Tensor, y: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches in an order that depends on the epoch only."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    for chosen in order.split(BATCH):
        if len(chosen) == BATCH:
            yield x[chosen], y[chosen]


def train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epoch: int
) -> int:
    """One pass over the data; returns the number of steps."""
    model.train()
    steps = 0
    for inputs, labels in batches(x, y, epoch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        steps += 1
    return steps


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images that the model labels correctly."""
    model.eval()
    return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    """Trains and prints accuracies and times."""
    parser = argparse.ArgumentParser(description="digits with dropout, torch's and regops's")
    parser.add_argument("--impl", choices=("torch", "regops", "both"), default="both")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()

    train_x, test_x, train_y, test_y = load_data()
    chosen = list(DROPOUT) if options.impl == "both" else [options.impl]
    models = {name: make_model(DROPOUT[name]) for name in chosen}
    optimizers = {name: OPTIMIZER[name](model) for name, model in models.items()}
    seconds = dict.fromkeys(chosen, 0.0)
    steps = 0
    with Progress() as progress:
        task = progress.add_task("training", total=options.epochs)
        for epoch in range(options.epochs):
            # Epoch by epoch in turn, so that a machine that slows down slows both.
            for name in chosen if epoch % 2 else reversed(chosen):
                start = time.perf_counter()
                count = train_epoch(models[name], optimizers[name], train_x, train_y, epoch)
                seconds[name] += time.perf_counter() - start
            steps += count
            progress.advance(task)

    runs = {
        name: {"seconds": seconds[name], "accuracy": accuracy(model, test_x, test_y)}
        for name, model in models.items()
    }
    for name, run in runs.items():
        print(
            f"{name:>6}: test accuracy {run['accuracy']:.1%}, "
            f"{run['seconds']:.2f} s for {steps} steps"
        )
    if options.json:
        options.json.write_text(json.dumps({"name": "digits", "steps": steps, "runs": runs}))


if __name__ == "__main__":
    main()
