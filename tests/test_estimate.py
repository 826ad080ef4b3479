"""Estimates are checked against what tensors take, and the doctor reads no weights."""

import dataclasses
import weakref

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tamp
from tamp import cli, estimate, loading, models, passes, pruning, walk
from tamp.cli import prune as command
from tamp.recipe import Recipe

GB = 10**9


def need(**parts) -> estimate.Need:
    return estimate.Need(**{"states": 0, "transient": 0, "host": 0, "disk": 0, **parts})


class Held(TorchDispatchMode):
    """Counts the bytes of what is made inside and is still there, and the most that ever were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and (storage := each.untyped_storage())._cdata not in before | set(
                self.known
            ):
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                self.known[storage._cdata] = weakref.ref(storage, self.gone(storage._cdata, storage.nbytes()))
        return made

    def gone(self, key: int, size: int):
        def forget(_):
            if self.known.pop(key, None) is not None:
                self.now -= size

        return forget


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "llama"])
def test_sizes_are_those_of_the_model(family):
    model, samples = tiny.build(family)
    sizes = estimate.Sizes.of(model)
    found = models.all_linears(model)
    stack = [sum(each.nbytes for each in block.parameters()) for block in models.blocks(model).values()]
    assert sizes.parameters == sum(each.numel() for each in model.parameters())
    assert (sizes.matrices, sizes.pruned) == (len(found), sum(each.weight.numel() for each in found.values()))
    assert sizes.block == max(stack) and sizes.outside == sizes.weights - sum(stack)
    assert sizes.outside > sum(each.nbytes for each in models.speaker(model).get_input_embeddings().parameters())
    with passes.undisturbed(model):
        captured = walk.capture(model, samples, progress=False)
    held = sum(2 * each.hidden.nbytes for each in captured)
    said = estimate.need(sizes, Recipe.preset("wanda"), estimate.lengths(samples)).states
    assert said == held + 2 * sizes.head * sizes.itemsize * sum(estimate.lengths(samples))


@pytest.mark.parametrize(("preset", "most"), [("magnitude", 3), ("wanda", 3), ("sparsegpt", 5)])
def test_memory_is_bounded_by_the_estimate_and_not_far_below(preset, most):
    model, _ = tiny.build("llama")
    samples = [tiny.sample(tiny.tokens(400, n)) for n in range(6)]
    recipe = Recipe.preset(preset, sparsity=0.5)
    said = estimate.need(estimate.Sizes.of(model), recipe, estimate.lengths(samples))
    with Held() as held:
        pruning.prune(model, samples, recipe, progress=False)
    assert held.most <= said.states + said.transient <= most * held.most


def test_the_doctor_reads_no_weights_and_names_what_there_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(loading, "safe_open", lambda *given, **more: pytest.fail("weights were opened"))
    assert (
        cli.main(["doctor", "mini-llava-next", "--n-samples", "8", "--tokens", "100", "--methods", "wanda", "tamp"])
        == 0
    )
    said = capsys.readouterr().out
    assert "4,164,224 parameters" in said and "56 matrices in 8 blocks, 3,538,944 weights, 85.0%" in said
    assert "T4" in said and "H100" in said and "not measured" in said and "Size, speed and fine-tuning" in said
    assert cli.main(["doctor", "mini-llava-next", "--tokens", "0"]) == 2
    assert cli.main(["doctor", "mini-llava-next", "--methods", "nonsense"]) == 2
    assert cli.main(["doctor", str(tmp_path)]) == 2


def test_the_skeleton_has_the_sizes_of_the_loaded_model():
    model, held = loading.skeleton("mini-llava-next")
    loaded, _ = tamp.load("mini-llava-next", device="cpu", offload=True)
    bare, full = estimate.Sizes.of(model), estimate.Sizes.of(loaded)
    assert all(each.is_meta for each in model.parameters())
    assert (bare.weights, bare.block, bare.shapes, bare.name) == (full.weights, full.block, full.shapes, full.name)
    numbers = sum(each.numel() for each in loaded.state_dict().values())
    assert 0 <= held - 2 * numbers < 100_000  # stored in half precision, with headers


def test_an_8b_model_fits_where_it_should():
    sizes = estimate.Sizes(
        name="8b",
        parameters=8_355_276_800,
        shapes=(((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)),)
        * 32,
        weights=16_710_000_000,
        block=436_000_000,
        outside=2_750_000_000,
        width=4096,
        head=128,
        dtype=torch.bfloat16,
        left_out={},
    )
    wanda, tamp_ = (Recipe.preset(name) for name in ("wanda", "tamp"))
    lengths = [2900] * 128
    said = estimate.need(sizes, wanda, lengths)
    assert said.states == 2 * 128 * 2900 * (4096 + 128) * 2
    assert said.resident + estimate.ROOM > 24 * GB > 12 * GB > said.onloaded > 8 * GB > said.least
    cards = estimate.CARDS
    times = {name: estimate.seconds(sizes, wanda, lengths, card, False) for name, card in cards.items()}
    assert times["T4"] > times["L4"] > times["A100"] > times["H100"]
    flops = 2 * 2 * 128 * 2900 * sizes.pruned  # two passes
    assert 1 < times["H100"] / (flops / 989e12 / 0.5) < 2
    ratio = estimate.seconds(sizes, tamp_, lengths, cards["H100"], False) / times["H100"]
    pairs = 2 * 128 * 2900**2 * sum(out for block in sizes.shapes for out, _ in block)  # cosines, in half precision
    assert 1 + pairs / 989e12 / 0.5 / times["H100"] < ratio < 1.6
    half = dataclasses.replace(sizes, dtype=torch.float16)  # one more pass, to find what overflows
    assert estimate.seconds(half, wanda, lengths, cards["H100"], False) > 1.4 * times["H100"]
    assert estimate.seconds(sizes, wanda, lengths, cards["T4"], True) > times["T4"]


@pytest.mark.parametrize(
    ("free", "offload", "states", "fits"),
    [(30, False, "device", True), (12, True, "device", True), (5, True, "host", True), (3, True, "host", False)],
)
def test_the_first_that_fits_is_chosen_and_said(free, offload, states, fits):
    choice = estimate.choose(need(resident=25 * GB, onloaded=10 * GB, least=3 * GB), free * GB)
    assert (choice.offload, choice.states, choice.fits) == (offload, states, fits)
    assert {30: "25 GB", 12: "10 GB", 5: "3.0 GB", 3: "3.0 GB"}[free] in choice.said


def test_the_command_moves_a_model_that_fits_and_says_so(monkeypatch, capsys):
    model, samples = tiny.build("llama")
    moved = []
    model.to, model.computed_on = moved.append, "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GB, 24 * GB))
    assert command.placed(model, samples, Recipe(), "cuda", "auto") == "device"
    assert moved == ["cuda"] and not hasattr(model, "computed_on")
    model.computed_on = "cuda"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GB + 10**4, 24 * GB))
    assert command.placed(model, samples, Recipe(), "cuda", "auto") == "host"
    assert command.placed(model, samples, Recipe(), "cuda", "device") == "device"
    assert moved == ["cuda"] and model.computed_on == "cuda"
    assert "fits on the device" in (said := capsys.readouterr().out) and "fewer or shorter samples" in said
