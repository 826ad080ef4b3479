"""Frames and sound out of files, and the filterbank, against definitions written out here."""

import importlib
import itertools
import math
import sys
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import audio_utils

from tamp import media
from tamp.errors import UserError

checked = settings(deadline=None, derandomize=True, max_examples=100)
FLOOR = math.log(2**-23)


def tone(frequency: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def frequency(waveform: np.ndarray) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return spectrum.argmax() * media.RATE / len(waveform)


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that carry their number, below 64, as six bright or dark bars, (count, H, W, 3)."""
    bits = np.arange(count)[:, None] >> np.arange(6) & 1
    bars = np.repeat(np.where(bits, 220, 30).astype(np.uint8), width // 6, 1)  # (count, W)
    return np.broadcast_to(bars[:, None, :, None], (count, height, bars.shape[1], 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames carry."""
    bars = frames.mean((1, 3)).reshape(len(frames), 6, -1).mean(2)
    return ((bars > 125) << np.arange(6)).sum(1).tolist()


def encode(path, codec: str, frames: np.ndarray | None = None, waveform: np.ndarray | None = None, rate: int = 16000):
    """Write one track, of frames or of sound, in the container that goes with the name."""
    with av.open(str(path), "w") as container:
        if frames is not None:
            track = container.add_stream(codec, rate=10)
            track.height, track.width, track.pix_fmt = *frames.shape[1:3], "yuv420p"
            made = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
        else:
            waveform = waveform[:, None] if waveform.ndim == 1 else waveform
            layout = "mono" if waveform.shape[1] == 1 else "stereo"
            track = container.add_stream(codec, rate=rate, layout=layout)
            track.bit_rate = 128000
            made = [av.AudioFrame.from_ndarray(waveform.reshape(1, -1).copy(), "flt", layout)]
            made[0].sample_rate, made[0].pts, made[0].time_base = rate, 0, Fraction(1, rate)
        for frame in [*made, None]:
            container.mux(track.encode(frame))
    return path


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [
        (300, 8, [19, 56, 93, 131, 168, 206, 243, 280]),
        (9, 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # every one a half, which goes up
        (3, 4, [0, 1, 1, 2]),
        (1, 3, [0, 0, 0]),
        (100, 1, [50]),
    ],
)
def test_frame_indices_by_hand(count, frames, expected):
    assert media.frame_indices(count, frames) == expected


@checked
@given(st.integers(1, 10**6), st.integers(1, 64))
def test_frame_indices_are_the_nearest_to_the_middles_of_equal_parts(count, frames):
    indices = media.frame_indices(count, frames)
    assert len(indices) == frames and all(0 <= index < count for index in indices)
    for part, index in enumerate(indices):
        assert abs(index - Fraction((count - 1) * (2 * part + 1), 2 * frames)) <= Fraction(1, 2) + Fraction(1, 10**5)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_frames_that_stand_for_a_video_are_read(name, codec, count, tmp_path):
    """Only mp4 and avi say how many frames they hold; x264 stores them in another order than it shows them."""
    path = encode(tmp_path / name, codec, numbered(count))
    for frames in (1, 4, 16):
        read = media.read_video(path, frames)
        assert read.shape == (frames, 32, 48, 3) and read.dtype == np.uint8
        assert numbers(read) == media.frame_indices(count, frames)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (18, 130), (200, 34)])
def test_frames_keep_their_size_and_colors(height, width, tmp_path):
    frames = np.broadcast_to(np.array([200, 60, 30], np.uint8), (3, height, width, 3))
    media.write_video(tmp_path / "a.mp4", frames, 5)
    read = media.read_video(str(tmp_path / "a.mp4"), 3)
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).max() <= 6


