"""Which optimizer trains which parameter, with what decay."""

from __future__ import annotations

from typing import Any

import torch

from raymill.checkpoint.fragments import ADAMW_MOMENTS, MUON_MOMENTS
from raymill.engine.muon import Muon
from raymill.errors import ConfigError
from raymill.schema.sections import OptimConfig


def build_optimizer(
    model: torch.nn.Module, optim: OptimConfig, precision: str = "fp32"
) -> torch.optim.AdamW:
    """The optimizer of a model whose parameters are whole; AdamW in torch's fused kernel.

    Raises:
        ConfigError: Muon was asked for, and none of the trained parameters is one for it.
    """
    settings: dict[str, Any] = {
        "lr": optim.learning_rate,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.eps,
    }
    if optim.name == "adamw":
        return torch.optim.AdamW(decay_groups(model, optim.weight_decay), fused=True, **settings)
    assert optim.momentum is not None, "the configuration's checks ask for it"
    return Muon(
        muon_groups(model, optim.weight_decay),
        momentum=optim.momentum,
        # As Jordan et al. do; on a CPU the iterations take the precision of the forward pass too.
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        **settings,
    )


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, vectors (norms, biases) aren't; embeddings are matrices."""
    return _decay_groups([p for p in model.parameters() if p.requires_grad], weight_decay)


def muon_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """As `decay_groups`, with a group of its own for the matrices that Muon trains.

    Raises:
        ConfigError: there are none.
    """
    names = muon_names(model)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trainable if name in names]
    if not matrices:
        raise ConfigError(
            [
                "optim.name=muon: it is for the matrices of the blocks, and none of them is trained "
                "(frozen, or adapted by LoRA, which AdamW trains); use optim=adamw"
            ]
        )
    others = [p for name, p in trainable if name not in names]
    return [
        {"params": matrices, "weight_decay": weight_decay, "muon": True},
        *_decay_groups(others, weight_decay),
    ]


def _decay_groups(
    parameters: list[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def muon_names(model: torch.nn.Module) -> set[str]:
    """The matrices of the blocks, by name; the model's parameters are whole.

    Not embeddings, the output matrix and the scalar head of a reward model or critic, which lie outside the
    blocks; nor LoRA's factors: it is their product that is a matrix of the block, and orthogonal factors don't
    make an orthogonal product.
    """
    blocks = [name for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    prefixes = tuple(f"{name}." for name in blocks)
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim == 2
        and name.startswith(prefixes)
        and ".lora_" not in name
    }


def moments_of(model: torch.nn.Module, optim: OptimConfig) -> dict[str, tuple[str, ...]]:
    """Name of a trained parameter → the moments that its optimizer keeps."""
    names = muon_names(model) if optim.name == "muon" else set()
    return {
        name: MUON_MOMENTS if name in names else ADAMW_MOMENTS
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
