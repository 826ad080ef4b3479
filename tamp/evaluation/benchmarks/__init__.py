"""Published benchmarks by name: where they lie, what they ask, how they are scored, and running them."""

from tamp.evaluation.benchmarks.asking import Asked
from tamp.evaluation.benchmarks.running import answers, check
from tamp.evaluation.benchmarks.scores import in_per_cent, refusal, retention, summarise
from tamp.evaluation.benchmarks.table import TABLE, Protocol, Published

__all__ = [
    "TABLE",
    "Asked",
    "Protocol",
    "Published",
    "answers",
    "check",
    "in_per_cent",
    "refusal",
    "retention",
    "summarise",
]
