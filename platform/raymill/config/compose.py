"""Command-line overrides + `conf/` → a plain tree → a checked job object.

Hydra chooses and merges the groups; values are then set by us. That way an unknown key is one more
problem in the list (Hydra would stop at the first), text is taken verbatim (its grammar would eat
commas and braces), and nothing a user can type reaches Hydra's own settings or an object constructor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import yaml

from raymill.config.bind import (
    bind,
    convert,
    field_types,
    known_keys,
    nearest,
    nearest_key,
)
from raymill.config.checks import check
from raymill.config.from_model import fill_architecture
from raymill.config.stages import PREFIXED, deal
from raymill.config.values import UNREADABLE, VERBATIM, read_value
from raymill.errors import ConfigError
from raymill.schema.identity import is_changeable
from raymill.schema.jobs import (
    AuditJob,
    ChatPreparation,
    DpoJob,
    GenerateJob,
    PipelineJob,
    PreferencePreparation,
    PretrainJob,
    PromptsPreparation,
    RankJob,
    RewardJob,
    RlhfJob,
    SftJob,
    TrainJob,
)
from raymill.schema.storage import placed
from raymill.schema.tree import digest

CONF = Path(__file__).resolve().parents[3] / "conf"
JOBS: dict[str, type] = {
    "prepare": PretrainJob,  # of which it uses a part
    "prepare_chat": ChatPreparation,
    "prepare_preference": PreferencePreparation,
    "prepare_prompts": PromptsPreparation,
    "pretrain": PretrainJob,
    "sft": SftJob,
    "reward": RewardJob,
    "dpo": DpoJob,
    "rlhf": RlhfJob,
    "rank": RankJob,
    "generate": GenerateJob,
    "audit": AuditJob,
}
KINDS = {  # jobs/prepare.py kind=…
    "text": "prepare",
    "chat": "prepare_chat",
    "preference": "prepare_preference",
    "prompts": "prepare_prompts",
}
# What data.path= alone means, by the job.
_OWN_DATA = ((SftJob, "chat"), (RlhfJob, "prompts"), (RankJob, "prompts"))
ALLOWED_ENVIRONMENT = ("HOME", "USER", "TMPDIR", "RAYMILL_STORAGE", "MLFLOW_TRACKING_URI")
PREFERENCES = (
    "preferences.parquet"  # what judgements are exported as, in the folder of their ranking
)

_INTERPOLATION = re.compile(r"\$\{\s*([^}]*)")
_CONSTRUCTOR_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")

T = TypeVar("T")


def groups() -> dict[str, list[str]]:
    """Every configuration group and its choices."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def choices(group: str, job: str) -> list[str]:
    """The choices of a group that `job` can use: text for pretraining, conversations for SFT.

    An experiment's file is called `<job>_<name>`, pretraining's just `<name>`.
    """
    available, cls = groups()[group], JOBS[job]
    if group == "experiment":
        prefix = next((f"{name}_" for name in PREFIXED if issubclass(cls, JOBS[name])), "")
        return [
            name
            for name in available
            if (name.startswith(prefix) if prefix else name.partition("_")[0] not in PREFIXED)
        ]
    if group != "data" or "data" not in field_types(cls):
        return available
    sources = get_args(field_types(field_types(cls)["data"])["source"])
    return [name for name in available if _source_of(name) in sources]


@cache
def _source_of(choice: str) -> Any:
    return yaml.safe_load((CONF / "data" / f"{choice}.yaml").read_text(encoding="utf-8"))["source"]


def load(job: str, overrides: Sequence[str]) -> Any:
    """The job object that `overrides` describe.

    Raises:
        ConfigError: with every problem found, none of them after Ray or torch were touched.
    """
    problems: list[str] = []
    if job == "pipeline":
        loaded = _load_pipeline(overrides, problems)
    else:
        job, overrides = of_kind(job, overrides, problems)
        loaded = _load(job, overrides, problems)
    if problems:
        raise ConfigError(problems)
    return loaded


