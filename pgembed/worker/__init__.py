"""The worker: claim -> load -> decode -> encode -> write. Nothing outside this folder knows about jobs."""

from pgembed.worker.run import Worker
from pgembed.worker.state import Progress, Summary, WorkerOptions

__all__ = ["Progress", "Summary", "Worker", "WorkerOptions"]
