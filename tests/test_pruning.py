"""The two-pass walk: exact budgets, nothing else touched, the same masks every time."""

import copy
import itertools

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import given, settings
from test_walk import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamp import criteria, masks, models, pruning, selection
from tamp.errors import UserError
from tamp.recipe import METHODS, PRESETS, Recipe

EVERY = pytest.mark.parametrize("family", tiny.FAMILIES)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: linear.weight for name, linear in models.all_linears(model).items()}


def hooks_of(model) -> list[tuple]:
    """List every module's hooks; a plain forward comes first, since the library adds hooks of its own in it."""
    return [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]


def run(family="llava_next", samples=None, dtype=torch.float32, **recipe):
    model, made = tiny.build(family, dtype=dtype)
    report = pruning.prune(model, samples or made, Recipe(**recipe), progress=False)
    return model, report


def zeros(model) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in weights(model).items()}


@EVERY
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_meets_its_budget_exactly_in_every_family(family, preset):
    model, samples = tiny.build(family)
    report = pruning.prune(model, samples, Recipe.preset(preset, sparsity=0.37), progress=False)
    total = sum(weight.numel() for weight in weights(model).values())
    dropped = sum(int(mask.sum()) for mask in zeros(model).values())
    assert dropped == round(total * 0.37)
    assert report.sparsity == dropped / total
    assert list(report.table["got"]) == list(report.table["asked"])
    assert str(report).startswith(PRESETS[preset]["allocation"])


@pytest.mark.parametrize(
    "choice", itertools.product(*(METHODS[name] for name in ("allocation", "tokens", "criterion")))
)
def test_every_combination_runs_and_is_exact(choice):
    choices = dict(zip(("allocation", "tokens", "criterion"), choice))
    if choices["criterion"] == "magnitude" and choices["tokens"] != "all":
        with pytest.raises(UserError, match="does not use calibration tokens"):
            run(**choices)
        return
    assert run(**choices, sparsity=0.5)[1].sparsity == 0.5
    _, report = run(**choices, pattern="2:4")
    plan = report.plan
    assert all(drop * 4 % size == 0 for drop, size in zip(plan.drops, plan.sizes))
    assert list(report.table["got"]) == list(report.table["asked"])
    assert abs(sum(plan.drops) - sum(plan.sizes) / 2) <= min(plan.sizes) / 8


@pytest.mark.parametrize("criterion", METHODS["criterion"])
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4"])
def test_every_group_of_a_pattern_is_exact(criterion, pattern):
    n, m = masks.parse_pattern(pattern)
    model, report = run(allocation="uniform", tokens="all", criterion=criterion, pattern=pattern)
    for mask in zeros(model).values():
        assert (mask.reshape(-1, m).sum(1) == n).all()
    assert report.sparsity == n / m


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_an_allocation_chooses_n_of_m_per_linear_and_every_group_has_it(criterion):
    model, report = run(criterion=criterion, pattern="4:8")
    plan = report.plan
    kinds = set()
    for mask, drop, size in zip(zeros(model).values(), plan.drops, plan.sizes):
        kinds.add(n := drop * 8 // size)
        assert (mask.reshape(-1, 8).sum(1) == n).all()
    assert len(kinds) > 1 and max(kinds) <= 5, "the cap of 60 % is 4.8 of 8, rounded up"
    order = sorted(range(len(plan.sizes)), key=lambda i: plan.drops[i] / plan.sizes[i])
    alike = [i for i in order if plan.sizes[i] == plan.sizes[order[0]]]  # one size: scores alone decide
    assert plan.scores[alike[0]] > plan.scores[alike[-1]]


@EVERY
@pytest.mark.parametrize("preset", ["magnitude", "sparsegpt", "tamp"])
def test_everything_else_is_bit_identical_and_nothing_is_left_behind(family, preset):
    model, samples = tiny.build(family)
    model.train()
    frozen = next(iter(models.blocks(model).values()))
    frozen.eval()  # a mixed state must come back as it was
    model.config.use_cache = True
    model(**samples[0])
    hooks = hooks_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    names = set(ALL_ATTENTION_FUNCTIONS)
    pruning.prune(model, samples, Recipe.preset(preset), progress=False)
    touched = {f"{name}.weight" for name in weights(model)}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in touched), name
    if preset != "sparsegpt":  # the weights that stay, stay as they are
        for name in touched:
            now = model.state_dict()[name]
            assert torch.equal(now, before[name].masked_fill(now == 0, 0))
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is True
    assert model.config._attn_implementation == "sdpa"
    assert set(ALL_ATTENTION_FUNCTIONS) == names
    assert hooks_of(model) == hooks


