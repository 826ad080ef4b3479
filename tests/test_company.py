"""Company: what stands around a model, such as compilers, wrappers, threads, loaders and modes; and how much it holds."""

import copy
import dataclasses
import json
import subprocess
import sys
import threading
import weakref

import pytest
import tiny
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import tamp
from tamp import conversations, diversity, models, passes, pruning, records, report, selection, walk
from tamp.errors import UserError
from tamp.evaluation import questions, scoring

RECIPE = tamp.Recipe.preset("tamp", sparsity=0.5)


def zeros(model) -> dict[str, torch.Tensor]:
    return {name.replace("_orig_mod.", ""): matrix.weight == 0 for name, matrix in models.all_linears(model).items()}


@pytest.fixture(scope="module")
def right() -> dict[str, torch.Tensor]:
    model, samples = tiny.build("llama")
    tamp.prune(model, samples, RECIPE, progress=False)
    return zeros(model)


def same(model, right: dict[str, torch.Tensor]) -> bool:
    found = zeros(model)
    return found.keys() == right.keys() and all(torch.equal(found[name], right[name]) for name in right)


def whole(model):
    return torch.compile(model, backend="eager")


def blocks(model):
    for place, block in enumerate(model.model.layers):
        model.model.layers[place] = torch.compile(block, backend="eager")
    return model


def parts(model):
    for block in model.model.layers:
        block.mlp = torch.compile(block.mlp, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, blocks, parts])
def test_what_torch_compile_wraps_is_pruned_like_what_it_wraps(compiled, right):
    model, samples = tiny.build("llama")
    model = compiled(model)
    tamp.prune(model, samples, RECIPE, progress=False)
    assert same(model, right)


def test_a_wrapper_that_is_no_transformers_model_is_named(tmp_path):
    model, samples = tiny.build("llama")
    wrapped = torch.nn.DataParallel(model)
    for use in (
        lambda: tamp.prune(wrapped, samples, RECIPE, progress=False),
        lambda: tamp.save(wrapped, None, tmp_path / "out"),
        lambda: scoring.perplexity(wrapped, lambda text, **settings: {"input_ids": [3] * 9}, "a", 4, progress=False),
    ):
        with pytest.raises(UserError, match="DataParallel is not a transformers model.*model.module"):
            use()


def test_a_model_made_in_inference_mode_is_refused_before_the_work(monkeypatch):
    with torch.inference_mode():
        model, samples = tiny.build("llama")
    monkeypatch.setattr(walk, "capture", lambda *given: pytest.fail("work was begun"))
    with pytest.raises(UserError, match="torch.inference_mode"):
        tamp.prune(model, samples, RECIPE, progress=False)


def test_pruning_inside_inference_mode_is_pruning(right):
    model, samples = tiny.build("llama")
    with torch.inference_mode():
        tamp.prune(model, samples, RECIPE, progress=False)
        assert torch.is_inference_mode_enabled()
    assert same(model, right)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)  # as it could not be in that mode


def test_gradients_are_on_again_afterwards():
    model, _ = tiny.build("llama")
    with passes.undisturbed(model):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_two_threads_prune_two_models(right):
    made = [tiny.build("llama") for _ in range(3)]
    faults = []

    def prune(model, samples):
        try:
            tamp.prune(model, samples, RECIPE, progress=False)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=prune, args=each) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and all(same(model, right) for model, _ in made)


def test_samples_may_come_from_a_data_loader(right):
    model, samples = tiny.build("llama")
    tamp.prune(model, torch.utils.data.DataLoader(samples, batch_size=None), RECIPE, progress=False)
    assert same(model, right)


def test_where_no_system_says_how_much_memory_was_used_it_is_zero(monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(report, "Path", absent)  # no /proc
    assert report.peak_memory(torch.device("cpu")) > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)  # nor this module, on Windows
    assert report.peak_memory(torch.device("cpu")) == 0


