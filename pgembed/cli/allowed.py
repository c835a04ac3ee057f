"""The options of every command that loads encoders: what a catalog may make this process load, read and send."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgembed.cli.app import settings

if TYPE_CHECKING:
    from pgembed.encoders import EncoderPolicy

PANEL = "Encoders that may be loaded"


def policy(
    allow_encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this kind or spec; may be repeated. Default: PGEMBED_ALLOW_ENCODERS, or every kind installed.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    model_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="Local weights must lie below this folder; may be repeated. Default: PGEMBED_MODEL_DIR.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows and queries may be sent to this server; may be repeated. Default: PGEMBED_ALLOW_HOSTS.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    allow_model_code: Annotated[
        bool,
        typer.Option(
            "--allow-model-code",
            help="Also pickles, and models that bring code of their own. Default: PGEMBED_ALLOW_MODEL_CODE.",
            rich_help_panel=PANEL,
        ),
    ] = False,
) -> "EncoderPolicy":
    """What the options say, and the environment where they say nothing."""
    from pgembed.encoders import EncoderPolicy

    default = EncoderPolicy.from_environment()
    return EncoderPolicy(
        kinds=tuple(allow_encoder) if allow_encoder else default.kinds,
        model_dirs=tuple(model_dir) if model_dir else default.model_dirs,
        hosts=tuple(allow_host) if allow_host else default.hosts,
        code=allow_model_code or default.code,
    )


def loads_encoders(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``policy``, before its last one; ``database()`` then holds to what they say."""
    options = inspect.signature(policy).parameters
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_policy(**given: Any) -> None:  # noqa: ANN401
        settings.encoders = policy(**{name: given.pop(name) for name in options})
        command(**given)

    *first, last = own.parameters.values()
    with_policy.__signature__ = own.replace(parameters=[*first, *options.values(), last])  # pyright: ignore[reportAttributeAccessIssue]
    return with_policy
