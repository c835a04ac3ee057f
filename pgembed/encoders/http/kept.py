"""What a server has answered and nobody has taken yet: it is not paid for twice."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcome = NDArray[np.float32] | Exception

MOST = 4096
SECONDS = 300.0


class Kept:
    """Outcomes by input: a vector, or why the server refuses it. A call that fails leaves here what went well, and the
    worker, which looks for the row at fault by asking again for parts of the batch, finds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[bytes, tuple[float, Outcome]] = OrderedDict()

    def get(self, key: bytes) -> Outcome | None:
        """What is known of an input."""
        with self._lock:
            at, outcome = self._outcomes.get(key, (0.0, None))
            return outcome if time.monotonic() - at < SECONDS else None

    def keep(self, key: bytes, outcome: Outcome) -> None:
        """Remember an outcome for a while."""
        with self._lock:
            self._outcomes[key] = (time.monotonic(), outcome)
            while len(self._outcomes) > MOST:
                self._outcomes.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget an outcome that was taken."""
        with self._lock:
            self._outcomes.pop(key, None)


def key_of(*parts: str | bytes) -> bytes:
    """A short name for an input of a kind and role."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
