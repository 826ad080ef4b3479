"""Calibration: samples into batches, what enters the first block, and its replay block after block.

A captured sample keeps the hidden states that entered block 0 and, verbatim, the keyword arguments every block was called
with: masks, rotary embeddings of any kind, position ids. Replaying a block is calling it again with them.
"""

import contextlib
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamp import models
from tamp.errors import UserError


@dataclass
class Captured:
    """One calibration batch on its way through the blocks.

    Attributes:
        hidden: (B, T, d), what enters the next block.
        kwargs: keyword arguments of every block; the same object for all where the model passes the same.
        modality: (B, T) int8, PADDING where there is no token.
    """

    hidden: Tensor
    kwargs: list[dict]
    modality: Tensor

    def call(self, block: nn.Module, position: int) -> Tensor | tuple:
        """Call a block, the ``position``-th of the model, on the current hidden states; return what it returns."""
        return block(self.hidden, **self.kwargs[position])

    def run(self, block: nn.Module, position: int) -> Tensor:
        """Call a block, the ``position``-th of the model, on the current hidden states; (B, T, d)."""
        return hidden_of(self.call(block, position))


def hidden_of(output: Tensor | tuple) -> Tensor:
    """Return the hidden states among what a block returns, which some models wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Done(Exception):
    """Raised inside a hook to leave a forward pass whose rest is not needed."""


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every module its own mode back on leaving."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def hooks(*handles) -> Iterator[None]:
    """Remove the given hook handles on leaving, come what may."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def skipped(stack: Sequence[nn.Module], output: Tensor | tuple | None) -> Iterator[None]:
    """Let forward passes skip blocks: each returns ``output``, what the last of them returned before, without computing."""
    own = [vars(block).get("forward") for block in stack]  # of the instance, as offloading sets it
    try:
        for block in stack:
            block.forward = lambda *args, **kwargs: output
        yield
    finally:
        for block, forward in zip(stack, own):
            if forward:
                block.forward = forward
            else:
                del block.forward


