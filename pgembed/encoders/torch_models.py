"""What the kinds that run on torch share. It imports nothing heavy: torch is handed in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from pgembed.errors import EncoderError


def choose_device(spec: str, asked: str, torch: Any) -> str:  # noqa: ANN401
    """The device that is asked for, ``auto`` being the best that is there. Raises EncoderError for one that is not."""
    cuda, mps = bool(torch.cuda.is_available()), bool(torch.backends.mps.is_available())
    if asked == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = asked.partition(":")
    there = {"cpu": 1, "cuda": int(torch.cuda.device_count()) if cuda else 0, "mps": int(mps)}
    if kind not in there or (number and not number.isdigit()):
        raise EncoderError(f"Encoder '{spec}' knows no device '{asked}'.", "Use auto, cpu, cuda, cuda:N or mps.")
    if int(number or 0) >= there[kind]:
        raise EncoderError(f"The device '{asked}' of '{spec}' is not on this machine.", "Use auto or cpu.")
    return asked


def tensor_facts(model: Any, torch: Any) -> Iterator[str]:  # noqa: ANN401
    """Name, type, shape and digest of each tensor of the model, by name: what a fingerprint is made of."""
    for name, tensor in sorted(model.state_dict().items()):
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


def first_line(error: BaseException) -> str:
    """The first line of an error, for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]
