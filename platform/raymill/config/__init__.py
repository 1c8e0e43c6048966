"""Configuration: `load` composes, binds and checks a job's settings."""

from raymill.config.compose import load

__all__ = ["load"]
