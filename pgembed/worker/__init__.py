"""The worker: claim -> load -> decode -> encode -> write; beside it verify, which encodes again and compares.

Nothing outside this folder knows about jobs.
"""

from pgembed.worker.inline import work_inline
from pgembed.worker.run import Worker
from pgembed.worker.state import Progress, Summary, WorkerOptions
from pgembed.worker.verification import Verification, VerifyOptions, verify

__all__ = ["Progress", "Summary", "Verification", "VerifyOptions", "Worker", "WorkerOptions", "verify", "work_inline"]
