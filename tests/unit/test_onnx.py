"""onnx: exported folders give open_clip's vectors without torch, and what is wrong in one is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pgembed.cli.main import main
from pgembed.distilling.wordpiece import wordpiece_for
from pgembed.encoders import Needs, load_encoder, onnx, onnx_export
from pgembed.encoders.onnx import OnnxEncoder
from pgembed.encoders.onnx_export import Exported, export
from pgembed.encoders.onnx_inputs import Tokens, cleaner, pixels
from pgembed.encoders.onnx_manifest import ImageSide, Manifest
from pgembed.encoders.onnx_tokenizer import export_tokenizer
from pgembed.encoders.open_clip import OpenClipEncoder
from pgembed.errors import EncoderError, MissingExtra
from tests.open_clip_models import CONFIGS, TEXTS, make_model, make_tokenizer, pictures

REFERENCE = "clip-vit"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), REFERENCE)


@pytest.fixture(scope="module", autouse=True)
def _timed_shortly() -> Iterator[None]:
    """How exact the rates are that an export measures is nothing that these tests look at."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnx_export, "SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(f"open_clip:local-dir:{model}", {}, tmp_path_factory.mktemp("onnx") / "fp32")


@pytest.fixture(scope="module")
def torch_encoder(model: Path) -> OpenClipEncoder:
    return OpenClipEncoder.load(f"local-dir:{model}", {"device": "cpu"})


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def edit(folder: Path, change: Any) -> None:  # noqa: ANN401
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def same(first: Any, second: Any, texts: list[str] = TEXTS) -> float:  # noqa: ANN401
    words = np.abs(first.encode_text(texts) - second.encode_text(texts)).max()
    return float(max(words, np.abs(first.encode_image(pictures()) - second.encode_image(pictures())).max()))


def test_vectors_are_those_of_torch(exported: Exported, torch_encoder: OpenClipEncoder) -> None:
    encoder = load_encoder(f"onnx:{exported.folder}")
    assert same(encoder, torch_encoder) <= 1e-5
    assert np.array_equal(encoder.encode_screenshot(pictures()), encoder.encode_image(pictures()))
    assert encoder.encode_text([]).shape == encoder.encode_image([]).shape == (0, 32)
    assert encoder.encode_text(TEXTS).dtype == encoder.encode_image(pictures()).dtype == np.float32
    assert exported.parity["text"] <= 1e-5
    assert exported.parity["image"] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != REFERENCE])
def test_every_architecture_can_be_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "BATCHES", (2,))
    model = make_model(tmp_path / "model", name)
    found = export(f"open_clip:local-dir:{model}", {}, tmp_path / "onnx", measure=False)
    torch_encoder = OpenClipEncoder.load(f"local-dir:{model}", {"device": "cpu"})
    assert same(OnnxEncoder.load(str(tmp_path / "onnx"), {}), torch_encoder) <= 1e-4
    assert found.manifest.text is not None
    assert found.manifest.text.trim == (name not in ("coca", "siglip"))


def test_a_batch_is_what_its_members_are_alone(exported: Exported) -> None:
    encoder = OnnxEncoder.load(str(exported.folder), {"batch_size": 3})
    for encode, inputs in ((encoder.encode_text, TEXTS * 3), (encoder.encode_image, pictures() * 2)):
        alone = np.concatenate([encode([one]) for one in inputs])
        assert np.abs(encode(inputs) - alone).max() <= 1e-6
    assert encoder.batch_size == 3
    assert OnnxEncoder.load(str(exported.folder), {"batch_size": "auto", "threads": 1}).batch_size == 256


def test_facts(exported: Exported, torch_encoder: OpenClipEncoder) -> None:
    encoder = OnnxEncoder.load(str(exported.folder), {})
    assert encoder.dim == 32
    assert encoder.modalities == {"text", "image", "screenshot"}
    assert encoder.normalized
    assert encoder.metric == "cosine"
    assert encoder.space == torch_encoder.space  # a table filled by either is searched through the other
    assert encoder.fingerprint != torch_encoder.fingerprint
    assert OnnxEncoder.needs("/models/a", {}) == Needs(("/models/a",))
    words = f"pgembed encoder add shop onnx:{exported.folder} --space {torch_encoder.space}"
    assert exported.command("shop") == words
    assert exported.manifest.source is not None
    assert exported.manifest.source.fingerprint == torch_encoder.fingerprint


def test_its_tokenizer_is_that_of_its_folder(exported: Exported) -> None:
    encoder = OnnxEncoder.load(str(exported.folder), {})
    assert json.loads(str(encoder.tokenizer_json()))["model"]["type"] == "BPE"
    assert wordpiece_for(encoder).origin == "builtin:lite"  # SQL follows WordPiece alone