@torch.no_grad()
def capture(model: nn.Module, samples: Sequence[dict], progress: bool = True) -> list[Captured]:
    """Run every sample up to the first decoder block and keep what enters it.

    The first sample goes through all blocks: this shows whether they are all called with the same keyword arguments (if
    not, every sample goes through all of them) and whether each block's output is the next one's input.

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
    shared = False
    captured = []
    for number, sample in enumerate(tqdm(samples, desc="capture", disable=not progress, leave=False)):
        batch = to_model(model, sample, number)
        if batch["input_ids"].shape[1] > limit:
            raise UserError(
                f"Sample {number} has {batch['input_ids'].shape[1]} tokens; the model takes {limit}. "
                "Shorten the conversation or use fewer or smaller images."
            )
        try:
            hidden, kwargs = _enter(model, batch, stack, stop_at_first=shared)
        except UserError:
            raise
        except (ValueError, IndexError) as error:
            raise UserError(f"Sample {number} does not fit {type(model).__name__}: {error}") from error
        if number == 0:
            shared = all(_same(first, kwargs[0]) for first in kwargs)
        if shared:
            kwargs = [kwargs[0]] * len(stack)
        modality = models.modality(model, batch)
        if modality.shape != hidden.shape[:2]:
            raise UserError(
                f"Sample {number} has {modality.shape[1]} token ids but {hidden.shape[1]} hidden states: "
                "its processor must write one id per visual token."
            )
        captured.append(Captured(hidden, kwargs, modality))
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


def _same(left: dict, right: dict) -> bool:
    """Tell whether two calls passed the very same objects (rotary pairs may sit in fresh tuples)."""

    def flat(value):
        return [id(part) for part in value] if isinstance(value, tuple) else [id(value)]

    return left.keys() == right.keys() and all(flat(left[key]) == flat(right[key]) for key in left)


def to_model(model: nn.Module, sample: dict, number: int = 0) -> dict[str, Tensor]:
    """Move a processor's output to the model: its device, and its type for floating point entries.

    Raises:
        UserError: if the sample is not a processor output, or lacks the tokens of its images or the images of its tokens.
    """
    ids = sample.get("input_ids") if hasattr(sample, "get") else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        raise UserError(
            f"Sample {number} is no processor output: it needs input_ids of shape (batch, tokens) as a tensor "
            "(call the processor with return_tensors='pt')."
        )
    device, dtype = model.get_input_embeddings().weight.device, model.dtype
    batch = {
        key: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
        for key, value in sample.items()
    }
    present = {code for identifier, code in models.placeholder_ids(model).items() if (ids == identifier).any()}
    media = {
        models.VISUAL: [key for key in batch if key.startswith("pixel_values")],
        models.AUDIO: [key for key in batch if key.startswith("input_features")],
    }
    for code, keys in media.items():
        name = models.MODALITY_NAMES[code]
        if keys and code not in present:
            raise UserError(
                f"Sample {number} has {name} input ({keys[0]}) but no {name} token: its prompt lacks the placeholder."
            )
        if code in present and not keys:
            raise UserError(f"Sample {number} has {name} tokens but no {name} input.")
    return batch


@contextlib.contextmanager
def linear_tokens(linears: dict[str, nn.Linear]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
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


def add(statistics: dict, inputs: dict[str, Tensor], chosen: Sequence[Tensor]) -> None:
    """Add the chosen tokens (T,) bool of every linear's inputs (T, in) to its accumulator.

    Linears that read the same tensor and the same tokens (query, key and value, say) share the work.
    """
    readers: dict[tuple, list[str]] = defaultdict(list)
    mask_of = dict(zip(inputs, chosen))
    for name, tensor in inputs.items():
        readers[tensor.data_ptr(), tensor.shape, id(mask_of[name])].append(name)
    for first, *others in readers.values():
        tensor, mask = inputs[first], mask_of[first]
        part = statistics[first].add(tensor if mask.all() else tensor[mask])
        for name in others:
            statistics[name].total += part
            statistics[name].count = statistics[first].count


class AttentionRow:
    """The attention of the last valid token, filled while a block runs inside :func:`attention_row`.

    Attributes:
        last: (B,) position of each row's last valid token, to be set before the block runs.
        value: (B, T) float32, mean over heads, after the block ran.
    """

    last: Tensor
    value: Tensor


@contextlib.contextmanager
def attention_row(block: nn.Module) -> Iterator[AttentionRow]:
    """Make a block's attention also tell the last valid token's softmax row: one query, O(heads T d_head).

    transformers looks its attention function up by name. Inside this context the name leads to a function that calls the
    original one and computes one row beside it, from queries and keys that are already rotated.

    Raises:
        UserError: if the block has no attention that looks its function up.
    """
    name = "tamp_attention_row"
    configs = {
        id(module.config): module.config
        for module in block.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    if not configs:
        raise UserError(
            f"{type(block).__name__} does not look its attention function up by name, so AMIA cannot see its "
            "attention; choose tokens='all' or 'text'."
        )
    row = AttentionRow()

    def attend(module, query, key, value, attention_mask, *args, scaling=None, **kwargs):
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        original = ALL_ATTENTION_FUNCTIONS.get_interface(before[id(module.config)], eager)
        batch = torch.arange(len(query), device=query.device)
        last = query[batch, :, row.last].float()  # (B, H, d_head)
        last = last.unflatten(1, (key.shape[1], -1))  # (B, key heads, group, d_head)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        logits = (last @ key.float().mT).flatten(1, 2) * scale  # (B, H, T)
        if kwargs.get("softcap") is not None:
            logits = torch.tanh(logits / kwargs["softcap"]) * kwargs["softcap"]
        future = torch.arange(key.shape[2], device=query.device) > row.last[:, None]  # (B, T)
        logits = logits.masked_fill(future[:, None], -math.inf)
        if attention_mask is not None:
            mask = attention_mask[batch if len(attention_mask) > 1 else 0, :, row.last]  # (B, 1 or H, T)
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
        row.value = logits.softmax(-1).mean(1)  # (B, T)
        return original(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield row
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        del ALL_ATTENTION_FUNCTIONS[name]


def last_valid(modality: Tensor) -> Tensor:
    """Return the position of each row's last token that is not padding, (B, T) to (B,)."""
    positions = torch.arange(modality.shape[1], device=modality.device)
    return torch.where(modality >= 0, positions, -1).amax(1).clamp(min=0)


def steps(items: Iterable, description: str, progress: bool) -> Iterable:
    """Wrap an iterable in a bar unless ``progress`` is off."""
    return tqdm(items, desc=description, disable=not progress, leave=False)
