"""Calibration samples as they enter the decoder blocks, and the proof that walking them is what the model does.

A captured sample keeps the hidden states that entered block 0 and, verbatim, what every block was called with besides:
masks, rotary embeddings of any kind, position ids, inputs of that layer alone, key-value states that layers share. Running a
block again is calling it with them. Where a model changes the hidden states between two blocks (deep visual inputs,
cross-attention layers), the next block's input is asked of the model's own decoder, whose earlier blocks are not run: they
return what they returned before.
"""

import contextlib
import math
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tamp import models, onloading, passes
from tamp.errors import UserError
from tamp.matrices import in_a_list

ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far the end of a walk may be from the model's own forward, relative; 0.02 in half precision. Most are equal."""


@dataclass
class Captured:
    """One calibration sample on its way through the blocks.

    Attributes:
        hidden: (B, T, d), what enters the next block; some models keep several streams, (streams, B, T, d) or
            (B, T, streams, d).
        calls: per block, the arguments besides the hidden states, (positional, by name); None if the model leaves the block
            out for this sample.
        modality: (B, T) int8, PADDING where there is no token.
        source: the processor output it was made from.
        padded: whether some of its tokens are padding.
        last: what the last block returned, whole, where it waits; None before block 0.
        changed: blocks before which the model changes the hidden states.
        decoder_call: arguments of the decoder, kept only if some block is in ``changed``.
        besides: what every block returned besides the hidden states, kept only if some block is in ``changed``.
        unused: names inside the model of matrices that are there and never called.
        states: where hidden states and arguments wait between blocks; None if where they are computed, as ``modality`` is.
        number: of the sample among all, those of other processes included.
    """

    hidden: Tensor
    calls: list[tuple[tuple, dict] | None]
    modality: Tensor
    source: dict
    padded: bool = False
    last: Tensor | tuple | None = None
    changed: frozenset[int] = frozenset()
    decoder_call: tuple[tuple, dict] | None = None
    besides: dict[int, tuple] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    states: torch.device | None = None
    number: int = 0

    def wait(self, states: torch.device | None) -> None:
        """Let hidden states and arguments wait on a device from now on."""
        self.states = states
        if states is not None:
            known: dict[int, Tensor] = {}
            hidden, calls = self.hidden, self.calls
            self.hidden = onloading.moved(hidden, states, known)
            self.calls = [call and onloading.moved_call(call, states, known) for call in calls]
            self.decoder_call = self.decoder_call and onloading.moved_call(self.decoder_call, states, known)

    def entering(self) -> Tensor:
        """Return what enters the next block, where it is computed."""
        return onloading.away(self.hidden, self.modality.device)

    @property
    def returned(self) -> Tensor | tuple | None:
        """What the last block returned, where it is computed."""
        return self.last if self.last is None else _map(self.last, lambda part: part.to(self.modality.device))

    def run(self, block: nn.Module, position: int, hidden: Tensor | None = None) -> Tensor:
        """Call a block, the ``position``-th of the model, on the current hidden states, or what :meth:`entering` gave.

        Returns (B, T, d), where it is computed.
        """
        args, kwargs = self.calls[position]
        if self.states is not None:
            args, kwargs = onloading.moved_call((args, kwargs), self.modality.device)
        returned = block(self.entering() if hidden is None else hidden, *args, **kwargs)
        if self.changed and isinstance(returned, tuple):
            self.besides[position] = returned[1:]
        self.last = returned
        if self.states is not None:
            self.last = _map(returned, lambda part: onloading.away(part, self.states))
        return hidden_of(returned)

    def enter(self, model: nn.Module, position: int) -> None:
        """Set the hidden states to what enters a block, where that is not just what the block before it returned."""
        if position not in self.changed:
            return
        stack = list(models.blocks(model).values())[: position + 1]
        args, kwargs = onloading.moved_call(self.decoder_call, self.modality.device)
        returned = self.returned

        def stand_in(place: int, original, args: tuple, kwargs: dict):
            if place < position:
                hidden = hidden_of(returned).clone()  # a model may write into it
                return (hidden, *self.besides[place]) if place in self.besides else hidden
            hidden, call = _apart(args, kwargs)
            if self.states is not None:
                hidden, call = onloading.away(hidden, self.states), onloading.moved_call(call, self.states)
            self.hidden, (args, kwargs) = hidden, call
            filled = {
                name: value for name, value in self.calls[position][1].items() if isinstance(value, MutableMapping)
            }
            self.calls[position] = args, kwargs | filled  # what blocks share is filled by those that were run
            raise passes.Done

        with passes.replaced(stack, stand_in), contextlib.suppress(passes.Done):
            models.decoder(model)(*args, **kwargs)

    def go_on(self, model: nn.Module, block: nn.Module, position: int) -> None:
        """Run a block as it is, and hold what enters the next one, unless the model leaves it out for this sample."""
        if self.calls[position] is not None:
            self.enter(model, position)
            self.run(block, position)
            self.hidden = hidden_of(self.last)

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return hidden states with one vector per token, (B, T, d): the mean of the streams where there are several."""
        return one_stream(hidden, self.modality.shape)


def hidden_of(output: Tensor | tuple) -> Tensor:
    """Return the hidden states among what a block returns, which some models wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def one_stream(hidden: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Average the streams of hidden states, (streams, B, T, d) or (B, T, streams, d), to (B, T, d).

    Args:
        hidden: hidden states; without streams they are returned as they are.
        shape: (B, T).

    Returns:
        None if the shapes do not fit.
    """
    if hidden.shape[-3:-1] == shape:
        return hidden.flatten(0, -4).mean(0) if hidden.ndim > 3 else hidden
    return hidden.flatten(2, -2).mean(2) if hidden.ndim > 3 and hidden.shape[:2] == shape else None


def copies(captured: Iterable[Captured]) -> list[Captured]:
    """Copy samples without their tensors, so that a walk leaves the originals where they are."""
    return [replace(sample, calls=list(sample.calls), besides=dict(sample.besides)) for sample in captured]


def _map(output: Tensor | tuple, function):
    """Apply a function to the hidden states among what a block returns."""
    return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)


def _apart(args: tuple, kwargs: dict) -> tuple[Tensor, tuple[tuple, dict]]:
    """Tell the hidden states from the other arguments of a block: (hidden states, (positional, by name))."""
    if args:
        return args[0], (args[1:], kwargs)
    return kwargs["hidden_states"], ((), {name: value for name, value in kwargs.items() if name != "hidden_states"})


@torch.no_grad()
def capture(
    model: nn.Module, samples: Sequence[dict], progress: bool = True, place: onloading.Place | None = None, numbers=None
) -> list[Captured]:
    """Run every sample up to the first decoder block and keep what enters it, and how all blocks are called.

    The blocks of the first sample that reaches them are run; for the others a block stands in for itself and returns what it
    gets, so that every sample shows how the model calls all of its blocks without being computed. One sample of each kind is
    then walked through the blocks, and must end where the model's own forward pass does; in float16, which ends at 65,504,
    every sample is, to find what overflows before anything is changed.

    Args:
        model: a transformers model, in evaluation mode.
        samples: processor outputs, each a batch of one or more rows, padded or not.
        progress: show a bar.
        place: where blocks are computed, and where samples wait.
        numbers: of the samples, for errors; None for 0, 1, ...

    Returns:
        One :class:`Captured` per sample, on the model's device unless they wait elsewhere.

    Raises:
        UserError: if a sample does not fit, something is not finite, or walking the blocks is not what the model computes.
    """
    place = place or onloading.Place(model)
    recorder = _Recorder(model)
    limit = getattr(models.text_config(model), "max_position_embeddings", None) or math.inf
    captured = []
    with place.whole():
        numbers = range(len(samples)) if numbers is None else numbers
        for number, sample in zip(numbers, tqdm(samples, desc="capture", disable=not progress, leave=False)):
            batch = models.to_model(model, sample, number)
            if batch["input_ids"].shape[1] > limit:
                raise UserError(
                    f"Sample {number} has {batch['input_ids'].shape[1]} tokens; the model takes {limit}. "
                    "Shorten the conversation or use fewer or smaller images."
                )
            modality = models.modality(model, batch)
            try:
                entered = recorder.record(batch)
            except (ValueError, IndexError) as error:
                raise UserError(f"Sample {number} does not fit {type(model).__name__}: {error}") from error
            if one_stream(entered.hidden, modality.shape) is None:
                raise UserError(
                    f"Sample {number} has {modality.shape[1]} token ids but {entered.hidden.shape[-2]} hidden states: "
                    "its processor must write one id per visual token."
                )
            finite(0, number, (), entered.hidden, "its input")
            entered.modality, entered.source, entered.padded = modality, sample, bool((modality < 0).any())
            entered.number = number
            entered.wait(place.states)
            captured.append(entered)
        unused = _walk_each_kind(model, captured, place)
    for each in captured:
        each.unused = unused
    return captured


class _Recorder:
    """Watches how a model calls its blocks."""

    def __init__(self, model: nn.Module):
        self.model, self.decoder, self.stack = model, models.decoder(model), list(models.blocks(model).values())
        self._forms: dict[int, Tensor | tuple] = {}  # per block that was run: what it returned besides hidden states

    def record(self, batch: dict) -> Captured:
        """Run a batch through a model whose blocks stand in for themselves, but for those that never ran before."""
        calls: list[tuple[tuple, dict] | None] = [None] * len(self.stack)
        changed: set[int] = set()
        decoder_call: tuple[tuple, dict] = ((), {})
        entered = left = version = None
        besides = False  # whether a block returned more, which the model may pass on to a later one

        def stand_in(position: int, original, args: tuple, kwargs: dict):
            nonlocal entered, left, version, besides
            hidden, calls[position] = _apart(args, kwargs)
            if left is None:
                entered, hidden = hidden, hidden.clone()  # a model may write into what a block returned
            elif besides or left._version != version or not (hidden is left or torch.equal(hidden, left)):
                changed.add(position)
            if position in self._forms:
                returned = _map(self._forms[position], lambda _: hidden)
            else:
                returned = original(*args, **kwargs)
                self._forms[position] = _map(returned, lambda part: part[..., :0, :0])
            left = hidden_of(returned)
            version = left._version
            besides |= isinstance(returned, tuple) and any(isinstance(part, Tensor) for part in returned[1:])
            if position == len(self.stack) - 1:
                raise passes.Done
            return returned

        def keep(module, args, kwargs):
            nonlocal decoder_call
            decoder_call = args, kwargs

        watch = self.decoder.register_forward_pre_hook(keep, with_kwargs=True)
        with passes.hooks(watch), passes.replaced(self.stack, stand_in), contextlib.suppress(passes.Done):
            models.speaker(self.model)(**batch, use_cache=False)
        return Captured(
            hidden=entered,
            calls=calls,
            modality=None,
            source=batch,
            changed=frozenset(changed),
            decoder_call=decoder_call if changed else None,
        )


def _walk_each_kind(model: nn.Module, captured: Sequence[Captured], place: onloading.Place) -> frozenset[str]:
    """Walk one sample of each kind through the blocks, compare the end with the model's own forward, and watch the linears.

    Returns:
        Names inside the model of the matrices that are not called when their block runs.

    Raises:
        UserError: see :func:`finite` and :func:`check_end`.
    """
    kinds = {id(sample) for sample in one_of_each_kind(model, captured)}
    walked = copies(each for each in captured if id(each) in kinds or each.hidden.dtype == torch.float16)
    unused = set()
    for position, (name, block) in enumerate(place.blocks.items()):
        linears = {each: matrix.module for each, matrix in models.linears(block).items() if matrix.expert is None}
        called: set[str] = set()
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def note(each: str, seen: dict = seen):
            return lambda module, args, output: seen.update({each: (args[0], hidden_of(output))})

        watch = passes.hooks(*(module.register_forward_hook(note(each)) for each, module in linears.items()))
        with place.block(position), watch:
            for sample in walked:
                sample.go_on(model, block, position)
                finite(position, sample.number, seen.items(), sample.hidden)
                called |= seen.keys()
                seen.clear()
        # one of a list of modules may be an expert that other samples reach
        unused |= {f"{name}.{each}" for each in linears.keys() - called if called and not in_a_list(each)}
    check_end(model, walked)
    return frozenset(unused)


def finite(position: int, number: int, seen: Iterable[tuple], hidden: Tensor, what: str = "its output") -> None:
    """Check what entered and left the matrices of a block, by name, and what left the block, for NaN and infinity.

    Raises:
        UserError: naming block, matrix, sample and type.
    """
    named = {}
    for name, (inputs, outputs) in seen:
        named.setdefault(inputs.data_ptr(), (f"the input of {name}", inputs))
        named[name] = f"the output of {name}", outputs
    named[None] = what, hidden
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for _, tensor in named.values()])
    if not norms.sum().isfinite():  # one look on the host; statistics are squares, so what overflows here is of no use
        what, tensor = next(pair for pair, norm in zip(named.values(), norms) if not norm.isfinite())
        kind, half = str(tensor.dtype).removeprefix("torch."), tensor.dtype == torch.float16
        large = f"values up to {tensor.abs().max():.0e}, whose squares overflow" if tensor.isfinite().all() else ""
        raise UserError(
            f"Block {position}, sample {number}: {what} holds {large or 'NaN or infinity'} in {kind}"
            f"{', which ends at 65,504' * half}. Load the model in {'bfloat16 or ' * (kind != 'bfloat16')}float32 (dtype, "
            f"--dtype){', or leave the sample out' * (not half)}."
        )


@torch.no_grad()
def check_end(model: nn.Module, captured: Sequence[Captured]) -> None:
    """Compare where a walk ended with what the model's own forward gives, for one sample of each kind.

    Args:
        model: as it is now, pruned or not.
        captured: the samples behind the last block.

    Raises:
        UserError: if they differ by more than rounding.
    """
    for sample in one_of_each_kind(model, captured):
        own = own_end(model, sample)
        valid = sample.modality >= 0
        there, here = (sample.tokens(hidden)[valid].float() for hidden in (own, hidden_of(sample.returned)))
        if not there.isfinite().all():  # the walk says where that begins
            continue
        off = ((there - here).norm() / there.norm().clamp(min=torch.finfo(torch.float32).tiny)).item()
        if not off <= ROUNDING.get(own.dtype, 0.02):
            raise UserError(
                f"Walking {type(model).__name__} block by block ends {off:.1%} away from its own forward pass, so what is "
                "measured on the way is not what the model computes; tamp does not support this model."
            )


def own_end(model: nn.Module, sample: Captured) -> Tensor:
    """Return what leaves the last block that a sample reaches, in the model's own forward pass."""
    last = max(position for position, call in enumerate(sample.calls) if call is not None)
    own = sample.hidden

    def leave(module, args, output):
        nonlocal own
        own = hidden_of(output)
        raise passes.Done

    batch = models.to_model(model, sample.source)
    watch = list(models.blocks(model).values())[last].register_forward_hook(leave)
    with passes.hooks(watch), contextlib.suppress(passes.Done):
        models.speaker(model)(**batch, use_cache=False)
    return own


def one_of_each_kind(model: nn.Module, captured: Sequence[Captured]) -> list[Captured]:
    """Return the last sample of every kind: those that may differ to the model.

    A kind is the names of the inputs, the modalities, padding, and the length beside the windows of the attention.
    """
    config = models.text_config(model)
    windows = {getattr(config, name, None) or math.inf for name in ("sliding_window", "attention_chunk_size")}
    kinds = {}
    for sample in captured:
        beyond = tuple(sample.modality.shape[1] > window for window in sorted(windows))
        kinds[tuple(sorted(sample.source)), tuple(sample.modality.unique().tolist()), beyond] = sample
    return list(kinds.values())
