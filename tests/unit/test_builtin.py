"""builtin:lite: what it finds, and what its vectors promise."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgembed.encoders import load_encoder
from pgembed.encoders.builtin import TEXT_SETTINGS, LiteEncoder, lite_files, lite_static_text, on_white, plain_ground
from pgembed.errors import EncoderError, InvalidInput, UnknownEncoder
from pgembed.static_text import StaticText

DATA = Path(__file__).parents[1] / "data"
EMOJI, PHOTOS = DATA / "emoji", DATA / "photos"
THINGS = ("dog", "tomato", "car", "umbrella")
VENDORS = ("noto", "twemoji", "fluent")


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    return LiteEncoder.load("lite", {"threads": 1})


@pytest.fixture(scope="module")
def text() -> StaticText:
    return lite_static_text()


def drawings(vendor: str) -> list[Image.Image]:
    return [Image.open(EMOJI / vendor / f"{thing}.png") for thing in THINGS]


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_drawing_is_nearest_to_its_own_word(encoder: LiteEncoder, vendor: str) -> None:
    scores = encoder.encode_text(THINGS) @ encoder.encode_image(drawings(vendor)).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert scores.argmax(axis=0).tolist() == [0, 1, 2, 3]


def test_a_drawing_is_nearest_to_the_same_thing_drawn_by_somebody_else(encoder: LiteEncoder) -> None:
    noto, fluent = encoder.encode_image(drawings("noto")), encoder.encode_image(drawings("fluent"))
    assert (noto @ fluent.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_words_of_like_meaning_are_near(encoder: LiteEncoder) -> None:
    dog, puppy, car = encoder.encode_text(["a dog", "a puppy", "a car"])
    assert dog @ puppy > dog @ car + 0.2


def test_vectors_have_the_dimension_and_length_that_the_encoder_tells(encoder: LiteEncoder) -> None:
    for vectors in (encoder.encode_text(THINGS), encoder.encode_image(drawings("noto"))):
        assert vectors.shape == (4, encoder.dim) == (4, 256)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert encoder.encode_text([]).shape == encoder.encode_image([]).shape == (0, 256)


def test_a_batch_gives_what_one_at_a_time_gives(encoder: LiteEncoder) -> None:
    pictures = [picture for vendor in VENDORS for picture in drawings(vendor)]  # more than go through at once
    alone = np.concatenate([encoder.encode_image([picture]) for picture in pictures])
    np.testing.assert_allclose(encoder.encode_image(pictures), alone, atol=1e-5)
    texts = ["a red car", "dog", "two dogs and a tomato under an umbrella"]
    alone = np.concatenate([encoder.encode_text([each]) for each in texts])
    np.testing.assert_array_equal(encoder.encode_text(texts), alone)


def test_two_loads_give_the_same_vectors(encoder: LiteEncoder) -> None:
    again = LiteEncoder.load("lite", {"threads": 2})
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode_text(THINGS), encoder.encode_text(THINGS))
    np.testing.assert_allclose(
        again.encode_image(drawings("noto")), encoder.encode_image(drawings("noto")), atol=1e-5
    )  # fmt: skip


def test_a_screenshot_is_encoded_as_a_picture_is(encoder: LiteEncoder) -> None:
    np.testing.assert_array_equal(
        encoder.encode_screenshot(drawings("noto")), encoder.encode_image(drawings("noto"))
    )  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (3, 1000), (1000, 3), (224, 224), (256, 640)])
def test_a_picture_of_any_shape_fits(encoder: LiteEncoder, size: tuple[int, int]) -> None:
    noise = Image.effect_noise(size, 80).convert("RGB")
    for picture in (noise, Image.new("RGB", size, "teal")):
        pixels = encoder.preprocess(picture)
        assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.uint8)
        assert np.isfinite(encoder.embed_pixels([pixels])).all()


def test_a_picture_on_a_plain_ground_is_seen_whole(encoder: LiteEncoder) -> None:
    tall = Image.new("RGB", (100, 300), "white")
    tall.paste((200, 0, 0), (40, 5, 60, 25))  # near the top, outside the middle square
    assert plain_ground(tall) == (255, 255, 255)
    assert (encoder.preprocess(tall)[..., 1] < 100).any()
    assert plain_ground(Image.linear_gradient("L").convert("RGB")) is None


def test_what_is_transparent_is_seen_as_white(encoder: LiteEncoder) -> None:
    clear = drawings("noto")[0]
    assert clear.mode == "RGBA"
    assert plain_ground(on_white(clear)) == (255, 255, 255)
    np.testing.assert_array_equal(encoder.preprocess(clear), encoder.preprocess(on_white(clear)))


@pytest.mark.parametrize("nothing", ["", "   ", "\U0001f436", "ᚠᚢᚦ"])
def test_a_text_without_a_known_word_is_refused_by_name(encoder: LiteEncoder, nothing: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encoder.encode_text(["a dog", nothing])
    assert f"'{nothing}'" in str(caught.value)


def test_unknown_words_are_left_out_of_a_text(encoder: LiteEncoder, text: StaticText) -> None:
    assert text.split("a ᚠᚢᚦ dog") == ["a", "dog"]
    np.testing.assert_array_equal(encoder.encode_text(["a ᚠᚢᚦ dog"]), encoder.encode_text(["a dog"]))


def test_words_are_split_as_the_docstring_says(text: StaticText) -> None:
    assert text.split("Café, CAFÉ!") == ["cafe", ",", "cafe", "!"]
    assert text.split("unaffordable") == ["una", "##ff", "##ord", "##able"]
    assert text.split("[UNK] [PAD]") == ["[", "un", "##k", "]", "[", "pad", "]"]
    assert text.split("dog dog") == ["dog", "dog"]
    assert text.split(f"{'a' * 101} dog") == ["dog"]
    assert len(text.split("dog " * 2000)) == 2000


def test_a_text_is_the_normalized_sum_of_its_tokens(encoder: LiteEncoder, text: StaticText) -> None:
    vectors = dict(text.tokens())
    for words in ("a red shoe", "dog dog cat", "Crème brûlée, warm"):
        total = np.sum([vectors[token] for token in text.split(words)], axis=0)
        np.testing.assert_allclose(encoder.encode_text([words])[0], total / np.linalg.norm(total), atol=1e-6)


def test_the_static_text_side_is_the_encoders(encoder: LiteEncoder, text: StaticText) -> None:
    assert text.model == encoder.static_text == f"builtin:lite@{text.fingerprint[:12]}"
    tokens = dict(text.tokens())
    assert TEXT_SETTINGS["unknown"] not in tokens
    assert len(tokens) == len(text.vocabulary) - 1
    assert all(np.isfinite(vector).all() and vector.any() for vector in tokens.values())
    assert text.dim == encoder.dim
    np.testing.assert_array_equal(text.encode(THINGS), encoder.encode_text(THINGS))


@pytest.mark.parametrize("name", ["tokens.npy", "token_scales.npy", "tokenizer.json", "picture.onnx"])
def test_other_weights_have_another_fingerprint(encoder: LiteEncoder, tmp_path: Path, name: str) -> None:
    shutil.copytree(str(lite_files()), tmp_path / "lite")
    assert LiteEncoder(tmp_path / "lite").fingerprint == encoder.fingerprint
    changed = tmp_path / "lite" / name
    data = bytearray(changed.read_bytes())
    if name == "tokenizer.json":
        data += b"\n"
    else:
        data[-1] ^= 1
    changed.write_bytes(data)
    other = LiteEncoder(tmp_path / "lite")
    assert other.fingerprint != encoder.fingerprint
    assert other.space != encoder.space
    assert (other.static_text != encoder.static_text) == (name != "picture.onnx")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"tokenizer\.json"):
        LiteEncoder(tmp_path)


def test_only_the_built_in_name_and_setting_are_taken() -> None:
    assert isinstance(load_encoder("builtin:lite"), LiteEncoder)
    with pytest.raises(UnknownEncoder, match="large"):
        load_encoder("builtin:large")
    with pytest.raises(InvalidInput, match="device"):
        LiteEncoder.load("lite", {"device": "cuda"})
    for wrong in (0, -1, "2", 1.5, True):
        with pytest.raises(InvalidInput, match="threads"):
            LiteEncoder.load("lite", {"threads": wrong})


def test_the_shipped_files_stay_small() -> None:
    assert sum(len(file.read_bytes()) for file in lite_files().iterdir()) <= 30 * 2**20


def test_photographs_are_found_by_words_among_drawings(encoder: LiteEncoder) -> None:
    named = {
        "giant panda": "panda",
        "koala": "koala",
        "hen": "hens",
        "goldfish": "goldfish",
        "screwdriver": "screwdriver",
    }
    photographs = [Image.open(PHOTOS / f"{file}.jpg") for file in named.values()]
    found = encoder.encode_image([*photographs, *drawings("noto")])
    assert (encoder.encode_text(list(named)) @ found.T).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]
    assert (encoder.encode_text(THINGS) @ found.T).argmax(axis=1).tolist() == [5, 6, 7, 8]
