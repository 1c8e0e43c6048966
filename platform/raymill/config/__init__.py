"""From Hydra's composed tree to frozen, cross-checked objects: `load` is the only way in."""

from raymill.config.compose import load

__all__ = ["load"]
