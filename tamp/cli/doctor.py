"""``tamp doctor``: say what pruning a model takes: memory, disk and time, and what comes of it."""

import argparse

from tamp.cli import common


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("model", help="a shipped name, a folder or a hub id; no weights are read")
    parser.add_argument("--device", default="auto", help="device to look at: auto, cpu, cuda, ... (default: auto)")
    common.samples_argument(parser)
    parser.add_argument("--tokens", type=int, default=2900, help="tokens of every sample (default: 2900)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["magnitude", "wanda", "tamp", "sparsegpt"],
        help="presets, perhaps with changes, such as das:tokens=text (default: magnitude wanda tamp sparsegpt)",
    )


def run(options: argparse.Namespace) -> None:
    """Run this command."""
    import torch

    from tamp import estimate, loading, onloading
    from tamp.errors import UserError
    from tamp.recipe import Recipe

    if min(options.n_samples, options.tokens) < 1:
        raise UserError("Give at least one sample (--n-samples) of at least one token (--tokens).")
    recipes = {method: Recipe.spelled(method) for method in options.methods}
    device = onloading.resolve_device(options.device)
    model, held = loading.skeleton(options.model)
    sizes, lengths = estimate.Sizes.of(model), [options.tokens] * options.n_samples
    print(_what(sizes, held))
    print(_table(sizes, recipes, lengths))
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        print(f"\n{torch.cuda.get_device_name(device)}, {estimate.gigabytes(free)} GB free (measured):")
        for method, recipe in recipes.items():
            print(f"  {method}: {estimate.choose(estimate.need(sizes, recipe, lengths), free).said}")
    print(
        "\nThe result is not faster where zeros are multiplied like other numbers, as transformers does everywhere; 2:4 "
        'zeros are in engines with sparse kernels. See the page "Size, speed and fine-tuning" (book/worth.md).'
    )


def _what(sizes, held: int) -> str:
    """Say what a model is, what is pruned and what stays dense."""
    from tamp.estimate import gigabytes

    reasons: dict[str, int] = {}
    for size, reason in sizes.left_out.values():
        reasons[reason] = reasons.get(reason, 0) + size
    outside = sizes.parameters - sizes.pruned - sum(reasons.values())
    dense = [f"{reason} ({size:,})" for reason, size in reasons.items()]
    return (
        f"{sizes.name}: {sizes.parameters:,} parameters, {gigabytes(held)} GB in its files (measured)\n"
        f"pruned: {sizes.matrices:,} matrices in {len(sizes.shapes)} blocks, {sizes.pruned:,} weights, "
        f"{sizes.pruned / sizes.parameters:.1%} of all parameters\n"
        f"dense stay: {', '.join([*dense, f'embeddings, towers, norms, biases ({outside:,})'])}"
    )


def _table(sizes, recipes: dict, lengths: list[int]) -> str:
    """Make a table of memory, and minutes on cards, a line per method."""
    import pandas

    from tamp import estimate

    rows = {}
    for method, recipe in recipes.items():
        need = estimate.need(sizes, recipe, lengths)
        row = {
            "all on device": need.resident,
            "weights on host": need.onloaded,
            "states too": need.least,
            "host": need.host,
        }
        row = {name: estimate.gigabytes(size) for name, size in row.items()}
        for name, card in estimate.CARDS.items():
            chosen = estimate.choose(need, card.memory)
            minutes = estimate.seconds(sizes, recipe, lengths, card, chosen.offload) / 60
            row[name] = "-" if not chosen.fits else f"{minutes:.1f}{'*' if chosen.offload else ''}"
        rows[method] = row
    needs = [estimate.need(sizes, recipe, lengths) for recipe in recipes.values()]
    states, disk = max(each.states for each in needs), max(each.disk for each in needs)
    return (
        f"\nfor {len(lengths)} samples of {lengths[0]:,} tokens; all computed, not measured:\n"
        f"hidden states {estimate.gigabytes(states)} GB; disk {estimate.gigabytes(disk)} GB while it runs\n"
        "memory in GB, then minutes at half of the numbers in the data sheet of a card (* weights on the host)\n"
        f"{pandas.DataFrame.from_dict(rows, orient='index').to_string()}"
    )
