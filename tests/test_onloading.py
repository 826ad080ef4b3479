"""One block on the device at a time: the same result, and nothing more there than must be."""

import weakref
from pathlib import Path

import families
import pretend
import pytest
import tiny
import tiny_folders
import torch
import transformers

import tamp
from tamp import models, onloading, passes, pruning, scores, walk
from tamp.errors import UserError
from tamp.recipe import Recipe


def parts(model) -> list[tuple[str, torch.Tensor]]:
    """List parameters and buffers of a model."""
    return [*model.named_parameters(), *model.named_buffers()]


def assert_same(model, other) -> None:
    for (name, tensor), (_, right) in zip(parts(model), parts(other), strict=True):
        assert type(tensor) is type(right) and torch.equal(tensor, right), name


@pytest.mark.parametrize(
    ("preset", "states"),
    [("magnitude", "auto"), ("wanda", "device"), ("sparsegpt", "host"), ("ecoflap", "host"), ("tamp", "host")],
)
def test_an_onloaded_model_gets_the_same_weights_and_the_same_report(preset, states, monkeypatch):
    monkeypatch.setattr(scores, "direction", pretend.direction)
    monkeypatch.setattr(pruning.planning, "_check_weight", lambda *given: None)  # a stand-in is not a plain tensor
    recipe = Recipe.preset(preset, sparsity=0.5)
    right, samples = tiny.build("llava_next")
    with pretend.device(), onloading.onloaded(right.modules(), pretend.CUDA, change=True):  # all of it is there
        wanted = pruning.prune(right, samples, recipe, progress=False)
    model, samples = tiny.build("llava_next")
    with pretend.device():
        report = pruning.prune(model, samples, recipe, progress=False, device="cuda", states=states)
    assert_same(model, right)
    assert repr(report.rows) == repr(wanted.rows) and report.plan == wanted.plan


@pytest.mark.parametrize(
    "family",
    [
        "cohere_compass",  # a model that changes hidden states between blocks
        "gemma3n",  # several streams, keys and values shared between layers
        "mllama",  # blocks left out for text alone
    ],
)
def test_odd_families_are_onloaded_too(family):
    recipe = Recipe.preset("tamp", sparsity=0.5)
    right, samples = families.build(family)
    pruning.prune(right, samples, recipe, progress=False)
    model, samples = families.build(family)
    with pretend.device():
        pruning.prune(model, samples, recipe, progress=False, device="cuda", states="host")
    assert_same(model, right)


def test_a_plan_of_an_onloaded_model_is_the_same():
    model, samples = tiny.build("llama")
    right = tamp.plan(model, samples, Recipe.preset("tamp"), progress=False)
    with pretend.device():
        assert tamp.plan(model, samples, Recipe.preset("tamp"), progress=False, device="cuda") == right


def test_a_pass_brings_every_block_once_and_holds_one():
    model, samples = tiny.build("llama")
    owners = {each.data_ptr(): name for name, block in models.blocks(model).items() for each in block.parameters()}
    held = [each.data for each in model.parameters()]  # so that no address is used twice
    there: list[set[str]] = []
    with pretend.device() as recorder, passes.undisturbed(model):
        place = onloading.Place(model, "cuda", "host")
        captured = walk.capture(model, samples, False, place)
        assert all(each.hidden.device.type == "cpu" for each in captured)
        recorder.reset()
        for step in walk.walk(model, captured, change=True, place=place):
            for _ in step:
                there.append({name for name, each in models.blocks(model).items() if next(each.parameters()).is_cuda})
            step.linears["mlp.down_proj"].weight.zero_()
            step.replay()
    assert all(len(names) == 1 for names in there) and len(there) == len(samples) * 3
    brought = [owners[place] for place in recorder.moved if place in owners]
    for name, block in models.blocks(model).items():
        assert brought.count(name) == len(list(block.parameters()))
        assert not block.mlp.down_proj.weight.any() and not block.mlp.down_proj.weight.is_cuda
    assert all(each.any() for each in held), "a changed block gets new memory: that of a mapped file is left alone"


