"""What surrounds a call: torch's settings, modes and defaults change neither masks nor scores, and stay as they were."""

import contextlib
import copy

import pytest
import tiny
import torch

import tamp
from tamp import models, passes
from tamp.errors import UserError


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype  # left as it was
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 as default": lambda: default_dtype(torch.float64),
    "bfloat16 as default": lambda: default_dtype(torch.bfloat16),
    "another device as default": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
}


@pytest.fixture(scope="module")
def built():
    return tiny.build("llava_next")


def zeros(model, samples, preset):
    report = tamp.prune(model, samples, tamp.Recipe.preset(preset), progress=False)
    weights = {name: matrix.weight for name, matrix in models.all_linears(model).items()}
    return {name: weight.detach().clone() for name, weight in weights.items()}, report.sparsity


@pytest.fixture(scope="module")
def expected(built):
    model, samples = built
    return {preset: zeros(copy.deepcopy(model), samples, preset) for preset in ("tamp", "sparsegpt", "ecoflap")}


@pytest.mark.parametrize("around", AROUND)
def test_what_surrounds_pruning_does_not_change_it(around, built, expected):
    model, samples = built
    for preset, (weights, sparsity) in expected.items():
        pruned = copy.deepcopy(model)
        with AROUND[around]():
            found, shares = zeros(pruned, samples, preset)
        assert shares == sparsity
        for name, weight in weights.items():
            assert torch.equal(found[name], weight), (preset, name)


def test_calls_of_torch_do_not_go_through_python(built):
    before = torch._C._len_torch_function_stack()
    with passes.undisturbed(built[0]):
        assert torch._C._len_torch_function_stack() == before == 0


@pytest.mark.parametrize("change", ["train", "checkpointing", "frozen"])
def test_the_state_of_a_model_does_not_change_its_masks_and_stays(change, built, expected):
    model, samples = built
    pruned = copy.deepcopy(model)
    if change == "train":
        pruned.train()
    elif change == "checkpointing":
        name = "activation_checkpointing_enable"  # transformers' earlier name is deprecated
        getattr(pruned, name, pruned.gradient_checkpointing_enable)()
        pruned.train()
    else:
        pruned.requires_grad_(False)
    before = [module.training for module in pruned.modules()], [each.requires_grad for each in pruned.parameters()]
    found, _ = zeros(pruned, samples, "ecoflap")
    after = [module.training for module in pruned.modules()], [each.requires_grad for each in pruned.parameters()]
    assert before == after
    assert all(torch.equal(found[name], weight) for name, weight in expected["ecoflap"][0].items())


def test_scores_are_the_same_under_autocast(shipped):
    model, processor = shipped
    with torch.autocast("cpu", torch.bfloat16):
        found = tamp.evaluate(model, processor, "facts", limit=3, progress=False)
    plain = tamp.evaluate(model, processor, "facts", limit=3, progress=False)
    assert found["nll"].tolist() == plain["nll"].tolist()


def test_defaults_come_back_after_an_error(built):
    with default_dtype(torch.float64), contextlib.suppress(ZeroDivisionError), passes.undisturbed(built[0]):
        assert torch.get_default_dtype() == torch.float32
        raise ZeroDivisionError


def wrong(**sample):
    return [{"input_ids": torch.tensor([[5, 6, 7]]), **sample}]


SAMPLES = {
    "a mask of another length": (wrong(attention_mask=torch.ones(1, 2)), "attention_mask .* shape"),
    "a mask of four axes": (wrong(attention_mask=torch.ones(1, 1, 3, 3)), "attention_mask .* shape"),
    "a mask that is a list": (wrong(attention_mask=[[1, 1, 1]]), "attention_mask .* shape"),
    "real numbers as ids": (wrong(input_ids=torch.tensor([[5.0, 6.0]])), "input_ids of whole numbers"),
    "ids that are a list": (wrong(input_ids=[[5, 6]]), "input_ids of whole numbers"),
    "words": (["hello"], "not a processor output"),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_sample_that_is_none_is_named(kind):
    samples, said = SAMPLES[kind]
    with pytest.raises(UserError, match=f"Sample 0 .*{said}"):
        tamp.prune(tiny.build("llama")[0], samples, tamp.Recipe.preset("wanda"), progress=False)


def test_rows_of_a_data_loader_are_samples():
    model, _ = tiny.build("llama")
    rows = [{"input_ids": torch.arange(3, 12) + n, "attention_mask": torch.ones(9).long()} for n in range(5)]
    single = zeros(copy.deepcopy(model), [{name: value[None] for name, value in row.items()} for row in rows], "wanda")
    loaded = zeros(copy.deepcopy(model), torch.utils.data.DataLoader(rows, batch_size=2), "wanda")
    assert all(torch.equal(single[0][name], weight) for name, weight in loaded[0].items())


OTHERS = {
    "a name": (lambda model: tamp.prune(model, None, "magnitude"), "recipe is a tamp.Recipe"),
    "a class": (lambda model: tamp.plan(model, None, tamp.Recipe), "recipe is a tamp.Recipe"),
    "a path": (lambda model: tamp.prune(model, None, MAGNITUDE, plan="plan.json"), "plan is a tamp.Plan"),
    "a model's name": (lambda model: tamp.prune("llama", None, MAGNITUDE), "str is not a transformers model"),
    "no model": (lambda model: tamp.prune(None, None, MAGNITUDE), "NoneType is not a transformers model"),
    "no preset": (lambda model: tamp.Recipe.preset(None), "no preset 'None'"),
    "a list for a preset": (lambda model: tamp.Recipe.preset(["wanda"]), "no preset"),
    "a list of tokens": (lambda model: tamp.Recipe(tokens=["text"]), "no tokens"),
    "a list of updates": (lambda model: tamp.Recipe(update=["admm"]), "no update"),
    "a dict as criterion": (lambda model: tamp.Recipe(criterion={}), "no criterion"),
    "no method": (lambda model: tamp.Recipe.spelled(None), "no preset 'None'"),
}
MAGNITUDE = tamp.Recipe.preset("magnitude")


@pytest.mark.parametrize("given", OTHERS)
def test_an_argument_of_another_type_is_named(given):
    call, said = OTHERS[given]
    with pytest.raises(UserError, match=said):
        call(tiny.build("llama")[0])
