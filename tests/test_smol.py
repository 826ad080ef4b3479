"""smol-llava-next: what is shipped, how it is merged with the language model, what it answers, how it was trained."""

import time
from pathlib import Path

import pytest
import torch
import transformers
from resuming import whole_and_pieces
from safetensors.torch import load_file, save_file

import tamp
from tamp import conversations, models
from tamp.errors import UserError
from tamp.shipped import adapting, answering, facts, lessons, low_rank, pictures, prose, smol


@pytest.fixture(scope="module")
def smolvl(tokenizer):
    """The model and its processor; made in the cache if it is not there."""
    return tamp.load(smol.NAME, device="cpu")


def test_it_is_a_llava_next_over_the_language_model_with_tied_embeddings(smolvl, tokenizer):
    model, processor = smolvl
    assert type(model) is transformers.LlavaNextForConditionalGeneration
    assert type(processor) is transformers.LlavaNextProcessor
    assert len(models.blocks(model)) == 30
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert len(processor.tokenizer) == len(tokenizer)
    samples = tamp.calibration_set("smol-vqa", processor, n=20)
    counts = [int((models.modality(model, sample) == models.VISUAL).sum()) for sample in samples]
    assert min(counts) >= 200 and max(counts) >= 400, "several hundred visual tokens, more for a pair of pictures"


def test_loading_again_is_quick(smolvl):
    start = time.perf_counter()
    tamp.load(smol.NAME, device="cpu")
    assert time.perf_counter() - start < 10


def test_it_answers(smolvl):
    scores = tamp.evaluate(*smolvl, "smol-vqa", limit=100, seed=3, progress=False)
    assert (scores["accuracy"] * scores["n"]).sum() / scores["n"].sum() >= 0.85


def test_it_still_knows_what_the_language_model_knew(smolvl):
    assert tamp.evaluate(*smolvl, "facts", limit=50, progress=False)["choice_accuracy"].mean() >= 0.75


def test_chats_without_pictures_read_as_before(smolvl, tokenizer):
    chat = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Hi!"}]
    for more in ({}, {"add_generation_prompt": True}):
        expected = tokenizer.apply_chat_template(chat[: 1 if more else 2], tokenize=False, **more)
        assert smolvl[1].apply_chat_template(chat[: 1 if more else 2], tokenize=False, **more) == expected


def test_merging_adds_the_updates_and_puts_the_rest_in_place(small):
    model = smol.assemble(small)
    low_rank.add_low_rank(model, rank=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)
    merged = smol.assemble(small, seed=9)
    low_rank.merge(merged, low_rank.adapter(model))
    ids = torch.randint(20, 1000, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(input_ids=ids).logits, small(input_ids=ids).logits, atol=1e-3)
    assert torch.equal(merged.model.image_newline, model.model.image_newline)


def test_weights_that_do_not_fit_are_refused(small):
    model = smol.assemble(small)
    low_rank.add_low_rank(model, rank=2)
    whole = low_rank.adapter(model)
    for broken in ({**whole, "model.other": torch.zeros(1)}, {k: v for k, v in whole.items() if "newline" not in k}):
        with pytest.raises(UserError, match="does not fit"):
            low_rank.merge(smol.assemble(small), broken)


def test_the_update_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 5, bias=False).double().requires_grad_(False)
    update = low_rank.LowRank(linear, 3).double()
    torch.nn.init.normal_(update.up)
    inputs = torch.randn(2, 4, 6, dtype=torch.double, requires_grad=True)
    plain = inputs @ linear.weight.T + low_rank.SCALE * inputs @ update.down.T @ update.up.T
    torch.testing.assert_close(update(inputs), plain)
    weights = torch.randn_like(plain)
    leaves = (inputs, update.down, update.up)
    for ours, expected in zip(
        torch.autograd.grad((update(inputs) * weights).sum(), leaves),
        torch.autograd.grad((plain * weights).sum(), leaves),
    ):
        torch.testing.assert_close(ours, expected)
    update.on = False
    assert torch.equal(update(inputs), linear(inputs))


def test_packed_lessons_are_what_the_processor_makes_of_the_questions(small):
    trainer = adapting.SmolTrainer(adapting.SmolRecipe(), 0)
    tokenizer = smol.language_model()[1]
    processor = smol.build_processor(tokenizer)
    asked = pictures.questions(10, seed=0, name="smol-vqa")
    for question in (asked[0], asked[9]):
        whole = conversations.process(
            processor, conversations.dialogue(question.text, question.answer, question.images)
        )
        packed = lessons.pack([answering.as_lesson([question])], trainer.writing)
        length = packed.token_ids.shape[1]
        assert whole["input_ids"][0, :length].tolist() == packed.token_ids[0].tolist()
        assert whole["input_ids"][0, length].item() == tokenizer.eos_token_id
        with torch.no_grad():
            logits = trainer.model(**whole).logits[0, :length][packed.targets[0] >= 0]
            ours = answering.answer_logits(trainer.model, packed)
        torch.testing.assert_close(ours, logits, atol=2e-2, rtol=1e-2)  # the base view is rounded to whole colours


