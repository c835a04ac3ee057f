"""The registry of encoder kinds: what a spec means, who may load it, and how third parties add theirs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from pgembed import encoders
from pgembed.encoders import (
    Encoder,
    EncoderPolicy,
    Modality,
    Needs,
    Settings,
    fingerprint_of,
    kinds,
    load_encoder,
    load_registered,
    named_fingerprint,
    split_spec,
)
from pgembed.encoders.base import what_differs
from pgembed.errors import EncoderError, EncoderMismatch, UnknownEncoder, UnsupportedModality


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

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        return Needs(
            files=tuple(settings.get("files", ())), hosts=tuple(settings.get("hosts", ())), code=settings.get("code")
        )


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
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries.select(group=group))


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
    with pytest.raises(UnknownEncoder, match=r"builtin, .*gone, .*length, .*open_clip"):
        load_encoder("size:chars")


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("allow", [("length",), ("length:chars",), ("builtin", "length"), None])
def test_what_is_allowed_is_loaded(allow: tuple[str, ...] | None) -> None:
    assert load_encoder("length:chars", policy=EncoderPolicy(kinds=allow)).dim == 1


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize("allow", [(), ("builtin",), ("length:words",), ("length:chars:",), ("leng",)])
def test_what_is_not_allowed_is_not_even_imported(allow: tuple[str, ...]) -> None:
    for spec in ("length:chars", "gone:x", "nonsense:x"):
        with pytest.raises(EncoderError, match=f"'{spec}' is not allowed here.*--allow-encoder"):
            load_encoder(spec, policy=EncoderPolicy(kinds=allow))


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


@pytest.mark.usefixtures("third_party")
def test_files_below_a_model_directory_named_hosts_and_trusted_code_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    policy = EncoderPolicy(model_dirs=(Path("/nowhere"), tmp_path), hosts=("example.org:8080",), code=True)
    settings = {"files": [str(tmp_path / "weights")], "hosts": ["example.org:8080"], "code": "a pickle"}
    assert load_encoder("length:chars", settings, policy=policy).dim == 1


@pytest.mark.usefixtures("third_party")
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"files": ["/etc/passwd"]}, r"reads /etc/passwd, which is outside of .*models\. Allow it: --model-dir /etc"),
        ({"files": ["{models}/../secret"]}, r"outside of the model directory"),
        ({"files": ["{models}/link"]}, r"outside of the model directory"),
        ({"hosts": ["example.org"]}, r"sends rows to example\.org, .* Allow it: --allow-host example\.org"),
        ({"code": "a pickle"}, r"may run code .*: a pickle\. .*--allow-model-code"),
    ],
)
def test_what_a_catalog_may_not_reach_for_is_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "link").symlink_to("/etc/hostname")
    settings = {key: [item.format(models=models) for item in value] if key == "files" else value
                for key, value in settings.items()}  # fmt: skip
    with pytest.raises(EncoderError, match=sentence):
        load_encoder("length:chars", settings, policy=EncoderPolicy(model_dirs=(models,)))
    assert load_encoder("length:chars", settings).dim == 1  # whoever types it is trusted


def test_a_policy_is_read_from_the_environment() -> None:
    assert EncoderPolicy.from_environment({}) == EncoderPolicy()
    given = {"PGEMBED_ALLOW_ENCODERS": "builtin, http", "PGEMBED_MODEL_DIR": "/a:/b", "PGEMBED_ALLOW_HOSTS": "x.org,"}
    expected = EncoderPolicy(kinds=("builtin", "http"), model_dirs=(Path("/a"), Path("/b")), hosts=("x.org",))
    assert EncoderPolicy.from_environment(given) == expected


def test_a_fingerprint_says_which_part_differs() -> None:
    one = named_fingerprint(weights="a", tokenizer="b")
    assert one == named_fingerprint(weights="a", tokenizer="b")
    assert what_differs(one, named_fingerprint(weights="a", tokenizer="c")) == "tokenizer"
    assert what_differs(one, named_fingerprint(weights="b", tokenizer="a")) == "weights and tokenizer"
    assert what_differs(fingerprint_of("a"), fingerprint_of("b")) == "fingerprint"
    assert named_fingerprint(weights="a", tokenizer="c")[:12] != one[:12]


@pytest.mark.usefixtures("third_party")
def test_a_registered_encoder_must_be_what_was_registered() -> None:
    loaded = load_encoder("length:chars")
    facts: dict[str, Any] = {
        "fingerprint": loaded.fingerprint, "dim": 1, "normalized": True, "policy": EncoderPolicy(),
    }  # fmt: skip
    assert load_registered("n", "length:chars", {}, **facts).dim == 1
    for change, what in (
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"dim": 2}, "dimensions"),
        ({"normalized": False}, "normalization"),
    ):
        with pytest.raises(EncoderMismatch, match=f"'n' .length:chars. has other {what} here"):
            load_registered("n", "length:chars", {}, **{**facts, **change})


class PromptedEncoder(LengthEncoder):
    """One that counts a prompt before each query."""

    def embed_query_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed_texts([f"query: {text}" for text in texts])


def test_a_query_is_encoded_in_its_own_way_where_the_encoder_has_one() -> None:
    encoder = PromptedEncoder.load("chars", {})
    assert encoder.encode_text(["abc"]).tolist() == [[3]]
    assert encoder.encode_text(["abc"], role="query").tolist() == [[10]]
    pixel = PixelEncoder.load("chars", {})
    assert pixel.encode_image([PIL.Image.new("RGB", (5, 3))], role="query").tolist() == [[5]]
