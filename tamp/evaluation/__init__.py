"""Evaluating models: questions scored, methods compared, results read and drawn. The pruning core imports none of it."""

from tamp.evaluation.evaluating import evaluate
from tamp.evaluation.scoring import Benchmark, answers, overall, perplexity, prepare, summarise

__all__ = ["Benchmark", "answers", "evaluate", "overall", "perplexity", "prepare", "summarise"]