def by_hand(model, samples, tokens: str, sparsity: float) -> list[torch.Tensor]:
    """Prune as the definition says, with plain forward passes only: an oracle for the walk."""
    model.set_attn_implementation("eager")
    found = []
    for position, block in enumerate(models.blocks(model).values()):
        seen: dict[str, list] = {name: [] for name in models.linears(block)}
        handles = [
            linear.module.register_forward_hook(lambda m, i, o, rows=seen[name]: rows.append((i[0][0], o[0])))
            for name, linear in models.linears(block).items()
        ]
        through: list[tuple] = []  # what enters and leaves the block
        handles.append(
            block.register_forward_hook(
                lambda m, i, k, o, through=through: through.append((i[0][0] if i else k["hidden_states"][0], o[0])),
                with_kwargs=True,
            )
        )
        with torch.no_grad():
            rows = [
                model(**each, use_cache=False, output_attentions=True).attentions[position][0, :, -1].float().mean(0)
                for each in samples
            ]
        for handle in handles:
            handle.remove()
        codes = [models.modality(model, each)[0] for each in samples]
        for name, linear in models.linears(block).items():
            picked = []
            for (inputs, outputs), row, code, (before, after) in zip(seen[name], rows, codes, through):
                if tokens == "balanced":  # half of the mass each, written as tokens of another length
                    words = code == models.TEXT
                    mass = torch.ones(len(code))
                    if words.any() and not words.all():
                        mass = torch.where(words, len(code) / 2 / words.sum(), len(code) / 2 / (~words).sum())
                    picked.append(inputs.double() * mass.double().sqrt()[:, None])
                    continue
                keep = {
                    "all": code >= 0,
                    "text": code == models.TEXT,
                    "atv": selection.atv(before, after, code, models.TEXT),
                    "amia": selection.amia(outputs, row, code),
                }[tokens]
                picked.append(inputs[keep].double())
            square = torch.cat(picked).square().mean(0).float()
            mask = masks.unstructured(
                criteria.wanda(linear.weight, square), drop=round(linear.weight.numel() * sparsity)
            )
            linear.weight.data[mask] = 0
            found.append(mask)
    return found


@EVERY
@pytest.mark.parametrize("tokens", METHODS["tokens"])
def test_the_walk_prunes_what_plain_forward_passes_say(family, tokens):
    model, samples = tiny.build(family)
    for name, parameter in model.named_parameters():
        if "q_proj" in name:  # sharper attention: ties between tokens are then not decided by last bits
            parameter.data *= 4
    expected = by_hand(copy.deepcopy(model), samples, tokens, 0.5)
    pruning.prune(model, samples, Recipe(allocation="uniform", tokens=tokens, sparsity=0.5), progress=False)
    for (name, mask), other in zip(zeros(model).items(), expected):
        assert (mask ^ other).float().mean() <= 0.002, name  # attention comes from another kernel: last bits may differ


