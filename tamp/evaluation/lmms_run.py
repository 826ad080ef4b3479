"""Run lmms-eval's tasks on one model: ``python -m tamp.evaluation.lmms_run REQUEST.json``, a process of its own.

The request names model, tasks, limit, local data and the file to write; see :func:`tamp.evaluation.lmms_table.benchmark`.
Unlike lmms-eval's own command, which reports success after a failed run, this raises and leaves no file.
"""

import json
import sys
from numbers import Real
from pathlib import Path
from typing import Any

from lmms_eval import evaluator

from tamp.evaluation import results

PAIRS = (
    ("pred_answer", "gt_answer"),
    ("pred_answer", "answer"),
    ("pred", "ground_truth"),
    ("pred", "answer"),
    ("parsed_pred", "answer"),
)
"""Fields in which tasks write an answer as they read it, and the right one."""


def points(scored: dict[str, Any], metrics: list[str]) -> float | None:
    """Return what a question counts, in [0, 1], from a sample of lmms-eval; None if its task does not say so by question.

    Args:
        scored: the sample, with an entry per metric of the task.
        metrics: the task's metrics, the first of them first.
    """
    for metric in metrics:
        found = scored.get(metric)
        if isinstance(found, Real):
            return float(found)
        if not isinstance(found, dict):
            continue
        for name in ("score", "is_correct", "overall"):
            if isinstance(found.get(name), Real):
                return float(found[name])
        for said, right in PAIRS:
            if said in found and right in found:
                answer = found[said][0] if isinstance(found[said], list) and found[said] else found[said]
                return float(str(answer).strip().lower() == str(found[right]).strip().lower())
    return None


def total(result: dict[str, Any], metrics: list[str]) -> tuple[str, float | None]:
    """Return the first metric of a task that is a number, and lmms-eval's own value of it."""
    for metric in metrics:
        for key, value in result.items():
            name, _, filtered = key.partition(",")
            if name == metric and filtered and isinstance(value, Real):
                return metric, float(value)
    return metrics[0], None


def main(request: dict[str, Any]) -> Path:
    """Run a request and write what came of it."""
    local = request.get("data") or {}
    tasks = [
        name
        if name not in local
        else {
            "task": name,
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": local[name]},
        }
        for name in request["tasks"]
    ]
    made = evaluator.simple_evaluate(
        model="tamp",
        model_args=f"pretrained={request['model']},device={request['device']},dtype={request['dtype']}",
        tasks=tasks,
        limit=request["limit"],
        batch_size=1,
        log_samples=True,
        force_simple=True,
    )
    found = {}
    for task, samples in made["samples"].items():
        metrics = [each["metric"] for each in made["configs"][task]["metric_list"]]
        metric, value = total(made["results"][task], metrics)
        found[task] = {
            "metric": metric,
            "total": value,
            "questions": [
                {
                    "doc_id": each["doc_id"],
                    "answer": _answer(each),
                    "points": points(each, metrics),
                }
                for each in sorted(samples, key=lambda each: each["doc_id"])
            ],
        }
    return results.write_result(request["out"], {**request, "results": found})


def _answer(sample: dict[str, Any]) -> str:
    """Return what the model said, before a task's filters."""
    given = sample["resps"]
    while isinstance(given, list | tuple):
        given = given[0] if given else ""
    return str(given)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
