"""Trains a small network with dropout or DropConnect on scikit-learn's handwritten digits.

Once with torch's modules and AdamW and once with regops's, on the same batches from the same
initial weights:

    PYTHONPATH=. python examples/digits.py                # both
    PYTHONPATH=. python examples/digits.py --impl regops
    PYTHONPATH=. python examples/digits.py --regularizer dropconnect --seeds 0 1 2

It needs scikit-learn and rich beside regops.

The only difference is where the modules, the loss and `AdamW` come from. Two wide hidden layers are
far more than 8 x 8 pixels need; they make dropout a visible part of the training time, as it is in
large networks. It follows each of them; DropConnect drops the weights of the layers that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import comparison
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import regops.nn
import regops.optim


class EagerDropConnectLinear(nn.Linear):
    """DropConnect as one writes it with torch alone: a masked copy of all weights at every step."""

    def __init__(self, in_features: int, out_features: int, *, p: float) -> None:
        super().__init__(in_features, out_features)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Drops weights in training."""
        weight = nn.functional.dropout(self.weight, self.p, self.training)
        return nn.functional.linear(input, weight, self.bias)


class Ops(NamedTuple):
    """All that differs between the two."""

    dropout: Callable[..., nn.Module]
    dropconnect_linear: Callable[..., nn.Module]
    cross_entropy: Callable[..., nn.Module]
    adamw: Callable[[nn.Module], torch.optim.Optimizer]


OPS = {
    "torch": Ops(
        nn.Dropout,
        EagerDropConnectLinear,
        nn.CrossEntropyLoss,
        lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
    ),
    "regops": Ops(
        regops.nn.Dropout,
        regops.nn.DropConnectLinear,
        regops.nn.CrossEntropyLoss,
        lambda model: regops.optim.AdamW(model.parameters(), lr=1e-3),
    ),
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
        linear = OPS[impl].dropconnect_linear
        return nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            linear(width, width, p=0.5),
            nn.ReLU(),
            linear(width, 10, p=0.5),
        )
    dropout = OPS[impl].dropout
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


def train(
    impl: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    label_smoothing: float = 0.1,
) -> Iterator[float]:
    """Trains a model and yields the mean loss of each epoch."""
    criterion = OPS[impl].cross_entropy(label_smoothing=label_smoothing)
    optimizer = OPS[impl].adamw(model)
    for epoch in range(epochs):
        model.train()
        losses = []
        for inputs, labels in batches(x, y, epoch, batch):
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        yield torch.stack(losses).mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss without smoothing, and share of images that the model labels correctly."""
    model.eval()
    logits = model(x)
    accuracy = (logits.argmax(1) == y).float().mean().item()
    return nn.functional.cross_entropy(logits, y).item(), accuracy


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints accuracies and times."""
    parser = comparison.parser("digits with torch's modules and regops's")
    parser.add_argument(
        "--regularizer",
        choices=("dropout", "dropconnect"),
        default="dropout",
        help="what is dropped: activations, or weights",
    )
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="share of the target")
    parser.add_argument(
        "--epochs", type=comparison.positive, default=EPOCHS, help="passes over the data"
    )
    parser.add_argument(
        "--width", type=comparison.positive, default=WIDTH, help="of the hidden layers"
    )
    options = parser.parse_args(arguments)

    train_x, test_x, train_y, test_y = load_data()
    runs = comparison.compare(
        options,
        options.epochs,
        lambda impl, seed: make_model(impl, options.regularizer, options.width, seed),
        lambda impl, model, seed: train(
            impl,
            model,
            train_x,
            train_y,
            epochs=options.epochs,
            label_smoothing=options.label_smoothing,
        ),
        lambda model: evaluate(model, test_x, test_y),
    )
    steps = options.epochs * (len(train_x) // BATCH)
    comparison.report("digits", steps, runs, options)


if __name__ == "__main__":
    main()
