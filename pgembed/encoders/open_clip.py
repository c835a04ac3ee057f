"""``open_clip:MODEL/TAG``: the CLIP family in open_clip's names, with the model's own preprocessing and tokenizer.

    open_clip:ViT-B-32/laion2b_s34b_b79k      a model and a tag; its weights come from the hub or its cache
    open_clip:ViT-B-32                        with the setting checkpoint: a local file of weights
    open_clip:any-label                       with the settings config (a local JSON) and checkpoint
    open_clip:hf-hub:ORG/REPO                 a repository on the hub that brings its own configuration
    open_clip:local-dir:PATH                  a folder with open_clip_config.json and weights

Weights, configurations and tokenizers come through the hub's own cache: HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE mean
here what they mean everywhere. torch is imported when a model is loaded, not before.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from pgembed.encoders.base import Encoder, Modality, Needs, Settings, named_fingerprint
from pgembed.encoders.batching import MOST, Batcher, chosen_size, without_auto
from pgembed.encoders.compiled import Compiled
from pgembed.encoders.length_limit import CutTexts
from pgembed.encoders.settings import Known, check_settings
from pgembed.encoders.text_tokens import CountedTokens, TextTokens
from pgembed.encoders.torch_models import choose_device, first_line, tensor_facts
from pgembed.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors

_SETTINGS: Known = {
    "checkpoint": str,  # a local file of weights: .safetensors, or a pickle where allow_pickle is true
    "config": str,  # a local JSON of the architecture: embed_dim, vision_cfg, text_cfg
    "allow_pickle": bool,  # take .pt, .pth and .bin files too; they are read with torch's weights_only
    "device": str,  # auto, cpu, cuda, cuda:1, mps
    "precision": ("fp32", "fp16", "bf16"),
    "batch_size": int,  # or auto, which is the default: found while the first rows are encoded
    "compile": bool,  # torch.compile: the first batches take minutes, the others less than before
    "cache_dir": str,  # where downloads are kept, in place of the hub's own cache
    "tokenizer": str,  # a local folder with the files of a tokenizer that would come from the hub
}
_REMOTE = "hf-hub:"
_FOLDER = "local-dir:"
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_PROBE = "A probe of the tokenizer: naïve café, 3.14 ÷ 2; don't!"


class OpenClipEncoder(Encoder):
    """A model of open_clip. Pictures, screenshots and texts share its space; vectors have unit length."""

    scheme: ClassVar[str] = "open_clip"
    modalities: frozenset[Modality] = frozenset({"text", "image", "screenshot"})

    def __init__(
        self,
        spec: str,
        loaded: _Loaded,
        *,
        device: str,
        precision: str,
        batch_size: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.spec = spec
        self.batch_size = batch_size or MOST  # what one call is handed; it may encode it in smaller batches
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.preprocessing: Mapping[str, Any] = loaded.model.visual.preprocess_cfg
        self._torch: Any = importlib.import_module("torch")
        self._device: Any = self._torch.device(device)
        self._transform = loaded.transform
        self._limit = CutTexts(spec, int(loaded.tokenizer.context_length))
        self._image_side: Callable[[Any], Any] = loaded.model.encode_image
        self._text_side: Callable[[Any], Any] = loaded.model.encode_text
        self._dtype: Any = getattr(self._torch, _DTYPES[precision])
        self._text_batches, self._image_batches = (
            Batcher(spec, batch_size, out_of_memory=self._out_of_memory) for _ in range(2)
        )
        try:
            self.dim = int(self._vectors(["a"], self._encode_texts).shape[1])
        except RuntimeError as error:
            message = f"'{spec}' encodes no text in {precision} on {device}: {first_line(error)}."
            raise EncoderError(message, 'Choose another precision or device: {"precision": "fp32"}.') from error
        self.fingerprint = named_fingerprint(
            weights="\n".join(tensor_facts(loaded.model, self._torch)),
            architecture=loaded.architecture,
            preprocessing=json.dumps(self.preprocessing, sort_keys=True, default=list),
            tokenizer=json.dumps(self.tokenizer([_PROBE]).tolist()),
        )
        if compiled:
            self._image_side, self._text_side = (
                Compiled(spec, side, self._torch, self._out_of_memory) for side in (self._image_side, self._text_side)
            )

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load ``MODEL/TAG``, ``MODEL``, ``hf-hub:…`` or ``local-dir:…``; the module's head tells what each needs.

        Settings: checkpoint, config, tokenizer, cache_dir, allow_pickle, device, precision, batch_size, compile. A tag
        beside a checkpoint gives the preprocessing that its weights were trained with. Raises MissingExtra without
        open_clip, EncoderError where the model, the tag or the weights are not there, or do not fit one another.
        """
        spec = f"{cls.scheme}:{name}"
        check_settings(spec, without_auto(settings), _SETTINGS)
        try:
            open_clip: Any = importlib.import_module("open_clip")
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            if error.name in {"open_clip", "torch", "torchvision"}:
                raise MissingExtra(f"Encoder '{spec}'", "clip") from None
            raise EncoderError(f"Encoder '{spec}' could not import open_clip: {error}.") from error
        device = choose_device(spec, settings.get("device", "auto"), torch)
        precision = settings.get("precision", "fp32")
        with _source(spec, name, settings, open_clip) as source:
            loaded = _load(spec, source, open_clip, precision, device)
            if precision != "fp32" and not _runs(loaded, torch, device, precision):
                # open_clip leaves some layers of some towers in single precision, and does not convert between them
                loaded = _load(spec, source, open_clip, f"pure_{precision}", device)
        return cls(
            spec,
            loaded,
            device=device,
            precision=precision,
            batch_size=chosen_size(settings),
            compiled=settings.get("compile", False),
        )

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """Local files of configuration, weights and tokenizer, and pickles where they are asked for."""
        files = [str(settings[key]) for key in ("checkpoint", "config", "tokenizer", "cache_dir") if key in settings]
        if name.startswith(_FOLDER):
            files.append(name.removeprefix(_FOLDER))
        return Needs(tuple(files), code="its weights may be a pickle" if settings.get("allow_pickle") else None)

    def preprocess(self, picture: Picture) -> Any:  # noqa: ANN401
        """The model's own preprocessing: one tensor ``(3, height, width) float32``."""
        return self._transform(picture)

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Preprocessed pictures -> ``(n, dim) float32``, of unit length."""
        return self._embed(pixels, self._encode_pixels, self._image_batches)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts, cut off at the model's context length, -> ``(n, dim) float32``, of unit length."""
        self._limit.look(texts, self._text_tokens)
        return self._embed(texts, self._encode_texts, self._text_batches)

    @property
    def cut_texts(self) -> int:
        """How many texts so far were longer than the model reads."""
        return self._limit.cut_texts

    def text_tokens(self) -> TextTokens:
        """Those of the model's tokenizer, which cleans texts before it reads them."""
        return self._text_tokens

    @cached_property
    def _text_tokens(self) -> TextTokens:
        return _text_tokens(self.tokenizer)

    def _encode_pixels(self, pixels: Sequence[Any]) -> Any:  # noqa: ANN401
        return self._image_side(self._torch.stack(list(pixels)).to(device=self._device, dtype=self._dtype))

    def _encode_texts(self, texts: Sequence[str]) -> Any:  # noqa: ANN401
        return self._text_side(self.tokenizer(list(texts)).to(self._device))

    def _embed(self, inputs: Sequence[Any], encode: Callable[[Sequence[Any]], Any], batches: Batcher) -> Vectors:
        found = batches.run(inputs, lambda batch: self._vectors(batch, encode))
        return np.concatenate(found) if found else np.zeros((0, self.dim), dtype=np.float32)

    def _vectors(self, batch: Sequence[Any], encode: Callable[[Sequence[Any]], Any]) -> Vectors:
        with self._torch.inference_mode():
            vectors: Any = self._torch.nn.functional.normalize(encode(batch).float(), dim=-1)
        return vectors.cpu().numpy()

    def _out_of_memory(self, error: Exception) -> bool:
        """On an accelerator torch has a class for it; on the processor it is a RuntimeError like any other."""
        return isinstance(error, self._torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class _Source:
    """What open_clip is asked for: its name of the model, the file of weights, and what a tag says beside them."""

    model: str
    weights: str
    preprocess: Mapping[str, Any]
    quick_gelu: bool = False
    cache_dir: str | None = None
    tokenizer: str | None = None  # a folder, or a repository on the hub; None: as the model's configuration says

    @property
    def checkpoint(self) -> str | None:
        """The weights, unless open_clip finds them itself: in the folder or repository that ``model`` names."""
        return None if self.model.startswith((_REMOTE, _FOLDER)) else self.weights


@dataclass(frozen=True)
class _Loaded:
    model: Any
    transform: Any
    tokenizer: Any
    architecture: str


def _text_tokens(tokenizer: Any) -> TextTokens:  # noqa: ANN401
    inner: Any = getattr(tokenizer, "tokenizer", None)  # of transformers; open_clip's own for CLIP has none
    if inner is None:
        return CountedTokens(
            lambda texts: [len(tokenizer.encode(text)) for text in texts], int(tokenizer.context_length) - 2
        )
    cleaning: Any = importlib.import_module("open_clip.tokenizer")

    def clean(text: str) -> str:
        cleaned = tokenizer.clean_fn(text) if hasattr(tokenizer, "clean_fn") else cleaning.basic_clean(text)
        return str(cleaned if hasattr(tokenizer, "clean_fn") else cleaning.canonicalize_text(cleaned))

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        found = inner([clean(text) for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
        return [len(ids) for ids in found]

    return CountedTokens(count, int(tokenizer.context_length) - int(inner.num_special_tokens_to_add()))


@contextmanager
def _source(spec: str, name: str, settings: Settings, open_clip: Any) -> Generator[_Source]:  # noqa: ANN401
    """Find configuration and weights; files made for open_clip to read live as long as the context."""
    checkpoint = settings.get("checkpoint")
    config = settings.get("config")
    pickles = settings.get("allow_pickle", False)
    cache = settings.get("cache_dir")
    tokenizer = settings.get("tokenizer")
    if tokenizer is not None and not os.path.isdir(tokenizer):
        raise EncoderError(f"The tokenizer '{tokenizer}' of '{spec}' is not a folder.", "Give that of a local folder.")
    if checkpoint is not None:
        _check_file(spec, checkpoint, "checkpoint")
        _check_pickle(spec, checkpoint, pickles)
    if name.startswith((_REMOTE, _FOLDER)):
        if checkpoint is not None or config is not None:
            raise EncoderError(f"Encoder '{spec}' brings its own configuration and weights.", "Drop those settings.")
        if name.startswith(_REMOTE):
            weights = _downloaded(spec, open_clip, cache, repository=name.removeprefix(_REMOTE))
        else:
            weights = _weights_in(spec, Path(name.removeprefix(_FOLDER)), open_clip)
        _check_pickle(spec, weights, pickles)
        yield _Source(name, weights, {}, cache_dir=cache, tokenizer=tokenizer)
    elif config is not None:
        if checkpoint is None:
            raise EncoderError(
                f"Encoder '{spec}' has a config but no weights.", 'Add the setting {"checkpoint": PATH}.'
            )
        with tempfile.TemporaryDirectory(prefix="pgembed-open-clip-") as folder:
            remote = _stage(spec, Path(config), Path(checkpoint), Path(folder))
            yield _Source(_FOLDER + folder, checkpoint, {}, cache_dir=cache, tokenizer=tokenizer or remote)
    else:
        model, _, tag = name.partition("/")
        facts = _tag_facts(spec, model, tag, open_clip)
        if checkpoint is None and not tag:
            known = ", ".join(open_clip.pretrained.list_pretrained_tags_by_model(model)) or "none"
            hint = f'Add a tag ({known}), or the setting {{"checkpoint": PATH}}.'
            raise EncoderError(f"Encoder '{spec}' names no weights.", hint)
        if checkpoint is None:
            checkpoint = _downloaded(spec, open_clip, cache, facts=facts)
            _check_pickle(spec, checkpoint, pickles)
        yield _Source(model, checkpoint, facts, bool(facts.get("quick_gelu")), cache, tokenizer)


def _load(spec: str, source: _Source, open_clip: Any, precision: str, device: str) -> _Loaded:  # noqa: ANN401
    options: dict[str, Any] = {
        "precision": precision,
        "force_quick_gelu": source.quick_gelu,  # open_clip only warns where the tag's activation is another
        "force_preprocess_cfg": dict(source.preprocess),
        "pretrained_text": False,
        "cache_dir": source.cache_dir,
    }
    try:
        model = open_clip.create_model(
            source.model, source.checkpoint, device=device, require_pretrained=True, weights_only=True, **options
        )
    except Exception as error:
        misfit = _misfit(source, open_clip, options)
        if misfit:
            raise EncoderError(f"The weights of '{spec}' are of another architecture: {misfit}.") from error
        raise EncoderError(f"open_clip could not load '{spec}': {first_line(error)}.") from error
    config = _model_config(source, open_clip)
    try:
        tokenizer = _tokenizer(source, config, open_clip)
    except Exception as error:
        hint = 'Put its files into a folder, and add the setting {"tokenizer": FOLDER}.'
        raise EncoderError(f"The tokenizer of '{spec}' could not be loaded: {first_line(error)}.", hint) from error
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    architecture = json.dumps({"config": config, "quick_gelu": source.quick_gelu}, sort_keys=True)
    # Not requires_grad_(False): torch then multiplies texts matrix by matrix instead of all at once, 7 % slower.
    return _Loaded(model.eval(), transform, tokenizer, architecture)


def _runs(loaded: _Loaded, torch: Any, device: str, precision: str) -> bool:  # noqa: ANN401
    """Whether the model takes a text and a picture in this precision."""
    from PIL import Image

    picture = loaded.transform(Image.new("RGB", (8, 8)))[None].to(device, getattr(torch, _DTYPES[precision]))
    try:
        with torch.inference_mode():
            loaded.model.encode_text(loaded.tokenizer(["a"]).to(device))
            loaded.model.encode_image(picture)
    except RuntimeError:
        return False
    return True


def _model_config(source: _Source, open_clip: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if source.model.startswith(_REMOTE) and source.cache_dir:  # get_model_config looks into the hub's own cache only
        repository = source.model.removeprefix(_REMOTE)
        file = open_clip.pretrained.download_pretrained_from_hf(
            repository, "open_clip_config.json", cache_dir=source.cache_dir
        )
        return json.loads(Path(file).read_bytes())["model_cfg"]
    return open_clip.get_model_config(source.model)


def _tokenizer(source: _Source, config: Mapping[str, Any], open_clip: Any) -> Any:  # noqa: ANN401
    if source.tokenizer is None:
        return open_clip.get_tokenizer(source.model, cache_dir=source.cache_dir)
    side: Mapping[str, Any] = config["text_cfg"]
    return open_clip.tokenizer.HFTokenizer(
        source.tokenizer,
        cache_dir=source.cache_dir,
        context_length=side.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=side.get("tokenizer_mode"),
        **side.get("tokenizer_kwargs", {}),
    )


def _misfit(source: _Source, open_clip: Any, options: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    """The first tensor on which the weights and the architecture differ, in words; None where they do not."""
    try:
        held: Mapping[str, Any] = open_clip.factory.load_state_dict(source.weights)
        wanted: Mapping[str, Any] = open_clip.create_model(source.model, load_weights=False, **options).state_dict()
    except Exception:
        return None  # something else is wrong, and the error at hand says what
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    for name, shape in shapes.items():
        if name in held and tuple(held[name].shape) != shape:
            return f"'{name}' is {tuple(held[name].shape)} there, and {shape} in the model"
    missing = next((name for name in shapes if name not in held), None)
    if missing is not None:
        return f"'{missing}' {shapes[missing]} is missing"
    extra = next((name for name in held if name not in shapes), None)
    return f"'{extra}' is not in the model" if extra is not None else None


def _tag_facts(spec: str, model: str, tag: str, open_clip: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """What open_clip knows of a pretrained tag: where its weights are, and their preprocessing."""
    names: dict[str, str] = {known.lower(): known for known in open_clip.list_models()}
    if model not in names.values():
        near = [names[name] for name in difflib.get_close_matches(model.lower(), names, 3, 0.5)]
        hint = f"Did you mean {', '.join(near)}?" if near else "open_clip.list_models() lists the names."
        raise EncoderError(f"open_clip has no model '{model}' (for '{spec}').", hint)
    if not tag:
        return {}
    facts: Mapping[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        known = ", ".join(open_clip.pretrained.list_pretrained_tags_by_model(model)) or "none"
        raise EncoderError(f"Model '{model}' has no pretrained tag '{tag}' (for '{spec}').", f"Its tags: {known}.")
    return facts


def _downloaded(
    spec: str,
    open_clip: Any,  # noqa: ANN401
    cache: str | None,
    *,
    facts: Mapping[str, Any] | None = None,
    repository: str = "",
) -> str:
    """The local file of a tag's or a repository's weights, from the hub or its cache."""
    try:
        if repository:
            return str(open_clip.pretrained.download_pretrained_from_hf(repository, cache_dir=cache))
        return str(open_clip.download_pretrained(facts, cache_dir=cache))
    except Exception as error:
        hub: Any = importlib.import_module("huggingface_hub.constants")
        elsewhere = 'copy the cache of a machine that has them, or give the setting {"checkpoint": PATH}.'
        if hub.HF_HUB_OFFLINE:
            raise EncoderError(
                f"The weights of '{spec}' are not in the cache {cache or hub.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set.",
                f"Unset it for the first load, {elsewhere}",
            ) from error
        raise EncoderError(
            f"The weights of '{spec}' could not be downloaded: {first_line(error)}.",
            f"Where there is no network, {elsewhere}",
        ) from error


def _stage(spec: str, config: Path, checkpoint: Path, folder: Path) -> str | None:
    """Lay out a folder as open_clip reads it: configuration, weights, and tokenizer files from beside the config.

    Returns the repository on the hub that the configuration takes its tokenizer from, where no such files are there.
    """
    _check_file(spec, str(config), "config")
    try:
        read: dict[str, Any] = json.loads(config.read_bytes())
        model: Mapping[str, Any] = read.get("model_cfg", read)
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model)
        remote: str | None = model.get("text_cfg", {}).get("hf_tokenizer_name")
    except (ValueError, TypeError, AttributeError) as error:
        raise EncoderError(f"The config '{config}' of '{spec}' is not a JSON object: {error}.") from error
    if missing:
        raise EncoderError(f"The config '{config}' of '{spec}' lacks {', '.join(sorted(missing))}.")
    whole = {"model_cfg": model, "preprocess_cfg": read.get("preprocess_cfg", {})}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    name = "open_clip_model.safetensors" if checkpoint.suffix == ".safetensors" else "open_clip_pytorch_model.bin"
    (folder / name).symlink_to(checkpoint.absolute())
    patterns = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model")
    beside = [file for pattern in patterns for file in config.absolute().parent.glob(pattern)]
    for file in beside:
        (folder / file.name).symlink_to(file)
    return None if beside else remote or None


def _check_file(spec: str, path: str, what: str) -> None:
    if not os.path.isfile(path):
        raise EncoderError(f"The {what} '{path}' of '{spec}' is not a file.", "Give the path of a local file.")


def _check_pickle(spec: str, path: str, allowed: bool) -> None:
    if not path.endswith(".safetensors") and not allowed:
        raise EncoderError(
            f"The weights '{path}' of '{spec}' may be a pickle, which can hold code.",
            'Convert them to .safetensors, or add the setting {"allow_pickle": true}.',
        )


def _weights_in(spec: str, folder: Path, open_clip: Any) -> str:  # noqa: ANN401
    """The file of weights that open_clip takes where a folder holds several."""
    _check_file(spec, str(folder / "open_clip_config.json"), "config")
    found: str | None = open_clip.factory._find_checkpoint_in_dir(folder)
    if found is None:
        raise EncoderError(
            f"The folder '{folder}' of '{spec}' holds no weights.", "Put open_clip_model.safetensors there."
        )
    return found
