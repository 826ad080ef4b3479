"""The walk: samples through the decoder blocks of a model, one block at a time, with what every matrix saw.

A captured sample keeps the hidden states that entered block 0 and, verbatim, the keyword arguments every block was called
with: masks, rotary embeddings of any kind, position ids. Running a block again is calling it with them. Every pass over a
model, in the package and in the notebooks, is a loop over :func:`walk`.
"""

import collections
import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tamp import models
from tamp.attention import attention_row, last_valid
from tamp.errors import UserError


@dataclass
class Captured:
    """One calibration sample on its way through the blocks.

    Attributes:
        hidden: (B, T, d), what enters the next block.
        kwargs: keyword arguments of every block; the same object for all where the model passes the same.
        modality: (B, T) int8, PADDING where there is no token.
        source: the processor output it was made from.
        padded: whether some of its tokens are padding.
        returned: what the last block returned, whole; None before block 0.
    """

    hidden: Tensor
    kwargs: list[dict]
    modality: Tensor
    source: dict
    padded: bool = False
    returned: Tensor | tuple | None = None

    def run(self, block: nn.Module, position: int) -> Tensor:
        """Call a block, the ``position``-th of the model, on the current hidden states; (B, T, d)."""
        return hidden_of(self.call(block, position))

    def call(self, block: nn.Module, position: int) -> Tensor | tuple:
        """Call a block like :meth:`run`; return what it returns, whole."""
        return block(self.hidden, **self.kwargs[position])


@dataclass(frozen=True)
class Row:
    """One row of a sample at one block: views, not copies.

    Attributes:
        sample: number of the sample.
        inputs: what entered every matrix, ``{name in the block: (T, in)}``, in order of definition.
        outputs: what left it, ``{name: (T, out)}``.
        codes: (T,) int8, modality of every token.
        padded: whether some tokens are padding.
        attention: (T,) float32, attention of the last token, mean over heads; None unless the walk was asked for it.
        before: (T, d), what entered the block.
        after: (T, d), what left it.
    """

    sample: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    codes: Tensor
    padded: bool
    attention: Tensor | None
    before: Tensor
    after: Tensor


class Step:
    """One block of a walk; iterating runs it on every sample and yields every row.

    Attributes:
        position: place of the block among the blocks.
        name: of the block inside the model.
        block: the block.
        linears: its matrices by name in it, in order of definition.
        samples: the samples, as they enter the block until it was run on them.
        model: the whole model.
        modalities: codes of the modalities that occur in any sample, ascending.
    """

    def __init__(
        self, model: nn.Module, position: int, name: str, samples: list[Captured], attention: bool, keep: bool
    ):
        self.model, self.position, self.name, self.samples = model, position, name, samples
        self.block = model.get_submodule(name)
        self.linears = models.linears(self.block)
        self.modalities: tuple[int, ...] = ()
        self._attention, self._keep = attention, keep
        self._dense: list[Tensor] = []  # outputs of the block before it is changed, if they are kept
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
            watch = attention_row(self.block) if self._attention else contextlib.nullcontext()
            with torch.no_grad(), matrix_tokens(self.linears) as tokens, watch as watched:
                if watched:
                    watched.last = last_valid(sample.modality)
                returned = sample.call(self.block, self.position)
            after = hidden_of(returned)
            finite(self.position, number, tokens, after)
            for row, codes in enumerate(sample.modality):
                yield Row(
                    number,
                    {name: tokens[name][0][row] for name in self.linears if name in tokens},
                    {name: tokens[name][1][row] for name in self.linears if name in tokens},
                    codes,
                    sample.padded,
                    watched.value[row] if watched else None,
                    sample.hidden[row],
                    after[row],
                )
            if self._keep:
                self._dense.append(after)
            else:
                sample.hidden, sample.returned = after, returned
            self._done += 1

    @torch.no_grad()
    def replay(self) -> float | None:
        """Run the block, changed since, on every sample again, and move the samples on.

        Returns:
            ``||changed - before|| / ||before - input||`` over all valid tokens: the error relative to what the block adds
            to its input. None without samples.

        Raises:
            ValueError: if not all rows were read before.
        """
        if not self.samples:
            return None
        if len(self._dense) < len(self.samples):
            raise ValueError("read all rows of a step before it is changed and replayed")
        wrong = added = 0.0
        for sample in self.samples:
            dense = self._dense.pop(0)
            after = sample.run(self.block, self.position)
            valid = sample.modality >= 0
            wrong += (after - dense)[valid].float().square().sum(dtype=torch.float64)
            added += (dense - sample.hidden)[valid].float().square().sum(dtype=torch.float64)
            sample.hidden = after
        return (wrong / added).sqrt().item() if added else 0.0

    def finish(self) -> None:
        """Run what the caller left out, so that the samples enter the next block."""
        collections.deque(self._rows(), maxlen=0)
        if self._dense:
            self.replay()


