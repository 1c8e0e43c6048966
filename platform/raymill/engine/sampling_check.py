"""Before the first step: how the model can be sampled, on all ranks alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raymill.engine.agreement import agreed
from raymill.engine.compilation import uncompiled
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.errors import ConfigError
from raymill.generate.modes import MODES, SamplingMode, mode_of, use_mode


def settle_sampling(model: Any, group: WorkerGroup, event_log: EventLog | None, step: int) -> None:
    """Have all ranks sample the model in the slowest of the modes that they found; where that isn't the fastest
    there is, the journal says why. Collective.

    Raises:
        ConfigError: on all ranks; the model can't be sampled on one of them.
    """
    mode = SamplingMode()
    problem: ConfigError | None = None
    try:
        with uncompiled():
            mode = mode_of(model)
    except ConfigError as error:
        problem = error
    found = group.gather((mode, problem))
    for _, refusal in found:
        if refusal is not None:
            raise agreed(refusal)
    mode = max((one for one, _ in found), key=lambda one: MODES.index(replace(one, why="")))
    use_mode(model, mode)
    if event_log is not None and (note := mode.note(model)) is not None:
        event_log.write("message", step, text=note)