def test_it_runs_without_torch(exported: Exported) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'open_clip', 'onnx', 'transformers', 'torchvision'): sys.modules[name] = None\n"
        "from pgembed.encoders import load_encoder\n"
        f"print(load_encoder('onnx:{exported.folder}').encode_text(['a red dress'])[0, :3].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first = OnnxEncoder.load(str(exported.folder), {}).encode_text(["a red dress"])[0, :3]
    assert json.loads(done.stdout) == pytest.approx(first.tolist(), abs=1e-6)


def test_a_changed_weight_changes_the_fingerprint_and_a_note_does_not(folder: Path) -> None:
    before = OnnxEncoder.load(str(folder), {}).fingerprint
    (folder / "README.md").write_text("ours")
    edit(folder, lambda manifest: manifest.update(measured={}, source=None))
    assert OnnxEncoder.load(str(folder), {"threads": 1}).fingerprint == before
    edit(folder, lambda manifest: manifest["image"].update(mean=[0.1, 0.2, 0.3]))
    other = OnnxEncoder.load(str(folder), {}).fingerprint
    assert [a == b for a, b in zip(before.split()[1:], other.split()[1:], strict=True)] == [True, False, True]
    (folder / "text.onnx.data").write_bytes(b"weights that a graph keeps elsewhere")
    assert OnnxEncoder.load(str(folder), {}).fingerprint.split()[1] != before.split()[1]


def test_int8_says_what_it_loses_and_has_a_space_of_its_own(
    model: Path, exported: Exported, torch_encoder: OpenClipEncoder, tmp_path: Path
) -> None:
    found = export(f"open_clip:local-dir:{model}", {}, tmp_path / "int8", int8=True)
    encoder = OnnxEncoder.load(str(tmp_path / "int8"), {})
    assert 0 < found.loss["text"][0] <= found.loss["text"][1] < 0.02
    assert found.manifest.measured["loss_of_int8"]["image"]["max"] == found.loss["image"][1]
    assert encoder.space == f"onnx:{tmp_path / 'int8'}@{encoder.fingerprint[:12]}"
    assert found.command("x") == f"pgembed encoder add x onnx:{tmp_path / 'int8'}"
    assert same(encoder, torch_encoder) < 0.1
    assert found.sizes["text.onnx"] < exported.sizes["text.onnx"] / 3
    assert found.sizes["image.onnx"] < exported.sizes["image.onnx"]  # small as it is, most of it are no weights
    for rate, told in zip(found.rates, found.manifest.measured["rates"], strict=True):
        assert rate.fp32 is not None
        assert told["ratio_to_torch"] == round(rate.onnx / rate.torch, 3)
        assert told["ratio_to_fp32"] == round(rate.onnx / rate.fp32, 3)


def test_graphs_and_torch_are_timed_on_batches_of_the_same_size_with_the_same_threads(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: dict[str, set[int]] = {"onnx": set(), "torch": set()}
    graph, side = onnx._Graph.run, OpenClipEncoder._vectors

    def run(self: Any, value: Any) -> Any:  # noqa: ANN401
        batches["onnx"].add(len(value))
        return graph(self, value)

    def vectors(self: Any, batch: Any, encode: Any) -> Any:  # noqa: ANN401
        batches["torch"].add(len(batch))
        return side(self, batch, encode)

    def timed(calls: list[Any]) -> list[float]:
        for of in batches.values():
            of.clear()
        for call in calls:
            call()
        assert len(batches["onnx"]) == 1
        assert batches["onnx"] == batches["torch"]
        return [1.0] * len(calls)

    monkeypatch.setattr(onnx._Graph, "run", run)
    monkeypatch.setattr(OpenClipEncoder, "_vectors", vectors)
    monkeypatch.setattr(onnx_export, "_fastest", timed)
    found = export(f"open_clip:local-dir:{model}", {}, tmp_path / "onnx")
    assert found.threads == torch.get_num_threads()
    assert {rate.batch_size for rate in found.rates} == {1, 8, 32}
    assert {rate.fp32 for rate in found.rates} == {None}  # nothing was quantized


def test_int8_is_smaller_where_weights_stand_in_files_of_their_own(
    model: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "ONE_FILE", 0)
    monkeypatch.setattr(onnx_export, "BATCHES", (2,))
    found = export(f"open_clip:local-dir:{model}", {}, tmp_path / "int8", int8=True)
    assert sorted(os.listdir(found.folder)) == [
        "image.onnx", "image.onnx.data", "manifest.json", "text.onnx", "text.onnx.data", "tokenizer.json",
    ]  # fmt: skip
    for side, part in (("text", 1 / 3), ("image", 1)):
        weighs = sum(size for name, size in found.sizes.items() if name.startswith(side))
        assert weighs < exported.sizes[f"{side}.onnx"] * part
    assert same(OnnxEncoder.load(str(found.folder), {}), OnnxEncoder.load(str(exported.folder), {})) < 0.1


# Tokenizers and pictures, against the originals


@pytest.fixture(scope="module")
def clip_tokens(exported: Exported) -> Tokens:
    return Tokens(Tokenizer.from_file(str(exported.folder / "tokenizer.json")), cleaner("x", "lower"), {})


def test_every_character_is_tokenized_as_by_open_clip(clip_tokens: Tokens) -> None:
    original = open_clip.SimpleTokenizer()
    characters = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    characters += [chr(code) for code in range(0x3100, 0x110000, 37) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{c}1'{c} " for c in characters[start : start + 8]) for start in range(0, len(characters), 8)]
    assert np.array_equal(clip_tokens.ids(texts)[0], original(texts).numpy())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_tokenized_as_by_open_clip(clip_tokens: Tokens, text: str) -> None:
    ids, lengths = clip_tokens.ids([text])
    assert ids.tolist() == open_clip.tokenizer.tokenize([text]).tolist()
    assert ids[0, lengths[0] - 1] == 49407
    assert not ids[0, lengths[0] :].any()


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_other_cleanups_and_tokenizers_of_the_hub(clean: Any, tmp_path: Path) -> None:  # noqa: ANN401
    make_tokenizer(tmp_path)
    for original in (
        open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12, clean=clean),
        open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=12, clean=clean, strip_sep_token=True),
        open_clip.SimpleTokenizer(context_length=20, clean=clean),
    ):
        found = export_tokenizer("x", original)
        replace = {int(old): new for old, new in found.replace.items()}
        ours = Tokens(Tokenizer.from_str(found.json), cleaner("x", found.cleanup), replace)
        assert found.cleanup == clean
        assert np.array_equal(ours.ids(TEXTS)[0], original(TEXTS).numpy())


