"""Mask packs: one bit per weight, for models of the same shapes; what is zero stays zero when a model is pruned again."""

import copy
import logging

import families
import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

import tamp
from tamp import cli, criteria, models, packs, updates
from tamp.errors import UserError
from tamp.methods import name_of


def pruned(family: str = "llama", preset: str = "magnitude", dtype=torch.float32, model=None, **changes):
    build = tiny.build if family in tiny.FAMILIES else families.build
    fresh, samples = build(family, dtype)
    model = fresh if model is None else model
    report = tamp.prune(model, samples, tamp.Recipe.preset(preset, **changes), progress=False)
    return model, samples, report


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: linear.weight == 0 for name, linear in models.all_linears(model).items()}


def drawn(shape: tuple[int, int], share: float, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


# Packing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 8), (2, 4), (5, 13), (64, 48)])
@pytest.mark.parametrize("share", [0, 0.4, 1.1])
def test_masks_come_back_from_bits(shape, share, tmp_path):
    mask = drawn(shape, share)
    made = packs.read(packs.write(packs.pack([("w", mask)], "m", "f"), tmp_path / "m.safetensors"))
    assert torch.equal(made["w"], mask) and made["w"].dtype == torch.bool
    assert len(made.bits["w"]) == -(-mask.numel() // 8)
    assert made.sparsity == mask.double().mean().item() and (made.model, made.dense) == ("m", "f")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_first_weight_is_the_highest_bit():
    made = packs.pack([("w", torch.tensor([[True, False, False, False, True], [False, False, True, True, False]]))])
    assert made.bits["w"].tolist() == [0b1000_1001, 0b1000_0000]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "llama4", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_of_one_model_prune_another(family, dtype, tmp_path):
    model, _, report = pruned(family, dtype=dtype, sparsity=0.6)
    made = packs.read(packs.write(packs.export(model, report.plan.fingerprint), tmp_path / "m.safetensors"))
    assert len(made) == len(report.plan.linears) and made.sparsity == report.sparsity
    assert any("[" in name for name in made) == (family in ("qwen3_moe", "llama4"))
    build = tiny.build if family in tiny.FAMILIES else families.build
    dense, _ = build(family, dtype)
    assert set(packs.verify(dense, made)) == set(made)
    packs.apply(dense, made)
    assert packs.verify(dense, made) == {}
    assert all(torch.equal(a, b) for a, b in zip(dense.state_dict().values(), model.state_dict().values()))


def test_verify_counts_what_came_back():
    model, _, report = pruned(sparsity=0.5)
    made = packs.export(model)
    name = report.plan.linears[4]
    with torch.no_grad():
        weight = models.all_linears(model)[name].weight
        weight[weight == 0] = torch.arange((weight == 0).sum()).clamp(max=3).float()
    assert packs.verify(model, made) == {name: int(made[name].sum()) - 1}


def test_masks_for_other_weights_are_applied_with_a_warning(caplog):
    model, _, report = pruned(sparsity=0.5)
    made = packs.export(model, report.plan.fingerprint)
    dense, _ = tiny.build("llama")
    with caplog.at_level(logging.WARNING):
        packs.apply(copy.deepcopy(dense), made)
    assert not caplog.records
    with torch.no_grad():
        dense.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    with caplog.at_level(logging.WARNING):
        packs.apply(dense, made)
    assert "made for other weights" in caplog.text


def test_overlap_is_that_of_sets():
    one, other = ({name: drawn((6, 11), 0.5, seed + n) for n, name in enumerate("ab")} for seed in (0, 10))
    sets = [{(n, *place) for n in "ab" for place in held[n].nonzero().tolist()} for held in (one, other)]
    sets = [{(n, *map(int, place)) for n, *place in each} for each in sets]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    first, second = (packs.pack(held.items()) for held in (one, other))
    assert packs.overlap(one, other) == packs.iou(first, second) == pytest.approx(expected)
    both = packs.union(first, second)
    assert sum(int(both[name].sum()) for name in both) == len(sets[0] | sets[1])
    assert all(torch.equal(one[name] | other[name], both[name]) for name in both)
    table = packs.table(first, second).set_index("linear")
    assert table.loc["a", "agreement"] == pytest.approx((one["a"] == other["a"]).float().mean().item())
    assert table.loc["b", "iou"] == pytest.approx(packs.overlap({"b": one["b"]}, {"b": other["b"]}))
    nothing = {"a": torch.zeros(2, 2, dtype=torch.bool)}
    assert packs.overlap(nothing, nothing) == 1


def test_weights_are_masked_and_checked_by_name():
    weights = {"a": torch.ones(2, 3), "b": torch.ones(1, 2)}
    dropped = {"a": torch.tensor([[True, False, False], [False, True, True]])}
    assert packs.left(weights, dropped) == {"a": 3}
    packs.drop(weights, dropped)
    assert weights["a"].tolist() == [[0, 1, 1], [1, 0, 0]] and weights["b"].tolist() == [[1, 1]]
    assert packs.left(weights, dropped) == {}


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shapes: shapes.pop("model.layers.1.mlp.up_proj"), "lack model.layers.1.mlp.up_proj"),
        (lambda shapes: shapes.update(new=(2, 4)), "no linear 'new'"),
        (lambda shapes: shapes.update({"model.layers.1.mlp.up_proj": (32, 48)}), r"has the shape \(48, 32\) in"),
    ],
)
def test_masks_of_other_shapes_are_refused_before_a_weight_changes(change, message):
    model, _ = tiny.build("llama")
    before = copy.deepcopy(model.state_dict())
    held = {name: tuple(linear.weight.shape) for name, linear in models.all_linears(model).items()}
    change(held)
    made = packs.pack((name, torch.ones(shape, dtype=torch.bool)) for name, shape in held.items())
    for call in (packs.apply, packs.verify):
        with pytest.raises(UserError, match=message):
            call(model, made)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_damaged_files_are_refused(tmp_path):
    path = packs.write(
        packs.pack([("a", drawn((5, 13), 0.5)), ("b", drawn((4, 4), 0.5))], "m"), tmp_path / "m.safetensors"
    )
    whole = path.read_bytes()
    with safe_open(path, framework="np") as opened:
        said, bits = opened.metadata(), {name: opened.get_tensor(name) for name in ("a", "b")}
    for length in (0, 7, 60, -1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged, or does not hold masks"):
            packs.read(path)
    for change in ({"shapes": '{"a": [5, 13], "b": [2, 8]}'}, {"shapes": '{"a": [5, 13]}'}, {"fingerprint": ""}):
        save_file(bits, path, metadata={**said, **change})
        with pytest.raises(UserError, match="names and shapes do not fit"):
            packs.read(path)
    save_file({**bits, "a": np.zeros(3, dtype=np.uint8)}, path, metadata=said)
    with pytest.raises(UserError, match="names and shapes do not fit"):
        packs.read(path)
    save_file(bits, path)
    with pytest.raises(UserError, match="does not hold masks"):
        packs.read(path)
    with pytest.raises(UserError, match="There is no file"):
        packs.read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be written"):
        packs.write(packs.pack([]), path / "m.safetensors")


# Pruned from pruned ---------------------------------------------------------------------------------------------------


def likes_zeros(weight, mean_square):
    """Give the smallest weights the largest metric."""
    return 1 / (1 + weight.abs())


RECIPES = [
    *({"preset": name} for name in ("magnitude", "tamp")),
    *({"preset": "wanda", "criterion": name} for name in criteria.CRITERIA if name != "magnitude"),
    *({"preset": "wanda", "update": name} for name in updates.UPDATES if name != "none"),
    {"preset": "sparsegpt", "update": "least_squares"},
    {"preset": "magnitude", "criterion": likes_zeros},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(name_of, recipe.values())))