@pytest.mark.parametrize("announced", [1, 3, 1000])
def test_a_container_that_is_wrong_about_its_frames_does_not_matter(announced, tmp_path):
    path = encode(tmp_path / "a.avi", "mpeg4", numbered(30))
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 8 + 32  # the length in the header of the first track
    assert int.from_bytes(content[place : place + 4], "little") == 30
    content[place : place + 4] = announced.to_bytes(4, "little")
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == announced
    assert numbers(media.read_video(path, 8)) == media.frame_indices(30, 8)


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)], ids=["right", "left", "around"]
)
def test_a_video_of_a_turned_camera_is_read_upright(matrix, turns, tmp_path):
    frame = np.full((1, 32, 64, 3), 30, np.uint8)
    frame[:, :16, :32] = 220  # the upper left quarter is bright
    path = tmp_path / "a.mp4"
    media.write_video(path, frame, 5)
    content = path.read_bytes()

    def stored(a, b, c, d):
        rows = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        return b"".join(value.to_bytes(4, "big", signed=True) for value in rows)

    header = content.index(b"tkhd")
    before, after = content[:header], content[header:]
    assert stored(1, 0, 0, 1) in after
    path.write_bytes(before + after.replace(stored(1, 0, 0, 1), stored(*matrix), 1))
    read = media.read_video(path, 1)[0]
    assert np.array_equal(read > 125, np.rot90(frame[0], turns) > 125)


def test_frames_that_change_their_size_are_scaled_to_the_first_that_is_taken(tmp_path):
    small = encode(tmp_path / "a.h264", "libx264", numbered(10)).read_bytes()
    large = encode(tmp_path / "b.h264", "libx264", numbered(20, 64, 96)[10:]).read_bytes()
    (tmp_path / "c.h264").write_bytes(small + large)
    read = media.read_video(tmp_path / "c.h264", 4)
    assert read.shape == (4, 32, 48, 3)
    assert numbers(read) == media.frame_indices(20, 4)


def test_frames_that_are_not_taken_are_not_kept(tmp_path):
    path = encode(tmp_path / "a.mkv", "mpeg4", np.zeros((300, 64, 64, 3), np.uint8))
    media.read_video(path, 1)  # imports
    tracemalloc.start()
    try:
        read = media.read_video(path, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * read.nbytes  # all 300 would take 37 times as much


# Sound ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sound_files_of_any_rate_become_one_channel_at_16_khz(suffix, rate, channels, tmp_path):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(440, rate)] * channels, 1), rate)
    read = media.read_audio(path)
    assert read.dtype == np.float32 and read.shape == (16000,)
    assert np.abs(read - tone(440, 16000))[100:-100].max() < 2e-4
    assert media.has_audio(path)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp3", "libmp3lame", 44100), ("a.m4a", "aac", 48000), ("a.ogg", "libopus", 48000), ("a.mkv", "aac", 8000)],
)
def test_compressed_sound_keeps_its_pitch_and_loudness(name, codec, rate, tmp_path):
    path = encode(tmp_path / name, codec, waveform=np.stack([tone(500, rate, 2)] * 2, 1), rate=rate)
    read = media.read_audio(path)
    assert read.dtype == np.float32 and abs(len(read) - 32000) < 3000
    middle = read[8000:24000]
    assert frequency(middle) == 500
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.06)  # lame takes 5 % off
    assert np.array_equal(read * 32768, np.round(read * 32768))


@pytest.mark.parametrize("suffix", ["wav", "mka"])
def test_channels_are_mixed_evenly(suffix, tmp_path):
    left, right = tone(300, 16000), tone(700, 16000)
    path, both = tmp_path / f"a.{suffix}", np.stack([left, right], 1)
    if suffix == "wav":
        soundfile.write(path, both, 16000)
    else:
        encode(path, "pcm_s16le", waveform=both)
    assert np.abs(media.read_audio(path) - (left + right) / 2).max() < 1e-4


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_the_sound_of_a_video_begins_and_ends_where_it_was_written(rate, tmp_path):
    path, seconds = tmp_path / "a.mp4", 1.7
    time = np.arange(round(seconds * rate)) / rate
    waveform = (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)  # a rising tone has no period
    media.write_video(path, numbered(17), 10, waveform, rate)
    with av.open(str(path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > len(waveform)  # what there is to cut
    read = media.read_audio(path)
    assert len(read) == 27200
    assert np.abs(read - media.resample(waveform, rate))[1000:-1000].max() < 0.07  # one sample late: 0.14
    assert numbers(media.read_video(path, 17)) == media.frame_indices(17, 17)


def test_padding_is_cut_off_before_resampling(tmp_path):
    path = encode(tmp_path / "a.m4a", "aac", waveform=noise(44100), rate=44100)
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray() for frame in container.decode(track)], 1)
        length = int(track.duration * track.time_base * 44100)
    assert samples.shape[1] > length == 44100
    frame = av.AudioFrame.from_ndarray(samples[:, :length].copy(), "fltp", "mono")
    frame.sample_rate = 44100
    resampler = av.AudioResampler("s16", "mono", 16000)
    pieces = [piece.to_ndarray()[0] for part in (frame, None) for piece in resampler.resample(part)]
    assert np.array_equal(media.read_audio(path) * 32768, np.concatenate(pieces))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a", "a.mp3"])
