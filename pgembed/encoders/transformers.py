"""``transformers:NAME|PATH``: embedding models of that library, above all those that read text and pictures together.

    transformers:google/siglip2-base-patch16-224                     two towers: CLIP, SigLIP and their like
    transformers:Alibaba-NLP/gme-Qwen2-VL-2B-Instruct                with {"preset": "gme"}: one model reads both
    transformers:vidore/colqwen2-v1.0-hf                             many vectors; {"pooling": "mean"} makes one of them
    transformers:/models/ours                                        a folder with config.json

What stands around texts and pictures is a matter of training. The setting ``preset`` names the prompts of a family
(transformer_prompts.py), ``template`` says another in full, as ``<|im_start|>user\\n{image}{instruction}
{text}<|im_end|>\\n<|endoftext|>``; without them it is the model's chat template, with the instruction of the role as
the system's. torch is imported when a model is loaded, not before.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from pgembed.encoders.base import MODALITIES, Encoder, Needs, Role, Settings, named_fingerprint
from pgembed.encoders.late_chunking import no_token_outputs, span_means
from pgembed.encoders.length_limit import LengthLimit
from pgembed.encoders.model_folder import (
    architecture_facts,
    check_folder,
    find_folder,
    folder_needs,
    quiet,
    read_json,
    tokenizer_facts,
)
from pgembed.encoders.settings import Known, check_settings
from pgembed.encoders.text_tokens import TextTokens, TokenizerTokens
from pgembed.encoders.torch_models import choose_device, first_line
from pgembed.encoders.transformer_families import (
    FAMILIES,
    POOLINGS,
    Family,
    family_of,
    pool,
    with_pooling,
)
from pgembed.encoders.transformer_loading import Loaded, is_late, load_model
from pgembed.encoders.transformer_prompts import (
    CHAT,
    PRESETS,
    ROLES,
    Prompt,
    find_preset,
    make_prompts,
    named_after,
)
from pgembed.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors

_SETTINGS: Known = {
    "family": tuple(FAMILIES),  # how it is called, where its own model_type does not tell
    "pooling": POOLINGS,
    "preset": (*PRESETS, CHAT),  # the prompts of a family, by its name; chat: the model's own chat template
    "template": str,  # the whole prompt, with {instruction}, {image} and {text}
    "query_instruction": str,
    "document_instruction": str,
    "dimensions": int,  # the first so many, for models trained so (Matryoshka)
    "normalize": bool,  # to unit length; true unless said otherwise
    "max_length": int,  # tokens that are read, those of the prompt included
    "min_pixels": int,
    "max_pixels": int,
    "precision": ("auto", "fp32", "fp16", "bf16"),  # auto: as the weights are stored
    "device": str,  # auto, cpu, cuda, cuda:1, mps
    "batch_size": int,
    "revision": str,
    "cache_dir": str,
    "allow_pickle": bool,
    "trust_remote_code": bool,
}
_Tokens = tuple[Any, Any]
_BLANK = (28, 28)  # the size of a picture that stands for none
_PROBE = "A probe of the tokenizer: naïve café, 3.14 ÷ 2; don't!"
log = logging.getLogger("pgembed.encoders")


class TransformersEncoder(Encoder):
    """A model of transformers. Vectors have unit length unless ``normalize`` is false.

    ``load`` refuses a model that gives many vectors for an input, since no column holds them; ``load_many`` is for
    programs that want them, by the methods ``embed_…_many``.
    """

    scheme: ClassVar[str] = "transformers"

    def __init__(self, spec: str, loaded: Loaded, settings: Settings) -> None:
        self.spec = spec
        self.batch_size = settings.get("batch_size", 16)
        self.normalized = settings.get("normalize", True)
        self._torch: Any = importlib.import_module("torch")
        self._model, self._processor, self._latent = loaded.model, loaded.processor, loaded.latent
        self._tokenizer = _part(loaded.processor, "tokenizer", "encode")
        self._viewer = _part(loaded.processor, "image_processor", "preprocess")
        taken = {"text": self._tokenizer, "image": self._viewer, "screenshot": self._viewer}
        self.modalities = frozenset(modality for modality in MODALITIES if taken[modality] is not None)
        kind = settings.get("family", loaded.model.config.model_type)
        family = family_of(kind, loaded.model, reads=self._tokenizer is not None)
        self._family = with_pooling(spec, family, settings.get("pooling"))
        preset = find_preset(spec, settings, kind)
        usual: Settings = preset.settings if preset is not None else {}
        edges = [settings.get(edge, usual.get(edge)) for edge in ("min_pixels", "max_pixels")]
        _set_pixels(spec, self._family, self._viewer, *edges)
        self._in_line = preset is not None and preset.in_line
        self._prompts = make_prompts(spec, self._processor, self._family, preset, settings, self.modalities, kind)
        if self._family.way == "joint" and self._viewer is not None and not {"preset", "template"} & set(settings):
            log.warning(
                "Encoder '%s' reads in its model's chat template. Where it was trained on other prompts, name them: the"
                ' setting preset, or template; {"preset": "chat"} says that it was not.',
                spec,
            )
        self._reserved = {role: self._count_prompt(role) for role in ROLES}
        self._limit = self._choose_limit(settings.get("max_length"), usual.get("max_length"))
        special: list[str] = getattr(self._tokenizer, "all_special_tokens", None) or ["\0"]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self.dim = self._choose_dimensions(settings.get("dimensions"))
        probe = self._tokenizer(_PROBE, verbose=False)["input_ids"] if self._tokenizer is not None else None
        self.fingerprint = named_fingerprint(
            weights="\n".join(loaded.weights),
            architecture=architecture_facts(loaded.folder) + type(loaded.model).__name__,
            preprocessing=json.dumps(edges),
            prompts=json.dumps([[*key, p.before, p.after, p.blank] for key, p in sorted(self._prompts.items())]),
            output=json.dumps([self._family.way, self._family.pooling, self.dim, self.normalized, self._in_line]),
            tokenizer=tokenizer_facts(loaded.folder) + json.dumps([probe, self._limit.limit]),
        )

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load a repository or a folder in the hub's layout; docs/encoders.md tells the settings.

        Raises MissingExtra without transformers, EncoderError where the model is not there, would run code or read
        pickles that were not allowed, lacks weights, gives many vectors for an input, or where a setting does not fit.
        """
        return cls._loaded(name, settings, many=False)

    @classmethod
    def load_many(cls, name: str, settings: Settings) -> Self:
        """``load``, also of what gives many vectors for an input: late interaction, or ``{"pooling": "none"}``."""
        return cls._loaded(name, settings, many=True)

    @classmethod
    def _loaded(cls, name: str, settings: Settings, *, many: bool) -> Self:
        spec = f"{cls.scheme}:{name}"
        check_settings(spec, settings, _SETTINGS)
        if settings.get("pooling") == "none" and not many:
            raise _many_vectors(spec)
        known = named_after(name)
        if known is not None and not {"preset", "template"} & set(settings):
            raise EncoderError(
                f"The model of '{spec}' has the name of a family that was trained on prompts of its own.",
                f'Add the setting {{"preset": "{known}"}}; where it is none of them, {{"preset": "{CHAT}"}}.',
            )
        try:
            transformers: Any = importlib.import_module("transformers")
            torch: Any = importlib.import_module("torch")
            importlib.import_module("torchvision")
        except ImportError as error:
            if error.name in {"transformers", "torch", "torchvision"}:
                raise MissingExtra(f"Encoder '{spec}'", "transformers") from None
            raise EncoderError(f"Encoder '{spec}' could not import transformers: {error}.") from error
        device = choose_device(spec, settings.get("device", "auto"), torch)
        folder = find_folder(spec, name, settings)
        check_folder(
            spec, folder, needed="config.json", pickles=settings.get("allow_pickle", False),
            hint="Give the folder of a model of transformers.",
        )  # fmt: skip
        config = read_json(spec, folder / "config.json")
        if not many and "pooling" not in settings and is_late(config, settings):
            raise _many_vectors(spec)
        with quiet(transformers):
            loaded = load_model(spec, folder, config, settings, transformers, torch, device)
        encoder = cls(spec, loaded, settings)
        if encoder._gives_many and not many:
            raise _many_vectors(spec)
        return encoder

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """A local folder, the cache's folder, pickles and code that comes with the model where they are asked for."""
        return folder_needs(name, settings)

    @property
    def cut_texts(self) -> int:
        """How many texts so far were longer than the model reads."""
        return self._limit.cut_texts

    def preprocess(self, picture: Picture) -> Any:  # noqa: ANN401
        """Where pictures have a tower of their own: its tensors. Elsewhere the prompt needs the picture itself."""
        if not self._apart:
            return picture
        return {key: value[0] for key, value in self._viewer(images=[picture], return_tensors="pt").items()}

    def tokenizer_json(self) -> str | None:
        """That of the model, where it is one of the package tokenizers."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else str(backend.to_str())

    def text_tokens(self) -> TextTokens:
        """Those of rows' texts, in the prompt for documents."""
        return self._text_tokens

    def embed_spans(self, text: str, spans: Sequence[tuple[int, int]]) -> Vectors:
        """Late chunking -> ``(n, dim) float32``. Raises UnsupportedModality for models that do not average tokens."""
        tokens, family = self._text_tokens, self._family
        if not isinstance(tokens, TokenizerTokens) or self._prompts["document", "text"].blank:
            return super().embed_spans(text, spans)
        if (family.way, family.pooling) != ("joint", "mean"):
            raise no_token_outputs(self.spec, "does not average the outputs of its tokens")
        width = self._whole_dim
        means = span_means(text, spans, tokens, self._token_outputs, dim=width, batch=self.batch_size)
        return self._finished(self._torch.from_numpy(means))

    def _token_outputs(self, windows: Sequence[Sequence[int]]) -> Vectors:
        ids = self._torch.tensor(windows)
        found, _ = self._run({"input_ids": ids, "attention_mask": self._torch.ones_like(ids)}, "get_text_features")
        return found.cpu().numpy()

    @cached_property
    def _text_tokens(self) -> TextTokens:
        tokenizer_json = self.tokenizer_json()
        if tokenizer_json is None or "text" not in self.modalities or self._family.way == "many":
            return super().text_tokens()
        prompt = self._prompts["document", "text"]
        return TokenizerTokens(
            tokenizer_json,
            self._limit.limit,
            before=prompt.before,
            after=prompt.after,
            special=self._options(prompt).get("add_special_tokens", True),
            clean=lambda text: self._special.sub(" ", text),
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts of rows, in the prompt for documents, cut where they are too long -> ``(n, dim) float32``."""
        return self._one_each(self._run_texts(texts, "document"))

    def embed_query_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts to search with, in the prompt for queries."""
        return self._one_each(self._run_texts(texts, "query"))

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Pictures of rows -> ``(n, dim) float32``."""
        return self._one_each(self._run_pixels(pixels, "document"))

    def embed_query_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Pictures to search with."""
        return self._one_each(self._run_pixels(pixels, "query"))

    def embed_texts_many(self, texts: Sequence[str]) -> list[Vectors]:
        """Texts of rows -> for each ``(m, dim) float32``, one vector for each token."""
        return self._many_each(self._run_texts(texts, "document"))

    def embed_query_texts_many(self, texts: Sequence[str]) -> list[Vectors]:
        """Texts to search with -> for each ``(m, dim) float32``."""
        return self._many_each(self._run_texts(texts, "query"))

    def embed_pixels_many(self, pixels: Sequence[Any]) -> list[Vectors]:
        """Pictures of rows -> for each ``(m, dim) float32``, one vector for each patch and token."""
        return self._many_each(self._run_pixels(pixels, "document"))

    def embed_query_pixels_many(self, pixels: Sequence[Any]) -> list[Vectors]:
        """Pictures to search with -> for each ``(m, dim) float32``."""
        return self._many_each(self._run_pixels(pixels, "query"))

    def _run_texts(self, texts: Sequence[str], role: Role) -> Iterator[_Tokens]:
        # What a tokenizer takes for a token of its own, as a picture's place, is no such thing in a row's text.
        plain = [self._special.sub(" ", text) for text in texts]
        if self._family.way == "joint" and not self._reserved[role]:
            plain = [text or " " for text in plain]  # no token at all has no vector
        fitting = self._limit.cut(plain, self._reserved[role])
        prompt = self._prompts[role, "text"]
        for start in range(0, len(texts), self.batch_size):
            # Where the text comes last the tokenizer cuts it; where the prompt goes on behind it, it must stay whole.
            batch = (fitting if prompt.after or self._family.way == "many" else plain)[start : start + self.batch_size]
            yield self._run(self._text_inputs(batch, role), "get_text_features")

    def _run_pixels(self, pixels: Sequence[Any], role: Role) -> Iterator[_Tokens]:
        for start in range(0, len(pixels), self.batch_size):
            yield self._run(self._pixel_inputs(pixels[start : start + self.batch_size], role), "get_image_features")

    def _text_inputs(self, texts: Sequence[str], role: Role) -> Mapping[str, Any]:
        prompt = self._prompts[role, "text"]
        whole = [prompt.before + text + prompt.after for text in texts]
        if self._family.way == "many":
            return self._processor.process_queries(text=whole)
        options: dict[str, Any] = self._options(prompt)
        if not prompt.after and self._limit.limit is not None:
            options |= {"truncation": True, "max_length": self._limit.limit}
        if self._family.padded:
            options["padding"] = "max_length"
        if prompt.blank:
            options["images"] = [[Image.new("RGB", _BLANK)] for _ in whole]
        return self._processor(whole, **options) if self._viewer is None else self._processor(text=whole, **options)

    def _pixel_inputs(self, pixels: Sequence[Any], role: Role) -> Mapping[str, Any]:
        if self._apart:
            return {key: self._torch.stack([each[key] for each in pixels]) for key in pixels[0]}
        if self._family.way == "many":
            return self._processor.process_images(images=list(pixels))
        prompt = self._prompts[role, "image"]
        return self._processor(
            text=[prompt.before] * len(pixels), images=[[picture] for picture in pixels], **self._options(prompt)
        )

    def _options(self, prompt: Prompt) -> dict[str, Any]:
        begin = getattr(self._tokenizer, "bos_token", None)
        begun = bool(begin) and prompt.before.startswith(str(begin))  # a chat template writes it, a tokenizer adds it
        return {"padding": True, "return_tensors": "pt", **({"add_special_tokens": False} if begun else {})}

    def _run(self, inputs: Mapping[str, Any], tower: str) -> _Tokens:
        """What the model makes of a batch: vectors ``(n, m, dim)``, and which of them count ``(n, m)``."""
        model, kind = self._model, self._model.dtype
        given = {
            key: value.to(model.device, kind if value.is_floating_point() else None) for key, value in inputs.items()
        }
        mask: Any = given.get("attention_mask")
        if self._in_line and "image_grid_thw" in given:  # Qwen's models would count by the picture's rows and columns
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)
        with self._torch.inference_mode():
            if self._family.way == "dual":
                found = getattr(model, tower)(**given)
                found = getattr(found, "pooler_output", found)
            else:
                headless = self._family.pooling == "latent" and self._latent is None
                one_each = "sentence_embeddings" if headless else "last_hidden_state"
                found = _output(model(**given), "embeddings" if self._family.way == "many" else one_each)
            found = (found if found.ndim == 3 else found.unsqueeze(1)).float()
            if mask is None or mask.shape != found.shape[:2]:
                mask = self._torch.ones(found.shape[:2], dtype=self._torch.int64, device=found.device)
        return found, mask

    def _one_each(self, batches: Iterable[_Tokens]) -> Vectors:
        if self._gives_many:
            raise _many_vectors(self.spec)
        how = self._family.pooling
        found: list[Vectors] = [np.zeros((0, self.dim), dtype=np.float32)]
        for tokens, mask in batches:
            if self._latent is not None and how == "latent":
                vectors = self._latent(tokens, mask)
            else:
                vectors = pool(tokens, mask, how, self._torch)
            found.append(self._finished(vectors))
        return np.concatenate(found)

    def _many_each(self, batches: Iterable[_Tokens]) -> list[Vectors]:
        return [
            self._finished(vectors[counts.bool()])
            for tokens, mask in batches
            for vectors, counts in zip(tokens, mask, strict=True)
        ]

    def _finished(self, vectors: Any) -> Vectors:  # noqa: ANN401
        """The first ``dim`` of each, of unit length where that is wanted."""
        kept = vectors[:, : self.dim]
        return (self._torch.nn.functional.normalize(kept, dim=-1) if self.normalized else kept).cpu().numpy()

    @property
    def _apart(self) -> bool:
        """Whether pictures need no prompt, so that they can be made into tensors one by one, in threads."""
        return self._family.way == "dual" or self._tokenizer is None

    @property
    def _gives_many(self) -> bool:
        return self._family.pooling == "none" and self._family.way != "dual"

    def _count_prompt(self, role: Role) -> int:
        """How many tokens stand around a text."""
        if self._tokenizer is None:
            return 0
        prompt = self._prompts[role, "text"]
        if self._family.way == "many" or prompt.blank:
            return int(self._text_inputs([""], role)["input_ids"].shape[1])
        special = self._options(prompt).get("add_special_tokens", True)
        return len(self._tokenizer(prompt.before + prompt.after, add_special_tokens=special)["input_ids"])

    def _choose_limit(self, asked: int | None, usual: int | None) -> LengthLimit:
        if self._tokenizer is None:
            return LengthLimit(self.spec, None, None)
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        most = min(int(self._tokenizer.model_max_length), most if isinstance(most, int) and most > 0 else 10**9)
        if asked is not None and asked > most:
            raise EncoderError(f"The model of '{self.spec}' reads {most} tokens, not {asked}.", f"Give at most {most}.")
        if usual is not None:
            most = min(most, usual)
        prompt = max(self._reserved.values())
        if asked is not None and asked <= prompt:
            raise EncoderError(
                f"The prompt of '{self.spec}' alone has {prompt} tokens, and max_length is {asked}.",
                "Give a larger max_length.",
            )
        return LengthLimit(self.spec, self._tokenizer, asked or most)

    def _choose_dimensions(self, asked: int | None) -> int:
        try:
            if self._tokenizer is not None:
                batches = self._run_texts(["a"], "document")
            elif self._viewer is not None:
                batches = self._run_pixels([self.preprocess(Image.new("RGB", (64, 64)))], "document")
            else:
                raise EncoderError(f"The model of '{self.spec}' takes neither texts nor pictures.")
            whole = int(next(iter(batches))[0].shape[-1])
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(f"The model of '{self.spec}' does not encode: {first_line(error)}.") from error
        if asked is not None and asked > whole:
            raise EncoderError(
                f"The model of '{self.spec}' has {whole} dimensions, not {asked}.", f"Give at most {whole}."
            )
        self._whole_dim = whole
        return asked or whole


