"""A parent model made ready for fine-tuning: new tokens, adapters, frozen parameters, embedding noise.

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
from raymill.model.quiet import model_of
from raymill.model.shape import gives_a_number
from raymill.schema.sections import LoraConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SCALAR_HEADS = frozenset(("score", "classifier"))  # what families call theirs
NEW_TOKEN_NOISE = 0.1  # of the embeddings' own spread


def load_parent(
    folder: Path, vocab_size: int, new_ids: Sequence[int], attention: str, seed: int
) -> PreTrainedModel:
    """The parent in fp32, its vocabulary extended to `vocab_size` and `new_ids` initialised.

    Raises:
        ConfigError: transformers can't load it.
        DataError: its weights are damaged or incomplete.
        StorageError: it can't be read.
    """
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = _loaded(AutoModelForCausalLM, folder, attention)
    extend_vocabulary(model, vocab_size, new_ids, seed)
    return model


def load_scalar(
    folder: Path,
    vocab_size: int,
    new_ids: Sequence[int],
    attention: str,
    seed: int,
    pad_id: int,
) -> tuple[PreTrainedModel, bool]:
    """The parent with a head that gives one number (transformers' sequence classifier), and whether it had
    that head already. A new head is drawn from `seed`.

    Raises:
        ConfigError: transformers can't load it so.
        DataError: its weights are damaged or incomplete.
        StorageError: it can't be read.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    has_head = gives_a_number(folder)
    model: Any = _loaded(
        AutoModelForSequenceClassification,
        folder,
        attention,
        new=frozenset() if has_head else SCALAR_HEADS,
        num_labels=1,
    )
    extend_vocabulary(model, vocab_size, new_ids, seed)
    model.config.pad_token_id = pad_id
    model.config.problem_type = "regression"
    return model, has_head


def scalar_head(model: Any) -> torch.nn.Module:
    """The module that makes the number, also inside adapters' wrappers.

    Raises:
        ConfigError: the family calls it by a name that isn't known.
    """
    found = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in SCALAR_HEADS
    ]
    # With adapters the head is wrapped, and the copy that is trained lies inside.
    if not found:
        raise ConfigError(
            [f"parent: {type(model).__name__} has no head called score or classifier"]
        )
    head: torch.nn.Module = found[0]
    return head


def _loaded(
    cls: Any, folder: Path, attention: str, new: frozenset[str] = frozenset(), **settings: Any
) -> Any:
    import torch

    try:
        return model_of(
            cls, folder, new, dtype=torch.float32, attn_implementation=attention, **settings
        )
    except (OSError, ValueError, ImportError) as error:
        problem = f"parent: transformers can't load {folder}: {first_line(error)}"
        # transformers' own advice is an argument of a function.
        if 'attn_implementation="eager"' in str(error):
            problem = f"attention={attention}: the model of {folder} hasn't this kernel; set attention=eager"
        raise ConfigError([problem]) from error


def extend_vocabulary(model: Any, vocab_size: int, new_ids: Sequence[int], seed: int) -> None:
    """Make room for `vocab_size` tokens, and give `new_ids` the mean of all others' embeddings.

    The mean keeps the distribution over the old tokens nearly as it was (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"); a little noise keeps the new ones apart from each
    other, which frozen embeddings would need. Tokens that a padded vocabulary had room for are
    initialised too: nothing has ever trained them.
    """
    import torch

    before = model.config.get_text_config(decoder=True).vocab_size
    if vocab_size > before:
        try:
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        except (AttributeError, NotImplementedError) as error:
            raise ConfigError(
                [f"parent: transformers can't give {type(model).__name__} new tokens ({error})"]
            ) from error
    new_ids = untrained_ids(before, vocab_size, new_ids)
    if not new_ids:
        return
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    with torch.no_grad():
        for matrix_VH in matrices:
            old = torch.ones(len(matrix_VH), dtype=torch.bool)
            old[list(new_ids)] = False
            mean_H, spread_H = matrix_VH[old].mean(dim=0), matrix_VH[old].std(dim=0)
            for index in new_ids:
                noise_H = torch.randn(len(mean_H), generator=generator)
                matrix_VH[index] = mean_H + NEW_TOKEN_NOISE * spread_H * noise_H


