"""`--help`: a job's topic, with the choices of its groups, and the explanations and defaults of its keys."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.config.compose import choices, load, of_kind
from raymill.config.defaults import explanations
from raymill.config.topics import TOPICS
from raymill.schema.tree import flatten

_UNRESOLVED = {"run.name": None, "storage.root": "storage", "data.path": None}


def help_text(job: str, overrides: Sequence[str] = ()) -> str:
    """Return the page that `python jobs/<job>.py --help` prints; `overrides` may choose a kind."""
    kind, _ = of_kind(job, overrides)
    composed = "pretrain" if kind == "pipeline" else kind
    topic, defaults, explained = TOPICS[kind], _defaults(kind), explanations(composed)
    lines = [f"python jobs/{job}.py [group=choice ...] [key=value ...]", "", topic.summary, ""]
    if topic.groups:
        lines.append(
            "Groups, each a file conf/<group>/<choice>.yaml whose comments explain its keys:"
        )
    column = max((len(name) + 2 for name in topic.groups), default=0)
    lines += [f"  {name:<{column}}{', '.join(choices(name, composed))}" for name in topic.groups]
    lines += ["", "Main keys (every key of every group can be set like this):"]
    width = max(len(key) for key in topic.keys) + 2
    for key in topic.keys:
        default = f" [{_spell(defaults[key])}]" if key in defaults else ""
        lines.append(f"  {key:<{width}}{explained[key]}{default}")
    lines += [f"  {name:<{width}}{text}" for name, text in topic.others]
    # These jobs have nothing to plan.
    if job not in ("audit", "chat", "rank"):
        lines.append(f"  {'dry_run=true':<{width}}Print the plan and exit.")
    lines += ["", "Examples:"]
    for example, text in topic.examples:
        lines.append(f"  python jobs/{job}.py {example}".rstrip())
        lines.append(f"      {text}")
    lines += ["", f"Writes: {topic.writes}"]
    return "\n".join(lines)


def _defaults(kind: str) -> dict[str, object]:
    """Return the defaults by key, as the files spell them and not as they were resolved for this folder."""
    job, _, prepared = kind.partition("_")
    overrides = [f"kind={prepared}"] if prepared else []
    # These jobs have no data by default.
    if kind in ("prepare_preference", "reward", "dpo"):
        overrides.append("data.path=.")
    if kind == "prepare_quality":
        overrides += ["good=.", "raw=."]
    if kind == "audit":
        overrides.append("run.name=x")
    defaults: dict[str, object] = flatten(load(job, overrides))
    if kind == "pipeline":
        prefix = "pretrain."
        defaults = {
            key.removeprefix(prefix): value
            for key, value in defaults.items()
            if key.startswith(prefix)
        }
    return defaults | {key: text for key, text in _UNRESOLVED.items() if key in defaults}


def _spell(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
