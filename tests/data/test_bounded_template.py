"""Law: a template renders as Jinja renders it, or is refused in bounded time and memory with one line."""

import resource
import time
from datetime import datetime

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bactrian.data import template
from bactrian.data.bounded_template import Environment
from bactrian.data.records import Message
from bactrian.errors import ChatError

TALK = (Message("user", "Hi {there}"), Message("assistant", "Hello\n  <b> 12"))
DOUBLES = "{{% set ns = namespace(x={0}, y={0}) %}}{{% for i in range(100) %}}{1}{{% endfor %}}"
NESTS = DOUBLES.format("[1]", "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}")
GROWS = "'a' * 1000"

ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "lists of filters": "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "a macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that branches": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a block": "{% block x %}{{ self.x() }}{% endblock %}",
    "a recursive loop": "{% for x in [1, 1] recursive %}"
    "{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "nested parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested blocks": "{% if a %}" * 300 + "{% endif %}" * 300,
}
LARGE = {
    "text": "{{ 'a' * 10**10 }}",
    "text in a variable": "{% set x = 'a' * 10**10 %}",
    "list": "{{ [0] * 10**10 }}",
    "number": "{{ 10 ** (10 ** 10) }}",
    "number squared": DOUBLES.format("3", "{% set ns.x = ns.x * ns.x %}"),
    "sum": DOUBLES.format(GROWS, "{% set ns.x = ns.x + ns.x %}"),
    "joined": DOUBLES.format(GROWS, "{% set ns.x = ns.x ~ ns.x %}"),
    "replaced by a filter": DOUBLES.format(GROWS, "{% set ns.x = ns.x|replace('a', 'aaa') %}"),
    "replaced": DOUBLES.format(GROWS, "{% set ns.x = ns.x.replace('a', 'aaa') %}"),
    "centred by a filter": "{{ 'a'|center(10**10) }}",
    "centred": "{{ 'a'.center(10**10) }}",
    "a block that is centred": "{% filter center(10**10) %}a{% endfilter %}",
    "tabs": "{{ '\\t'.expandtabs(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "format": "{{ '%10000000000d'|format(1) }}",
    "format by an operator": "{{ '%10000000000d' % 1 }}",
    "format by a method": "{{ '{:>10000000000}'.format(1) }}",
    "format by an argument": "{{ '{:>{}}'.format(1, 10**10) }}",
    "time": "{{ strftime_now('%10000000000d') }}",
    "written": NESTS + "{{ ns.x }}",
    "as JSON": NESTS + "{{ ns.x|tojson }}",
    "compared": NESTS + "{{ ns.x == ns.y }}",
    "compared by a test": NESTS + "{{ ns.x is eq(ns.y) }}",
    "a key": DOUBLES.format("(1,)", "{% set ns.x = (ns.x, ns.x) %}") + "{{ {ns.x: 1} }}",
    "many outputs": "{% set x %}{% for i in range(99999) %}{{ 'a' * 10**6 }}{% endfor %}{% endset %}",
    "slices": "{% set ns = namespace(x=[], b='a' * 10**6) %}{% for i in range(9999) %}"
    "{% set ns.x = [ns.x, ns.b[1:]] %}{% endfor %}",
    "a sequence joined": "{% set x = 'a' * 10**6 %}{{ range(9999)|map('replace', '0', x)|join }}",
    "a list joined": "{{ ''.join(['a' * 10**6] * 1000) }}",
    "itself": "a" * 300_000,
}


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_what_never_ends_or_takes_all_memory_is_refused(name: str):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(ChatError, match="the chat template refuses these messages: ") as refused:
        template.render({**ENDLESS, **LARGE}[name], TALK, {}, False)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)
    assert time.thread_time() - began < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kB


USUAL = [
    "{% for m in messages %}{{ '<|' + m.role ~ '|>' ~ m['content'] | trim }}{{ loop.index }}"
    "{{ loop.last }}{% endfor %}",
    "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}"
    "{% set ns.t = ns.t + m.content[1:] %}{% endfor %}{{ ns.n }}{{ ns.t }}{{ loop is defined }}",
    "{{ messages[::-1] | map(attribute='role') | join(', ') }}{{ messages[0]['content'].split('{')[-1] }}",
    "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}{{ 7 % 5 }}{{ 20000 * 3 }}{{ 2 ** 10 }}"
    "{{ '%s-%5d' % ('a', 3) }}",
    "{% macro f(x, y='z') %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}"
    "{{ f(1) }}{% call f(2) %}c{% endcall %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.nextitem }}"
    "{{ loop.revindex }}{% else %}-{% endfor %}",
    "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{{ loop.depth }}{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% if loop.first %}{% continue %}{% endif %}!{% endfor %}",
    "{{ '{:>8}|{a}'.format(1, a='{{x}}') }}{{ '**%s**' % 'b' }}{{ 'a'.center(9) }}{{ 'b' | indent(4, true) }}",
    "{% if messages[0].role == messages[1]['role'] or 'user' in messages[0].values() %}yes{% endif %}{{ nothing }}",
    "{% filter upper %}a{{ messages[0].content }}{% endfilter %}{% set x %}y{{ 1 }}{% endset %}{{ x }}{{ {'a': [1]} }}",
    "{% for m in nothing %}x{% endfor %}{{ range(5) | list | sum }}"
    "{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{%- for m in messages -%}\n  {{- m.content -}}\n{%- endfor %}\n\n{{ 'x' if false }}{{ none }}{{ true }}{{ 1.5 }}",
]


@pytest.mark.parametrize("text", USUAL)
def test_whatever_is_within_the_limits_is_rendered_as_jinja_renders_it(text: str):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = template.to_json
    turns = [{"role": message.role, "content": message.content} for message in TALK]
    expected = plain.from_string(text).render(messages=turns, tools=None, documents=None, add_generation_prompt=True)
    assert template.render(text, TALK, {}, True) == expected


def test_a_limit_of_one_rendering_does_not_count_against_the_next():
    text = "{% for i in range(9999) %}{{ i }}{% endfor %}"
    for _ in range(40):
        template.render(text, TALK, {}, False)


def test_long_conversations_fit():
    long = tuple(Message(("user", "assistant")[i % 2], "word " * 2000) for i in range(200))
    text = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = m.role ~ m.content %}"
        "{{ ns.t + 'x' }}{% endfor %}"
    )
    assert len(template.render(text, long, {}, False)) > 2_000_000


def test_the_time_is_what_it_is_told():
    now = datetime(2026, 2, 3, 4, 5, 6)
    text = "{{ strftime_now('%d %b %Y %H:%M:%S') }}"
    assert template.render(text, TALK, {}, False, now) == "03 Feb 2026 04:05:06"
    assert template.written_times(text, {}, now) == "03 Feb 2026 04:05:06\n03 Feb 2026 04:05:06"
    assert template.written_times("{{ 1 }}", {}, now) == now.isoformat()


def test_no_template_can_spell_what_templates_are_rewritten_with():
    environment = Environment()
    environment.guard()
    assert [name for name in environment.filters if name.startswith(" ")]
