"""Re-ranking: a real cross-encoder, small and with random weights, by sentence-transformers and as ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder as Library

from pgembed.errors import InvalidInput, MissingExtra
from pgembed.rerank import CrossEncoder, OnnxCrossEncoder
from tests.tiny_models import byte_tokenizer

ROWS = [{"id": n, "title": title, "body": body, "score": 0.1} for n, (title, body) in enumerate(
    [("a red shoe", "for running"), ("a boat", None), ("", "in the harbour " * 30), ("dogs", "and cats")]
)]  # fmt: skip
TEXTS = ["a red shoe for running", "a boat", " " + "in the harbour " * 30, "dogs and cats"]


def save(folder: Path, outputs: int = 1) -> Path:
    """A BERT that reads two texts, and gives so many numbers."""
    specials = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    names = {f"{each[1:-1].lower()}_token": each for each in specials}
    tokenizer = byte_tokenizer(specials, around=("[CLS]", "[SEP]"), model_max_length=64, **names)
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=256, num_labels=outputs, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.BertForSequenceClassification(config).eval()
    for parameter in model.parameters():  # far apart, so that a mistake is seen
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a model, with its ONNX form beside it."""
    folder = save(tmp_path_factory.mktemp("cross-encoder"))
    model = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    given = ("input_ids", "attention_mask", "token_type_ids")
    example = tuple(torch.ones((2, 5), dtype=torch.int64) for _ in given)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model, (), folder / "model.onnx", kwargs=dict(zip(given, example, strict=True)), input_names=list(given),
        output_names=["logits"], dynamic_shapes=dict.fromkeys(given, sizes), dynamo=True, external_data=False,
        verbose=False,
    )  # fmt: skip
    return folder


def test_scores_are_those_of_the_library(model: Path) -> None:
    library = Library(str(model), device="cpu")
    pairs = [("red shoe", text) for text in TEXTS]
    expected = library.predict(pairs).tolist()
    assert max(expected) - min(expected) > 0.01, "the rows differ"
    reranker = CrossEncoder(model, device="cpu")
    assert reranker("red shoe", [{**row, "body": row["body"] or ""} for row in ROWS[::3]]) == pytest.approx(
        expected[::3]
    )
    assert CrossEncoder(model, columns=["title", "body"], device="cpu")("red shoe", ROWS) == pytest.approx(expected)


def test_onnx_gives_the_same_order_without_torch(model: Path) -> None:
    library = Library(str(model), device="cpu", activation_fn=torch.nn.Identity())
    expected = library.predict([("red shoe", text) for text in TEXTS]).tolist()
    reranker = OnnxCrossEncoder(model, columns=["title", "body"], length=64, batch_size=3)
    assert reranker("red shoe", ROWS) == pytest.approx(expected, abs=1e-4)
    assert reranker("red shoe", []) == []


def test_what_cannot_rerank_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"has no model.onnx"):
        OnnxCrossEncoder(tmp_path)
    with pytest.raises(InvalidInput, match="no column 'summary'"):
        OnnxCrossEncoder(model, columns=["summary"])("red", ROWS)
    with pytest.raises(InvalidInput, match="gives 3 numbers a pair"):
        CrossEncoder(save(tmp_path / "classifier", outputs=3), device="cpu")("red", ROWS)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match="'sentence-transformers'"):
        CrossEncoder(model)
