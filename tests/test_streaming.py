"""A run that is stopped goes on, ends as if it had not been, and does not mix with another."""

import copy
import json
import re

import host_memory
import kills
import pretend
import pytest
import tiny
import torch
from safetensors.torch import load_file

import tamp
from tamp import checkpoint, cli, files, models, pruning, streaming
from tamp.errors import UserError
from tamp.recipe import Recipe

RECIPE = Recipe.preset("tamp", sparsity=0.5)


class Stop(Exception):
    """What stops a run."""


def stop_at(model, block: int, error: BaseException):
    """Let a block of a model raise an error once its predecessors are pruned."""
    stack = list(models.blocks(model).values())

    def fail(*_):
        if (stack[block - 1].mlp.down_proj.weight == 0).any():
            raise error

    return stack[block].register_forward_hook(fail)


def stopped(out, error: BaseException | None = None, block: int = 2, **changes):
    """Stop a run at a block, and return a fresh model and samples."""
    model, samples = tiny.build("llama")
    stop_at(model, block, error or Stop())
    with pytest.raises(type(error) if error and not isinstance(error, torch.OutOfMemoryError) else Exception) as caught:
        tamp.prune(model, samples, RECIPE, progress=False, out=out, **changes)
    return *tiny.build("llama"), caught.value


@pytest.fixture(scope="module")
def right():
    model, samples = tiny.build("llama")
    return model, pruning.prune(model, samples, RECIPE, progress=False)


def assert_right(folder, right) -> None:
    model, report = right
    manifest = tamp.verify(folder)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    expected = report.summary()
    for name in set(expected) - {"seconds", "peak_memory_bytes"}:
        assert manifest["report"][name] == expected[name], name
    assert not folder.with_name(f"{folder.name}.partial").exists()


def test_a_streamed_run_saves_what_an_ordinary_one_saves(tmp_path, right):
    model, samples = tiny.build("llama")
    report = tamp.prune(model, samples, RECIPE, progress=False, out=tmp_path / "out")
    assert_right(tmp_path / "out", right)
    assert repr(report.rows) == repr(right[1].rows)
    checkpoint.save(right[0], None, tmp_path / "ordinary", right[1])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "ordinary").iterdir()}
    assert files.sha256(tmp_path / "out/model.safetensors") == files.sha256(tmp_path / "ordinary/model.safetensors")
    assert torch.equal(model.state_dict()["lm_head.weight"], right[0].lm_head.weight)
    model(**samples[0])  # its weights are those of files that are gone


@pytest.mark.parametrize("block", [1, 2])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, right, block):
    out = tmp_path / "out"
    model, samples, error = stopped(out, block=block)
    assert any(f"{block} of 3 blocks are finished" in note for note in error.__notes__)
    assert not out.exists() and len(list((tmp_path / "out.partial").glob("*.safetensors"))) == block
    report = tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True)
    assert_right(out, right)
    assert repr(report.rows) == repr(right[1].rows)


def test_a_stopped_run_goes_on_on_a_device(tmp_path, right):
    out = tmp_path / "out"
    with pretend.device():
        model, samples, _ = stopped(out, device="cuda", states="host")
        tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True, device="cuda", states="host")
    assert_right(out, right)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("weights", "another model \\(its weights\\)"),
        ("samples", "another set of samples"),
        ("recipe", "another sparsity in the recipe.*\\(0.5, now 0.6\\)"),
        ("option", "another das_cap in the recipe"),
        ("plan", "another plan"),
        ("device", "another type of device \\(cpu, now cuda\\)"),
        ("versions", "another transformers"),
    ],
)
def test_another_run_is_not_continued(tmp_path, monkeypatch, right, what, said):
    out = tmp_path / "out"
    model, samples, _ = stopped(out)
    recipe, more = RECIPE, {}
    if what == "weights":
        model.lm_head.weight.data[0, 0] += 1
    elif what == "samples":
        samples = samples[::-1]
    elif what == "recipe":
        recipe = Recipe.preset("tamp", sparsity=0.6)
    elif what == "option":
        recipe = Recipe.preset("tamp", sparsity=0.5, das_cap=0.2)
    elif what == "plan":
        more["plan"] = right[1].plan
    elif what == "device":
        monkeypatch.setattr(streaming.onloading, "resolve_device", lambda device: torch.device("cuda", 0))
        more["device"] = "cuda"
    elif what == "versions":
        monkeypatch.setattr(streaming, "versions", lambda: {"torch": torch.__version__, "transformers": "0"})
    before = sorted(path.name for path in (tmp_path / "out.partial").iterdir())
    with pytest.raises(UserError, match=said):
        tamp.prune(model, samples, recipe, progress=False, out=out, resume=True, **more)
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir()) == before


def test_a_function_that_was_rewritten_is_another_one(tmp_path):
    def recipe(constant: str) -> Recipe:
        known = {}
        exec(f"def mine(weight, square):\n    return max(map(lambda w: {constant} * w, [weight.abs()]))", known)
        return Recipe(allocation="uniform", tokens="all", criterion=known["mine"])

    model, samples = tiny.build("llama")
    stop_at(model, 2, Stop())
    with pytest.raises(Stop):
        tamp.prune(model, samples, recipe("2"), progress=False, out=tmp_path / "out")
    with pytest.raises(UserError, match="another code of the criterion in the recipe"):
        tamp.prune(*tiny.build("llama"), recipe("3"), progress=False, out=tmp_path / "out", resume=True)
    tamp.prune(*tiny.build("llama"), recipe("2"), progress=False, out=tmp_path / "out", resume=True)


