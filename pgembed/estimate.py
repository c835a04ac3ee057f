"""What an embedding would come to: rows, tokens, pictures, calls and time, with nothing changed and no row sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from psycopg import sql
from psycopg.types.json import Jsonb

from pgembed import catalog
from pgembed.catalog import EncoderRow, InputSpec
from pgembed.encoders import Encoder
from pgembed.errors import InvalidInput, PgembedError
from pgembed.metering import BYTES_PER_TOKEN, Metered, count_tokens
from pgembed.plans import Call, Compute, Plan

MEASURED_TEXTS = 32
MEASURED_PICTURES = 4
PICTURE_SIZE = (640, 480)


@dataclass(frozen=True)
class InputEstimate:
    """One modality: how many rows have this input, its mean size in bytes, and the tokens of all (texts only)."""

    modality: str
    inputs: int
    mean_bytes: float | None
    tokens: int | None


@dataclass(frozen=True)
class Estimate:
    """What attaching an embedding would come to.

    ``exact`` is false where rows are estimated. ``calls`` are requests of a server, or batches of a model; ``seconds``
    is the time of encoding alone, by one worker. Both are None where the encoder cannot be loaded here, and ``problem``
    says why. ``days`` is how long the encoder's budget makes it last, None without one. ``storage`` is where the
    vectors had better stand, and ``storage_reason`` why.
    """

    table: str
    target: str
    encoder: str
    rows: int
    exact: bool
    inputs: list[InputEstimate]
    calls: int | None
    seconds: float | None
    days: float | None
    problem: str | None
    storage: str = "column"
    storage_reason: str = ""

    @property
    def texts(self) -> int:
        """How many texts there are."""
        return sum(one.inputs for one in self.inputs if one.modality == "text")

    @property
    def tokens(self) -> int:
        """The tokens of all texts."""
        return sum(one.tokens or 0 for one in self.inputs)

    @property
    def pictures(self) -> int:
        """How many pictures and screenshots there are."""
        return sum(one.inputs for one in self.inputs if one.modality != "text")


def estimate(
    table: str,
    target: str,
    encoder: str,
    inputs: Mapping[str, InputSpec | None],
    load: Callable[[EncoderRow], Encoder],
    fusion: str = "sum",
) -> Plan[Estimate]:
    """Count what attach with these arguments would bring to the encoder, and how long that takes.

    ``load`` gives the registered encoder. A model on this machine is timed on a sample of the texts and on plain
    pictures; a server is sent none of the rows: its one answer at load, and its rate limits, tell the time.
    """
    given = {modality: value for modality, value in inputs.items() if value is not None}
    if not given:
        raise InvalidInput(
            f"Nothing to embed: {table}.{target} was given no input.",
            "Give text='{title}', image='photo' or screenshot='page'.",
        )
    registered: EncoderRow = yield from catalog.encoder(encoder)
    found = yield Call(
        sql.SQL("SELECT * FROM pgembed.estimate(%s::regclass, %s, %s, %s, fusion => %s)"),
        [table, target, encoder, Jsonb(given), fusion],
    )
    advice = (yield Call(sql.SQL("SELECT * FROM pgembed.advise_storage(%s::regclass)"), [table]))[0]
    counted: Estimate = yield Compute(lambda: _completed(table, target, registered, found, load))
    return replace(counted, storage=advice["storage"], storage_reason=advice["reason"])


def _completed(
    table: str,
    target: str,
    registered: EncoderRow,
    found: Sequence[Mapping[str, Any]],
    load: Callable[[EncoderRow], Encoder],
) -> Estimate:
    model: Encoder | None = None
    problem: str | None = None
    try:
        model = load(registered)
    except PgembedError as error:
        problem = str(error)
    counted = [_counted(row, model) for row in found]
    rows = max(int(row["rows"]) for row in found)
    result = Estimate(
        table,
        target,
        registered.name,
        rows,
        all(row["exact"] for row in found),
        counted,
        calls=None,
        seconds=None,
        days=_days(registered.settings, max(one.inputs for one in counted), counted),
        problem=problem,
    )
    if model is None:
        return result
    sample: Sequence[str] = next((row["sample"] or () for row in found if row["modality"] == "text"), ())
    try:
        calls, seconds = _cost(model, result, sample)
    except PgembedError as error:
        return replace(result, problem=str(error))
    return replace(result, calls=calls, seconds=seconds)


def _counted(row: Mapping[str, Any], model: Encoder | None) -> InputEstimate:
    """One modality; tokens from the sample where there is one, by the encoder's own count where it has one."""
    present, mean = int(row["inputs_present"]), row["mean_bytes"]
    tokens: int | None = None
    if row["modality"] == "text":
        sample: Sequence[str] = row["sample"] or ()
        size = sum(len(text.encode()) for text in sample)
        per_byte = count_tokens(model, sample) / size if size else 1 / BYTES_PER_TOKEN
        tokens = round(present * (mean or 0) * per_byte)
    return InputEstimate(row["modality"], present, mean, tokens)


def _cost(model: Encoder, result: Estimate, sample: Sequence[str]) -> tuple[int, float]:
    """Calls and seconds: as a server says, or as this machine does a few."""
    if isinstance(model, Metered):
        cost = model.cost_of(texts=result.texts, tokens=result.tokens, pictures=result.pictures)
        return cost.calls, cost.seconds
    calls, seconds = 0, 0.0
    for one in result.inputs:
        if not one.inputs:
            continue
        calls += -(-one.inputs // model.batch_size)
        if one.modality == "text":
            texts = list(sample[: min(MEASURED_TEXTS, model.batch_size)])
            seconds += one.inputs * _seconds_each(lambda texts=texts: model.encode_text(texts), len(texts))
        else:
            pictures = [Image.effect_noise(PICTURE_SIZE, 64).convert("RGB")] * min(MEASURED_PICTURES, model.batch_size)
            encode = model.encode_image if one.modality == "image" else model.encode_screenshot
            seconds += one.inputs * _seconds_each(
                lambda encode=encode, pictures=pictures: encode(pictures), len(pictures)
            )
    return calls, seconds


def _seconds_each(encode: Callable[[], object], count: int) -> float:
    """Seconds an input, once the model is warm."""
    if not count:
        return 0.0
    encode()
    started = time.perf_counter()
    encode()
    return (time.perf_counter() - started) / count


def _days(settings: Mapping[str, Any], rows: int, counted: Sequence[InputEstimate]) -> float | None:
    """How many days the budget makes of it."""
    tokens = sum(one.tokens or 0 for one in counted)
    needed = [
        amount / settings[name]
        for name, amount in (("rows_per_day", rows), ("tokens_per_day", tokens))
        if settings.get(name)
    ]
    return max(needed, default=None)
