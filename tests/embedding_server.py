"""A real embedding server on loopback, for tests: a model behind OpenAI's, infinity's and TEI's forms.

It does what a test tells it to instead: refuse, break off, wait, or give nonsense.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgembed.encoders.builtin import LiteEncoder

LITE = LiteEncoder(threads=1)


@dataclass
class Answer:
    """What to answer instead: a status, a body (JSON, or bytes as they are), headers; what to do before and after."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut: bool = False  # announce more than is sent
    wait: float = 0.0
    drip: float = 0.0  # seconds between single bytes


@dataclass
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: Any

    @property
    def inputs(self) -> list[Any]:
        """The inputs, whatever the form calls them."""
        for name in ("input", "inputs", "texts"):
            if isinstance(self.body, dict) and name in self.body:
                return self.body[name]
        return []


Script = Callable[[Request], Answer | None]
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]


class EmbeddingServer:
    """Serves until the block ends. ``script`` may answer in place of the model; ``requests`` is what came in."""

    def __init__(self, port: int, embed_texts: EmbedTexts) -> None:
        self.port = port
        self.embed_texts = embed_texts
        self.requests: list[Request] = []
        self.script: Script = lambda request: None
        self.key: str | None = None
        self.sent: Counter[str] = Counter()  # how often each text was answered with a vector
        self.seen: Counter[str] = Counter()  # how often each text came in
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.body is not None]

    def then(self, *answers: Answer | None) -> None:
        """Answer the next requests so, and the others as the model does."""
        left = list(answers)

        def script(request: Request) -> Answer | None:
            with self.lock:
                return left.pop(0) if left else None

        self.script = script

    def answer(self, request: Request) -> Answer:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return Answer(401, {"error": {"message": f"Incorrect API key: {request.headers.get('Authorization')}"}})
        scripted = self.script(request)
        if scripted is not None:
            return scripted
        path = request.path.partition("?")[0]
        if path == "/info":
            return Answer(body={"model_id": "lite", "model_sha": "abc123", "max_client_batch_size": 8})
        if path not in ("/embed", "/embeddings", "/v1/embeddings"):
            return Answer(404, {"detail": "Not Found"})
        vectors = self._encode(request)
        if path == "/embed":
            return Answer(body=vectors.tolist())
        as_base64 = request.body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist(),
            }
            for place, vector in enumerate(vectors)
        ]
        total = sum(len(str(value)) for value in request.inputs) // 2
        return Answer(body={"object": "list", "data": data, "model": "lite", "usage": {"total_tokens": total}})

    def _encode(self, request: Request) -> NDArray[np.float32]:
        if request.body.get("modality") == "image":
            pictures = [Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) for url in request.inputs]
            return LITE.encode_image([picture.convert("RGB") for picture in pictures])
        with self.lock:
            self.sent.update(request.inputs)
        vectors = self.embed_texts(request.inputs)
        most = request.body.get("dimensions")
        return np.ascontiguousarray(vectors[:, :most])


@contextmanager
def embedding_server(embed_texts: EmbedTexts = LITE.embed_texts) -> Iterator[EmbeddingServer]:
    """A server for as long as the block; of the shipped model, unless its text side is another one's."""
    served: EmbeddingServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._serve(None)

        def _serve(self, body: Any) -> None:  # noqa: ANN401
            request = Request(self.path, dict(self.headers), body)
            with served.lock:
                served.requests.append(request)
                served.seen.update(value for value in request.inputs if isinstance(value, str))
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            try:
                self._send(served.answer(request))
            except OSError:
                self.close_connection = True
            finally:
                with served.lock:
                    served.at_once -= 1

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.wait)
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in ({"Content-Type": "application/json"} | answer.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + (100 if answer.cut else 0)))
            self.end_headers()
            if answer.drip:
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(answer.drip)
            else:
                self.wfile.write(content)
            if answer.cut:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
            pass  # a client that gave up

    with Listener(("127.0.0.1", 0), Handler) as listener:
        served = EmbeddingServer(listener.server_address[1], embed_texts)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            listener.shutdown()


def openai_answer(vectors: Sequence[Sequence[float]], places: Sequence[int] | None = None) -> dict[str, Any]:
    """An answer in OpenAI's form."""
    numbers = range(len(vectors)) if places is None else places
    return {
        "data": [{"index": n, "embedding": list(v)} for n, v in zip(numbers, vectors, strict=True)],
        "model": "lite",
    }
