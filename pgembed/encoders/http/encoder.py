"""The encoder of kind ``http``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from PIL import Image

from pgembed.encoders.base import Encoder, Needs, Role, Settings, named_fingerprint, what_differs
from pgembed.encoders.http import pictures
from pgembed.encoders.http.answers import Unusable, vectors_in
from pgembed.encoders.http.config import Config, read_config
from pgembed.encoders.http.forms import Encoding, fill
from pgembed.encoders.http.kept import Kept, key_of
from pgembed.encoders.http.keys import read_key
from pgembed.encoders.http.limits import batches
from pgembed.encoders.http.sample import same, sketch
from pgembed.encoders.http.server import Refused, Server
from pgembed.encoders.text_tokens import TextTokens, TokenizerTokens
from pgembed.errors import EncoderError, EncoderUnavailable, InvalidInput
from pgembed.metering import Cost, rough_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as Picture

    from pgembed.encoders.base import Vectors
    from pgembed.encoders.http.kept import Outcome

PLAIN = "a photo"
_SAMPLE = " ~"  # in a fingerprint: what follows is compared with tolerance
MOST_AT_ONCE = 2048
_log = logging.getLogger("pgembed.encoders")
LEARNED_FROM = 1000  # tokens, before a server's own count of them is believed


class HttpEncoder(Encoder):
    """A model behind HTTP. Its vectors have length 1 unless the setting normalize is false."""

    scheme: ClassVar[str] = "http"

    def __init__(self, config: Config, server: Server) -> None:
        self.spec = config.spec
        self.modalities = config.modalities
        self.normalized = bool(config.get("normalize", True))
        self._config = config
        self._form = config.form
        self._server = server
        self._kept = Kept()
        self._lock = threading.Lock()
        self._asked_tokens = self._billed_tokens = 0
        self._encoding: Encoding = config.get("encoding", "base64")
        self._tokenizer = _tokenizer(config)
        self._text_tokens: TextTokens = self._tokenizer or TextTokens()
        self._text_tokens.characters = config.get("max_chars", None)
        self._told_of_cuts = False
        self._concurrency = int(config.get("concurrency", 4))
        info = self._told_by_server()
        self.dim = 0  # until the first answer
        self.latency, served, sample = self._first_answer()  # seconds of one small request
        self.batch_size = min(MOST_AT_ONCE, self._concurrency * self._form.max_batch)
        told = named_fingerprint(
            model=config.model,
            server="\n".join((*info, served)),
            dimensions=str(self.dim),
            request=config.facts(),
            prompts="\n".join((config.prompt("document"), config.prompt("query"))),
        )
        self.fingerprint = f"{told}{_SAMPLE}{sample}" if sample else told

    @classmethod
    def load(cls, name: str, settings: Settings) -> Self:
        """Ask the server for one vector, to see that address, key and model go together, and to learn its dimensions.

        Raises EncoderError for settings that do not fit, EncoderUnavailable where the server does not answer.
        """
        config = read_config(f"{cls.scheme}:{name}", name, settings)
        return cls(config, Server(config, read_key(config)))

    @classmethod
    def needs(cls, name: str, settings: Settings) -> Needs:
        """The server that rows are sent to, and the files of key and tokenizer. Raises EncoderError as load does."""
        return read_config(f"{cls.scheme}:{name}", name, settings).needs

    def differs_from(self, fingerprint: str) -> str | None:
        """Also where all that the server tells is the same, and its vector of a plain input is another one."""
        registered, _, sample = fingerprint.partition(_SAMPLE)
        here, _, sample_here = self.fingerprint.partition(_SAMPLE)
        if registered != here:
            return what_differs(registered, here)
        return None if same(sample, sample_here) else "weights (its vector of a plain input is another)"

    def preprocess(self, picture: Picture) -> bytes:
        """A picture as the file that is sent: a JPEG or PNG, its longer side at most ``image_side``."""
        side = int(self._config.get("image_side", pictures.SIDE))
        return pictures.packed(picture, side=side, form=self._config.get("image_format", "jpeg"))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts of rows -> ``(n, dim) float32``. Raises InvalidInput for one that the server refuses."""
        return self._embed_texts(texts, "document")

    def embed_query_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts that are searched with -> ``(n, dim) float32``."""
        return self._embed_texts(texts, "query")

    def embed_pixels(self, pixels: Sequence[bytes]) -> Vectors:
        """Pictures of rows, from ``preprocess`` -> ``(n, dim) float32``."""
        return self._embed("image", "document", pixels)

    def embed_query_pixels(self, pixels: Sequence[bytes]) -> Vectors:
        """Pictures that are searched with -> ``(n, dim) float32``."""
        return self._embed("image", "query", pixels)

    def count_tokens(self, texts: Iterable[str]) -> int:
        """The tokens of texts: by the tokenizer, or roughly, and then as the server has counted so far."""
        total = sum(map(self._tokens, texts))
        with self._lock:
            if self._tokenizer is None and min(self._asked_tokens, self._billed_tokens) > LEARNED_FROM:
                return max(1, round(total * self._billed_tokens / self._asked_tokens))
        return total

    def cost_of(self, *, texts: int, tokens: int, pictures: int) -> Cost:
        """Requests and seconds: as the first small request took, or as the rate limits allow, whichever is longer."""
        calls = -(-texts // self._form.max_batch) + -(-pictures // self._form.max_images)
        if self._form.max_tokens:
            calls = max(calls, -(-tokens // self._form.max_tokens))
        if not calls:
            return Cost(0, 0.0)
        return Cost(calls, max(calls * self.latency / self._concurrency, self._server.seconds_for(calls, tokens)))

    def close(self) -> None:
        """Close the connections that are kept."""
        self._server.close()

    def _embed_texts(self, texts: Sequence[str], role: Role) -> Vectors:
        most = self._config.get("max_chars", None)
        prompt = self._config.prompt(role)
        longest = max(map(len, texts), default=0)
        if most is not None and longest > most and not self._told_of_cuts:
            self._told_of_cuts = True
            _log.warning(
                "Encoder '%s' sends %d characters of a text (max_chars); one of %d was cut, and longer ones will be.",
                self.spec,
                most,
                longest,
            )
        return self._embed("text", role, [prompt + text[:most] for text in texts])

    def _embed(self, modality: str, role: Role, values: Sequence[str] | Sequence[bytes]) -> Vectors:
        """Each distinct input is sent once; what went well before a failure is kept for the next call."""
        keys = [key_of(modality, role, value) for value in values]
        wanted = dict(zip(keys, values, strict=True))
        outcomes: dict[bytes, Outcome] = {
            key: outcome for key in wanted if (outcome := self._kept.get(key)) is not None
        }
        left = [key for key in wanted if key not in outcomes]
        try:
            for key, outcome in self._fetch(modality, role, {key: wanted[key] for key in left}):
                outcomes[key] = outcome
        except BaseException:
            for key, outcome in outcomes.items():
                self._kept.keep(key, outcome)
            raise
        vectors = np.zeros((len(keys), self.dim), dtype=np.float32)
        for place, key in enumerate(keys):
            outcome = outcomes[key]
            if isinstance(outcome, Exception):
                self._keep_but_told(outcomes)
                raise outcome
            vectors[place] = outcome
        for key in wanted:
            self._kept.drop(key)
        return vectors

    def _keep_but_told(self, outcomes: Mapping[bytes, Outcome]) -> None:
        """Before an input's error is raised: the others' vectors are not lost. Alone, it is told, and forgotten."""
        for key, outcome in outcomes.items():
            self._kept.keep(key, outcome)
        if len(outcomes) == 1:
            self._kept.drop(next(iter(outcomes)))

    def _fetch(self, modality: str, role: Role, values: Mapping[bytes, str | bytes]) -> Iterable[tuple[bytes, Outcome]]:
        """Ask for what is not there, in requests side by side; outcomes as they come, then the first outage."""
        keys = list(values)
        tokens = [self._tokens(value) if isinstance(value, str) else 0 for value in values.values()]
        most = self._form.max_batch if modality == "text" else self._form.max_images
        parts = batches(tokens, most=most, most_tokens=self._form.max_tokens)

        down = threading.Event()

        def ask(part: list[int]) -> list[tuple[bytes, Outcome]] | EncoderError:
            if down.is_set():
                return EncoderUnavailable("not sent")
            try:
                chosen = [values[keys[place]] for place in part]
                return list(zip((keys[place] for place in part), self._halving(modality, role, chosen), strict=True))
            except EncoderError as error:
                down.set()
                return error

        if len(parts) <= 1:
            answers = map(ask, parts)
            yield from _given(answers)
            return
        with ThreadPoolExecutor(min(self._concurrency, len(parts)), thread_name_prefix="pgembed-http") as pool:
            yield from _given(pool.map(ask, parts))

    def _halving(
        self, modality: str, role: Role, values: Sequence[str | bytes], *, sure: bool = False
    ) -> list[Outcome]:
        """Outcomes in order. A request that is refused is halved, once a plain input was seen to be taken."""

        def works() -> bool:
            return sure or self._does_plain(modality, values)

        try:
            outcomes = self._ask(modality, role, values)
            if any(isinstance(outcome, Exception) for outcome in outcomes) and not works():
                raise self._server.unusable(f"gives vectors that are zero or not finite for a plain {modality} too")
            return outcomes
        except Refused as refusal:
            if not works():
                raise self._refuses_all(modality, refusal) from None
            if len(values) == 1:
                return [self._blame(modality, refusal)]
            middle = len(values) // 2
            halves = [self._halving(modality, role, half, sure=True) for half in (values[:middle], values[middle:])]
            outcomes = [outcome for half in halves for outcome in half]
            if not any(isinstance(outcome, Exception) for outcome in outcomes):
                self._learn_largest(modality, len(values) - middle)
            return outcomes

    def _ask(self, modality: str, role: Role, values: Sequence[str | bytes]) -> list[Outcome]:
        """One request. A vector that is not finite, or zero, is its input's own fault."""
        inputs = [{"text": value} if isinstance(value, str) else pictures.marks(value) for value in values]
        tokens = sum(self._tokens(value) for value in values if isinstance(value, str))
        answer = self._send(modality, role, inputs, tokens)
        try:
            vectors = vectors_in(answer, self._form, len(values), self.dim or None)
        except Unusable as error:
            raise self._server.unusable(str(error)) from None
        self._count(answer, tokens)
        return self._outcomes(np.stack(vectors))

    def _send(self, modality: str, role: Role, inputs: Sequence[Mapping[str, str]], tokens: int) -> Any:  # noqa: ANN401
        template = self._config.template(modality)
        body = {**fill(template, self._config.values(self._encoding), inputs), **self._config.fields(role)}
        return self._server.post(body, tokens=tokens)

    def _outcomes(self, vectors: Vectors) -> list[Outcome]:
        finite: NDArray[np.bool_] = np.all(np.isfinite(vectors), axis=1)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            outcomes: list[Outcome] = list((vectors / lengths).astype(np.float32) if self.normalized else vectors)
        for place in np.flatnonzero(~finite | (lengths[:, 0] == 0)).tolist():
            what = "a zero vector" if finite[place] else "a vector that is not finite"
            outcomes[place] = InvalidInput(f"'{self.spec}' returned {what} for this input.")
        return outcomes

    def _blame(self, modality: str, refusal: Refused) -> Exception:
        """The error of one input that is refused where a plain one is taken."""
        if refusal.status == 500:  # the server's own fault, and may pass; the worker tries this row again later
            return EncoderError(f"'{self.spec}' fails on this {modality}, and not on others: {refusal.words}.")
        hint = "Shorten it, or set max_chars." if modality == "text" else "Set image_side or image_format."
        return InvalidInput(f"'{self.spec}' refuses this {modality}: {refusal.words}.", hint)

    def _refuses_all(self, modality: str, refusal: Refused) -> EncoderUnavailable:
        hint = "See whether preset, request and dimensions are what this server takes."
        if refusal.status == 500:
            hint = "See the server's own log."
        return EncoderUnavailable(f"'{self.spec}' refuses a plain {modality} too: {refusal.words}.", hint)

    def _plain(self, modality: str) -> str | bytes:
        if modality == "text":
            return self._config.prompt("document") + PLAIN
        return self.preprocess(Image.new("RGB", (64, 64), "grey"))

    def _does_plain(self, modality: str, values: Sequence[str | bytes]) -> bool:
        """Whether the server does a plain input: if it does, one of ``values``, which it does not do, is at fault."""
        plain = self._plain(modality)
        try:
            return list(values) != [plain] and not isinstance(self._ask(modality, "document", [plain])[0], Exception)
        except Refused:
            return False

    def _learn_largest(self, modality: str, most: int) -> None:
        """All inputs were taken in halves: the request was too large, and the next ones are smaller."""
        with self._lock:
            name = "max_batch" if modality == "text" else "max_images"
            self._form = replace(self._form, **{name: min(most, getattr(self._form, name))})

    def text_tokens(self) -> TextTokens:
        """By the tokenizer of the settings, or roughly. How many of them the server reads it does not tell; of texts
        longer than ``max_chars`` only so much is sent."""
        return self._text_tokens

    def _tokens(self, text: str) -> int:
        if self._tokenizer is None:
            return rough_tokens(text)
        return self._tokenizer.counts([text])[0] + self._tokenizer.around

    def _count(self, answer: Any, tokens: int) -> None:  # noqa: ANN401
        """Compare the tokens that the server counted with ours."""
        billed = _field(_field(answer, "usage"), "total_tokens")
        if isinstance(billed, int) and billed > 0 and tokens > 0:
            with self._lock:
                self._asked_tokens += tokens
                self._billed_tokens += billed

    def _told_by_server(self) -> tuple[str, ...]:
        """What the server says of its model, where it has a place to ask: name and commit; and its largest batch."""
        if self._form.info is None:
            return ()
        try:
            info: Any = self._server.get(self._form.info)
        except Refused:
            info = None
        if not isinstance(info, dict):
            raise self._server.unusable(f"tells nothing of its model at {self._form.info}")
        most = _field(info, "max_client_batch_size")
        if isinstance(most, int) and most > 0:
            self._form = replace(self._form, max_batch=min(self._form.max_batch, most))
        tokens = _field(info, "max_batch_tokens")
        if isinstance(tokens, int) and tokens > 0 and self._form.max_tokens is None:
            self._form = replace(self._form, max_tokens=tokens)
        return tuple(str(_field(info, name)) for name in ("model_id", "model_sha"))

    def _first_answer(self) -> tuple[float, str, str]:
        """Ask for one plain vector: learn the dimensions; the seconds it took, the name the model is served by, and the
        vector in short."""
        modality = "text" if "text" in self.modalities else "image"
        plain = self._plain(modality)
        inputs = [{"text": plain} if isinstance(plain, str) else pictures.marks(plain)]
        started = time.monotonic()
        try:
            answer = self._send(modality, "document", inputs, 2)
        except Refused as refusal:
            if self._encoding == "float" or "encoding" in self._config.settings:
                raise self._refuses_all(modality, refusal) from None
            self._encoding = "float"  # an older server may not know the field's other value
            started = time.monotonic()
            try:
                answer = self._send(modality, "document", inputs, 2)
            except Refused as again:
                raise self._refuses_all(modality, again) from None
        seconds = time.monotonic() - started
        try:
            vector = vectors_in(answer, self._form, 1, self._config.dimensions)[0]
        except Unusable as error:
            raise self._server.unusable(str(error)) from None
        self.dim = vector.shape[0]
        served = _field(answer, "model")
        return seconds, served if isinstance(served, str) else "", sketch(vector)


def _given(
    answers: Iterable[list[tuple[bytes, Outcome]] | EncoderError],
) -> Iterable[tuple[bytes, Outcome]]:
    """The outcomes of all requests that went well, before the first error of one that did not."""
    failed: EncoderError | None = None
    for answer in answers:
        if isinstance(answer, EncoderError):
            failed = failed or answer
        else:
            yield from answer
    if failed is not None:
        raise failed


def _tokenizer(config: Config) -> TokenizerTokens | None:
    """The tokenizer that the settings name. Raises EncoderError where it cannot be read."""
    path = config.get("tokenizer", None)
    if path is None:
        return None
    try:
        return TokenizerTokens(Path(path).read_text(encoding="utf-8"), None)
    except Exception as error:  # the library raises Exception itself
        raise EncoderError(f"The tokenizer '{path}' of '{config.spec}' cannot be read: {error}.") from None


def _field(answer: Any, name: str) -> Any:  # noqa: ANN401
    """A field of an answer, None where it has none."""
    return cast(dict[str, Any], answer).get(name) if isinstance(answer, dict) else None
