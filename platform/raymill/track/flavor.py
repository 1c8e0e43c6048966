"""Files in a model's folder with which MLflow's own tools load, serve and evaluate a version.

The exported files aren't changed. `MLmodel` describes them in MLflow's transformers flavor and names the folder
itself as the location of the weights. The tokenizer must be in a folder of its own, so its files are copied.

A model with a chat template takes and returns messages (`llm/v1/chat`), one without takes a prompt
(`llm/v1/completions`), both as OpenAI's API does. A reward model takes a text, a rendered conversation with its
last answer, and returns its score.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from raymill.data.messages.folder import own_template
from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.tokenizer import has_template
from raymill.data.text.tokenizer import read_settings, special_token_variables
from raymill.model.shape import context_length_of, read_config
from raymill.reading import entries, is_file, read_bytes, retried

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

Kind = Literal["chat", "completions", "score"]

_NOT_TOKENIZERS = ("config.json", "generation_config.json", "saved.json", "raymill.json")
_QUESTION = {"role": "user", "content": "How are you?"}
_ANSWER = {"role": "assistant", "content": "Fine."}
_NEW_TOKENS = 256  # if a request doesn't set a limit
_LIBRARIES = ("mlflow", "torch", "transformers", "safetensors")
_CONDA, _VIRTUALENV, _REQUIREMENTS = "conda.yaml", "python_env.yaml", "requirements.txt"


def model_kind(export: Path) -> Kind | None:
    """Return the interface of an exported model; None for adapters, which aren't a whole model."""
    if not is_file(export / "config.json"):
        return None
    architectures = read_config(export).get("architectures")
    if not architectures:
        return None
    # The same rule as for a parent: transformers' sequence classifier is a reward model.
    if architectures[0].endswith("ForSequenceClassification"):
        return "score"
    return "chat" if has_template(export) else "completions"


def write_flavor(
    export: Path, kind: Kind, folder: Path, *, run_id: str, artifact_path: str, source: str
) -> None:
    """Write the files into `folder` that turn `export` into an MLflow model, when uploaded with it.

    `artifact_path` is their path among the run's artifacts; `source` is the model's location as its users see
    it, a path if there is one.
    """
    from mlflow import pyfunc
    from mlflow.models import Model
    from mlflow.models.utils import _save_example

    model = Model(artifact_path=artifact_path, run_id=run_id, signature=_signature(kind))
    model.add_flavor("transformers", **_flavor(export, kind, source))
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.transformers",
        conda_env=_CONDA,
        python_env=_VIRTUALENV,
        model_config=None if kind == "score" else {"max_new_tokens": _new_tokens(export)},
    )
    if kind != "score":
        model.metadata = {"task": f"llm/v1/{kind}"}
    model.model_size_bytes = sum(retried(path, path.stat).st_size for path in entries(export))
    # MLflow's own function, since the example's format is the one that its tools expect.
    _save_example(model, _example(export, kind), str(folder))
    model.save(str(folder / "MLmodel"))
    _write_environment(folder)
    tokenizer = folder / "components" / "tokenizer"
    tokenizer.mkdir(parents=True)
    # MLflow loads the tokenizer from a folder without the model's weights.
    for path in entries(export):
        if path.name not in _NOT_TOKENIZERS and not path.name.startswith("model"):
            (tokenizer / path.name).write_bytes(read_bytes(path))


def _flavor(export: Path, kind: Kind, source: str) -> dict[str, object]:
    flavor: dict[str, object] = {
        "transformers_version": version("transformers"),
        "code": None,
        "task": "text-classification" if kind == "score" else "text-generation",
        "instance_type": f"Text{'Classification' if kind == 'score' else 'Generation'}Pipeline",
        "pipeline_model_type": read_config(export)["architectures"][0],
        "source_model_name": source,
        "model_binary": ".",
        "components": ["tokenizer"],
        # With a class that transformers lacks, MLflow would look for the folder's own code.
        "tokenizer_type": "AutoTokenizer",
    }
    return flavor if kind == "score" else {**flavor, "inference_task": f"llm/v1/{kind}"}


def _signature(kind: Kind) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, llm

    if kind == "chat":
        return ModelSignature(llm.CHAT_MODEL_INPUT_SCHEMA, llm.CHAT_MODEL_OUTPUT_SCHEMA)
    if kind == "completions":
        return ModelSignature(
            llm.COMPLETIONS_MODEL_INPUT_SCHEMA, llm.COMPLETIONS_MODEL_OUTPUT_SCHEMA
        )
    scores = Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    return ModelSignature(Schema([ColSpec("string")]), scores)


def _example(export: Path, kind: Kind) -> dict[str, object] | str:
    if kind == "chat":
        return {"messages": [_QUESTION], "max_tokens": 16}
    if kind == "completions":
        return {"prompt": "Once upon a time", "max_tokens": 16}
    settings = read_settings(export)
    source = own_template(export, settings)
    if source is None:
        return _ANSWER["content"]
    template = ChatTemplate(source, special_token_variables(settings))
    return "".join(segment.text for segment in template.segments([_QUESTION, _ANSWER]))


def _new_tokens(export: Path) -> int:
    """Return the default of new tokens: at most half of the model's positions, since a prompt precedes them."""
    return min(_NEW_TOKENS, (context_length_of(export) or 2 * _NEW_TOKENS) // 2)


def _write_environment(folder: Path) -> None:
    """Write the packages that MLflow installs if it serves the model in an environment of its own."""
    # PyPI doesn't have the suffix of a local build, as in 2.13.0+cpu.
    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in _LIBRARIES]
    python = platform.python_version()
    (folder / _REQUIREMENTS).write_text("\n".join(pinned) + "\n", encoding="utf-8")
    virtualenv = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": [f"-r {_REQUIREMENTS}"],
    }
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pinned}],
    }
    for name, tree in ((_VIRTUALENV, virtualenv), (_CONDA, conda)):
        (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
