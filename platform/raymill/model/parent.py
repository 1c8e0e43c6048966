"""Preparation of a parent model for fine-tuning: new tokens, adapters, frozen parameters, embedding noise.

Everything here is a function of the parent's files, the configuration and a seed, so that every rank, and
every restart, builds the same model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.causes import first_line
from raymill.errors import ConfigError
from raymill.model.loading import load_hf_blueprint
from raymill.model.shape import is_reward_model
from raymill.schema.sections import LoraConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from raymill.model.blueprint import Blueprint
    from raymill.model.trace import Trace

SCALAR_HEADS = frozenset(("score", "classifier"))  # the families' names of the scalar head


def plan_parent(
    folder: Path, vocab_size: int, new_ids: Sequence[int], attention: str, seed: int
) -> Blueprint:
    """Plan the parent in fp32, its vocabulary extended to `vocab_size`, and `new_ids` initialized.

    Raises:
        ConfigError: transformers can't load it.
        DataError: its weights are damaged or incomplete.
        StorageError: a file can't be read.
    """
    from transformers import AutoModelForCausalLM

    from raymill.model.vocabulary import extend_vocabulary

    blueprint = _load(AutoModelForCausalLM, folder, attention, seed)
    return extend_vocabulary(blueprint, vocab_size, new_ids, seed)


def load_parent(
    folder: Path, vocab_size: int, new_ids: Sequence[int], attention: str, seed: int
) -> PreTrainedModel:
    """Load what `plan_parent` plans, whole, on the host."""
    return plan_parent(folder, vocab_size, new_ids, attention, seed).whole()


def plan_scalar_model(
    folder: Path,
    vocab_size: int,
    new_ids: Sequence[int],
    attention: str,
    seed: int,
    pad_id: int,
) -> tuple[Blueprint, bool]:
    """Plan the parent with a head that gives one number, as transformers' sequence classifier.

    Also return True if it had that head already; a new head is drawn from `seed`.

    Raises:
        ConfigError: transformers can't load it as a sequence classifier.
        DataError: its weights are damaged or incomplete.
        StorageError: a file can't be read.
    """
    from transformers import AutoModelForSequenceClassification

    from raymill.model.vocabulary import extend_vocabulary

    has_head = is_reward_model(folder)
    blueprint = _load(
        AutoModelForSequenceClassification,
        folder,
        attention,
        seed,
        new=frozenset() if has_head else SCALAR_HEADS,
        num_labels=1,
    )
    blueprint = extend_vocabulary(blueprint, vocab_size, new_ids, seed)
    blueprint.model.config.pad_token_id = pad_id
    # Otherwise transformers would guess the loss from the labels.
    blueprint.model.config.problem_type = "regression"
    return blueprint, has_head


def load_scalar_model(
    folder: Path,
    vocab_size: int,
    new_ids: Sequence[int],
    attention: str,
    seed: int,
    pad_id: int,
) -> tuple[PreTrainedModel, bool]:
    """Load what `plan_scalar_model` plans, whole, on the host."""
    blueprint, has_head = plan_scalar_model(folder, vocab_size, new_ids, attention, seed, pad_id)
    return blueprint.whole(), has_head


def scalar_head(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module that gives the number, also from inside adapters' wrappers.

    Raises:
        ConfigError: the family has another name for it.
    """
    heads: list[torch.nn.Module] = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in SCALAR_HEADS
    ]
    if not heads:
        raise ConfigError(
            [f"parent: {type(model).__name__} has no head called score or classifier"]
        )
    # With adapters the first is a wrapper, which computes with the trained copy inside.
    return heads[0]


def _load(
    auto_class: type[_BaseAutoModelClass],
    folder: Path,
    attention: str,
    seed: int,
    new: frozenset[str] = frozenset(),
    **settings: object,
) -> Blueprint:
    import torch

    try:
        return load_hf_blueprint(
            auto_class,
            folder,
            seed,
            new,
            dtype=torch.float32,
            attn_implementation=attention,
            **settings,
        )
    except (OSError, ValueError, ImportError) as error:
        problem = f"parent: transformers can't load {folder}: {first_line(error)}"
        # transformers advises to pass an argument to its function; the user has a key for it.
        if 'attn_implementation="eager"' in str(error):
            problem = f"attention={attention}: the model of {folder} has no such kernel; set attention=eager"
        raise ConfigError([problem]) from error