def walk(
    model: nn.Module,
    captured: Sequence[Captured],
    *,
    attention: bool = False,
    change: bool = False,
    progress: bool = False,
    description: str = "walk",
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

    Yields:
        One :class:`Step` per block.

    Raises:
        UserError: if something is not finite, or ``attention`` is asked of a block whose attention cannot be read.
    """
    samples = list(captured)
    present = {code for sample in samples for code in sample.modality.unique().tolist() if code >= 0}
    for position, name in enumerate(steps(models.blocks(model), description, progress)):
        step = Step(model, position, name, samples, attention, change)
        step.modalities = tuple(sorted(present))
        yield step
        step.finish()


def copies(captured: Iterable[Captured]) -> list[Captured]:
    """Copy samples without their tensors, so that a walk leaves the originals where they are."""
    return [copy.copy(sample) for sample in captured]


def hidden_of(output: Tensor | tuple) -> Tensor:
    """Return the hidden states among what a block returns, which some models wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Done(Exception):
    """Raised inside a hook to leave a forward pass whose rest is not needed."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode; restore the mode of every module on leaving."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def hooks(*handles) -> Iterator[None]:
    """Remove hook handles on leaving, also after an exception."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture(model: nn.Module, samples: Sequence[dict], progress: bool = True) -> list[Captured]:
    """Run every sample up to the first decoder block and keep what enters it.

    The first sample of each kind (:func:`_kind`) goes through all blocks: this shows whether they are all called with the
    same keyword arguments (if not, every sample of the kind goes through all of them) and whether each block's output is the
    next one's input.

    Args:
        model: a transformers model, in evaluation mode.
        samples: processor outputs, each a batch of one or more rows, padded or not.
        progress: show a bar.

    Returns:
        One :class:`Captured` per sample, on the model's device.

    Raises:
        UserError: if a sample does not fit the model, or the model changes hidden states between its blocks.
    """
    stack = list(models.blocks(model).values())
    limit = getattr(models.text_config(model), "max_position_embeddings", None) or math.inf
    kinds: dict[tuple, bool] = {}  # whether all blocks get the same keyword arguments
    captured = []
    for number, sample in enumerate(tqdm(samples, desc="capture", disable=not progress, leave=False)):
        batch = models.to_model(model, sample, number)
        if batch["input_ids"].shape[1] > limit:
            raise UserError(
                f"Sample {number} has {batch['input_ids'].shape[1]} tokens; the model takes {limit}. "
                "Shorten the conversation or use fewer or smaller images."
            )
        modality = models.modality(model, batch)
        kind = _kind(model, batch, modality)
        try:
            hidden, kwargs = _enter(model, batch, stack, stop_at_first=kinds.get(kind, False))
        except UserError:
            raise
        except (ValueError, IndexError) as error:
            raise UserError(f"Sample {number} does not fit {type(model).__name__}: {error}") from error
        if kind not in kinds:
            kinds[kind] = all(_same(first, kwargs[0]) for first in kwargs)
        if kinds[kind]:
            kwargs = [kwargs[0]] * len(stack)
        if modality.shape != hidden.shape[:2]:
            raise UserError(
                f"Sample {number} has {modality.shape[1]} token ids but {hidden.shape[1]} hidden states: "
                "its processor must write one id per visual token."
            )
        captured.append(Captured(hidden, kwargs, modality, sample, bool((modality < 0).any())))
    return captured


def _enter(model: nn.Module, batch: dict, stack: list[nn.Module], stop_at_first: bool) -> tuple[Tensor, list[dict]]:
    """Run a batch into the decoder and watch its blocks being called.

    Returns:
        (what enters block 0 (B, T, d), the keyword arguments of every block that was called).
    """
    kwargs: list[dict] = []
    entered: Tensor | None = None  # what entered block 0
    left: Tensor | None = None  # what the last block gave

    def before(block, args, call):
        nonlocal entered
        call = dict(call)
        hidden = args[0] if args else call.pop("hidden_states")
        if len(args) > 1:
            raise UserError(f"{type(block).__name__} takes positional arguments besides the hidden states.")
        if left is not None and hidden is not left and not torch.equal(hidden, left):
            raise UserError(
                f"{type(model).__name__} changes the hidden states between its blocks (before block {len(kwargs)}), "
                "so they cannot be replayed one by one."
            )
        entered = hidden if entered is None else entered
        kwargs.append(call)
        if stop_at_first:
            raise Done

    def after(block, args, result):
        nonlocal left
        left = hidden_of(result)
        if len(kwargs) == len(stack):
            raise Done

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in stack]
    handles += [block.register_forward_hook(after) for block in stack]
    with hooks(*handles), contextlib.suppress(Done):
        model(**batch, use_cache=False)
    return entered, kwargs


