"""`arch=from_model`: the shape of the model to continue, as its folder tells it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raymill.errors import ConfigError
from raymill.reading import is_file, user_path

NAME = "from_model"


def fill_architecture(tree: dict[str, Any], problems: list[str]) -> bool:
    """Fill what `arch=from_model` left open; keys that were set stay. Return whether `arch` can be bound."""
    arch = tree.get("arch")
    if not isinstance(arch, dict) or arch.get("name") != NAME:
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
        own = asdict(own_architecture(folder))
    except ConfigError as error:
        problems.extend(error.problems)
        return False
    chosen = {key: value for key, value in arch.items() if value is not None and key != "name"}
    tree["arch"] = {**own, **chosen}
    return True