def test_the_visual_target_reads_like_text_and_says_where_things_are(small):
    trainer = adapting.SmolTrainer(adapting.SmolRecipe(), 0)
    item = pictures.Item("red", "circle", 1, 6)
    scene = pictures.Scene((item,), (), 4, 8)
    labels = torch.from_numpy(lessons.patch_labels(scene, trainer.labels, smol.TILE))[None]
    targets = trainer._targets(labels)[0]  # (3, 64, hidden)
    word = {name: trainer._words[trainer.labels[name]] for name in ("red", "circle")}
    right = targets[2].view(8, 8, -1)  # the second tile of the full view: columns 4 to 7 of cells
    for row in (2, 3):
        assert torch.equal(right[row, 4], word["red"]) and torch.equal(right[row, 5], word["circle"])
    assert torch.equal(right[4, 4], trainer._plain) and torch.equal(targets[1], trainer._plain.expand(64, -1))
    base = targets[0].view(8, 8, -1)
    assert not torch.equal(base[2, 6], trainer._plain) and not torch.equal(base[3, 6], trainer._plain)
    assert torch.equal(base[1, 6], trainer._plain)
    torch.testing.assert_close(base[3, 6] - base[2, 6], trainer._down / 4)


def test_training_goes_on_where_it_was_killed(small, tmp_path):
    stages = ("vision", "alignment", "language", "refinement", "counting")
    steps = [word for stage in stages for word in (f"--{stage}-steps", "2")]
    often = ("--save-every", "1", "--check-every", "2", "--held-out", "10", "--final", "10")

    folders = whole_and_pieces(adapting.main, tmp_path, [*steps, *often], minutes="0.001", most=20)
    whole, pieces = (load_file(folder / low_rank.ADAPTER) for folder in folders)
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert any(tensor.any() for name, tensor in whole.items() if name.endswith(".up"))


def test_training_leaves_the_language_model_itself_alone(small):
    trainer = adapting.SmolTrainer(
        adapting.SmolRecipe(vision_steps=1, alignment_steps=1, language_steps=2, refinement_steps=1, counting_steps=1),
        0,
    )
    before = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
    while not trainer.done:
        trainer.advance()
    after = {
        name.replace(".linear.", "."): tensor
        for name, tensor in trainer.model.model.language_model.state_dict().items()
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_cache_is_keyed_by_the_shipped_weights(small, tmp_path, monkeypatch):
    """Weights that changed are merged afresh; the same ones are not merged again."""
    data = tmp_path / "data"
    (data / smol.NAME).mkdir(parents=True)
    model = smol.assemble(small)
    low_rank.add_low_rank(model, smol.RANK)
    save_file(low_rank.adapter(model), data / smol.NAME / low_rank.ADAPTER)
    monkeypatch.setattr(low_rank, "data_folder", lambda: data)
    monkeypatch.setattr(smol, "language_model", smol.language_model)
    tokens = smol.language_model()  # before the cache moves
    monkeypatch.setattr(smol, "language_model", lambda wheel=None: tokens)
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    first = smol.folder()
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert smol.folder() == first and (first / "model.safetensors").stat().st_mtime_ns == made
    changed = low_rank.adapter(model)
    changed["model.image_newline"] = changed["model.image_newline"] + 1
    save_file(changed, data / smol.NAME / low_rank.ADAPTER)
    assert smol.folder() != first
    assert sorted(Path(tmp_path / "cache").iterdir()) == sorted([first, smol.folder()])
    (data / smol.NAME / low_rank.ADAPTER).unlink()
    with pytest.raises(UserError, match="is missing"):
        smol.folder()


def test_facts_are_asked_about_with_distinct_choices_and_training_asks_about_others():
    asked = facts.questions(400, seed=0)
    assert all(question.answer in question.choices for question in asked)
    assert all(len(set(question.choices)) == facts.CHOICES for question in asked)
    assert not {question.text for question in asked} & {
        question.text for question in facts.questions(400, seed=0, stream="training")
    }
    again = facts.questions(30, seed=0)
    assert [question.text for question in again] == [question.text for question in asked[:30]]
    with_noun = [question for question in asked if question.task == "next"]
    assert with_noun and all(question.answer not in question.text for question in with_noun)


def test_larger_pictures_come_in_three_shapes_and_plain_words():
    asked = pictures.questions(200, seed=0, name="smol-vqa")
    assert {question.images[0].size for question in asked} == {(128, 128), (128, 64), (64, 128)}
    for question in asked:
        assert question.text[0].isupper() and question.text.endswith("?") and " ?" not in question.text
        assert question.answer in question.choices and len(set(question.choices)) == len(question.choices)
    numbers = [question.answer for question in asked if question.task == "number"]
    assert all(number.isdigit() and len(number) == 2 for number in numbers)


def test_prose_to_train_on_and_to_measure_on_are_different_texts():
    measured = prose.texts()
    assert all(len(text) > 10_000 for text in measured.values())
    read = prose.docstrings()
    assert len(read) > 100 and not any(text[:200] in measured[name] for text in read for name in measured)
