"""What the explorable figures show of a model's inside: one walk over the example of the book and a calibration set.

`tests/benchmarks/figure_data.py` calls these and writes what they return. Numbers are rounded to what can be seen.
"""

import base64
import io
import wave
from dataclasses import dataclass, field

import answers
import numpy as np
import svg
import torch
from PIL import Image
from torch import Tensor

import tamp
from tamp import conversations, criteria, diversity, masks, media, models, planning, selection, updates, walk
from tamp.evaluation import figures, results

QUESTION = 5
"""Which of the example's questions is followed."""

BLOCK = 15
"""The block in the middle of smol-llava-next."""

ALIKE = 0.9
WIDTH = 12
N_SAMPLES, SEED = 16, 42  # those of the chapters


@dataclass
class Seen:
    """What one walk kept.

    Attributes:
        words: tokens of the example as text, without those of the picture.
        first: place of the picture's first token.
        codes: (T,), modality of the example's tokens.
        outputs: outputs of the linears of ``BLOCK`` for the example, (T, out).
        attention: (T,), attention of its last token there.
        squares: linear to (blocks, 2): sum of squared inputs of the samples' words, and of all their tokens.
        tokens: share of words among the samples' tokens.
        hessian: of o_proj in ``BLOCK``, (in, in), over the samples.
        weight: of that linear, (out, in).
    """

    words: list[str]
    first: int
    codes: Tensor
    shape: tuple[tuple[int, int], tuple[int, int]]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None
    squares: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: float = 0.0
    hessian: Tensor | None = None
    weight: Tensor | None = None


def word(token: str) -> str:
    """Write a token of the tokenizer as it is read."""
    known = {"<|im_start|>": "‹start›", "<|im_end|>": "‹end›", "Ċ": "↵"}
    return known.get(token, token.replace("Ġ", "").replace("Ċ", "↵"))


def look(n_samples: int = N_SAMPLES) -> Seen:
    """Walk the example, and calibration samples behind it, through smol-llava-next."""
    model, processor = tamp.load(answers.MODEL, device="cpu")
    question = answers.asked()[QUESTION]
    messages = conversations.dialogue(question.text, question.answer, question.images)
    example = conversations.process(processor, messages)
    samples = tamp.calibration_set(answers.BENCHMARK, processor, n_samples, SEED)
    captured = walk.capture(model, [example, *samples], progress=False)
    codes = captured[0].modality[0]
    spelled = processor.tokenizer.convert_ids_to_tokens(example["input_ids"][0])
    words = [word(token) for token, code in zip(spelled, codes) if code == models.TEXT]
    shape = figures.picture_grids(model, question.images[0].size[::-1])
    seen = Seen(words, int((codes == models.VISUAL).nonzero()[0]), codes, shape)
    counts = [(sample.modality == models.TEXT).sum().item() for sample in captured[1:]]
    seen.tokens = sum(counts) / sum(sample.modality.numel() for sample in captured[1:])
    hessian = None
    for step in walk.walk(model, captured, attention=True):
        for row in step:
            if row.sample == 0:
                if step.position == BLOCK:
                    seen.attention, seen.outputs = (
                        row.attention,
                        {name: each.clone() for name, each in row.outputs.items()},
                    )
                continue
            for name, inputs in row.inputs.items():
                square = inputs.float().square().sum(1, dtype=torch.float64)
                found = seen.squares.setdefault(name.split(".")[-1], np.zeros((len(models.blocks(model)), 2)))
                found[step.position] += square[row.codes == models.TEXT].sum().item(), square.sum().item()
            if step.position == BLOCK:
                inputs = row.inputs["self_attn.o_proj"]
                hessian = hessian or criteria.Hessian(inputs.shape[1])
                hessian.add(inputs)
        if step.position == BLOCK:
            seen.weight = step.linears["self_attn.o_proj"].weight.detach().float().clone()
    seen.hessian = hessian.value()
    return seen


def shown(seen: Seen) -> dict:
    """Return what figures need to show the example's tokens."""
    picture = answers.asked(1)[0].images[0]
    return {
        "picture": svg.picture_uri(picture),
        "words": seen.words,
        "first": seen.first,
        "base": seen.shape[0],
        "full": seen.shape[1],
    }


