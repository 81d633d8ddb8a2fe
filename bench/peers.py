"""Other libraries that are timed beside torch and regops, where they do the same work.

A peer is verified as everyone is before it is timed, an optimizer by its parameters alone, for its
state is its own. Nothing of what only runs on CUDA has been run there yet: it was written from the
sources of the versions that are pinned.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from torch.nn import functional

from bench.libraries import Arguments, Call, Peer

# ---- losses ----


def _function(
    module: str, name: str, renamed: Mapping[str, str] | None = None, **fixed: Any
) -> Callable[..., Call]:
    """A function of the input and the op's arguments, some by other names."""

    def build(point: Any, arguments: Arguments) -> Call:
        function = getattr(importlib.import_module(module), name)
        names = renamed or {}
        named = {names.get(key, key): value for key, value in arguments.items()}
        return partial(function, **named, **fixed)

    return build


def _loss_module(module: str, name: str, smoothing: str) -> Callable[..., Call]:
    """A module that is made with the label smoothing, by its name for that."""

    def build(point: Any, arguments: Arguments) -> Call:
        made = getattr(importlib.import_module(module), name)
        loss = made(**{smoothing: arguments.get("label_smoothing", 0.0)})
        return lambda x: loss(x, arguments["target"])

    return build


def _torch_chunked(point: Any, arguments: Arguments) -> Call:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x: functional.linear_cross_entropy(x, **arguments, options=options)


def _liger_cross_entropy(point: Any, arguments: Arguments) -> Call:
    from liger_kernel.transformers.functional import liger_cross_entropy

    # It writes the gradient over the logits, which all providers share.
    return lambda x: liger_cross_entropy(
        x.clone() if torch.is_grad_enabled() else x.detach(), **arguments
    )


def _apex_cross_entropy(point: Any, arguments: Arguments) -> Call:
    from apex.contrib.xentropy import SoftmaxCrossEntropyLoss

    target, smoothing = arguments["target"], arguments.get("label_smoothing", 0.0)
    # -100: the label that is ignored, which is 0 by default.
    return lambda x: SoftmaxCrossEntropyLoss.apply(
        x, target, smoothing, -100, x.dtype != torch.float32
    ).mean()


def _transformer_engine_cross_entropy(point: Any, arguments: Arguments) -> Call:
    from transformer_engine.pytorch.cross_entropy import parallel_cross_entropy

    target = arguments["target"].unsqueeze(0)
    smoothing = arguments.get("label_smoothing", 0.0)
    return lambda x: parallel_cross_entropy(
        x.unsqueeze(0), target, label_smoothing=smoothing, reduce_loss=True
    )


# ---- optimizers ----


