"""``pgembed encoder export``: an encoder made into the folder that ``onnx:`` reads, and measured.

Both sides of ``open_clip:``, or the text side of ``sentence-transformers:``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shlex
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgembed.encoders.base import Encoder, Modality, Settings
from pgembed.encoders.onnx import OnnxEncoder, has_provider
from pgembed.encoders.onnx_inputs import Tokens, cleaner
from pgembed.encoders.onnx_manifest import ImageSide, Manifest, Source, TextSide
from pgembed.encoders.onnx_tokenizer import export_tokenizer, probes
from pgembed.encoders.onnx_towers import as_module, image_side, text_modules, text_side
from pgembed.encoders.open_clip import OpenClipEncoder
from pgembed.encoders.sentence_transformers import SentenceTransformerEncoder
from pgembed.encoders.torch_models import first_line
from pgembed.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors

PARITY = 1e-3  # the largest difference of a number of two unit vectors that an fp32 export may have
BATCHES = (1, 8, 32)  # inputs at once, of the graphs and of torch, when their speed is measured
TIMED = 8  # of the samples, the last so many: texts as long as captions, and pictures that are quickly made ready
SECONDS = 2.0  # about how long each side of a comparison is timed
ONE_FILE = 1_900_000_000  # bytes of weights: a larger graph keeps them in a file beside it
_QUANTIZED = ["MatMul", "Gemm", "Gather"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """Inputs a second, of the graphs and of torch, with the same threads and as many inputs at a call.

    ``fp32`` is that of the graphs before they were quantized, None where they were not; ``openvino`` that of the graphs
    run by OpenVINO, None where onnxruntime came without it.
    """

    modality: str
    batch_size: int
    onnx: float
    torch: float
    fp32: float | None = None
    openvino: float | None = None

    def facts(self) -> dict[str, Any]:
        """For a manifest: the rates and their ratios."""
        ratios = {"ratio_to_torch": round(self.onnx / self.torch, 3)}
        if self.fp32 is not None:
            ratios["ratio_to_fp32"] = round(self.onnx / self.fp32, 3)
        if self.openvino is not None:
            ratios["ratio_of_openvino_to_torch"] = round(self.openvino / self.torch, 3)
        return {key: value for key, value in asdict(self).items() if value is not None} | ratios


@dataclass(frozen=True)
class Exported:
    """What was written, and what it is worth. ``loss`` is 1 - cosine, the mean and the largest, by modality (int8)."""

    folder: Path
    manifest: Manifest
    sizes: dict[str, int]
    parity: dict[str, float]
    loss: dict[str, tuple[float, float]]
    rates: list[Rate]
    threads: int

    def command(self, name: str) -> str:
        """The line that registers it."""
        source = self.manifest.source
        words = ["pgembed", "encoder", "add", name, f"onnx:{self.folder.absolute()}"]
        return shlex.join([*words, "--space", source.space] if source and self.manifest.same_space else words)


def export(
    spec: str,
    settings: Settings,
    folder: Path,
    *,
    space: str | None = None,
    int8: bool = False,
    opset: int | None = None,
    measure: bool = True,
    say: Say = lambda _: None,
) -> Exported:
    """Export an ``open_clip:`` or ``sentence-transformers:`` encoder into a new folder; ``space`` is its space where
    that is not its own.

    With ``measure`` its speed is compared with torch's, which takes minutes for a large model.

    Raises EncoderError, and leaves nothing behind, where a side cannot be exported or its vectors differ from torch's
    by more than PARITY; MissingExtra without onnx or onnxscript.
    """
    scheme, _, name = spec.partition(":")
    kinds: dict[str, tuple[type[Encoder], type[_Export]]] = {
        OpenClipEncoder.scheme: (OpenClipEncoder, _OpenClipExport),
        SentenceTransformerEncoder.scheme: (SentenceTransformerEncoder, _TextExport),
    }
    if scheme not in kinds:
        raise EncoderError(
            f"Encoder '{spec}' cannot be exported: only open_clip: and sentence-transformers: can.",
            "Give open_clip:MODEL/TAG.",
        )
    kind, exporting = kinds[scheme]
    if settings.get("precision", "fp32") != "fp32":
        raise EncoderError(f"Encoder '{spec}' has the precision {settings['precision']}; fp32 is exported.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EncoderError(f"'{folder}' is there already.", "Give a new folder.")
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtra("The export of an encoder", "onnx-export") from None
    say("loading the model")
    plain = {key: value for key, value in settings.items() if key not in ("device", "compile", "batch_size")}
    encoder = kind.load(name, {**plain, "device": "cpu", "batch_size": max(BATCHES)})
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.absolute().parent) as work:
        exported = exporting(encoder, Path(work), opset, say).run(space or encoder.space, int8=int8, measure=measure)
        Path(work).chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        Path(work).rename(folder)
        Path(work).mkdir()  # for the context to remove
    return replace(exported, folder=folder)


class _Export:
    def __init__(self, encoder: Any, folder: Path, opset: int | None, say: Say) -> None:  # noqa: ANN401
        self._encoder = encoder
        self._folder = folder
        self._opset = opset
        self._say = say
        self._torch: Any = importlib.import_module("torch")

    def sides(self) -> tuple[TextSide, ImageSide | None]:
        """Write the files of the sides; tells what they are."""
        raise NotImplementedError

    def run(self, space: str, *, int8: bool, measure: bool) -> Exported:
        encoder, torch = self._encoder, self._torch
        text, image = self.sides()
        manifest = Manifest(
            dim=encoder.dim,
            modalities=("text",) if image is None else ("text", "image", "screenshot"),
            text=text,
            image=image,
            metric=encoder.metric,
            normalized=encoder.normalized,
            source=Source(encoder.spec, encoder.fingerprint, space),
            same_space=True,
        )
        manifest.write(self._folder)
        self._say("comparing with torch")
        threads = int(torch.get_num_threads())
        inputs = {side: items for side, items in sample_inputs().items() if side in manifest.modalities}
        wanted = {side: _encode(encoder, side, items) for side, items in inputs.items()}
        exact = self._exported(threads)
        parity = {
            side: float(np.abs(_encode(exact, side, items) - wanted[side]).max()) for side, items in inputs.items()
        }
        for modality, difference in parity.items():
            if not difference <= PARITY:
                raise EncoderError(
                    f"The exported {modality} side of '{encoder.spec}' differs from torch by {difference:.2g};"
                    f" {PARITY:g} is allowed, so nothing was written.",
                    "Try another --opset, or another version of torch.",
                )
        loss: dict[str, tuple[float, float]] = {}
        timed: dict[str, Encoder] = {"onnx": exact, "torch": encoder}
        if int8:
            self._say("quantizing to int8")
            manifest = replace(manifest, precision="int8", same_space=False)
            self._quantize(text.file, *([image.file] if image else []))
            manifest.write(self._folder)
            timed = {"onnx": self._exported(threads), "torch": encoder, "fp32": exact}
            for modality, items in inputs.items():
                lost = 1 - (_encode(timed["onnx"], modality, items) * wanted[modality]).sum(axis=1)
                loss[modality] = (float(lost.mean()), float(lost.max()))
        rates: list[Rate] = []
        if measure:
            self._say("measuring the speed")
            if has_provider("openvino"):
                timed["openvino"] = self._exported(threads, "openvino")
            rates = list(_rates(timed, inputs))
        measured = {
            "parity_of_fp32": parity,
            "loss_of_int8": {modality: {"mean": mean, "max": worst} for modality, (mean, worst) in loss.items()},
            "threads": threads,
            "rates": [rate.facts() for rate in rates],
            "samples": {side: len(items) for side, items in inputs.items()},
        }
        manifest = replace(manifest, measured=measured)
        manifest.write(self._folder)
        sizes = {path.name: path.stat().st_size for path in sorted(self._folder.iterdir())}
        return Exported(self._folder, manifest, sizes, parity, loss, rates, threads)

    def _graph(self, module: Any, example: Any, file: str, given: str, *gives: str, dynamic: Sequence[int]) -> None:  # noqa: ANN401
        torch = self._torch
        path = self._folder / file
        size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        options: dict[str, Any] = {"opset_version": self._opset} if self._opset else {}
        try:
            with _quiet():
                torch.onnx.export(
                    module.eval(),
                    (example,),
                    path,
                    input_names=[given],
                    output_names=list(gives),
                    dynamic_shapes=(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),),
                    dynamo=True,
                    external_data=size > ONE_FILE,
                    verbose=False,
                    **options,
                )
        except Exception as error:
            raise EncoderError(
                f"torch could not export {file} of '{self._encoder.spec}': {first_line(error)}.",
                "Models of other libraries inside open_clip may not be exportable; run it as open_clip: instead.",
            ) from error

    def _quantize(self, *files: str) -> None:
        quantization: Any = importlib.import_module("onnxruntime.quantization")
        for file in files:
            exact = self._folder / file
            weights = exact.with_name(f"{file}.data")
            # In a folder of its own: a file of weights that is there already would be appended to.
            with tempfile.TemporaryDirectory(prefix="int8-", dir=self._folder) as fresh:
                with _quiet():
                    quantization.quantize_dynamic(
                        exact,
                        Path(fresh) / file,
                        op_types_to_quantize=_QUANTIZED,
                        per_channel=True,
                        reduce_range=True,  # 7 bits: the same numbers on processors without VNNI, which would overflow
                        weight_type=quantization.QuantType.QInt8,
                        use_external_data_format=weights.exists(),
                    )
                weights.unlink(missing_ok=True)
                for made in sorted(Path(fresh).iterdir()):
                    made.replace(self._folder / made.name)

    def _exported(self, threads: int, provider: str = "cpu") -> OnnxEncoder:
        settings = {"threads": threads, "batch_size": max(BATCHES), "provider": provider}
        return OnnxEncoder.load(str(self._folder), settings)


class _OpenClipExport(_Export):
    def sides(self) -> tuple[TextSide, ImageSide | None]:
        encoder, torch = self._encoder, self._torch
        self._say("exporting the tokenizer")
        text = self._tokenizer()
        self._say("exporting the text side")
        words, trim = text_side(encoder.model, torch)
        text = replace(text, trim=trim)
        length = int(encoder.tokenizer(["a"]).shape[1])
        ids = encoder.tokenizer(["a photo of a cat", "a red dress"])[:, : min(length, 16) if trim else length]
        self._graph(
            as_module(words, encoder.model, torch),
            ids,
            text.file,
            text.input,
            text.output,
            dynamic=(0, 1) if trim else (0,),
        )
        self._say("exporting the image side")
        image = _image_side(encoder)
        pixels = torch.zeros((2, 3, *image.size))
        self._graph(
            as_module(image_side(encoder.model), encoder.model, torch),
            pixels,
            image.file,
            image.input,
            image.output,
            dynamic=(0,),
        )
        return text, image

    def _tokenizer(self) -> TextSide:
        from tokenizers import Tokenizer

        spec, tokenizer = self._encoder.spec, self._encoder.tokenizer
        found = export_tokenizer(spec, tokenizer)
        side = TextSide("text.onnx", "tokenizer.json", found.cleanup, found.replace)
        (self._folder / side.tokenizer).write_text(found.json, encoding="utf-8")
        ours = Tokens(
            Tokenizer.from_file(str(self._folder / side.tokenizer)),
            cleaner(spec, side.cleanup),
            {int(old): new for old, new in side.replace.items()},
        )
        for text in probes():
            if ours.ids([text])[0].tolist() != tokenizer([text]).tolist():
                raise EncoderError(f"The exported tokenizer of '{spec}' gives other ids for {text!r}.")
        return side


class _TextExport(_Export):
    """Of sentence-transformers: what its modules make of the tokens, which are padding where their id says so."""

    def sides(self) -> tuple[TextSide, ImageSide | None]:
        encoder: SentenceTransformerEncoder = self._encoder
        model = encoder.model
        tokenizer_json, pad = encoder.tokenizer_json(), getattr(model.tokenizer, "pad_token_id", None)
        if encoder.modalities != frozenset[Modality]({"text"}) or tokenizer_json is None or pad is None:
            raise EncoderError(f"The model of '{encoder.spec}' takes more than texts, and cannot be exported.")
        if encoder.has_prompts:
            raise EncoderError(
                f"The model of '{encoder.spec}' puts prompts before its texts, which onnx: does not.",
                "Run it as sentence-transformers: instead.",
            )
        self._say("exporting the tokenizer")
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(tokenizer_json)
        if encoder.text_tokens().room is not None:
            tokenizer.enable_truncation(int(model.max_seq_length))
        tokenizer.enable_padding(pad_id=pad, pad_token=str(model.tokenizer.pad_token))
        side = TextSide("text.onnx", "tokenizer.json", trim=True)
        tokenizer.save(str(self._folder / side.tokenizer))
        self._say("exporting the text side")
        names = [side.output]
        if encoder.averages_alone:
            side = replace(side, token_output="tokens")
            names.append("tokens")
        module = text_modules(model, pad, encoder.dim, self._torch, tokens=side.token_output is not None)
        ids = self._torch.tensor([each.ids for each in tokenizer.encode_batch(["a photo of a cat", "a red dress"])])
        self._graph(module, ids, side.file, side.input, *names, dynamic=(0, 1))
        return side, None


def _rates(encoders: Mapping[str, Encoder], inputs: Mapping[str, list[Any]]) -> Iterator[Rate]:
    """How fast each encoder is on the same inputs; all of them take as many at once as they are handed here."""
    for modality, items in inputs.items():
        for batch in BATCHES:
            chosen: list[Any] = (items[-TIMED:] * batch)[:batch]
            took = _fastest([partial(_encode, encoder, modality, chosen) for encoder in encoders.values()])
            yield Rate(modality, batch, **{name: batch / best for name, best in zip(encoders, took, strict=True)})


def sample_inputs() -> dict[str, list[Any]]:
    """Texts of all kinds, and drawn pictures of all shapes."""
    return {"text": [*probes(), *(f"a photo of {count} things" for count in range(8))], "image": _pictures()}


def _pictures() -> list[Picture]:
    from PIL import Image, ImageDraw

    chance = np.random.default_rng(5)
    pictures: list[Picture] = []
    for width, height in ((640, 480), (480, 640), (224, 224), (1000, 300), (90, 500), (64, 64), (30, 40), (512, 512)):
        noise = Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8))
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        drawing = Image.new("RGB", (width, height), "skyblue")
        draw = ImageDraw.Draw(drawing)
        draw.rectangle((0, height * 0.7, width, height), fill="green")
        draw.ellipse((width * 0.2, height * 0.2, width * 0.6, height * 0.8), fill="darkred")
        pictures += [noise, coarse, drawing]
    return pictures


def _encode(encoder: Encoder, modality: str, items: Sequence[Any]) -> Vectors:
    return encoder.encode_text(items) if modality == "text" else encoder.encode_image(items)


def _fastest(calls: Sequence[Callable[[], object]]) -> list[float]:
    """The shortest time of each call, in seconds; they take turns, so that each meets the same machine."""
    best = [float("inf")] * len(calls)
    began = time.perf_counter()
    for number in range(12):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if number:  # the first makes buffers
                best[place] = min(best[place], time.perf_counter() - started)
        if number >= 4 and time.perf_counter() - began > len(calls) * SECONDS:
            break
    return best


def _image_side(encoder: OpenClipEncoder) -> ImageSide:
    facts = encoder.preprocessing
    size: Any = facts["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if facts.get("mode", "RGB") != "RGB":
        raise EncoderError(f"Encoder '{encoder.spec}' takes pictures in {facts['mode']}, which cannot be exported.")
    mean, std = (tuple(float(one) for one in facts[key]) for key in ("mean", "std"))
    return ImageSide(
        file="image.onnx",
        size=(int(height), int(width)),
        resize=facts.get("resize_mode") or "shortest",
        interpolation="bilinear" if facts.get("interpolation") == "bilinear" else "bicubic",
        fill=int(facts.get("fill_color") or 0),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


@contextlib.contextmanager
def _quiet() -> Any:  # noqa: ANN401
    """Without what torch and onnxruntime tell of their own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
