"""Trains a small network with dropout or DropConnect on scikit-learn's handwritten digits.

Once with torch's modules and AdamW and once with regops's, on the same batches from the same
initial weights:

    PYTHONPATH=. python examples/digits.py                # both
    PYTHONPATH=. python examples/digits.py --impl regops
    PYTHONPATH=. python examples/digits.py --regularizer dropconnect

It needs scikit-learn and rich beside regops.

The only difference is where the modules and `AdamW` come from. Two wide hidden layers are far more
than 8 x 8 pixels need; they make dropout a visible part of the training time, as it is in large
networks. It follows each of them; DropConnect drops the weights of the layers that read them.
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


class EagerDropConnectLinear(nn.Linear):
    """DropConnect as one writes it with torch alone: a masked copy of all weights at every step."""

    def __init__(self, in_features: int, out_features: int, p: float) -> None:
        super().__init__(in_features, out_features)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Drops weights in training."""
        weight = nn.functional.dropout(self.weight, self.p, self.training)
        return nn.functional.linear(input, weight, self.bias)


DROPOUT: dict[str, Callable[[float], nn.Module]] = {
    "torch": nn.Dropout,
    "regops": regops.nn.Dropout,
}
DROPCONNECT: dict[str, Callable[[int, int, float], nn.Module]] = {
    "torch": EagerDropConnectLinear,
    "regops": lambda inputs, outputs, p: regops.nn.DropConnectLinear(inputs, outputs, p=p),
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


def make_model(
    impl: str, regularizer: str = "dropout", width: int = WIDTH, seed: int = 0
) -> nn.Module:
    """A multilayer perceptron. One seed gives all the same weights, for none has others."""
    torch.manual_seed(seed)
    if regularizer == "dropconnect":
        linear = DROPCONNECT[impl]
        return nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            linear(width, width, 0.5),
            nn.ReLU(),
            linear(width, 10, 0.5),
        )
    dropout = DROPOUT[impl]
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(width, width),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(width, 10),
    )


def batches(x: Tensor, y: Tensor, epoch: int, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches in an order that depends on the epoch only."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    for chosen in order.split(size):
        if len(chosen) == size:
            yield x[chosen], y[chosen]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    epoch: int,
    batch: int = BATCH,
) -> int:
    """One pass over the data; returns the number of steps."""
    model.train()
    steps = 0
    for inputs, labels in batches(x, y, epoch, batch):
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
    parser = argparse.ArgumentParser(description="digits with torch's modules and regops's")
    parser.add_argument("--impl", choices=("torch", "regops", "both"), default="both")
    parser.add_argument("--regularizer", choices=("dropout", "dropconnect"), default="dropout")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()

    train_x, test_x, train_y, test_y = load_data()
    chosen = list(DROPOUT) if options.impl == "both" else [options.impl]
    models = {name: make_model(name, options.regularizer) for name in chosen}
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