@pytest.mark.parametrize("seconds", [0.001, 0.5, 1.23456, 60.0])
def test_the_first_seconds_are_those_of_the_whole(name, seconds, tmp_path):
    path, waveform = tmp_path / name, noise(88200)
    if path.suffix in (".wav", ".flac"):
        soundfile.write(path, waveform, 44100)
    else:
        encode(path, {".m4a": "aac", ".mp3": "libmp3lame"}[path.suffix], waveform=waveform, rate=44100)
    whole, first = media.read_audio(path), media.read_audio(path, seconds)
    assert len(first) == min(round(seconds * 16000), len(whole))
    assert np.array_equal(first, whole[: len(first)])


def test_sound_may_change_its_rate_on_the_way(tmp_path):
    first = encode(tmp_path / "a.aac", "aac", waveform=tone(500, 16000, 2)).read_bytes()
    second = encode(tmp_path / "b.aac", "aac", waveform=tone(500, 32000, 2), rate=32000).read_bytes()
    (tmp_path / "c.aac").write_bytes(first + second)
    read = media.read_audio(tmp_path / "c.aac")
    assert len(read) == pytest.approx(64000, abs=4000)
    assert frequency(read[8000:24000]) == frequency(read[-24000:-8000]) == 500


def test_a_single_sample_of_many_channels_is_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([[0.5, 0.25, 0.0]]), 16000)
    assert media.read_audio(tmp_path / "a.wav").tolist() == [0.25]


def test_silence_is_read_as_zeros(tmp_path):
    media.write_video(tmp_path / "a.mp4", numbered(2), 10, np.zeros(8000, np.float32))
    assert np.array_equal(media.read_audio(tmp_path / "a.mp4"), np.zeros(8000, np.float32))
    assert media.has_audio(tmp_path / "a.mp4")


# Resampling -----------------------------------------------------------------------------------------------------------


