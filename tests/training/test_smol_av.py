"""smol-videollama2: its assembly, the labels and lessons of its training, and the training itself."""

import dataclasses

import numpy as np
import pytest
import torch
from resuming import whole_and_pieces
from safetensors.torch import load_file
from training import clip_training, low_rank, smol, smol_av
from training.lessons import pack_rows

import tamp
from tamp import conversations, zoo
from tamp.files import data_folder
from tamp.worlds import clips
from tamp.worlds.clips import Actor, Clip, Sound

RECIPE = clip_training.ClipRecipe(tower_clips=2, clips=2, through_files=1, held_out=8)


@pytest.fixture
def clip():
    """A red circle moves right, a blue ring down and flashes; a low tone begins at 0 and at 1.2 s."""
    still = {"colour": "green", "shape": "cross"}
    return Clip(
        movers=(
            Actor(colour="red", shape="circle", row=0, column=0, way="right", start=1),
            Actor(colour="blue", shape="ring", row=2, column=2, way="down", start=4, flash=6),
        ),
        lamp=Actor(colour="cyan", shape="square", row=0, column=2, flash=4),
        crowd=tuple(Actor(**still, row=1, column=column) for column in range(3)),
        sound=Sound("tone", "low", (0.0, 1.2)),
        seed=3,
    )


@pytest.fixture(scope="module")
def smolav(tokenizer):
    """The shipped model over SmolLM2, and its processor."""
    return tamp.load(smol_av.NAME, device="cpu")


@pytest.mark.slow
def test_accuracy_on_files_is_at_least_80_percent(smolav):
    scores = tamp.evaluate(*smolav, clips.NAME, limit=80, seed=3, progress=False)
    assert scores["accuracy"].mean() >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("without", "lost"), clips.WITHOUT.items())
def test_senses_ablation_drops_to_chance(smolav, without, lost, tmp_path):
    """Evaluate few questions; the recorded run of `senses.py` has more."""
    asked = clips.questions(80, seed=3, tasks=lost, without=without, folder=tmp_path)
    scores = tamp.evaluate(*smolav, asked, progress=False)
    assert scores["accuracy"].mean() < scores["chance"].mean() + 0.15


def test_assembled_decoder_computes_the_logits_of_the_language_model(small):
    model = smol_av.assemble(small).eval()
    ids = torch.randint(20, 1000, (1, 12))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[..., :49152], small(input_ids=ids).logits)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    processor = smol_av.build_processor(smol.language_model()[1])
    for kind in ("image", "video", "audio"):
        assert getattr(processor, f"{kind}_token_id") == getattr(model.config, f"{kind}_token_id") >= 49152


def test_packed_questions_equal_the_output_of_the_processor(small, clip, tmp_path):
    trainer = clip_training.ClipTrainer(RECIPE, 0)
    model, processor, config = trainer.model.eval(), trainer.processor, trainer.model.config
    pixels, banks = clip_training.sensed([clip], through_files=1)
    prefix = [config.video_token_id] * 64 + [config.audio_token_id] * 96
    video = (str(clips.write(clip, tmp_path)),)
    for task in ("direction", "sync"):
        text, answer, _ = clips.ask(task, clip)
        writing = trainer.writing
        rows = pack_rows([*writing.start, *prefix, *writing.after], [[(text, answer)]], writing)
        whole = conversations.process(processor, conversations.dialogue(text, answer, videos=video))
        length = rows.token_ids.shape[1]
        assert whole["input_ids"][0, :length].tolist() == rows.token_ids[0].tolist()
        assert whole["input_ids"][0, length].item() == processor.tokenizer.eos_token_id
        torch.testing.assert_close(pixels, whole["pixel_values_videos"])
        torch.testing.assert_close(banks, whole["input_features"])
        with torch.no_grad():
            watched = clip_training.Watched(**vars(rows), pixels=pixels, banks=banks)
            ours = clip_training.answer_logits(model, watched)
            theirs = model(**whole).logits[0, :length][rows.targets[0] >= 0]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_video_labels_describe_objects_at_their_place_and_time(clip):
    labels = clip_training.video_labels(clip).reshape(4, 16, 5)  # time, place, kinds
    said = [
        {tuple(word and words[word - 1] for word, words in zip(token, clip_training.SEEN)) for token in frame}
        for frame in labels.tolist()
    ]
    for time, words in enumerate(said):  # a move shows within the two frames of one token only
        assert ("red", "circle", *(("right", "moves") if time == 0 else (0, 0)), 0) in words
        assert ("blue", "ring", *(("down", "moves") if time == 2 else (0, 0)), "flash" if time == 3 else 0) in words
        assert ("cyan", "square", 0, 0, "flash" if time == 2 else 0) in words
    frames = clips.paint(clip).astype(int)
    for centre, colour in ((clips.centres(clip)[0], "red"), (clips.centres(clip)[3], "green")):
        for frame, (row, column) in zip(frames, centre.astype(int)):
            nearest = min(clips.COLOURS, key=lambda name: abs(clips.COLOURS[name] - frame[row, column]).sum())
            assert nearest == colour