def test_states_are_held_at_most_twice():
    model, (sample, *_) = tiny.build("llama")
    samples = [{name: tensor.clone() for name, tensor in sample.items()} for _ in range(24)]
    made, most = [], 0

    def count(module, args, output):
        nonlocal most
        made.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in made))

    for block in models.blocks(model).values():
        block.register_forward_hook(count)
    pruning.prune(model, samples, Recipe.preset("tamp"), progress=False)
    assert len(samples) < most <= 2 * len(samples) + 12  # the sample that is computed


def test_modules_hooks_and_shared_tensors_stay_what_they_are():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**tiny.TEXT, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).eval()
    samples = tiny.FAMILIES["llama"]()[1]
    before = [id(each) for each in model.parameters()]
    seen = []
    block = next(iter(models.blocks(model).values()))
    block.register_forward_hook(lambda module, args, output: seen.append(output.device.type))
    with pretend.device() as recorder:
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False, device="cuda")
    assert [id(each) for each in model.parameters()] == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert set(seen) == {"cuda"}
    embedding = recorder.moved.count(model.lm_head.weight.data_ptr())
    assert embedding == 2, "once for the capture, once for the check of the end, though it has two names"


def test_an_error_on_the_way_leaves_the_model_where_it_was():
    model, samples = tiny.build("llama")
    calls = 0

    def fail(*_):
        nonlocal calls
        calls += 1
        if calls > 8:
            raise RuntimeError("the device is lost")

    handle = list(models.blocks(model).values())[1].register_forward_hook(fail)
    before = [id(each) for each in model.parameters()]
    with pretend.device(), pytest.raises(RuntimeError, match="lost"):
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False, device="cuda")
    handle.remove()
    assert [id(each) for each in model.parameters()] == before
    assert not any(tensor.is_cuda for _, tensor in parts(model))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("change", [{"device": "nowhere"}, {"states": "nowhere"}])
def test_a_place_that_does_not_exist_is_refused(change):
    model, samples = tiny.build("llama")
    with pytest.raises(UserError, match="nowhere"):
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False, **change)


def test_tensors_on_two_devices_do_not_mix():
    with pretend.device():
        moved = torch.ones(2, 2).to("cuda")
        assert (moved @ moved).is_cuda and torch.ones(2, device="cuda").is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            moved @ torch.ones(2, 2)


def memory(kind: str) -> int:
    """Return bytes of this process's memory: ``RssAnon`` (its own) or ``RssFile`` (mapped from files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(kind)).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is mapped")
def test_a_model_that_is_left_on_the_host_is_mapped_in_the_stored_type(tmp_path):
    config = transformers.LlamaConfig(**{**tiny.TEXT, "vocab_size": 2**19, "num_hidden_layers": 1})
    made = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    made.save_pretrained(tmp_path)
    tiny_folders.tokenizer([]).save_pretrained(tmp_path)
    del made
    before = memory("RssAnon")
    model, _ = tamp.load(tmp_path, device="cpu", offload=True)
    assert model.dtype == torch.bfloat16 and not hasattr(model, "stored_dtypes")
    assert model.computed_on == "cpu"
    assert sum(each.nbytes for each in model.parameters()) > 2**25
    assert memory("RssAnon") - before < 2**24
    assert tamp.load(tmp_path, device="cpu", offload="auto")[0].dtype == torch.float32
    with pytest.raises(UserError, match="offload"):
        tamp.load(tmp_path, offload="disk")


def test_what_load_was_told_is_where_prune_computes():
    model, samples = tiny.build("llama")
    right, _ = tiny.build("llama")
    pruning.prune(right, samples, Recipe.preset("wanda"), progress=False)
    model.computed_on = "cuda"
    with pretend.device() as recorder:
        pruning.prune(model, samples, Recipe.preset("wanda"), progress=False)
    assert recorder.moved
    assert_same(model, right)
