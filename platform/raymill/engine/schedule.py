"""Learning-rate schedules as pure functions of the step, so that there is no scheduler state to lose.

WSD (warm-up, stable, decay): Hu et al. 2024, "MiniCPM", section 4. Cosine: Loshchilov & Hutter 2017.
"""

from __future__ import annotations

import math

from raymill.schema.sections import ScheduleConfig


def decay_start(schedule: ScheduleConfig, total_steps: int) -> int | None:
    """Return the last step before the rate begins to fall; None if it never does."""
    if schedule.name == "constant" or schedule.final_fraction == 1:
        return None
    if schedule.name != "wsd":
        return schedule.warmup_steps
    # At least one step, so that the final rate is reached.
    decay_steps = max(1, round(schedule.decay_fraction * total_steps))
    return max(schedule.warmup_steps, total_steps - decay_steps)


def learning_rate_factor(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the fraction of the peak rate for step number `step` (1 is the first) of `total_steps`.

    Warm-up is linear and reaches the peak at step `warmup_steps`; a decay reaches `final_fraction`
    at the last step.
    """
    warmup = schedule.warmup_steps
    if step <= warmup:
        return step / warmup
    start = decay_start(schedule, total_steps)
    if start is None or step <= start:
        return 1.0
    progress = min(1.0, (step - start) / max(1, total_steps - start))
    shape = (1 + math.cos(math.pi * progress)) / 2 if schedule.name == "cosine" else 1 - progress
    return schedule.final_fraction + (1 - schedule.final_fraction) * shape
