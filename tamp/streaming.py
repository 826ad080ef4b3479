"""Pruning that can be stopped: every finished block goes to a file beside the result, and the next run goes on from there.

Beside ``OUT`` lies ``OUT.partial`` until ``OUT`` is whole: a safetensors file per finished block, and ``progress.json`` with
the plan and the fingerprint of the run: what must be the same for the blocks to be those of an uninterrupted run.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tamp
from tamp import compact, estimate, files, models, onloading, pruning, ranks
from tamp.errors import UserError
from tamp.plans import Plan
from tamp.recipe import METHODS, Recipe
from tamp.report import Report, versions

PROGRESS = "progress.json"


def prune(
    model: nn.Module,
    samples: Sequence[dict] | None,
    recipe: Recipe,
    progress: bool = True,
    plan: Plan | None = None,
    allow_partial: bool = False,
    *,
    device: str | torch.device | None = None,
    states: str = "auto",
    out: str | Path | None = None,
    processor=None,
    resume: bool = False,
    overwrite: bool = False,
    format: str = "plain",
) -> Report:
    """Prune the matrices of a model's decoder blocks in place, experts included, and save the model if asked to.

    Everything else stays untouched, bit for bit, and so do the model's mode, device, ``use_cache`` and attention setting.
    The same samples give the same masks. Weights that are zero stay zero, whatever the recipe.

    With ``out``, every pruned block is written to ``OUT.partial`` as soon as it is finished. A model on the host then reads
    it from there, so that its changed blocks take no memory. A run that was stopped goes on with ``resume``, and ends bit
    for bit as if it had not been.

    Args:
        model: a transformers model with a decoder, see :func:`tamp.load`.
        samples: processor outputs, see :func:`tamp.calibration_set`; may be None for magnitude pruning.
        recipe: what to do.
        progress: show bars.
        plan: from :func:`tamp.plan` or a file (:meth:`tamp.plans.Plan.read`): how much of each linear to drop. It takes
            the place of the recipe's allocation, so that any method runs under any plan.
        allow_partial: prune a model that holds more than a hundredth of its decoder's weights in something that is not known
            (:func:`tamp.matrices.dense`), such as experts run by code of their own, which then stays dense.
        device: where to compute, if not where the model is: its blocks are brought there one at a time. The result is the
            same, bit for bit, as that of a model that is on this device. None is where :func:`tamp.load` was told to
            compute, or else where the model is.
        states: where the hidden states of samples wait between blocks: ``"device"``, ``"host"``, or ``"auto"``, the host if
            they would fill half of a GPU.
        out: folder to save to, see :func:`tamp.save`; None to leave the pruned model in memory alone.
        processor: the model's processor, to be saved with it.
        resume: go on with a run to ``out`` that was stopped, if there is one.
        overwrite: replace the folder, and what a stopped run has left.
        format: of the folder, see :func:`tamp.save`.

    Returns:
        A :class:`tamp.report.Report`: a row per linear, exact sparsity, times and memory.

    Raises:
        UserError: if a sample, a width or the plan does not fit; too much of the decoder would be left out; the memory of
            the device is full; the folder exists or cannot be written; or the run that was stopped differs from this one. An
            exception that leaves the model partly pruned says so in a note.
    """
    where = {"device": device, "states": states}
    if out is None:
        if resume or overwrite or processor is not None:
            raise UserError("resume, overwrite and processor are about the folder that is written: give out too.")
        with told(model, samples, recipe):
            return pruning.prune(model, samples, recipe, progress, plan, allow_partial, **where)
    samples = None if samples is None else list(samples)
    compact.checkpoint.check_savable(model, processor)
    if ranks.rank():  # the first process keeps and saves what all of them make
        keeper = Keeper(model, partial(out), resume, overwrite)
        keeper.follow(*ranks.told(None)[0])
        with told(model, samples, recipe, keeper):
            return pruning.prune(model, samples, recipe, progress, plan, allow_partial, **where, keeper=keeper)
    with kept(model, out, resume, overwrite) as keeper:
        keeper.open(fingerprint(model, samples, recipe, plan, device))
        ranks.told((keeper.run, keeper.plan))
        with told(model, samples, recipe, keeper):
            report = pruning.prune(model, samples, recipe, progress, plan, allow_partial, **where, keeper=keeper)
            try:
                compact.save(model, processor, out, report, overwrite, format)
            except files.Kept:  # all is saved, under another name
                keeper.remove()
                raise
        keeper.remove()
    return report


class Keeper:
    """Keeps finished blocks in a folder, see :class:`tamp.pruning.Keeper`.

    Attributes:
        folder: ``OUT.partial``.
        plan: of the run that is continued; None if it came to none.
        follows: whether another process writes.
        kept: number of blocks that are finished.
    """

    def __init__(self, model: nn.Module, folder: Path, resume: bool, overwrite: bool):
        self.blocks = models.blocks(model)
        self.folder, self.resume, self.overwrite = folder, resume, overwrite
        self.plan: Plan | None = None
        self.run, self.said, self.kept = "", {}, 0
        self.follows = False

    def file(self, position: int) -> Path:
        """Return the file of a block."""
        return self.folder / f"block-{position:03}.safetensors"

    def finished(self) -> int:
        """Count the blocks that are there, from the first one on."""
        return next((place for place in range(len(self.blocks)) if not self.file(place).is_file()), len(self.blocks))

    def open(self, said: dict[str, Any]) -> None:
        """Begin, or go on with what is there.

        Args:
            said: the fingerprint of this run.

        Raises:
            UserError: if there is a stopped run that should not be continued, or differs; the message names what differs.
        """
        path = self.folder / PROGRESS
        found = None
        if path.is_file() and not self.overwrite:
            try:
                found = json.loads(path.read_text())
                before = found["fingerprint"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged: delete {self.folder}, or start anew with overwrite.") from error
            if not self.resume:
                raise UserError(
                    f"{self.folder} holds {self.finished()} of {len(self.blocks)} blocks of a run that was stopped. Go on "
                    "with it (resume=True, --resume), or start anew (overwrite=True, --overwrite)."
                )
            differs = [name for name in {**before, **said} if before.get(name) != said.get(name)]
            if differs:
                name = differs[0]
                were, now = (f"{each.get(name)!s:.60}" for each in (before, said))
                more = f" and {', '.join(differs[1:5])}" if differs[1:] else ""
                raise UserError(
                    f"{self.folder} was begun with another {name}{more} ({were}, now {now}), so its blocks are not those of "
                    "this run. Run it as it was begun, or start anew (overwrite=True, --overwrite)."
                )
            if found.get("plan"):
                lists = ("linears", "sizes", "drops", "scores")
                self.plan = Plan(
                    **{
                        name: tuple(value) if name in lists and value else value
                        for name, value in found["plan"].items()
                    }
                )
        if found is None:
            for old in self.folder.iterdir():  # folders are what was being written when a run was killed
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.said, self.run = said, hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        self._write(None if self.plan is None else dataclasses.asdict(self.plan))

    def follow(self, run: str, plan: Plan | None) -> None:
        """Read the blocks of a run that another process keeps, and write none."""
        self.run, self.plan, self.follows = run, plan, True

    def begin(self, plan: Plan) -> list[dict[str, Any]]:
        """Note the plan, give the model the blocks that are finished, and return what was noted of each.

        Raises:
            UserError: if a file is damaged, or of another run.
        """
        self._write(dataclasses.asdict(plan))
        notes = []
        for position in range(self.finished()):
            path = self.file(position)
            try:
                with safe_open(path, framework="pt") as opened:
                    metadata = opened.metadata() or {}
                if metadata.get("run") != self.run:
                    raise UserError(f"{path} is of another run: delete it, and go on with resume.")
                notes.append(json.loads(metadata["note"]))
                _read_into(list(self.blocks.values())[position], path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{path} is damaged ({error}): delete it, and go on with resume.") from error
        self.kept = len(notes)
        return notes

    def keep(self, position: int, block: nn.Module, note: dict[str, Any]) -> None:
        """Write a finished block, whole or not at all, and let a model on the host read it from there.

        Raises:
            UserError: if it cannot be written.
        """
        if self.follows:
            return
        path = self.file(position)
        tensors = {name: each.detach().to("cpu").contiguous() for name, each in block.named_parameters()}
        try:
            with files.whole(path) as made:
                save_file(tensors, made, {"format": "pt", "run": self.run, "note": json.dumps(note)})
        except (OSError, SafetensorError) as error:
            raise UserError(f"Could not write block {position} to {path}: {error}.") from error
        self.kept = position + 1
        if all(each.device.type == "cpu" for each in block.parameters()):
            _read_into(block, path)

    def remove(self) -> None:
        """Remove the folder, when all is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, plan: dict[str, Any] | None) -> None:
        if self.follows:
            return
        text = json.dumps({"fingerprint": self.said, "plan": plan}, indent=1)
        try:
            with files.whole(self.folder / PROGRESS) as made:
                made.write_text(text)
        except OSError as error:
            raise UserError(f"Could not write {self.folder / PROGRESS}: {error}.") from error


