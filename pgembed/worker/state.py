"""What the stages of a worker share: its options, what it holds, which embeddings are in trouble, loaded encoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import structlog

from pgembed.encoders import Encoder, EncoderPolicy, load_registered
from pgembed.errors import EncoderError, EncoderMismatch, PgembedError
from pgembed.media import MediaPolicy
from pgembed.worker.decode import DecodeIn
from pgembed.worker.queue import Work

Mode = Literal["forever", "until_idle", "once"]
TROUBLE_WAITS = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds, after each failure in a row of an embedding or the database
BUDGET_LOOK = 30.0  # seconds between looks at a budget that is spent: somebody may raise it


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker works. ``embeddings`` names tables or table.target; empty means all."""

    batch_size: int | None = None  # rows claimed at once; default: the encoder's, at least 256 of texts alone
    max_memory: int = 1_000_000_000  # bytes that pictures in hand may take; a batch ends where there is no more room
    embeddings: tuple[str, ...] = ()
    media: MediaPolicy = field(default_factory=MediaPolicy)
    encoders: EncoderPolicy = field(default_factory=EncoderPolicy.from_environment)
    lease: float = 60.0  # seconds until another worker may take up a claimed row; renewed while it is in hand
    poll: float = 1.0  # seconds between looks at an empty queue
    max_attempts: int = 5
    max_rows: int | None = None  # leave once so many rows are written
    max_rate: float | None = None  # rows claimed a second
    max_load: int | None = None  # claim nothing while more sessions of others are at work on the server
    decode_threads: int = 4
    decode_in: DecodeIn = "processes"  # which a picture may kill without ending the worker; or in its own "threads"
    encode_timeout: float = 600.0  # seconds that one call of an encoder may take, then the worker leaves; 0: any
    sweep_every: float = 300.0  # seconds between looks for rows that no trigger saw, where it runs for ever; 0: never


@dataclass(frozen=True)
class Progress:
    """What one batch came to; ``left`` counts the changes and jobs that wait in this embedding's queue.

    ``rows_per_second`` is how fast this worker writes them: over its whole run, without the time in which it had none.
    """

    embedding: str
    written: int
    failed: int
    skipped: int
    left: int
    rows_per_second: float


@dataclass
class Total:
    """What became of an embedding's rows since the worker was made."""

    batches: int = 0
    written: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass
class Summary:
    """What a run came to, over all embeddings."""

    written: int = 0
    failed: int = 0


