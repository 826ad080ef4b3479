"""Frames and sound out of files, and sound as the filterbank that the BEATs encoder reads.

Files are read with PyAV, wav and flac with soundfile: the extra ``media``. Sound is mono at ``RATE``, between -1
and 1. Where a file is damaged or breaks off, what decodes is taken, with a warning; if nothing does, that is an error.
"""

import contextlib
import importlib
import itertools
import logging
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tamp.errors import UserError, whole

RATE = 16000
"""Samples per second of every waveform."""

WINDOW, HOP, TRANSFORM, MELS = 400, 160, 512, 128
"""Of the filterbank: samples in a window (25 ms), from one to the next (10 ms), in its Fourier transform; filters."""

log = logging.getLogger(__name__)


def frame_indices(count: int, frames: int) -> list[int]:
    """Return which of a video's ``count`` frames stand for it: the middles of ``frames`` equal parts, repeated if need be.

    Raises:
        UserError: if there is no frame to take, or none is asked for.
    """
    if (whole(count) or 0) < 1 or (whole(frames) or 0) < 1:
        raise UserError(f"At least one frame of at least one is taken, not {frames} of {count}.")
    return [round((count - 1) / frames * (part + 0.5) + 1e-6) for part in range(whole(frames))]


def read_video(path: str | Path, frames: int) -> np.ndarray:
    """Read the frames of a video at :func:`frame_indices`, upright; no others are kept in memory.

    Args:
        path: a video file.
        frames: how many to take.

    Returns:
        (frames, H, W, 3) uint8, RGB.

    Raises:
        UserError: if the file is missing, is not a media file, has no video track or no frame in it, or PyAV is missing.
    """
    frame_indices(1, frames)  # which refuses a number of frames before the file is opened
    count = None
    while True:
        picked, size, decoded, damage = {}, {}, 0, []
        with _opened(path) as container:
            stream = _track(container, "video", path)
            announced = stream.frames
            count = count or max(announced, 1)
            wanted = frame_indices(count, frames)
            for decoded, frame in enumerate(_decoded(container, stream, damage), 1):
                if decoded - 1 in wanted:
                    size = size or {"width": frame.width, "height": frame.height}  # others are scaled to the first
                    image = frame.to_ndarray(format="rgb24", **size)
                    picked[decoded - 1] = np.rot90(image, round(frame.rotation / 90))
        if not decoded:
            raise _no_frame(path)
        if decoded == count:
            break
        count = decoded  # the container does not know or is wrong: again, with the true number
    if damage or count < announced:
        log.warning("%s is damaged or breaks off: %d of its frames could be read", path, count)
    return np.stack([picked[index] for index in wanted])


def check(path: str | Path, kind: str) -> None:
    """Check the beginning of a file, before any work, for whether it can be read.

    Args:
        path: a file.
        kind: what is to be read of it, ``"video"`` or ``"audio"``.

    Raises:
        UserError: as :func:`read_video` and :func:`read_audio` do, unless the fault lies further on.
    """
    if kind == "audio":
        read_audio(path, seconds=0.1)
        return
    with _opened(path) as container:
        if next(_decoded(container, _track(container, kind, path), []), None) is None:
            raise _no_frame(path)


def has_audio(path: str | Path) -> bool:
    """Return whether a media file has a sound track.

    Raises:
        UserError: if the file is missing or is not a media file, or PyAV is missing.
    """
    with _opened(path) as container:
        return bool(container.streams.audio)


