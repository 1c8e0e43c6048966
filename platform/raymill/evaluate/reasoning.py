"""Detection of the end of a model's reasoning, where its answer begins.

Templates mark reasoning in many ways: `<think>…</think>` (DeepSeek-R1, Qwen3 and most others), tags of
other names (`<thought>`, `<seed:think>`, `[THINK]`, `◁think▷`, `<|START_THINKING|>`,
`<|begin_of_thought|>`), and channels (gpt-oss, Gemma). Some prompts open the reasoning, so that the answer
only has its closing mark.
"""

from __future__ import annotations

import re

# Tokens at the end of a prompt that are enough to hold the longest mark that opens reasoning.
PROMPT_END = 32
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


def after_reasoning(text: str, in_reasoning: bool = False) -> str:
    """Return the part of a model's text after its last reasoning; all of it if it has none.

    After reasoning that doesn't end, nothing is left. `in_reasoning`: the prompt opened the reasoning; see
    `opens_reasoning`.
    """
    if "<|channel|>" in text:
        return _final_channel(text)
    marks = [*_MARK.finditer(text)]
    if not marks:
        return "" if in_reasoning else text
    return "" if marks[-1]["opens"] else text[marks[-1].end() :]


def opens_reasoning(prompt: str) -> bool:
    """Tell whether a prompt ends with a mark that opens reasoning, so that the answer begins inside it."""
    prompt = prompt.rstrip()
    for mark in _CHANNEL.finditer(prompt):
        if mark.end() == len(prompt):
            return mark["name"] != "final"
    return any(mark["opens"] and mark.end() == len(prompt) for mark in _MARK.finditer(prompt))


def _final_channel(text: str) -> str:
    """Return the content of the last channel if that is the "final" one (gpt-oss), else nothing."""
    channels = [*_CHANNEL.finditer(text)]
    last_mark = text.rindex("<|channel|>")
    if not channels or channels[-1].start() != last_mark or channels[-1]["name"] != "final":
        return ""
    rest = text[channels[-1].end() :]
    end = _CHANNEL_ENDS.search(rest)
    return rest[: end.start()] if end else rest
