"""Strategies of one's own on a command line: `my_module:Rule(0.2)` is that object, made when it is needed.

The module is one that is installed or lies in the current folder. Arguments are literals; nothing else is evaluated.
"""

import ast
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_dgemma.diffusion.settings import STRATEGIES, GenerationConfig
from mlx_dgemma.errors import DGemmaError, first_line

FORM = "my_module:Rule(0.2)"
FIELDS = (*STRATEGIES, "token_choice", "settling")


def settings_of(values: dict[str, int | float | str]) -> GenerationConfig:
    """Settings of which strategies are given as texts.

    Raises:
        DGemmaError: a text that names no strategy, and what `GenerationConfig` refuses.
    """
    given: dict[str, Any] = {name: _value(name, value) for name, value in values.items()}  # it checks their types
    return GenerationConfig(**given)


def _value(name: str, value: int | float | str) -> object:
    is_word = name == "token_choice" and ":" not in str(value)
    if name not in FIELDS or is_word or not isinstance(value, str):
        return value
    try:
        return resolve(value)
    except DGemmaError as error:
        raise DGemmaError(f"{name}: {error}") from None


def resolve(text: str) -> object:
    """The object that a text like `my_module:Rule(0.2)` or `my_module:RULE` names; a class is called."""
    module, names, arguments = _parsed(text)
    found: object = _imported(module)
    for name in names:
        if not hasattr(found, name):
            raise DGemmaError(f"{module} has no {'.'.join(names)}")
        found = getattr(found, name)
    if arguments is None and not isinstance(found, type):
        return found
    if not callable(found):
        raise DGemmaError(f"{'.'.join(names)} in {module} takes no arguments")
    positional, by_name = arguments or ([], {})
    try:
        return found(*positional, **by_name)
    except (TypeError, ValueError, AttributeError) as error:
        raise DGemmaError(f"{text} cannot be made: {first_line(error)}") from None


def source_of(text: str) -> Path | None:
    """The file of the module that a text names, None for one without a file."""
    spec = find_spec(_parsed(text)[0])
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _parsed(text: str) -> tuple[str, list[str], tuple[list[object], dict[str, object]] | None]:
    """Module, dotted name in it, and the call's arguments if there is a call."""
    module, _, expression = text.partition(":")
    try:
        node = ast.parse(expression.strip(), mode="eval").body
        arguments = None
        if isinstance(node, ast.Call):
            by_name = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
            arguments = [ast.literal_eval(argument) for argument in node.args], by_name
            if len(by_name) < len(node.keywords):
                raise ValueError("** is no literal")
            node = node.func
        return module.strip(), _dotted(node), arguments
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise DGemmaError(f"{text!r} is not of the form {FORM}, with literal arguments") from None


def _dotted(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    if isinstance(node, ast.Name):
        return [node.id]
    raise ValueError("not a name")


def _imported(name: str) -> object:
    here = os.getcwd()
    if here not in sys.path:  # a console script does not look there
        sys.path.append(here)
    try:
        return import_module(name)
    except (ImportError, SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise DGemmaError(f"module {name!r} cannot be imported ({first_line(error)})") from None
