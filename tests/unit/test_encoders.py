"""The registry of encoder kinds: what a spec means, who may load it, and how third parties add theirs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from pgembed import encoders
from pgembed.encoders import Encoder, Modality, Settings, fingerprint_of, kinds, load_encoder, split_spec
from pgembed.errors import EncoderError, UnknownEncoder, UnsupportedModality


class LengthEncoder(Encoder):
    """A third party's kind: the length of a text, as a vector."""

    scheme: ClassVar[str] = "length"
    modalities: frozenset[Modality] = frozenset({"text"})
    dim = 1

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        encoder = cls()
        encoder.spec = f"length:{name}"
        encoder.scale = float(settings.get("scale", 1))
        encoder.fingerprint = fingerprint_of(name, str(encoder.scale))
        return encoder

    scale: float

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text) * self.scale] for text in texts], dtype=np.float32)


class PixelEncoder(LengthEncoder):
    """One that takes pictures only, through its own preprocessing."""

    modalities = frozenset({"image"})

    def preprocess(self, picture: PIL.Image.Image) -> int:
        return picture.width

    def embed_pixels(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return np.array([[width] for width in pixels], dtype=np.float32)


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds more than pgembed's own, as an installed distribution would add them."""
    own = list(kinds().values())
    here = f"{__name__}:LengthEncoder"
    entries = EntryPoints(
        [*own, EntryPoint("length", here, encoders.GROUP), EntryPoint("gone", "no.such:Kind", encoders.GROUP)]
    )
    monkeypatch.setattr(encoders, "entry_points", lambda group: entries.select(group=group))


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("builtin:lite", ("builtin", "lite")),
        ("open_clip:ViT-B-32/openai", ("open_clip", "ViT-B-32/openai")),
        ("open_clip:hf-hub:org/repo", ("open_clip", "hf-hub:org/repo")),
        ("http:http://127.0.0.1:80/v1", ("http", "http://127.0.0.1:80/v1")),
    ],
)
def test_a_spec_is_a_kind_and_a_name(spec: str, parts: tuple[str, str]) -> None:
    assert split_spec(spec) == parts


@pytest.mark.parametrize("spec", ["", "lite", "builtin:", ":lite", ":"])
def test_what_is_no_spec_is_refused(spec: str) -> None:
    with pytest.raises(UnknownEncoder, match=f"'{spec}' is not an encoder spec.*builtin:lite"):
        load_encoder(spec)


def test_pgembeds_own_kinds_are_installed() -> None:
    assert {"builtin", "open_clip"} <= set(kinds())


def test_an_unknown_kind_names_those_that_are_installed() -> None:
    with pytest.raises(UnknownEncoder, match=r"No encoder kind 'clip' .*for 'clip:x'.*builtin, .*open_clip"):
        load_encoder("clip:x")


@pytest.mark.usefixtures("third_party")
def test_a_third_party_adds_a_kind_through_its_entry_point() -> None:
    assert "length" in kinds()
    encoder = load_encoder("length:chars", {"scale": 2})
    assert type(encoder).__name__ == "LengthEncoder"
    assert encoder.encode_text(["abc", ""]).tolist() == [[6], [0]]
    assert encoder.space == f"length:chars@{encoder.fingerprint[:12]}"
    with pytest.raises(UnknownEncoder, match="builtin, gone, length, open_clip"):
        load_encoder("size:chars")


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("allow", [["length"], ["length:chars"], ("builtin", "length"), None])
def test_what_is_allowed_is_loaded(allow: Sequence[str] | None) -> None:
    assert load_encoder("length:chars", allow=allow).dim == 1


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("allow", [[], ["builtin"], ["length:words"], ["length:chars:"], {"leng"}])
def test_what_is_not_allowed_is_not_even_imported(allow: Sequence[str]) -> None:
    for spec in ("length:chars", "gone:x", "nonsense:x"):
        with pytest.raises(EncoderError, match=f"'{spec}' is not allowed here.*--allow-encoder"):
            load_encoder(spec, allow=allow)


def test_an_encoder_refuses_modalities_it_does_not_take() -> None:
    encoder = LengthEncoder.load("chars", {})
    picture = PIL.Image.new("RGB", (5, 3))
    for encode in (encoder.encode_image, encoder.encode_screenshot):
        with pytest.raises(UnsupportedModality, match=r"'length:chars' takes text, not (image|screenshot)"):
            encode([picture])
    pixel = PixelEncoder.load("chars", {})
    assert pixel.encode_image([picture, picture]).tolist() == [[5], [5]]
    for refused in (lambda: pixel.encode_text(["a"]), lambda: pixel.encode_screenshot([picture])):
        with pytest.raises(UnsupportedModality, match="takes image, not"):
            refused()


def test_fingerprints_tell_parts_apart() -> None:
    assert fingerprint_of("ab", "c") != fingerprint_of("a", "bc")
    assert fingerprint_of("é") == fingerprint_of("é".encode())
    assert len(fingerprint_of()) == 64
