"""Special tokens of an exported folder as transformers reads them: ends of texts and turns, padding, and the
position of a reward model's score."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from model.parents_factory import FAMILIES, SAMPLED, SPECIALS, prepared_with, write_parent
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.tokenizer import chat_tokenizer, encodes_as, new_token_ids
from raymill.data.store.manifest import TOKENIZER_FOLDER, PreparedData
from raymill.data.text.control_tokens import ControlTokens
from raymill.errors import CheckpointError
from raymill.model.export import copy_tokenizer, save_model
from raymill.model.lazy import LazyModel
from raymill.model.parent import load_scalar_model, plan_parent, plan_scalar_model, with_adapters
from raymill.model.shape import read_config
from raymill.model.verification import TEXTS, compare_outputs, loaded_outputs, trained_outputs
from raymill.rl.reward.model import NO_SAMPLING, RewardModelSpec
from raymill.schema.sections import LoraConfig
from sections import plain

EXCHANGE = [{"role": "user", "content": "Is 2 + 2 = 4?"}, {"role": "assistant", "content": "Yes."}]
# Every kind of special tokens with one family, and every family with one kind.
REWARDS = [("llama", specials) for specials in SPECIALS] + [
    pytest.param(family, "one", marks=() if family == "gpt2" else pytest.mark.slow)
    for family in FAMILIES[1:]
]


def exported(
    parent: Path, folder: Path, *, scalar: bool = False, rank: int = 0, precision: str = "fp32"
) -> Path:
    """Write a folder as a job exports it, of a model that differs from its parent."""
    prepared, tokens = prepared_with(parent, folder / "data")
    size, kind = prepared.manifest.tokenizer.vocab_size, read_config(parent)["model_type"]
    attention = "eager" if kind == "bloom" else "sdpa"
    model: Any
    if scalar:
        blueprint = plan_scalar_model(parent, size, [], attention, 7, tokens.padding)[0]
    else:
        blueprint = plan_parent(parent, size, [], attention, 7)
    if rank:
        task = "SEQ_CLS" if scalar else "CAUSAL_LM"
        blueprint = with_adapters(blueprint, plain(LoraConfig, rank=rank), [], 7, task)
    model = blueprint.whole()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    encoder = load_chat_encoder(prepared.tokenizer_folder)
    assert encoder is not None
    ids = encoder.prompt_ids(EXCHANGE)
    save_model(
        LazyModel(model), prepared.tokenizer_folder, folder / "export", precision=precision, tokens=tokens,
        probe_ids=[ids, ids[:9], [*ids[:5], encoder.end_of_turn_id]], parent=parent, scalar=scalar,
    )  # fmt: skip
    return folder / "export"


@pytest.mark.parametrize("specials", SPECIALS)
def test_an_export_stops_where_its_parent_does(specials: str, tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent", "llama", specials)
    export = exported(parent, tmp_path)
    _, named, _, ends, settings = SPECIALS[specials]
    tokenizer = AutoTokenizer.from_pretrained(export)
    generation = GenerationConfig.from_pretrained(export)
    found = generation.eos_token_id
    stops = {found} if isinstance(found, int) else {*found}
    wanted = {ends} if isinstance(ends, int) else {*ends}
    encoder = load_chat_encoder(export)
    assert encoder is not None
    assert stops == wanted | {encoder.end_of_turn_id} == encoder.stop_ids
    assert tokenizer.bos_token_id not in stops
    assert tokenizer.eos_token_id == encoder.end_of_turn_id
    assert generation.to_dict().items() >= settings.items(), "how the parent is sampled"
    assert generation.pad_token_id == tokenizer.pad_token_id is not None
    assert tokenizer.bos_token == named.get("bos_token"), "none is made up"
    if "pad_token" in named:
        assert tokenizer.pad_token == named["pad_token"]
    config = json.loads((export / "config.json").read_text())
    assert (
        config["eos_token_id"]
        == json.loads((export / "generation_config.json").read_text())["eos_token_id"]
    )


def test_an_export_stops_where_calls_end(tmp_path: Path) -> None:
    """The parent has never seen the template and doesn't state its end of turn."""
    parent = write_parent(tmp_path / "parent", "llama", "pad=eos")
    written = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or () %}"
        "{{ c.function | tojson }}{% endfor %}{% if m.tool_calls %}<|call|>{% else %}<|im_end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "calling.jinja").write_text(
        "{% for t in tools or () %}{{ t | tojson }}{% endfor %}" + written
    )
    made = chat_tokenizer(parent, str(tmp_path / "calling.jinja"), ("<|call|>",))
    made.save(tmp_path / "data" / TOKENIZER_FOLDER)
    call = made.tokenizer.token_to_id("<|call|>")
    facts = SimpleNamespace(end_of_turn_id=made.end_of_turn_id)
    manifest: Any = SimpleNamespace(tokenizer=made.identity, messages=facts)
    prepared = PreparedData(tmp_path / "data", manifest)
    assert ControlTokens.from_prepared(prepared, parent).stops == (2, 0, call)
    own = load_chat_encoder(prepared.tokenizer_folder)
    assert own is not None and own.stop_ids == {2, call}
    copy_tokenizer(prepared.tokenizer_folder, tmp_path)
    assert not (tmp_path / "generation_config.json").exists(), "each export writes its own"