def test_a_comparison_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    settings = "model='mini-llava-next', benchmark='mini-vqa', calibration='mini-vqa', n_questions=2, n_samples=1"
    script.write_text(
        f"import tamp\nmade = tamp.compare(tamp.Settings({settings}), ['magnitude'], [0.5], (0,), "
        f"out={str(tmp_path / 'grid.json')!r}, device='cpu', progress=False)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    assert len(json.loads((tmp_path / "grid.json").read_text())["cells"]) == 2


# Memory ---------------------------------------------------------------------------------------------------------------


class Held(TorchDispatchMode):
    """Measures the most bytes of tensors that operations inside made and that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor):
                self.alive.append(weakref.ref(each))
        tensors = [tensor for reference in self.alive if (tensor := reference()) is not None]
        self.alive = [weakref.ref(tensor) for tensor in tensors]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        self.most = max(self.most, sum(storages.values()))
        return made


def long(tokens: int, linears: int):
    chance = torch.Generator().manual_seed(0)
    modality = (torch.arange(tokens) > tokens // 2).long()
    outputs = [torch.randn(tokens, 8, generator=chance) + 2 * modality[:, None] for _ in range(linears)]
    return outputs, torch.rand(tokens, generator=chance).softmax(0), modality


def test_amia_holds_one_kernel_of_a_long_sequence_at_a_time_and_picks_the_same(monkeypatch):
    tokens, linears = 700, 4
    sets = [long(tokens, linears), long(90, 3), long(300, linears)]
    before = selection.amia_batch(sets)
    kernel = 4 * tokens**2
    with Held() as all_at_once:
        selection.amia_batch(sets[:1])
    monkeypatch.setattr(selection, "ENTRIES", 90**2)
    monkeypatch.setattr(diversity, "CHUNK", tokens * 16)
    again = selection.amia_batch(sets)
    with Held() as one:
        selection.amia_batch(sets[:1])
    assert all(torch.equal(a, b) for a, b in zip(before, again))
    assert all_at_once.most > linears * kernel and one.most < 1.3 * kernel


def test_similarities_do_not_depend_on_the_chunk(monkeypatch):
    outputs, _, modality = long(300, 1)
    before = diversity.similarities(outputs[0], modality, "positive")
    monkeypatch.setattr(diversity, "CHUNK", 7 * 150)
    assert diversity.similarities(outputs[0], modality, "positive") == before


def test_similarities_of_modalities_that_take_turns_hold_no_second_matrix(monkeypatch):
    outputs, _, modality = long(700, 1)
    units = diversity.unit(outputs[0])
    cosine, pairs = units @ units.T, diversity.pairs_of(modality)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    shuffled = cosine[order][:, order]
    monkeypatch.setattr(diversity, "CHUNK", 700 * 16)
    with Held() as held:
        found = diversity.positive_similarities(shuffled, modality[order], pairs)
    assert held.most < 0.3 * cosine.nbytes
    assert torch.allclose(found, diversity.positive_similarities(cosine, modality, pairs), atol=1e-6)


def test_only_so_many_samples_wait_for_each_other_as_fit(monkeypatch):
    model, samples = tiny.build("llama")
    step = next(iter(walk.walk(model, walk.capture(model, samples, progress=False))))
    sizes = []
    for row in step:
        tensors = {tensor.data_ptr(): tensor for tensor in (*row.inputs.values(), *row.outputs.values())}
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
        assert row.nbytes() == sizes[-1]
    waited, choose = [], selection.TOKENS["amia"].choose

    def spy(rows, options):
        waited.append(sum(row.nbytes() for row in rows))
        return choose(rows, options)

    monkeypatch.setitem(selection.TOKENS, "amia", dataclasses.replace(selection.TOKENS["amia"], choose=spy))
    monkeypatch.setattr(pruning, "LOCK_STEP", max(sizes) + 1)
    tamp.prune(model, samples * 4, RECIPE, progress=False)
    assert max(waited) <= 2 * max(sizes) and len(waited) >= 3 * 6


def test_a_benchmark_holds_few_pictures_and_scores_the_same(shipped, tmp_path, monkeypatch):
    model, processor = shipped
    asked = conversations.questions("mini-vqa", 40, 3)
    lines, names = [], {}
    for question in asked:
        if len(question.images) == 1 and len(names) < 4 and id(question.images) not in names:
            names[id(question.images)] = f"{len(names)}.png"
            question.images[0].save(tmp_path / names[id(question.images)])
            lines.append({"image": names[id(question.images)], "question": question.text, "answer": question.answer})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    before = scoring.answers(model, processor, path, progress=False)

    pixels, pictures, most = [], [], {"pixels": 0, "pictures": 0}
    encode, opened = conversations.encode, records.picture

    def watch(found: list, name: str, made) -> None:
        found.append(weakref.ref(made))
        most[name] = max(most[name], sum(reference() is not None for reference in found))

    def encoded(*given, **media):
        made = encode(*given, **media)
        watch(pixels, "pixels", made["pixel_values"])
        return made

    def picture(*given):
        made = opened(*given)
        watch(pictures, "pictures", made)
        return made

    monkeypatch.setattr(conversations, "encode", encoded)
    monkeypatch.setattr(records, "picture", picture)
    monkeypatch.setattr(questions, "HELD", 0)
    monkeypatch.setattr(scoring, "HELD", 0)
    ready = scoring.prepare(processor, path)
    for _ in range(2):
        after = scoring.answers(copy.deepcopy(model), processor, ready, progress=False)
        assert after.equals(before)
    assert not any(group.decoder_call for group in ready.groups)
    assert len(names) == 4 and most["pixels"] <= 3 and most["pictures"] <= 3
    assert isinstance(ready.groups[0].questions[0].images[0], Image.Image)
