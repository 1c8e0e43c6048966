"""The end of a model's reasoning, where its answer begins.

Templates mark reasoning in many ways: `<think>…</think>` (DeepSeek-R1, Qwen3 and most others), tags of other
names (`<thought>`, `<seed:think>`, `[THINK]`, `◁think▷`, `<|START_THINKING|>`, `<|begin_of_thought|>`), and
channels (gpt-oss, Gemma). Some prompts open it, so that an answer has only the mark that closes it.
"""

from __future__ import annotations

import re

PROMPT_END = (
    32  # tokens at the end of a prompt, in which the longest mark that opens reasoning has room
)
_NAME = r"(?:[a-z]+[:_])?(?:think|thinking|thoughts?|reasoning|scratchpad|reflection)"
_OPENS = (
    rf"<{_NAME}(?:\s[^<>]*)?>|(?-i:\[THINK\])|◁think▷|<\|begin_of_thought\|>|<\|start_thinking\|>"
    r"|<\|think:start\|>|<\|inner_prefix\|>|<unused94>|<\|channel>|here is my thought process:"
)
_CLOSES = (
    rf"</{_NAME}\s*>|(?-i:\[/THINK\])|◁/think▷|<\|end_of_thought\|>|<\|end_thinking\|>"
    r"|<\|think:end\|>|<\|inner_suffix\|>|<unused95>|<channel\|>|here is my response:"
)
_MARK = re.compile(rf"(?=[<\[◁h])(?:(?P<opens>{_OPENS})|{_CLOSES})", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w*)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_ENDS = re.compile(r"<\|(?:end|return|call|start|channel)\|>")


def after_reasoning(text: str, begun: bool = False) -> str:
    """Return what follows the last reasoning in a model's text: all of it where there is none.

    Reasoning that doesn't end is followed by nothing. `begun`: the prompt had opened it already, as
    `opens_reasoning` tells.
    """
    if "<|channel|>" in text:
        return _final_channel(text)
    marks = [*_MARK.finditer(text)]
    if not marks:
        return "" if begun else text
    return "" if marks[-1]["opens"] else text[marks[-1].end() :]


def opens_reasoning(prompt: str) -> bool:
    """Tell whether a prompt's text ends with a mark that opens reasoning, so that the answer begins in it."""
    prompt = prompt.rstrip()
    for mark in _CHANNEL.finditer(prompt):
        if mark.end() == len(prompt):
            return mark["name"] != "final"
    return any(mark["opens"] and mark.end() == len(prompt) for mark in _MARK.finditer(prompt))


def _final_channel(text: str) -> str:
    """Return what stands in the last channel if that is the final one, as gpt-oss writes it."""
    channels = [*_CHANNEL.finditer(text)]
    last_mark = text.rindex("<|channel|>")
    if not channels or channels[-1].start() != last_mark or channels[-1]["name"] != "final":
        return ""
    rest = text[channels[-1].end() :]
    end = _CHANNEL_ENDS.search(rest)
    return rest[: end.start()] if end else rest