def partial(out: str | Path) -> Path:
    """Return the folder of the finished blocks of a run to ``out``."""
    out = Path(out).expanduser().resolve()
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def kept(model: nn.Module, out: str | Path, resume: bool, overwrite: bool) -> Iterator[Keeper]:
    """Yield what keeps the blocks of a run to ``out``, and the folder to itself.

    Raises:
        UserError: if ``out`` exists or cannot be written, or another process prunes to it.
    """
    out = files.check_free(out, overwrite)
    folder = partial(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Choose another place.") from error
    with files.locked(folder) as alone:
        if files.fcntl and not alone:
            raise UserError(f"Another process prunes to {out}: wait for it, or choose another folder.")
        keeper = Keeper(model, folder, resume, overwrite)
        try:
            yield keeper
        finally:
            with contextlib.suppress(OSError):
                if not keeper.finished():
                    (folder / PROGRESS).unlink(missing_ok=True)
                    folder.rmdir()


@contextlib.contextmanager
def told(
    model: nn.Module, samples: Sequence[Mapping] | None, recipe: Recipe, keeper: Keeper | None = None
) -> Iterator[None]:
    """Say in a sentence that a device's memory is full or that it was lost, and where finished blocks are."""
    try:
        yield
    except BaseException as error:
        blocks = ""
        if keeper is not None and (done := keeper.finished()):
            blocks = (
                f"{done} of {len(keeper.blocks)} blocks are finished, in {keeper.folder}: go on with resume (--resume)."
            )
        said = None
        if isinstance(error, torch.OutOfMemoryError):
            need = estimate.need(estimate.Sizes.of(model), recipe, estimate.lengths(samples))
            said = estimate.full(need)
        elif isinstance(error, getattr(torch, "AcceleratorError", ())) or str(error).startswith("CUDA error"):
            said = f"The device stopped working ({str(error).splitlines()[0]:.200})."
        if said is not None:
            raise UserError(f"{said} {blocks}".strip()) from error
        if blocks:
            error.add_note(blocks)
        raise


def fingerprint(
    model: nn.Module,
    samples: Sequence[Mapping] | None,
    recipe: Recipe,
    plan: Plan | None,
    device: str | torch.device | None,
) -> dict[str, Any]:
    """Return what must be the same for two runs to give the same blocks, as plain JSON types by what it is called."""
    place = getattr(model, "computed_on", None) if device is None else device
    place = next(model.parameters()).device if place is None else onloading.resolve_device(place)
    found = versions()
    return {
        "model (its weights)": _digest(model.state_dict()),
        "model (its configuration)": _digest({**model.config.to_dict(), "_name_or_path": ""}),
        "attention implementation": getattr(model.config, "_attn_implementation", None),
        "set of samples": None if samples is None else [len(samples), _digest(dict(enumerate(map(_digest, samples))))],
        **{f"{name} in the recipe": value for name, value in recipe.summary().items()},
        **{f"code of the {name} in the recipe": _code(getattr(recipe, name)) for name in METHODS},
        "plan": None if plan is None else _digest(dataclasses.asdict(plan)),
        "tamp": tamp.__version__,
        "torch": found["torch"],
        "transformers": found["transformers"],
        "type of device": place.type,
    }


def _code(function: Any) -> str | None:
    """Condense what a function does, but for what it reads from outside; None for anything else."""
    code = getattr(function, "__code__", function)
    if not isinstance(code, CodeType):
        return None
    parts = [
        _code(each) or repr(sorted(each, key=repr) if isinstance(each, frozenset) else each) for each in code.co_consts
    ]
    return hashlib.sha256(repr((code.co_code, code.co_names, parts)).encode()).hexdigest()


def _digest(named: Mapping[Any, Any]) -> str:
    """Condense a mapping of tensors and other values to a SHA-256, in hexadecimal."""
    condensed = hashlib.sha256()
    for name in sorted(named):
        value = named[name]
        if isinstance(value, Tensor) and not value.is_meta:
            condensed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if value.numel():
                condensed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:
            condensed.update(f"{name} {value!r}".encode())
    return condensed.hexdigest()


def mapped_blocks(model: nn.Module) -> dict[str, Tensor]:
    """Write the weights of a model's blocks to temporary files, and return them mapped from there, by name in the model.

    The files are deleted at once: they take disk until the tensors are gone, and hardly any memory.
    """
    found = {}
    with tempfile.TemporaryDirectory(prefix="tamp-", ignore_cleanup_errors=True) as folder:
        for number, (name, block) in enumerate(models.blocks(model).items()):
            path = Path(folder, f"{number}.safetensors")
            save_file({each: part.detach().to("cpu").contiguous() for each, part in block.named_parameters()}, path)
            with safe_open(path, framework="pt") as opened:
                found |= {f"{name}.{each}": opened.get_tensor(each) for each in opened.keys()}  # noqa: SIM118
    return found


def _read_into(block: nn.Module, path: Path) -> None:
    """Give a block the weights of a file: mapped, for those on the host."""
    with safe_open(path, framework="pt") as opened:
        for name, parameter in block.named_parameters():
            tensor = opened.get_tensor(name)
            if parameter.device.type == "cpu":
                parameter.data = tensor
            else:
                parameter.data.copy_(tensor)