def who_votes(seen: Seen) -> dict:
    """Return which tokens of the example look alike, and the words' share of the vote of every linear."""
    units = diversity.unit(seen.outputs["mlp.gate_proj"])
    alike = (units @ units.T > ALIKE).numpy()
    groups: dict[float, list[str]] = {}
    for name, found in seen.squares.items():
        groups.setdefault(round(float((found[:, 0] / found[:, 1]).mean()), 4), []).append(name)
    return {
        **shown(seen),
        "threshold": ALIKE,
        "linear": f"gate_proj of block {BLOCK}",
        "alike": base64.b64encode(np.packbits(alike)).decode(),
        "tokens": round(seen.tokens, 4),
        "shares": [
            {"linears": [name.removesuffix("_proj") for name in names], "share": share}
            for share, names in groups.items()
        ],
        "n_samples": N_SAMPLES,
        "start": int(alike.sum(1).argmax()),  # the token with the most company
    }


def picks_in_order(graph: selection.Graph) -> tuple[list[int], list[float]]:
    """Pick from the graph of one linear as :func:`tamp.selection.pick` does, and return the order and MMD^2 after each."""
    kernel, gain = (graph.cosine[0].double() - 1).exp().fill_diagonal_(1), graph.gain[0].clone()
    picked, distances = [], []
    while not distances or (distances[-1] >= graph.bound[0] and len(picked) < len(gain)):
        open_gain = gain.clone()
        open_gain[picked] = -torch.inf
        best = int(open_gain.argmax())
        picked.append(best)
        gain[graph.neighbours[0, best]] -= graph.inhibition[0, best] * gain[best].clamp(min=0)
        part = kernel[:, picked]
        distances.append((kernel.mean() + part[picked].mean() - 2 * part.mean()).item())
    return picked, distances


def step_through_picks(seen: Seen) -> dict:
    """Return AMIA's picks of the example for one linear, in order, with the distance after each."""
    outputs = seen.outputs["self_attn.o_proj"]
    graph = selection.token_graph([outputs], seen.attention, seen.codes)
    picked, distances = picks_in_order(graph)
    assert sorted(picked) == selection.amia(outputs, seen.attention, seen.codes).nonzero().flatten().tolist()
    heat = 100 * (seen.attention / seen.attention.sort().values[-2]).sqrt().clamp(
        max=1
    )  # the first token has half of all
    return {
        **shown(seen),
        "title": f"o_proj of block {BLOCK}, {len(seen.codes)} tokens. The shade is the last token's attention.",
        "picks": picked,
        "neighbours": graph.neighbours[0].tolist(),
        "mmd": [round(value, 4) for value in distances],
        "bound": round(graph.bound[0].item(), 4),
        "attention": heat.round().int().tolist(),
        "start": len(picked),
    }


