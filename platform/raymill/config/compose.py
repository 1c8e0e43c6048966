"""Composition of command-line overrides and `conf/` into a plain tree, and from it a checked job object.

Hydra chooses and merges the groups; this module sets the values after that. So an unknown key is one more
problem in the list (Hydra would stop at the first), text is taken verbatim (Hydra's grammar would drop commas
and braces), and no override reaches Hydra's own settings or an object constructor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, TypeVar, cast, get_args

import yaml

from raymill.config.checks import check
from raymill.config.defaults import CONF, SHARED
from raymill.config.overrides import Overrides, apply, read_overrides
from raymill.config.stages import PREFIXED, deal
from raymill.config.values import VERBATIM
from raymill.errors import ConfigError
from raymill.reading import is_file, user_path
from raymill.schema.bind import (
    bind,
    convert,
    field_types,
    known_keys,
    nearest,
)
from raymill.schema.chat import ChatJob
from raymill.schema.identity import is_changeable
from raymill.schema.jobs import (
    AuditJob,
    ChatPreparation,
    DpoJob,
    PipelineJob,
    PreferencePreparation,
    PretrainJob,
    PromptsPreparation,
    RankJob,
    RewardJob,
    RlhfJob,
    SftJob,
    TextPreparation,
    TrainJob,
)
from raymill.schema.quality import QualityJob
from raymill.schema.serving import ServeJob
from raymill.schema.storage import placed
from raymill.schema.tree import Tree, digest

JOBS: dict[str, type] = {
    # Preparation uses a part of its keys.
    "prepare": TextPreparation,
    "prepare_chat": ChatPreparation,
    "prepare_preference": PreferencePreparation,
    "prepare_prompts": PromptsPreparation,
    "prepare_quality": QualityJob,
    "pretrain": PretrainJob,
    "sft": SftJob,
    "reward": RewardJob,
    "dpo": DpoJob,
    "rlhf": RlhfJob,
    "rank": RankJob,
    "chat": ChatJob,
    "serve": ServeJob,
    "audit": AuditJob,
}
# Configurations of jobs/prepare.py by kind=….
KINDS = {
    "text": "prepare",
    "chat": "prepare_chat",
    "preference": "prepare_preference",
    "prompts": "prepare_prompts",
    "quality": "prepare_quality",
}
# The choice of data that data.path= alone implies, by job.
_OWN_DATA = ((SftJob, "chat"), (RlhfJob, "prompts"), (RankJob, "prompts"))
ALLOWED_ENVIRONMENT = ("HOME", "USER", "TMPDIR", "RAYMILL_STORAGE", "MLFLOW_TRACKING_URI")
# File to which judgments are exported, in the folder of their ranking.
PREFERENCES = "preferences.parquet"

_INTERPOLATION = re.compile(r"\$\{\s*([^}]*)")

T = TypeVar("T")


def groups() -> dict[str, list[str]]:
    """Return every configuration group with its choices; a group within another is named `data/cleaning`."""
    return {
        folder.relative_to(CONF).as_posix(): sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.rglob("*"))
        if folder.is_dir() and folder.name != SHARED
    }


def choices(group: str, job: str) -> list[str]:
    """Return the choices of a group that `job` can use: text for pretraining, conversations for SFT.

    The file of an experiment is named `<job>_<name>`; that of pretraining just `<name>`.
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
def _source_of(choice: str) -> str:
    tree = yaml.safe_load((CONF / "data" / f"{choice}.yaml").read_text(encoding="utf-8"))
    return str(tree["source"])