def test_what_the_parent_says_survives_a_second_stage(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent", "llama", "several")
    export = exported(exported(parent, tmp_path / "first"), tmp_path / "second")
    generation = GenerationConfig.from_pretrained(export)
    assert {*generation.eos_token_id} == {0, 2, 3}
    assert generation.to_dict().items() >= SAMPLED.items()
    made = chat_tokenizer(export, "auto", ())
    assert made.end_of_text == "<|endoftext|>"


@pytest.mark.parametrize("specials", SPECIALS)
def test_texts_and_conversations_are_encoded_as_in_training(specials: str, tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent", "llama", specials)
    prepared, _ = prepared_with(parent, tmp_path / "data")
    before = AutoTokenizer.from_pretrained(parent)
    after = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    encoder = load_chat_encoder(prepared.tokenizer_folder)
    assert encoder is not None
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"], text
    for messages, asked in ((EXCHANGE, False), (EXCHANGE[:1], True)):
        whole = {"tokenize": True, "add_generation_prompt": asked, "return_dict": False}
        theirs = after.apply_chat_template(messages, **whole)
        assert theirs == before.apply_chat_template(messages, **whole)
        if asked:
            assert theirs == encoder.prompt_ids(messages)


@pytest.mark.parametrize(("family", "specials"), REWARDS)
def test_a_reward_models_score_is_transformers(family: str, specials: str, tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent", family, specials)
    export = exported(parent, tmp_path, scalar=True)
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForSequenceClassification.from_pretrained(export, dtype=torch.float32).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    encoder = load_chat_encoder(export)
    assert encoder is not None
    assert tokenizer.pad_token_id not in {
        *encoder.stop_ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id,
    }  # fmt: skip
    ids = encoder.prompt_ids(EXCHANGE)
    end = encoder.end_of_turn_id
    sequences = [[*ids, end], [*ids[:7], end, end], ids[:5], [*ids[:11], *encoder.stop_ids]]
    ours = RewardModelSpec(str(export), "fp32", 1).build().generate(sequences, NO_SAMPLING, ())
    assert max(ours) - min(ours) > 1e-3
    # Positions that are counted from the left don't allow for padding there.
    for side in ("right",) if family == "gpt2" else ("right", "left"):
        batch = tokenizer.pad(
            {"input_ids": sequences}, padding=True, padding_side=side, return_tensors="pt"
        )
        with torch.no_grad():
            theirs = model(**batch).logits[:, 0].tolist()
        assert theirs == pytest.approx(ours, abs=2e-5), side
    with torch.no_grad():
        alone = [float(model(input_ids=torch.tensor([one])).logits[0, 0]) for one in sequences]
    assert alone == pytest.approx(ours, abs=2e-5)


def test_a_reward_model_from_elsewhere_needs_no_padding(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent", "llama", "no pad")
    model, _ = load_scalar_model(parent, 258, [], "sdpa", 7, 0)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "judge")
    engine = RewardModelSpec(str(tmp_path / "judge"), "fp32", 1).build()
    sequences = [[5, 6, 7], [8, 9]]
    alone = [engine.generate([one], NO_SAMPLING, (0,))[0] for one in sequences]
    assert engine.generate(sequences, NO_SAMPLING, (0, 0)) == pytest.approx(alone, abs=1e-5)


def test_a_reward_models_padding_costs_it_no_policy(tmp_path: Path) -> None:
    """The reward model's tokenizer is the policy's with one more token."""
    parent = write_parent(tmp_path / "parent", "llama", "one")
    judge = exported(parent, tmp_path, scalar=True)
    policy = chat_tokenizer(parent, "auto", ())
    assert encodes_as(judge, policy.tokenizer)
    assert not encodes_as(write_parent(tmp_path / "other", "llama", "several"), policy.tokenizer)
    # A critic begins as the reward model, on prompts that were prepared with the policy's tokenizer.
    prepared, tokens = prepared_with(parent, tmp_path / "prompts")
    assert new_token_ids(judge, prepared.tokenizer_folder) == []
    size = prepared.manifest.tokenizer.vocab_size
    _, has_head = load_scalar_model(judge, size, [], "sdpa", 7, tokens.padding)
    assert has_head
    # A second reward model, from the first, needs no other.
    again = exported(judge, tmp_path / "again", scalar=True)
    assert (again / "tokenizer.json").read_bytes() == (judge / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("scalar", [False, True], ids=["chat", "reward"])
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_adapters_alone_compute_what_the_merged_model_does(
    family: str, scalar: bool, tmp_path: Path
) -> None:
    parent = write_parent(tmp_path / "parent", family, "one")
    export = exported(parent, tmp_path, scalar=scalar, rank=2)
    adapter = export.with_name("adapter")
    assert (adapter / "adapter_model.safetensors").exists()
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (export, adapter))
    assert ours.get_vocab() == theirs.get_vocab()
    # Adapters that lost something are refused.
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] + 0.5}, adapter / "adapter_model.safetensors")
    probes = [[5, 6, 7, 8], [9, 10]]
    right = loaded_outputs(export, probes, scalar)
    wrong = loaded_outputs(adapter, probes, scalar, parent)
    with pytest.raises(CheckpointError, match="as transformers loads it, differ"):
        compare_outputs(right, wrong, "fp32")


