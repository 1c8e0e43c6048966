"""From Hydra's composed tree to frozen, cross-checked objects: `load` is the only way in."""

from raymill.config.compose import load
from raymill.config.tree import digest, flatten, to_tree

__all__ = ["digest", "flatten", "load", "to_tree"]
