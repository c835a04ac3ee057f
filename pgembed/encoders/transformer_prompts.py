"""What stands around the texts and pictures that a model of ``transformers:`` reads.

Models are trained on one form of prompt, and on any other they give worse vectors without a word. Some bring theirs as
a chat template; PRESETS holds the forms of families whose checkpoints do not, each as its model card and its authors'
code have it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pgembed.encoders.base import Role, Settings
from pgembed.encoders.transformer_families import Family
from pgembed.errors import EncoderError

Form = tuple[Role, Literal["text", "image"]]
ROLES: tuple[Role, ...] = ("query", "document")
CHAT = "chat"  # the preset that says: the model's own chat template
_TEXT, _IMAGE, _INSTRUCTION = "{text}", "{image}", "{instruction}"
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}pgembed\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Prompt:
    """What stands around an input: a text, or a picture's placeholder, which then is a part of ``before``.

    ``blank`` says that a text comes with a blank picture, whose placeholder is a part of ``before``.
    """

    before: str
    after: str = ""
    blank: bool = False


@dataclass(frozen=True)
class Preset:
    """The prompts that models of one family were trained on.

    ``images`` tells what stands for a picture, by the types of model that the family is made of; ``forms`` a template
    and its instruction, by role and modality. A text's template that has ``{image}`` wants a blank picture there.
    """

    images: Mapping[str, str]
    forms: Mapping[Form, tuple[str, str]]
    settings: Settings = field(default_factory=dict[str, Any])  # what is taken where the settings do not say it
    in_line: bool = False  # a picture's tokens are counted one after another, as those of a text are


def _chatml(system: str, user: str) -> str:
    """Qwen's form, with the token at which these families take the vector."""
    parts = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
    return parts + "<|im_start|>assistant\n<|endoftext|>"


_ASSISTANT = "You are a helpful assistant."
_PATCH = 28 * 28  # pixels that become one token
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_GME_TEXT, _GME_IMAGE = (_chatml(_INSTRUCTION, given) for given in (_TEXT, _IMAGE))
_DSE_IMAGE = _chatml(_ASSISTANT, _IMAGE + "What is shown in this image?")

PRESETS: Mapping[str, Preset] = {
    # https://huggingface.co/Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, gme_inference.py (arXiv 2412.16855)
    "gme": Preset(
        images={"qwen2_vl": _QWEN_IMAGE},
        forms={
            ("query", "text"): (_GME_TEXT, _ASSISTANT),
            ("query", "image"): (_GME_IMAGE, _ASSISTANT),
            ("document", "text"): (_GME_TEXT, _ASSISTANT),
            ("document", "image"): (_GME_IMAGE, _ASSISTANT),
        },
        settings={"min_pixels": 256 * _PATCH, "max_pixels": 1280 * _PATCH, "max_length": 1800},
        in_line=True,  # its code calls the language model without positions
    ),
    # https://huggingface.co/MrLight/dse-qwen2-2b-mrl-v1 (arXiv 2406.11251)
    "dse": Preset(
        images={"qwen2_vl": _QWEN_IMAGE},
        forms={
            ("query", "text"): (_chatml(_ASSISTANT, f"{_IMAGE}Query: {_TEXT}"), ""),
            ("query", "image"): (_DSE_IMAGE, ""),
            ("document", "text"): (_chatml(_ASSISTANT, f"{_IMAGE}Document: {_TEXT}"), ""),
            ("document", "image"): (_DSE_IMAGE, ""),
        },
        settings={"min_pixels": _PATCH, "max_pixels": 2560 * _PATCH},
    ),
    # https://huggingface.co/TIGER-Lab/VLM2Vec-Full, https://github.com/TIGER-AI-Lab/VLM2Vec (arXiv 2410.05160)
    "vlm2vec": Preset(
        images={
            "qwen2_vl": "<|image_pad|>",
            "qwen2_5_vl": "<|image_pad|>",
            "phi3_v": "<|image_1|>",
            "llava_next": "<image>",
        },
        forms={
            ("query", "text"): (
                f"{_INSTRUCTION} {_TEXT}", "Find me an everyday image that matches the given caption:",
            ),
            ("query", "image"): (
                f"{_IMAGE} {_INSTRUCTION}", "Find a day-to-day image that looks similar to the provided image.",
            ),
            ("document", "text"): (_TEXT, ""),
            ("document", "image"): (f"{_IMAGE} {_INSTRUCTION}", "Represent the given image."),
        },
        in_line=True,  # without the mark before a picture, its code takes the picture's tokens for a text's
    ),
}  # fmt: skip


