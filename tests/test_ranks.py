"""Several processes prune as one: the same masks for any number of them."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from families import build

import tamp
from tamp import ranks, streaming
from tamp.errors import UserError
from tamp.recipe import Recipe

METHODS = ("wanda", "tamp", "sparsegpt", "owl", "stade", "text:update=least_squares")


def recipe_of(method: str) -> Recipe:
    return Recipe(criterion="stade", tokens="all", sparsity=0.5) if method == "stade" else Recipe.spelled(method, 0.5)


def made(family: str, method: str) -> dict:
    """Prune a tiny model; what must not depend on the number of processes."""
    torch.set_num_threads(1)
    model, samples = tiny.build(family) if family == "llava_next" else build(family)
    samples = [*samples, *samples[:2]]  # so that shares are uneven
    report = tamp.prune(model, samples, recipe_of(method), progress=False)
    masks, weights = hashlib.sha256(), hashlib.sha256()
    for matrix in tamp.models.all_linears(model).values():
        masks.update((matrix.weight == 0).numpy().tobytes())
        weights.update(matrix.weight.detach().float().numpy().tobytes())
    numbers = [round(row["error"], 5) for row in report.rows] + [row["kept"] for row in report.rows]
    found = {"masks": masks.hexdigest(), "weights": weights.hexdigest(), "samples": report.samples}
    return found | {"pooled": report.pooled, "numbers": numbers, "drops": report.plan.drops}


def work(number: int, size: int, folder: str, cases: list) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{size}", rank=number, world_size=size)
    for family, method in cases:
        found = made(family, method)
        with open(f"{folder}/{size}-{number}-{family}-{method[:5]}.json", "w") as file:
            json.dump(found, file)
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_masks_do_not_depend_on_the_number_of_processes(size, tmp_path):
    cases = [("llava_next", method) for method in METHODS] + [("qwen3_vl_moe", "atv")]
    mp.start_processes(work, (size, str(tmp_path), cases), nprocs=size, start_method="fork")
    for family, method in cases:
        alone = json.loads(json.dumps(made(family, method)))
        for number in range(size):
            found = json.loads((tmp_path / f"{size}-{number}-{family}-{method[:5]}.json").read_text())
            if "update" not in method:
                assert found == alone, (method, number)
            same = ("masks", "samples", "drops", "pooled")  # an update's sums are float32, and rounded in another order
            assert [found[name] for name in same] == [alone[name] for name in same], (method, number)
        texts = {(tmp_path / f"{size}-{n}-{family}-{method[:5]}.json").read_text() for n in range(size)}
        assert len(texts) == 1, "the processes end with different models"


def stop(number: int, size: int, folder: str) -> None:
    """Prune to a folder, be killed at the third block; then go on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=size)
    for resume in (False, True):
        model, samples = tiny.build("llava_next")
        keep = streaming.Keeper.keep

        def killed(keeper, position, *rest, resume=resume, keep=keep):
            if position == 1 and not resume:
                raise KeyboardInterrupt
            keep(keeper, position, *rest)

        streaming.Keeper.keep = killed
        try:
            tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, out=f"{folder}/out", resume=resume)
        except KeyboardInterrupt:
            assert not resume
        streaming.Keeper.keep = keep
    dist.destroy_process_group()


def test_a_stopped_run_of_several_processes_goes_on(tmp_path):
    mp.start_processes(stop, (2, str(tmp_path)), nprocs=2, start_method="fork")
    model, samples = tiny.build("llava_next")
    tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, out=tmp_path / "alone")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "out"))
    assert one == two and not (tmp_path / "out.partial").exists()


def die(number: int, folder: str, victim: int) -> None:
    """Prune to a folder with another process; the victim is killed when its second block is done."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    model, samples = tiny.build("llava_next")
    keep = streaming.Keeper.keep

    def killed(keeper, position, *rest):
        keep(keeper, position, *rest)
        if position == 1 and number == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    streaming.Keeper.keep = killed
    try:
        tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, out=f"{folder}/out")
    except UserError as error:
        with open(f"{folder}/{number}.txt", "w") as file:
            file.write(" ".join((str(error), *getattr(error, "__notes__", ()))))


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_and_the_run_goes_on(victim, tmp_path):
    context = mp.get_context("fork")
    both = [context.Process(target=die, args=(number, str(tmp_path), victim)) for number in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    codes = [each.exitcode for each in both]
    for each in both:
        each.kill()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 0, "it waits for one that is gone"
    said = (tmp_path / f"{1 - victim}.txt").read_text()
    assert (
        "Another process of this run has ended" in said and "2 of 3 blocks are finished" in said and "--resume" in said
    )
    model, samples = tiny.build("llava_next")
    tamp.prune(model, samples, Recipe(sparsity=0.5), progress=False, out=tmp_path / "out", resume=True)
    tamp.prune(*tiny.build("llava_next"), Recipe(sparsity=0.5), progress=False, out=tmp_path / "alone")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "out"))
    assert one == two and not (tmp_path / "out.partial").exists()


def test_an_error_names_the_sample_by_its_number_among_all(monkeypatch):
    """In the second of two processes, the fourth sample is the second one."""
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "get_rank", lambda: 1)
    model, samples = tiny.build("llava_next")
    odd = {**samples[0], "pixel_values": samples[0]["pixel_values"] * float("nan")}
    with pytest.raises(UserError, match="Block 0, sample 3: its input holds NaN"):
        tamp.prune(model, [*samples, odd], Recipe(sparsity=0.5), progress=False)


def test_alone_nothing_is_shared():
    assert ranks.size() == 1 and ranks.rank() == 0 and ranks.share([1, 2]) == [1, 2] and ranks.told("x") == ["x"]
    assert ranks.join("auto") == "auto"


def test_more_processes_than_samples_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "size", lambda: 3)
    with pytest.raises(UserError, match="3 processes have 2 samples"):
        ranks.share([1, 2])


def test_one_device_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="cannot share the device 'cuda:1'"):
        ranks.join("cuda:1")


def test_only_prune_shares_its_work(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tamp.cli.main(["plan", "mini-llava-next", "--out", "x.json"]) == 2
    assert "Only `tamp prune` shares its work" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_saves_what_one_process_does(tmp_path):
    asked = ["prune", "mini-llava-next", "--preset", "tamp", "--n-samples", "3", "--device", "cpu"]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tamp",
        *asked,
    ]
    done = subprocess.run(
        [*launch, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved to") == 1
    assert tamp.cli.main([*asked, "--out", str(tmp_path / "one")]) == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