def test_a_tokenizer_that_draws_lots_is_refused() -> None:
    with pytest.raises(EncoderError, match="a SimpleTokenizer, has a mode that cannot be exported"):
        export_tokenizer("x", open_clip.SimpleTokenizer(reduction_mask="random"))


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (224, 224)])
def test_pixels_are_those_of_open_clip(resize: Any, interpolation: Any, size: tuple[int, int]) -> None:  # noqa: ANN401
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    config = open_clip.transform.PreprocessCfg(
        size=size, resize_mode=resize, interpolation=interpolation, mean=mean, std=std, fill_color=9
    )
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    side = ImageSide("x", size, resize, interpolation, 9, mean, std)
    chance = np.random.default_rng(3)
    for width, height in ((300, 200), (64, 64), (33, 500), (7, 5), (80, 48), (225, 223), (1001, 333)):
        picture = PIL.Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.abs(pixels(picture, side) - transform(picture).numpy()).max() <= 1e-6


# What is wrong is told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), r"is of format 'pgembed-onnx', version 2; this pgembed reads"),
        (lambda m: m.pop("dim"), r"lacks 'dim'"),
        (lambda m: m.update(dim="x"), r"'dim' is 'x'"),
        (lambda m: m.update(dim=64), r"shape \(1, 32\) for one input; its manifest says 64 dimensions"),
        (lambda m: m.update(color=1), r"unknown key 'color'"),
        (lambda m: m["image"].update(std=[0, 1, 1]), r"'image.std' is \[0, 1, 1\]"),
        (lambda m: m["image"].update(resize="stretch"), r"'image.resize' is 'stretch'"),
        (lambda m: m["text"].update(file="../text.onnx"), r"'../text.onnx', which is not a name of the same folder"),
        (lambda m: m["text"].update(file="words.onnx"), r"'words.onnx', which is not there"),
        (lambda m: m["text"].update(input="words"), r"has no input 'words'\. It has \['ids'\]"),
        (lambda m: m["text"].update(output="words"), r"'text.onnx' .* does not run: "),
        (lambda m: m.update(text=None), r"must have 'text' both among its modalities and beside them"),
        (lambda m: m.update(modalities=["text", "image", "sound"]), r"'modalities' is"),
        (lambda m: m["text"].update(tokenizer="image.onnx"), r"tokenizer 'image.onnx' .* is not one"),
        (lambda m: m["image"].update(file="tokenizer.json"), r"could not load .*tokenizer.json"),
    ],
)
def test_a_wrong_manifest_is_told(folder: Path, change: Any, message: str) -> None:  # noqa: ANN401
    edit(folder, change)
    with pytest.raises(EncoderError, match=message) as caught:
        OnnxEncoder.load(str(folder), {})
    assert "\n" not in str(caught.value)