@pytest.mark.parametrize("tokens", METHODS["tokens"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_prunes_like_its_rows(tokens, side):
    _, samples = tiny.build("llama")
    alone, _ = run("llama", samples, tokens=tokens)
    together, report = run("llama", [pad(samples, side)], tokens=tokens)
    wrong = sum((a ^ b).sum().item() for a, b in zip(zeros(alone).values(), zeros(together).values()))
    assert wrong <= 4  # of 23,040: a batch is another matrix product, whose last bits may differ
    assert report.samples == 1


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("tokens", ["all", "amia"])
def test_masks_do_not_depend_on_how_many_rows_are_picked_together(criterion, tokens, monkeypatch):
    first = zeros(run(criterion=criterion, tokens=tokens)[0])
    for together in (2**26, 1):
        monkeypatch.setattr(pruning, "LOCK_STEP", together)
        again = zeros(run(criterion=criterion, tokens=tokens)[0])
        assert all(torch.equal(mask, again[name]) for name, mask in first.items())


@pytest.mark.parametrize("tokens", ["all", "amia"])
def test_masks_do_not_depend_on_the_number_of_threads(tokens):
    """SparseGPT is left out: torch's attention kernel rounds differently with more threads, and so few tokens make a
    Hessian that magnifies it. `tests/benchmarks/repeatability.py` counts on the shipped model."""
    masks_of = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        masks_of.append(zeros(run(tokens=tokens)[0]))
    assert all(torch.equal(mask, masks_of[1][name]) for name, mask in masks_of[0].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_works(dtype, preset):
    model, report = run(dtype=dtype, **PRESETS[preset], sparsity=0.5)
    assert report.sparsity == 0.5
    assert all(weight.dtype == dtype and weight.isfinite().all() for weight in weights(model).values())


EDGE = {
    "one token": [[5]],
    "two tokens beside one": [[5], [6, 7]],
    "the same token over and over": [[9] * 12],
    "three tokens": [[5, 6, 7]],
}


@pytest.mark.parametrize("case", EDGE)
def test_degenerate_samples_end_with_a_defined_result(case):
    samples = [tiny.sample(ids) for ids in EDGE[case]]
    _, report = run("llama", samples, allocation="uniform", tokens="amia")
    assert report.sparsity == 0.5
    if case == "one token":
        with pytest.raises(UserError, match="no calibration sample has two"):
            run("llama", samples)
    else:
        assert run("llama", samples)[1].sparsity == 0.5


@pytest.mark.parametrize("cut", ["no text", "one text token", "no picture"])
def test_a_missing_modality_ends_with_a_defined_result(cut):
    model, samples = tiny.build("llava_next")
    first = samples[0]
    keep = first["input_ids"][0] == tiny.IMAGE
    if cut == "one text token":
        keep[-1] = True
    if cut == "no picture":
        samples = [tiny.sample(first["input_ids"][0][~keep].tolist())]
    else:
        short = {key: first[key][:, keep] for key in ("input_ids", "attention_mask")}
        samples = [{**first, **short}]
    report = pruning.prune(model, samples, Recipe(), progress=False)
    assert report.sparsity == 0.5
    if cut == "no text":
        with pytest.raises(UserError, match="No calibration token counts"):
            pruning.prune(tiny.build("llava_next")[0], samples, Recipe.preset("text"), progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("preset", ["wanda", "tamp", "sparsegpt"])
def test_activations_that_are_not_finite_name_block_linear_and_sample_before_anything_is_pruned(bad, preset):
    model, samples = tiny.build("llama")
    linear = models.linears(list(models.blocks(model).values())[1])["mlp.up_proj"].module
    linear.register_forward_hook(lambda module, inputs, output: torch.full_like(output, bad))
    with pytest.raises(
        UserError, match=r"Block 1, sample \d: the output of mlp\.up_proj holds NaN .* in float32"
    ) as error:
        pruning.prune(model, samples, Recipe.preset(preset, allocation="uniform"), progress=False)
    assert not any((matrix.weight == 0).any() for matrix in models.all_linears(model).values())
    assert not hasattr(error.value, "__notes__")


def test_activations_that_pruning_makes_overflow_name_the_sample_and_say_that_the_model_is_partly_pruned():
    model, samples = tiny.build("llama")
    stack = list(models.blocks(model).values())
    linear = models.linears(stack[1])["mlp.up_proj"].module

    def spoil(module, inputs, output):
        return torch.full_like(output, float("inf")) if (stack[0].mlp.down_proj.weight == 0).any() else output

    linear.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"Block 1, sample 0: the output of mlp\.up_proj holds NaN") as error:
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False)
    assert "Pruning stopped at block 1 of 3: the model in memory is partly pruned" in error.value.__notes__[0]


def test_an_end_that_pruning_makes_overflow_is_not_silent():
    model, samples = tiny.build("llama")
    last = list(models.blocks(model).values())[-1]

    def spoil(module, inputs, output):
        return output.fill_(float("inf")) if (last.mlp.down_proj.weight == 0).any() else output

    last.mlp.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"Block 2, sample 0: its output, once it was changed, holds NaN") as error:
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False)
    assert "stopped at block 3 of 3" in error.value.__notes__[0]


def in_half(family: str):
    """Build a tiny model and its samples in float16."""
    model, samples = tiny.build(family)
    halved = [{k: v.half() if v.is_floating_point() else v for k, v in sample.items()} for sample in samples]
    return model.half(), halved


@pytest.mark.parametrize("preset", ["wanda", "tamp"])
def test_what_overflows_in_float16_for_one_sample_is_found_before_anything_is_pruned(preset):
    """One token makes the last block overflow, in a sample that is walked in float16 alone: another of its kind is last."""
    model, samples = in_half("llama")
    model.model.embed_tokens.weight.data[101] = 0.25
    for matrix in (model.model.layers[2].mlp.gate_proj, model.model.layers[2].mlp.up_proj):
        matrix.weight.data[7] = 9  # (9 * 32)^2 for that token, 9^2 * 32 for others
    samples = [samples[0], tiny.sample([101] * 4), *samples[1:]]
    ends = [model(**sample).logits.isfinite().all().item() for sample in samples]
    assert ends == [True, False] + [True] * (len(samples) - 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"Block 2, sample 1: .* in float16, which ends at 65,504\. Load") as error:
        pruning.prune(
            model, samples, Recipe.preset(preset, allocation_samples=1) if preset == "tamp" else Recipe(), False
        )
    assert not hasattr(error.value, "__notes__")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_hidden_states_that_enter_as_infinity_name_the_sample():
    model, samples = in_half("llama")
    model.model.embed_tokens.weight.data[101] = 60_000
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(UserError, match=r"Block 0, sample 1: its input holds NaN or infinity in float16"):
        pruning.prune(model, [samples[0], tiny.sample([5, 101]), samples[1]], Recipe(), progress=False)