def with_adapters(
    blueprint: Blueprint,
    lora: LoraConfig,
    new_ids: Sequence[int],
    seed: int,
    task: str = "CAUSAL_LM",
) -> Blueprint:
    """Return the model with LoRA adapters (peft); only these and the new tokens' embeddings are trained.

    Without the embeddings, a new token that ends a turn could never be learned. With task SEQ_CLS the scalar
    head is trained as well.

    Raises:
        ConfigError: `lora.targets` matches no module of this model, or embeddings that can't have adapters.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    from raymill.model.blueprint import Blueprint

    model = blueprint.model
    _check_tables(model, lora, new_ids)
    targets: str | list[str] = list(lora.targets)
    excluded: list[str] = []
    if lora.targets == ("all-linear",):
        targets, excluded = "all-linear", _routers(model)
    settings = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
        trainable_token_indices=_token_tables(model, new_ids) or None,
        task_type=task,
    )
    trace = blueprint.trace()
    try:
        with trace.recording(), torch.device("meta"):
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        advice = ""
        if targets == "all-linear":
            advice = " Name the modules that get adapters, as in lora.targets=[in_proj]."
        raise ConfigError([f"lora.targets={list(lora.targets)}: {error}{advice}"]) from error
    for layer in adapted.modules():
        if isinstance(layer, TrainableTokensLayer) and layer.tied_adapter is None:
            _know_token_rows(layer, blueprint, trace)
    return Blueprint.traced(adapted, trace, seed)


def _know_token_rows(layer: Any, blueprint: Blueprint, trace: Trace) -> None:
    """Tell the trace the rows of tokens, which peft takes by an index that has no memory either."""
    import torch

    from raymill.model.computed import Computed
    from raymill.model.values import Held

    matrix = blueprint.values[layer.get_base_layer().weight]
    for adapter, tokens in layer.token_indices.items():
        for rows in (layer.trainable_tokens_delta, layer.trainable_tokens_original):
            shape = tuple(rows[adapter].shape)
            arguments = (matrix, [Held(torch.tensor(tokens))])
            index = torch.ops.aten.index.Tensor
            trace.know(rows[adapter], Computed(index, arguments, {}, shape, torch.float32))


def _routers(model: torch.nn.Module) -> list[str]:
    """Return the routers of a mixture of experts that are linear maps, as in Llama 4, which get no adapters."""
    import torch

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__
    ]


def _check_tables(model: PreTrainedModel, lora: LoraConfig, new_ids: Sequence[int]) -> None:
    """Refuse adapters of some embeddings.

    Tied embeddings can't have them, since merging would untie input and output; nor embeddings with new tokens,
    whose rows are trained directly.
    """
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [
        target
        for name, module in model.named_modules()
        for target in lora.targets
        if module in tables and f".{name}".endswith(f".{target}")
    ]
    shared = None not in tables and tables[0].weight is tables[1].weight
    if names and (shared or new_ids):
        reason = (
            "the input's and the output's embeddings are one matrix in this model"
            if shared
            else "the rows of new tokens are trained directly"
        )
        raise ConfigError(
            [f"lora.targets={list(lora.targets)}: {reason}; leave {' and '.join(names)} out"]
        )


def _token_tables(model: PreTrainedModel, new_ids: Sequence[int]) -> dict[str, list[int]]:
    """Return module → new tokens with rows in it: the input embeddings, and the output matrix unless tied."""
    tables = {id(model.get_input_embeddings())}
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        tables.add(id(head))
    names = [name for name, module in model.named_modules() if id(module) in tables]
    return {name.rpartition(".")[2]: list(new_ids) for name in names} if new_ids else {}


def freeze(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Switch off gradients of the parameters that match a pattern.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    problems = []
    frozen: list[str] = []
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            problems.append(
                f"freeze: {pattern!r} matches no parameter; their names are {names[0]}, "
                f"{names[-1]}, …"
            )
        frozen += matches
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("freeze: nothing is left to train")
    if problems:
        raise ConfigError(problems)


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Make training mode compute as evaluation mode does, whatever dropout the parent was trained with.

    The adapters' dropout, which the job sets (`lora.dropout`), stays.
    """
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name.split("."):
            module.p = 0.0
        # In most families the dropout of attention is a number and not a module.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def add_embedding_noise(
    model: PreTrainedModel, alpha: float, row_length: int | None = None
) -> None:
    """Add uniform noise of magnitude alpha / √(T·H) to embeddings in training (NEFTune, Jain et al. 2023).

    T is the length of the rows, or `row_length` where a pass concatenates several into one. The noise comes
    from torch's global generator, which the loop seeds by step and rank, so it is the same after a restart.
    """
    import torch

    def noisy(module: torch.nn.Module, _inputs: object, output_BTH: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTH
        length = output_BTH.shape[1] if row_length is None else row_length
        magnitude = alpha / (length * output_BTH.shape[2]) ** 0.5
        return output_BTH + torch.empty_like(output_BTH).uniform_(-magnitude, magnitude)

    model.get_input_embeddings().register_forward_hook(noisy)
