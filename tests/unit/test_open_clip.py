"""open_clip: on a real architecture with seeded random weights, equal to calling open_clip by hand."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import open_clip
import PIL.Image
import pytest
import safetensors.torch
import torch

from pgembed.encoders import EncoderPolicy, Needs, load_encoder
from pgembed.encoders.batching import FIRST, MOST, Batcher
from pgembed.encoders.open_clip import OpenClipEncoder
from pgembed.encoders.torch_models import choose_device
from pgembed.errors import EncoderError, MissingExtra
from tests import open_clip_models

MODEL = "ViT-S-32-alt"
TEXTS = ["a red dress", "in blue", "une robe rouge à pois", "x" * 500, "a b c " * 200]
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}


def pictures() -> list[PIL.Image.Image]:
    chance = np.random.default_rng(7)
    sizes = [(300, 200), (64, 64), (33, 500), (640, 480)]
    return [PIL.Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded random weights of a model that open_clip knows."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    safetensors.torch.save_file(open_clip.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def real(weights: Path) -> OpenClipEncoder:
    return OpenClipEncoder.load(MODEL, {"checkpoint": str(weights), "device": "cpu"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A local configuration of a tiny model with its weights, in both formats and as a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS}))
    torch.manual_seed(4)
    state = open_clip.create_model(f"local-dir:{folder}").state_dict()
    safetensors.torch.save_file(state, folder / "tiny.safetensors")
    (folder / "pickled").mkdir()
    torch.save(state, folder / "pickled" / "tiny.pt")
    (folder / "bare.json").write_text(json.dumps(CONFIG))
    return {
        "folder": folder,
        "config": folder / "open_clip_config.json",
        "bare": folder / "bare.json",
        "safetensors": folder / "tiny.safetensors",
        "pickle": folder / "pickled" / "tiny.pt",
    }


@pytest.fixture(scope="module")
def encoder(tiny: dict[str, Path]) -> OpenClipEncoder:
    return load_tiny(tiny)


@pytest.fixture
def named(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model, as one that open_clip knows by name."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny", CONFIG)
    return "ViT-Tiny"


def load_tiny(tiny: dict[str, Path], **settings: object) -> OpenClipEncoder:
    whole = {"config": str(tiny["config"]), "checkpoint": str(tiny["safetensors"]), "device": "cpu", "batch_size": 64}
    return OpenClipEncoder.load("tiny", {**whole, **settings})


def test_vectors_are_those_of_open_clip_called_by_hand(real: OpenClipEncoder, weights: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=str(weights))
    model.eval()
    tokenizer = open_clip.get_tokenizer(MODEL)
    with torch.no_grad():
        texts = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
        images = model.encode_image(
            torch.stack([preprocess(picture) for picture in pictures()]), normalize=True
        ).numpy()
    assert np.abs(real.encode_text(TEXTS) - texts).max() <= 1e-6
    assert np.abs(real.encode_image(pictures()) - images).max() <= 1e-6
    assert np.abs(real.encode_screenshot(pictures()) - images).max() <= 1e-6


def test_facts(real: OpenClipEncoder) -> None:
    assert real.dim == 256
    assert real.modalities == {"text", "image", "screenshot"}
    assert real.spec == f"open_clip:{MODEL}"
    assert real.space == f"open_clip:{MODEL}@{real.fingerprint[:12]}"
    assert real.normalized
    assert real.metric == "cosine"


def test_vectors_are_float32_of_unit_length(encoder: OpenClipEncoder) -> None:
    for vectors, count in ((encoder.encode_text(TEXTS), 5), (encoder.encode_image(pictures()), 4)):
        assert vectors.dtype == np.float32
        assert vectors.shape == (count, 32)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(count), abs=1e-6)
    assert encoder.encode_text([]).shape == encoder.encode_image([]).shape == (0, 32)


def test_a_batch_is_what_its_members_are_alone(tiny: dict[str, Path]) -> None:
    encoder = load_tiny(tiny, batch_size=3)
    for encode, inputs in ((encoder.encode_text, TEXTS), (encoder.encode_image, pictures())):
        alone = np.concatenate([encode([input]) for input in inputs])
        assert np.abs(encode(inputs) - alone).max() <= 1e-6
    assert encoder.batch_size == 3


def test_encoding_is_deterministic(encoder: OpenClipEncoder) -> None:
    assert np.array_equal(encoder.encode_text(TEXTS), encoder.encode_text(TEXTS))
    assert np.array_equal(encoder.encode_image(pictures()), encoder.encode_image(pictures()))


def test_dropout_is_for_training(tiny: dict[str, Path], tmp_path: Path) -> None:
    dropping = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "patch_dropout": 0.5}}  # type: ignore[dict-item]
    (tmp_path / "dropping.json").write_text(json.dumps({"model_cfg": dropping, "preprocess_cfg": PREPROCESS}))
    encoder = load_tiny(tiny, config=str(tmp_path / "dropping.json"))
    assert np.array_equal(encoder.encode_image(pictures()), load_tiny(tiny).encode_image(pictures()))


def test_pictures_are_preprocessed_in_threads(encoder: OpenClipEncoder) -> None:
    with ThreadPoolExecutor(4) as threads:
        pixels = list(threads.map(encoder.preprocess, pictures() * 3))
    assert np.abs(encoder.embed_pixels(pixels)[:4] - encoder.encode_image(pictures())).max() <= 1e-6


def test_fingerprint_is_that_of_weights_and_preprocessing(tiny: dict[str, Path], tmp_path: Path) -> None:
    first = load_tiny(tiny)
    assert load_tiny(tiny).fingerprint == first.fingerprint
    assert load_tiny(tiny, batch_size=2).fingerprint == first.fingerprint
    assert load_tiny(tiny, config=str(tiny["bare"])).fingerprint != first.fingerprint  # other mean and deviation

    state = safetensors.torch.load_file(tiny["safetensors"])
    state["visual.proj"][0, 0] += 1e-3
    safetensors.torch.save_file(state, tmp_path / "changed.safetensors")
    assert load_tiny(tiny, checkpoint=str(tmp_path / "changed.safetensors")).fingerprint != first.fingerprint

    heads = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "heads": 4}}  # type: ignore[dict-item]
    (tmp_path / "heads.json").write_text(json.dumps({"model_cfg": heads, "preprocess_cfg": PREPROCESS}))
    assert load_tiny(tiny, config=str(tmp_path / "heads.json")).fingerprint != first.fingerprint  # same tensors


def test_a_local_configuration_brings_its_preprocessing(tiny: dict[str, Path]) -> None:
    encoder = load_tiny(tiny)
    assert encoder.dim == 32
    white = encoder.preprocess(PIL.Image.new("RGB", (90, 70), "white"))
    assert white.shape == (3, 64, 64)
    assert white.max() == pytest.approx((1 - 0.5) / 0.25)


def test_forms_of_one_model_agree(tiny: dict[str, Path]) -> None:
    first = load_tiny(tiny)
    folder = OpenClipEncoder.load(f"local-dir:{tiny['folder']}", {"device": "cpu", "batch_size": 64})
    pickled = load_tiny(tiny, checkpoint=str(tiny["pickle"]), allow_pickle=True)
    for other in (folder, pickled):
        assert other.fingerprint == first.fingerprint
        assert np.array_equal(other.encode_text(TEXTS), first.encode_text(TEXTS))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(tiny: dict[str, Path], precision: str) -> None:
    exact, half = load_tiny(tiny), load_tiny(tiny, precision=precision)
    assert half.fingerprint != exact.fingerprint
    are_near(exact, half)


def are_near(exact: OpenClipEncoder, half: OpenClipEncoder) -> None:
    for a, b in (
        (exact.encode_text(TEXTS), half.encode_text(TEXTS)),
        (exact.encode_image(pictures()), half.encode_image(pictures())),
    ):
        assert b.dtype == np.float32
        assert (a * b).sum(axis=1).min() > 0.99
        assert np.linalg.norm(b, axis=1) == pytest.approx(np.ones(len(b)), abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["coca", "siglip", open_clip_models.HF_TEXT])
def test_half_precision_of_towers_that_open_clip_converts_in_part(name: str, precision: str, tmp_path: Path) -> None:
    folder = open_clip_models.make_model(tmp_path, name)
    exact = OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu"})
    are_near(exact, OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu", "precision": precision}))


def test_a_model_that_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Path]) -> None:
    def encode_text(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 must have the same dtype\nand more")

    monkeypatch.setattr("open_clip.model.CustomTextCLIP.encode_text", encode_text)
    monkeypatch.setattr("open_clip.model.CLIP.encode_text", encode_text)
    with pytest.raises(EncoderError, match=r"encodes no text in bf16 on cpu: mat1 and mat2 .* dtype\. Choose another"):
        load_tiny(tiny, precision="bf16")


def test_a_tag_beside_a_checkpoint_gives_its_preprocessing(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Path], named: str
) -> None:
    tag = {"hf_hub": "org/repo/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag if name == "inception" else {})
    tagged = OpenClipEncoder.load(f"{named}/inception", {"checkpoint": str(tiny["safetensors"]), "device": "cpu"})
    plain = OpenClipEncoder.load(named, {"checkpoint": str(tiny["safetensors"]), "device": "cpu"})
    assert tagged.preprocess(PIL.Image.new("RGB", (9, 9), "white")).max() == 1
    assert tagged.fingerprint != plain.fingerprint
    assert np.abs(tagged.encode_text(TEXTS) - plain.encode_text(TEXTS)).max() > 1e-4  # the tag's activation


def test_a_tag_loads_what_was_downloaded(monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Path], named: str) -> None:
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "org/repo/"})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda facts, cache_dir: str(tiny["safetensors"]))
    encoder = load_encoder(f"open_clip:{named}/inception", {"device": "cpu"})
    assert encoder.spec == f"open_clip:{named}/inception"
    monkeypatch.setattr(open_clip, "download_pretrained", lambda facts, cache_dir: "/cache/open_clip_pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"may be a pickle.*allow_pickle"):
        load_encoder(f"open_clip:{named}/inception")


def fail(*_: object, **__: object) -> NoReturn:
    raise OSError("name or service not known\nand a long trace")


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", fail)
    for name in ("ViT-B-32/laion2b_s34b_b79k", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"):
        with pytest.raises(EncoderError, match=r"could not be downloaded: .*not known.*checkpoint") as caught:
            OpenClipEncoder.load(name, {})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("VIT-B32/openai", {}, r"no model 'VIT-B32'.*Did you mean .*ViT-B-32"),
        ("zzz", {}, r"no model 'zzz'.*list_models"),
        ("ViT-B-32/laion3b", {}, r"no pretrained tag 'laion3b'.*laion2b_s34b_b79k"),
        ("ViT-B-32", {}, r"names no weights\. Add a tag \(openai, .*checkpoint"),
        ("ViT-B-32", {"checkpoint": "/nowhere.safetensors"}, r"checkpoint '/nowhere.safetensors' .* not a file"),
        ("ViT-B-32", {"checkpoint": 3}, r"'checkpoint' .* takes str, not 3"),
        ("ViT-B-32", {"chekpoint": "x"}, r"no setting 'chekpoint'.*checkpoint, config"),
        ("ViT-B-32", {"batch_size": 0}, r"a positive int, not 0"),
        ("ViT-B-32", {"batch_size": True}, r"a positive int, not True"),
        ("ViT-B-32", {"precision": "int4"}, r"'precision' .* is 'int4'. Use fp32"),
        ("ViT-B-32", {"device": "tpu"}, r"no device 'tpu'.*cuda"),
        ("ViT-B-32", {"device": "cuda:99"}, r"'cuda:99' .* not on this machine"),
        ("x", {"config": "/nowhere.json"}, r"config but no weights"),
        ("local-dir:/nowhere", {}, r"config '/nowhere/open_clip_config.json' .* not a file"),
        ("hf-hub:a/b", {"config": "x.json"}, r"brings its own configuration"),
    ],
)
def test_what_cannot_be_loaded_is_told(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        OpenClipEncoder.load(name, settings)


def test_weights_of_another_architecture_name_the_first_tensor(tiny: dict[str, Path], tmp_path: Path) -> None:
    wide = {**CONFIG, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}}
    (tmp_path / "wide.json").write_text(json.dumps(wide))
    with pytest.raises(
        EncoderError,
        match=r"another architecture: 'positional_embedding' is \(77, 32\) there, and \(77, 64\) in the model",
    ):
        load_tiny(tiny, config=str(tmp_path / "wide.json"))
    deep = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "layers": 3}}  # type: ignore[dict-item]
    (tmp_path / "deep.json").write_text(json.dumps(deep))
    with pytest.raises(EncoderError, match=r"'visual.transformer.resblocks.2.ln_1.weight' \(64,\) is missing"):
        load_tiny(tiny, config=str(tmp_path / "deep.json"))
    state = safetensors.torch.load_file(tiny["safetensors"])
    state.pop("text_projection")
    safetensors.torch.save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(EncoderError, match=r"'text_projection' \(32, 32\) is missing"):
        load_tiny(tiny, checkpoint=str(tmp_path / "less.safetensors"))
    safetensors.torch.save_file(
        {**safetensors.torch.load_file(tiny["safetensors"]), "more": torch.zeros(2)}, tmp_path / "more.safetensors"
    )
    with pytest.raises(EncoderError, match="'more' is not in the model"):
        load_tiny(tiny, checkpoint=str(tmp_path / "more.safetensors"))


def test_a_pickle_is_read_only_when_asked_for_and_never_runs_code(tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"may be a pickle.*allow_pickle"):
        load_tiny(tiny, checkpoint=str(tiny["pickle"]))
    torch.save({"a": _Runs(str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    with pytest.raises(EncoderError, match="could not load"):
        load_tiny(tiny, checkpoint=str(tmp_path / "evil.pt"), allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(EncoderError, match=r"holds no weights\. Put .*safetensors"):
        OpenClipEncoder.load(f"local-dir:{tmp_path / 'bare'}", {})


@pytest.mark.parametrize("beside", [None, "adapter.safetensors"])
def test_the_file_that_open_clip_would_read_in_a_folder_is_the_one_that_is_checked(
    tiny: dict[str, Path], tmp_path: Path, beside: str | None
) -> None:
    (tmp_path / "open_clip_config.json").write_bytes(tiny["config"].read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(tiny["pickle"].read_bytes())
    if beside is not None:
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / beside)
    with pytest.raises(EncoderError, match=r"open_clip_pytorch_model\.bin' .* may be a pickle.*allow_pickle"):
        load_encoder(f"open_clip:local-dir:{tmp_path}", {}, policy=EncoderPolicy(model_dirs=(tmp_path,)))
    settings = {"device": "cpu", "allow_pickle": True}
    assert OpenClipEncoder.load(f"local-dir:{tmp_path}", settings).fingerprint == load_tiny(tiny).fingerprint


class _Runs:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ('{"embed_dim": 3}', "lacks text_cfg, vision_cfg"),
        ('{"text_cfg": 3}', "is not a JSON object"),
        (json.dumps({**CONFIG, "vision_cfg": {"depth": 3}}), "could not load"),
    ],
)
def test_a_config_that_is_none(tiny: dict[str, Path], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(EncoderError, match=message):
        load_tiny(tiny, config=str(tmp_path / "config.json"))


def test_broken_weights(tiny: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(tiny["safetensors"].read_bytes()[:5000])
    with pytest.raises(EncoderError, match="could not load"):
        load_tiny(tiny, checkpoint=str(tmp_path / "broken.safetensors"))


def test_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"needs the extra 'clip'.*pgembed-multimodal\[clip\]"):
        OpenClipEncoder.load("ViT-B-32/openai", {})


def test_a_broken_installation_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str) -> object:
        if name == "open_clip":
            raise ImportError("libcudart.so.12: cannot open shared object file", name="_C")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EncoderError, match="could not import open_clip: libcudart"):
        OpenClipEncoder.load("ViT-B-32/openai", {})


def test_loading_leaves_global_state_alone(tiny: dict[str, Path]) -> None:
    models, level = open_clip.list_models(), logging.getLogger().level
    load_tiny(tiny)
    assert open_clip.list_models() == models
    assert logging.getLogger().level == level
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", [*open_clip_models.CONFIGS, open_clip_models.HF_TEXT])
def test_every_architecture_is_as_by_hand(name: str, tmp_path: Path) -> None:
    folder = open_clip_models.make_model(tmp_path, name)
    encoder = OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu", "batch_size": 4})
    texts, pictures = open_clip_models.TEXTS, open_clip_models.pictures()
    words, looks = open_clip_models.by_hand(folder, texts, pictures)
    assert np.abs(encoder.encode_text(texts) - words).max() <= 1e-5
    assert np.abs(encoder.encode_image(pictures) - looks).max() <= 1e-5
    assert np.abs(words[0] - words[1]).max() > 1e-3
    assert encoder.dim == words.shape[1] == looks.shape[1]


def test_a_named_model_takes_its_tokenizer_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = open_clip_models.make_model(tmp_path / "model", "siglip")
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "Tiny-SigLIP", open_clip_models.CONFIGS["siglip"]["model_cfg"]
    )
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", _only_local)
    settings = {"checkpoint": str(folder / "open_clip_model.safetensors"), "device": "cpu"}
    with pytest.raises(EncoderError, match=r'tokenizer of .* could not be loaded: no network.*"tokenizer": FOLDER'):
        OpenClipEncoder.load("Tiny-SigLIP", settings)
    files = open_clip_models.make_tokenizer(tmp_path / "files")
    named = OpenClipEncoder.load("Tiny-SigLIP", {**settings, "tokenizer": str(files)})
    whole = OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu"})
    assert np.array_equal(named.encode_text(TEXTS), whole.encode_text(TEXTS))
    with pytest.raises(EncoderError, match=r"tokenizer '/nowhere' .* not a folder"):
        OpenClipEncoder.load("Tiny-SigLIP", {**settings, "tokenizer": "/nowhere"})


def _only_local(name: object, **_: object) -> object:
    if not Path(str(name)).is_dir():
        raise OSError("no network\nand more")
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_file=f"{name}/tokenizer.json", **special)


def hub_cache(cache: Path, repository: str, files: dict[str, Path]) -> None:
    """Lay out a cache of the hub that holds files of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, path in files.items():
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / ("0" * 40) / name).write_bytes(path.read_bytes())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_offline_the_cache_serves_a_repository(tiny: dict[str, Path], tmp_path: Path) -> None:
    files = {"open_clip_config.json": tiny["config"], "open_clip_model.safetensors": tiny["safetensors"]}
    hub_cache(tmp_path, "org/repo", files)
    found = OpenClipEncoder.load("hf-hub:org/repo", {"cache_dir": str(tmp_path), "device": "cpu"})
    assert found.fingerprint == load_tiny(tiny).fingerprint


