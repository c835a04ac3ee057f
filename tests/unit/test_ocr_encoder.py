"""Pictures by the words on them: equal to the text side given those words, in its space, and found by words."""

from __future__ import annotations

from typing import Self

import numpy as np
import pytest
from PIL import Image

from pgembed.documents.ocr import Ocr
from pgembed.encoders import EncoderPolicy, Needs, Settings, load_encoder, split_spec
from pgembed.encoders import ocr as ocr_encoder
from pgembed.encoders.base import what_differs
from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.ocr import OcrEncoder
from pgembed.errors import EncoderError, InvalidInput, MissingExtra, UnknownEncoder
from tests.documents import screen

LITE = LiteEncoder.load("lite", {})
SHOES = screen(600, 200, {(20, 30): "A pair of red shoes", (20, 90): "Add to the basket"})
TRAINS = screen(600, 200, {(20, 30): "The museum of steam engines"})


@pytest.fixture(scope="module")
def encoder() -> OcrEncoder:
    loaded = load_encoder("ocr+builtin:lite", {"threads": 1})
    assert isinstance(loaded, OcrEncoder)
    return loaded


def test_a_picture_is_its_words(encoder: OcrEncoder) -> None:
    words = "A pair of red shoes\nAdd to the basket"
    expected = LITE.encode_text([words, "The museum of steam engines"])
    for encode in (encoder.encode_screenshot, encoder.encode_image):
        assert np.allclose(encode([SHOES, TRAINS]), expected, atol=1e-6)
        assert np.allclose(encode([TRAINS], role="query"), expected[1:], atol=1e-6)


def test_words_go_straight_to_the_text_side(encoder: OcrEncoder) -> None:
    texts = ["red shoes", "a locomotive"]
    for role in ("document", "query"):
        assert np.array_equal(encoder.encode_text(texts, role=role), LITE.encode_text(texts, role=role))
    found = encoder.encode_text(texts, role="query") @ encoder.encode_screenshot([SHOES, TRAINS]).T
    assert found.argmax(axis=1).tolist() == [0, 1]


def test_it_shares_the_space_and_has_a_fingerprint_of_its_own(
    encoder: OcrEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoder.spec == "ocr+builtin:lite"
    assert (encoder.space, encoder.dim, encoder.metric) == (LITE.space, LITE.dim, LITE.metric)
    assert encoder.static_text == LITE.static_text
    assert encoder.fingerprint != LITE.fingerprint
    monkeypatch.setattr(ocr_encoder, "models_digest", lambda: "others")
    other = OcrEncoder(LITE)
    assert what_differs(encoder.fingerprint, other.fingerprint) == "reading"


def test_a_picture_without_words_is_told(encoder: OcrEncoder) -> None:
    with pytest.raises(InvalidInput, match=r"The picture of 64 x 48 pixels has no words that 'ocr.builtin:lite' could"):
        encoder.encode_screenshot([Image.new("RGB", (64, 48), "grey")])


def test_the_spec_names_both_kinds() -> None:
    assert split_spec("ocr+builtin:lite") == ("ocr", "builtin:lite")
    assert split_spec("ocr+onnx:/models/a+b:c") == ("ocr", "onnx:/models/a+b:c")
    assert split_spec("onnx:/models/a+b") == ("onnx", "/models/a+b")
    with pytest.raises(UnknownEncoder, match="No encoder kind 'nothing' is installed"):
        load_encoder("ocr+nothing:x")
    with pytest.raises(UnknownEncoder, match="'lite' is not an encoder spec"):
        load_encoder("ocr:lite")
    with pytest.raises(InvalidInput, match="builtin:lite has no setting 'x'"):
        load_encoder("ocr+builtin:lite", {"x": 1})


def test_a_policy_has_to_allow_both_kinds_and_what_they_reach_for() -> None:
    for kinds in (("ocr",), ("builtin",)):
        with pytest.raises(EncoderError, match=r"Encoder 'ocr.builtin:lite' is not allowed here"):
            load_encoder("ocr+builtin:lite", policy=EncoderPolicy(kinds=kinds))
    load_encoder("ocr+builtin:lite", policy=EncoderPolicy(kinds=("ocr", "builtin")))
    with pytest.raises(EncoderError, match="reads /elsewhere, which is outside of the model directory"):
        load_encoder("ocr+onnx:/elsewhere", policy=EncoderPolicy())


class Blind(LiteEncoder):
    """An encoder of pictures alone."""

    modalities = frozenset({"image"})

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        return cls()

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        return Needs()


def test_an_encoder_without_a_text_side_is_refused() -> None:
    with pytest.raises(EncoderError, match="takes no text, so there is nothing to encode words with"):
        OcrEncoder(Blind())


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.documents.ocr.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"needs the extra 'ocr'.*pgembed-multimodal\[ocr\]"):
        Ocr()
