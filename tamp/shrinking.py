"""A model with fewer experts: what changes is read off the model that its rewritten configuration makes, and then proved.

There is no table of families. A copy of the configuration gets the smaller number, and a model is made from it without
memory. Every tensor that is shorter there, along one axis, is cut along that axis: the experts' matrices and biases, the
router's weight, its corrections. That the cut model is right is seen on calibration samples: it must compute what the whole
one does when its router cannot choose the experts that go.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from tamp import matrices, models, passes
from tamp.captured import ROUNDING, Captured, one_of_each_kind, own_end
from tamp.errors import UserError

NOT_A_COUNT = ("shared", "top", "activ", "zero")
"""Parts of the names of fields that end in "experts" and do not say how many a router chooses from."""


@dataclass(frozen=True)
class Pool:
    """The experts that one router chooses from.

    Attributes:
        name: of the module that has the experts and their router, inside the model.
        experts: of the module that holds the experts' weights, inside the model.
        block: place of its block among the blocks.
        count: how many experts there are.
        groups: the router first chooses among this many groups of equal size; 1 if it does not.
        axes: tensors that hold something for every expert, and the axis along which: ``{name inside the model: axis}``.
        numbers: attributes of modules that hold the number of experts, (name of the module inside the model, attribute).
    """

    name: str
    experts: str
    block: int
    count: int
    groups: int = 1
    axes: Mapping[str, int] = field(default_factory=dict)
    numbers: Sequence[tuple[str, str]] = ()


def pools(model: nn.Module) -> list[Pool]:
    """Find the experts of a model, pool by pool, in order of the blocks.

    Raises:
        UserError: if it has none, or runs them by code that is not known.
    """
    found = []
    for position, (prefix, block) in enumerate(models.blocks(model).items()):
        for name, module in block.named_modules():
            if matrices.experts(module):
                path = f"{prefix}.{name}"
                count = len(getattr(module, matrices.parameters_of(module)[0]))
                holder = path.rpartition(".")[0]
                found.append(Pool(holder, path, position, count, _groups(model.get_submodule(holder))))
    kind = type(model).__name__
    if not found:
        if any(
            "expert" in type(part).__name__.lower()
            for block in models.blocks(model).values()
            for part in block.modules()
        ):
            raise UserError(f"{kind} runs its experts by code of its own, which tamp cannot read; none can be dropped.")
        raise UserError(f"{kind} has no experts. Prune its weights instead, with tamp.prune or `tamp prune`.")
    if len({pool.count for pool in found}) > 1 or len({pool.name for pool in found}) < len(found):
        raise UserError(
            f"{kind} has several kinds of experts in one model, which tamp cannot tell apart; none can be dropped."
        )
    return found


def _groups(holder: nn.Module) -> int:
    """Return among how many groups a router chooses first."""
    found = [vars(module).get(name) for module in holder.modules() for name in ("num_group", "n_group")]
    return max([each for each in found if isinstance(each, int)], default=1)


def chosen_at_once(model: nn.Module, pool: Pool) -> int:
    """Return how many experts a router picks per token; 1 if it does not say."""
    places = [*model.get_submodule(pool.name).modules()]
    found = [vars(module).get("top_k") for module in places]
    found += [getattr(models.text_config(model), name, None) for name in ("num_experts_per_tok", "top_k_experts")]
    return next((each for each in found if isinstance(each, int)), 1)


def plan(model: nn.Module, found: Sequence[Pool], keep: int) -> tuple[list[Pool], list[tuple[str, str]]]:
    """Find out what has to be cut so that a model has ``keep`` experts per pool; nothing is changed.

    Args:
        model: a model with experts.
        found: its pools, from :func:`pools`.
        keep: experts of a pool that stay.

    Returns:
        The pools, with what is cut in each; and the attributes of modules outside of them that hold the number.

    Raises:
        UserError: if the number does not fit, or the model's configuration cannot say it.
    """
    kind, count = type(model).__name__, found[0].count
    picks = max(chosen_at_once(model, pool) for pool in found)
    groups = max(pool.groups for pool in found)
    if not picks <= keep < count:
        raise UserError(
            f"{kind} has {count} experts per layer and uses {picks} for every token: keep at least {picks} and fewer than "
            f"{count}, not {keep}."
        )
    if keep % groups:
        raise UserError(
            f"The router of {kind} chooses among {groups} groups of experts: keep a multiple of {groups}, not {keep}."
        )
    config = copy.deepcopy(model.config)
    if not rewrite([config], type(models.text_config(model)), count, keep):
        raise UserError(f"The configuration of {kind} has no field with its {count} experts; none can be dropped.")
    try:
        with torch.device("meta"):
            twin = type(model)(config)
    except Exception as error:
        raise UserError(f"{kind} cannot be made with {keep} experts per layer: {error}") from error
    axes = _axes(model, twin, count, keep)
    owner = {name: _owner(name, found) for name in axes}
    held = {
        f"{pool.experts}.{part}" for pool in found for part in matrices.parameters_of(model.get_submodule(pool.experts))
    }
    if stray := sorted({name for name in axes if owner[name] is None} | held - axes.keys()):
        raise UserError(f"{kind} has experts that are counted in another way ({stray[0]}); none can be dropped.")
    numbers = [
        (name, attribute)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if type(value) is int and value == count and vars(twin.get_submodule(name)).get(attribute) == keep
    ]
    cut = [
        replace(
            pool,
            axes={name: axis for name, axis in axes.items() if owner[name] == pool.name},
            numbers=tuple(each for each in numbers if _owner(each[0], found) == pool.name),
        )
        for pool in found
    ]
    return cut, [each for each in numbers if _owner(each[0], found) is None]


def _owner(name: str, found: Sequence[Pool]) -> str | None:
    """Return the name of the pool that a module or tensor is part of."""
    within = [pool.name for pool in found if name == pool.name or name.startswith(f"{pool.name}.")]
    return max(within, key=len, default=None)


def _axes(model: nn.Module, twin: nn.Module, count: int, keep: int) -> dict[str, int]:
    """Compare the tensors of a model with those of its twin of fewer experts: ``{name: axis that is shorter}``."""
    sides = []
    for each in (model, twin):
        tensors = {
            **dict(each.named_parameters(remove_duplicate=False)),
            **dict(each.named_buffers(remove_duplicate=False)),
        }
        sides.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    before, after = sides
    axes = {}
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ()), after.get(name, ())
        shorter = [axis for axis, (long, short) in enumerate(zip(old, new)) if long != short]
        if (
            len(old) != len(new)
            or len(shorter) > 1
            or (shorter and (old[shorter[0]], new[shorter[0]]) != (count, keep))
        ):
            raise UserError(
                f"{type(model).__name__} with {keep} of {count} experts has {name} of shape {new}, not {old} without the "
                "others; none can be dropped."
            )
        if shorter:
            axes[name] = shorter[0]
    return axes


def rewrite(configs: Sequence[PreTrainedConfig], kind: type, count: int, keep: int) -> int:
    """Write the new number of experts into configurations of a type, and into those inside the given ones.

    Returns:
        How many fields were rewritten.
    """
    waiting, seen, changed = list(configs), set(), 0
    while waiting:
        config = waiting.pop()
        if id(config) in seen:
            continue
        seen.add(id(config))
        waiting += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
        for name, value in list(vars(config).items()) if type(config) is kind else []:
            if name.endswith("experts") and not any(part in name for part in NOT_A_COUNT) and value == count:
                setattr(config, name, keep)
                changed += 1
    return changed


def cut(model: nn.Module, pool: Pool, kept: Tensor) -> list[tuple[dict, str, object]]:
    """Leave the kept experts of a pool in the model, and nothing of the others.

    Args:
        model: the model.
        pool: from :func:`plan`.
        kept: (keep,) int64, ascending.

    Returns:
        What it was, (dictionary, key, value), for :func:`undo`.
    """
    before = _count(model, pool.numbers, len(kept))
    for name, axis in pool.axes.items():
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        where = module._parameters if own in module._parameters else module._buffers
        old = where[own]
        part = old.detach().index_select(axis, kept.to(old.device))
        before.append((where, own, old))
        where[own] = nn.Parameter(part, old.requires_grad) if where is module._parameters else part
    return before


def undo(before: Sequence[tuple[dict, str, object]]) -> None:
    """Take back a :func:`cut`."""
    for where, key, value in before:
        where[key] = value


def _count(model: nn.Module, numbers: Sequence[tuple[str, str]], keep: int) -> list[tuple[dict, str, object]]:
    """Set attributes of modules that hold the number of experts, and return what they were."""
    places = [(vars(model.get_submodule(name)), attribute) for name, attribute in numbers]
    before = [(where, attribute, where[attribute]) for where, attribute in places]
    for where, attribute in places:
        where[attribute] = keep
    return before


def finish(model: nn.Module, found: Sequence[Pool], rest: Sequence[tuple[str, str]], kept: Sequence[Tensor]) -> None:
    """Cut all pools of a model for good, and rewrite its configuration."""
    for pool, stay in zip(found, kept):
        cut(model, pool, stay)
    _count(model, rest, len(kept[0]))
    configs = [
        config for module in model.modules() if isinstance(config := vars(module).get("config"), PreTrainedConfig)
    ]
    rewrite([model.config, *configs], type(models.text_config(model)), found[0].count, len(kept[0]))


@torch.no_grad()
def check(
    model: nn.Module,
    found: Sequence[Pool],
    rest: Sequence[tuple[str, str]],
    kept: Sequence[Tensor],
    captured: Sequence[Captured],
) -> None:
    """Check that a cut model computes what the whole one does without the experts that go; nothing is changed.

    One sample of each kind goes through the model twice: with the pools cut while they run, and with routers that cannot
    choose the others.

    Raises:
        UserError: if the two differ by more than rounding.
    """
    kind = type(model).__name__
    for sample in one_of_each_kind(model, captured):
        valid = sample.modality >= 0
        ends = []
        for change in (_without, _reduced):
            try:
                with change(model, found, rest, kept):
                    ends.append(sample.tokens(own_end(model, sample))[valid].float())
            except (RuntimeError, IndexError, ValueError) as error:
                raise UserError(
                    f"{kind} does not run with {len(kept[0])} of {found[0].count} experts per layer: "
                    f"{str(error).splitlines()[0]}"
                ) from error
        whole, fewer = ends
        off = ((whole - fewer).norm() / whole.norm().clamp(min=torch.finfo(torch.float32).tiny)).item()
        if not off <= ROUNDING.get(model.dtype, 0.02):
            raise UserError(
                f"{kind} with {len(kept[0])} of {found[0].count} experts per layer ends {off:.1%} away from the whole model "
                "without the others: its router does not choose as tamp expects; none can be dropped."
            )


@contextlib.contextmanager
def _reduced(
    model: nn.Module, found: Sequence[Pool], rest: Sequence[tuple[str, str]], kept: Sequence[Tensor]
) -> Iterator[None]:
    """Cut every pool while it runs."""

    def forward(position: int, original, args: tuple, kwargs: dict):
        before = cut(model, found[position], kept[position])
        try:
            return original(*args, **kwargs)
        finally:
            undo(before)

    before = _count(model, rest, len(kept[0]))
    try:
        with passes.replaced([model.get_submodule(pool.name) for pool in found], forward):
            yield
    finally:
        undo(before)


@contextlib.contextmanager
def _without(
    model: nn.Module, found: Sequence[Pool], rest: Sequence[tuple[str, str]], kept: Sequence[Tensor]
) -> Iterator[None]:
    """Let the routers of a whole model choose among the kept experts alone."""
    routers = []
    for position, pool in enumerate(found):
        for name in {name.rpartition(".")[0] for name in pool.axes} - {pool.experts, pool.name}:
            routers.append((model.get_submodule(name), position))

    def in_router(place: int, original, args: tuple, kwargs: dict):
        position = routers[place][1]
        with _Barred(found[position].count, kept[position], logits=True):
            return original(*args, **kwargs)

    def in_pool(position: int, original, args: tuple, kwargs: dict):
        with _Barred(found[position].count, kept[position], logits=False):
            return original(*args, **kwargs)

    with (
        passes.replaced([model.get_submodule(pool.name) for pool in found], in_pool),
        passes.replaced([module for module, _ in routers], in_router),
    ):
        yield


class _Barred(TorchFunctionMode):
    """Gives barred experts a logit of minus infinity, and keeps them out of what a router picks.

    The kept experts' numbers are computed alone, as in a cut model, so that ties fall alike in half precision.
    """

    def __init__(self, count: int, kept: Tensor, logits: bool):
        super().__init__()
        self.count, self.kept, self.logits = count, kept, logits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.logits and function is nn.functional.linear and len(args) > 1 and len(args[1]) == self.count:
            kept = self.kept.to(args[1].device)
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            some = function(args[0], args[1][kept], None if bias is None else bias[kept])
            return some.new_full((*some.shape[:-1], self.count), -torch.inf).index_copy(-1, kept, some)
        if not self.logits and function in (torch.topk, Tensor.topk) and args[0].shape[1:].numel() == self.count:
            kept = self.kept.to(args[0].device)
            if args[0].ndim == 2:
                values, places = function(args[0][:, kept], *args[1:], **kwargs)
                return torch.return_types.topk((values, kept[places]))
            barred = torch.ones(self.count, dtype=torch.bool, device=kept.device).index_fill(0, kept, False)
            args = (args[0].masked_fill(barred.view(args[0].shape[1:]), -torch.inf), *args[1:])
        return function(*args, **kwargs)
