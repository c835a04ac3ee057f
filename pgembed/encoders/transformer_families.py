"""What the families of ``transformers:`` differ in: how they are called, how their output becomes vectors.

Most families need no line in the table: what a model offers says how it is called. A line is there where that does not
suffice, as where a text must be padded to its full length, or a picture stands between two marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pgembed.errors import EncoderError

# dual: a text tower and a picture tower, each with its own output. joint: one model reads text and pictures together,
# and its token vectors are pooled. many: one vector for each token, made to be compared one by one.
Way = Literal["dual", "joint", "many"]
Pooling = Literal["last", "mean", "cls", "latent", "none"]
POOLINGS: tuple[str, ...] = ("last", "mean", "cls", "latent", "none")


@dataclass(frozen=True)
class Family:
    """How models of one family are called."""

    way: Way
    pooling: Pooling = "last"
    image: str | None = None  # what stands for a picture in a prompt, where the processor does not say
    padded: bool = False  # texts are padded to the model's length, as in its training
    sized: bool = False  # its pictures keep their shape, between min_pixels and max_pixels


_QWEN = Family("joint", image="<|vision_start|><|image_pad|><|vision_end|>", sized=True)
FAMILIES: dict[str, Family] = {
    "clip": Family("dual"),
    "siglip": Family("dual", padded=True),
    "siglip2": Family("dual", padded=True),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "phi3_v": Family("joint", image="<|image_1|>"),
    "llava_next": Family("joint", image="<image>"),
    "colpali": Family("many", "none"),
    "colqwen2": Family("many", "none", sized=True),
}


def family_of(kind: str, model: Any, *, reads: bool) -> Family:  # noqa: ANN401
    """The family of a loaded model: by its type, else by what it offers."""
    known = FAMILIES.get(kind)
    if known is not None:
        return known
    name = type(model).__name__
    if name.endswith("ForRetrieval"):
        return Family("many", "none")
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features"):
        return Family("dual")
    architectures = [*(getattr(model.config, "architectures", None) or ()), name]
    generates = any(each.endswith(("ForCausalLM", "ForConditionalGeneration")) for each in architectures)
    return Family("joint", "last" if generates else "mean" if reads else "cls")


def with_pooling(spec: str, family: Family, asked: Pooling | None) -> Family:
    """The family with the pooling that is asked for. Raises EncoderError where it has none to choose."""
    if asked is None:
        return family
    if family.way == "dual":
        raise EncoderError(
            f"The model of '{spec}' has one output for each text and picture.", "Drop the setting 'pooling'."
        )
    return replace(family, pooling=asked)


def pool(hidden: Any, mask: Any, how: Pooling, torch: Any) -> Any:  # noqa: ANN401
    """Token vectors ``(n, m, dim)`` and which of them count ``(n, m)`` -> ``(n, dim)``, padded on either side."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    if how == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        return hidden[rows, (mask * places).argmax(dim=1)]
    if how == "cls":
        return hidden[rows, mask.argmax(dim=1)]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class LatentAttention:
    """The pooling of NV-Embed (arXiv 2405.17428): tokens attend to trained latents, and the result is averaged.

    It is made from the tensors that a checkpoint holds under ``latent_attention_model.``, in NV-Embed's names.
    """

    prefix = "latent_attention_model."

    def __init__(self, tensors: Mapping[str, Any], heads: int, torch: Any) -> None:  # noqa: ANN401
        self.tensors = dict(tensors)
        self._heads = heads
        self._torch = torch

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name, as a module of torch tells them."""
        return self.tensors

    def __call__(self, hidden: Any, mask: Any) -> Any:  # noqa: ANN401
        """``(n, m, dim)`` and ``(n, m)`` -> ``(n, dim)``."""
        functional, read = self._torch.nn.functional, self.tensors
        latents = read["latents"].expand(hidden.shape[0], -1, -1)
        asking = self._normed(hidden, "cross_attend_blocks.0.norm")
        told = self._normed(latents, "cross_attend_blocks.0.norm_context")
        queries = self._split(asking @ read["cross_attend_blocks.0.fn.to_q.weight"].T)
        keys, values = (
            self._split(each) for each in (told @ read["cross_attend_blocks.0.fn.to_kv.weight"].T).chunk(2, dim=-1)
        )
        found = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        hidden = found @ read["cross_attend_blocks.0.fn.to_out.weight"].T + hidden
        inner = self._linear(self._normed(hidden, "cross_attend_blocks.1.norm"), "cross_attend_blocks.1.fn.net.0")
        kept, gate = inner.chunk(2, dim=-1)
        hidden = self._linear(kept * functional.gelu(gate), "cross_attend_blocks.1.fn.net.2") + hidden
        return pool(hidden, mask, "mean", self._torch)

    def _split(self, tensor: Any) -> Any:  # noqa: ANN401
        return tensor.unflatten(-1, (self._heads, -1)).transpose(1, 2)

    def _linear(self, tensor: Any, name: str) -> Any:  # noqa: ANN401
        return self._torch.nn.functional.linear(
            tensor, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        )

    def _normed(self, tensor: Any, name: str) -> Any:  # noqa: ANN401
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return self._torch.nn.functional.layer_norm(tensor, tensor.shape[-1:], weight, bias)
