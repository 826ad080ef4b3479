"""What VideoLLaMA 2's processor makes of texts, pictures, videos and sounds."""

import math

import numpy as np
import pytest
import tiny_videollama2 as tiny
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipImageProcessorPil

from tamp import conversations, media, models, walk
from tamp.errors import UserError
from tamp.evaluation import scoring
from tamp.videollama2 import VideoLlama2Processor
from tamp.worlds.pictures import Question

RATE = 16000
PAPER_TOKENS = 187 * 8  # of 30 s


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


@pytest.fixture(scope="module")
def model():
    return tiny.build()


def frames(count: int, side: int = 20) -> np.ndarray:
    """Make a video whose n-th frame has the brightness n, (count, side, side, 3)."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, side, side, 3)).copy()


def tone(seconds: float, pitch: float = 440.0) -> tuple[np.ndarray, int]:
    """Make a sound and its rate."""
    return np.sin(np.arange(round(seconds * RATE)) * (2 * math.pi * pitch / RATE)).astype(np.float32), RATE


def brightness(pixels: torch.Tensor) -> list[int]:
    """Read off which frames were drawn, (frames, 3, H, W)."""
    return ((pixels[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().int().tolist()


def counts(inputs) -> list[tuple[int, int, int]]:
    """Count image, video and audio ids in every row."""
    return [tuple(int((row == place).sum()) for place in (90, 91, 92)) for row in inputs["input_ids"]]


def test_a_video_with_sound_is_its_frames_and_then_its_sound(processor):
    inputs = processor("a<video>\nb", videos=[frames(9)], audios=[tone(3)])
    ids = inputs["input_ids"][0].tolist()
    plain = processor.tokenizer("a")["input_ids"], processor.tokenizer("\nb")["input_ids"]
    assert ids == [*plain[0], *[91] * 8, *[92] * PAPER_TOKENS, *plain[1]]
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 20, 20)
    assert inputs["input_features"].shape == (1, 2998, 128) and "input_features_mask" not in inputs
    expected = media.fbank(media.paper_clips(tone(3)[0]))
    torch.testing.assert_close(inputs["input_features"][0], expected)


@pytest.mark.parametrize(("side", "patch", "count", "tokens"), [(384, 14, 8, 676), (384, 14, 16, 1352), (20, 4, 5, 8)])
def test_the_tokens_of_a_video_are_counted(side, patch, count, tokens):
    made = tiny.processor(num_frames=count, patch_size=patch)
    made.image_processor.size = {"height": side, "width": side}
    assert made.visual_tokens == tokens


def test_frames_are_drawn_evenly_repeated_or_filled_with_black(processor):
    def drawn(video):
        return brightness(processor("<video>", videos=[video])["pixel_values_videos"][0])

    pictures = [Image.fromarray(frame) for frame in frames(9) + 100]
    assert drawn(frames(9)) == [1, 3, 5, 7] == media.frame_indices(9, 4)
    assert drawn(frames(2) + 7) == [7, 7, 8, 8]
    assert drawn(pictures) == [101, 103, 105, 107]
    assert drawn(pictures[:2]) == [100, 101, 0, 0]


def test_frames_are_squashed_to_a_square_and_normalised(processor):
    wide = Image.fromarray(np.hstack([np.zeros((10, 40, 3), np.uint8), np.full((10, 40, 3), 255, np.uint8)]))
    pixels = processor("<image>", images=[wide])["pixel_values"]
    assert pixels.shape == (1, 3, 20, 20)
    assert (pixels[..., :8] < -0.9).all() and (pixels[..., 12:] > 0.9).all()
    assert counts(processor("<image>", images=[wide])) == [(8, 0, 0)]


def test_a_sound_alone_is_its_first_half_minute(processor):
    long = np.concatenate([tone(30)[0], tone(5, 2000)[0]])
    inputs = processor("<audio>", audios=[(long, RATE)])
    assert counts(inputs) == [(0, 0, PAPER_TOKENS)]
    torch.testing.assert_close(inputs["input_features"][0], media.fbank(tone(30)[0]))
    short = processor("<audio>", audios=[tone(2)])["input_features"][0]
    torch.testing.assert_close(short, media.fbank(np.pad(tone(2)[0], (0, 28 * RATE))))


@pytest.mark.parametrize(("seconds", "of_frames"), [(0.01, 16), (0.1, 16), (1, 98), (31, 2998)])
def test_the_plain_policy_adds_no_silence(seconds, of_frames):
    plain = tiny.processor(audio_policy="plain")
    for text, extra in (("<audio>", {}), ("<video>", {"videos": [frames(4)]})):
        inputs = plain(text, audios=[tone(seconds)], **extra)
        assert inputs["input_features"].shape == (1, of_frames, 128)
        assert counts(inputs)[0][2] == of_frames // 16 * 8


def test_a_batch_of_different_sounds_is_masked_and_gives_what_they_give_alone(model):
    plain = tiny.processor(audio_policy="plain", num_frames=4)
    texts = ["<audio>\na", "b", "<video>\nc", "<image>d<audio>"]
    sounds = [tone(0.5), tone(0.9, 300), tone(0.2, 800)]
    picture = Image.fromarray(frames(200)[150])
    batch = plain(texts[:2] + texts[3:], images=[picture], audios=[sounds[0], sounds[2]], padding=True)
    assert batch["input_features_mask"].sum(1).tolist() == [48, 18]
    with torch.no_grad():
        together = model(**batch).logits
        for row, (text, media_of) in enumerate(
            [(texts[0], {"audios": sounds[:1]}), ("b", {}), (texts[3], {"images": [picture], "audios": sounds[2:]})]
        ):
            alone = model(**plain(text, **media_of)).logits[0]
            torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone, atol=1e-4, rtol=0)
        heard = model(**plain(texts[2], videos=[frames(4)], audios=sounds[1:2])).logits
        silent = model(**plain(texts[2], videos=[frames(4)], audios=[None])).logits
    assert heard.shape[1] == silent.shape[1] + 88 // 16 * 8


def test_left_padding_is_the_tokenizers(processor):
    inputs = processor(["abc", "a"], padding=True, padding_side="left")
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_files_are_read_and_heard(processor, monkeypatch):
    asked = []
    monkeypatch.setattr(media, "read_video", lambda path, count: frames(9)[media.frame_indices(9, count)])
    monkeypatch.setattr(media, "has_audio", lambda path: "loud" in str(path))
    monkeypatch.setattr(media, "read_audio", lambda path, seconds=None: (asked.append((path, seconds)), tone(3)[0])[1])
    inputs = processor(["<video>", "<video>"], videos=["loud.mp4", "mute.mp4"], padding=True)
    assert counts(inputs) == [(0, 8, PAPER_TOKENS), (0, 8, 0)] and asked == [("loud.mp4", None)]
    assert brightness(inputs["pixel_values_videos"][1]) == [1, 3, 5, 7]
    assert counts(processor("<video>", videos=["loud.mp4"], sound=False)) == [(0, 8, 0)]
    assert counts(processor("<video>", videos=["loud.mp4"], audios=[None])) == [(0, 8, 0)]
    both = processor("<audio><video>", videos=["loud.mp4"], audios=["music.wav"])
    assert counts(both) == [(0, 8, 2 * PAPER_TOKENS)] and asked[1:] == [("music.wav", 30.0), ("loud.mp4", None)]


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("<video>", {}, "has 1 <video> marks for 0 videos"),
        ("", {"images": [Image.new("RGB", (4, 4))]}, "has 0 <image> marks for 1 images"),
        ("<video>", {"videos": [frames(4)], "audios": [tone(1)] * 2}, "has 0 <audio> marks for 2 audios"),
        ("<video>", {"videos": [np.zeros((4, 20, 20, 3))]}, "not float64 of shape"),
        ("<video>", {"videos": [np.zeros((20, 20, 3), np.uint8)]}, "A video is a path"),
        ("<audio>", {"audios": [tone(1)[0]]}, "a pair of an array and its rate"),
        ("<audio>", {"audios": [None]}, "not NoneType"),
    ],
)
def test_what_does_not_fit_is_refused(processor, text, given, message):
    with pytest.raises(UserError, match=message):
        processor(text, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_frames": 1}, "2 to 32"), ({"num_frames": 33}, "2 to 32"), ({"audio_policy": "papers"}, "mean 'paper'")],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        tiny.processor(**settings)


def test_a_tokenizer_without_placeholders_is_refused():
    with pytest.raises(UserError, match="convert-videollama2"):
        VideoLlama2Processor(SiglipImageProcessorPil(), tiny.tokenizer())


def test_a_saved_processor_comes_back(tmp_path):
    made = tiny.processor(num_frames=6, audio_policy="plain", downsample=(2, 2, 2))
    made.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is VideoLlama2Processor and type(again.image_processor) is SiglipImageProcessorPil
    assert again.to_dict() == made.to_dict() and again.chat_template == made.chat_template
    given = {"videos": [frames(9)], "audios": [tone(1)], "images": [Image.fromarray(frames(90)[80])]}
    first, second = (each("<image>a<video>b", **given) for each in (made, again))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


TURNS = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def test_conversations_are_written_in_the_turns_of_the_decoder(processor):
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What plays?"}]}]
    assert conversations.render(processor, messages, prompt=True) == TURNS.format("<video>\nWhat plays?")
    messages = conversations.dialogue("What?", "A dog.", [Image.new("RGB", (4, 4))])
    assert conversations.render(processor, messages) == TURNS.format("<image>\nWhat?") + "A dog.<|im_end|>\n"
    told = [{"role": "system", "content": "Sing."}, {"role": "user", "content": "La."}]
    assert processor.apply_chat_template(told) == (
        "<|im_start|>system\nSing.<|im_end|>\n<|im_start|>user\nLa.<|im_end|>\n"
    )


def test_conversations_are_prepared_with_their_media(processor):
    content = [
        {"type": "video", "video": frames(9)},
        {"type": "audio", "audio": tone(1)},
        {"type": "text", "text": "a"},
    ]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    expected = processor(TURNS.format("<video>\n<audio>\na"), videos=[frames(9)], audios=[tone(1)])
    assert inputs.keys() == expected.keys() and all(torch.equal(inputs[key], expected[key]) for key in inputs)
    two = processor.apply_chat_template([messages, messages], tokenize=True)
    assert two.shape[0] == 2 and (two == 91).sum() == 16


def test_samples_are_processed_for_calibration(processor, model):
    messages = conversations.dialogue("What?", "A dog.", [Image.fromarray(frames(90)[80])])
    sample = conversations.process(processor, messages)
    codes = models.modality(model, sample)
    assert (codes == models.VISUAL).sum() == 8 and (codes == models.TEXT).sum() == codes.numel() - 8
    captured = walk.capture(model.eval(), [sample], progress=False)
    assert captured[0].hidden.shape == (1, codes.shape[1], 32)


def test_evaluation_gives_what_a_plain_forward_pass_gives(processor, model):
    pictures = (Image.fromarray(frames(90)[80]),)
    asked = [
        Question(task="t", images=pictures, text=text, answer=answer, choices=("yes", "no"))
        for text, answer in (("Is it?", "yes"), ("Was it ever?", "no"))
    ]
    scored = scoring.answers(model, processor, asked, progress=False)
    for question, nll in zip(asked, scored["nll"]):
        prompt = conversations.render(processor, conversations.dialogue(question.text, None, pictures), prompt=True)
        whole = processor(f"{prompt}{question.answer}<|im_end|>", images=list(pictures))
        length = len(question.answer) + 1
        with torch.no_grad():
            logits = model(**whole).logits[0, -length - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, whole["input_ids"][0, -length:]).item()
        assert nll == pytest.approx(expected, rel=1e-4)
