"""The settings of ``http:MODEL``, checked; a secret that stands in them is refused without being shown."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx

from pgembed.encoders.base import MODALITIES, Modality, Needs, Role, Settings
from pgembed.encoders.http.forms import FORMS, INPUT_MARKS, Encoding, Form, holds_mark, repeats
from pgembed.encoders.settings import Known, check_settings
from pgembed.errors import EncoderError

SETTINGS: Known = {
    "preset": tuple(FORMS),  # default: openai
    "url": str,  # without user, query and fragment; the hosted services have theirs by default
    "path": str,  # behind the url; {model} stands for the model's name
    "query_string": dict,  # {"api-version": "2024-02-01"}
    "headers": dict,  # fixed ones, none with a secret
    "key_env": str,  # the environment variable that holds the key ...
    "key_file": str,  # ... or the file, as an absolute path
    "key_header": str,  # default: Authorization, with "Bearer "
    "plain_http": bool,  # send the key without TLS to another machine
    "dimensions": int,  # asked of the server, where it can shorten vectors
    "modalities": list,  # default: all that the preset can
    "normalize": bool,  # scale vectors to length 1; default: true
    "encoding": ("base64", "float"),  # of the numbers in the answer, where the server has a choice
    "prompts": dict,  # {"query": "query: ", "document": "passage: "}: put before texts
    "query": dict,  # fields of the request for what is searched with ...
    "document": dict,  # ... and for rows
    "extra": dict,  # fields of every request
    "request": dict,  # the template itself, see forms.py
    "image_request": dict,
    "vectors": str,  # the path to the vectors in the answer
    "index": str,  # the path to their places, where the answer has them; "" for none
    "max_batch": int,  # inputs a request
    "max_batch_images": int,
    "max_batch_tokens": int,
    "tokenizer": str,  # a tokenizer.json to count tokens with; default: a quarter of the bytes
    "max_chars": int,  # of a text; the rest is cut off
    "image_side": int,  # pictures are shrunk to this
    "image_format": ("jpeg", "png"),
    "concurrency": int,  # requests at once
    "connect_timeout": float,
    "read_timeout": float,  # until the next piece of an answer comes
    "timeout": float,  # for one request in all
    "retries": int,  # tries of one request, the first one too
    "patience": float,  # seconds for all tries of one request, and the longest wait that a server may ask for
    "requests_per_minute": int,  # of one process: N workers send N times as many, so give each its share
    "tokens_per_minute": int,  # of one process too
    "rows_per_day": int,  # over 24 hours, for all workers and all embeddings of this encoder together
    "tokens_per_day": int,  # the same
}
# The catalog refuses the same, for what is registered by SQL: sql/20_encoder.sql.
_SECRET_NAME = re.compile(
    r"(^|[-_.])(api[-_]?key|apikey|key|token|secret|password|passwd|authorization|auth|cookie|credentials?|sig|signature)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"\b(Bearer|Basic)\s+\S|^(sk|pk|pa|hf|jina|gsk|xai|nvapi|co|ghp|glpat)[-_][\w-]{12,}|^AIza[\w-]{20,}|^AKIA\w{12,}"
    r"|^eyJ[\w-]+\.[\w-]+\.|^[a-zA-Z][\w+.-]*://[^/\s]*@",
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_KNOWN_MARKS = {"{model}", "{dimensions}", "{encoding}", "{base64_or_nothing}", *INPUT_MARKS}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_KEY_HINT = (
    'Keep it in an environment variable or a file, and give the setting {"key_env": NAME} or {"key_file": PATH}.'
)
_OWN_SECRETS = {"key_env", "key_file", "key_header"}


@dataclass(frozen=True)
class Config:
    """What is asked where, and how: the settings with every default in place. It holds no secret."""

    spec: str
    model: str
    form: Form
    url: httpx.URL
    settings: Settings
    modalities: frozenset[Modality]
    key_env: str | None
    key_file: str | None

    @property
    def host(self) -> str:
        """The server's name, with its port where that is not the scheme's own: what a policy allows."""
        name = f"[{self.url.host}]" if ":" in self.url.host else self.url.host
        return f"{name}:{self.url.port}" if self.url.port else name

    @property
    def needs(self) -> Needs:
        """The server, and the files of key and tokenizer."""
        files = (self.key_file, self.settings.get("tokenizer"))
        return Needs(files=tuple(str(file) for file in files if file), hosts=(self.host,))

    @property
    def dimensions(self) -> int | None:
        """The dimensions that are asked for."""
        return self.settings.get("dimensions")

    def get(self, name: str, default: Any) -> Any:  # noqa: ANN401
        """A setting, or its default."""
        return self.settings.get(name, default)

    def template(self, modality: str) -> Mapping[str, Any]:
        """The request template for texts, or for pictures."""
        chosen = self.form.text if modality == "text" else self.form.image
        return chosen or {}

    def fields(self, role: Role) -> Mapping[str, Any]:
        """What a request says beside its template: always, and for this role."""
        return {**self.get("extra", {}), **self.form.roles.get(role, {}), **self.get(role, {})}

    def values(self, encoding: Encoding) -> dict[str, Any]:
        """What stands for the marks of a template."""
        return {
            "model": self.model,
            "dimensions": self.dimensions,
            "encoding": encoding,
            "base64_or_nothing": "base64" if encoding == "base64" else None,
        }

    def prompt(self, role: Role) -> str:
        """What is put before a text."""
        return self.get("prompts", {}).get(role, "")

    def facts(self) -> str:
        """What of the request the vectors depend on; the address does not matter, nor how numbers are written."""
        roles: tuple[Role, ...] = ("document", "query")
        return json.dumps(
            {
                "text": self.form.text,
                "image": self.form.image,
                "fields": {role: self.fields(role) for role in roles},
                "max_chars": self.get("max_chars", None),
                "image_side": self.get("image_side", None),
                "image_format": self.get("image_format", "jpeg"),
                "normalize": self.get("normalize", True),
                "query_string": self.get("query_string", {}),
            },
            sort_keys=True,
        )


def read_config(spec: str, model: str, settings: Settings) -> Config:
    """Check settings and complete them; reads no file and no key. Raises EncoderError."""
    for place, name in _secrets(settings):
        raise EncoderError(f"The settings of '{spec}' hold what looks like a secret, in {place}{name}.", _KEY_HINT)
    for name in _OWN_SECRETS:
        if name in settings and not isinstance(settings[name], str):
            raise EncoderError(f"The setting '{name}' of '{spec}' takes a string.")
    check_settings(spec, settings, SETTINGS)
    preset = str(settings.get("preset", "openai"))
    form = _form(spec, FORMS[preset], settings)
    modalities = _modalities(spec, form, settings)
    for modality in modalities:
        _check_template(spec, form.text if modality == "text" else form.image, modality)
    key_env = settings.get("key_env")
    if key_env is None and "key_file" not in settings and "url" not in settings:
        key_env = form.key_env  # the service's own address, and its own variable
    config = Config(
        spec,
        model,
        form,
        _url(spec, preset, form, settings),
        settings,
        modalities,
        _checked_variable(spec, key_env),
        _checked_file(spec, settings.get("key_file")),
    )
    _check_words(spec, settings)
    insecure = config.url.scheme == "http" and config.url.host not in _LOOPBACK and not settings.get("plain_http")
    if insecure and (config.key_env or config.key_file):
        raise EncoderError(
            f"Encoder '{spec}' would send its key to {config.host} without TLS.",
            'Use an https URL, or add the setting {"plain_http": true}.',
        )
    return config


def _secrets(value: object, place: str = "", *, inside: bool = False) -> Iterator[tuple[str, str]]:
    """Where a secret seems to stand: a field that is named like one, or a text that looks like one."""
    if isinstance(value, Mapping):
        for name, item in cast(Mapping[str, object], value).items():
            own = not inside and (name in SETTINGS or name in _OWN_SECRETS)
            if not own and _SECRET_NAME.search(name) and item is not None:
                yield place, f"'{name}'"
            yield from _secrets(item, f"{place}'{name}' ", inside=True)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _secrets(item, place, inside=True)
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        yield place.strip(), ""


def _form(spec: str, form: Form, settings: Settings) -> Form:
    """The preset's form with what the settings say otherwise."""
    changes: dict[str, Any] = {}
    for setting, name in (("path", "path"), ("request", "text"), ("image_request", "image"), ("vectors", "vectors")):
        if setting in settings:
            changes[name] = settings[setting]
    if "index" in settings:
        changes["index"] = settings["index"] or None
    elif "vectors" in settings:
        changes["index"] = None
    for setting, name in (("max_batch", "max_batch"), ("max_batch_images", "max_images")):
        if setting in settings:
            changes[name] = settings[setting]
    if "max_batch_tokens" in settings:
        changes["max_tokens"] = settings["max_batch_tokens"]
    form = dataclasses.replace(form, **changes)
    if form.text is None and form.image is None:
        raise EncoderError(
            f"Encoder '{spec}' has no request to send.",
            'For example: {"request": {"model": "{model}", "input": ["{text}"]}, "vectors": "data.*.embedding"}.',
        )
    if form.text is not None and not repeats(form.text):
        form = dataclasses.replace(form, max_batch=1)
    if form.image is not None and not repeats(form.image):
        form = dataclasses.replace(form, max_images=1)
    return form