def one_row(seen: Seen) -> dict:
    """Return twelve neighbouring weights of a row, and what each method does to them if six are to go.

    The inputs are those that resemble each other most, and the row is one of typical errors: those that are nearest to the
    medians over all rows, among rows where magnitude and Wanda differ in two weights or more and the errors are in the
    order of their medians.
    """
    norms = seen.hessian.diagonal().sqrt()
    alike = seen.hessian.abs() / norms / norms[:, None]
    starts = range(0, len(norms) - WIDTH + 1, WIDTH)
    at = max(starts, key=lambda start: float(alike[start : start + WIDTH, start : start + WIDTH].mean()))
    part = slice(at, at + WIDTH)
    hessian, weights, drop = seen.hessian[part, part], seen.weight[:, part], WIDTH // 2
    square = hessian.diagonal()

    def error(new: Tensor, old: Tensor) -> float:
        apart = new - old
        return ((apart @ hessian @ apart.T) / (old @ hessian @ old.T)).sqrt().item()

    def pruned(row: Tensor) -> dict[str, Tensor]:
        chosen = {
            name: masks.unstructured(metric, drop=drop)
            for name, metric in (("magnitude", row.abs()), ("wanda", criteria.wanda(row, square)))
        }
        return {
            **{name: row.masked_fill(mask, 0) for name, mask in chosen.items()},
            "sparsegpt": criteria.sparsegpt(row, hessian, drop=drop),
            "update": updates.least_squares(row, chosen["wanda"], hessian, damping=0.01, steps=WIDTH),
        }

    rows = [weights[i : i + 1] for i in range(len(weights))]
    made = [pruned(row) for row in rows]
    errors = np.array([[error(new, row) for new in each.values()] for row, each in zip(rows, made)])
    differ = np.array([int(((each["magnitude"] == 0) & (each["wanda"] != 0)).sum()) >= 2 for each in made])
    ordered = (np.diff(errors, axis=1)[:, :2] < 0).all(1)  # as the medians are
    far = np.abs(errors - np.median(errors, 0)).sum(1) + np.where(differ & ordered, 0, np.inf)
    best = int(far.argmin())
    says = {
        "magnitude": ("Magnitude", 0, "the six smallest weights go."),
        "wanda": ("Wanda", 2, "the six smallest products of weight and input go."),
        "sparsegpt": ("SparseGPT", 2, "what an earlier weight did is taken over by those to its right."),
        "update": (
            "Wanda + update",
            2,
            "the same six go as with Wanda, and all others move to make up for them.",
        ),
    }
    return {
        "inputs": list(map(str, range(at, at + WIDTH))),
        "place": f"row {best} of o_proj in block {BLOCK}",
        "weight": [round(value, 4) for value in weights[best].tolist()],
        "norm": [round(value, 4) for value in square.sqrt().tolist()],
        "hessian": [[round(value, 5) for value in line] for line in hessian.tolist()],
        "methods": {
            name: {
                "label": label,
                "looks": looks,
                "says": said,
                "moves": name in ("sparsegpt", "update"),
                "weight": [round(value, 4) for value in made[best][name][0].tolist()],
                "dropped": [value == 0 for value in made[best][name][0].tolist()],
                "error": round(float(errors[best, place]), 4),
                "typical": round(float(np.median(errors[:, place])), 4),
            }
            for place, (name, (label, looks, said)) in enumerate(says.items())
        },
        "start": "wanda",
    }


