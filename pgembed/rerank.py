"""Re-ranking: cross-encoders, which read the words and a row together, for the ``rerank`` of ``db.hybrid``.

A cross-encoder is far slower than comparing vectors and finds nothing by itself: it orders the first rows of a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgembed.errors import InvalidInput, MissingExtra


class CrossEncoder:
    """A cross-encoder of sentence-transformers: ``rerank=CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")``.

    ``columns`` are those of a row that are compared with the words, joined by spaces; without them all that are text.
    Raises MissingExtra without the extra ``sentence-transformers``; further arguments are the model's.
    """

    def __init__(self, model: str | Path, *, columns: Sequence[str] | None = None, **arguments: Any) -> None:  # noqa: ANN401
        try:
            from sentence_transformers import CrossEncoder as Model
        except ImportError:
            raise MissingExtra("A cross-encoder of sentence-transformers", "sentence-transformers") from None
        self._model: Any = Model(str(model), **arguments)
        self._columns = columns

    def __call__(self, words: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The score of each row, the higher the better."""
        pairs = [(words, text_of(row, self._columns)) for row in rows]
        scores = np.asarray(self._model.predict(pairs, show_progress_bar=False), dtype=np.float64)
        return _one_each(scores, len(rows))


class OnnxCrossEncoder:
    """A cross-encoder as ONNX, without torch: a folder with ``model.onnx`` (or ``onnx/model.onnx``) and
    ``tokenizer.json``, as model hubs have them.

    ``length`` is the most tokens of words and row together. Raises InvalidInput where the folder is not such a one.
    """

    def __init__(
        self, folder: str | Path, *, columns: Sequence[str] | None = None, length: int = 512, batch_size: int = 32
    ) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        models = [path for path in (Path(folder, "model.onnx"), Path(folder, "onnx", "model.onnx")) if path.exists()]
        if not models or not Path(folder, "tokenizer.json").exists():
            raise InvalidInput(
                f"{folder} has no model.onnx, or no tokenizer.json beside it.", "Export a cross-encoder to ONNX there."
            )
        self._session: Any = onnxruntime.InferenceSession(str(models[0]), providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self._tokenizer.enable_truncation(length, strategy="longest_first")
        self._tokenizer.enable_padding()
        self._columns, self._batch_size = columns, batch_size

    def __call__(self, words: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The score of each row, the higher the better: the model's logit."""
        scores: list[float] = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            encoded = self._tokenizer.encode_batch([(words, text_of(row, self._columns)) for row in batch])
            fields = {
                "input_ids": [each.ids for each in encoded],
                "attention_mask": [each.attention_mask for each in encoded],
                "token_type_ids": [each.type_ids for each in encoded],
            }
            given = {name: np.array(fields[name], dtype=np.int64) for name in self._inputs}
            scores += _one_each(np.asarray(self._session.run(None, given)[0], dtype=np.float64), len(batch))
        return scores


def text_of(row: Mapping[str, Any], columns: Sequence[str] | None) -> str:
    """The text of a row that is compared: these columns, or all that hold text. Raises InvalidInput."""
    if columns is None:
        return " ".join(value for value in row.values() if isinstance(value, str))
    missing = [name for name in columns if name not in row]
    if missing:
        raise InvalidInput(
            f"The rows to re-rank have no column '{missing[0]}'.", "Read it too, or name others to the re-ranker."
        )
    return " ".join(str(row[name]) for name in columns if row[name] is not None)


def _one_each(scores: Any, rows: int) -> list[float]:  # noqa: ANN401
    """One score a row; a model with several outputs classifies, and says nothing of how well a row fits."""
    if scores.size != rows:
        raise InvalidInput(
            f"The model gives {scores.size // max(rows, 1)} numbers a pair, not one score.",
            "Take a cross-encoder trained for ranking.",
        )
    return scores.reshape(rows).tolist()