@checked
@given(st.integers(1, 5000), st.sampled_from([1000, 8000, 11025, 16000, 22050, 44100, 44101, 96000, 192000, 768000]))
def test_resampling_keeps_the_duration(samples, rate):
    resampled = media.resample(noise(samples), rate)
    assert resampled.dtype == np.float32 and resampled.shape == (-(-samples * 16000 // rate),)


@pytest.mark.parametrize("rate", [8000, 22050, 44101, 96000])
def test_resampling_keeps_what_fits_and_drops_what_does_not(rate):
    assert np.abs(media.resample(tone(1000, rate), rate) - tone(1000, 16000))[100:-100].max() < 1e-4
    if rate > 20000:
        assert np.abs(media.resample(tone(10000, rate), rate))[100:-100].max() < 1e-3


def test_a_waveform_at_16_khz_stays_as_it_is():
    waveform = noise(1000)
    assert np.array_equal(media.resample(waveform.astype(np.float64), 16000), waveform)
    assert np.array_equal(media.resample(waveform[:, None], 16000), waveform)


# Clips ----------------------------------------------------------------------------------------------------------------


def counting(samples: int) -> np.ndarray:
    """A waveform whose samples carry their place, from 1 on."""
    return (np.arange(1, samples + 1) / 2**24).astype(np.float32)


def begins(clips: np.ndarray, length: int = 32000, count: int = 8) -> list[int]:
    """Where in a counting waveform clips begin that are shown to be runs of it, with silence after the last."""
    places = np.round(clips * 2**24).astype(int)
    assert not places[count * length :].any()
    runs = places[: count * length].reshape(count, length)
    assert (np.diff(runs, axis=1) == 1).all()
    return (runs[:, 0] - 1).tolist()


def test_clips_begin_at_eighths_so_that_the_end_is_in_none():
    clips = media.paper_clips(counting(160000))
    assert clips.dtype == np.float32 and clips.shape == (480000,)
    assert begins(clips) == [0, 16000, 32000, 48000, 64000, 80000, 96000, 112000]  # of 128000 possible beginnings


@checked
@given(st.integers(32000, 2_000_000))
def test_clips_begin_where_exact_arithmetic_says(samples):
    exact = [Fraction(clip * (samples - 32000), 8) for clip in range(8)]
    found = begins(media.paper_clips(counting(samples)))
    assert all(-1 - 1e-6 < begin - place < 1e-6 for begin, place in zip(found, exact))


def test_a_rounded_duration_moves_a_beginning_by_one_sample_as_in_the_original():
    """The duration of 32696 samples is a little less than 32696 / 16000, and so is all that follows."""
    assert Fraction(32696 / 16000 - 2.0) < Fraction(696, 16000)
    assert begins(media.paper_clips(counting(32696))) == [0, 86, 173, 260, 347, 434, 521, 608]


@pytest.mark.parametrize("samples", [1, 15999, 31999, 32000])
def test_a_short_waveform_is_repeated(samples):
    clips = media.paper_clips(counting(samples))
    assert np.array_equal(clips[: 8 * samples], np.tile(counting(samples), 8))
    assert len(clips) == 480000 and not clips[8 * samples :].any()


def test_other_clips_are_a_matter_of_arguments():
    clips = media.paper_clips(counting(160000), clips=3, clip_seconds=0.5, pad_seconds=1.5)
    assert clips.shape == (24000,)
    assert begins(clips, length=8000, count=3) == [0, 50666, 101333]


def test_almost_half_of_the_audio_tokens_of_the_paper_are_padding():
    """A token sees 16 frames of the filterbank and 16 of its filters; the last frames that fill no token are dropped."""
    silent = (media.fbank(media.paper_clips(noise(160000))) == np.float32(FLOOR)).all(1)
    steps = silent[: len(silent) // 16 * 16].reshape(-1, 16).all(1)
    tokens, padding = len(steps) * 128 // 16, int(steps.sum()) * 128 // 16
    assert (tokens, padding) == (1496, 696)
    assert int(silent.sum()) == 1398 and silent[-1398:].all()


# Filterbank -----------------------------------------------------------------------------------------------------------


def kaldi(waveform: np.ndarray) -> np.ndarray:
    """The filterbank by its definition, in float64, (frames, 128)."""
    samples = waveform.astype(np.float64) * 2**15
    window = [(0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i in range(400)]
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(256), np.arange(400)) / 512)  # no filter reaches line 256, 8 kHz

    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    filters, step = np.zeros((128, 256)), (mel(8000) - mel(20)) / 129
    for number, line in itertools.product(range(128), range(256)):
        left, place = mel(20) + number * step, mel(line * 16000 / 512)
        if left < place <= left + step:
            filters[number, line] = (place - left) / step
        elif left + step < place < left + 2 * step:
            filters[number, line] = (left + 2 * step - place) / step
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400] - samples[start : start + 400].mean()
        emphasized = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)]
        power = np.abs(fourier @ (np.array(emphasized) * window)) ** 2
        rows.append(np.log(np.maximum(filters @ power, 2.0**-23)))
    return np.array(rows)


