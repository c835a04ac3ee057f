"""Every exception of pgembed: one sentence that says what was wrong, with the value, and a hint what to do."""

from __future__ import annotations


class PgembedError(Exception):
    """Base of all errors raised by pgembed."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class MissingExtra(PgembedError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra '{extra}', which is not installed.",
            f'Install it: pip install "pgembed-multimodal[{extra}]"',
        )


class InvalidInput(PgembedError):
    """An argument given by the caller cannot be used."""


class InvalidQuery(InvalidInput):
    """A query expression cannot be evaluated: empty, zero, not finite, or of mixed spaces."""


class UnknownEncoder(PgembedError):
    """No encoder kind or registered encoder has this name."""


class EncoderError(PgembedError):
    """An encoder could not be loaded, or returned something unusable; no row is at fault."""


class EncoderUnavailable(EncoderError):
    """An encoder's server or device does not answer, or refuses all calls for now; no row is at fault."""


class EncoderTimeout(EncoderError):
    """An encoder did not return; the worker whose thread it holds has to be started again."""


class EncoderMismatch(EncoderError):
    """Two encoders, spaces or fingerprints that must agree do not."""


class UnsupportedModality(InvalidInput):
    """The encoder does not take this kind of input."""


class MediaError(PgembedError):
    """A picture could not be read or decoded; this row alone is at fault.

    ``transient`` is true where trying again later may help (a network error, a file that is not there yet).
    """

    def __init__(self, message: str, hint: str | None = None, *, transient: bool = False) -> None:
        super().__init__(message, hint)
        self.transient = transient


class CatalogError(PgembedError):
    """The database refused a call of a pgembed function, or pgembed is not installed there as expected."""


class WaitTimeout(CatalogError):
    """Rows still wait for their vectors, and the time that ``wait`` was given is over."""


class NotInstalled(CatalogError):
    """The schema pgembed is not in this database, or not in this version."""