def of_kind(
    job: str, overrides: Sequence[str], problems: list[str] | None = None
) -> tuple[str, list[str]]:
    """Which configuration `jobs/prepare.py` means by `kind=`, and the other overrides."""
    kinds = [text.partition("=")[2] for text in overrides if text.startswith("kind=")]
    if job != "prepare" or not kinds:
        return job, list(overrides)
    if kinds[-1] not in KINDS and problems is not None:
        problems.append(
            f"kind={kinds[-1]}: kind is one of {', '.join(KINDS)}{nearest(kinds[-1], [*KINDS])}"
        )
    others = [text for text in overrides if not text.startswith("kind=")]
    return KINDS.get(kinds[-1], job), others


def _load_pipeline(overrides: Sequence[str], problems: list[str]) -> PipelineJob | None:
    """Every stage as its own job would load it."""
    dealt = deal(overrides, groups()["experiment"])
    chosen = convert(field_types(PipelineJob)["stages"], dealt.stages, "stages", problems)
    pretrain = _load("pretrain", dealt.pretrain, problems)
    stages: dict[str, Any] = {}
    for stage, own in dealt.others.items():
        found: list[str] = []
        named = []
        if pretrain is not None:
            key = "run.name" if issubclass(JOBS[stage], TrainJob) else "name"
            named = [f"{key}={pretrain.run.name}-{stage}"]
            if stage == "reward":
                compared = pretrain.storage.folder / "rankings" / f"{pretrain.run.name}-rank"
                named.append(f"data.path={compared / PREFERENCES}")
        stages[stage] = _load(stage, [*named, *own], found)
        # What several stages were given is wrong once.
        problems += [f"{stage}: {text}" for text in found if text not in problems]
    if problems:
        return None
    return PipelineJob(stages=chosen, pretrain=cast(PretrainJob, pretrain), ask=dealt.ask, **stages)


def _load(job: str, overrides: Sequence[str], all_problems: list[str]) -> Any:
    """One job's object; None, and problems, where there are any."""
    cls = JOBS[job]
    problems: list[str] = []
    chosen, values = _read_overrides(job, overrides, problems)
    tree = _compose(job, chosen)
    verbatim = {key: value for key, value in values if key in VERBATIM}
    for key, value in values:
        if key not in VERBATIM:
            _set(tree, _path(key, _mapping_of(key, dict(known_keys(cls)))), value, problems)
    tree = _resolve(tree, problems)
    tree.update(verbatim)
    shaped = fill_architecture(tree, problems)
    unbound: list[str] = []
    bound = bind(cls, tree, unbound)
    # Where the folder told nothing, that is the problem, not every number it left open.
    problems += [text for text in unbound if shaped or not text.startswith("arch.")]
    if bound is not None:
        bound = _absolute_storage(bound, problems)
        if job in KINDS.values():
            bound = bound.preparation()
        problems.extend(check(bound))
    all_problems += problems
    return None if problems else _named(bound)


def _named(job: Any) -> Any:
    """Give a run without a name one that its configuration, and its parent, determine."""
    if not isinstance(job, TrainJob) or job.run.name is not None:
        return job
    if isinstance(job, PretrainJob):
        kind = job.arch.name
    else:
        kind = next(name for name in PREFIXED if isinstance(job, JOBS[name]))
    identity = digest(job, ignore=lambda key: key != "parent" and is_changeable(key))
    return replace(job, run=replace(job.run, name=f"{kind}-{identity[:8]}"))


def _absolute_storage(job: Any, problems: list[str]) -> Any:
    joins = getattr(job, "cluster", None) is not None and job.cluster.address != "local"
    return replace(job, storage=placed(job.storage, joins, problems))