@pytest.mark.usefixtures("offline")
def test_weights_of_another_architecture_in_a_repository_name_the_first_tensor(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    wide = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "width": 64}}  # type: ignore[dict-item]
    (tmp_path / "wide.json").write_text(json.dumps({"model_cfg": wide, "preprocess_cfg": PREPROCESS}))
    files = {"open_clip_config.json": tmp_path / "wide.json", "open_clip_model.safetensors": tiny["safetensors"]}
    hub_cache(tmp_path / "cache", "org/wide", files)
    with pytest.raises(
        EncoderError,
        match=r"another architecture: 'positional_embedding' is \(77, 32\) there, and \(77, 64\) in the model",
    ):
        OpenClipEncoder.load("hf-hub:org/wide", {"cache_dir": str(tmp_path / "cache"), "device": "cpu"})


@pytest.mark.usefixtures("offline")
def test_a_tokenizer_that_a_config_names_comes_from_the_cache_that_is_set(tmp_path: Path) -> None:
    folder = open_clip_models.make_model(tmp_path / "model", "siglip")
    files = {path.name: path for path in open_clip_models.make_tokenizer(tmp_path / "files").iterdir()}
    files["config.json"] = tmp_path / "files" / "config.json"
    files["config.json"].write_text("{}")
    hub_cache(tmp_path / "cache", "nobody/nowhere", files)
    (tmp_path / "alone").mkdir()  # the config and no tokenizer beside it
    config = shutil.copy(folder / "open_clip_config.json", tmp_path / "alone")
    settings = {"config": str(config), "checkpoint": str(folder / "open_clip_model.safetensors"), "device": "cpu"}
    with pytest.raises(EncoderError, match=r'tokenizer of .* could not be loaded: .*"tokenizer": FOLDER'):
        OpenClipEncoder.load("mine", settings)
    named = OpenClipEncoder.load("mine", {**settings, "cache_dir": str(tmp_path / "cache")})
    whole = OpenClipEncoder.load(f"local-dir:{folder}", {"device": "cpu"})
    assert np.array_equal(named.encode_text(TEXTS), whole.encode_text(TEXTS))


