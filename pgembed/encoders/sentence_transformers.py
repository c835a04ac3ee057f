"""``sentence-transformers:NAME|PATH``: models in that library's layout, with its own prompts, pooling and modules.

    sentence-transformers:all-MiniLM-L6-v2    a repository on the hub (of sentence-transformers, unless ORG/ is there)
    sentence-transformers:/models/minilm      a folder with modules.json

Rows are encoded as documents, searches as queries, each with its prompt where the model has one. Its CLIP models and
others that see take pictures too. torch is imported when a model is loaded, not before.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from pgembed.encoders.base import Encoder, Metric, Modality, Needs, Role, Settings, named_fingerprint
from pgembed.encoders.late_chunking import no_token_outputs, span_means
from pgembed.encoders.length_limit import LengthLimit
from pgembed.encoders.model_folder import (
    architecture_facts,
    check_folder,
    find_folder,
    folder_needs,
    is_path,
    quiet,
    read_json,
    read_modules,
    tokenizer_facts,
)
from pgembed.encoders.settings import Known, check_settings
from pgembed.encoders.text_tokens import TextTokens, TokenizerTokens
from pgembed.encoders.torch_models import choose_device, first_line, tensor_facts
from pgembed.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from pgembed.encoders.base import Vectors

_SETTINGS: Known = {
    "query_prompt": str,  # what stands before a search; without it, the model's own prompt for queries
    "document_prompt": str,  # what stands before a row's text
    "query_prompt_name": str,  # one of the model's prompts, by its name
    "document_prompt_name": str,
    "pooling": ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"),  # instead of the model's
    "dimensions": int,  # the first so many, for models trained so (Matryoshka)
    "normalize": bool,  # to unit length; true unless said otherwise
    "max_length": int,  # tokens that are read of a text
    "precision": ("auto", "fp32", "fp16", "bf16"),  # auto: as the weights are stored
    "device": str,  # auto, cpu, cuda, cuda:1, mps
    "batch_size": int,
    "revision": str,
    "cache_dir": str,
    "allow_pickle": bool,
    "trust_remote_code": bool,
}
_METRICS: dict[str, Metric] = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}
_PROBE = "A probe of the tokenizer: naïve café, 3.14 ÷ 2; don't!"


@dataclass(frozen=True)
class _Prompt:
    """What the library is asked to put before an input: ``arguments`` of its encode functions, and the text it is."""

    arguments: dict[str, str]
    text: str


class SentenceTransformerEncoder(Encoder):
    """A model of sentence-transformers. Vectors have unit length unless ``normalize`` is false."""

    scheme: ClassVar[str] = "sentence-transformers"

    def __init__(self, spec: str, model: Any, folder: Path, settings: Settings, torch: Any) -> None:  # noqa: ANN401
        self.spec = spec
        self.batch_size = settings.get("batch_size", 64)
        self.normalized = settings.get("normalize", True)
        self._model = model
        self._torch = torch
        self.modalities = _modalities(spec, model)
        if not self.normalized:
            self.metric = _METRICS.get(str(model.similarity_fn_name), "cosine")
        self._prompts = {role: _prompt(spec, role, model, settings) for role in ("query", "document")}
        self._limit = LengthLimit(spec, model.tokenizer, model.max_seq_length)
        if self._limit.limit is not None:
            # The library cuts long texts without a word, and keeps to itself what its tokenizer made of them.
            self._preprocess = model.preprocess
            model.preprocess = self._preprocess_and_count
        self.dim = self._choose_dimensions(settings.get("dimensions"))
        unused_poolers = getattr(model[0], "module_output_name", "") == "token_embeddings"
        self.fingerprint = named_fingerprint(
            weights="\n".join(
                fact for fact in tensor_facts(model, torch) if not (unused_poolers and ".pooler." in fact.split()[0])
            ),
            architecture=architecture_facts(folder),
            prompts=json.dumps({role: prompt.text for role, prompt in self._prompts.items()}),
            output=json.dumps([settings.get("pooling"), self.dim, self.normalized]),
            tokenizer=tokenizer_facts(folder) + json.dumps([self._tokens(_PROBE), model.max_seq_length]),
        )

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load a repository or a folder that has modules.json; the module's head tells the settings.

        Raises MissingExtra without sentence-transformers, EncoderError where the model is not there, is of another
        kind, would run code or read pickles that were not allowed, or where a setting does not fit it.
        """
        spec = f"{cls.scheme}:{name}"
        check_settings(spec, settings, _SETTINGS)
        try:
            library: Any = importlib.import_module("sentence_transformers")
            transformers: Any = importlib.import_module("transformers")
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            if error.name in {"sentence_transformers", "transformers", "torch"}:
                raise MissingExtra(f"Encoder '{spec}'", "sentence-transformers") from None
            raise EncoderError(f"Encoder '{spec}' could not import sentence-transformers: {error}.") from error
        device = choose_device(spec, settings.get("device", "auto"), torch)
        pickles, trusted = settings.get("allow_pickle", False), settings.get("trust_remote_code", False)
        repository = name if "/" in name or is_path(name) else f"sentence-transformers/{name}"
        folder = find_folder(spec, repository, settings)
        check_folder(
            spec, folder, needed="modules.json", pickles=pickles,
            hint="It is no model of sentence-transformers; transformers:… may load it.",
        )  # fmt: skip
        _check_kind(spec, folder, trusted)
        precision = settings.get("precision", "auto")
        names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
        dtype = getattr(torch, names[precision]) if precision in names else "auto"
        try:
            with quiet(transformers):
                model = library.SentenceTransformer(
                    str(folder),
                    device=device,
                    trust_remote_code=trusted,
                    local_files_only=not trusted,  # code may stand in another repository
                    model_kwargs={"dtype": dtype, **({} if pickles else {"use_safetensors": True})},
                )
        except Exception as error:
            raise EncoderError(f"sentence-transformers could not load '{spec}': {first_line(error)}.") from error
        model.eval().requires_grad_(False)
        _set_pooling(spec, model, settings.get("pooling"))
        _set_length(spec, model, settings.get("max_length"))
        return cls(spec, model, folder, settings, torch)

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """A local folder, the cache's folder, pickles and code that comes with the model where they are asked for."""
        return folder_needs(name, settings)

    @property
    def cut_texts(self) -> int:
        """How many texts so far were longer than the model reads."""
        return self._limit.cut_texts

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts of rows, after the prompt for documents, cut at the model's length -> ``(n, dim) float32``."""
        return self._embed_texts(texts, "document")

    def embed_query_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts to search with, after the prompt for queries."""
        return self._embed_texts(texts, "query")

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Pictures of rows -> ``(n, dim) float32``."""
        return self._embed([{"image": picture} for picture in pixels], "document")

    def embed_query_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Pictures to search with."""
        return self._embed([{"image": picture} for picture in pixels], "query")

    def tokenizer_json(self) -> str | None:
        """That of the model, where it is one of the package tokenizers."""
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        return None if backend is None else str(backend.to_str())

    def text_tokens(self) -> TextTokens:
        """Those of rows' texts, after the prompt for documents."""
        return self._text_tokens

    @property
    def model(self) -> Any:  # noqa: ANN401
        """The model of the library."""
        return self._model

    @property
    def has_prompts(self) -> bool:
        """Whether texts of rows or searches have a prompt."""
        return any(prompt.text for prompt in self._prompts.values())

    @property
    def averages_alone(self) -> bool:
        """Whether a text's vector is the mean of the outputs of its tokens, and nothing is done with it but scaling."""
        kinds = [type(module).__name__ for module in self._model.children()][1:]
        pooling = self._pooling
        return (
            pooling is not None
            and kinds in (["Pooling"], ["Pooling", "Normalize"])
            and (_is_mean(pooling) and self.dim == int(pooling.embedding_dimension))
        )

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """Late chunking -> ``(n, dim) float32``. Raises UnsupportedModality for models that do not average tokens."""
        tokens, later = self._text_tokens, list(self._model.children())[1:]
        if "text" not in self.modalities or not isinstance(tokens, TokenizerTokens):
            return super().embed_spans(text, spans)
        pooling = self._pooling
        if pooling is None or not _is_mean(pooling):
            raise no_token_outputs(self.spec, "does not average the outputs of its tokens")
        means = span_means(
            text,
            spans,
            tokens,
            self._token_outputs,
            dim=int(pooling.embedding_dimension),
            batch=self.batch_size,
            prompt_counts=bool(pooling.include_prompt) or not self._prompts["document"].text,
        )
        features: dict[str, Any] = {"sentence_embedding": self._torch.from_numpy(means).to(self._model.device)}
        with self._torch.inference_mode():
            for module in later[1:]:
                features = module(features)
        return self._finished(features["sentence_embedding"].float().cpu().numpy()[:, : self.dim])

    @property
    def _pooling(self) -> Any:  # noqa: ANN401
        later = list(self._model.children())[1:2]
        return next((module for module in later if type(module).__name__ == "Pooling"), None)

    def _token_outputs(self, windows: Sequence[Sequence[int]]) -> Vectors:
        """What the model gives for windows of token ids: ``(b, m, dim)``."""
        ids = self._torch.tensor(windows, device=self._model.device)
        with self._torch.inference_mode():
            found = self._model[0]({"input_ids": ids, "attention_mask": self._torch.ones_like(ids)})
        return found["token_embeddings"].float().cpu().numpy()

    @cached_property
    def _text_tokens(self) -> TextTokens:
        tokenizer_json = self.tokenizer_json()
        if tokenizer_json is None:
            return super().text_tokens()
        return TokenizerTokens(tokenizer_json, self._limit.limit, before=self._prompts["document"].text)

    def _embed_texts(self, texts: Sequence[str], role: Role) -> Vectors:
        # Bare strings that look like an address or a path of a picture would be fetched and read by the library.
        return self._embed([{"text": text} for text in texts], role)

    def _embed(self, inputs: list[dict[str, Any]], role: Role) -> Vectors:
        if not inputs:
            return np.zeros((0, self.dim), dtype=np.float32)
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        found = encode(inputs, batch_size=self.batch_size, show_progress_bar=False, **self._prompts[role].arguments)
        return self._finished(np.asarray(found, dtype=np.float32))

    def _finished(self, vectors: Vectors) -> Vectors:
        if self.normalized:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _choose_dimensions(self, asked: int | None) -> int:
        stored = self._model.truncate_dim
        self._model.truncate_dim = None
        self.dim = 0
        whole = int(self._probe().shape[1])
        if asked is not None and asked > whole:
            raise EncoderError(
                f"The model of '{self.spec}' has {whole} dimensions, not {asked}.", f"Give at most {whole}."
            )
        self._model.truncate_dim = asked or stored
        return min(asked or stored or whole, whole)

    def _probe(self) -> Vectors:
        try:
            if "text" in self.modalities:
                return self._embed([{"text": "a"}], "document")
            return self._embed([{"image": Image.new("RGB", (64, 64))}], "document")
        except Exception as error:
            raise EncoderError(f"The model of '{self.spec}' does not encode: {first_line(error)}.") from error

    def _tokens(self, text: str) -> list[int]:
        tokenizer = self._model.tokenizer
        if not getattr(tokenizer, "is_fast", False):  # others are no tokenizers of transformers
            return []
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _preprocess_and_count(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> Any:  # noqa: ANN401
        """What the library makes of a batch before its model sees it; counts the texts that were cut."""
        features: Any = self._preprocess(inputs, prompt=prompt, **options)
        encodings = getattr(features, "encodings", None)
        for encoding in encodings or ():
            if encoding.overflowing:  # what was cut off
                pieces = (encoding, *encoding.overflowing)
                words = sum(len(piece) - sum(piece.special_tokens_mask) for piece in pieces)
                self._limit.note(words + sum(encoding.special_tokens_mask))
        mask: Any = features.get("attention_mask")
        if encodings is None and mask is not None:  # processors with pictures do not tell: look at the longest again
            around: int | None = None
            for given, length in zip(inputs, mask.sum(dim=1).tolist(), strict=True):
                if length >= (self._limit.limit or 0) and "text" in given:
                    if around is None:
                        around = int(self._preprocess([{"text": ""}], prompt=prompt, **options)["attention_mask"].sum())
                    self._limit.note(around + len(self._tokens(given["text"])))
        return features


def _is_mean(pooling: Any) -> bool:  # noqa: ANN401
    return pooling.pooling_mode in ("mean", ("mean",), ["mean"])


def _modalities(spec: str, model: Any) -> frozenset[Modality]:  # noqa: ANN401
    found: set[Modality] = {"text"} if model.supports("text") else set()
    if model.supports("image"):
        found |= {"image", "screenshot"}
    if not found:
        taken = ", ".join(str(modality) for modality in model.modalities)
        raise EncoderError(f"The model of '{spec}' takes {taken}, neither texts nor pictures.")
    return frozenset(found)


def _prompt(spec: str, role: Role, model: Any, settings: Settings) -> _Prompt:  # noqa: ANN401
    """The prompt of a role: that of the settings, or the one which the library takes by itself."""
    text, name = settings.get(f"{role}_prompt"), settings.get(f"{role}_prompt_name")
    prompts: dict[str, str] = model.prompts
    if text is not None and name is not None:
        raise EncoderError(
            f"Encoder '{spec}' has both a {role}_prompt and a {role}_prompt_name.", "Keep one of the two settings."
        )
    if text is not None:
        return _Prompt({"prompt": text}, text)
    if name is not None:
        if name not in prompts:
            raise EncoderError(
                f"The model of '{spec}' has no prompt named '{name}'.", f"Its prompts: {', '.join(prompts) or 'none'}."
            )
        return _Prompt({"prompt_name": name}, prompts[name])
    # As encode_query and encode_document choose.
    names = ("query",) if role == "query" else ("document", "passage", "corpus")
    own = next((known for known in names if known in prompts), model.default_prompt_name)
    return _Prompt({}, prompts.get(own, "") if own else "")


def _check_kind(spec: str, folder: Path, trusted: bool) -> None:
    """Raises EncoderError for a model of another kind, which the library would convert, and for code of its own."""
    config = folder / "config_sentence_transformers.json"
    kind = read_json(spec, config).get("model_type", "SentenceTransformer") if config.is_file() else None
    if kind not in (None, "SentenceTransformer"):
        raise EncoderError(f"The model of '{spec}' is a {kind}, which gives no vector for each input.")
    for kind in read_modules(spec, folder / "modules.json"):
        if not kind.startswith("sentence_transformers.") and not trusted:
            raise EncoderError(
                f"The model of '{spec}' has a module of its own, {kind}, which is code.",
                'If you trust it, add the setting {"trust_remote_code": true}.',
            )


def _set_pooling(spec: str, model: Any, mode: str | None) -> None:  # noqa: ANN401
    if mode is None:
        return
    for name, module in model.named_children():
        if type(module).__name__ == "Pooling":
            setattr(model, name, type(module)(module.embedding_dimension, mode, include_prompt=module.include_prompt))
            return
    raise EncoderError(f"The model of '{spec}' pools in a way of its own.", "Drop the setting 'pooling'.")


def _set_length(spec: str, model: Any, length: int | None) -> None:  # noqa: ANN401
    if length is None:
        return
    most = getattr(getattr(model[0], "config", None), "max_position_embeddings", None)
    if isinstance(most, int) and length > most > 0:
        raise EncoderError(f"The model of '{spec}' reads {most} tokens, not {length}.", f"Give at most {most}.")
    model.max_seq_length = length
