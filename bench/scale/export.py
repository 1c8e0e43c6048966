"""Memory and time of an export by the model's size: pretrained, adapted (LoRA, merged), and reward models.

    .venv/bin/python bench/scale/export.py [--gib 1 3.5] [--kinds pretrained adapted reward] [--json FILE]

Each export is one process: it opens a model whose weights lie in a folder, and writes, checks and compares the
exported folder as a finished run does. Peaks are of resident memory, over that after the imports. Nothing
depends on the number of ranks: what they committed is read one tensor at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests"), str(ROOT / "bench")]

VOCAB = 32_768
PROBES = [list(range(3, 35)), list(range(40, 60))]
GIB = 2**30
KINDS = ("pretrained", "adapted", "reward")


def arch_of(gib: float) -> Any:
    """Return a Llama of about this size in fp32: layers of 201 MiB between tables of 256 MiB."""
    from raymill.config import load

    arch = load("pretrain", ["arch=llama_1b", "tokenizer.vocab_size=300"]).arch
    layers = max(1, round((gib * 1024 - 512) / 201))
    return replace(
        arch, hidden_size=2048, intermediate_size=6912, heads=16, kv_heads=8, head_dim=128, layers=layers,
        vocab_size=VOCAB, tied_embeddings=False,
    )  # fmt: skip


def write_parent(gib: float, folder: Path) -> None:
    """Write a model with random weights, and a tokenizer."""
    import torch
    from data.prepared_factory import _write_tokenizer
    from transformers import AutoModelForCausalLM

    from raymill.model.build import hugging_face_config
    from raymill.model.weight_files import TensorForm, write_weights

    tokenizer, parent = folder / "tokenizer", folder / "parent"
    tokenizer.mkdir()
    parent.mkdir()
    _write_tokenizer(tokenizer, 257)
    config = hugging_face_config(arch_of(gib), VOCAB, 0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(parent)
    forms = {
        name: TensorForm(tuple(parameter.shape), torch.float32)
        for name, parameter in model.named_parameters()
    }
    torch.manual_seed(1)
    write_weights(parent, forms, lambda name: 0.02 * torch.randn(forms[name].shape))


def export(kind: str, folder: Path) -> dict[str, float]:
    """Export once, in this process; return its peak, the largest tensor (bytes) and the seconds."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    from raymill.data.text.control_tokens import ControlTokens
    from raymill.model.export import save_model
    from raymill.model.loading import silence_libraries
    from raymill.model.parent import plan_parent, plan_scalar_model, with_adapters
    from raymill.schema.sections import LoraConfig

    silence_libraries()
    parent = folder / "parent"
    base = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    if kind == "reward":
        blueprint, _ = plan_scalar_model(parent, VOCAB, (), "sdpa", 1, 0)
    else:
        blueprint = plan_parent(parent, VOCAB, (), "sdpa", 1)
    if kind == "adapted":
        blueprint = with_adapters(blueprint, LoraConfig(16, 16.0, 0.0, ("all-linear",)), (), 1)
    save_model(
        blueprint.lazy(), folder / "tokenizer", folder / "export", precision="fp32",
        tokens=ControlTokens(None, 0, (0,)), probe_ids=PROBES, parent=parent, scalar=kind == "reward",
    )  # fmt: skip
    return {
        "seconds": time.perf_counter() - started,
        "imports": base,
        "peak": _resident("VmHWM") - base,
        "largest": 4 * VOCAB * 2048,
        "bytes": sum(path.stat().st_size for path in (folder / "export").iterdir()),
    }


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Print a table of all exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", nargs="*", type=float, default=[1.0, 3.5])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs=2, help="kind and folder of one export, in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(export(options.only[0], Path(options.only[1]))))
        return
    found = []
    print("| model | fp32 GiB | peak over imports, GiB | in largest tensors | seconds |")
    for gib in options.gib:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_parent(gib, folder)
            for kind in options.kinds:
                command = [sys.executable, __file__, "--only", kind, str(folder)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = {"kind": kind, "gib": gib, **json.loads(done.stdout.splitlines()[-1])}
                found.append(row)
                print(
                    f"| {kind} | {row['bytes'] / GIB:.2f} | {row['peak'] / GIB:.2f} | "
                    f"{row['peak'] / row['largest']:.1f} | {row['seconds']:.0f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