@pytest.mark.usefixtures("offline")
def test_offline_the_cache_serves_a_tag(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Path], named: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "org/tag/"})
    hub_cache(tmp_path, "org/tag", {"open_clip_model.safetensors": tiny["safetensors"]})
    found = OpenClipEncoder.load(f"{named}/tag", {"cache_dir": str(tmp_path), "device": "cpu"})
    assert found.encode_text(TEXTS).shape == (5, 32)


def test_the_hub_s_own_variables_say_where_the_cache_is_and_that_there_is_no_network(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    files = {"open_clip_config.json": tiny["config"], "open_clip_model.safetensors": tiny["safetensors"]}
    hub_cache(tmp_path / "hub", "org/repo", files)
    program = (
        "import sys; from pgembed.encoders import load_encoder\n"
        "print(load_encoder('open_clip:hf-hub:org/repo', {'device': 'cpu'}).fingerprint)\n"
        "load_encoder('open_clip:hf-hub:org/none')"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == load_tiny(tiny).fingerprint
    assert f"not in the cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set." in done.stderr


@pytest.mark.parametrize(
    ("cards", "mps", "asked", "chosen"),
    [
        (0, False, "auto", "cpu"),
        (2, False, "auto", "cuda"),
        (0, True, "auto", "mps"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:2", None),
        (0, False, "mps", None),
        (1, False, "cuda:x", None),
    ],
)
def test_the_device_is_the_best_that_is_there_or_the_one_asked_for(
    cards: int, mps: bool, asked: str, chosen: str | None
) -> None:
    there = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: cards > 0, device_count=lambda: cards),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
    )
    if chosen is None:
        with pytest.raises(EncoderError, match=f"'{asked}'"):
            choose_device("open_clip:x", asked, there)
    else:
        assert choose_device("open_clip:x", asked, there) == chosen


@pytest.mark.usefixtures("offline")
def test_offline_without_the_weights_says_so(tmp_path: Path) -> None:
    for name in ("ViT-B-32/laion2b_s34b_b79k", "hf-hub:org/nothing"):
        with pytest.raises(EncoderError, match=rf"not in the cache {tmp_path}, and HF_HUB_OFFLINE is set\. Unset it"):
            OpenClipEncoder.load(name, {"cache_dir": str(tmp_path)})


def test_needs_names_what_is_read_and_written() -> None:
    settings = {"checkpoint": "a", "config": "b", "tokenizer": "c", "cache_dir": "d"}
    assert OpenClipEncoder.needs("x", settings) == Needs(("a", "b", "c", "d"))
    assert OpenClipEncoder.needs("local-dir:/e", {}) == Needs(("/e",))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_vectors_are_equal(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"local-dir:{open_clip_models.make_model(tmp_path, 'clip-shallow')}"
    plain = OpenClipEncoder.load(name, {"device": "cpu"})
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = OpenClipEncoder.load(name, {"device": "cpu", "compile": True})
    assert compiled.fingerprint == plain.fingerprint
    for count in (4, 3, 1):
        for modality, inputs in (("text", TEXTS), ("image", pictures())):
            found, wanted = (getattr(each, f"encode_{modality}")(inputs[:count]) for each in (compiled, plain))
            assert np.abs(found - wanted).max() <= 1e-5
    assert not [record for record in caplog.records if "uncompiled" in record.getMessage()]


def test_without_a_compiler_it_runs_uncompiled_and_says_so_once(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **_: object) -> object:
        return lambda value: fail()

    plain = load_tiny(tiny)
    monkeypatch.setattr(torch, "compile", broken)
    compiled = load_tiny(tiny, compile=True)
    for _ in range(2):
        assert np.array_equal(compiled.encode_image(pictures()), plain.encode_image(pictures()))
    assert [record.getMessage() for record in caplog.records if record.name == "pgembed.encoders"] == [
        "Encoder 'open_clip:tiny' runs uncompiled, since torch.compile failed here: name or service not known."
    ]
    with pytest.raises(TypeError):
        load_tiny(tiny, compile=True).embed_pixels([torch.zeros(3, 64, 64), None])  # the input's fault stays its own


def test_batch_size_is_an_int_whatever_the_setting(tiny: dict[str, Path]) -> None:
    unset = OpenClipEncoder.load(f"local-dir:{tiny['folder']}", {"device": "cpu"})
    for encoder in (unset, load_tiny(tiny, batch_size="auto")):
        assert encoder.batch_size == MOST
        many = TEXTS * 20
        assert np.abs(encoder.encode_text(many) - np.tile(encoder.encode_text(TEXTS), (20, 1))).max() <= 1e-6
        assert encoder.batch_size == MOST
    with pytest.raises(EncoderError, match="a positive int, not 'many'"):
        load_tiny(tiny, batch_size="many")


class Machine:
    """Encodes numbers as themselves, at a rate that saturates at ``best`` inputs, with room for ``room``."""

    def __init__(self, best: int, room: int = 10**9, hiccup: int = -1) -> None:
        self.best, self.room, self.hiccup = best, room, hiccup
        self.now = 0.0
        self.sizes: list[int] = []

    def encode(self, batch: list[int]) -> np.ndarray:
        if len(batch) > self.room:
            raise MemoryError("no room")
        self.sizes.append(len(batch))
        self.now += max(len(batch), self.best) * (10 if len(self.sizes) - 1 in (0, self.hiccup) else 1)
        return np.array(batch, dtype=np.float32)[:, None]

    def batcher(self, size: int | None = None) -> Batcher:
        return Batcher("x", size, out_of_memory=lambda e: isinstance(e, MemoryError), clock=lambda: self.now)


@pytest.mark.parametrize(("best", "found"), [(1, FIRST), (4, FIRST), (32, 32), (10_000, MOST)])
def test_the_batch_size_is_doubled_while_it_pays(best: int, found: int) -> None:
    machine = Machine(best)
    batcher = machine.batcher()
    for _ in range(10):
        vectors = np.concatenate(batcher.run(list(range(256)), machine.encode))
        assert vectors[:, 0].tolist() == list(range(256))
    assert batcher.found
    assert batcher.size == found


def test_one_slow_batch_does_not_end_the_search() -> None:
    machine = Machine(64, hiccup=2)
    batcher = machine.batcher()
    for _ in range(10):
        batcher.run(list(range(256)), machine.encode)
    assert batcher.size == 64


@pytest.mark.parametrize("size", [None, 100])
def test_a_batch_that_does_not_fit_is_halved(size: int | None, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(10_000, room=20)
    batcher = machine.batcher(size)
    for _ in range(3):
        vectors = np.concatenate(batcher.run(list(range(200)), machine.encode))
        assert vectors[:, 0].tolist() == list(range(200))
    assert batcher.size == (16 if size is None else 12)
    assert "ran out of memory on" in caplog.text


def test_no_room_for_one_input_is_an_error() -> None:
    machine = Machine(1, room=0)
    with pytest.raises(MemoryError):
        machine.batcher().run([1, 2, 3], machine.encode)


def test_memory_that_runs_out_in_torch_is_known(encoder: OpenClipEncoder) -> None:
    assert encoder._out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert encoder._out_of_memory(caught.value)
    assert not encoder._out_of_memory(RuntimeError("shape mismatch"))
