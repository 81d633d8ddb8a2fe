"""Trains a small GPT, character by character, on the documentation that comes with Python.

Once with torch's dropout, cross-entropy and AdamW and once with regops's, on the same batches from
the same initial weights:

    PYTHONPATH=. python examples/char_lm.py                 # both, one to two minutes each
    PYTHONPATH=. python examples/char_lm.py --impl regops
    PYTHONPATH=. python examples/char_lm.py --seeds 0 1 2 --plot curves.png

It needs rich and, for `--plot`, matplotlib beside regops.

Attention is written out for both, as torch is fastest so: a step of its version took 262 ms on one
thread (AVX-512), 281 ms by `F.scaled_dot_product_attention`, which has no fused kernel for dropout
on the CPU, and 294 ms with `masked_fill` instead of the mask in `baddbmm`; regops's took 207 ms.
torch draws a mask in one thread, at 5 ns an element, however many there are: more threads gain less
for it. With 103 classes `RF.linear_cross_entropy` is as fast as `RF.cross_entropy`.
"""

from __future__ import annotations

import ast
import math
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import comparison
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import regops.functional as RF
import regops.nn
import regops.optim

MAX_NORM = 1.0  # of the gradients
ROUNDS = 20  # of training, each followed by evaluation


class Ops(NamedTuple):
    """All that differs between the two."""

    dropout: Callable[..., Tensor]
    dropout_module: Callable[[float], nn.Module]
    cross_entropy: Callable[..., Tensor]
    adamw: Callable[..., torch.optim.Optimizer]
    clip: Callable[[Iterable[Tensor]], Any]


OPS = {
    "torch": Ops(
        F.dropout,
        nn.Dropout,
        F.cross_entropy,
        lambda groups, lr: torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), fused=True),
        lambda parameters: nn.utils.clip_grad_norm_(parameters, MAX_NORM),
    ),
    "regops": Ops(
        RF.dropout,
        regops.nn.Dropout,
        RF.cross_entropy,
        lambda groups, lr: regops.optim.AdamW(
            groups, lr, betas=(0.9, 0.99), max_grad_norm=MAX_NORM
        ),
        lambda parameters: None,  # the step clips
    ),
}


# ---- text ----------------------------------------------------------------------------------------


def load_text() -> tuple[str, str]:
    """English text of the standard library, and what it is."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems leave documentation out
        return "\n\n".join(_docstrings()), "docstrings of the standard library"
    return "\n\n".join(topics[name] for name in sorted(topics)), "pydoc_data.topics"


def _docstrings() -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


@dataclass
class Data:
    """Characters as numbers from 0: (N) to train on, the text's last tenth to evaluate on."""

    train: Tensor
    held_out: Tensor
    vocabulary: int


def encode(text: str) -> Data:
    """Numbers characters in the order of their code points."""
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([number[character] for character in text])
    split = len(data) * 9 // 10
    return Data(data[:split], data[split:], len(number))


# ---- model ---------------------------------------------------------------------------------------


@dataclass
class Config:
    """Of model and training; `p` is of all dropout."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 256
    batch: int = 8
    steps: int = 600
    p: float = 0.1
    label_smoothing: float = 0.1
    lr: float = 2e-3
    weight_decay: float = 0.1


HELP = {
    "layers": "blocks of attention and feed-forward",
    "width": "of the residual stream",
    "heads": "of attention; divides the width",
    "context": "characters that a window has",
    "batch": "windows of a step",
    "steps": f"of the optimizer; a multiple of {ROUNDS}",
    "p": "of all dropout, in [0, 1]",
    "label_smoothing": "share of the target",
    "lr": "largest learning rate",
    "weight_decay": "of matrices",
}


class Attention(nn.Module):
    """Causal self-attention of (B, T, C)."""

    causal: Tensor

    def __init__(self, config: Config, ops: Ops) -> None:
        super().__init__()
        self.heads, self.p, self.dropout = config.heads, config.p, ops.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.projection = nn.Linear(config.width, config.width)
        future = torch.full((config.context, config.context), -math.inf).triu(1)
        self.register_buffer("causal", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attends to the past, with dropout on the attention weights."""
        b, t, c = x.shape
        size = c // self.heads
        qkv = self.qkv(x).view(b, t, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.heads, t, size)
        logits = torch.baddbmm(self.causal, q, k.transpose(1, 2), alpha=size**-0.5)
        weights = self.dropout(logits.softmax(-1), self.p, self.training)
        heads = (weights @ v).view(b, self.heads, t, size)
        output: Tensor = self.projection(heads.transpose(1, 2).reshape(b, t, c))
        return output


