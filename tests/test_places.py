"""Places and names: outputs that cannot be written are refused before the work, and nothing that is there is harmed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tamp
from tamp import cli, files, packs, zoo
from tamp.errors import UserError


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with things in it that are no folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tamp, "load", lambda *given: pytest.fail("must not load before the place is checked"))
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


PLACES = {
    "a long name": ("x" * 300, "File name too long"),
    "a name too long for what is hidden beside it": ("x" * 240, "choose a shorter one"),
    "a long path": ("/".join(["y" * 200] * 30), "File name too long"),
    "a null": ("a\0b", "null"),
    "half a character": ("a\udc80", "utf-8"),
    "nobody's home": ("~nobody_such/x", "home directory"),
    "a link to itself": ("loop", "Symlink loop"),
}
FOLDERS = {
    "a file": ("file", "is not a folder"),
    "a fifo": ("fifo", "is not a folder"),
    "a device": ("/dev/null", "is not a folder"),
    "below a file": ("file/x", "Not a directory"),
}
COMMANDS = {
    "prune": ("prune", "mini-llava-next", "--preset", "magnitude", "--out"),
    "plan": ("plan", "mini-llava-next", "--preset", "wanda", "--out"),
    "evaluate": ("evaluate", "mini-llava-next", "--out"),
    "mask export": ("mask", "export", "mini-llava-next", "--out"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_leads_nowhere_is_refused_before_the_work(command, place, here, capsys):
    name, said = PLACES[place]
    assert run(*COMMANDS[command], name) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(os.listdir()) == ["fifo", "file", "loop"]


@pytest.mark.parametrize("place", FOLDERS)
def test_what_is_no_folder_is_never_replaced_by_one(place, here, capsys):
    name, said = FOLDERS[place]
    for more in ((), ("--overwrite",)):
        assert run(*COMMANDS["prune"], name, *more) == 2
        assert said in capsys.readouterr().err
    assert Path("file").read_text() == "precious"


def test_the_current_folder_and_home_are_not_replaced(here, monkeypatch):
    home = here / "people" / "me"
    home.mkdir(parents=True)
    (home / "mine").write_text("precious")
    monkeypatch.setenv("HOME", str(home))
    for place in (".", "..", "/", "~", "people"):
        with pytest.raises(UserError, match="is or holds the (current|home) folder"):
            files.check_free(place, overwrite=True)
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    assert files.check_free(".") == here / "empty"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody_such/x"])
def test_a_text_whose_name_leads_nowhere_is_kept_elsewhere(name):
    with pytest.raises(files.Kept, match="It was written to") as error:
        files.write_text(name, "worth hours")
    assert Path(str(error.value).split(" written to ")[1].removesuffix(" instead.")).read_text() == "worth hours"


def test_masks_do_not_take_the_place_of_a_device_or_folder(tmp_path):
    made = packs.pack([("a", tamp.masks.unstructured(tamp.masks.torch.rand(4, 8), 0.5))])
    for place in ("/dev/null", tmp_path):
        with pytest.raises(UserError, match="Choose another file|give the name of a file"):
            packs.write(made, place)
    assert not Path("/dev/null").is_file()
    assert packs.read(packs.write(made, tmp_path / "new" / "m.safetensors")).sparsity == 0.5
    assert os.listdir(tmp_path / "new") == ["m.safetensors"]


NAMES = ["x" * 5000, "x" * 300, "a\0b", "~nobody_such", "a\nb", ""]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:12])
def test_a_name_that_cannot_be_is_a_sentence_wherever_it_is_read(name, processor, tmp_path):
    calls = [
        lambda: tamp.verify(name or tmp_path),
        lambda: tamp.Plan.read(name),
        lambda: packs.read(name),
        lambda: tamp.calibration_set(name, processor),
        lambda: tamp.calibration_set([{"text": "a", "image": name or "x"}], processor),
        lambda: tamp.evaluate(None, None, name),
        lambda: tamp.evaluate(None, None, "pope", data=name or tmp_path / "x"),
        lambda: tamp.expand(name or tmp_path, tmp_path / "out"),
        lambda: tamp.load(name or tmp_path, device="cpu"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(UserError):
            call()
            pytest.fail(f"call {number} was accepted")


def test_home_is_filled_in_wherever_something_is_read(tmp_path, monkeypatch, processor):
    monkeypatch.setenv("HOME", str(tmp_path))
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    (tmp_path / "s.jsonl").write_text('{"question": "What?", "answer": "a", "image": "p.png"}')
    assert len(tamp.calibration_set("~/s.jsonl", processor, 1)) == 1
    assert len(tamp.conversations.questions("~/s.jsonl")[0].images) == 1
    (tmp_path / "m").mkdir()
    (tmp_path / "s.jsonl").rename(tmp_path / "m" / "s.jsonl")
    assert len(tamp.calibration_set("~/m/s.jsonl", processor, 1, media="~")) == 1
    shutil.copytree(zoo.folder("mini-llava-next"), tmp_path / "copied")
    assert tamp.load("~/copied", "cpu")[0].config.model_type == "llava_next"


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 3}', '{"settings": {}}'])
def test_a_damaged_table_is_named(text, tmp_path):
    from tamp.evaluation import retention_table

    settings = retention_table.Settings(model="m", calibration="c", chosen={})
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match="Choose another folder|choose another folder"):
        retention_table._folder(tmp_path, settings)
    (tmp_path / "cell.json").write_text(text)
    with pytest.raises(UserError, match="is not a finished cell"):
        retention_table._read(tmp_path / "cell.json")


def test_a_deleted_current_folder_is_a_sentence(tmp_path, monkeypatch, capsys):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    assert run("verify", tmp_path) == 2
    assert "The current folder was deleted" in capsys.readouterr().err


def test_a_name_in_unicode_is_one_in_a_locale_without_it(tmp_path):
    """Its bytes arrive as halves of characters, and are written as they were given."""
    code = "import sys; from tamp import files; files.write_text(files.check_file(sys.argv[1]), 'a')"
    surroundings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "ü😀"], env=surroundings, check=True)
    assert os.listdir(tmp_path) == ["ü😀"]
