"""Help with examples, for the commands."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandParser, DjangoHelpFormatter


class _Formatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Leaves the lines of examples as they are."""


def parser_with(
    create: Callable[..., CommandParser],
    examples: Sequence[str],
    program: str,
    command: str,
    **options: Any,  # noqa: ANN401
) -> CommandParser:
    """The parser that ``create`` makes, with examples of arguments at the end of its help."""
    lines = "\n".join(f"  manage.py {command} {one}".rstrip() for one in examples)
    return create(program, command, epilog=f"examples:\n{lines}", formatter_class=_Formatter, **options)
