"""Same picture, same pixels: from a file, its bytes, a PIL object or a column of ``datasets``, in every mode of PIL."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

import tamp
from tamp import conversations, records
from tamp.errors import UserError
from tamp.evaluation import scoring
from tamp.records import Question, picture

RAMP = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
PHOTO = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)


def turned(number: int) -> bytes:
    """Make a JPEG that is to be shown turned, by its EXIF data."""
    image = Image.fromarray(PHOTO[..., :3])
    exif = image.getexif()
    exif[0x0112] = number
    made = io.BytesIO()
    image.save(made, "JPEG", exif=exif)
    return made.getvalue()


def stored(image: Image.Image, form: str = "PNG", **settings) -> bytes:
    made = io.BytesIO()
    image.save(made, form, **settings)
    return made.getvalue()


RGBA = Image.fromarray(PHOTO)
RGB = RGBA.convert("RGB")
OPAQUE = {
    "RGB": stored(RGB),
    "L": stored(RGB.convert("L")),
    "1": stored(RGB.convert("1")),
    "palette": stored(RGB.quantize(16)),
    "CMYK": stored(RGB.convert("CMYK"), "JPEG"),
    "YCbCr": stored(RGB, "JPEG"),
    **{f"EXIF {number}": turned(number) for number in range(1, 9)},
}
TRANSPARENT = {
    "RGBA": stored(RGBA),
    "LA": stored(RGBA.convert("LA")),
    "palette with a hole": stored(RGB.quantize(16), transparency=3),
    "RGB with a hole": stored(RGB, transparency=tuple(PHOTO[0, 0, :3].tolist())),
    "L with a hole": stored(RGB.convert("L"), transparency=RGB.convert("L").getpixel((0, 0))),
}
DEEP = {
    "16 bit": stored(Image.fromarray(RAMP)),
    "16 bit, TIFF": stored(Image.fromarray(RAMP), "TIFF"),
    "16 bit, big end first": b"P5 24 16 65535\n" + RAMP.astype(">u2").tobytes(),
    "whole numbers": stored(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "real numbers": stored(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
}
ALL = OPAQUE | TRANSPARENT | DEEP


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", ALL)
def test_a_picture_gives_the_same_pixels_whatever_it_comes_as(kind, tmp_path):
    data = ALL[kind]
    (tmp_path / "p").write_bytes(data)
    expected = picture("p", tmp_path)
    for given in (tmp_path / "p", opened(data), {"bytes": data, "path": None}, {"bytes": None, "path": tmp_path / "p"}):
        assert same(picture(given), expected)
    assert picture(expected) is expected, "a second time changes nothing"
    loaded = opened(data)
    loaded.load()
    assert same(picture(loaded), expected) and same(picture(loaded.copy()), expected)


@pytest.mark.parametrize("kind", OPAQUE)
def test_opaque_pictures_are_what_transformers_loads(kind, tmp_path):
    (tmp_path / "p").write_bytes(OPAQUE[kind])
    assert same(picture(tmp_path / "p"), load_image(str(tmp_path / "p")))


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_shows_white_as_in_the_processors_of_transformers(kind):
    data = TRANSPARENT[kind]
    assert np.array_equal(np.asarray(picture(opened(data))), convert_to_rgb(opened(data), return_numpy=True))


def test_a_hole_hides_its_colour():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 255, 255))
    assert list(picture(clear).getdata()) == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_keeps_its_upper_eight_bits(kind):
    image = opened(DEEP[kind])
    assert image.mode not in ("L", "RGB")
    assert np.array_equal(np.asarray(picture(image)), np.repeat((RAMP >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.float32([0, 0.25, 1]), [0, 64, 255]),
        (np.float32([0, 99.6, 255]), [0, 100, 255]),
        (np.float32([-1, 0, 1]), [0, 128, 255]),
        (np.float32([1e9, 1e9, 1e9]), [0, 0, 0]),
        (np.int32([0, 100, 255]), [0, 100, 255]),
        (np.int32([0, 300, 65535]), [0, 1, 255]),
        (np.int32([-5, 0, 5]), [0, 128, 255]),
        (np.uint16([0, 100, 255]), [0, 0, 0]),  # 16 bit are 16 bit, however dark
    ],
)
def test_the_range_that_grey_levels_count_in(levels, expected):
    assert np.asarray(picture(Image.fromarray(levels[None])))[0, :, 0].tolist() == expected


def test_a_hole_in_deep_grey_is_white():
    image = opened(stored(Image.fromarray(RAMP), transparency=int(RAMP[0, 0])))
    assert picture(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no.png", r"There is no image .*no\.png"),
        ("bad.png", r"bad\.png is not a readable image"),
        ("half.png", r"half\.png is not a readable image"),
        ("x" * 5000, "is not a readable image"),
        ({"bytes": b"no", "path": None}, "The picture is not a readable image"),
        ({"bytes": "no"}, "path of a file, a PIL picture or .*not dict"),
        ({}, "not dict"),
        (3, "not int"),
        (Image.fromarray(np.float32([[0, np.nan]])), "not finite"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(given, message, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    (tmp_path / "half.png").write_bytes(ALL["RGBA"][:-400])
    with pytest.raises(UserError, match=message):
        picture(given, tmp_path)


def test_a_picture_of_too_many_pixels_is_refused_with_its_record(tmp_path, processor):
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    (tmp_path / "s.jsonl").write_text(json.dumps({"image": "bomb.png", "question": "q", "answer": "a"}))
    with pytest.raises(UserError, match=r"Record 0: .*bomb\.png is not a readable image: .*limit"):
        tamp.calibration_set(tmp_path / "s.jsonl", processor, n=1)


@pytest.mark.parametrize("kind", ["EXIF 6", "RGBA", "16 bit", "CMYK"])
def test_calibration_and_evaluation_see_the_same(kind, tmp_path, processor):
    """One record as a file, in every way that ``datasets`` keeps pictures, and as a question made by hand."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "p").write_bytes(ALL[kind])
    words = {"question": "where ?", "answer": "red"}
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": "p", **words}))
    one = {"bytes": ALL[kind], "path": None}
    columns = {
        "column": datasets.Image(),
        "undecoded": datasets.Image(decode=False),
        "list": datasets.List(datasets.Image()),
        "plain": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
    }
    for name, feature in columns.items():
        features = datasets.Features(
            {"image": feature, "question": datasets.Value("string"), "answer": datasets.Value("string")}
        )
        record = {"image": [one] if name == "list" else one, **words}
        datasets.Dataset.from_list([record], features=features).save_to_disk(str(tmp_path / name))
    expected = conversations.encode(processor, "<image> where ?", [picture(tmp_path / "p")])["pixel_values"]
    for source in (tmp_path / "set.jsonl", *(tmp_path / name for name in columns)):
        assert torch.equal(tamp.calibration_set(source, processor, n=1)[0]["pixel_values"], expected)
        prepared = scoring.prepare(processor, source)
        assert torch.equal(prepared.groups[0].prefix["pixel_values"], expected)
    by_hand = Question(task="t", images=(opened(ALL[kind]),), text="where ?", answer="red", choices=())
    assert torch.equal(scoring.prepare(processor, [by_hand]).groups[0].prefix["pixel_values"], expected)


def test_a_column_of_pictures_is_not_decoded_before_its_records_are_drawn(tmp_path):
    datasets = pytest.importorskip("datasets")
    broken = [{"image": {"bytes": b"no", "path": None}, "question": "q", "answer": "a"}]
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    datasets.Dataset.from_list(broken, features=features).save_to_disk(str(tmp_path / "s"))
    with pytest.raises(UserError, match="Record 0: The picture is not a readable image"):
        conversations.questions(tmp_path / "s")
    assert records.read(tmp_path / "s", "set")[0]["image"]["bytes"] == b"no"