def test_video_labels_have_one_token_per_object_move_and_flash():
    for seed in range(200):
        made = clips.make_clip(np.random.default_rng(seed))
        labels = clip_training.video_labels(made).reshape(4, 16, 5)
        assert ((labels[..., 0] > 0).sum(1) == 6).all()
        seen = clips.actors(made)
        assert (labels[..., 2] > 0).sum() == (labels[..., 3] > 0).sum() == sum(actor.way is not None for actor in seen)
        assert (labels[..., 4] > 0).sum() == 3


def test_audio_labels_describe_sounds_at_their_time(clip):
    words = [word for some in clip_training.HEARD for word in some]
    labels = clip_training.audio_labels(clip, 96).reshape(12, 8)
    assert {time: [words[label - 1] for label in row[:4]] for time, row in enumerate(labels) if row.any()} == {
        0: ["tone", "low", "1", "one"],
        7: ["tone", "low", "2", "three"],
    }
    assert not labels[:, 4:].any()


def test_lesson_asks_the_tasks_and_their_intermediate_steps(clip):
    first, second = clip.movers
    clip = dataclasses.replace(clip, movers=(dataclasses.replace(first, flash=2), second))
    easy, hard = (clip_training.lesson(clip, np.random.default_rng(0), hard) for hard in (False, True))
    assert (
        dict(easy).items()
        >= {
            "What moves, in order?": "red circle right, blue ring down",
            "What flashes, in order?": "red circle, cyan square, blue ring",
            "In which half second is the first sound?": "one",
            "In which half second does the cyan square flash?": "three",
        }.items()
    )
    assert dict(hard).items() >= {"Which way do the green crosses move?": "none"}.items()
    own = {clips.ask(task, clip)[0]: task for task in clips.TASKS}
    counts = [[own.get(text) for text, _ in made] for made in (easy, hard)]
    assert not {"moving", "sync", "first"} & set(counts[0]) and {"moving", "sync", "first"} <= set(counts[1])
    assert all(clips.ask(own[text], clip)[1] == answer for text, answer in (*easy, *hard) if text in own)
    assert all(answer == "yes" for text, answer in hard if "after the first sound" in text)


@pytest.mark.parametrize(
    ("sound", "lamp", "happens", "together"),
    [
        (0.0, 0, "sound with cyan square, red circle, blue ring", True),
        (0.0, 4, "sound, red circle, cyan square, blue ring", False),
        (1.0, 0, "cyan square, red circle, sound, blue ring", False),
        (1.0, 4, "red circle, sound with cyan square, blue ring", True),
    ],
)
def test_timing_lesson_asks_for_the_order_of_sound_and_flashes(clip, sound, lamp, happens, together):
    first, second = clip.movers
    clip = dataclasses.replace(
        clip,
        movers=(dataclasses.replace(first, flash=2), second),
        lamp=dataclasses.replace(clip.lamp, flash=lamp),
        sound=dataclasses.replace(clip.sound, onsets=(sound,)),
    )
    made = dict(clip_training.timing_lesson(clip, np.random.default_rng(0)))
    assert (
        made.items()
        >= {
            "What happens, in order?": happens,
            "What flashes at the moment of the first sound?": "cyan square" if together else "nothing",
            "Does the cyan square flash before the first sound?": "yes" if lamp < 4 * sound else "no",
            "Does the cyan square flash after the first sound?": "yes" if lamp > 4 * sound else "no",
            "Does the cyan square flash at the moment of the first sound?": "yes" if together else "no",
        }.items()
    )


def test_clips_read_from_a_file_differ_slightly_from_plain_ones(clip):
    plain, encoded = (clip_training.sensed([clip], through_files=number) for number in (0, 1))
    for ours, theirs in zip(plain, encoded):
        assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
        assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] > 0.9


@pytest.mark.slow
def test_interrupted_training_gives_the_same_weights_and_every_shipped_file(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path / "cache"))
    steps = [word for stage in clip_training.ClipTrainer.STAGES for word in (f"--{stage}-steps", "2")]
    often = ("--save-every", "1", "--check-every", "2", "--held-out", "8", "--final", "8")
    monkeypatch.setattr(clip_training, "ClipRecipe", lambda: RECIPE)

    folders = whole_and_pieces(clip_training.main, tmp_path, [*steps, *often], minutes="0.001", most=20)
    whole, pieces = (load_file(folder / zoo.ADAPTER) for folder in folders)
    shipped = {path.name for path in (data_folder() / smol_av.NAME).iterdir()}
    assert {path.name for path in folders[0].iterdir()} == shipped
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert any(tensor.any() for name, tensor in whole.items() if name.endswith(".up"))
    fresh = low_rank.adapter(clip_training.ClipTrainer(RECIPE, 0).model)
    for part in (
        "vision_tower",
        "vision_projector.sampler",
        "vision_projector.readout",
        "audio_tower",
        "audio_projector",
    ):
        changed = [not torch.equal(whole[name], fresh[name].bfloat16()) for name in whole if part in name]
        assert any(changed), part
