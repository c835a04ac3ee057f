"""``onnx:FOLDER``: a text and an image graph of ONNX with their manifest, run by onnxruntime; torch is not needed.

``pgembed encoder export`` makes such a folder from an ``open_clip:`` encoder; onnx_manifest.py tells what is in it.
Its vectors are the source's, to a thousandth at most: an fp32 export says in its manifest that it shares the space of
its source, so that a table filled by either is searched through the other. An int8 export has a space of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pgembed.encoders.base import Encoder, Modality, Needs, Settings, fingerprint_of, named_fingerprint
from pgembed.encoders.batching import MOST, Batcher, chosen_size, without_auto
from pgembed.encoders.late_chunking import span_means
from pgembed.encoders.length_limit import CutTexts
from pgembed.encoders.onnx_inputs import Tokens, cleaner, pixels
from pgembed.encoders.onnx_manifest import NAME, ImageSide, Manifest, TextSide
from pgembed.encoders.settings import Known, check_settings
from pgembed.encoders.text_tokens import TextTokens
from pgembed.encoders.torch_models import first_line
from pgembed.errors import EncoderError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors

_SETTINGS: Known = {
    "threads": int,  # the cores that one call may use; default: all
    "provider": ("cpu", "openvino", "cuda"),
    "batch_size": int,  # or auto, which is the default: found while the first rows are encoded
}
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
}  # and the package that brings it
TOKEN_BATCH = 8  # windows at once of a text that is chunked late
TINY = 1e-12  # the length of a zero vector, which stays one
_NO_WEIGHTS = (".md", ".txt", ".lock")  # and hidden files: they do not count for the fingerprint


class OnnxEncoder(Encoder):
    """Two graphs of one space. Texts, pictures and screenshots, as the manifest says."""

    scheme: ClassVar[str] = "onnx"

    def __init__(
        self, spec: str, folder: Path, manifest: Manifest, *, threads: int, provider: str, batch_size: int | None
    ) -> None:
        self.spec = spec
        self.manifest = manifest
        self.dim = manifest.dim
        self.metric = manifest.metric
        self.normalized = manifest.normalized
        self.modalities: frozenset[Modality] = frozenset(manifest.modalities)
        self.batch_size = batch_size or MOST  # what one call is handed; it may encode it in smaller batches
        self.fingerprint = _fingerprint(folder, manifest)
        self._batches = {side: Batcher(spec, batch_size, out_of_memory=_out_of_memory) for side in ("text", "image")}
        self._tokens = _tokens(spec, folder, manifest.text) if manifest.text else None
        self._limit = CutTexts(spec, self._tokens.limit if self._tokens else None)
        self._graphs = {
            side.file: _Graph(spec, folder / side.file, side, threads, provider)
            for side in (manifest.text, manifest.image)
            if side is not None
        }
        self._check_dimensions()

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load the folder ``name``. Settings: threads, provider, batch_size.

        Raises EncoderError where the manifest or a graph is not there or is wrong, MissingExtra without ftfy where the
        texts are mended as open_clip mends them.
        """
        spec = f"{cls.scheme}:{name}"
        check_settings(spec, without_auto(settings), _SETTINGS)
        folder = Path(name).expanduser()
        return cls(
            spec,
            folder,
            Manifest.read(spec, folder),
            threads=settings.get("threads") or os.cpu_count() or 1,
            provider=settings.get("provider", "cpu"),
            batch_size=chosen_size(settings),
        )

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """The folder."""
        return Needs((name,))

    @property
    def space(self) -> str:
        """That of the encoder it was exported from, where it is as exact; else its own."""
        source = self.manifest.source
        return source.space if source is not None and self.manifest.same_space else super().space

    def preprocess(self, picture: Picture) -> NDArray[np.float32]:
        """What the manifest says: ``(3, height, width) float32``."""
        return pixels(picture, self._image_side)

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Preprocessed pictures -> ``(n, dim) float32``."""
        graph = self._graphs[self._image_side.file]
        return self._joined(self._batches["image"].run(pixels, lambda batch: graph.run(np.stack(batch))))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts, cut off at the model's context length, -> ``(n, dim) float32``."""
        side = self.manifest.text
        if side is None or self._tokens is None:
            return super().embed_texts(texts)
        if not texts:
            return self._joined([])
        self._limit.look(texts, self._tokens.places)
        graph = self._graphs[side.file]
        ids, lengths = self._tokens.ids(texts)
        if not side.trim:
            lengths[:] = ids.shape[1]
        order = np.argsort(
            lengths, kind="stable"
        )  # texts of like length together: each batch is as long as its longest

        def encode(rows: Sequence[int]) -> Vectors:
            return graph.run(ids[rows, : lengths[rows].max()])

        def work(rows: Sequence[int]) -> float:
            return float(len(rows) * lengths[rows].max())

        vectors = self._joined(self._batches["text"].run(order, encode, work))  # pyright: ignore[reportArgumentType]
        return vectors[np.argsort(order)]

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """Late chunking -> ``(n, dim) float32``. Raises UnsupportedModality for graphs without outputs of tokens."""
        side = self.manifest.text
        if side is None or self._tokens is None or side.token_output is None:
            return super().embed_spans(text, spans)
        means = span_means(text, spans, self._tokens.places, self._token_outputs, dim=self.dim, batch=TOKEN_BATCH)
        return self._finished(means)

    def _token_outputs(self, windows: Sequence[Sequence[int]]) -> Vectors:
        side = self.manifest.text
        assert side is not None
        assert self._tokens is not None
        ids = self._tokens.replaced(np.array(windows, dtype=np.int64))
        return self._graphs[side.file].run(ids, side.token_output)

    @property
    def cut_texts(self) -> int:
        """How many texts so far were longer than the model reads."""
        return self._limit.cut_texts

    def text_tokens(self) -> TextTokens:
        """Those of the manifest's text side."""
        return super().text_tokens() if self._tokens is None else self._tokens.places

    def tokenizer_json(self) -> str | None:
        """That of the manifest's text side."""
        return None if self._tokens is None else self._tokens.json

    @property
    def _image_side(self) -> ImageSide:
        if self.manifest.image is None:
            self._require("image")
            raise EncoderError(f"Encoder '{self.spec}' takes no pictures.")
        return self.manifest.image

    def _joined(self, found: Sequence[Vectors]) -> Vectors:
        return self._finished(np.concatenate(found) if found else np.zeros((0, self.dim), dtype=np.float32))

    def _finished(self, vectors: Vectors) -> Vectors:
        if not self.normalized:
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY)

    def _check_dimensions(self) -> None:
        from PIL import Image

        probes: list[tuple[str, Callable[[], Vectors]]] = []
        if self.manifest.text:
            probes.append((self.manifest.text.file, lambda: self.embed_texts(["a"])))
        if self.manifest.image:
            grey = Image.new("RGB", (8, 8), "grey")
            probes.append((self.manifest.image.file, lambda: self.embed_pixels([self.preprocess(grey)])))
        for file, probe in probes:
            try:
                shape = probe().shape
            except Exception as error:
                raise EncoderError(
                    f"The graph '{file}' of '{self.spec}' does not run: {first_line(error)}.",
                    "Compare its inputs and outputs with the manifest.",
                ) from error
            if shape != (1, self.dim):
                raise EncoderError(
                    f"The graph '{file}' of '{self.spec}' gives an array of shape {shape} for one input; its manifest"
                    f" says {self.dim} dimensions."
                )


