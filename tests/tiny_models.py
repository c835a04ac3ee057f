"""Small models with seeded random weights, saved in the layout in which real ones of their families are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

QWEN_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["a red dress", "in blue", "une robe rouge à pois 👗", "", "a b c " * 12]


def pictures() -> list[PIL.Image.Image]:
    """Four of different shapes."""
    chance = np.random.default_rng(7)
    sizes = [(80, 50), (64, 64), (33, 150), (120, 90)]
    return [PIL.Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def byte_tokenizer(
    specials: tuple[str, ...], *, around: tuple[str, str] | None = None, **facts: object
) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and special tokens; ``around`` names those which stand around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens(list(specials))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if around is not None:
        ids = [(token, int(tokenizer.token_to_id(token))) for token in around]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{around[0]} $A {around[1]}", pair=f"{around[0]} $A {around[1]} $B {around[1]}", special_tokens=ids
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(specials), **facts
    )


def qwen_config(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_TOKENS}
    return {
        "text_config": {
            "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip


def save_qwen(folder: Path, *, padding_side: str = "right") -> Path:
    """A Qwen2-VL, as GME, DSE and VLM2Vec are built on."""
    tokenizer = byte_tokenizer(
        QWEN_TOKENS, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=512, padding_side=padding_side
    )
    _save(folder, transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(**qwen_config(tokenizer)))
    transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=QWEN_CHAT,
    ).save_pretrained(folder)
    return folder


def save_qwen2_5(folder: Path) -> Path:
    """A Qwen2.5-VL, as later models of these families are built on."""
    tokenizer = _qwen_tokenizer()
    config = qwen_config(tokenizer)
    config["vision_config"] = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    _save(folder, transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig(**config))
    transformers.Qwen2_5_VLProcessor(**_qwen_parts(tokenizer)).save_pretrained(folder)
    return folder


def save_qwen3(folder: Path) -> Path:
    """A Qwen3-VL."""
    tokenizer = _qwen_tokenizer()
    config = qwen_config(tokenizer)
    config["text_config"]["head_dim"] = 8
    config["vision_config"] = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    _save(folder, transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig(**config))
    transformers.Qwen3VLProcessor(**_qwen_parts(tokenizer)).save_pretrained(folder)
    return folder


def save_llava_next(folder: Path) -> Path:
    """A LLaVA-NeXT, as VLM2Vec's and E5-V's first models are built on."""
    tokenizer = byte_tokenizer(
        ("<pad>", "<s>", "</s>", "<image>"), pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaNextConfig(
        image_token_index=image,
        image_grid_pinpoints=[[28, 56], [56, 28]],
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32,
        },
        vision_feature_layer=-1,
    )  # fmt: skip
    _save(folder, transformers.LlavaNextForConditionalGeneration, config)
    transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def _qwen_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return byte_tokenizer(QWEN_TOKENS, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=512)


def _qwen_parts(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a processor of these families is made of."""
    return {
        "image_processor": transformers.Qwen2VLImageProcessor(
            min_pixels=56 * 56, max_pixels=112 * 112, patch_size=14, merge_size=2
        ),
        "tokenizer": tokenizer,
        "video_processor": transformers.Qwen2VLVideoProcessor(),
        "chat_template": QWEN_CHAT,
    }


def save_colqwen(folder: Path) -> Path:
    """A ColQwen2: many vectors for each picture and query."""
    tokenizer = byte_tokenizer(QWEN_TOKENS, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=512)
    config = transformers.ColQwen2Config(
        vlm_config={"model_type": "qwen2_vl", **qwen_config(tokenizer)}, embedding_dim=16
    )
    _save(folder, transformers.ColQwen2ForRetrieval, config)
    transformers.ColQwen2Processor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    return folder


def save_colpali(folder: Path) -> Path:
    """A ColPali: PaliGemma and a projection, many vectors for each picture and query."""
    tokenizer = byte_tokenizer(
        ("<pad>", "<bos>", "<eos>", "<image>"), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        model_max_length=512,
    )  # fmt: skip
    viewer = transformers.SiglipImageProcessor(size={"height": 28, "width": 28})
    viewer.image_seq_length = 4
    processor = transformers.ColPaliProcessor(image_processor=viewer, tokenizer=tokenizer)
    config = transformers.ColPaliConfig(
        vlm_config={
            "model_type": "paligemma", "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
            "projection_dim": 32, "hidden_size": 32,
            "text_config": {
                "model_type": "gemma", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
                "max_position_embeddings": 512, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258,
            },
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "image_size": 28,
                "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "projection_dim": 32,
            },
        },
        embedding_dim=16,
    )  # fmt: skip
    _save(folder, transformers.ColPaliForRetrieval, config)
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP of OpenAI's layout."""
    tokenizer = byte_tokenizer(
        ("<|startoftext|>", "<|endoftext|>"), pad_token="<|endoftext|>", bos_token="<|startoftext|>",
        eos_token="<|endoftext|>", around=("<|startoftext|>", "<|endoftext|>"), model_max_length=77,
    )  # fmt: skip
    config = transformers.CLIPConfig(
        projection_dim=24,
        text_config={
            "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 77, "bos_token_id": 256, "eos_token_id": 257,
            "pad_token_id": 257, "projection_dim": 24,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16, "projection_dim": 24,
        },
    )  # fmt: skip
    _save(folder, transformers.CLIPModel, config)
    viewer = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(image_processor=viewer, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """A SigLIP, whose texts are padded to their full length."""
    tokenizer = byte_tokenizer(("<pad>", "</s>"), pad_token="<pad>", eos_token="</s>", model_max_length=64)
    config = transformers.SiglipConfig(
        text_config={
            "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 256, "eos_token_id": 257,
            "projection_size": 32,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16,
        },
    )  # fmt: skip
    _save(folder, transformers.SiglipModel, config)
    viewer = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    transformers.SiglipProcessor(image_processor=viewer, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A BERT saved for masked words, so that its pooler is not among the weights."""
    specials = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    names = {f"{each[1:-1].lower()}_token": each for each in specials}
    tokenizer = byte_tokenizer(specials, around=("[CLS]", "[SEP]"), model_max_length=64, **names)
    config = transformers.BertConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=256,
    )  # fmt: skip
    _save(folder, transformers.BertForMaskedLM, config)
    tokenizer.save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A DINOv2: pictures only."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    _save(folder, transformers.Dinov2Model, config)
    transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder
    )
    return folder


def change_json(file: Path, **changes: object) -> None:
    """Change fields of an object of JSON in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _save(folder: Path, kind: Callable[..., torch.nn.Module], config: object) -> None:
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    model = kind(config).eval()
    for parameter in model.parameters():  # far apart, so that a mistake is seen
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