def _kind(model: nn.Module, batch: dict, modality: Tensor) -> tuple:
    """Return what may make a model call its blocks differently: inputs, modalities, padding, length beside its windows."""
    config = models.text_config(model)
    windows = {getattr(config, name, None) or math.inf for name in ("sliding_window", "attention_chunk_size")}
    beyond = tuple(modality.shape[1] > window for window in sorted(windows))
    return tuple(sorted(batch)), tuple(modality.unique().tolist()), beyond


def _same(left: dict, right: dict) -> bool:
    """Return whether two calls passed the very same objects (rotary pairs may sit in fresh tuples)."""

    def flat(value):
        return [id(part) for part in value] if isinstance(value, tuple) else [id(value)]

    return left.keys() == right.keys() and all(flat(left[key]) == flat(right[key]) for key in left)


@contextlib.contextmanager
def matrix_tokens(linears: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Keep what goes in and out of linears: ``{name: (inputs (B, T, in), outputs (B, T, out))}`` of the last run."""
    tokens: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):
        return lambda module, args, output: tokens.__setitem__(name, (args[0], output))

    with hooks(*(linear.register_forward_hook(keep(name)) for name, linear in linears.items())):
        yield tokens


def finite(position: int, number: int, tokens: dict[str, tuple[Tensor, Tensor]], hidden: Tensor) -> None:
    """Check the activations of a block for NaN and infinity.

    Raises:
        UserError: naming block, linear and sample.
    """
    named = {}
    seen = set()
    for name, (inputs, outputs) in tokens.items():
        if inputs.data_ptr() not in seen:
            seen.add(inputs.data_ptr())
            named[f"the input of {name}"] = inputs
        named[f"the output of {name}"] = outputs
    named["its output"] = hidden
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in named.values()])
    if not sums.sum().isfinite():  # one look on the host; a large but finite tensor cannot get this far in float32
        for what, tensor in named.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"Block {position}, sample {number}: {what} holds NaN or infinity. Check the sample, or load "
                    "the model in bfloat16 or float32."
                )


def steps(items: Iterable, description: str, progress: bool) -> Iterable:
    """Wrap an iterable in a bar unless ``progress`` is off."""
    return tqdm(items, desc=description, disable=not progress, leave=False)
