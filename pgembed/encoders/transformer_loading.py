"""A model of ``transformers:`` loaded from its folder, in the class that its configuration asks for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgembed.encoders.base import Settings
from pgembed.encoders.torch_models import first_line, tensor_facts
from pgembed.encoders.transformer_families import FAMILIES, LatentAttention
from pgembed.errors import EncoderError


@dataclass(frozen=True)
class Loaded:
    """A model with its processor; ``weights`` tells each tensor, for the fingerprint."""

    model: Any
    processor: Any
    latent: LatentAttention | None
    weights: list[str]
    folder: Path


def load_model(
    spec: str,
    folder: Path,
    config: Mapping[str, Any],
    settings: Settings,
    transformers: Any,  # noqa: ANN401
    torch: Any,  # noqa: ANN401
    device: str,
) -> Loaded:
    """Load what a folder holds. Raises EncoderError where the library cannot, or where weights are missing."""
    architecture = _architecture(config)
    kind = getattr(transformers, architecture, None) if architecture.endswith("ForRetrieval") else None
    precision = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    pickles, trusted = settings.get("allow_pickle", False), settings.get("trust_remote_code", False)
    options: dict[str, Any] = {"trust_remote_code": trusted, "local_files_only": not trusted}
    try:
        model, report = (kind or transformers.AutoModel).from_pretrained(
            str(folder),
            dtype=precision.get(settings.get("precision", "auto"), "auto"),
            use_safetensors=None if pickles else True,
            output_loading_info=True,
            **options,
        )
        processor = transformers.AutoProcessor.from_pretrained(str(folder), **options)
    except Exception as error:
        raise EncoderError(
            f"transformers could not load '{spec}': {first_line(error)}.",
            'Where it needs code of its own that you trust, add the setting {"trust_remote_code": true}.',
        ) from error
    # A pooler that was not trained is made anew each time, and not used: pooling is over tokens.
    missing = {name for name in report["missing_keys"] if "pooler" not in name.split(".")}
    if missing:
        raise EncoderError(f"The weights of '{spec}' lack '{min(missing)}' and {len(missing) - 1} more.")
    model.to(device).eval().requires_grad_(False)
    model.config.get_text_config().use_cache = False
    facts = [fact for fact in tensor_facts(model, torch) if fact.split()[0] not in report["missing_keys"]]
    latent = None
    if settings.get("pooling") == "latent":
        latent = _latent(folder, config, torch, device)
        facts += tensor_facts(latent, torch) if latent is not None else []
    return Loaded(model, processor, latent, facts, folder)


def _latent(folder: Path, config: Mapping[str, Any], torch: Any, device: str) -> LatentAttention | None:  # noqa: ANN401
    """The latent attention whose tensors stand beside the model's own; None where there are none."""
    safetensors: Any = importlib.import_module("safetensors")
    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(str(file), "pt") as held:
            for name in held.keys():  # noqa: SIM118
                if name.startswith(LatentAttention.prefix):
                    tensors[name.removeprefix(LatentAttention.prefix)] = held.get_tensor(name).float().to(device)
    said: Any = config.get("latent_attention_config") or {}
    heads = int(said.get("num_cross_heads", 8))
    return LatentAttention(tensors, heads, torch) if tensors else None


def is_late(config: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a configuration is that of a late interaction model, which can be told before its weights are read."""
    family = FAMILIES.get(str(settings.get("family", config.get("model_type"))))
    return family.way == "many" if family is not None else _architecture(config).endswith("ForRetrieval")


def _architecture(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])