def _modalities(spec: str, form: Form, settings: Settings) -> frozenset[Modality]:
    possible: set[Modality] = set()
    if form.text is not None:
        possible.add("text")
    if form.image is not None:
        possible.update(("image", "screenshot"))
    wanted: list[Any] = settings.get("modalities", sorted(possible))
    for modality in wanted:
        if modality not in possible:
            known = ", ".join(word for word in MODALITIES if word in possible)
            raise EncoderError(
                f"Encoder '{spec}' sends no {modality!r}.",
                f'It can send {known}; for pictures give an "image_request", or a preset that has one.',
            )
    if not wanted:
        raise EncoderError(f"Encoder '{spec}' has an empty list of modalities.", "Leave the setting out.")
    return frozenset(wanted)


def _check_template(spec: str, template: object, modality: str) -> None:
    if not holds_mark(template):
        raise EncoderError(
            f"The request of '{spec}' for {modality} has no place for its input.",
            'Write {"input": ["{text}"]}, or "{data_url}" or "{base64}" for a picture.',
        )
    unknown = set(re.findall(r'"(\{\w+\})"', json.dumps(template))) - _KNOWN_MARKS
    if unknown:
        raise EncoderError(
            f"The request of '{spec}' has the unknown mark {sorted(unknown)[0]}.",
            f"Known marks: {', '.join(sorted(_KNOWN_MARKS))}.",
        )


