"""Key of a conversation: what its turns have in common, so that they can be sent to the same replica."""

from __future__ import annotations

import hashlib
import json

CHAT = "/v1/chat/completions"


def conversation_key(path: str, body: bytes) -> str | None:
    """Return the key of a chat request: a digest of its model, and its messages up to the user's first.

    None where the request isn't a conversation, or can't be read; the application says what is wrong with it.
    """
    if path != CHAT:
        return None
    try:
        asked = json.loads(body)
        beginning = []
        for message in asked["messages"]:
            beginning.append([message["role"], message.get("content")])
            if message["role"] == "user":
                break
        read = json.dumps([asked["model"], beginning], sort_keys=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    # Half of a surrogate pair is valid JSON, and no valid text.
    return hashlib.sha256(read.encode("utf-8", "replace")).hexdigest()[:32]