def test_an_interrupted_prune_says_that_the_model_is_partly_pruned_and_cleans_up(monkeypatch):
    model, samples = tiny.build("llava_next")
    original, calls = pruning.prune_linear, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(pruning, "prune_linear", interrupt)
    model.train()
    model(**samples[0])
    hooks = hooks_of(model)
    with pytest.raises(KeyboardInterrupt) as error:
        pruning.prune(model, samples, Recipe(), progress=False)
    assert "partly pruned" in error.value.__notes__[0]
    assert model.training and model.config._attn_implementation == "sdpa"
    assert hooks_of(model) == hooks


def test_an_error_before_the_first_block_has_no_note_about_partial_pruning():
    model, samples = tiny.build("llava_next")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        pruning.prune(model, [*samples, "nonsense"], Recipe(), progress=False)
    assert not getattr(error.value, "__notes__", [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_magnitude_needs_no_samples_and_the_others_say_so():
    model, _ = tiny.build("llama")
    assert pruning.prune(model, None, Recipe.preset("magnitude"), progress=False).sparsity == 0.5
    for nothing in (None, []):
        with pytest.raises(UserError, match="calibration_set"):
            pruning.prune(model, nothing, Recipe.preset("wanda"), progress=False)


def test_a_width_that_no_pattern_fits_is_refused_before_anything_happens():
    model, samples = tiny.build("llama")
    with pytest.raises(UserError, match=r"widths divisible by 5; .*q_proj has 32 inputs"):
        pruning.prune(model, samples, Recipe(pattern="2:5"), progress=False)


def test_a_model_that_is_not_in_memory_is_refused():
    model, samples = tiny.build("llama")
    model.to("meta")
    with pytest.raises(UserError, match="meta device"):
        pruning.prune(model, samples, Recipe(), progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"\[0, 1\)"),
        ({"sparsity": -0.1}, r"\[0, 1\)"),
        ({"sparsity": float("nan")}, r"\[0, 1\)"),
        ({"sparsity": "a lot"}, "a lot"),
        ({"pattern": "5:4"}, "n of every m"),
        ({"pattern": "2/4"}, "2:4"),
        ({"pattern": "2:4", "sparsity": 0.6}, "one of the two"),
        ({"tokens": "visual"}, "There are: all, text, balanced, atv, amia"),
        ({"criterion": "wand"}, "Did you mean 'wanda'"),
        ({"das_cap": -1}, "das_cap"),
        ({"amia_neighbours": 0}, "at least 1"),
        ({"criterion": "magnitude"}, "does not use calibration tokens"),
        ({"allocation": "uniform", "das_cap": 0.2}, "das_cap has no effect with allocation='uniform'"),
        ({"tokens": "all", "amia_threshold": 0.2}, "it belongs to 'amia'"),
        ({"damping": 0.1}, "damping has no effect with criterion='wanda'"),
        ({"allocation": "owl", "das_cap": 0.2}, "'das' and 'ecoflap'"),
    ],
)
def test_an_invalid_recipe_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Recipe(**arguments)


def test_presets_are_rows_of_a_table():
    assert Recipe.preset("tamp") == Recipe()
    assert Recipe.preset("wanda", sparsity=0.7).sparsity == 0.7
    assert Recipe(pattern="2:4").sparsity == 0.5
    with pytest.raises(UserError, match="Did you mean 'wanda'"):
        Recipe.preset("wandas")
    with pytest.raises(UserError, match="sparsity"):
        Recipe.preset("wanda", sparsty=0.5)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(sparsity=st.floats(0, 0.95))
def test_any_sparsity_is_met_to_one_weight(sparsity):
    model, report = run("llama", sparsity=sparsity)
    total = sum(report.plan.sizes)
    assert abs(report.sparsity * total - total * sparsity) <= 0.500001


@pytest.mark.parametrize("allocation", ["das", "ecoflap"])
def test_samples_may_come_from_a_generator_and_hold_labels(allocation):
    found = []
    for generated in (False, True):
        model, samples = tiny.build("llava_next")
        if generated:
            samples = (each | {"labels": each["input_ids"]} for each in samples)
        pruning.prune(model, samples, Recipe(allocation=allocation, sparsity=0.5), progress=False)
        found.append(weights(model))
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())
