"""A model's chat template, compiled: messages in, prompt text out.

The template comes with the model and is a stranger's program, so it runs in Jinja's sandbox. The environment is the one that
transformers gives templates (its functions, filters and tags), without loading transformers for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(ValueError):
    """The template is broken, or refuses the messages."""


class ChatTemplate:
    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(str(error)) from error

    def render(self, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
        """The conversation as text, up to where the assistant's next answer starts."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **special_tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ChatTemplateError(str(error)) from error


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  a class attribute by Jinja's definition

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML characters, which would reach the model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)