def untrained_ids(before: int, vocab_size: int, new_ids: Sequence[int]) -> list[int]:
    """Tokens whose embeddings are drawn anew, of a model that has had room for `before`.

    Rows that are made now are new whether or not the parent's tokenizer knows their tokens already:
    transformers draws them at random, and every rank and restart must have the same.
    """
    return sorted({*new_ids, *range(before, vocab_size)})


def with_adapters(
    model: Any, lora: LoraConfig, new_ids: Sequence[int], seed: int, task: str = "CAUSAL_LM"
) -> Any:
    """The model with LoRA adapters (peft), which alone are trained, and the new tokens' embeddings.

    Without the latter, a token that ends a turn could never be learned. With task SEQ_CLS the scalar head
    is trained as well.

    Raises:
        ConfigError: `lora.targets` names no module of this model, or embeddings that can't have adapters.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    _check_tables(model, lora, new_ids)
    targets: str | list[str] = list(lora.targets)
    spared: list[str] = []
    if lora.targets == ("all-linear",):
        targets, spared = "all-linear", _routers(model)
    settings = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=spared or None,
        trainable_token_indices=_token_tables(model, new_ids) or None,
        task_type=task,
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        advice = ""
        if targets == "all-linear":
            advice = " Name those that get adapters, as in lora.targets=[in_proj]."
        raise ConfigError([f"lora.targets={list(lora.targets)}: {error}{advice}"]) from error


def _routers(model: torch.nn.Module) -> list[str]:
    """Linear maps with a choice of experts behind them, as Llama 4's: adapters would see the choice."""
    import torch

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__
    ]


def _check_tables(model: Any, lora: LoraConfig, new_ids: Sequence[int]) -> None:
    """Refuse adapters of embeddings that input and output share, since no plain model has one side alone,
    and of those with new tokens, whose rows are trained themselves."""
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
            else "the rows of new tokens are trained beside the adapters"
        )
        raise ConfigError(
            [f"lora.targets={list(lora.targets)}: {reason}; leave {' and '.join(names)} out"]
        )


def _token_tables(model: Any, new_ids: Sequence[int]) -> dict[str, list[int]]:
    """New tokens by the module that holds their rows: the input's, and the output's unless it is tied."""
    tables = {id(model.get_input_embeddings())}
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        tables.add(id(head))
    names = [name for name, module in model.named_modules() if id(module) in tables]
    return {name.rpartition(".")[2]: list(new_ids) for name in names} if new_ids else {}


def freeze(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Switch off gradients of the parameters that a pattern matches.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    problems = []
    frozen: list[str] = []
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            problems.append(
                f"freeze: {pattern!r} matches no parameter; they are called {names[0]}, "
                f"{names[-1]}, …"
            )
        frozen += found
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("freeze: nothing is left to train")
    if problems:
        raise ConfigError(problems)


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Make a pass in training mode the one in evaluation mode, whatever dropout the parent was trained with.

    That of adapters, which is the job's (`lora.dropout`), stays.
    """
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name.split("."):
            module.p = 0.0
        # Most families' attention has it as a number.
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def add_embedding_noise(model: Any, alpha: float, row_length: int | None = None) -> None:
    """NEFTune (Jain et al. 2023): uniform noise of magnitude alpha / √(T·H) on embeddings, in training.

    T is the length of the pass's rows, or `row_length` where a pass makes one row of several. The noise comes
    from torch's global generator, which the loop seeds by step and rank, so it is the same after a restart.
    """
    import torch

    def noisy(module: torch.nn.Module, _inputs: Any, output_BTH: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTH
        length = output_BTH.shape[1] if row_length is None else row_length
        magnitude = alpha / (length * output_BTH.shape[2]) ** 0.5
        return output_BTH + torch.empty_like(output_BTH).uniform_(-magnitude, magnitude)

    model.get_input_embeddings().register_forward_hook(noisy)