def read_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Read the sound of a video or sound file, all channels mixed into one.

    Args:
        path: a file; a wav or flac is read with soundfile (a flac only if it is whole), everything else with PyAV.
        seconds: read only the first so many.

    Returns:
        (n,) float32 at ``RATE``; steps of 1 / 32768 where PyAV reads.

    Raises:
        UserError: if the file is missing, is not a media file, has no sound track or no sample in it, or holds samples that
            are not finite, ``seconds`` is not positive, or the library is missing.
    """
    if seconds is not None and not (isinstance(seconds, int | float | np.number) and 0 < seconds < math.inf):
        raise UserError(f"Sound is read for a positive number of seconds, not {seconds!r}.")
    stop = None if seconds is None else max(round(seconds * RATE), 1)
    if Path(path).suffix.lower() not in (".wav", ".flac"):
        return _checked(_read_track(path, stop), str(path))
    soundfile = _library("soundfile")
    _check_file(path)
    try:
        with soundfile.SoundFile(path) as opened:
            rate = opened.samplerate
            # a little more, or the filter of the resampler would take the end for a sudden silence
            wanted = -1 if stop is None else math.ceil((seconds + 0.1) * rate)
            waveform = opened.read(wanted, dtype="float32", always_2d=True)  # (n, channels)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is not readable as wav or flac, convert it again: {error}") from error
    return resample(_checked(waveform, str(path), ndim=2).mean(1), rate)[:stop]


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Mix a waveform into one channel and bring it to ``RATE``.

    Args:
        waveform: (n,) or (n, channels), floating point.
        rate: samples per second it has now, a whole number up to a million.

    Returns:
        (ceil(n * RATE / rate),) float32.

    Raises:
        UserError: if waveform or rate are not as above, the waveform is empty or not finite, or PyAV is missing.
    """
    waveform = _checked(waveform, "The waveform", ndim=2)
    if whole(rate) is None or not 1 <= rate <= 1_000_000:
        raise UserError(f"A rate is a whole number of samples per second, 1 to 1,000,000, not {rate}.")
    if waveform.ndim == 2:
        if waveform.shape[1] > waveform.shape[0]:
            raise UserError(f"A waveform is (n,) or (n, channels), not {waveform.shape}: transpose it.")
        waveform = waveform.mean(1)  # (n,)
    if rate == RATE:
        return waveform
    padded = np.pad(waveform, (0, int(rate) // 10 + 32))  # what is shorter than its filter, the resampler swallows
    frame = _library("av").AudioFrame.from_ndarray(padded[None], "flt", "mono")
    frame.sample_rate = int(rate)
    return np.concatenate(list(_resampled([frame], "flt")))[: math.ceil(len(waveform) * RATE / rate)]


def paper_clips(
    waveform: np.ndarray, clips: int = 8, clip_seconds: float = 2.0, pad_seconds: float = 30.0
) -> np.ndarray:
    """Take short clips of a waveform, one after the other, then silence, as VideoLLaMA2 does for the sound of a video.

    Clip c begins at ``c / clips`` of the last possible beginning, so the end of a long waveform is in none. A waveform
    shorter than a clip is taken whole, as often as there are clips.

    Args:
        waveform: (n,) floating point at ``RATE``.
        clips: how many.
        clip_seconds: how long each is.
        pad_seconds: how long all of it is, with the silence.

    Returns:
        (pad_seconds * RATE,) float32.

    Raises:
        UserError: if the waveform is empty, not floating point or not finite, or the clips do not fit.
    """
    waveform = _checked(waveform, "The waveform")
    if clips < 1 or clip_seconds <= 0 or clips * clip_seconds > pad_seconds:
        raise UserError(f"{clips} clips of {clip_seconds} s do not fill {pad_seconds} s or less: change one of them.")
    # of the rounded duration, then exact, like the original: so that a beginning is never one sample away from its own
    step = Fraction(max(len(waveform) / RATE - clip_seconds, 0)) / clips
    begins = [int(clip * step * RATE) for clip in range(clips)]
    taken = np.concatenate([waveform[begin : begin + round(clip_seconds * RATE)] for begin in begins])
    padded = np.zeros(round(pad_seconds * RATE), np.float32)
    padded[: len(taken)] = taken
    return padded


def fbank(waveform: np.ndarray) -> Tensor:
    """Compute the log mel filterbank of Kaldi, with its defaults but for 128 filters and no dither.

    Samples count as 16-bit integers. From each window its mean is taken off; then come pre-emphasis by 0.97, a Hann window
    to the power 0.85, the power spectrum, triangular filters from 20 Hz to 8 kHz on the mel scale, and the logarithm.
    Digital silence lies at the logarithm of float32's epsilon, and so does filter 3, always: no line of the spectrum falls
    into it.

    Args:
        waveform: (n,) floating point at ``RATE``.

    Returns:
        (1 + (n - 400) // 160, 128) float32; the last samples may be in no window.

    Raises:
        UserError: if the waveform is shorter than 25 ms, not floating point or not finite.
    """
    samples = torch.from_numpy(_checked(waveform, "The waveform") * np.float32(32768))
    if len(samples) < WINDOW:
        raise UserError(f"A filterbank needs at least {WINDOW} samples (25 ms), not {len(samples)}: pad the waveform.")
    frames = samples.unfold(0, WINDOW, HOP)  # (frames, 400)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)  # the first sample counts as its own predecessor
    frames = (frames - 0.97 * before) * torch.from_numpy(np.hanning(WINDOW) ** 0.85).float()
    power = torch.fft.rfft(frames, n=TRANSFORM).abs().square()[:, :-1]  # (frames, 256): no filter reaches the last line
    return (power @ _mel_filters()).clamp(min=torch.finfo(torch.float32).eps).log()


def write_video(
    path: str | Path, frames: np.ndarray, rate: float, waveform: np.ndarray | None = None, audio_rate: int = RATE
) -> None:
    """Write an mp4 file that plays in browsers: H.264 (MPEG-4 if PyAV has no x264) with AAC sound.

    Args:
        path: the file, replaced if it exists.
        frames: (n, H, W, 3) uint8, RGB; H and W even.
        rate: frames per second.
        waveform: (n,) floating point, the sound, if there is any.
        audio_rate: samples per second of the sound; AAC knows the usual ones between 8 and 96 kHz.

    Raises:
        UserError: if frames, rate or waveform are not as above, the file cannot be written, or PyAV is missing.
    """
    frames = np.asarray(frames)
    even = frames.ndim == 4 and not frames.shape[1] % 2 and not frames.shape[2] % 2
    if not even or not frames.size or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise UserError(
            f"A video is written from frames (n, H, W, 3) in uint8, H and W even, not {frames.shape} in {frames.dtype}."
        )
    if not 0 < rate < math.inf:
        raise UserError(f"A video has a positive number of frames per second, not {rate}.")
    waveform = None if waveform is None else _checked(waveform, "The waveform")
    av = _library("av")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # without the second option the sound could come after the video instead of beside it
    options = {"movflags": "faststart", "max_interleave_delta": "0"}
    with _told(path, "cannot be written"), av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        video = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        if codec == "libx264":
            video.bit_rate = 0  # constant quality; looking ahead side by side, it would not write the same file twice
            video.options = {"crf": "18", "x264-params": "threads=1:sync-lookahead=0:rc-lookahead=0"}
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        sound = None if waveform is None else container.add_stream("aac", rate=audio_rate, layout="mono")
        if sound is not None:
            sound.bit_rate = 128000  # by default so little that tones do not survive
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(waveform[None], "flt", "mono")
            frame.sample_rate, frame.time_base, frame.pts = audio_rate, Fraction(1, audio_rate), 0
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))


