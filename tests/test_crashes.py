"""Crashes: what is killed, has no room or no place leaves nothing half-done, and the next run is not in its way."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kills
import pytest
import tiny

import tamp
from tamp import cache, checkpoint, cli, files, pruning, writing
from tamp.errors import UserError
from tamp.evaluation import compare, results


@pytest.fixture
def llama():
    return tiny.build("llama")[0]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_random_moments_everything_is_whole_or_absent_and_the_next_run_works(tmp_path):
    made = kills.main(["--tries", "4", "--seed", "1", "--only", "0", "1", "2", "--out", str(tmp_path)])
    for row in made["commands"]:
        assert {row[name] for name in ("unfinished", "lost", "failed", "stale")} == {0}, row
        assert row["tries"] == 4


def killed(code: str, ready: str) -> None:
    """Run code in a process that prints ``ready`` and waits, then kill it."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == ready
    process.kill()
    process.wait()


SCRATCH = """
import pathlib, time
from tamp import files
with files.scratch(pathlib.Path({!r})):
    print('in', flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path):
    target = tmp_path / "out[1]"
    killed(SCRATCH.format(str(target)), "in")
    (tmp_path / ".out[1].mine.tamp").mkdir()  # not a name of tamp's
    (tmp_path / ".out[1].csv.0123456789ab.tamp").mkdir()  # of another target
    assert len(names(tmp_path)) == 3
    with files.scratch(target) as living:
        with files.scratch(target) as other:
            assert living.is_dir() and other.is_dir()
        assert len(names(tmp_path)) == 3 and living.is_dir()
    assert names(tmp_path) == [".out[1].csv.0123456789ab.tamp", ".out[1].mine.tamp"]


def test_an_old_folder_whose_replacement_was_killed_between_two_renames_is_there_again(llama, tmp_path):
    tamp.save(llama, None, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.0123456789ab.tamp.old")
    (tmp_path / ".out.0123456789ab.tamp").mkdir()
    tamp.verify(tmp_path / "out")
    with pytest.raises(UserError, match="exists"):
        tamp.save(llama, None, tmp_path / "out")
    tamp.save(llama, None, tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_meanwhile_is_replaced_only_if_that_was_said(llama, tmp_path, overwrite):
    out = tmp_path / "out"
    said = contextlib.nullcontext() if overwrite else pytest.raises(files.Kept, match="out-2")
    with said, files.finished(out, overwrite) as beside:
        (beside / "mine").write_text("mine")
        out.mkdir()
        (out / "theirs").write_text("theirs")
    assert names(out) == (["mine"] if overwrite else ["theirs"])
    assert names(tmp_path) == (["out"] if overwrite else ["out", "out-2"])


def test_a_folder_that_cannot_be_moved_away_costs_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("")
    replace = os.replace

    def busy(source, target):
        if source == out:
            raise OSError(errno.EBUSY, "Device or resource busy")  # a place where something is mounted
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    with pytest.raises(files.Kept, match="busy.*out-2"), files.finished(out, overwrite=True) as beside:
        (beside / "new").write_text("")
    assert (names(out), names(tmp_path / "out-2")) == (["old"], ["new"])


def test_permissions_follow_the_umask(llama, tmp_path):
    before = os.umask(0o027)
    try:
        report = tamp.prune(llama, None, tamp.Recipe.preset("magnitude"), progress=False)
        tamp.save(llama, None, tmp_path / "out", report=report)
        report.plan.write(tmp_path / "plan.json")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640} and (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o640


def test_a_text_file_is_replaced_whole_through_links_and_nobody_elses(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "real.json").chmod(0o600)
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    (tmp_path / "link.tmp").write_text("mine")
    results.write_result(tmp_path / "link.json", {"new": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text())["new"] == 1
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link.tmp").read_text() == "mine" and len(names(tmp_path)) == 3


def test_a_text_file_that_cannot_be_written_keeps_its_old_text_and_the_new_one_lies_elsewhere(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_text("old")

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    monkeypatch.setattr(writing.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="No space left on device. It was written to .*/plan.json instead") as error:
        files.write_text(path, "new")
    kept = str(error.value).split(" written to ")[1].removesuffix(" instead.")
    assert path.read_text() == "old" and Path(kept).read_text() == "new"
    assert not list(tmp_path.glob(".plan*"))


def test_text_is_written_without_utf8_in_the_locale(tmp_path):
    write = f"tamp.files.write_text({str(tmp_path / 'a')!r}, '\\u2013 \\ud800')"
    code = f"import tamp.files, locale; {write}; print(locale.getpreferredencoding())"
    setting = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.check_output([sys.executable, "-c", code], env=setting, text=True)
    assert "UTF-8" not in said and (tmp_path / "a").read_bytes() == b"\xe2\x80\x93 \\ud800"


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "mini-llava-next", "--allocation", "uniform", "--out"),
        ("evaluate", "mini-llava-next", "--out"),
        ("compare", "mini-llava-next", "--out"),
        ("compare", "mini-llava-next", "--page"),
        ("demo", "--model", "mini-llava-next", "--out"),
        ("prune", "mini-llava-next", "--preset", "magnitude", "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, monkeypatch, capsys):
    for module in ("loading", "conversations"):
        monkeypatch.setattr(f"tamp.{module}.load" if module == "loading" else "tamp.calibration.calibration_set", None)
    monkeypatch.setattr(compare, "Runner", lambda *given: pytest.fail("work was begun"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place in ("/proc/x", "file/x"):
        assert cli.main([*command, place]) == 2
        assert "cannot be written" in capsys.readouterr().err
    if command[0] != "prune":
        assert cli.main([*command, str(tmp_path)]) == 2
        assert "is a folder" in (said := capsys.readouterr().err) or "Is a directory" in said
    assert names(tmp_path) == ["file"]


def test_what_save_pretrained_will_refuse_is_said_before_pruning(tmp_path, monkeypatch, capsys):
    model, processor = tamp.load("mini-llava-next", device="cpu")
    model.generation_config.temperature, model.generation_config.do_sample = 0.9, False  # as Vicuna was published
    monkeypatch.setattr("tamp.loading.load", lambda *given: (model, processor))
    monkeypatch.setattr(pruning, "prune", lambda *given, **settings: pytest.fail("pruned for nothing"))
    assert cli.main(["prune", "mini-llava-next", "--preset", "magnitude", "--out", str(tmp_path / "out")]) == 2
    assert "generation_config" in (said := capsys.readouterr().err) and "temperature" in said


def changed(folder, what: str) -> None:
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    if what == "config":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace("{", "{ ", 1))
    elif what == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif what == "shard":
        (folder / "model-2.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    elif what == "no files":
        manifest["files"] = {}
    elif what == "sparser":
        manifest["report"]["sparsity"] = 0.99
    elif what == "denser":
        manifest["report"]["sparsity"] = 0.4
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config", "config.json is not what was saved"),
        ("tokenizer", "tokenizer.json is missing"),
        ("shard", "model-2.safetensors was added"),
        ("no files", "lists no file of weights"),
        ("sparser", "says that 99.0000% .* zeros in all of the model's weights"),
        ("denser", "says that 40.0000% .* tamp.csv lists"),
    ],
)
def test_verify_finds(what, message, mini, tmp_path):
    model, processor = mini
    report = tamp.prune(model, None, tamp.Recipe.preset("magnitude", sparsity=0.5), progress=False)
    folder = tamp.save(model, processor, tmp_path / "out", report=report)
    tamp.verify(folder)
    (folder / "NOTES.md").write_text("mine, which nothing reads")
    tamp.verify(folder)
    changed(folder, what)
    with pytest.raises(UserError, match=message):
        tamp.verify(folder)


def test_a_damaged_model_in_the_cache_is_made_again(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TAMP_CACHE", str(tmp_path))
    asked = []

    def make(scratch, made):
        asked.append(made)
        llama.save_pretrained(made)

    folder = cache.made_once("model", make)
    assert cache.made_once("model", make) == folder and len(asked) == 1
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert cache.made_once("model", make) == folder and len(asked) == 2
    assert cache.whole(folder) and names(tmp_path) == ["model"]


def grid(out, methods=("magnitude",), **changes):
    settings = {
        "model": "mini-llava-next",
        "benchmark": "mini-vqa",
        "calibration": "mini-vqa",
        "n_questions": 4,
    } | changes
    return tamp.compare(
        tamp.Settings(**settings, n_samples=2), methods, [0.5], (0,), out=out, device="cpu", progress=False
    )


class Stub:
    """A runner that prunes nothing."""

    def __init__(self, settings, device):
        pass

    def __call__(self, cell):
        method, level, seed = cell
        scores = {
            "n_questions": 4,
            "accuracy": 0.5,
            "choice_accuracy": 0.5,
            "nll": 1.0,
            "tasks": {"a": 0.5},
            "correct": "a0",
        }
        return {"method": method, "level": level, "calibration_seed": seed, "seconds": 1.0, **scores}


def test_two_comparisons_do_not_record_in_one_file_at_once(tmp_path, monkeypatch):
    out, begun, go_on = tmp_path / "grid.json", threading.Event(), threading.Event()

    class Slow(Stub):
        def __call__(self, cell):
            begun.set()
            go_on.wait(30)
            return super().__call__(cell)

    monkeypatch.setattr(compare, "Runner", Slow)
    first = threading.Thread(target=grid, args=(out,))
    first.start()
    assert begun.wait(30)
    with pytest.raises(UserError, match="Another process is recording"):
        grid(out, ("wanda",))
    go_on.set()
    first.join()
    made = grid(out, ("wanda",))
    assert {cell["method"] for cell in made["cells"]} == {"dense", "magnitude", "wanda"}
    assert names(tmp_path) == ["grid.json"]


@pytest.mark.parametrize("what", ["model", "benchmark", "calibration"])
def test_a_comparison_does_not_go_on_with_other_files_of_the_same_name(what, shipped, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "Runner", Stub)
    model, processor = shipped
    model.save_pretrained(tmp_path / "model")
    for name in ("benchmark", "calibration"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    paths = {"model": str(tmp_path / "model")}
    paths |= {name: str(tmp_path / f"{name}.jsonl") for name in ("benchmark", "calibration")}
    made = grid(tmp_path / "grid.json", **paths)
    grid(tmp_path / "grid.json", **paths)
    if what == "model":
        weights = tmp_path / "model" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        weights.write_bytes(data)
    else:
        (tmp_path / f"{what}.jsonl").write_text('{"question": "a", "answer": "c"}\n')
    with pytest.raises(UserError, match=f"another {what} of the same name"):
        grid(tmp_path / "grid.json", **paths)
    del made["fingerprints"]  # as an earlier version wrote it
    (tmp_path / "grid.json").write_text(json.dumps(made))
    more = grid(tmp_path / "grid.json", ("magnitude", "wanda"), **paths)
    assert len(more["cells"]) == 3 and "fingerprints" not in json.loads((tmp_path / "grid.json").read_text())


SLOW_IMPORT = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers":
            print("importing", flush=True)
            try: time.sleep(60)
            except KeyboardInterrupt: raise ImportError("as some libraries do")
sys.meta_path.insert(0, Slow())
from tamp.cli import main
sys.exit(main(["verify", "nowhere"]))
"""


def test_ctrl_c_while_something_is_imported_is_one_sentence():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "importing"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "tamp: interrupted.\n")


def test_a_wait_for_the_network_is_announced(caplog):
    with cache.waiting("the hub", seconds=0.05):
        time.sleep(0.3)
    with cache.waiting("nothing", seconds=60):
        pass
    assert [record.getMessage() for record in caplog.records] == ["Waiting for the hub. Ctrl-C stops it."]