def _read_overrides(
    job: str, overrides: Sequence[str], problems: list[str]
) -> tuple[list[str], list[tuple[str, Any]]]:
    """Split overrides into group choices (for Hydra) and values (for us)."""
    available = {group: choices(group, job) for group in groups()}
    types = dict(known_keys(JOBS[job]))
    if _names_own_data(overrides):
        of = next((name for cls, name in _OWN_DATA if issubclass(JOBS[job], cls)), None)
        overrides = [*([f"data={of}"] if of else []), *overrides]
    sections = {key.split(".")[0] for key in types if "." in key}
    chosen: list[str] = []
    values: list[tuple[str, Any]] = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        mapping = _mapping_of(key, types)
        if mapping is not None:  # whose names may hold "=", as addresses do
            key, equals, raw = text.rpartition("=")
        refusal = _refusal(mapping or key, equals, text)
        if refusal:
            problems.append(refusal)
        elif key in available and (key in sections or key == "experiment"):
            if raw in available[key] or raw == "null":
                chosen.append(f"{key}={raw}")
            else:
                problems.append(
                    f"{key}={raw}: {key} is one of {', '.join(available[key])}"
                    f"{nearest(raw, available[key])}"
                )
        elif mapping is None and key not in types:
            problems.append(f"{key}: there is no such key{nearest_key(key, [*types, *available])}")
        else:
            hint = types.get(key) if mapping is None else get_args(types[mapping])[1]
            value = read_value(key, raw, hint, problems)
            if value is not UNREADABLE:
                values.append((key, value))
    return chosen, values


def _names_own_data(overrides: Sequence[str]) -> bool:
    """Whether data is given by its place alone: that means data=chat, and the like."""
    keys = {text.partition("=")[0] for text in overrides}
    return "data.path" in keys and "data" not in keys


def _refusal(key: str, equals: str, text: str) -> str | None:
    if not equals:
        hint = "; the form is key=value" if not text.startswith("-") else "; try --help"
        return f"{text!r} isn't an override{hint}"
    if key.lstrip("+~").split(".")[0].split("/")[0].split("@")[0] == "hydra":
        return f"{key}: Hydra's own settings can't be changed from here"
    if any(part in _CONSTRUCTOR_KEYS for part in key.lstrip("+~").split(".")) or any(
        f"{name}:" in text or f"{name}=" in text for name in _CONSTRUCTOR_KEYS
    ):
        return f"{key}: configuration can't name objects to construct"
    if key[:1] in "+~":
        return (
            f"{key}: keys can't be added or deleted; every key that exists can be set by key=value"
        )
    if "/" in key or "@" in key:
        return f"{key}: groups can't be moved"
    return None


def _mapping_of(key: str, types: Mapping[str, Any]) -> str | None:
    """The mapping that a key names an entry of: all that follows is the entry's name, dots included."""
    for name, hint in types.items():
        if get_origin(hint) is dict and key.startswith(f"{name}."):
            return name
    return None


def _compose(job: str, chosen: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(job, overrides=list(chosen))
    tree: dict[str, Any] = OmegaConf.to_container(composed, resolve=False)  # type: ignore[assignment]
    tree.pop("experiment", None)
    return tree


def _path(key: str, mapping: str | None) -> list[str]:
    """A key's parts; an entry's name in a mapping is one."""
    if mapping is None:
        return key.split(".")
    return [*mapping.split("."), key.removeprefix(f"{mapping}.")]


def _set(tree: dict[str, Any], path: Sequence[str], value: Any, problems: list[str]) -> None:
    *parents, leaf = path
    node: Any = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            problems.append(f"{'.'.join(path)}: {name} isn't a group of keys")
            return
    node[leaf] = value


def _resolve(tree: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Resolve `${…}`, of which only references to other keys and a few variables are allowed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    clean: dict[str, Any] = _strip_interpolations(tree, "", problems)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(clean), resolve=True)
    except OmegaConfBaseException as error:
        problems.append(f"an interpolation can't be resolved: {str(error).splitlines()[0]}")
        return clean
    return resolved  # type: ignore[return-value]


def _strip_interpolations(value: Any, key: str, problems: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _strip_interpolations(item, f"{key}.{name}" if key else str(name), problems)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_strip_interpolations(item, key, problems) for item in value]
    if isinstance(value, str):
        for inner in _INTERPOLATION.findall(value):
            resolver, colon, argument = inner.partition(":")
            variable = argument.split(",")[0].strip()
            if colon and (resolver.strip() != "oc.env" or variable not in ALLOWED_ENVIRONMENT):
                problems.append(
                    f"{key}={value!r}: only ${{key}} and ${{oc.env:NAME}} with NAME one of "
                    f"{', '.join(ALLOWED_ENVIRONMENT)} are resolved"
                )
                return ""
    return value
