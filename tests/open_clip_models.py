"""Small models of open_clip's architectures, with seeded random weights, as folders in its own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import safetensors.torch
import torch

TEXTS = ["a red dress", "in blue", "une robe rouge à pois", "“Ünïcödé” &amp; 日本語 👍🏽", "x" * 500, "a b c " * 200]
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "red", "dress", "blue"]
HF_TEXT = "hf-text"
GREY = {"mean": [0.5] * 3, "std": [0.25] * 3}

# What the family has: towers of its own and of timm, convolutions, pooling by tokens, by attention and by decoders,
# texts read one way and both ways, tokenizers of CLIP and of the hub, all three ways to resize.
CONFIGS: dict[str, dict[str, Any]] = {
    "clip-vit": {"model_cfg": CLIP, "preprocess_cfg": {"interpolation": "bilinear", **GREY}},
    "clip-quickgelu": {"model_cfg": {**CLIP, "quick_gelu": True}, "preprocess_cfg": {}},
    "clip-shallow": {
        "model_cfg": {
            **CLIP,
            "vision_cfg": {**VISION, "layers": 1, "image_size": 32},
            "text_cfg": {**TEXT, "layers": 1},
        },
        "preprocess_cfg": {},
    },
    "clip-oblong": {
        "model_cfg": {**CLIP, "vision_cfg": {**VISION, "image_size": [64, 96], "pool_type": "avg"}},
        "preprocess_cfg": {"size": [64, 96]},
    },
    "clip-resnet": {
        "model_cfg": {**CLIP, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}},
        "preprocess_cfg": {"resize_mode": "longest", "fill_color": 127},
    },
    "timm-resnet": {
        "model_cfg": {
            **CLIP,
            "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        },
        "preprocess_cfg": {"resize_mode": "squash"},
    },
    "coca": {
        "model_cfg": {
            "embed_dim": 32,
            "custom_text": True,
            "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True, "attn_pooler_heads": 2},
            "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {},
    },
    "siglip": {
        "model_cfg": {
            "embed_dim": 64,
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
            "text_cfg": {
                **TEXT,
                "context_length": 16,
                "vocab_size": len(WORDS),
                "hf_tokenizer_name": "nobody/nowhere",
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
            },
        },
        "preprocess_cfg": {"resize_mode": "squash", **GREY},
    },
}


def make_model(folder: Path, name: str, *, seed: int = 4) -> Path:
    """Write configuration, weights and, where it is not CLIP's, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = with_text_tower_of_transformers(folder / "bert") if name == HF_TEXT else CONFIGS[name]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if "hf_tokenizer_name" in config["model_cfg"]["text_cfg"]:
        make_tokenizer(folder)
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}")
    for parameter in model.parameters():  # some start at zero, which would hide a side that is left out
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    safetensors.torch.save_model(model, str(folder / "open_clip_model.safetensors"))
    return folder


def with_text_tower_of_transformers(folder: Path) -> dict[str, Any]:
    """A configuration whose texts are read by a small BERT, which is written to the folder."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    text = {
        "hf_model_name": str(folder),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    text |= {"hf_tokenizer_name": str(folder.parent), "context_length": 20}
    return {"model_cfg": {**CLIP, "custom_text": True, "text_cfg": text}, "preprocess_cfg": {}}


def make_tokenizer(folder: Path) -> Path:
    """Write the files of a small WordPiece tokenizer, as the hub has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece(vocab={word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def by_hand(folder: Path, texts: list[str], pictures: list[PIL.Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of texts and of pictures as open_clip's own documentation computes them, one by one."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        words = [model.encode_text(tokenizer([text]), normalize=True) for text in texts]
        looks = [model.encode_image(preprocess(picture)[None], normalize=True) for picture in pictures]
    return torch.cat(words).numpy(), torch.cat(looks).numpy()


def pictures() -> list[PIL.Image.Image]:
    """Noise in sizes that are cut, filled up and enlarged."""
    chance = np.random.default_rng(7)
    sizes = [(300, 200), (64, 64), (33, 500), (640, 480)]
    return [PIL.Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
