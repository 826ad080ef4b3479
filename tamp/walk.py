"""The walk: samples through the decoder blocks of a model, one block at a time, with what every matrix saw.

Every pass over a model, in the package and in the notebooks, is a loop over :func:`walk`. What goes along is made by
:func:`capture` (:mod:`tamp.captured`).
"""

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tamp import models, passes, ranks
from tamp.attention import attention_row, last_valid
from tamp.captured import Captured, capture, copies, finite, hidden_of
from tamp.errors import UserError
from tamp.onloading import Place, away
from tamp.watching import matrix_tokens

__all__ = ["Captured", "Row", "Step", "capture", "copies", "reached", "walk"]


@dataclass(frozen=True)
class Row:
    """One row of a sample at one block: views, not copies.

    Attributes:
        sample: number of the sample.
        inputs: what entered every matrix, ``{name in the block: (T, in)}``, in order of definition; (t, in) for those in
            ``places``. A matrix that no token reached, such as that of an expert, is not in it.
        outputs: what left it, ``{name: (T, out)}``.
        codes: (T,) int8, modality of every token.
        padded: whether some tokens are padding.
        attention: (T,) float32, attention of the last token, mean over heads; None unless the walk was asked for it and the
            block has an attention that can be read.
        before: (T, d), what entered the block.
        after: (T, d), what left it.
        places: ``{name: (t,)}`` for matrices that did not see the sequence as it is: the position in it of every token they
            saw, -1 for one that is not of the sequence.
        gates: ``{name: (t,)}`` for the matrices of experts: what the expert's output is multiplied by for every token.
    """

    sample: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    codes: Tensor
    padded: bool
    attention: Tensor | None
    before: Tensor
    after: Tensor
    places: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[str, Tensor] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Return how much memory the inputs and outputs take, bytes; those that are the same tensor once."""
        held = {part.data_ptr(): part.nbytes for part in (*self.inputs.values(), *self.outputs.values())}
        return sum(held.values())

    def groups(self) -> Iterator[tuple[list[str], Tensor | None]]:
        """Group the matrices by the tokens they saw: (names, positions), None for the sequence as it is."""
        groups: dict[int | None, list[str]] = {}
        for name in self.inputs:
            groups.setdefault(id(self.places[name]) if name in self.places else None, []).append(name)
        for names in groups.values():
            yield names, self.places.get(names[0])

    def codes_at(self, places: Tensor | None) -> Tensor:
        """Return the modality of the tokens at some positions (t,): visual for what is not of the sequence, since that is
        what cross-attention reads."""
        return self.codes if places is None else torch.where(places < 0, models.VISUAL, self.codes[places])


class Step:
    """One block of a walk; iterating runs it on every sample and yields every row.

    Attributes:
        position: place of the block among the blocks.
        name: of the block inside the model.
        block: the block.
        linears: its matrices by name in it, in order of definition; without those that are never called.
        samples: the samples, as they enter the block until it was run on them.
        model: the whole model.
        modalities: codes of the modalities that occur in any sample, ascending.
    """

    def __init__(
        self, model: nn.Module, position: int, name: str, samples: list[Captured], attention: bool, keep: bool
    ):
        self.model, self.position, self.name, self.samples = model, position, name, samples
        self.block = model.get_submodule(name)
        unused = {each for sample in samples for each in sample.unused}
        self.linears = {
            each: matrix for each, matrix in models.linears(self.block).items() if f"{name}.{each}" not in unused
        }
        self.modalities: tuple[int, ...] = ()
        self._attention, self._keep = attention, keep
        self._dense: list[Tensor | None] = []  # outputs of the block before it is changed, if they are kept
        self._read = False
        self._done = 0  # samples that the block was run on

    def __iter__(self) -> Iterator[Row]:
        """Run the block on every sample and yield its rows; the sample then holds what enters the next block.

        Raises:
            UserError: if something is not finite, naming block, matrix and sample.
            ValueError: if the rows were read before: the samples have moved on.
        """
        if self._read:
            raise ValueError("the rows of a step can be read once; walk again over copies of the captured samples")
        self._read = True
        return self._rows()

    def _rows(self) -> Iterator[Row]:
        for number in range(self._done, len(self.samples)):
            sample = self.samples[number]
            self._done += 1
            if sample.calls[self.position] is None:  # the model leaves the block out for this sample
                self._dense.append(None)
                continue
            sample.enter(self.model, self.position)
            entering = sample.entering()
            shape = sample.modality.shape
            watch = attention_row(self.block) if self._attention else contextlib.nullcontext()
            with torch.no_grad(), matrix_tokens(self.block, self.linears, *shape) as tokens, watch as watched:
                if watched:
                    watched.last = last_valid(sample.modality)
                after = sample.run(self.block, self.position, entering)
            finite(
                self.position,
                sample.number,
                ((name, (each.inputs, each.outputs)) for name, each in tokens.items()),
                after,
            )
            attention = (
                watched.value if watched and watched.value is not None and watched.value.shape == shape else None
            )
            entered, left = sample.tokens(entering), sample.tokens(after)
            if self._keep:
                self._dense.append(hidden_of(sample.last))
            else:
                sample.hidden = hidden_of(sample.last)
            for row, codes in enumerate(sample.modality):
                parts = {name: tokens[name].of_row(row, shape[1]) for name in self.linears if name in tokens}
                yield Row(
                    number,
                    {name: inputs for name, (inputs, *_) in parts.items() if len(inputs)},
                    {name: outputs for name, (_, outputs, *_) in parts.items() if len(outputs)},
                    codes,
                    sample.padded,
                    None if attention is None else attention[row],
                    entered[row],
                    left[row],
                    {name: places for name, (_, _, places, _) in parts.items() if places is not None},
                    {name: gates for name, (*_, gates) in parts.items() if gates is not None},
                )
                del parts  # before the next sample runs

    @torch.no_grad()
    def replay(self) -> float | None:
        """Run the block, changed since, on every sample again, and move the samples on.

        Returns:
            ``||changed - before|| / ||before - input||`` over all valid tokens: the error relative to what the block adds
            to its input. None without samples.

        Raises:
            UserError: if something that it gives is not finite.
            ValueError: if not all rows were read before.
        """
        if not self.samples:
            return None
        if len(self._dense) < len(self.samples):
            raise ValueError("read all rows of a step before it is changed and replayed")
        sums = torch.zeros(2, dtype=torch.float64, device=self.samples[0].modality.device)  # wrong, added
        for sample in self.samples:
            dense = self._dense.pop(0)
            if dense is None:
                continue
            entering = sample.entering()
            after, dense = sample.run(self.block, self.position, entering), away(dense, sample.modality.device)
            parts = [sample.tokens(each) for each in (after - dense, dense - entering)]
            if sample.padded:
                parts = [part[sample.modality >= 0] for part in parts]
            sums += torch.stack([part.float().square().sum(dtype=torch.float64) for part in parts])
            sample.hidden = hidden_of(sample.last)
        wrong, added = ranks.summed(sums).tolist()
        if not math.isfinite(wrong):
            for sample in self.samples:
                finite(self.position, sample.number, (), sample.hidden, "its output, once it was changed,")
        return (wrong / added) ** 0.5 if added else 0.0

    @torch.no_grad()
    def skip(self) -> None:
        """Run the block as it is on every sample, without looking, and move the samples on."""
        for sample in self.samples:
            sample.go_on(self.model, self.block, self.position)
        self._read, self._done = True, len(self.samples)

    def not_reached(self) -> UserError:
        """Return the error for a block that no sample was run through."""
        return UserError(
            f"No calibration sample reaches block {self.position} ({type(self.block).__name__}), which the model leaves out "
            "for samples like these; give samples with pictures too."
        )

    def finish(self) -> None:
        """Run what the caller left out, so that the samples enter the next block."""
        collections.deque(self._rows(), maxlen=0)
        if self._keep and self._dense:
            self.replay()


def walk(
    model: nn.Module,
    captured: Sequence[Captured],
    *,
    attention: bool = False,
    change: bool = False,
    progress: bool = False,
    description: str = "walk",
    place: Place | None = None,
    left: Callable[[Step], None] | None = None,
) -> Iterator[Step]:
    """Run samples through the decoder blocks of a model, one block at a time.

    ::

        for step in walk(model, copies(captured)):
            for row in step:
                ... row.inputs["self_attn.q_proj"] ...  # (T, in)

    Args:
        model: a transformers model, in evaluation mode.
        captured: from :func:`capture`. They move along and end behind the last block; pass :func:`copies` to keep them.
        attention: compute the attention of the last token for every row.
        change: the caller changes every block between looking at its rows and :meth:`Step.replay`, which then feeds what
            the changed block gives to the next one.
        progress: show a bar.
        description: of the bar.
        place: where blocks are computed.
        left: called with a step when its block is back where it waits.

    Yields:
        One :class:`Step` per block.

    Raises:
        UserError: if something is not finite.
    """
    samples = list(captured)
    present = {code for sample in samples for code in sample.modality.unique().tolist() if code >= 0}
    place = place or Place(model)
    with place.rest() if any(sample.changed for sample in samples) else contextlib.nullcontext():
        for position, name in enumerate(passes.steps(place.blocks, description, progress)):
            with place.block(position, change):
                step = Step(model, position, name, samples, attention, change)
                step.modalities = tuple(sorted(present))
                yield step
                step.finish()
            if left is not None:
                left(step)


def reached(model: nn.Module, captured: Sequence[Captured]) -> dict[str, models.Matrix]:
    """Return the matrices of a model by name, without those that no sample's blocks ever call."""
    unused = {name for sample in captured for name in sample.unused}
    return {name: matrix for name, matrix in models.all_linears(model).items() if name not in unused}