def _part(processor: Any, name: str, sign: str) -> Any:  # noqa: ANN401
    """A part of a processor, which is the part itself where the model takes one kind of input only."""
    return getattr(processor, name, None) or (processor if hasattr(processor, sign) else None)


def _output(output: Any, name: str) -> Any:  # noqa: ANN401
    """One of the outputs of a model. Raises EncoderError where it has none of this name."""
    found: Any = output.get(name)
    if found is None:
        raise EncoderError(f"The model gives no {name}.", "Choose another pooling, or say its family.")
    return found


def _many_vectors(spec: str) -> EncoderError:
    return EncoderError(
        f"Encoder '{spec}' gives many vectors for an input, and a column holds one.",
        'Add the setting {"pooling": "mean"}, or "last".',
    )


def _set_pixels(spec: str, family: Family, viewer: Any, least: int | None, most: int | None) -> None:  # noqa: ANN401
    """Between how many pixels a picture is resized to. Raises EncoderError where the model's pictures have one size."""
    edges = {"shortest_edge": least, "longest_edge": most}
    asked = {edge: pixels for edge, pixels in edges.items() if pixels is not None}
    if not asked:
        return
    if viewer is None or not family.sized:
        raise EncoderError(f"The pictures of '{spec}' are all of one size.", "Drop min_pixels and max_pixels.")
    size = {**dict(viewer.size), **asked}
    if size["shortest_edge"] > size["longest_edge"]:
        raise EncoderError(
            f"'{spec}' has min_pixels {size['shortest_edge']} above max_pixels {size['longest_edge']}.", "Set both."
        )
    viewer.size = type(viewer.size)(**size)