def find_preset(spec: str, settings: Settings, kind: str) -> Preset | None:
    """The preset that the settings name. Raises EncoderError where it does not fit a model of this type, or them."""
    name = settings.get("preset", CHAT)
    if {"preset", "template"} <= set(settings):
        raise EncoderError(f"Encoder '{spec}' has both a preset and a template.", "Keep one of the two settings.")
    if name == CHAT:
        return None
    preset = PRESETS[name]
    if kind not in preset.images:
        raise EncoderError(
            f"The preset '{name}' is for {', '.join(preset.images)}; the model of '{spec}' is a {kind}.",
            "Drop the setting 'preset', or say the prompt by 'template'.",
        )
    for role in ROLES:
        places = any(_INSTRUCTION in template for (of, _), (template, _) in preset.forms.items() if of == role)
        if f"{role}_instruction" in settings and not places:
            raise EncoderError(
                f"The prompts of the preset '{name}' have no place for a {role}_instruction (for '{spec}').",
                "Drop that setting, or say the whole prompt by 'template'.",
            )
    return preset


def named_after(name: str) -> str | None:
    """The preset whose family a model's name begins with, as ``MrLight/dse-qwen2-2b-mrl-v1`` does."""
    first = re.match(r"[a-z0-9]+", name.rstrip("/").rpartition("/")[2].lower())
    return first[0] if first is not None and first[0] in PRESETS else None


def make_prompts(
    spec: str,
    processor: Any,  # noqa: ANN401
    family: Family,
    preset: Preset | None,
    settings: Settings,
    modalities: Container[str],
    kind: str,
) -> dict[Form, Prompt]:
    """The prompts by role and modality: from the preset, the setting ``template``, or the processor's chat template.

    A template holds ``{instruction}``, ``{image}`` and ``{text}``. In a chat template the instruction is the system's.
    """
    template: str | None = settings.get("template")
    if template is not None and family.way != "joint":
        raise EncoderError(f"The model of '{spec}' makes its prompts by itself.", "Drop the setting 'template'.")
    image = family.image or getattr(processor, "image_token", None) or ""
    chat = "image" in modalities and isinstance(getattr(processor, "chat_template", None), str)
    if settings.get("preset") == CHAT and not (chat and family.way == "joint"):
        raise EncoderError(f"The model of '{spec}' has no chat template for pictures.", "Drop the setting 'preset'.")
    found: dict[Form, Prompt] = {}
    for form in [(role, modality) for role in ROLES for modality in ("text", "image") if modality in modalities]:
        form = cast("Form", form)
        role, pictured = form[0], form[1] == "image"
        instruction: str = settings.get(f"{role}_instruction", "")
        if family.way != "joint":
            found[form] = Prompt("" if pictured else instruction)
        elif preset is not None:
            whole, own = preset.forms[form]
            image, instruction = preset.images[kind], settings.get(f"{role}_instruction", own)
            blank = not pictured and _IMAGE in whole
            found[form] = _filled(whole, instruction, image, pictured=pictured, blank=blank)
        elif template is not None:
            _check_template(spec, template, pictured=pictured)
            found[form] = _filled(template, instruction, image if pictured else "", pictured=pictured)
        elif chat:
            found[form] = _from_chat(spec, processor, instruction, pictured=pictured)
        else:
            whole = f"{_IMAGE}{_INSTRUCTION}{_TEXT}"
            found[form] = _filled(whole, instruction, image if pictured else "", pictured=pictured)
    return found


def _filled(template: str, instruction: str, image: str, *, pictured: bool, blank: bool = False) -> Prompt:
    parts = {_INSTRUCTION: instruction, _IMAGE: image, _TEXT: "" if pictured else _MARK}
    whole = re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template)
    before, _, after = whole.partition(_MARK)
    return Prompt(before, after, blank)


def _check_template(spec: str, template: str, *, pictured: bool) -> None:
    if pictured and _IMAGE not in template:
        raise EncoderError(f"The template of '{spec}' has no place for a picture.", "Write {image} into it.")
    if not pictured and template.count(_TEXT) != 1:
        raise EncoderError(f"The template of '{spec}' has not one place for a text.", "Write {text} into it, once.")


def _from_chat(spec: str, processor: Any, instruction: str, *, pictured: bool) -> Prompt:  # noqa: ANN401
    parts = [{"type": "image"}] if pictured else [{"type": "text", "text": _MARK}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if instruction:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": instruction}]})
    try:
        whole = str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        raise EncoderError(
            f"The chat template of '{spec}' does not take an instruction of the system, or a picture: {error}.",
            "Give the setting 'template', with {instruction}, {image} and {text}.",
        ) from error
    before, mark, after = whole.partition(_MARK)
    if not mark and not pictured:
        raise EncoderError(f"The chat template of '{spec}' leaves the text out.", "Give the setting 'template'.")
    return Prompt(before, after)
