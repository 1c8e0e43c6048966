"""`--help` that teaches: a job's topic with its choices and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymill.config.compose import choices, load, of_kind
from raymill.config.topics import TOPICS
from raymill.schema.tree import flatten

_UNRESOLVED = {"run.name": None, "storage.root": "storage", "data.path": None}


def help_text(job: str, overrides: Sequence[str] = ()) -> str:
    """The page that `python jobs/<job>.py --help` prints; `overrides` may choose a kind."""
    kind, _ = of_kind(job, overrides)
    topic = TOPICS[kind]
    defaults = _defaults(kind)
    lines = [f"python jobs/{job}.py [group=choice ...] [key=value ...]", "", topic.summary, ""]
    if topic.groups:
        lines.append(
            "Groups, each a file conf/<group>/<choice>.yaml whose comments explain its keys:"
        )
    of = "pretrain" if kind == "pipeline" else kind
    lines += [f"  {name:<11}{', '.join(choices(name, of))}" for name in topic.groups]
    lines += ["", "Keys people change (every key of every group can be set like this):"]
    width = max(len(key) for key, _ in topic.keys) + 2
    for key, text in topic.keys:
        shown = "" if key not in defaults else f" [{_spell(defaults[key])}]"
        lines.append(f"  {key:<{width}}{text}{shown}")
    if job not in ("audit", "generate", "rank"):
        lines.append(f"  {'dry_run=true':<{width}}print what would be done, and exit")
    lines += ["", "Examples:"]
    for example, text in topic.examples:
        lines.append(f"  python jobs/{job}.py {example}".rstrip())
        lines.append(f"      {text}")
    lines += ["", f"Writes: {topic.writes}"]
    return "\n".join(lines)


def _defaults(kind: str) -> dict[str, Any]:
    """Key → default, as the files spell them and not as they were resolved for this folder."""
    job, _, of = kind.partition("_")
    overrides = [f"kind={of}"] if of else []
    if kind in (
        "prepare_preference",
        "reward",
        "dpo",
    ):  # there is no data that they'd take by default
        overrides.append("data.path=.")
    if kind == "audit":
        overrides.append("run.name=x")
    defaults: dict[str, Any] = flatten(load(job, overrides))
    if kind == "pipeline":
        own = "pretrain."
        defaults = {k.removeprefix(own): v for k, v in defaults.items() if k.startswith(own)}
    return defaults | {key: text for key, text in _UNRESOLVED.items() if key in defaults}


def _spell(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