class Registration(Protocol):
    """What loading a registered encoder needs: an embedding, or the encoder's own row, has it."""

    @property
    def encoder(self) -> str: ...
    @property
    def spec(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def normalized(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def modalities(self) -> list[str]: ...


@dataclass
class Trouble:
    embedding: str
    failures: int = 0
    until: float = 0.0
    error: Exception | None = None


class State:
    """Shared by the stages of one worker; every method may be called from any of their threads."""

    def __init__(
        self,
        options: WorkerOptions,
        on_progress: Callable[[Progress], None] | None,
        loaded: dict[str, tuple[Encoder, str]] | None = None,
    ) -> None:
        self.options = options
        self.on_progress = on_progress
        self.stop = threading.Event()
        self.log: Any = structlog.get_logger("pgembed.worker")
        self.summary = Summary()
        self._encoders = {} if loaded is None else loaded  # by name, with their fingerprints
        self._load_turns: dict[str, threading.Lock] = {}
        self._trouble: dict[int, Trouble] = {}
        self._refused: dict[int, PgembedError] = {}
        self._held: dict[int, set[int]] = {}  # seqs claimed and not yet written, by embedding
        self._resting: dict[int, float] = {}  # until when, by embedding: the day's budget is spent
        self._lock = threading.Lock()
        self.swept_at = time.monotonic()
        self.seen_at = time.monotonic()  # when the first stage last came round
        self.held_back = False  # by what others do on the server
        self.lost: str | None = None  # why there is no connection
        self.loading: str | None = None  # the encoder that is being loaded
        self.encode_seconds = 0.0  # in which the encoder was at work
        self.memory_held: Callable[[], int] = lambda: 0  # what pictures in hand take, as the session counts it
        self._totals: dict[str, Total] = {}

    def start(self) -> None:
        """Begin a run: nothing counted, no embedding in trouble."""
        self.summary = Summary()
        self._trouble.clear()
        self._resting.clear()
        self.swept_at = time.monotonic()

    def encoder(self, work: Registration) -> Encoder:
        """An encoder, loaded once. Raises EncoderMismatch where it is not the registered one."""
        with self._lock:
            turn = self._load_turns.setdefault(work.encoder, threading.Lock())
        with turn:  # rows and queries may want it at the same time
            loaded = self._encoders.get(work.encoder)
            if loaded is None or loaded[1] != work.fingerprint:
                self.loading = work.encoder
                try:
                    encoder = self._load(work)
                finally:
                    self.loading = None
                _require_modalities(work, encoder)
                loaded = (encoder, work.fingerprint)
                self._encoders[work.encoder] = loaded
            return loaded[0]

    def has_loaded(self, encoder: str) -> bool:
        """Whether an encoder of this name is loaded."""
        return encoder in self._encoders

    def _load(self, work: Registration) -> Encoder:
        try:
            return load_registered(
                work.encoder,
                work.spec,
                work.settings,
                fingerprint=work.fingerprint,
                dim=work.dim,
                normalized=work.normalized,
                policy=self.options.encoders,
            )
        except PgembedError:
            raise
        except Exception as error:  # a kind may raise anything
            reason = str(error) or type(error).__name__
            raise EncoderError(f"Encoder '{work.encoder}' ({work.spec}) could not be loaded: {reason}") from error

    def hold(self, work: Work, seqs: Sequence[int]) -> None:
        """Remember seqs as claimed by this worker."""
        with self._lock:
            self._held.setdefault(work.id, set()).update(seqs)

    def let_go(self, work: Work, seqs: Sequence[int]) -> None:
        """Forget seqs that are written or given back."""
        with self._lock:
            self._held.get(work.id, set()).difference_update(seqs)

    def held_seqs(self, embedding_id: int) -> list[int]:
        """The seqs of an embedding that are in hand."""
        with self._lock:
            return sorted(self._held.get(embedding_id, ()))

    def held_count(self) -> int:
        """How many rows are in hand."""
        with self._lock:
            return sum(map(len, self._held.values()))

    def count(self, step: Progress) -> None:
        """Add up what a batch came to."""
        with self._lock:
            total = self._totals.setdefault(step.embedding, Total())
            total.batches += 1
            total.written += step.written
            total.failed += step.failed
            total.skipped += step.skipped

    def totals(self) -> dict[str, Total]:
        """What became of the rows so far, by embedding."""
        with self._lock:
            return {name: replace(total) for name, total in self._totals.items()}

    def holds_any(self) -> bool:
        """Whether anything is in hand."""
        return self.held_count() > 0

    def room(self) -> int | None:
        """How many rows may still be claimed, where the worker is to leave after so many; None where it is not."""
        if self.options.max_rows is None:
            return None
        with self._lock:
            return max(0, self.options.max_rows - self.summary.written - sum(map(len, self._held.values())))

    def is_done(self) -> bool:
        """Whether as many rows are written as were asked for."""
        return self.options.max_rows is not None and self.summary.written >= self.options.max_rows

    def rest(self, work: Work, seconds: float) -> None:
        """The budget of the embedding's encoder is spent for the next so many seconds: leave it alone meanwhile."""
        if work.id not in self._resting:
            settings = {
                name: work.settings[name] for name in ("rows_per_day", "tokens_per_day") if name in work.settings
            }
            self.log.warning(
                "embedding rests: the budget is spent", embedding=work.name, more_in=round(seconds), **settings
            )
        self._resting[work.id] = time.monotonic() + min(seconds, BUDGET_LOOK)

    def is_resting(self, work: Work) -> bool:
        """Whether the budget of the embedding's encoder was spent when it was last looked at."""
        return self._resting.get(work.id, 0.0) > time.monotonic()

    def end_rest(self, work: Work) -> None:
        """There is something left of the embedding's budget."""
        self._resting.pop(work.id, None)

    def in_trouble(self, work: Work) -> bool:
        """Whether to leave this embedding alone for now."""
        trouble = self._trouble.get(work.id)
        return trouble is not None and trouble.until > time.monotonic()

    def note_trouble(self, work: Work, error: Exception) -> None:
        """An encoder or the database failed for this embedding: leave it alone for a while, longer each time."""
        trouble = self._trouble.setdefault(work.id, Trouble(work.name))
        trouble.error = error
        if trouble.until > time.monotonic():
            return  # a batch that was on its way: the same trouble still
        trouble.failures += 1
        asked: float = getattr(error, "retry_after", 0.0)  # a server may ask for more
        wait = max(TROUBLE_WAITS[min(trouble.failures, len(TROUBLE_WAITS)) - 1], asked)
        trouble.until = time.monotonic() + wait
        self.log.error("embedding in trouble", embedding=work.name, error=str(error).strip(), retry_in=wait)

    def refuse(self, embedding_id: int, name: str, error: PgembedError) -> None:
        """An embedding cannot be worked on as the catalog has it: say so, once for each reason, and leave it alone."""
        if str(self._refused.get(embedding_id)) != str(error):
            self.log.error("embedding refused", embedding=name, error=str(error))
        self._refused[embedding_id] = error

    def accept(self, embedding_id: int) -> None:
        """It can be worked on."""
        self._refused.pop(embedding_id, None)

    def note_success(self, work: Work) -> None:
        """This embedding works again."""
        self._trouble.pop(work.id, None)

    def any_trouble(self) -> Exception | None:
        """The error of some embedding that is in trouble now."""
        return next((trouble.error for trouble in self._trouble.values()), self.any_refused())

    def any_refused(self) -> Exception | None:
        """Why some embedding cannot be worked on."""
        return next(iter(self._refused.values()), None)

    def troubles(self) -> dict[str, Exception | None]:
        """The errors of embeddings that are in trouble, by name."""
        return {trouble.embedding: trouble.error for trouble in list(self._trouble.values())}

    def lasting_trouble(self, work: Work) -> Exception | None:
        """The error of an embedding that has failed time and again, or that no second try would mend."""
        trouble = self._trouble.get(work.id)
        if trouble and (trouble.failures >= 3 or isinstance(trouble.error, EncoderMismatch)):
            return trouble.error
        return None


def _require_modalities(work: Registration, encoder: Encoder) -> None:
    missing = set(work.modalities) - encoder.modalities
    if missing:
        raise EncoderError(f"Encoder '{work.encoder}' ({work.spec}) takes no {', '.join(sorted(missing))}.")