def test_the_check_sees_what_only_another_tool_would(tmp_path: Path) -> None:
    """A pad id that is the end of turn moves transformers' score and leaves the weights unchanged."""
    parent = write_parent(tmp_path / "parent", "llama", "one")
    export = exported(parent, tmp_path, scalar=True)
    model = AutoModelForSequenceClassification.from_pretrained(export, dtype=torch.float32)
    probes = [[5, 6, 7, 0], [9, 0]]
    ours = trained_outputs(LazyModel(model), probes, scalar=True)
    compare_outputs(ours, loaded_outputs(export, probes, scalar=True), "fp32")
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    with pytest.raises(CheckpointError, match="as transformers loads it, differ"):
        compare_outputs(ours, loaded_outputs(export, probes, scalar=True), "fp32")


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path: Path) -> None:
    """A family's class builds a tokenizer of its own; an exported folder names none."""
    parent = write_parent(tmp_path / "parent", "llama", "pad=unk")
    write_spaces_tokenizer(parent)
    with pytest.raises(CheckpointError, match="transformers reads the tokenizer in"):
        loaded_outputs(parent, [[5, 6], [7]], scalar=False)
    assert exported(parent, tmp_path).is_dir()


def write_spaces_tokenizer(folder: Path) -> None:
    """Replace a folder's tokenizer by one with ▁ for a space, and none put in front."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokens = SPECIALS["pad=unk"][0]
    symbols = (*tokens, *(f"<0x{byte:02X}>" for byte in range(256)))
    vocab = {text: index for index, text in enumerate(symbols)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    path.write_text(json.dumps(settings))
