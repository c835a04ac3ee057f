"""Queries that SQL asks for: their vectors go into the query cache, before the rows that wait (sql/33_requests.sql).

A stage of its own, on one connection: it hears of requests by NOTIFY, and looks once a poll besides. Nothing of what is
asked is logged here: queries are people's.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import psycopg
from psycopg.rows import class_row

from pgembed.encoders import Encoder
from pgembed.errors import EncoderError, EncoderTimeout, InvalidInput, PgembedError
from pgembed.metering import count_tokens
from pgembed.vectors import pack_one, register_packed
from pgembed.worker.pipes import Pipes, Stopped
from pgembed.worker.precedence import Precedence
from pgembed.worker.state import TROUBLE_WAITS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

MOST = 256  # requests taken at once
REFRESH = 2.0  # seconds between looks at the encoders that are registered
TIDY = 1.0  # seconds between looks for requests and vectors that may go
LOOK_EVERY = 0.1  # seconds between looks whether to leave
LONGEST = 500  # characters of an error that a client is told
LONGEST_TEXT = 1_000_000  # bytes
_NOT_ALLOWED = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
)


@dataclass(frozen=True)
class Registered:
    """A registered encoder, with what loading it needs."""

    encoder: str
    spec: str
    dim: int
    normalized: bool
    fingerprint: str
    settings: dict[str, Any]
    modalities: list[str]

    @property
    def has_budget(self) -> bool:
        """Whether it may only encode so much a day."""
        return bool(self.settings.get("rows_per_day") or self.settings.get("tokens_per_day"))


@dataclass(frozen=True)
class Request:
    """One input whose vector somebody waits for."""

    encoder: str
    modality: str
    input_hash: bytes
    input: bytes


@dataclass
class Trouble:
    """Why an encoder is left alone, how often that was so, and until when."""

    failures: int = 0
    until: float = 0.0


class OpenPicture(Protocol):
    """Decodes the bytes of a picture that came from outside; raises MediaError."""

    def __call__(self, data: bytes) -> Picture: ...


class Requests:
    """Takes requests, encodes what is alike in one call, and answers."""

    def __init__(
        self,
        pipes: Pipes,
        conn: psycopg.Connection[Any],
        turns: Precedence,
        open_picture: OpenPicture,
        only: Callable[[], set[str] | None],
    ) -> None:
        """``only`` names the encoders of the embeddings that this worker was told to work on; None: all."""
        self.pipes = pipes
        self.state = pipes.state
        self.conn = conn
        self.turns = turns
        self.open_picture = open_picture
        self.only = only
        self.encoders: dict[str, Registered] = {}
        self.served: set[str] = set()
        self.troubles: dict[str, Trouble] = {}
        self.at_work: tuple[str, float] | None = None  # the encoder that was called, and when
        self.leaving = threading.Event()  # the other stages have ended, as after so many rows
        register_packed(conn.adapters)

    def run(self) -> None:
        """Serve until the worker stops or another stage breaks; rows go on where this role may not serve queries."""
        try:
            self._run()
        except _NOT_ALLOWED as error:
            self.state.log.warning(
                "queries are not served", error=error.diag.message_primary or str(error), remedy="pgembed doctor"
            )

    def _run(self) -> None:
        self.conn.execute("LISTEN pgembed_request")
        refreshed = tidied = -10.0
        look_at = 0.0
        while not self._ends():
            if time.monotonic() - refreshed > REFRESH:
                self._refresh()
                refreshed = time.monotonic()
            heard = any(True for _ in self.conn.notifies(timeout=LOOK_EVERY, stop_after=1))
            if not heard and time.monotonic() < look_at:
                continue
            while self._serve() and not self._ends():
                refreshed = min(refreshed, time.monotonic() - REFRESH + LOOK_EVERY)  # what was refused is not on offer
            look_at = time.monotonic() + self.pipes.options.poll
            if time.monotonic() - tidied > TIDY:
                self.conn.execute("SELECT pgembed._tidy_requests()")
                tidied = time.monotonic()

    def _ends(self) -> bool:
        return self.state.stop.is_set() or self.pipes.broken.is_set() or self.leaving.is_set()

    def overdue(self, seconds: float) -> EncoderTimeout | None:
        """The error where an encoder has not returned from queries for so long (0: as long as it likes)."""
        at_work = self.at_work
        if not seconds or at_work is None or time.monotonic() - at_work[1] <= seconds:
            return None
        return EncoderTimeout(
            f"Encoder '{at_work[0]}' has not returned from queries for {seconds:g} seconds; the worker leaves.",
            "Start it again; where the encoder is only slow, allow it more: --encode-timeout SECONDS.",
        )

    def _refresh(self) -> None:
        """Offer to encode with what is registered, and with nothing that this worker cannot or may not load."""
        with self.conn.cursor(row_factory=class_row(Registered)) as cursor:
            found = cursor.execute(
                "SELECT name AS encoder, spec, dim, normalized, fingerprint, settings, modalities FROM pgembed.encoder"
            ).fetchall()
        chosen = self.only()
        self.encoders = {
            row.encoder: row
            for row in found
            if (chosen is None or row.encoder in chosen) and isinstance(cast("Any", row.settings), dict)
        }
        offered = {name for name in self.encoders if not self._in_trouble(name)}
        for name in offered - self.served:
            if self.conn.execute("SELECT pgembed._serve($1, true)", [name]).fetchone() == (True,):
                self.served.add(name)
        for name in self.served - offered:
            self._withdraw(name)

    def _in_trouble(self, name: str) -> bool:
        return name in self.troubles and self.troubles[name].until > time.monotonic()

    def _withdraw(self, name: str) -> None:
        self.conn.execute("SELECT pgembed._serve($1, false)", [name])
        self.served.discard(name)

    def _serve(self) -> bool:
        """Take what waits and answer it; False where there was nothing."""
        if not self.served:
            return False
        with self.conn.cursor(binary=True, row_factory=class_row(Request)) as cursor:
            taken = cursor.execute("SELECT * FROM pgembed._take_requests($1, $2)", [[*self.served], MOST]).fetchall()
        alike: dict[tuple[str, str], list[Request]] = {}
        for request in self._current(taken):
            alike.setdefault((request.encoder, request.modality), []).append(request)
        for (name, modality), requests in alike.items():
            if name not in self.served:
                continue  # what was refused just now is given back already
            try:
                self._answer(self.encoders[name], modality, requests)
            except (psycopg.Error, Stopped):
                raise
            except Exception as error:  # whatever somebody asks, the worker goes on
                for request in requests:
                    self._tell(request, None, error)
        return bool(taken)

    def _current(self, taken: Sequence[Request]) -> Sequence[Request]:
        """Those for the weights that are registered; the others, whose encoder was registered anew, are told so."""
        if not any(self._is_stale(request) for request in taken):
            return taken
        self._refresh()
        current: list[Request] = []
        for request in taken:
            if self._is_stale(request):
                self._tell(request, None, EncoderError(f"Encoder '{request.encoder}' was registered anew meanwhile."))
            else:
                current.append(request)
        return current

    def _is_stale(self, request: Request) -> bool:
        registered = self.encoders.get(request.encoder)
        if registered is None:
            return True
        parts = (registered.encoder, registered.fingerprint, request.modality)
        head = b"".join(part.encode() + b"\0" for part in parts)  # as pgembed.input_hash has it
        return hashlib.sha256(head + request.input).digest() != bytes(request.input_hash)

    def _answer(self, registered: Registered, modality: str, requests: Sequence[Request]) -> None:
        name = registered.encoder
        if registered.has_budget and self._is_spent(name):
            for request in requests:
                self._tell(request, None, EncoderError(f"The budget of encoder '{name}' is spent for now."))
            return
        loaded = self.state.has_loaded(name)
        if not loaded:
            self._note(name, f"A worker is loading the encoder '{name}'.")
        try:
            encoder = self.state.encoder(registered)
        except PgembedError as error:
            self._refuse(registered, error)
            return
        if not loaded:
            self._note(name, None)
        self.troubles.pop(name, None)
        inputs: list[tuple[Request, Any]] = []
        for request in requests:
            try:
                inputs.append((request, self._input(modality, request.input)))
            except Exception as error:  # somebody else's bytes
                self._tell(request, None, error)
        for start in range(0, len(inputs), encoder.batch_size):
            self._encode(registered, encoder, modality, inputs[start : start + encoder.batch_size])

    def _input(self, modality: str, data: bytes) -> Any:  # noqa: ANN401
        if modality != "text":
            return self.open_picture(data)
        if len(data) > LONGEST_TEXT:
            raise InvalidInput(f"It has {len(data)} bytes, more than {LONGEST_TEXT}.")
        return data.decode()

    def _encode(
        self, registered: Registered, encoder: Encoder, modality: str, inputs: Sequence[tuple[Request, Any]]
    ) -> None:
        """Encode some of one kind; where that fails, by halves, so that the input at fault stands alone."""
        if not inputs:
            return
        try:
            vectors = self._call(registered, encoder, modality, [value for _, value in inputs])
        except Stopped:
            raise
        except Exception as error:  # an encoder may raise anything
            if len(inputs) == 1:
                self._tell(inputs[0][0], None, error)
                return
            middle = len(inputs) // 2
            for half in (inputs[:middle], inputs[middle:]):
                self._encode(registered, encoder, modality, half)
            return
        if registered.has_budget:
            tokens = 0
            if modality == "text" and registered.settings.get("tokens_per_day"):
                tokens = count_tokens(encoder, [value for _, value in inputs])
            self.conn.execute("SELECT pgembed._charge($1, $2, $3)", [registered.encoder, len(inputs), tokens])
        with self.conn.transaction() if len(inputs) > 1 else nullcontext():
            for (request, _), vector in zip(inputs, vectors, strict=True):
                self._tell(request, vector, _fault(encoder, vector))

    def _call(self, registered: Registered, encoder: Encoder, modality: str, values: list[Any]) -> NDArray[np.float32]:
        calls: dict[str, Callable[..., NDArray[np.float32]]] = {
            "text": encoder.encode_text,
            "image": encoder.encode_image,
            "screenshot": encoder.encode_screenshot,
        }
        with self.turns.of_query(registered.encoder):
            self.at_work = (registered.encoder, time.monotonic())
            try:
                vectors = np.asarray(calls[modality](values, role="query"), dtype=np.float32)
            finally:
                self.at_work = None
        if vectors.shape != (len(values), encoder.dim):
            raise EncoderError(
                f"it returned an array of shape {vectors.shape} for {len(values)} inputs of {encoder.dim} dimensions."
            )
        return vectors

    def _tell(self, request: Request, vector: NDArray[np.float32] | None, error: Exception | None) -> None:
        self.conn.execute(
            "SELECT pgembed._answer_request($1, $2, $3, $4)",
            [
                request.encoder,
                request.input_hash,
                pack_one(vector) if vector is not None and error is None else None,
                sentence(error) if error is not None else None,
            ],
        )

    def _refuse(self, registered: Registered, error: PgembedError) -> None:
        """The encoder cannot be loaded here: others may have it, and this worker does not offer it for a while."""
        trouble = self.troubles.setdefault(registered.encoder, Trouble())
        trouble.failures += 1
        trouble.until = time.monotonic() + TROUBLE_WAITS[min(trouble.failures, len(TROUBLE_WAITS)) - 1]
        self._withdraw(registered.encoder)
        self._note(registered.encoder, sentence(error), give_back=True)
        self.state.log.error("queries refused", encoder=registered.encoder, error=str(error))

    def _note(self, name: str, note: str | None, *, give_back: bool = False) -> None:
        self.conn.execute("SELECT pgembed._note_requests($1, $2, $3)", [name, note, give_back])

    def _is_spent(self, name: str) -> bool:
        left = self.conn.execute("SELECT rows_left FROM pgembed._budget($1)", [name]).fetchone()
        return left is not None and left[0] is not None and left[0] <= 0


def _fault(encoder: Encoder, vector: NDArray[np.float32]) -> EncoderError | None:
    if not np.isfinite(vector).all():
        return EncoderError(f"Encoder '{encoder.spec}' returned a vector that is not finite.")
    return None if vector.any() else EncoderError(f"Encoder '{encoder.spec}' returned a vector of zeros.")


def sentence(error: Exception) -> str:
    """An error in one line that ends with a full stop, for who asked."""
    text = " ".join((error.message if isinstance(error, PgembedError) else str(error)).split()) or type(error).__name__
    text = text.replace("\0", "").encode(errors="replace").decode()  # what Postgres takes
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    return text if text.endswith((".", "…", "!", "?")) else f"{text}."