def library(waveform: np.ndarray) -> np.ndarray:
    """The filterbank as transformers computes it, in float64, (frames, 128)."""
    filters = audio_utils.mel_filter_bank(
        257, 128, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    return audio_utils.spectrogram(
        waveform.astype(np.float64) * 2**15,
        audio_utils.window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=2.0**-23,
        remove_dc_offset=True,
        dtype=np.float64,
    ).T


SOUNDS = {
    "noise": noise(4000),
    "noise off centre": noise(4000) + np.float32(0.3),
    "soft noise": noise(4000) * np.float32(1e-3),
    "click": np.eye(1, 4000, 1999, dtype=np.float32)[0],
    "16-bit tone": np.round(tone(1000, 16000, 0.25) * 32768 + 50 * noise(4000)).astype(np.float32) / 32768,
}


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("oracle", [kaldi, library])
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
def test_the_filterbank_is_that_of_its_definition(sound, oracle):
    computed, exact = media.fbank(SOUNDS[sound]), oracle(SOUNDS[sound])
    assert computed.dtype == torch.float32 and computed.shape == exact.shape == (23, 128)
    power, exact = computed.double().exp().numpy(), np.exp(exact)
    resolved = 3e-11 * exact.max(1, keepdims=True)  # of a frame's strongest power, what float32 leaves of the rest
    assert (np.abs(power - exact) <= 5e-4 * exact + resolved).all()


def test_the_filterbank_counts_samples_as_16_bit_integers():
    """Twice the amplitude is four times the power; the level itself is pinned against the definition."""
    computed, louder = media.fbank(noise(8000)), media.fbank(2 * noise(8000))
    above = computed > FLOOR + 1
    assert above.sum() == computed.numel() - len(computed)  # all but the filter without a line
    assert (louder - computed)[above].numpy() == pytest.approx(2 * math.log(2), abs=1e-5)


def test_the_filter_without_a_line_and_digital_silence_lie_at_the_floor():
    floor = torch.tensor(-15.942385)
    computed = media.fbank(noise(8000))
    at_floor = (computed == floor).all(0)
    assert at_floor.nonzero().flatten().tolist() == [3]
    assert (media.fbank(np.zeros(8000, np.float32)) == floor).all()
    assert (media.fbank(np.full(8000, 0.25, np.float32)) == floor).all()  # no less silent off centre


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (480000, 2998)])
def test_only_whole_windows_count(samples, frames):
    assert media.fbank(np.zeros(samples, np.float32)).shape == (frames, 128)


