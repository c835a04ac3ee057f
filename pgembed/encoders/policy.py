"""Which encoders may be loaded: a catalog is data, and who may write it must not choose what runs or is read here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pgembed.encoders.base import Needs
from pgembed.errors import EncoderError

MODEL_DIR = "~/.cache/pgembed/models"
YES = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class EncoderPolicy:
    """What may be loaded from a registration.

    ``kinds`` lists kinds (``open_clip``) or whole specs; None allows every kind installed. Local files must lie below
    one of ``model_dirs``. ``hosts`` lists the servers that may be sent rows, each ``name`` or ``name:port``. ``code``
    allows what runs code that comes with a model: pickles, and repositories with code of their own.
    """

    kinds: tuple[str, ...] | None = None
    model_dirs: tuple[Path, ...] = (Path(MODEL_DIR),)
    hosts: tuple[str, ...] = ()
    code: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """From PGEMBED_ALLOW_ENCODERS and PGEMBED_ALLOW_HOSTS, lists with commas; PGEMBED_MODEL_DIR, as PATH is; and
        PGEMBED_ALLOW_MODEL_CODE, 1 or true."""
        kinds = environment.get("PGEMBED_ALLOW_ENCODERS")
        folders = environment.get("PGEMBED_MODEL_DIR") or MODEL_DIR
        return cls(
            kinds=None if kinds is None else _list(kinds),
            model_dirs=tuple(Path(folder) for folder in folders.split(os.pathsep)),
            hosts=_list(environment.get("PGEMBED_ALLOW_HOSTS", "")),
            code=environment.get("PGEMBED_ALLOW_MODEL_CODE", "").strip().lower() in YES,
        )

    def check_kind(self, spec: str, scheme: str) -> None:
        """Raises EncoderError where neither the kind nor the spec is allowed."""
        if self.kinds is not None and scheme not in self.kinds and spec not in self.kinds:
            raise EncoderError(
                f"Encoder '{spec}' is not allowed here.",
                f"Allow it: --allow-encoder {scheme}, or name it in PGEMBED_ALLOW_ENCODERS.",
            )

    def check_needs(self, spec: str, needs: Needs) -> None:
        """Raises EncoderError for the first file, server or piece of code that is not allowed."""
        folders = [folder.expanduser().resolve() for folder in self.model_dirs]
        for file in needs.files:
            path = Path(file).expanduser().resolve()
            if not any(path.is_relative_to(folder) for folder in folders):
                raise EncoderError(
                    f"Encoder '{spec}' reads {file}, which is outside of the model directory {self.model_dirs[0]}.",
                    f"Allow it: --model-dir {path.parent}, or name that folder in PGEMBED_MODEL_DIR.",
                )
        for host in needs.hosts:
            if host not in self.hosts:
                raise EncoderError(
                    f"Encoder '{spec}' sends rows to {host}, which is not allowed here.",
                    f"Allow it: --allow-host {host}, or name it in PGEMBED_ALLOW_HOSTS.",
                )
        if needs.code is not None and not self.code:
            raise EncoderError(
                f"Encoder '{spec}' may run code that comes with its model: {needs.code}.",
                "If you trust it, allow it: --allow-model-code, or set PGEMBED_ALLOW_MODEL_CODE=1.",
            )


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
