"""Encoders: the protocol, and the registry of kinds by scheme (entry-point group ``pgembed.encoders``)."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from pgembed.encoders.base import MODALITIES, Encoder, Metric, Modality, Settings, fingerprint_of
from pgembed.errors import EncoderError, UnknownEncoder

__all__ = [
    "MODALITIES", "Encoder", "Metric", "Modality", "Settings", "fingerprint_of", "kinds", "load_encoder", "split_spec",
]  # fmt: skip

GROUP = "pgembed.encoders"


def kinds() -> dict[str, EntryPoint]:
    """The encoder kinds that are installed, by scheme."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def split_spec(spec: str) -> tuple[str, str]:
    """``open_clip:ViT-B-32/openai`` -> ``("open_clip", "ViT-B-32/openai")``. Raises UnknownEncoder without a scheme."""
    scheme, colon, name = spec.partition(":")
    if not colon or not scheme or not name:
        raise UnknownEncoder(f"'{spec}' is not an encoder spec.", "Write KIND:NAME, for example builtin:lite.")
    return scheme, name


def load_encoder(spec: str, settings: Settings | None = None, *, allow: Collection[str] | None = None) -> Encoder:
    """Load the encoder that ``spec`` names, with the settings of its registration.

    ``allow`` is the caller's own list of kinds or whole specs it will load, since a spec from the catalog is data and
    not to be trusted; None allows every kind installed. Raises UnknownEncoder, EncoderError or MissingExtra.
    """
    scheme, name = split_spec(spec)
    if allow is not None and scheme not in allow and spec not in allow:
        raise EncoderError(f"Encoder '{spec}' is not allowed here.", f"Allow it: --allow-encoder {scheme}")
    installed = kinds()
    if scheme not in installed:
        known = ", ".join(sorted(installed)) or "none"
        raise UnknownEncoder(f"No encoder kind '{scheme}' is installed (for '{spec}').", f"Installed kinds: {known}.")
    kind: type[Encoder] = installed[scheme].load()
    return kind.load(name, settings or {})