def test_the_filterbank_does_not_depend_on_torch_defaults_or_change_its_input():
    waveform = noise(1000)
    before, expected = waveform.copy(), media.fbank(waveform)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(media.fbank(waveform), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(waveform, before)
    waveform.flags.writeable = False
    assert torch.equal(media.fbank(waveform), expected)


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_written_video_is_one_that_browsers_play(tmp_path):
    media.write_video(tmp_path / "a.mp4", numbered(45), 2.997, noise(15 * 22050), 22050)
    with av.open(str(tmp_path / "a.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == Fraction(2997, 1000)
        assert (sound.codec_context.name, sound.rate, sound.codec_context.layout.name) == ("aac", 22050, "mono")
        kinds = "".join(packet.stream.type[0] for packet in container.demux() if packet.size)
    assert "vvvv" not in kinds  # sound beside the frames, not after them
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_without_x264_a_video_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    media.write_video(tmp_path / "a.mp4", numbered(5), 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert numbers(media.read_video(tmp_path / "a.mp4", 5)) == media.frame_indices(5, 5)
    assert not media.has_audio(tmp_path / "a.mp4")


def test_file_names_with_special_characters_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    media.write_video("a:b %03d.mp4", numbered(2), 10)
    assert media.read_video("a:b %03d.mp4", 2).shape == (2, 32, 48, 3)


def test_a_title_that_is_not_in_utf_8_does_not_matter(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "latin title"
        track = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(1000)[None], "flt", "mono")
        frame.sample_rate = 16000
        container.mux([*track.encode(frame), *track.encode(None)])
    path.write_bytes(path.read_bytes().replace(b"latin title", b"l\xe4tin title"))
    assert len(media.read_audio(path)) == 1000


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_of_a_video_that_breaks_off_what_is_there_stands_for_it(name, tmp_path, caplog):
    path, frames = tmp_path / name, numbered(40)
    frames += np.random.default_rng(0).integers(0, 30, frames.shape, np.uint8)  # or the frames were hardly any bytes
    if name == "a.mp4":
        media.write_video(path, frames, 10)  # with its index first; with the index last nothing would be left
    else:
        encode(path, "libx264", frames)
    content = path.read_bytes()
    assert numbers(media.read_video(path, 40)) == media.frame_indices(40, 40) and not caplog.records
    path.write_bytes(content[: len(content) * 2 // 3])
    shown = sorted(set(numbers(media.read_video(path, 400))))  # so many that each is taken
    left = len(shown)
    assert shown == list(range(left)) and 5 < left < 35
    assert numbers(media.read_video(path, 8)) == media.frame_indices(left, 8)
    if name == "a.mp4":  # the others do not say how many there should be
        assert f"{left} of its frames could be read" in caplog.text


@pytest.mark.parametrize("name", ["a.m4a", "a.mp3", "a.wav"])
def test_of_a_sound_that_breaks_off_what_is_there_is_read(name, tmp_path):
    path, waveform = tmp_path / name, tone(500, 16000, 3)
    if name == "a.wav":
        soundfile.write(path, waveform, 16000)
    elif name == "a.m4a":
        media.write_video(path, numbered(1), 10, waveform)
    else:
        encode(path, "libmp3lame", waveform=waveform)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    read = media.read_audio(path)
    assert 24000 < len(read) < 40000
    assert frequency(read[2000:18000]) == 500


def test_damaged_frames_are_left_out_and_reported(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    media.write_video(path, numbered(1), 10, tone(500, 16000, 3))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(content)
    read = media.read_audio(path)
    assert frequency(read[:16000]) == 500 and 24000 < len(read) < 48000
    assert f"{len(read) / 16000:.1f} s of its sound could be read" in caplog.text


def wav(folder, waveform, **settings):
    soundfile.write(folder / "a.wav", waveform, 16000, **settings)
    return folder / "a.wav"


def film(folder, share: float = 1.0):
    """A video without sound, or a first part of it whose index is missing."""
    path = encode(folder / "film.mp4", "mpeg4", numbered(3))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def saved(folder, name: str, content: bytes):
    (folder / name).write_bytes(content)
    return folder / name


def headless(folder):
    """A video with an index of frames that are not there."""
    media.write_video(folder / "a.mp4", numbered(3), 10, noise(4000))
    content = (folder / "a.mp4").read_bytes()
    return saved(folder, "a.mp4", content[: content.index(b"mdat") + 4])


READERS = [lambda path: media.read_video(path, 2), media.has_audio, media.read_audio]
UNREADABLE = {
    "missing": (lambda f: f / "no.mp4", "There is no file .*no.mp4"),
    "missing wav": (lambda f: f / "no.wav", "There is no file .*no.wav"),
    "a folder": (lambda f: f, "There is no file"),
    "empty": (lambda f: saved(f, "a.mp4", b""), "a.mp4 is not readable as"),
    "empty wav": (lambda f: saved(f, "a.wav", b""), "a.wav is not readable as"),
    "random": (lambda f: saved(f, "a.mp4", np.random.default_rng(0).bytes(5000)), "a.mp4 is not readable as"),
    "text": (lambda f: saved(f, "a.txt", b"not a film\n" * 50), "a.txt is not readable as"),
    "no index": (lambda f: film(f, 0.7), "film.mp4 is not readable as"),
}


@pytest.mark.parametrize("reader", READERS, ids=["read_video", "has_audio", "read_audio"])
@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_is_no_media_file_is_told(fault, reader, tmp_path):
    make, message = UNREADABLE[fault]
    with pytest.raises(UserError, match=message):
        reader(make(tmp_path))


BAD = {
    "no sound track": (lambda f: media.read_audio(film(f)), "no sound track: use its frames alone"),
    "no video track": (lambda f: media.read_video(wav(f, noise(100)), 2), "no video track: use another file"),
    "no frame in a track": (lambda f: media.read_video(headless(f), 2), "no readable frame"),
    "no frame at a first look": (lambda f: media.check(headless(f), "video"), "no readable frame"),
    "no sound at a first look": (lambda f: media.check(film(f), "audio"), "no sound track"),
    "no sample in a track": (lambda f: media.read_audio(headless(f)), "a.mp4 is empty"),
    "no sample in a wav": (lambda f: media.read_audio(wav(f, noise(0))), "a.wav is empty"),
    "nan in a wav": (
        lambda f: media.read_audio(wav(f, [0.1, np.nan], subtype="FLOAT")),
        "a.wav holds samples .* finite",
    ),
    "no frames asked for": (lambda f: media.read_video(film(f), 0), "not 0 of 1"),
    "no frames there": (lambda f: media.frame_indices(0, 8), "not 8 of 0"),
    "no seconds": (lambda f: media.read_audio(film(f), 0.0), "positive number of seconds, not 0.0"),
    "nan seconds": (lambda f: media.read_audio(film(f), math.nan), "positive number of seconds, not nan"),
    "too short for a window": (lambda f: media.fbank(noise(399)), r"at least 400 samples \(25 ms\), not 399"),
    "two channels": (lambda f: media.fbank(np.zeros((500, 2), np.float32)), r"shape \(500, 2\): \(n,\) is expected"),
    "channels first": (lambda f: media.resample(np.zeros((2, 500)), 8000), r"not \(2, 500\): transpose"),
    "a number": (lambda f: media.resample(np.float32(1), 8000), r"\(n,\) is expected or \(n, channels\)"),
    "rate 0": (lambda f: media.resample(noise(100), 0), "whole number .* not 0"),
    "rate 44100.5": (lambda f: media.resample(noise(100), 44100.5), "whole number .* not 44100.5"),
    "rate beyond all measure": (lambda f: media.resample(noise(100), 2**40), "1 to 1,000,000"),
    "too long clips": (lambda f: media.paper_clips(noise(100), clip_seconds=4.0), "8 clips of 4.0 s do not fill 30.0"),
    "no clips": (lambda f: media.paper_clips(noise(100), clips=0), "0 clips"),
    "odd size": (lambda f: media.write_video(f / "a.mp4", numbered(2, 31), 10), r"H and W even, not \(2, 31, 48, 3\)"),
    "float frames": (lambda f: media.write_video(f / "a.mp4", numbered(2) / 255, 10), "uint8.*in float64"),
    "one frame without its axis": (lambda f: media.write_video(f / "a.mp4", numbered(1)[0], 10), r"not \(32, 48, 3\)"),
    "no frames to write": (lambda f: media.write_video(f / "a.mp4", numbered(0), 10), r"not \(0, 32, 48, 3\)"),
    "no frames a second": (lambda f: media.write_video(f / "a.mp4", numbered(2), 0), "frames per second, not 0"),
    "no folder": (lambda f: media.write_video(f / "no" / "a.mp4", numbered(2), 10), "cannot be written: No such file"),
    "a rate that aac lacks": (
        lambda f: media.write_video(f / "a.mp4", numbered(2), 10, noise(9000), 192000),
        "cannot be written",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_an_error_is_one_sentence(fault, tmp_path):
    make, message = BAD[fault]
    with pytest.raises(UserError, match=message):
        make(tmp_path)


WAVEFORMS = {
    "empty": (np.zeros(0, np.float32), "is empty"),
    "nan": (np.array([0.1, np.nan] * 300, np.float32), "not finite"),
    "inf": (np.array([0.1, -np.inf] * 300, np.float32), "not finite"),
    "beyond float32": (np.full(600, 1e300), "not finite"),
    "integers": (np.zeros(600, np.int16), "holds int16, not floats: divide 16-bit samples by 32768"),
}
TAKERS = [lambda waveform: media.resample(waveform, 8000), media.paper_clips, media.fbank]


@pytest.mark.parametrize("taker", TAKERS, ids=["resample", "paper_clips", "fbank"])
@pytest.mark.parametrize("fault", WAVEFORMS)
def test_a_bad_waveform_is_refused(fault, taker):
    waveform, message = WAVEFORMS[fault]
    with pytest.raises(UserError, match=message):
        taker(waveform)


def test_without_the_libraries_only_reading_and_writing_is_missing(tmp_path, monkeypatch):
    path = wav(tmp_path, noise(1000))
    for name in ("av", "soundfile"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    importlib.reload(media)
    assert media.fbank(media.paper_clips(media.resample(noise(1000), 16000))).shape == (2998, 128)
    calls = [
        lambda: media.read_video(path, 2),
        lambda: media.has_audio(path),
        lambda: media.read_audio(path),
        lambda: media.read_audio(tmp_path / "a.mp4"),
        lambda: media.resample(noise(100), 8000),
        lambda: media.write_video(tmp_path / "a.mp4", numbered(2), 10),
    ]
    for call in calls:
        with pytest.raises(UserError, match="pip install av soundfile"):
            call()


def test_a_video_is_written_the_same_every_time(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    written = set()
    for number in range(8):
        media.write_video(tmp_path / f"{number}.mp4", frames, 4)
        written.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(written) == 1
