"""Rendering a chat template. Needs jinja2 and the standard library only, so that it can run as a program of its own.

As a program it reads a JSON line {"source": …, "variables": {…}} and writes a line {"text": …} or {"error": …}, again
and again: a template comes with a download, and must not get more time, memory or files than rendering takes.
"""

import json
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes of address space, the interpreter included


class Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def render(source: str, variables: dict[str, Any]) -> str:
    """The text of a template, in the environment that transformers gives it.

    Raises:
        TemplateError: a template that is none, or that refuses the variables; and whatever else its code runs into.
    """
    return _compiled(source).render(**variables)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson  # Jinja's own escapes HTML
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def told(error: BaseException) -> str:
    """An error in one line: the template's own words, or what its code ran into."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, TemplateError) and lines[0] else f"{type(error).__name__}: {lines[0]}"


def main() -> None:
    """Serves requests until stdin ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # a Mac does not bound it: there the parent looks at what is used
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = {"text": render(request["source"], request["variables"])}
        except Exception as error:  # a template's code may raise anything
            answer = {"error": told(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
