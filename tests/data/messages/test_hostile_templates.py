"""Chat templates come from strangers: each of these is refused soon, in little memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from raymill.data.messages.template import ChatTemplate
from raymill.errors import DataError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]


def grown(step: str, use: str = "{{ ns.s }}", start: str = "'x' * 1000", times: int = 100) -> str:
    return (
        f"{{% set ns = namespace(s={start}) %}}{{% for i in range({times}) %}}"
        f"{{% set ns.s = {step} %}}{{% endfor %}}{use}"
    )


def looped(body: str, before: str = "{% set s = 'xy' * 500000 %}") -> str:
    return f"{before}{{% for i in range(100000) %}}{body}{{% endfor %}}"


HOSTILE = {
    "nested loops": looped(looped(looped("x", ""), ""), ""),
    "a loop whose filter turns all down": looped(
        "{% for j in range(100000) if false %}{% endfor %}"
    ),
    "a range without end": "{% for i in range(10**9) %}{% endfor %}",
    "doubling by +": grown("ns.s + ns.s"),
    "doubling by ~": grown("ns.s ~ ns.s"),
    "doubling a list": grown("ns.s + ns.s", start="[1]"),
    "doubling by a block": grown("1", use="").replace(
        "{% set ns.s = 1 %}", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"
    ),
    "doubling by join": grown("'x'.join([ns.s, ns.s])"),
    "doubling by replace": grown("('x' * 1000).replace('x', ns.s)"),
    "a list that holds itself twice, printed": grown("[ns.s, ns.s]", start="[1]", times=60),
    "… as JSON": grown("[ns.s, ns.s]", "{{ ns.s | tojson }}", "[1]", 60),
    "… joined": grown("[ns.s, ns.s]", "{{ ns.s | join }}", "[1]", 60),
    "… hashed": grown("(ns.s, ns.s)", "{{ {ns.s: 1} }}", "(1,)", 60),
    "… looked up": grown("(ns.s, ns.s)", "{{ {1: 2}[ns.s] }}", "(1,)", 60),
    "… compared": grown(
        "[ns.s, ns.s]", grown("[ns.s, ns.s]", "", "[1]", 60) + "{{ ns.s == [ns.s] }}", "[1]", 60
    ),
    "a namespace within itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "a string times": "{{ 'x' * 10**9 }}",
    "times a string": "{{ 10**9 * 'x' }}",
    "a list times": "{{ [1] * 10**9 }}",
    "a power": "{{ 2 ** 100000000 }}",
    "squaring": grown("ns.s * ns.s", start="3"),
    "format with %": "{{ '%1000000000d' % 1 }}",
    "format with a width": "{{ '{:>1000000000}'.format(1) }}",
    "format of many": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "format that reaches inside": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a}'.format_map({'a': 1}) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "rjust": "{{ 'x'.rjust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "the filter center": "{{ 'x' | center(10**9) }}",
    "the filter batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "the filter indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "the filter join": "{{ range(100000) | join('x' * 100000) }}",
    "the filter replace": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "JSON's indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(100000) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "searching": looped("{% if 'yy' in s %}{% endif %}"),
    "finding": looped("{{ s.find('yy') }}"),
    "slicing": looped("{% set z = s[1:] %}"),
    "a filter over and over": looped("{% set z = s | upper %}"),
    "splitting": looped("{% set z = s.split('x') %}"),
    "words": looped("{% set z = s | title %}", "{% set s = 'x ' * 500000 %}"),
    "sorting": looped("{% set z = range(100000) | sort %}"),
    "sorting what a generator yields": grown(
        "[ns.s, ns.s]", "{{ [ns.s, ns.s] | map('list') | sort }}", "[1]", 60
    ),
    "much text in a macro": "{% macro f() %}"
    + "x" * 60_000
    + "{% endmacro %}{% set ns = namespace(l=[]) %}"
    + looped("{% set ns.l = ns.l + [f()] %}", ""),
    "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a block without end": "{% block a %}{{ self.a() }}{% endblock %}",
    "a loop without end": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "class and mro": "{{ ''.__class__.__mro__ }}",
    "the filter attr": "{{ '' | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "changing a list": "{{ messages.append(1) }}",
    "deep brackets": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "a long sum": "{{ 1" + "+1" * 20_000 + " }}",
    "many loops in one another": "{% for x in [1] %}" * 50 + "{% endfor %}" * 50,
    "a long number": "{{ " + "9" * 60_000 + " }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused_soon(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(DataError) as refused:
        ChatTemplate(HOSTILE[name], {}).render(MESSAGES)
    assert time.process_time() - begin < 2.0
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["doubling by +", "much text in a macro", "splitting", "… as JSON"]
)
def test_little_memory_is_taken(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            ChatTemplate(HOSTILE[name], {}).render(MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def test_class_of_a_string_by_subscript_is_nothing() -> None:
    assert ChatTemplate("{{ ''['__class__'] }}", {}).render(MESSAGES) == ""


def test_a_refused_rendering_leaves_the_next_its_whole_budget() -> None:
    source = (
        "{% for i in range(messages[0].n) %}{% for j in range(1000) %}{% endfor %}{% endfor %}ok"
    )
    template = ChatTemplate(source, {})
    for _ in range(3):
        with pytest.raises(DataError, match="loops more than 100,000 times"):
            template.render([{"role": "user", "n": 1000}])
        assert template.render([{"role": "user", "n": 50}]) == "ok"


def test_long_conversations_are_within_the_budget() -> None:
    from raymill.data.messages.template import CHATML

    turns = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")] * 1000
    assert len(ChatTemplate(CHATML, {}).segments(turns)) == 2001
