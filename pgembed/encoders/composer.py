"""``composer:FOLDER``: a small trained network that changes the vector of a picture as words say.

``pgembed train composer`` makes the folder: a graph of ONNX and a manifest. A composer lives in the space of the
encoder it was trained for, and changes queries alone: what is stored stays as it is. ``composer:lite``
ships with pgembed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from pgembed.encoders.base import Encoder, Modality, Needs, Settings, fingerprint_of, named_fingerprint
from pgembed.encoders.settings import check_settings
from pgembed.encoders.torch_models import first_line
from pgembed.errors import EncoderError, EncoderMismatch, InvalidQuery, UnsupportedModality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from numpy.typing import NDArray

    from pgembed.encoders.base import Vectors

SHIPPED = "lite"  # composer:lite, for builtin:lite
MANIFEST, GRAPH = "manifest.json", "composer.onnx"
FORMAT, VERSION = "pgembed-composer", 1
INPUTS, OUTPUT = ("reference", "new", "old"), "vectors"


@dataclass(frozen=True)
class ComposerManifest:
    """What a composer is and what it is worth: ``measured`` holds R@1, R@5 and R@10 on triplets it was not trained on,
    of itself and of the untrained ways."""

    dim: int
    space: str
    encoder: str  # the spec of the encoder whose vectors it was trained on
    fingerprint: str  # and that encoder's
    trained_on: Mapping[str, Any] = field(default_factory=dict[str, Any])
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, spec: str, folder: Traversable | Path) -> Self:
        """Read a folder's manifest. Raises EncoderError with what is wrong in it."""
        path = folder / MANIFEST
        try:
            read: object = json.loads(path.read_bytes())
        except OSError as error:
            hint = "Give the folder that pgembed train composer made."
            raise EncoderError(f"There is no {MANIFEST} in '{folder}' (for '{spec}').", hint) from error
        except ValueError as error:
            raise EncoderError(f"The manifest '{path}' is not JSON: {error}.") from error
        facts = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
        if (facts.pop("format", None), facts.pop("version", None)) != (FORMAT, VERSION):
            raise EncoderError(f"'{path}' is no manifest of a composer that this pgembed reads.", "Train it again.")
        kinds: dict[str, type] = {"dim": int, "space": str, "encoder": str, "fingerprint": str}
        kinds |= {"trained_on": dict, "measured": dict}
        wrong = [key for key, kind in kinds.items() if type(facts.get(key)) is not kind]
        if wrong or len(facts) != len(kinds) or facts["dim"] < 1:
            odd = (wrong or [key for key in facts if key not in kinds] or ["dim"])[0]
            raise EncoderError(f"The manifest '{path}' is wrong: '{odd}' is {facts.get(odd)!r}.", "Train it again.")
        return cls(**facts)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        facts = {"format": FORMAT, "version": VERSION, **asdict(self)}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class ComposerEncoder(Encoder):
    """A composer. It takes vectors, of a picture and of words, and encodes nothing by itself."""

    scheme: ClassVar[str] = "composer"
    modalities: frozenset[Modality] = frozenset(("image", "text"))

    def __init__(self, spec: str, manifest: ComposerManifest, graph: bytes) -> None:
        self.spec = spec
        self.manifest = manifest
        self.dim = manifest.dim
        self.fingerprint = named_fingerprint(weights=fingerprint_of(graph), space=manifest.space)
        self._session = _session(spec, graph)
        shapes = {one.name: one.shape[-1] for one in self._session.get_inputs()}
        if shapes != dict.fromkeys(INPUTS, self.dim):
            raise EncoderError(
                f"The graph of '{spec}' takes {shapes}; its manifest says {', '.join(INPUTS)} of {self.dim} numbers.",
                "Train it again.",
            )

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Load the shipped one or a folder. Raises EncoderError where the manifest or the graph is missing or wrong."""
        spec = f"{cls.scheme}:{name}"
        check_settings(spec, settings, {})
        folder = shipped() if name == SHIPPED else Path(name).expanduser()
        manifest = ComposerManifest.read(spec, folder)
        try:
            graph = (folder / GRAPH).read_bytes()
        except OSError as error:
            raise EncoderError(f"There is no {GRAPH} in '{folder}' (for '{spec}').", "Train it again.") from error
        return cls(spec, manifest, graph)

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """The folder, but for the one that ships."""
        return Needs() if name == SHIPPED else Needs((name,))

    @property
    def space(self) -> str:
        """That of the encoder it was trained for."""
        return self.manifest.space

    def check_target(self, by: str, space: str, name: str, encoder: str, wanted: str, dim: int) -> None:
        """Raises EncoderMismatch where it was not trained for the vectors of ``name``, which ``encoder`` makes.

        ``space`` is the composer's, as registered, and ``wanted`` theirs.
        """
        if space != wanted:
            raise EncoderMismatch(
                f"{name} holds vectors of '{encoder}' (space {wanted}); the composer '{by}' is for space {space}.",
                f"Train one for '{encoder}': pgembed train composer --help",
            )
        if self.dim != dim:
            raise EncoderMismatch(
                f"{name} holds vectors of {dim} dimensions; the composer '{by}' is for {self.dim}.",
                f"Train one for '{encoder}': pgembed train composer --help",
            )

    def compose(self, reference: NDArray[Any], new: NDArray[Any], old: NDArray[Any] | None = None) -> Vectors:
        """The vectors of n references changed as the words say, ``(n, dim) float32`` of unit length.

        All arguments are ``(n, dim)`` and are normalized here; ``old`` is what is replaced, or None. Raises
        EncoderMismatch for other shapes, EncoderError where the graph gives no direction.
        """
        given = [np.asarray(each, dtype=np.float32) for each in (reference, new, *(() if old is None else (old,)))]
        for each in given:
            if each.ndim != 2 or each.shape != (len(given[0]), self.dim):
                raise EncoderMismatch(f"'{self.spec}' takes arrays of (n, {self.dim}), not {each.shape}.")
            if not (np.isfinite(each).all() and each.any(axis=1).all()):
                raise InvalidQuery(f"'{self.spec}' was given a vector that is zero or not finite.")
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in given]
        if old is None:
            units.append(np.zeros_like(units[0]))
        found: NDArray[np.float32] = self._session.run([OUTPUT], dict(zip(INPUTS, units, strict=True)))[0]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        if found.shape != given[0].shape or not np.isfinite(lengths).all() or not lengths.all():
            raise EncoderError(f"The graph of '{self.spec}' gives no direction.", "Train it again.")
        return found / lengths

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Raises UnsupportedModality: a composer takes vectors."""
        raise UnsupportedModality(_NO_ROWS.format(self.spec), _USE_IT)

    def embed_pixels(self, pixels: Sequence[Any]) -> Vectors:
        """Raises UnsupportedModality: a composer takes vectors."""
        raise UnsupportedModality(_NO_ROWS.format(self.spec), _USE_IT)


_NO_ROWS = "'{}' is a composer: it changes the vectors of queries, and encodes nothing."
_USE_IT = "Search with it: changed(Image(…), to=Text(…), by='NAME')."


def shipped() -> Traversable:
    """The folder of the composer that ships with ``builtin:lite``."""
    return files("pgembed.encoders") / "lite_composer"


def _session(spec: str, graph: bytes) -> Any:  # noqa: ANN401
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # it is small
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EncoderError(f"onnxruntime could not load the graph of '{spec}': {first_line(error)}.") from error