def test_a_stopped_run_is_not_lost_by_forgetting_to_resume(tmp_path, right):
    out = tmp_path / "out"
    model, samples, _ = stopped(out)
    with pytest.raises(UserError, match="2 of 3 blocks of a run that was stopped"):
        tamp.prune(model, samples, RECIPE, progress=False, out=out)
    tamp.prune(model, samples, RECIPE, progress=False, out=out, overwrite=True)
    assert_right(out, right)
    with pytest.raises(UserError, match="exists"):
        tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True)
    with pytest.raises(UserError, match="give out too"):
        tamp.prune(model, samples, RECIPE, progress=False, resume=True)


def test_only_one_process_prunes_to_a_folder(tmp_path):
    model, samples = tiny.build("llama")
    (tmp_path / "out.partial").mkdir()
    with files.locked(tmp_path / "out.partial"), pytest.raises(UserError, match="Another process"):
        tamp.prune(model, samples, RECIPE, progress=False, out=tmp_path / "out")


def test_a_damaged_or_foreign_block_is_named(tmp_path):
    out = tmp_path / "out"
    model, samples, _ = stopped(out)
    path = tmp_path / "out.partial/block-001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="block-001.safetensors is damaged"):
        tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True)
    path.write_bytes(whole.replace(json.loads(whole[8:].split(b"}}")[0] + b"}}") and b'"run":"', b'"ran":"'))
    with pytest.raises(UserError, match="of another run"):
        tamp.prune(copy.deepcopy(tiny.build("llama")[0]), samples, RECIPE, progress=False, out=out, resume=True)


def test_a_full_disk_stops_a_run_that_goes_on_later(tmp_path, monkeypatch, right):
    out, save = tmp_path / "out", streaming.save_file

    def full(tensors, path, metadata):
        if "block-001" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    model, samples = tiny.build("llama")
    monkeypatch.setattr(streaming, "save_file", full)
    with pytest.raises(UserError, match="Could not write block 1 .* No space left") as caught:
        tamp.prune(model, samples, RECIPE, progress=False, out=out)
    assert any("1 of 3 blocks are finished" in note for note in caught.value.__notes__)
    assert not out.exists()
    monkeypatch.setattr(streaming, "save_file", save)
    model, samples = tiny.build("llama")
    tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True)
    assert_right(out, right)


def test_a_save_that_fails_at_the_end_loses_nothing(tmp_path, monkeypatch, right):
    out, save = tmp_path / "out", checkpoint.save

    def full(*given):
        raise UserError("Could not save: No space left on device. Nothing was left there.")

    monkeypatch.setattr(checkpoint, "save", full)
    model, samples = tiny.build("llama")
    with pytest.raises(UserError, match="No space left"):
        tamp.prune(model, samples, RECIPE, progress=False, out=out)
    monkeypatch.setattr(checkpoint, "save", save)
    model, samples = tiny.build("llama")
    tamp.prune(model, samples, RECIPE, progress=False, out=out, resume=True)
    assert_right(out, right)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "memory is full: .* about .* GB .*--offload on",
        ),
        (
            RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors"),
            "stopped working .CUDA error: unsp",
        ),
    ],
)
def test_a_fault_of_the_device_is_said_in_a_sentence(tmp_path, error, said):
    model, samples = tiny.build("llama")
    stop_at(model, 2, error)
    with pytest.raises(UserError, match=said) as caught:
        tamp.prune(model, samples, RECIPE, progress=False, out=tmp_path / "out")
    assert re.search("2 of 3 blocks are finished.*--resume", str(caught.value))
    model, samples = tiny.build("llama")
    stop_at(model, 2, error)
    with pytest.raises(UserError, match=said):
        tamp.prune(model, samples, RECIPE, progress=False)


def test_a_run_that_is_killed_at_a_random_moment_goes_on(tmp_path):
    (row,) = kills.main(["--tries", "10", "--seed", "1", "--only", "5", "--out", str(tmp_path)])["commands"]
    assert row["killed"] >= 5 and {row[name] for name in ("unfinished", "lost", "failed", "stale")} == {0}, row


def test_the_command_goes_on_too(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["prune", "mini-llava-next", "--preset", "wanda", "--n", "1", "--out", str(out), "--states", "host"]
    keep = streaming.Keeper.keep

    def stop(self, position, *given):
        keep(self, position, *given)
        if position == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(streaming.Keeper, "keep", stop)
    assert cli.main(command) == 130
    assert "4 of 8 blocks are finished" in capsys.readouterr().err
    monkeypatch.setattr(streaming.Keeper, "keep", keep)
    assert cli.main(command) == 2
    assert cli.main([*command, "--resume"]) == 0
    assert tamp.verify(out)["report"]["sparsity"] == 0.5


@pytest.mark.slow
def test_memory_of_the_host_is_recorded(tmp_path):
    made = host_memory.main(
        ["--gigabytes", "0.1", "--width", "512", "--n-samples", "1", "--tokens", "16", "--out", str(tmp_path)]
    )
    assert made["saved"] == made["tensors"] and made["changed"] == 7 * made["pruned"]
    assert made["prune"] < made["model"] / 2, "its blocks are mapped, not held"
    assert host_memory.table(made).startswith("Measured on a CPU: a LLaVA-NeXT with")
