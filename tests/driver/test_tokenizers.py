"""Whole jobs that continue a parent whose tokenizer isn't ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driver import job
from raymill.config import load
from raymill.data.store.manifest import load_prepared
from raymill.data.text.text_prompts import TextPrompts
from raymill.model.build import build_model
from tokenizer_families import BOS, EOS, beginning_with, family, write_folder


def parent(folder: Path, name: str, begins: bool) -> Path:
    tokenizer = family(name)
    if begins:
        tokenizer = beginning_with(tokenizer, BOS)
    write_folder(folder, tokenizer, bos_token=BOS, eos_token=EOS)
    arch = load("pretrain", ["experiment=tiny", "arch.max_positions=64"]).arch
    end = tokenizer.token_to_id(EOS)
    build_model(arch, tokenizer.get_vocab_size(), end, 1).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("name", "begins"), [("llama 2", True), ("unigram", False)])
def test_a_parent_is_prepared_for_continued_exported_and_asked(
    name: str, begins: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = parent(tmp_path / "parent", name, begins)
    texts: list[dict[str, Any]] = [
        {"text": f"Two plus {number} is four. " * 6, "group": number} for number in range(40)
    ]
    texts[7]["text"] = "In HTML a strike ends with </s> in old pages."
    lines = [json.dumps(one) for one in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    common = [
        "experiment=tiny", "data=files", f"data.path={tmp_path / 'texts.jsonl'}", "data.text_column=text",
        "data.validation.group_column=group", "data.validation.fraction=0.2", "tokenizer=existing",
        f"tokenizer.path={folder}", f"storage.root={tmp_path / 'storage'}", "tracking=none",
    ]  # fmt: skip
    code, output = job.run("prepare", *common, cwd=tmp_path)
    assert code == 0, output
    [prepared] = [load_prepared(path) for path in (tmp_path / "storage" / "data").iterdir()]
    assert prepared.manifest.bad_inputs.count == 0
    tokenizer = family(name)
    begin = (tokenizer.token_to_id(BOS),) if begins else ()
    assert prepared.manifest.tokenizer.begins_with == begin
    code, output = job.run(
        "pretrain", *common, f"model={folder}", "arch=from_model", "train.steps=2", "run.name=on",
        "schedule.warmup_steps=0", "evaluation.every=1", "evaluation.prompts=[Two plus]", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    export = tmp_path / "storage" / "runs" / "on" / "export"
    again = AutoTokenizer.from_pretrained(export)
    asked = TextPrompts.from_folder(export).ids("Two plus")
    assert asked == again("Two plus").input_ids == [*begin, *tokenizer.encode("Two plus").ids]
    [sample] = json.loads((export.parent / "samples" / "step-00000002.json").read_text())
    assert sample["prompt"] == "Two plus"
    code, output = job.run(
        "chat", f"model={export}", "prompt=Two plus", "chat=false", "max_new_tokens=6",
        "tracking=none", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert "\nTwo plus" in output
