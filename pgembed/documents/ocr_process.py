"""The program of a process that reads words for another, and may die of a picture."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

from pgembed.documents.calls import serve

MEMORY = 1024 * 1024 * 1024  # bytes for the models and a band


class Reader:
    """The models, loaded with the first picture."""

    @cached_property
    def _engine(self) -> Any:  # noqa: ANN401
        from rapidocr import RapidOCR

        from pgembed.documents.ocr import LARGEST, WIDEST

        return RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": LARGEST,
                "Global.use_cls": False,  # no line of a page or a screen stands on its head
                "Det.limit_type": "max",  # a small picture is not made larger, nor a strip enormous
                "Det.limit_side_len": WIDEST,
                "Rec.rec_batch_num": 1,  # as quick as more, and half of the memory where lines are long
                "EngineConfig.onnxruntime.intra_op_num_threads": os.cpu_count() or 1,
            }
        )

    def words(self, data: bytearray, width: int) -> tuple[list[tuple[str, float, tuple[float, ...]]], bytes]:
        """Lines of RGB pixels: text, confidence, and left, top, right and bottom in pixels."""
        import numpy as np

        pixels = np.frombuffer(data, dtype=np.uint8).reshape(-1, width, 3)
        found = self._engine(np.ascontiguousarray(pixels[:, :, ::-1]))
        if found.boxes is None or found.txts is None:
            return [], b""
        lines = [
            (
                " ".join(text.replace("\0", "").split()),
                float(score),
                (*box.min(axis=0).tolist(), *box.max(axis=0).tolist()),
            )
            for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True)
        ]
        return [line for line in lines if line[0]], b""


def main() -> None:
    """Serve on standard input and output."""
    serve({"words": Reader().words}, MEMORY)