@pytest.mark.parametrize(
    "level", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"sparsity": 0.3}, {"pattern": "2:4"}], ids=str
)
def test_zeros_stay_zero(recipe, level):
    """From zeros that no row, column or group shares out evenly, which SparseGPT and least squares would fill."""
    model, _, _ = pruned("llama", "magnitude", sparsity=0)
    dropped = {name: drawn(tuple(mask.shape), 0.5, n) for n, (name, mask) in enumerate(zeros(model).items())}
    packs.apply(model, packs.pack(dropped.items()))
    _, _, report = pruned("llama", model=model, **recipe, **level)
    assert packs.left({name: linear.weight for name, linear in models.all_linears(model).items()}, dropped) == {}
    assert report.sparsity >= report.plan.sparsity - 1e-6


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_sparsegpt_meets_its_budget_from_zeros_wherever_they_are(level):
    chance = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(24, 40, generator=chance), torch.randn(200, 40, generator=chance)
    for old in (
        drawn((24, 40), 0.5),
        torch.arange(40).expand(24, 40) < 16,
        torch.arange(24)[:, None].expand(24, 40) < 9,
    ):
        before = weight.masked_fill(old, 0)
        after = criteria.sparsegpt(before, inputs.T @ inputs, level, block=8)
        assert (after[old] == 0).all() and int((after == 0).sum()) == max(round(960 * level), int(old.sum()))
    full = criteria.sparsegpt(torch.zeros(24, 40), inputs.T @ inputs, level, block=8)
    assert (full == 0).all()


# Command line ---------------------------------------------------------------------------------------------------------


def test_masks_are_exported_applied_and_compared(tmp_path, capsys):
    def run(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    one, other, out = tmp_path / "one", tmp_path / "m.safetensors", tmp_path / "out"
    run("prune", "mini-llava-next", "--preset", "magnitude", "--sparsity", 0.5, "--format", "compact", "--out", one)
    assert "50.0000% of 3,538,944 weights are zero, in" in run("mask", "export", one, "--out", other)
    assert packs.read(other).dense == models.fingerprint(tamp.load("mini-llava-next", device="cpu")[0])
    assert other.stat().st_size < 3_538_944 / 8 * 1.05
    assert f"saved to {out}" in run("mask", "apply", "mini-llava-next", other, "--out", out)
    assert "100.00% of what either drops is dropped by both; 100.00% of all weights" in run(
        "mask", "compare", out, other
    )
    run("expand", one, tmp_path / "plain")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", out))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
