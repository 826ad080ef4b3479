"""What enters and leaves every matrix of a block while it runs, and which tokens of the sequence that were.

Most matrices see the sequence as it is, (B, T, in). An expert sees the tokens that are routed to it, cross-attention those
of pictures, some linears each token once per head. What a matrix saw is therefore kept with its places in the sequence.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tamp import matrices, passes
from tamp.matrices import Matrix


@dataclass(frozen=True)
class Seen:
    """What entered and left one matrix.

    Attributes:
        inputs: (B, T, in), or (n, in) with ``places``.
        outputs: (B, T, out), or (n, out) with ``places``.
        places: None if the matrix saw the sequence as it is; else (n,), the place ``row * T + t`` of every token, or
            ``-1 - row`` for one that is not of the sequence.
        gates: (n,), what an expert's output is multiplied by; None for matrices of no expert, or if that is not known.
    """

    inputs: Tensor
    outputs: Tensor
    places: Tensor | None = None
    gates: Tensor | None = None

    def of_row(self, row: int, length: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return what one row of the batch holds: inputs (t, in), outputs (t, out), positions and gates (t,).

        Positions are None for the sequence as it is, and -1 for tokens that are not of it.
        """
        if self.places is None:
            return self.inputs[row], self.outputs[row], None, None
        owner = torch.where(self.places < 0, -1 - self.places, self.places // length)
        mine = owner == row
        places = self.places[mine]
        gates = None if self.gates is None else self.gates[mine]
        return self.inputs[mine], self.outputs[mine], torch.where(places < 0, -1, places % length), gates


@contextlib.contextmanager
def matrix_tokens(block: nn.Module, found: dict[str, Matrix], batch: int, length: int) -> Iterator[dict[str, Seen]]:
    """Keep what goes in and out of the matrices of a block while it runs.

    Args:
        block: the block.
        found: its matrices by name, from :func:`tamp.matrices.of`, or some of them.
        batch: rows of the sample.
        length: tokens of a row.

    Yields:
        ``{name: Seen}``, filled when the block has run; what no token reached is not in it.
    """
    paths = {
        name.partition("[")[0].rpartition(".")[0]
        for name, matrix in found.items()
        if matrix.expert is not None or matrices.in_a_list(name)
    }
    above = {".".join(parts[:n]) for path in paths for parts in [path.split(".")] for n in range(1, len(parts))}
    holders = [block.get_submodule(path) for path in sorted(above)]
    calls: dict[str, list[Seen]] = {}
    whole: list[Tensor] = []  # inputs of matrices and of what holds experts, that are the sequence as it is
    tensors: dict[int, dict] = {}  # module with experts in one tensor: names of their matrices
    for name, matrix in found.items():
        if matrix.expert is not None:
            tensors.setdefault(id(matrix.module), {})[matrix.parameter, matrix.expert] = name
    modules = list({id(m.module): m.module for m in found.values() if m.expert is not None}.values())

    def linear(name: str):
        def hook(module, args, output):
            seen = _placed(args[0], output[0] if isinstance(output, tuple) else output, batch, length)
            calls.setdefault(name, []).append(seen)
            if seen.places is None:
                whole.append(seen.inputs)

        return hook

    def holder(module, args):
        if args and isinstance(args[0], Tensor) and args[0].shape[:-1].numel() == batch * length:
            whole.append(args[0])

    def experts(position: int, original, args: tuple, kwargs: dict):
        inputs, *routing = (*args, *kwargs.values())
        module = modules[position]
        first, second = matrices.parameters_of(module)
        for expert, rows, gates in _routed(module, inputs, routing):
            places = rows
            if not routing:
                places = rows % (batch * length)
            elif inputs.shape[:-1].numel() != batch * length:
                places = torch.full_like(rows, -1)  # a part of the sequence, to be found in the whole
            seen = _one_expert(module, expert, inputs.flatten(0, -2)[rows])
            for parameter, (entered, left) in zip((first, second), seen):
                name = tensors[id(module)][parameter, expert]
                calls.setdefault(name, []).append(Seen(entered, left, places, gates))
        return original(*args, **kwargs)

    tokens: dict[str, Seen] = {}
    handles = [m.module.register_forward_hook(linear(name)) for name, m in found.items() if m.expert is None]
    handles += [module.register_forward_pre_hook(holder) for module in holders]
    with passes.hooks(*handles), passes.replaced(modules, experts):
        yield tokens
    tokens |= _joined(calls, whole, batch * length)


def _placed(inputs: Tensor, outputs: Tensor, batch: int, length: int) -> Seen:
    """Say which tokens a linear saw, from the shape of its inputs (..., in)."""
    *shape, width = inputs.shape
    if shape == [batch * length] or [n for n in shape if n > 1] == [n for n in (batch, length) if n > 1]:
        return Seen(inputs.reshape(batch, length, width), outputs.reshape(batch, length, outputs.shape[-1]))
    flat, left = inputs.reshape(-1, width), outputs.reshape(-1, outputs.shape[-1])
    device = inputs.device
    grid = torch.arange(batch * length, device=device).reshape(batch, length)
    if len(shape) == 3 and shape[:2] == [batch, length]:  # once per head
        return Seen(flat, left, grid[:, :, None].expand(shape).flatten())
    if len(shape) == 3 and shape[0] == batch and shape[2] == length:
        return Seen(flat, left, grid[:, None].expand(shape).flatten())
    if len(shape) == 3 and shape[1:] == [batch, length]:  # once per stream
        return Seen(flat, left, grid[None].expand(shape).flatten())
    rows = torch.arange(batch, device=device)
    if shape[0] == batch and len(shape) > 1:
        owner = rows[(slice(None), *[None] * (len(shape) - 1))].expand(shape).flatten()
    else:
        owner = torch.zeros(len(flat), dtype=torch.long, device=device)
    return Seen(flat, left, -1 - owner)


def _routed(module: nn.Module, inputs: Tensor, routing: list[Tensor]) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yield every expert that is reached, the rows (n,) of its tokens among the inputs (..., in), and their gates (n,)."""
    count = len(getattr(module, matrices.parameters_of(module)[0]))
    if routing:  # transformers' experts interface: inputs, chosen experts (n, k), their weights (n, k)
        chosen = routing[0].reshape(-1, routing[0].shape[-1])
        weighed = len(routing) > 1 and routing[1].shape == routing[0].shape
        for expert in chosen.unique().tolist():
            if 0 <= expert < count:
                hit = chosen == expert
                rows = hit.any(-1).nonzero().flatten()
                yield expert, rows, (routing[1].reshape(hit.shape) * hit).sum(-1)[rows] if weighed else None
    else:  # laid out by expert, zero where a token is not routed to it, and already multiplied by its weight
        laid = inputs.reshape(count, -1, inputs.shape[-1])
        for expert in range(count):
            rows = (laid[expert] != 0).any(-1).nonzero().flatten()
            if len(rows):
                yield expert, rows + expert * laid.shape[1], inputs.new_ones(len(rows))


def _one_expert(module: nn.Module, expert: int, inputs: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Run one expert on its tokens: what enters and leaves its first and its second matrix."""
    first, second = matrices.parameters_of(module)

    def apply(name: str, tokens: Tensor) -> Tensor:
        weight = Matrix(module, name, expert, matrices.stored_transposed(module)).weight
        bias = getattr(module, f"{name}_bias", None)
        return nn.functional.linear(tokens, weight, None if bias is None else bias[expert])

    left = apply(first, inputs)
    if not getattr(module, "has_gate", True):
        inner = module.act_fn(left)
    elif hasattr(module, "_apply_gate"):
        inner = module._apply_gate(left)
    else:
        gate, up = left.chunk(2, -1)
        inner = up * module.act_fn(gate)
    return (inputs, left), (inner, apply(second, inner))


def _joined(calls: dict[str, list[Seen]], whole: list[Tensor], count: int) -> dict[str, Seen]:
    """Join what matrices saw in several calls, and find the places of tokens that were passed on in parts.

    Args:
        calls: what every matrix saw, call by call.
        whole: inputs that are the sequence as it is, (..., in) of B T tokens.
        count: B T.
    """
    tokens = {}
    siblings: dict[tuple, Tensor] = {}  # places that were found, by the holder and the number of tokens
    for name, seen in calls.items():
        if len(seen) == 1 and seen[0].places is None:
            tokens[name] = seen[0]
            continue
        parts = []
        for number, each in enumerate(seen):
            places = each.places
            if places is None:
                places = torch.arange(count, device=each.inputs.device)
            elif len(places) and (places == -1).all():
                key = (name.rpartition(".")[0], name.partition("[")[2], number, len(places))
                found = siblings.get(key)
                if found is None:
                    found = next(
                        (at for each_whole in whole if (at := find(each.inputs, each_whole)) is not None), None
                    )
                if found is not None:
                    siblings[key] = places = found
            parts.append((each.inputs.flatten(0, -2), each.outputs.flatten(0, -2), places))
        gates = [each.gates for each in seen]
        tokens[name] = Seen(*map(torch.cat, zip(*parts)), None if any(g is None for g in gates) else torch.cat(gates))
    return tokens


def find(rows: Tensor, whole: Tensor) -> Tensor | None:
    """Find rows (n, in) among those of a whole (..., in): their places (n,), None if any is not there."""
    if rows.shape[-1] != whole.shape[-1]:
        return None
    whole = whole.flatten(0, -2)
    along = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=torch.float64).sin()
    ordered, order = (whole.double() @ along).sort(stable=True)
    sought = rows.double() @ along  # may differ in the last bits from that of the same row among others
    after = torch.searchsorted(ordered, sought).clamp(max=len(order) - 1)
    before = (after - 1).clamp(min=0)
    places = order[torch.where(sought - ordered[before] < ordered[after] - sought, before, after)]
    return places if torch.equal(whole[places], rows) else None