def test_one_side_is_enough(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(text=None, modalities=["image"]))
    encoder = OnnxEncoder.load(str(folder), {})
    assert encoder.encode_image(pictures()).shape == (4, 32)
    with pytest.raises(Exception, match="takes image, not text"):
        encoder.encode_text(["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "cuda"}, r"onnxruntime has no provider 'cuda' here .*onnxruntime-gpu"),
        ({"provider": "openvino"}, r"onnxruntime has no provider 'openvino' here .*onnxruntime-openvino in place"),
        ({"provider": "tpu"}, r"'provider' .* is 'tpu'. Use cpu, openvino, cuda"),
        ({"threads": 0}, r"a positive int, not 0"),
        ({"device": "cpu"}, r"no setting 'device'"),
    ],
)
def test_wrong_settings_are_told(exported: Exported, options: dict[str, object], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        OnnxEncoder.load(str(exported.folder), options)


def test_openvino_computes_in_single_precision_with_the_threads_given(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    asked, session = [], onnxruntime.InferenceSession

    def spy(path: Path, options: Any, providers: list[Any]) -> Any:  # noqa: ANN401
        asked.extend(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    OnnxEncoder.load(str(exported.folder), {"provider": "openvino", "threads": 3})
    assert asked == [("OpenVINOExecutionProvider", {"precision": "FP32", "num_of_threads": "3"})] * 2


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(EncoderError, match=r"no manifest\.json in .*encoder export"):
            OnnxEncoder.load(str(place), {})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EncoderError, match="is not JSON"):
        OnnxEncoder.load(str(tmp_path), {})


def test_without_ftfy_the_extra_is_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MissingExtra, match=r"the extra 'onnx'"):
        OnnxEncoder.load(str(exported.folder), {})


# Exports that are refused leave nothing behind


def test_an_export_that_differs_is_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx_export._image_side
    monkeypatch.setattr(onnx_export, "_image_side", lambda encoder: replace(real(encoder), mean=(0.4, 0.5, 0.5)))
    with pytest.raises(EncoderError, match=r"exported image side of .* differs from torch by .*nothing was written"):
        export(f"open_clip:local-dir:{model}", {}, tmp_path / "onnx", measure=False)
    assert os.listdir(tmp_path) == []


def test_what_torch_cannot_export_is_one_sentence(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(EncoderError, match=r"could not export text\.onnx .*: no such operator\."):
        export(f"open_clip:local-dir:{model}", {}, tmp_path / "onnx", measure=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "given_settings", "message"),
    [
        ("builtin:lite", {}, "only open_clip: and sentence-transformers: can"),
        ("open_clip:ViT-B-32/openai", {"precision": "fp16"}, "has the precision fp16; fp32 is exported"),
        ("open_clip:ViT-B-33/openai", {}, "Did you mean"),
    ],
)
def test_what_cannot_be_exported(spec: str, given_settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=message):
        export(spec, given_settings, tmp_path / "onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(EncoderError, match=r"(is there already|cannot be exported|has the precision)"):
        export(spec, given_settings, tmp_path / "full")


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"the extra 'onnx-export'"):
        export("open_clip:ViT-B-32/openai", {}, tmp_path / "onnx")


def test_a_manifest_is_read_as_it_was_written(exported: Exported) -> None:
    assert Manifest.read("x", exported.folder) == exported.manifest


# The command


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["encoder", "export", *words])
    return int(stopped.value.code or 0)


def test_the_command_says_what_was_written_and_how_to_register_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def export(spec: str, settings: Any, folder: Path, **options: Any) -> Exported:  # noqa: ANN401
        calls.append((spec, settings, folder, options["int8"], options["space"]))
        return exported

    monkeypatch.setattr(onnx_export, "export", export)
    assert command("open_clip:x", str(exported.folder), "--settings", '{"checkpoint": "a"}') == 0
    printed = capsys.readouterr().out
    assert exported.command("fp32") in printed
    assert "text: no number differs from torch's by more than" in printed
    assert "text.onnx" in printed
    assert command("open_clip:x", str(exported.folder), "--json", "--int8") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == exported.command("fp32")
    assert {rate["batch_size"] for rate in told["rates"]} == {1, 8, 32}
    assert calls == [
        ("open_clip:x", {"checkpoint": "a"}, exported.folder, False, None),
        ("open_clip:x", {}, exported.folder, True, None),
    ]


def test_the_command_refuses_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("builtin:lite", str(tmp_path / "x")) == 1
    assert capsys.readouterr().err.startswith("error: Encoder 'builtin:lite' cannot be exported: only open_clip: and")
    assert command("open_clip:x", str(tmp_path / "x"), "--settings", "{") == 2
    assert "--settings is not JSON" in capsys.readouterr().err