def _optimizer(module: str, name: str, **usual: Any) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer of parameters and a step's arguments.

    Args:
        module: Where it is.
        name: What it is called there.
        usual: What it takes unless the arguments say otherwise: torch's defaults, too, where its
            own are others.
    """

    def build(params: list[Tensor], arguments: Arguments) -> torch.optim.Optimizer:
        # As of what bench.providers compiles: some compile their step.
        torch._inductor.config.compile_threads = 1
        kind: type[torch.optim.Optimizer] = getattr(importlib.import_module(module), name)
        return kind(params, **{**usual, **arguments})

    return build


_CPU, _CUDA, _BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
_SMOOTHING = ("label_smoothing",)
_SMOOTHING_AND_BIAS = ("label_smoothing", "bias")

# By op, then by the name that the report prints. Left out, for it is other work: torchao's and
# bitsandbytes' moments of 8 bits and fewer, timm's NAdamW, kornia as a whole (its focal loss has no
# smoothing, and with gamma = 0 still computes the factor that is 1 then). `F.linear_cross_entropy`
# without options is the two calls that "eager" makes. None yet for dropout and DropConnect: it
# takes a library whose kernels have a backward of their own and can be called in one process with
# torch's.
PEERS: dict[str, dict[str, Peer]] = {
    "cross_entropy": {
        "timm": Peer(
            "timm", _BOTH, _loss_module("timm.loss", "LabelSmoothingCrossEntropy", "smoothing")
        ),
        "liger": Peer(
            "liger_kernel",
            _CUDA,
            _liger_cross_entropy,
            note="cross_entropy overwrites its logits: a copy of them is timed with it",
        ),
        "quack": Peer(
            "quack",
            _CUDA,
            _function("quack.cross_entropy", "cross_entropy"),
            distribution="quack-kernels",
            lacks=_SMOOTHING,
        ),
        "apex": Peer("xentropy_cuda", _CUDA, _apex_cross_entropy, distribution="apex"),
        "transformer_engine": Peer("transformer_engine", _CUDA, _transformer_engine_cross_entropy),
        "flash_attn": Peer(
            "flash_attn",
            _CUDA,
            _loss_module("flash_attn.losses.cross_entropy", "CrossEntropyLoss", "label_smoothing"),
        ),
    },
    "linear_cross_entropy": {
        "chunked": Peer(
            "torch.nn.modules.linear_cross_entropy",
            _BOTH,
            _torch_chunked,
            distribution="torch",
            lacks=_SMOOTHING,  # with it, torch falls back to the path without chunks
            note="F.linear_cross_entropy(options=LinearCrossEntropyOptions())",
        ),
        "liger": Peer(
            "liger_kernel",
            _CUDA,
            _function(
                "liger_kernel.transformers.functional",
                "liger_fused_linear_cross_entropy",
                {"linear_weight": "weight", "linear_bias": "bias"},
            ),
        ),
        "cut_cross_entropy": Peer(
            "cut_cross_entropy",
            _CUDA,
            _function(
                "cut_cross_entropy",
                "linear_cross_entropy",
                {"linear_weight": "c", "target": "targets"},
                filter_eps=None,
            ),
            lacks=_SMOOTHING_AND_BIAS,
            note="with filter_eps=None, as by default it leaves small gradients out; its backward "
            "multiplies float32 in TF32",
        ),
        "quack": Peer(
            "quack",
            _CUDA,
            _function(
                "quack.linear_cross_entropy",
                "chunked_linear_cross_entropy",
                {"linear_weight": "weight"},
            ),
            distribution="quack-kernels",
            lacks=_SMOOTHING_AND_BIAS,
        ),
    },
    "adamw": {
        "deepspeed": Peer("deepspeed", _CPU, _optimizer("deepspeed.ops.adam", "DeepSpeedCPUAdam")),
        "optimi": Peer(
            "optimi",
            _BOTH,
            _optimizer("optimi", "AdamW", betas=(0.9, 0.999), eps=1e-8),
            distribution="torch-optimi",
        ),
        # Meant for its quantized parameters; of others it makes the same step, compiled for each.
        "torchao": Peer("torchao", _BOTH, _optimizer("torchao.optim", "_AdamW")),
        "bitsandbytes": Peer(
            "bitsandbytes", _BOTH, _optimizer("bitsandbytes.optim", "AdamW", optim_bits=32)
        ),
        "timm": Peer("timm", _BOTH, _optimizer("timm.optim", "AdamWLegacy")),
        "apex": Peer(
            "amp_C", _CUDA, _optimizer("apex.optimizers", "FusedAdam"), distribution="apex"
        ),
        "transformer_engine": Peer(
            "transformer_engine",
            _CUDA,
            _optimizer("transformer_engine.pytorch.optimizers", "FusedAdam"),
        ),
    },
    "sgdw": {
        "optimi": Peer(
            "optimi",
            _BOTH,
            _optimizer("optimi", "SGD", decouple_wd=True),
            distribution="torch-optimi",
        ),
        "timm": Peer("timm", _BOTH, _optimizer("timm.optim", "SGDW")),
    },
}


def peer_facts() -> list[dict[str, Any]]:
    """What a report says of every peer: name, package, ops, devices, versions, why it is absent."""
    facts: dict[str, dict[str, Any]] = {}
    for op, peers in PEERS.items():
        for name, peer in peers.items():
            fact = facts.setdefault(
                name,
                {
                    "name": name,
                    "package": peer.package,
                    "ops": [],
                    "devices": list(peer.devices),
                    "installed": peer.installed,
                    "pinned": peer.version,
                    "absent": None,
                    "notes": [],
                },
            )
            fact["ops"].append(op)
            fact["absent"] = fact["absent"] or peer.absent
            if peer.note and peer.note not in fact["notes"]:
                fact["notes"].append(peer.note)
    return list(facts.values())
