"""Published datasets of composed retrieval (a picture and a change in words), from a local copy, and their metrics."""

from pgembed.evaluate.cir.run import DATASETS, Asking, Result, dataset_named, evaluate_composed
from pgembed.evaluate.cir.ways import WAYS, way_named

__all__ = ["DATASETS", "WAYS", "Asking", "Result", "dataset_named", "evaluate_composed", "way_named"]
