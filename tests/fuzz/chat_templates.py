"""Chat templates that hang, grow, look around or fail. A template has 0.7 s here, and its process 200 MB.

What comes out is the text, or one line; the process is gone or waits for the next template, and nothing else is left.
"""

import random
import re
import time
from functools import cache
from pathlib import Path

from mlx_dgemma.checkpoint.chat_template import Worker
from tests.fuzz import mutations, texts
from tests.fuzz.kind import Kind
from tests.fuzz.oracle import Refusals, demand

SECONDS, ALLOWED = 0.7, 10.0  # of rendering; and until it has been told, on a busy machine
SECRET = "/etc/passwd"
EXPRESSIONS = (
    "messages", "messages[0]", "messages[0].content", "range(10**9)", "range(99999)", "'a' * 10**9",
    "'a' * 10**6",
    "'a' * 3 * 10**6", "'a' * 3 * 10**7", "[0] * 10**9", "10 ** 10 ** 8", "1 / 0", "messages.__class__",
    "''.__class__.__mro__",
    "cycler.__init__.__globals__", "lipsum.__globals__['os'].popen('id').read()", "self.__init__.__globals__",
    "namespace.__init__", "x", "none", "messages | map('attr', '__class__') | list", "''|attr('__class__')",
    "'{0.__class__.__mro__}'.format('')", "'%s' % messages", "'%999999999d' % 1", "'a'.center(10**9)",
    "'a'.ljust(10**8)", "'ab'.replace('', 'x' * 10**5)", "(['a' * 10**5] * 10**4) | join('b')",
    "messages | tojson", "messages | tojson(indent=10**7)", "dict(a=1) | tojson", "lipsum(n=10**6)",
    "raise_exception('no')", "raise_exception(5)", "raise_exception(none)", "raise_exception(messages)",
    "raise_exception('a\\nb\\x1b[2J')", "raise_exception('a' * 10**6)", "raise_exception()",
    "raise_exception(1, 2)", "strftime_now('%Y')", "strftime_now('%999999999d')", "strftime_now(5)",
    "strftime_now('\\ud800')", "messages.append(1)", "messages.pop()", "messages[0].update({})", "'\\ud800'",
    "'\\x00'", "'\\x1b'", "'a' | indent(10**9)", "f", "loop", "'a' | wordwrap(1) | batch(2) | list",
    "range(10**5) | batch(1) | map('string') | list", "joiner", "caller()",
    "range(10**5) | sort | reverse | list | string | length", "'x' * messages | length", "super()", "varargs",
    "'" + "(" * 20 + "'", "(" * 300 + "1" + ")" * 300, "-" * 3000 + "1", "(1).__add__(2)",
    "('a' * 30000) | urlize", "('a' * 10**5) | title | upper | escape | striptags", "'((a+)+)$' | wordcount",
    "[1,2,3] | random", "1 | filesizeformat",
)  # fmt: skip
FRAMES = (
    "{{{{ {0} }}}}", "{{% set a = {0} %}}{{{{ a }}}}", "{{% for i in {0} %}}{{{{ i }}}}{{% endfor %}}",
    "{{% for i in range(99999) %}}{{% for j in range(99999) %}}{{{{ {0} }}}}{{% endfor %}}{{% endfor %}}",
    "{{% macro f() %}}{{{{ f() }}}}{{{{ {0} }}}}{{% endmacro %}}{{{{ f() }}}}",
    "{{% set n = namespace(x=[]) %}}{{% for i in range(60) %}}{{% set n.x = [n.x, n.x] %}}{{% endfor %}}{{{{ n.x }}}}",
    "{{% set n = namespace(x='ab') %}}{{% for i in range(60) %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}{{{{ {0} }}}}",
    "{{% if {0} %}}a{{% else %}}b{{% endif %}}", "{{% generation %}}{{{{ {0} }}}}{{% endgeneration %}}",
    "{{% include {0} %}}", "{{% import {0} as x %}}", "{{% extends {0} %}}",
    "{{% filter upper %}}{{{{ {0} }}}}{{% endfilter %}}", "{{% call f({0}) %}}{{% endcall %}}",
    "{{% break %}}{{{{ {0} }}}}", "{{% do {0} %}}", "{{# {0} #}}", "{{% raw %}}{0}",
    "{{% for i in [[[1]], 2] recursive %}}{{{{ loop([[i]]) }}}}{{{{ {0} }}}}{{% endfor %}}", "{0}",
    "{{% {0} %}}", "{{% block a %}}{{{{ self.a() }}}}{{{{ {0} }}}}{{% endblock %}}",
    "{{% trans %}}{0}{{% endtrans %}}",
)  # fmt: skip


@cache
def worker() -> Worker:
    return Worker(seconds=SECONDS, memory=200 << 20, size=2_000_000)


def make(random: random.Random) -> str:
    """A template."""
    if random.random() < 0.15:
        data = random.choice(FRAMES).format(random.choice(EXPRESSIONS)).encode()
        return mutations.spoiled(data, random).decode("utf-8", "surrogateescape")
    parts = [random.choice(FRAMES).format(random.choice(EXPRESSIONS)) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    if random.random() < 0.3:
        parts.insert(0, texts.text(random, 1_000_000))
    return "".join(parts)


def run(made: str, folder: Path) -> bool:
    refusals, before, began, told = Refusals(), children() - waiting(), time.monotonic(), ""
    variables = {"messages": [{"role": "user", "content": "hello"}], "bos_token": "<bos>", "file": str(folder / "x")}
    with refusals.allowed():
        told = worker().render(made, variables)
    seconds = time.monotonic() - began
    demand(seconds < ALLOWED, f"{seconds:.1f} s")
    demand(len(told) <= max(2_000_000, 24 * (len(made) + 500)), f"{len(told):,} characters")
    secrets = re.findall(r"root:x:|<class '(?!jinja2)|<module|<built-in|0x7f[0-9a-f]{6}|uid=\d", told)
    demand(not secrets or any(s in made for s in secrets), f"it saw {secrets[:3]}")
    check_processes(before)
    worker().seconds = 10.0  # in which an interpreter starts on any machine
    demand(worker().render("{{ a }}", {"a": "é<"}) == "é<", "the next template fails")
    worker().seconds = SECONDS
    demand(not list(folder.iterdir()), "a template wrote a file")
    return refusals.none


def waiting() -> set[int]:
    """The process that waits for the next template."""
    return set() if worker()._process is None else {worker()._process.pid}


def check_processes(before: set[int]) -> None:
    """No process has come but the one that waits, and the one that waited before has gone if another does."""
    left = children() - before - waiting()
    demand(not left, f"processes left behind: {left}")


def children() -> set[int]:
    """Processes that this one has started and that are there, where the operating system tells."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


KIND = Kind("chat-templates", make, run, count=40)
