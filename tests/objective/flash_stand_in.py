"""FlashAttention's two functions in plain torch, put where transformers looks for them.

transformers decides as it does on a GPU which of the two it calls, and with which bounds; a softmax written out
in float64 computes what the kernels compute. Nothing of it knows what Raymill passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

NAME = "flash_attention_2"


def attend(
    q_QHD: torch.Tensor, k_KGD: torch.Tensor, v_KGD: torch.Tensor, scale: float
) -> torch.Tensor:
    """Causal attention of one sequence, [tokens, heads, width]; heads may share keys."""
    shared = q_QHD.shape[1] // k_KGD.shape[1]
    k_KHD, v_KHD = (one.double().repeat_interleave(shared, dim=1) for one in (k_KGD, v_KGD))
    score_HQK = torch.einsum("qhd,khd->hqk", q_QHD.double(), k_KHD) * scale
    hidden_QK = torch.ones(score_HQK.shape[1:]).triu(1).bool()
    weight_HQK = score_HQK.masked_fill(hidden_QK, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weight_HQK, v_KHD).to(q_QHD.dtype)


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, causal: bool
) -> torch.Tensor:
    """[batch, tokens, heads, width]: every row whole."""
    assert causal
    return torch.stack([attend(*row, softmax_scale) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """[tokens, heads, width]: each sequence by itself."""
    assert causal and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert cu_seqlens_q.dtype == torch.int32, "the kernel reads 32 bits"
    assert int(cu_seqlens_q[0]) == 0 and int(cu_seqlens_q[-1]) == len(q)
    bounds = cu_seqlens_q.tolist()
    sizes = [stop - start for start, stop in pairwise(bounds)]
    assert min(sizes) > 0 and int(max_seqlen_q) == int(max_seqlen_k) == max(sizes)
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    return torch.cat([attend(*part, softmax_scale) for part in parts])


def leaking(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    softmax_scale: float,
    causal: bool,
) -> torch.Tensor:
    """Compute as a kernel that ignores the bounds."""
    return attend(q, k, v, softmax_scale)


@contextmanager
def flash_attention(
    model: Any, varlen: Callable[..., Any] = flash_attn_varlen_func
) -> Iterator[Any]:
    """Context in which `model` computes with FlashAttention."""
    from transformers import modeling_flash_attention_utils as theirs

    def functions(*_: Any, **__: Any) -> tuple[Any, ...]:
        return flash_attn_func, varlen, None, None, None

    before = model.config._attn_implementation
    with (
        patch.object(theirs, "_lazy_imports", functions),
        patch.object(theirs, "_loaded_implementation", None),
    ):
        model.config._attn_implementation = NAME
        try:
            yield model
        finally:
            model.config._attn_implementation = before
