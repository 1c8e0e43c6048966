"""Ray Train's trainer without two actors of its own that every start would wait for."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

# One deals out the datasets that a trainer is given: ours are opened by the first worker. The other removes the
# placement group of a controller that was killed: it asks the dashboard, which a local Ray lacks, once a second
# whether the controller lives, and is waited for at the end.
_LEFT_OUT = (DatasetsCallback, PlacementGroupCleanerCallback)


class LeanTrainer(TorchTrainer):  # type: ignore[misc]
    """For a local Ray, whose actors all end with the driver."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one) not in _LEFT_OUT]