def _mel_filters() -> Tensor:
    """Make triangles of equal width on the mel scale, (256, 128) float32."""
    lines = 1127 * np.log1p(np.arange(TRANSFORM // 2) * RATE / TRANSFORM / 700)  # (256,) mel of each line
    low, high = 1127 * np.log1p(np.array([20, RATE / 2]) / 700)
    corners = np.linspace(low, high, MELS + 2)  # left corner, peak and right corner of filter m are m, m + 1, m + 2
    place = (lines[:, None] - corners[:-2]) / (corners[1] - corners[0])  # (256, 128), 1 at the peak and 2 at the end
    return torch.from_numpy(np.maximum(1 - np.abs(place - 1), 0).astype(np.float32))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without the library it wraps
        raise UserError(f"Reading and writing media needs {name}: pip install av soundfile.") from error


def _checked(waveform: np.ndarray, what: str, ndim: int = 1) -> np.ndarray:
    """Return a waveform of at most ``ndim`` dimensions as float32."""
    waveform = np.asarray(waveform)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise UserError(f"{what} holds {waveform.dtype}, not floats: divide 16-bit samples by 32768.")
    if not 1 <= waveform.ndim <= ndim:
        raise UserError(f"{what} has the shape {waveform.shape}: (n,) is expected{' or (n, channels)' * (ndim == 2)}.")
    if not waveform.size:
        raise UserError(f"{what} is empty: there is no sound in it to use.")
    with np.errstate(over="ignore"):
        waveform = waveform.astype(np.float32, copy=False)
    if not np.isfinite(waveform).all():
        raise UserError(f"{what} holds samples that are not finite; replace them, for instance with numpy.nan_to_num.")
    return waveform


def _check_file(path: str | Path) -> None:
    if not os.path.isfile(path):  # which takes a name that is too long, or holds a null
        raise UserError(f"There is no file {path!s:.200}.")


def _no_frame(path: str | Path) -> UserError:
    return UserError(f"{path} has no readable frame in its video track: convert it again, or use another file.")


@contextlib.contextmanager
def _told(path: str | Path, problem: str) -> Iterator[None]:
    """Report what FFmpeg refuses in a sentence."""
    try:
        yield
    except _library("av").FFmpegError as error:
        raise UserError(f"{path} {problem}: {error.strerror}.") from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a media file, a PyAV container."""
    av = _library("av")
    _check_file(path)
    # "file:" or a colon in the name would be taken for a protocol; tags are not always in UTF-8
    told = _told(path, "is not readable as video or sound")
    with told, av.open(f"file:{path}", metadata_errors="replace") as container:
        if container.format.name == "tty":
            raise UserError(f"{path} is not readable as video or sound: it is text, which FFmpeg would film.")
        yield container


def _track(container, kind: str, path: str | Path):
    """Return the track that a player would take."""
    track = container.streams.best(kind)
    if track is None:
        hint = "use another file" if kind == "video" else "use its frames alone, or another file; has_audio tells"
        raise UserError(f"{path} has no {'video' if kind == 'video' else 'sound'} track: {hint}.")
    return track


def _decoded(container, stream, damage: list) -> Iterator[Any]:
    """Decode a track frame by frame; what does not decode is left out and noted."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except _library("av").error.InvalidDataError as error:
            damage.append(error)


def _resampled(frames: Iterable, form: str) -> Iterator[np.ndarray]:
    """Bring PyAV's audio frames to ``RATE`` and one channel, as pieces (n,)."""
    av = _library("av")
    for _, alike in itertools.groupby(frames, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        resampler = av.AudioResampler(form, "mono", RATE)
        for frame in itertools.chain(alike, [None]):  # None brings what is left in the filter
            yield from (piece.to_ndarray()[0] for piece in resampler.resample(frame))


def _read_track(path: str | Path, stop: int | None) -> np.ndarray:
    """Read the sound track of a file with PyAV, (n,) float32."""
    pieces, length, damage = [], 0, []
    with _opened(path) as container:
        stream = _track(container, "audio", path)
        # an mp4 knows where its sound ends and the padding of the codec begins; in other files this is an estimate
        exact = "mp4" in container.format.name and stream.duration
        end = stream.duration * stream.time_base if exact else math.inf  # seconds
        for piece in _resampled(_until(_decoded(container, stream, damage), end), "s16"):
            pieces.append(piece)
            length += len(piece)
            if stop is not None and length >= stop:
                break
    if damage:
        log.warning("%s is damaged or breaks off: %.1f s of its sound could be read", path, length / RATE)
    return np.concatenate([*pieces, np.zeros(0, np.int16)])[:stop].astype(np.float32) / 32768


def _until(frames: Iterable, end: Fraction | float) -> Iterator[Any]:
    """Cut what comes after ``end`` seconds off PyAV's audio frames."""
    done = 0
    for frame in frames:
        room = frame.samples if end == math.inf else round(end * frame.sample_rate) - done
        if room <= 0:
            return
        if room < frame.samples:
            samples = frame.to_ndarray()  # (channels, n), or (1, n * channels)
            kept = np.ascontiguousarray(samples[:, : room * samples.shape[1] // frame.samples])
            rate = frame.sample_rate
            frame = _library("av").AudioFrame.from_ndarray(kept, frame.format.name, frame.layout.name)
            frame.sample_rate = rate
        done += frame.samples
        yield frame