def plan_sliders() -> dict:
    """Return sizes and DAS scores of the linears of two models: one recorded for chapter 2, one as that chapter runs it."""
    recorded = results.recorded("chapters/02_sparsity_allocation")
    model, processor = tamp.load("mini-llava-next", device="cpu")
    samples = tamp.calibration_set("mini-vqa", processor, N_SAMPLES, SEED)
    recipe = tamp.Recipe.preset("das")
    scores = planning.score(model, walk.capture(model, samples, progress=False), recipe, False)
    sizes = [linear.weight.numel() for linear in models.all_linears(model).values()]
    kinds, n = recorded["kinds"], len(recorded["kinds"])
    made = {
        "smol-llava-next": {"sizes": recorded["sizes"], "scores": recorded["scores"]},
        "mini-llava-next": {"sizes": sizes, "scores": [round(score, 4) for score in scores.values()]},
    }
    return {
        "models": {name: {"kinds": kinds, "blocks": len(each["sizes"]) // n, **each} for name, each in made.items()},
        "colors": list(figures.LINEARS),
        "start": {"target": 60, "room": 10},
    }


POLICIES = ("plain", "paper")
PATCH = 16
"""Steps, and bands, that an audio token covers."""
SOUNDS = {"sound": figures.MODALITIES["audio"], "silence": "#9aa1a9"}


def clip() -> tuple[conversations.Question, list[dict]]:
    """Return the question of chapter 6 about its clip, and the conversation that holds both."""
    made = conversations.questions("smol-avqa", 64, seed=SEED)
    counts = [each for each in made if each.task == "sounds"]
    video = min(counts, key=lambda each: abs(int(each.answer) - 3)).videos
    asked = next(each for each in made if each.videos == video and each.task == "first")
    return asked, conversations.dialogue(asked.text, asked.answer, **asked.media)


def silent(sound: Tensor) -> Tensor:
    """Mark the audio tokens that see nothing but padding, (steps * heights,) bool: their patch is one number throughout."""
    steps, heights = len(sound) // PATCH, sound.shape[1] // PATCH
    patches = sound[: PATCH * steps].reshape(steps, PATCH, heights, PATCH)
    return (patches.amax((1, 3)) == patches.amin((1, 3))).flatten()


def spectrogram(sound: Tensor) -> str:
    """Draw a filter bank, low tones below."""
    width = min(240, len(sound))
    mel = torch.nn.functional.adaptive_avg_pool2d(sound.T.flip(0)[None, None], (48, width))[0, 0]
    return svg.picture_uri(Image.fromarray((255 * (mel - mel.min()) / (mel.max() - mel.min())).byte().numpy()), 16)


def heard(path) -> str:
    """Return the sound of a clip as a data URI, 8 bits and half the rate."""
    waveform = media.read_audio(path)
    halved = waveform[: len(waveform) // 2 * 2].reshape(-1, 2).mean(1)
    held = io.BytesIO()
    with wave.open(held, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(1)
        out.setframerate(media.RATE // 2)
        out.writeframes(np.uint8(np.clip(128 + 127 * halved / abs(halved).max(), 0, 255)).tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(held.getvalue()).decode()}"


def policy_of(sample: dict, codes: Tensor, share: Tensor) -> dict:
    """Return what the figure shows of one policy: the share of linears that pick each token, in per cent, and sums."""
    sound = sample["input_features"][0]
    hear = (100 * share[codes == models.AUDIO]).round()
    seen = (100 * share[codes == models.VISUAL]).round()
    padding = silent(sound)
    return {
        "sound": spectrogram(sound),
        "seconds": round(len(sound) * media.HOP / media.RATE, 2),
        "padding": round(1 - padding.float().mean().item(), 4),  # where it begins, as a share of the length
        "tokens": {
            "words": int((codes == models.TEXT).sum()),
            "frames": len(seen),
            "sound": int((~padding).sum()),
            "silence": int(padding.sum()),
        },
        "picks": {
            "words": round(share[codes == models.TEXT].sum().item(), 2),
            "frames": round(seen.sum().item() / 100, 2),
            "sound": round(hear[~padding].sum().item() / 100, 2),
            "silence": round(hear[padding].sum().item() / 100, 2),
        },
        "seen": seen.int().tolist(),
        "hear": hear.int().tolist(),
    }


def clip_picks() -> dict:
    """Return how often AMIA picks each token of chapter 6's clip, under both policies for the end of its sound."""
    model, processor = tamp.load("smol-videollama2", device="cpu")
    asked, messages = clip()
    amia, options = selection.TOKENS["amia"], tamp.Recipe.preset("amia").options
    found: dict[str, dict] = {}
    for policy in POLICIES:
        processor.audio_policy = policy
        sample = conversations.process(processor, messages)
        captured = walk.capture(model, [sample], progress=False)
        picked, linears = torch.zeros(captured[0].modality.numel()), 0
        for step in walk.walk(model, captured, attention=True):
            for row in step:
                (chosen,) = amia.choose([row], options)  # (linears, T)
                picked += chosen.sum(0)
                linears += len(chosen)
        found[policy] = policy_of(sample, captured[0].modality[0], picked / linears)
    return clip_shown(processor, sample, asked, found)


def clip_shown(processor, sample: dict, asked: conversations.Question, found: dict[str, dict]) -> dict:
    """Return the data of the figure, from what was found under each policy."""
    frames = (sample["pixel_values_videos"][0].permute(0, 2, 3, 1) + 1) / 2
    times = processor.num_frames // processor.downsample[0]
    strip = torch.cat(list(frames[:: processor.downsample[0]].clamp(0, 1)), 1)  # side by side
    return {
        "question": asked.text,
        "answer": asked.answer,
        "strip": svg.picture_uri(Image.fromarray((255 * strip).round().byte().numpy())),
        "times": times,
        "edge": round((processor.visual_tokens // times) ** 0.5),
        "audio": heard(asked.videos[0]),
        "heights": media.MELS // PATCH,
        "policies": found,
        "colors": {"frames": figures.MODALITIES["visual"], "words": figures.MODALITIES["text"], **SOUNDS},
        "start": "plain",
    }