def has_provider(provider: str) -> bool:
    """Whether the onnxruntime that is installed can run graphs by one of _PROVIDERS."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    return _PROVIDERS[provider][0] in onnxruntime.get_available_providers()


class _Graph:
    """One graph in onnxruntime."""

    def __init__(self, spec: str, path: Path, side: TextSide | ImageSide, threads: int, provider: str) -> None:
        executor, package = _PROVIDERS[provider]
        if not has_provider(provider):
            raise EncoderError(
                f"onnxruntime has no provider '{provider}' here (for '{spec}').",
                f"Install {package} in place of onnxruntime, or use cpu.",
            )
        # OpenVINO would compute in bfloat16 where the processor can, and has threads of its own.
        its_own = {"precision": "FP32", "num_of_threads": str(threads)} if provider == "openvino" else {}
        onnxruntime: Any = importlib.import_module("onnxruntime")
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # Postgres wants the cores too
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=[(executor, its_own)])
        except Exception as error:
            raise EncoderError(f"onnxruntime could not load '{path}' of '{spec}': {first_line(error)}.") from error
        types = {one.name: one.type for one in self._session.get_inputs()}
        if side.input not in types:
            raise EncoderError(f"The graph '{path}' of '{spec}' has no input '{side.input}'.", f"It has {[*types]}.")
        self._input, self._output = side.input, side.output
        self._dtype = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}.get(
            types[side.input], np.float32
        )

    def run(self, value: NDArray[Any], output: str | None = None) -> Vectors:
        """The vectors of one batch, or another output."""
        found: Any = self._session.run([output or self._output], {self._input: value.astype(self._dtype, copy=False)})[
            0
        ]
        return found.astype(np.float32, copy=False)


def _tokens(spec: str, folder: Path, side: TextSide) -> Tokens:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / side.tokenizer))
    except Exception as error:
        raise EncoderError(f"The tokenizer '{side.tokenizer}' of '{spec}' is not one: {first_line(error)}.") from error
    replace = {int(old): new for old, new in side.replace.items()}
    return Tokens(tokenizer, cleaner(spec, side.cleanup), replace)


def _fingerprint(folder: Path, manifest: Manifest) -> str:
    """Of every file of the folder but notes, since a graph may keep its weights in other files, and of the manifest's
    facts, without where it came from and what was measured."""
    tokenizer = manifest.text.tokenizer if manifest.text else ""
    digests = {
        path.name: _digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != NAME and path.suffix not in _NO_WEIGHTS and not path.name.startswith(".")
    }
    sides = {"text": manifest.text, "image": manifest.image}
    facts = {name: json.dumps(asdict(side) if side else None, sort_keys=True) for name, side in sides.items()}
    return named_fingerprint(
        weights=fingerprint_of(*(f"{name} {digest}" for name, digest in digests.items() if name != tokenizer)),
        preprocessing=fingerprint_of(facts["image"], str(manifest.normalized)),
        tokenizer=fingerprint_of(facts["text"], digests.get(tokenizer, "")),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _out_of_memory(error: Exception) -> bool:
    return "allocate memory" in str(error).lower() or "out of memory" in str(error).lower()
