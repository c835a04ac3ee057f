"""Retrieval measured against judgments: nDCG, recall, MRR and mAP of an embedding, runs, tests and a report."""

from pgembed.evaluate.asking import Evaluation, Options, evaluate
from pgembed.evaluate.compare import Comparison, compare, randomization_test
from pgembed.evaluate.judgments import Fault, Question, Questions, find_qrels, read_qrels, read_queries
from pgembed.evaluate.metrics import MEASURES
from pgembed.evaluate.runs import Run, read_run, write_run

__all__ = [
    "MEASURES", "Comparison", "Evaluation", "Fault", "Options", "Question", "Questions", "Run", "compare", "evaluate",
    "find_qrels", "randomization_test", "read_qrels", "read_queries", "read_run", "write_run",
]  # fmt: skip
