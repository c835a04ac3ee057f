"""A model's folder in the layout of the Hugging Face hub: where it is, what it says, and whether it is safe to load.

A name is a path where it starts with ``/``, ``.`` or ``~``, or is a folder here; else it is a repository on the hub, of
which one revision is downloaded, or taken from the hub's cache; with HF_HUB_OFFLINE=1 only from there.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from pgembed.encoders.base import Needs, Settings, fingerprint_of
from pgembed.encoders.torch_models import first_line
from pgembed.errors import EncoderError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_STATES_OF_TRAINING = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_PREFERRED = ("model.safetensors", "model.safetensors.index.json")  # read in place of a pickle beside them
_TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model")
_ARCHITECTURE = (
    "config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json",
    "*processor_config.json", "chat_template*", "*.py",
)  # fmt: skip
_SAYS_NOTHING = ("transformers_version", "__version__", "_name_or_path", "dtype", "torch_dtype")


def is_path(name: str) -> bool:
    """Whether a name is a path of this machine, not a repository on the hub."""
    return name.startswith(("/", ".", "~")) or Path(name).is_dir()


def folder_needs(name: str, settings: Settings) -> Needs:
    """What loading a model's folder reaches for: its path, the cache, pickles, and code of its own."""
    files = [name] if is_path(name) else []
    if "cache_dir" in settings:
        files.append(str(settings["cache_dir"]))
    reasons = {"trust_remote_code": "trust_remote_code is set", "allow_pickle": "its weights may be a pickle"}
    code = " and ".join(reason for key, reason in reasons.items() if settings.get(key))
    return Needs(tuple(files), code=code or None)


def find_folder(spec: str, name: str, settings: Settings) -> Path:
    """The local folder of a model, downloaded where it has to be. Raises EncoderError where it cannot be had."""
    if is_path(name):
        folder = Path(name).expanduser()
        if "revision" in settings:
            raise EncoderError(f"Encoder '{spec}' is a folder, which has no revision.", "Drop the setting 'revision'.")
        if not folder.is_dir():
            raise EncoderError(f"The folder '{name}' of '{spec}' is not there.", "Give the path of a model's folder.")
        return folder
    hub: Any = importlib.import_module("huggingface_hub")
    errors: Any = importlib.import_module("huggingface_hub.errors")
    wanted = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
    wanted += PICKLES if settings.get("allow_pickle") else ()
    wanted += ["*.py"] if settings.get("trust_remote_code") else ()
    try:
        found = hub.snapshot_download(
            name,
            revision=settings.get("revision"),
            cache_dir=settings.get("cache_dir"),
            allow_patterns=wanted,
            ignore_patterns=["onnx/*", "openvino/*", "consolidated*", "original/*", *_STATES_OF_TRAINING],
        )
    except errors.HFValidationError:
        raise EncoderError(
            f"'{name}' (for '{spec}') is neither a folder here nor a name on the hub.", "Write ORG/MODEL or a path."
        ) from None
    except errors.RevisionNotFoundError as error:
        raise EncoderError(f"The repository '{name}' has no revision '{settings.get('revision')}'.") from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(
            f"The hub has no repository '{name}' for you (for '{spec}').",
            "Look at its name; where it is private or gated, log in: hf auth login",
        ) from error
    except Exception as error:
        raise EncoderError(
            f"The model of '{spec}' is not in the hub's cache and could not be downloaded: {first_line(error)}.",
            "Offline, fetch its folder elsewhere and give its path in place of the name.",
        ) from error
    return Path(found)


def check_folder(spec: str, folder: Path, *, needed: str, hint: str, pickles: bool) -> None:
    """Raises EncoderError where a file that is needed is not there, the model is an adapter, or its weights unsafe."""
    if not (folder / needed).is_file():
        raise EncoderError(f"The folder '{folder}' of '{spec}' holds no {needed}.", hint)
    if (folder / "adapter_config.json").is_file():
        raise EncoderError(
            f"The model of '{spec}' is an adapter, without the model that it adapts.",
            "Merge the two with peft (merge_and_unload), save the result and give its path.",
        )
    weights = [file for file in _files(folder, PICKLES) if file.name not in _STATES_OF_TRAINING]
    unsafe = [file for file in weights if not any((file.parent / name).is_file() for name in _PREFERRED)]
    if unsafe and not pickles:
        raise EncoderError(
            f"The weights '{unsafe[0]}' of '{spec}' may be a pickle, which can hold code.",
            'Convert them to .safetensors, or add the setting {"allow_pickle": true}.',
        )
    if not weights and not any(folder.rglob("*.safetensors")):
        hint = 'Its weights may be pickles; if you trust them, add the setting {"allow_pickle": true}.'
        raise EncoderError(f"The model of '{spec}' holds no .safetensors.", hint)


def read_json(spec: str, file: Path) -> dict[str, Any]:
    """An object of JSON. Raises EncoderError where the file is none."""
    try:
        read: object = json.loads(file.read_bytes())
        return dict(read)  # type: ignore[call-overload]
    except (ValueError, TypeError, OSError) as error:
        raise EncoderError(f"'{file}' of '{spec}' is not a JSON object: {first_line(error)}.") from error


def read_modules(spec: str, file: Path) -> list[str]:
    """The types of the modules that a modules.json lists. Raises EncoderError where it is no such list."""
    try:
        read: Any = json.loads(file.read_bytes())
        types: list[object] = [module["type"] for module in read]
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise EncoderError(f"'{file}' of '{spec}' is not a list of modules in JSON: {first_line(error)}.") from error
    if not all(isinstance(kind, str) for kind in types) or not types:
        raise EncoderError(f"'{file}' of '{spec}' is not a list of modules in JSON, each with its type.")
    return [str(kind) for kind in types]


def architecture_facts(folder: Path) -> str:
    """What the folder says of architecture and preprocessing, but for versions: a part of a fingerprint."""
    return "\n".join(_facts(folder, _files(folder, _ARCHITECTURE)))


def tokenizer_facts(folder: Path) -> str:
    """What the folder says of its tokenizer: a part of a fingerprint."""
    return "\n".join(_facts(folder, _files(folder, _TOKENIZER)))


@contextmanager
def quiet(transformers: Any) -> Generator[None]:  # noqa: ANN401
    """No progress bars and no reports while transformers loads; what is wrong is raised, by it or by us."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.rglob(pattern) if file.is_file()})


def _facts(folder: Path, files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".json":
            with suppress(ValueError):  # whoever reads it will say so
                content = json.dumps(_without(json.loads(content)), sort_keys=True).encode()
        yield f"{file.relative_to(folder)} {fingerprint_of(content)}"


def _without(value: Any) -> Any:  # noqa: ANN401
    """JSON without what changes with the version that saved it, and without the type of the weights, told by them."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return {key: _without(inner) for key, inner in pairs.items() if key not in _SAYS_NOTHING}
    if isinstance(value, list):
        return [_without(item) for item in cast("list[Any]", value)]
    return value
