"""Which of a worker's threads runs where there are more than cores: the model, not what works ahead of it."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICENESS = 7  # four threads that decode have less weight together than one that encodes


def give_way() -> None:
    """Let this thread run when the encoder needs no core; elsewhere than on Linux, threads have no such priority.

    Without it, four threads that decode have more of two cores than the encoder, while they work ahead of it.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            here = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(here + NICENESS, 19))
