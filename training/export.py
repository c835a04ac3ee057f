"""From the trained parts to the shipped files, and the proof that they agree with the network in torch."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn as nn
from onnx import TensorProto, helper, numpy_helper
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.network import PIXELS, Features, Lite
from training.words import to_int8

BATCH = 16
# Tensors of fewer values than SMALL stay in single precision: half would move the gate of the few pictures at its
# edge, by three times what the larger ones do. Matrices of LARGE or more take 8 bits.
SMALL, LARGE = 2**14, 2**18


def folded(tower: nn.Module) -> nn.Module:
    """A copy of the tower with each batch normalization folded into the convolution before it."""
    tower = copy.deepcopy(tower).eval()
    for module in tower.modules():
        children = list(module.named_children())
        for (_, first), (name, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(first, second)
                first.weight, first.bias = fused.weight, fused.bias
                if hasattr(second, "act"):  # timm's normalization carries the activation
                    setattr(module, name, nn.Sequential(second.drop, second.act))
                else:
                    setattr(module, name, nn.Identity())
    return tower


def small_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the largest matrices in 8 bits with a scale a row, other large weights in half precision.

    They are widened when the session starts: the arithmetic stays single.
    """
    nodes, kept = [], []
    for tensor in model.graph.initializer:
        values, name = numpy_helper.to_array(tensor), tensor.name
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALL:
            kept.append(tensor)
        elif values.ndim == 2 and values.size >= LARGE:
            rows, scales = to_int8(values)
            kept.append(numpy_helper.from_array(rows, f"{name}_rows"))
            kept.append(numpy_helper.from_array(scales[:, None], f"{name}_scales"))
            nodes.append(helper.make_node("Cast", [f"{name}_rows"], [f"{name}_wide"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}_wide", f"{name}_scales"], [name]))
        else:
            kept.append(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(model)
    return model


def export(network: Lite, path: Path) -> None:
    """Write the network as ONNX: ``pixels (n, 224, 224, 3) uint8`` -> ``vectors (n, 256) float32``."""
    _write(Lite(folded(network.tower), network.names, network.silent, network.drawings, network.gate), "vectors", path)


def export_features(tower: nn.Module, path: Path) -> None:
    """Write the tower alone: ``pixels (n, 224, 224, 3) uint8`` -> ``features (n, 1280) float32``."""
    _write(Features(folded(tower)), "features", path)


def _write(network: nn.Module, output: str, path: Path) -> None:
    example = torch.zeros(2, PIXELS, PIXELS, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        network.eval(), (example,), dynamo=True, input_names=["pixels"], output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
    )  # fmt: skip
    model = small_weights(program.model_proto)
    for node in model.graph.node:  # no trace of the machine it was made on
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def in_torch(network: Lite, pixels: np.ndarray) -> np.ndarray:
    """The vectors of pictures by the network as it was trained, in single precision."""
    with torch.no_grad():
        return np.concatenate([network(part).numpy() for part in torch.from_numpy(pixels).split(BATCH)])


def as_shipped(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The vectors of pictures by an exported file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {"pixels": pixels[start : start + BATCH]})[0] for start in range(0, len(pixels), BATCH)]
    )
