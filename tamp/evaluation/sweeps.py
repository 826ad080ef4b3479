"""Cells of a comparison on other machines: submitit and Slurm schedule, here cells go in and records come out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tamp.errors import UserError

PLACES = ("slurm", "local")


def check(on: str) -> dict[str, str | int]:
    """Check that a place exists and that submitit is here, and return the options.

    Args:
        on: ``"slurm"``, or ``"local"`` for processes of this machine, perhaps with options of submitit, such as
            ``"slurm:slurm_partition=gpu,gpus_per_node=1,timeout_min=240"``.

    Raises:
        UserError: if there is no such place, an option is written wrongly, or the library is missing.
    """
    place, _, rest = on.partition(":")
    if place not in PLACES:
        raise UserError(f"Cells can be run on {' or '.join(PLACES)}, not on {on!r}.")
    options: dict[str, str | int] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{on!r}: write options as {place}:name=value,name=value.")
        options[name] = int(value) if value.isdigit() else value
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(f"Running cells on {place} needs the package submitit: pip install submitit.") from error
    return options


def run(function, settings: Any, cells: list, device: str, on: str, folder: Path) -> Iterator[dict]:
    """Run cells elsewhere, one job each, and yield their records as they are finished.

    Args:
        function: ``(settings, cell, device) -> record``, importable there.
        settings: what all cells share.
        cells: what to run.
        device: of each job.
        on: see :func:`check`.
        folder: where submitit keeps its scripts and logs; on a cluster every machine must see it.

    Raises:
        UserError: after all other cells are finished, if some failed; naming the first.
    """
    failed: list[str] = []
    for cell, outcome in _jobs(function, settings, cells, device, on, folder):
        if isinstance(outcome, Exception):
            failed.append(
                f"{cell}: {str(outcome).strip().splitlines()[-1] if str(outcome).strip() else type(outcome).__name__}"
            )
        else:
            yield outcome
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed on {on.partition(':')[0]}, first {failed[0]}. The others are "
            "recorded; the same command runs what is missing."
        )


def _jobs(function, settings, cells: list, device: str, on: str, folder: Path) -> Iterator[tuple]:
    import submitit

    options = check(on)
    executor = submitit.AutoExecutor(folder, cluster=on.partition(":")[0])
    try:
        executor.update_parameters(name="tamp", **options)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"submitit does not take these options ({on!r}): {error}") from error
    with executor.batch():
        jobs = {cell: executor.submit(function, settings, cell, device) for cell in cells}
    cell_of = {job.job_id: cell for cell, job in jobs.items()}
    try:
        for job in submitit.helpers.as_completed(list(jobs.values()), poll_frequency=1):
            error = job.exception()
            yield cell_of[job.job_id], error or job.result()
    finally:
        for job in jobs.values():  # when this process is stopped
            if not job.done():
                job.cancel()
