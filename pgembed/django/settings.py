"""The setting PGEMBED: the one place for encoders, and for what queries and workers may read.

PGEMBED = {
    "encoders": {"lite": "builtin:lite", "shop": {"spec": "onnx:shop", "settings": {"threads": 2}}},
    "media": MediaPolicy(media_root=MEDIA_ROOT),
    "databases": {"archive": {"encoders": {"old": "builtin:lite"}}},
}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

from django.conf import settings

from pgembed.declared import EncoderSpec
from pgembed.encoders import EncoderPolicy
from pgembed.errors import InvalidInput
from pgembed.media import MediaPolicy
from pgembed.worker import WorkerOptions

ALLOW_DROP = "PGEMBED_ALLOW_DROP"  # in the environment of one `manage.py migrate`
_KEYS = ("encoders", "media", "load", "install", "allow_drop")


def encoders(alias: str) -> dict[str, EncoderSpec]:
    """The encoders of a database, by name. Raises InvalidInput for a setting that is none."""
    given = _option(alias, "encoders", {})
    if not isinstance(given, Mapping):
        raise InvalidInput(
            f"PGEMBED['encoders'] is {given!r}, and no mapping.", 'Write {"encoders": {"lite": "builtin:lite"}}.'
        )
    return {name: _encoder(name, one) for name, one in cast("Mapping[str, Any]", given).items()}


def media(alias: str) -> MediaPolicy | None:
    """Which pictures queries and rows may name."""
    return _option(alias, "media", None)


def load(alias: str) -> EncoderPolicy | None:
    """Which encoders may be loaded."""
    return _option(alias, "load", None)


def worker_options(alias: str, **options: Any) -> WorkerOptions:  # noqa: ANN401
    """How a worker of a database works: what it may read and load as here, and options of its own."""
    chosen: dict[str, Any] = {"media": media(alias), "encoders": load(alias), **options}
    return WorkerOptions(**{name: value for name, value in chosen.items() if value is not None})


def installs(alias: str) -> bool:
    """Whether ``migrate`` installs and upgrades pgembed."""
    return bool(_option(alias, "install", True))


def allows_drop(alias: str) -> bool:
    """Whether a migration may drop vectors."""
    return bool(_option(alias, "allow_drop", False)) or os.environ.get(ALLOW_DROP, "0") not in ("", "0")


def _encoder(name: str, given: object) -> EncoderSpec:
    if isinstance(given, str):
        return EncoderSpec(name, given)
    facts = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else {}
    if not isinstance(facts.get("spec"), str) or not facts.keys() <= {"spec", "settings"}:
        raise InvalidInput(
            f"PGEMBED['encoders']['{name}'] is {given!r}.",
            'Write its spec, "builtin:lite", or {"spec": "builtin:lite", "settings": {}}.',
        )
    return EncoderSpec(name, facts["spec"], dict(facts.get("settings", {})))


def _option(alias: str, name: str, usual: Any) -> Any:  # noqa: ANN401
    given: Mapping[str, Any] = getattr(settings, "PGEMBED", {})
    databases: Mapping[str, Mapping[str, Any]] = given.get("databases", {})
    for part in (given, *databases.values()):
        if unknown := sorted(set(part) - {*_KEYS, "databases"}):
            raise InvalidInput(
                f"PGEMBED has no option {', '.join(map(repr, unknown))}.", f"It has: {', '.join(_KEYS)}, databases."
            )
    return databases.get(alias, {}).get(name, given.get(name, usual))