class Block(nn.Module):
    """Pre-norm: each branch reads a normalized residual stream and is dropped out into it."""

    def __init__(self, config: Config, ops: Ops) -> None:
        super().__init__()
        width = config.width
        self.attention = nn.Sequential(
            nn.LayerNorm(width), Attention(config, ops), ops.dropout_module(config.p)
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            ops.dropout_module(config.p),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adds both branches."""
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class GPT(nn.Module):
    """Logits (B, T, vocabulary) of the next character, of characters (B, T)."""

    def __init__(self, config: Config, vocabulary: int, ops: Ops) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.layers = nn.Sequential(
            ops.dropout_module(config.p),
            *(Block(config, ops) for _ in range(config.layers)),
            nn.LayerNorm(config.width),
            nn.Linear(config.width, vocabulary, bias=False),
        )
        for name, param in self.named_parameters():
            if param.dim() == 2:
                nn.init.normal_(param, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, text: Tensor) -> Tensor:
        """Of characters as numbers."""
        output: Tensor = self.layers(self.characters(text) + self.positions.weight[: text.shape[1]])
        return output


def make_model(impl: str, seed: int, config: Config, vocabulary: int) -> GPT:
    """One seed gives both the same weights."""
    torch.manual_seed(seed)
    return GPT(config, vocabulary, OPS[impl])


# ---- training ------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int) -> float:
    """Share of the full rate: linear over the first twentieth, then a cosine to a tenth."""
    warmup = max(1, steps // 20)
    progress = max(0.0, (step - warmup) / max(1, steps - warmup))
    return min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * progress))


def train(impl: str, model: nn.Module, seed: int, data: Data, config: Config) -> Iterator[float]:
    """Trains a model and yields the mean loss of each twentieth of the steps."""
    ops = OPS[impl]
    # Decay on matrices only: biases and norms have none.
    groups = regops.optim.param_groups(model, config.weight_decay)
    optimizer = ops.adamw(groups, config.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, config.steps)
    )
    batches = torch.Generator().manual_seed(seed)
    windows = data.train.unfold(0, config.context + 1, 1)
    losses = []
    for step in range(1, config.steps + 1):
        model.train()
        text = windows[torch.randint(len(windows), (config.batch,), generator=batches)]
        logits = model(text[:, :-1]).flatten(0, 1)
        loss = ops.cross_entropy(
            logits, text[:, 1:].flatten(), label_smoothing=config.label_smoothing
        )
        loss.backward()
        ops.clip(model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.detach())
        if step % (config.steps // ROUNDS) == 0:
            yield torch.stack(losses).mean().item()
            losses = []


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Tensor, context: int) -> tuple[float, float]:
    """Loss a character in nats, and share of characters guessed; of 64 windows at most."""
    model.eval()
    text = held_out.unfold(0, context + 1, context)
    text = text[:: max(1, len(text) // 64)][:64]
    logits = torch.cat([model(part[:, :-1]) for part in text.split(8)]).flatten(0, 1)
    target = text[:, 1:].flatten()
    accuracy = (logits.argmax(1) == target).float().mean().item()
    return F.cross_entropy(logits, target).item(), accuracy


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints losses and times."""
    parser = comparison.parser("a small GPT with torch's ops and regops's")
    for field in fields(Config):
        name = "--" + field.name.replace("_", "-")
        counts = isinstance(field.default, int)
        kind = comparison.positive if counts else float
        parser.add_argument(name, type=kind, default=field.default, help=HELP[field.name])
    options = parser.parse_args(arguments)
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    if config.steps % ROUNDS:
        parser.error(f"expected --steps to be a multiple of {ROUNDS}, got {config.steps}")
    if not 0.0 <= config.p <= 1.0:
        parser.error(f"expected --p in [0, 1], got {config.p}")
    if config.width % config.heads:
        parser.error(f"expected --heads to divide --width, got {config.heads}")

    text, source = load_text()
    data = encode(text)
    print(f"text: {source}, {len(text):,} characters, {data.vocabulary} different ones")
    runs = comparison.compare(
        options,
        ROUNDS,
        lambda impl, seed: make_model(impl, seed, config, data.vocabulary),
        lambda impl, model, seed: train(impl, model, seed, data, config),
        lambda model: evaluate(model, data.held_out, config.context),
    )
    comparison.report("char_lm", config.steps, runs, options)


if __name__ == "__main__":
    main()
