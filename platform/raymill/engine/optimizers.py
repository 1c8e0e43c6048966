"""Assignment of a model's parameters to an optimizer, with their weight decay."""

from __future__ import annotations

from typing import Any, assert_never

import torch

from raymill.checkpoint.fragments import ADAMW_MOMENTS, MUON_MOMENTS
from raymill.engine.muon import Muon
from raymill.errors import ConfigError
from raymill.schema.sections import OptimConfig


def build_optimizer(
    model: torch.nn.Module, optim: OptimConfig, precision: str = "fp32"
) -> torch.optim.AdamW:
    """Build the optimizer of a model, before DeepSpeed takes it; AdamW in torch's fused kernel.

    Raises:
        ConfigError: Muon is configured, and no trained parameter is a matrix that it could train.
    """
    rate, betas, eps = optim.learning_rate, (optim.beta1, optim.beta2), optim.eps
    if optim.name == "adamw":
        groups = decay_groups(model, optim.weight_decay)
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)
    if optim.name == "muon":
        assert optim.momentum is not None, "the configuration's checks require a momentum for Muon"
        return Muon(
            muon_groups(model, optim.weight_decay),
            momentum=optim.momentum,
            # Jordan et al. iterate in bf16, too. In fp32 the iterations keep the precision of the forward pass.
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            lr=rate,
            betas=betas,
            eps=eps,
        )
    assert_never(optim.name)


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups in which matrices, embeddings included, are decayed, and vectors (norms, biases) aren't."""
    return _decay_groups([p for p in model.parameters() if p.requires_grad], weight_decay)


def muon_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return `decay_groups` with a group of its own for the matrices that Muon trains.

    Raises:
        ConfigError: there are no such matrices.
    """
    names = muon_names(model)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trainable if name in names]
    if not matrices:
        raise ConfigError(
            [
                "optim.name=muon: it trains the matrices of the blocks, and all of them are frozen "
                "(by freeze, or by LoRA, whose adapters AdamW trains); use optim=adamw"
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
        {"params": [p for p in parameters if _dimensions(p) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if _dimensions(p) < 2], "weight_decay": 0.0},
    ]
    # torch refuses a parameter group without parameters.
    return [group for group in groups if group["params"]]


def muon_names(model: torch.nn.Module) -> set[str]:
    """Return the names of the blocks' matrices.

    Embeddings, the output matrix and the scalar head of a reward model or critic lie outside the blocks. LoRA's
    factors are left out: their product is added to a matrix of the block, and orthogonal factors don't make an
    orthogonal product.
    """
    blocks = [name for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    prefixes = tuple(f"{name}." for name in blocks)
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and _dimensions(parameter) == 2
        and name.startswith(prefixes)
        and ".lora_" not in name
    }


def moments_of(model: torch.nn.Module, optim: OptimConfig) -> dict[str, tuple[str, ...]]:
    """Return the name of each trained parameter → the moments that its optimizer keeps."""
    names = muon_names(model) if optim.name == "muon" else set()
    return {
        name: MUON_MOMENTS if name in names else ADAMW_MOMENTS
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _dimensions(parameter: torch.nn.Parameter) -> int:
    # ZeRO-3 leaves an empty tensor in place of a partitioned parameter.
    return len(getattr(parameter, "ds_shape", parameter.shape))