def load(job: str, overrides: Sequence[str]) -> Any:
    """Return the job object that `overrides` describe.

    Raises:
        ConfigError: lists every problem. Neither Ray nor torch have been imported then.
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
    """Return the configuration that `jobs/prepare.py` means by `kind=`, and the other overrides."""
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
    """Load every stage as its own job would."""
    dealt = deal(overrides, groups()["experiment"])
    chosen = convert(field_types(PipelineJob)["stages"], dealt.stages, "stages", problems)
    pretrain = _load("pretrain", dealt.pretrain, problems)
    stages: Tree = {}
    for stage, overrides_of_stage in dealt.others.items():
        stage_problems: list[str] = []
        named = []
        if pretrain is not None:
            key = "run.name" if issubclass(JOBS[stage], TrainJob) else "name"
            named = [f"{key}={pretrain.run.name}-{stage}"]
            if stage == "reward":
                compared = pretrain.storage.folder / "rankings" / f"{pretrain.run.name}-rank"
                named.append(f"data.path={compared / PREFERENCES}")
        stages[stage] = _load(stage, [*named, *overrides_of_stage], stage_problems)
        # An override that several stages share is reported once.
        problems += [f"{stage}: {text}" for text in stage_problems if text not in problems]
    if problems:
        return None
    return PipelineJob(stages=chosen, pretrain=cast(PretrainJob, pretrain), ask=dealt.ask, **stages)


def _load(job: str, overrides: Sequence[str], all_problems: list[str]) -> Any:
    """Return one job's object; None, and its problems, where there are any."""
    cls = JOBS[job]
    problems: list[str] = []
    given = _read_overrides(job, overrides, problems)
    tree = _compose(job, given.chosen)
    # Verbatim text must not be interpolated, so it is set after the rest is resolved.
    verbatim = {one.key: one.value for one in given.settings if one.key in VERBATIM}
    for setting in given.settings:
        if setting.key not in VERBATIM:
            apply(setting, tree, problems)
    tree = _resolve(tree, problems)
    tree.update(verbatim)
    shaped = _fill_architecture(tree, problems)
    unbound: list[str] = []
    bound = bind(cls, tree, unbound)
    # If the folder's shape can't be read, that is the problem, not every number that is missing for it.
    problems += [text for text in unbound if shaped or not text.startswith("arch.")]
    if bound is not None:
        bound = _absolute_storage(bound, problems)
        # A preparation takes the keys of a training job, of which only a part is checked.
        if job in KINDS.values() and not isinstance(bound, QualityJob):
            bound = bound.preparation()
        problems.extend(check(bound))
    all_problems += problems
    return None if problems else _named(bound)


def _named(job: T) -> T:
    """Name a run without a name by its configuration and its parent."""
    if not isinstance(job, TrainJob) or job.run.name is not None:
        return job
    if isinstance(job, PretrainJob):
        kind = job.arch.name
    else:
        kind = next(name for name in PREFIXED if isinstance(job, JOBS[name]))
    # A run may resume with another spelling of its parent, but another parent makes another name.
    identity = digest(job, ignore=lambda key: key != "parent" and is_changeable(key))
    return replace(job, run=replace(job.run, name=f"{kind}-{identity[:8]}"))


def _absolute_storage(job: Any, problems: list[str]) -> Any:
    # Only a job with a cluster can join one.
    joins = getattr(job, "cluster", None) is not None and job.cluster.address != "local"
    return replace(job, storage=placed(job.storage, joins, problems))


def _read_overrides(job: str, texts: Sequence[str], problems: list[str]) -> Overrides:
    """Read a job's overrides; data that is given only by its path is of the job's own kind."""
    if _names_own_data(texts):
        choice = next((name for cls, name in _OWN_DATA if issubclass(JOBS[job], cls)), None)
        texts = [*([f"data={choice}"] if choice else []), *texts]
    available = {group: choices(group, job) for group in groups()}
    return read_overrides(texts, dict(known_keys(JOBS[job])), available, problems)


def _names_own_data(overrides: Sequence[str]) -> bool:
    """Tell whether data is given only by its path, which implies data=chat and the like."""
    keys = {text.partition("=")[0] for text in overrides}
    return "data.path" in keys and "data" not in keys


def _compose(job: str, chosen: Sequence[str]) -> Tree:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    # Hydra keeps one global state per process, which refuses a second initialization.
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(job, overrides=list(chosen))
    tree: Tree = OmegaConf.to_container(composed, resolve=False)  # type: ignore[assignment]
    # The choice of an experiment leaves its key behind, which is none of the job's.
    tree.pop("experiment", None)
    return tree


def _resolve(tree: Tree, problems: list[str]) -> Tree:
    """Resolve `${…}`: only references to other keys and a few environment variables are allowed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    # Other resolvers could read any variable, so they are removed before OmegaConf sees them.
    clean = cast(Tree, _strip_interpolations(tree, "", problems))
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(clean), resolve=True)
    except OmegaConfBaseException as error:
        problems.append(f"an interpolation can't be resolved: {str(error).splitlines()[0]}")
        return clean
    return resolved  # type: ignore[return-value]


def _strip_interpolations(value: object, key: str, problems: list[str]) -> object:
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


def _fill_architecture(tree: Tree, problems: list[str]) -> bool:
    """Fill the keys that `arch=from_model` leaves null; others stay. Return whether `arch` can be bound."""
    arch = tree.get("arch")
    if not isinstance(arch, dict) or arch.get("name") != "from_model":
        return True
    from raymill.model.shape import own_architecture

    folder = user_path(str(tree.get("model")))
    if not is_file(folder / "config.json"):
        problems.append(
            f"arch=from_model: needs model= with a Hugging Face folder (one with a config.json), not "
            f"{tree.get('model')}; a registered model's arch= is chosen by its name"
        )
        return False
    try:
        of_folder = asdict(own_architecture(folder))
    except ConfigError as error:
        problems.extend(error.problems)
        return False
    chosen = {key: value for key, value in arch.items() if value is not None and key != "name"}
    tree["arch"] = {**of_folder, **chosen}
    return True
