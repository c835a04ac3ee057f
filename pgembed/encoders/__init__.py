"""Encoders: the protocol, and the registry of kinds by scheme (entry-point group ``pgembed.encoders``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgembed.encoders.base import (
    MODALITIES,
    Encoder,
    Metric,
    Modality,
    Needs,
    Role,
    Settings,
    fingerprint_of,
    named_fingerprint,
)
from pgembed.encoders.policy import EncoderPolicy
from pgembed.errors import EncoderMismatch, UnknownEncoder

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "MODALITIES", "Encoder", "EncoderPolicy", "Metric", "Modality", "Needs", "Role", "Settings", "fingerprint_of",
    "kinds", "load_encoder", "load_kind", "load_registered", "named_fingerprint", "split_spec",
]  # fmt: skip

GROUP = "pgembed.encoders"


def kinds() -> dict[str, EntryPoint]:
    """The encoder kinds that are installed, by scheme."""
    from importlib.metadata import entry_points  # slow to import, and a process that decodes pictures asks no kind

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def split_spec(spec: str) -> tuple[str, str]:
    """``open_clip:ViT-B-32/openai`` -> ``("open_clip", "ViT-B-32/openai")``. Raises UnknownEncoder without a scheme.

    Of a kind before another, ``ocr+builtin:lite``, the name is the other's spec: ``("ocr", "builtin:lite")``.
    """
    scheme, colon, name = spec.partition(":")
    if not colon or not scheme or not name:
        raise UnknownEncoder(f"'{spec}' is not an encoder spec.", "Write KIND:NAME, for example builtin:lite.")
    first, plus, second = scheme.partition("+")
    return (first, f"{second}:{name}") if plus else (scheme, name)


def load_encoder(spec: str, settings: Settings | None = None, *, policy: EncoderPolicy | None = None) -> Encoder:
    """Load the encoder that ``spec`` names. Raises UnknownEncoder, EncoderError or MissingExtra.

    Without a policy everything is allowed, as to the person who types the spec; what comes from a catalog is loaded
    under one.
    """
    if policy is not None:
        for scheme in spec.partition(":")[0].split("+"):
            policy.check_kind(spec, scheme)
    kind, name = load_kind(spec)
    if policy is not None:
        policy.check_needs(spec, kind.needs(name, settings or {}))
    return kind.load(name, settings or {})


def load_kind(spec: str) -> tuple[type[Encoder], str]:
    """The class of a spec's kind, and the name that it loads. Raises UnknownEncoder."""
    scheme, name = split_spec(spec)
    installed = kinds()
    if scheme not in installed:
        known = ", ".join(sorted(installed)) or "none"
        raise UnknownEncoder(f"No encoder kind '{scheme}' is installed (for '{spec}').", f"Installed kinds: {known}.")
    return installed[scheme].load(), name


def load_registered(
    name: str,
    spec: str,
    settings: Settings,
    *,
    fingerprint: str,
    dim: int,
    normalized: bool,
    policy: EncoderPolicy,
) -> Encoder:
    """Load a registered encoder. Raises EncoderMismatch where it is not what was registered, and says what differs."""
    encoder = load_encoder(spec, settings, policy=policy)
    differs = encoder.differs_from(fingerprint)
    for what, same, registered, loaded in (
        (differs, differs is None, fingerprint, encoder.fingerprint),
        ("dimensions", dim == encoder.dim, dim, encoder.dim),
        ("normalization", normalized == encoder.normalized, normalized, encoder.normalized),
    ):
        if not same:
            here, there = (f" ({str(value)[:12]})" for value in (loaded, registered))
            if here == there:
                here = there = ""
            raise EncoderMismatch(
                f"Encoder '{name}' ({spec}) has other {what} here{here} than it was registered with{there};"
                " its vectors would not compare with those that are there.",
                "Load what it was registered with, or register the new one under another name and attach anew.",
            )
    return encoder
