"""smol-llava-next: the shipped model, its answers and its training."""

import time

import pytest
import torch
import transformers
from resuming import whole_and_pieces
from safetensors.torch import load_file
from training import adapting, answering, lessons, smol

import tamp
from tamp import conversations, models, zoo
from tamp.files import data_folder
from tamp.worlds import pictures, scenes


@pytest.fixture(scope="module")
def smolvl(tokenizer):
    """The shipped model over SmolLM2, and its processor."""
    return tamp.load(smol.NAME, device="cpu")


@pytest.mark.slow
def test_smol_llava_next_is_llava_next_over_smollm2_with_tied_embeddings(smolvl, tokenizer):
    model, processor = smolvl
    assert type(model) is transformers.LlavaNextForConditionalGeneration
    assert type(processor) is transformers.LlavaNextProcessor
    assert len(models.blocks(model)) == 30
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert len(processor.tokenizer) == len(tokenizer)
    samples = tamp.calibration_set("smol-vqa", processor, n=20)
    counts = [int((models.modality(model, sample) == models.VISUAL).sum()) for sample in samples]
    assert min(counts) >= 200 and max(counts) >= 400, "several hundred visual tokens, more for a pair of pictures"


@pytest.mark.slow
def test_cached_model_loads_in_ten_seconds(smolvl):
    start = time.perf_counter()
    tamp.load(smol.NAME, device="cpu")
    assert time.perf_counter() - start < 10


@pytest.mark.slow
def test_accuracy_is_at_least_85_percent(smolvl):
    scores = tamp.evaluate(*smolvl, "smol-vqa", limit=60, seed=3, progress=False)
    assert (scores["accuracy"] * scores["n"]).sum() / scores["n"].sum() >= 0.85


@pytest.mark.slow
def test_facts_accuracy_is_at_least_75_percent(smolvl):
    assert tamp.evaluate(*smolvl, "facts", limit=50, progress=False)["choice_accuracy"].mean() >= 0.75


def test_chat_template_without_pictures_equals_that_of_smollm2(tokenizer):
    processor = smol.build_processor(transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path))
    chat = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": "Hi!"}]
    for more in ({}, {"add_generation_prompt": True}):
        expected = tokenizer.apply_chat_template(chat[: 1 if more else 2], tokenize=False, **more)
        assert processor.apply_chat_template(chat[: 1 if more else 2], tokenize=False, **more) == expected


def test_packed_lessons_equal_the_output_of_the_processor(small):
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


def test_visual_targets_are_word_embeddings_of_look_and_place(small):
    trainer = adapting.SmolTrainer(adapting.SmolRecipe(), 0)
    item = scenes.Item("red", "circle", 1, 6)
    scene = scenes.Scene((item,), (), 4, 8)
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


@pytest.mark.slow
def test_interrupted_training_gives_the_same_weights_and_every_shipped_file(small, tmp_path):
    stages = ("vision", "alignment", "language", "refinement", "counting")
    steps = [word for stage in stages for word in (f"--{stage}-steps", "2")]
    often = ("--save-every", "1", "--check-every", "2", "--held-out", "10", "--final", "10")

    folders = whole_and_pieces(adapting.main, tmp_path, [*steps, *often], minutes="0.001", most=20)
    whole, pieces = (load_file(folder / zoo.ADAPTER) for folder in folders)
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in (data_folder() / smol.NAME).iterdir()}
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert any(tensor.any() for name, tensor in whole.items() if name.endswith(".up"))


@pytest.mark.slow
def test_training_changes_no_weight_of_the_language_model(small):
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