def _check_words(spec: str, settings: Settings) -> None:
    for name in ("prompts", "headers", "query_string"):
        given: Mapping[str, Any] = settings.get(name, {})
        for key, value in given.items():
            if not isinstance(value, str) or (name == "headers" and (value != value.strip() or "\n" in value)):
                raise EncoderError(f"The setting '{name}' of '{spec}' takes texts; {key!r} is none.")
            if name == "prompts" and key not in ("query", "document"):
                raise EncoderError(f"The setting 'prompts' of '{spec}' has {key!r}.", "Use query and document.")


def _url(spec: str, preset: str, form: Form, settings: Settings) -> httpx.URL:
    """The base URL. What is wrong with one is told without showing it: it may hold a password."""
    text = settings.get("url", form.url)
    if text is None:
        raise EncoderError(
            f"Encoder '{spec}' does not say where its server is.",
            f'Add the setting {{"url": "http://localhost:8080"}} (preset {preset}).',
        )
    try:
        url = httpx.URL(text)
        port = url.port
    except (httpx.InvalidURL, ValueError):
        raise EncoderError(f"The url of '{spec}' is not a valid URL.") from None
    if url.userinfo or "@" in url.netloc.decode("ascii", "replace"):
        raise EncoderError(f"The url of '{spec}' holds a user name or password.", _KEY_HINT)
    if url.query or url.fragment or "?" in text:
        raise EncoderError(
            f"The url of '{spec}' has a query string or fragment.",
            'Give fixed parameters as {"query_string": {"api-version": "..."}}; keys belong into key_env or key_file.',
        )
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.host) or port == 0:
        raise EncoderError(f"The url of '{spec}' is no http or https URL with a host.")
    return url


def _checked_variable(spec: str, name: str | None) -> str | None:
    """The name is shown in errors, so it must not be the key itself by mistake."""
    if name is not None and not _VARIABLE.fullmatch(name):
        raise EncoderError(
            f"The setting 'key_env' of '{spec}' is not the name of an environment variable.",
            "Give the name of the variable that holds the key, in capitals: OPENAI_API_KEY.",
        )
    return name


def _checked_file(spec: str, path: str | None) -> str | None:
    if path is not None and not path.startswith(("/", "~/")):
        raise EncoderError(
            f"The setting 'key_file' of '{spec}' is not an absolute path.", "Write it from the root: /run/secrets/key."
        )
    return path
