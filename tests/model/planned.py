"""Plans of models that tests build themselves."""

from __future__ import annotations

from typing import Any

import torch

from raymill.model.blueprint import Blueprint
from raymill.model.values import Held, Values


def planned(model: Any) -> Blueprint:
    """Return the plan of a model whose weights are in memory; the model itself loses them."""
    new: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    values: dict[torch.nn.Parameter, Values] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        new[parameter] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        values[new[parameter]] = Held(parameter.detach())
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = new[parameter]
    return Blueprint(model, values)
