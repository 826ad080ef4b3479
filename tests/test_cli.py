"""The command line: what it does, and one sentence and a non-zero exit for every mistake."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import tiny_videollama2

import tamp
from tamp import cli, scores, walk
from tamp.evaluation import demo, results


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_prune_evaluate_verify(tmp_path, capsys):
    out = tmp_path / "pruned"
    assert run("prune", "mini-llava-next", "--preset", "tamp", "--sparsity", 0.6, "--n-samples", 4, "--out", out) == 0
    said = capsys.readouterr().out
    assert "das + amia + wanda: 60.0000%" in said and f"saved to {out}" in said
    assert run("verify", out) == 0
    assert "60.0000% of" in capsys.readouterr().out
    assert run("evaluate", out, "--n-questions", 20, "--out", tmp_path / "scores.csv") == 0
    assert "accuracy" in capsys.readouterr().out
    assert (tmp_path / "scores.csv").read_text().startswith("task,n,accuracy")


def test_every_part_can_be_chosen(tmp_path, capsys):
    arguments = ("--allocation", "uniform", "--tokens", "text", "--criterion", "sparsegpt", "--pattern", "2:4")
    assert run("prune", "mini-llava-next", "--n", 4, "--out", tmp_path / "p", *arguments) == 0
    assert "uniform + text + sparsegpt 2:4: 50.0000%" in capsys.readouterr().out


def test_a_plan_is_written_compared_and_pruned_by(tmp_path, capsys):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert run("plan", "mini-llava-next", "--n", 2, "--out", one) == 0
    assert "das for mini-llava-next: 50.0000% of 3,538,944 weights" in capsys.readouterr().out
    assert run("plan", "mini-llava-next", "--preset", "wanda", "--out", two) == 0
    capsys.readouterr()
    assert run("plan", "diff", one, two) == 0
    said = capsys.readouterr().out
    moved = tamp.plans.distance(tamp.Plan.read(one).drops, tamp.Plan.read(two).drops)
    assert f"{moved:.2%} of the dropped weights lie in other linears" in said and "v_proj" in said
    out = tmp_path / "pruned"
    assert run("prune", "mini-llava-next", "--plan", one, "--preset", "sparsegpt", "--n", 2, "--out", out) == 0
    assert "das + all + sparsegpt: 50.0000%" in capsys.readouterr().out
    sizes = tamp.Plan.read(one)
    assert pd.read_csv(out / "tamp.csv")["asked"].tolist() == [d / n for d, n in zip(sizes.drops, sizes.sizes)]


def test_demo_writes_a_page_with_figures(tmp_path, capsys):
    page = tmp_path / "demo.html"
    assert run("demo", "--model", "mini-llava-next", "--n-questions", 30, "--n-samples", 4, "--out", page) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("dense", "magnitude", "wanda", "tamp", str(page)))
    stages = re.findall(r"^ *(\d+) s  (\w+)", said, re.M)  # signs of life where there are no bars
    assert [verb for _, verb in stages] == [
        "loading",
        "preparing",
        *["evaluating", *["pruning", "evaluating"] * 4],
        "writing",
    ]
    assert [int(seconds) for seconds, _ in stages] == sorted(int(seconds) for seconds, _ in stages)
    text = page.read_text()
    assert text.count("<img") == 6 and "Accuracy per task" in text
    kept = results.retention(results.recorded("mini_quality")).loc["sparsegpt", 0.7]
    assert "<td>sparsegpt</td>" in text and f"<td>{kept:.1f}</td>" in text  # beside what is recorded of every method
    assert "tamp keeps more than wanda" in said and "wanda keeps more than magnitude" in text


def test_a_demo_says_which_claims_are_confirmed_on_its_questions():
    def verdicts(**right):
        answered = {name: pd.DataFrame({"correct": [number < n for number in range(100)]}) for name, n in right.items()}
        return demo.claims(answered).set_index("claim")

    table = verdicts(magnitude=60, wanda=30, tamp=31, repair=80)
    assert table.loc["repair keeps more than tamp", "verdict"] == "confirmed"
    assert table.loc["wanda keeps more than magnitude", "verdict"] == "contradicted"
    assert table.loc["wanda keeps more than magnitude", "points"] == -30
    assert table.loc["tamp keeps more than wanda", "verdict"] == "inconclusive"
    table = verdicts(magnitude=60, wanda=30, tamp=50, repair=50)
    assert table.loc["tamp keeps more than wanda", "verdict"] == "confirmed"


def test_methods_are_compared_with_tables_and_a_page(tmp_path, capsys):
    out, page = tmp_path / "c.json", tmp_path / "c.html"
    asked = ("--methods", "wanda", "tamp:das_cap=0.2", "--levels", 0.7, "4:8", "--calibration-seeds", 0)
    few = ("--n-questions", 10, "--n-samples", 2)
    assert run("compare", "mini-llava-next", *asked, *few, "--out", out, "--page", page) == 0
    said = capsys.readouterr().out
    for word in ("Accuracy less that of wanda", "Overlap of the dropped weights at 4:8", "tamp:das_cap=0.2", str(out)):
        assert word in said
    assert page.read_text().count("<img") == 2


def test_videos_and_sounds_work_like_pictures(tmp_path, capsys):
    """A saved VideoLLaMA 2 is pruned with videos, sounds and text, and evaluated and compared on mp4 files."""
    saved, out, media = tmp_path / "model", tmp_path / "pruned", tiny_videollama2.write_media(tmp_path)
    tamp.save(tiny_videollama2.build(), tiny_videollama2.processor(audio_policy="plain"), saved)
    calibration = [
        {"video": "av.mp4", "question": "What is it like?", "answer": "A hum."},
        {
            "video": "mute.mp4",
            "conversations": [{"from": "human", "value": "<video> Eh?"}, {"from": "gpt", "value": "A"}],
        },
        {"audio": "beep.wav", "question": "What is it?", "answer": "A beep."},
        {"text": "Nothing to see."},
    ]
    asked = [
        {"video": name, "question": f"{word}?", "answer": "yes", "choices": ["yes", "no"], "task": word}
        for name in ("av.mp4", "other.mp4")
        for word in ("Loud", "Quick")
    ]
    for name, made in (("calibration", calibration), ("asked", asked)):
        (media / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)))
    samples = ("--calibration", media / "calibration.jsonl", "--n", 4)
    questions = ("--benchmark", media / "asked.jsonl")
    assert run("prune", saved, "--preset", "tamp", *samples, "--out", out) == 0
    assert "das + amia + wanda: 50.0" in capsys.readouterr().out
    assert run("evaluate", out, *questions) == 0
    said = capsys.readouterr().out
    assert "Loud 2" in " ".join(said.split()) and "Quick 2" in " ".join(said.split())
    record = tmp_path / "compared.json"
    asked = ("--methods", "wanda", "tamp", "--calibration-seeds", 0)
    assert run("compare", saved, *questions, *samples, *asked, "--out", record) == 0
    assert {cell["n_questions"] for cell in json.loads(record.read_text())["cells"]} == {4}


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("prune m --out o --n-samples 3 --calibration-seed 4", "prune m --out o --n 3 --seed 4"),
        ("plan m --n-samples 3 --calibration-seed 4", "plan m --n 3 --seed 4"),
        ("evaluate m --n-questions 3 --question-seed 4", "evaluate m --limit 3 --seed 4"),
        (
            "compare m --n-questions 3 --n-samples 4 --calibration-seeds 5 6 --question-seed 7",
            "compare m --limit 3 --n 4 --seeds 5 6 --seed 7",
        ),
        ("demo --n-questions 3 --n-samples 4", "demo --limit 3 --n 4"),
    ],
)
def test_options_have_a_long_and_a_short_spelling(long, short):
    assert cli.parse(long.split()) == cli.parse(short.split())


HEAVY = ("torch", "transformers", "pandas", "matplotlib", "tamp.worlds", "tamp.videollama2")


@pytest.mark.parametrize(
    "program",
    ["import tamp", "import tamp.cli", "from tamp.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(program):
    shown = f"import sys\nprint(*(name for name in {HEAVY} if name in sys.modules), sep=',', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{shown}"], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert "main" not in program or all(name in done.stdout for name in cli.COMMANDS)


MISTAKES = {
    "preset": ("prune", "mini-llava-next", "--preset", "wanad", "--out", "OUT"),
    "model": ("prune", "mini-lava-next", "--out", "OUT"),
    "sparsity": ("prune", "mini-llava-next", "--sparsity", "1.5", "--out", "OUT"),
    "pattern": ("prune", "mini-llava-next", "--pattern", "5:4", "--out", "OUT"),
    "width": ("prune", "mini-llava-next", "--pattern", "2:5", "--n", "2", "--out", "OUT"),
    "set": ("prune", "mini-llava-next", "--calibration", "coco", "--out", "OUT"),
    "no set": ("prune", "OUT", "--out", "OUT"),
    "no benchmark": ("evaluate", "owner/model"),
    "number": ("prune", "mini-llava-next", "--n", "0", "--out", "OUT"),
    "benchmark": ("evaluate", "mini-llava-next", "--benchmark", "mmbench"),
    "device": ("evaluate", "mini-llava-next", "--device", "warp"),
    "hub": ("evaluate", "nobody/nothing", "--limit", "1"),
    "folder": ("verify", "OUT"),
    "plan": ("prune", "mini-llava-next", "--plan", "OUT", "--out", "OUT"),
    "plan and sparsity": ("prune", "mini-llava-next", "--plan", "p.json", "--sparsity", "0.5", "--out", "OUT"),
    "level": ("compare", "mini-llava-next", "--levels", "half", "--out", "OUT"),
    "methods": ("compare", "mini-llava-next", "--methods", "tamp:cap", "--out", "OUT"),
    "plans": ("plan", "diff", "one.json"),
    "plan's cap": ("plan", "mini-llava-next", "--preset", "wanda", "--das-cap", "0.2", "--out", "OUT"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_and_no_traceback(mistake, tmp_path, capsys):
    out = tmp_path / "out"
    status = run(*(str(out) if word == "OUT" else word for word in MISTAKES[mistake]))
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("tamp: ")]
    assert status == 2
    assert len(lines) == 1 and "Traceback" not in captured.err
    assert not out.exists()


def test_an_existing_folder_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "x").write_text("")
    monkeypatch.setattr(tamp, "load", lambda *a: pytest.fail("must not load first"))
    assert run("prune", "mini-llava-next", "--out", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_interruption_says_that_the_model_was_partly_pruned(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(walk.Step, "replay", interrupt)
    assert run("prune", "mini-llava-next", "--n", 2, "--out", tmp_path / "p") == 130
    assert "interrupted. Pruning stopped at block 1 of" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_an_unexpected_error_is_one_line_unless_debugging(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(walk.Step, "replay", fail)
    arguments = ("prune", "mini-llava-next", "--n", 2, "--out", tmp_path / "p")
    assert run(*arguments) == 1
    assert "RuntimeError: out of luck Run again with --debug" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        run(*arguments, "--debug")


def test_the_installed_command_runs_and_exits_with_its_status():
    done = subprocess.run([sys.executable, "-m", "tamp.cli", "verify", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "nowhere has no tamp.json" in done.stderr


def test_every_option_of_every_method_is_an_option_of_the_command(capsys):
    from tamp.recipe import options

    for command, names in (("prune", options()), ("plan", scores.ALLOCATIONS["das"].options)):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        for name in names:
            assert f"--{name.replace('_', '-')} " in said, name


def test_an_option_of_a_method_reaches_the_recipe(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert run("plan", "mini-llava-next", "--preset", "das", "--n", 2, "--das-cap", 0.03, "--out", out) == 0
    plan = tamp.Plan.read(out)
    assert plan.cap == 0.53 and max(d / n for d, n in zip(plan.drops, plan.sizes)) <= 0.5301
    assert run("plan", "mini-llava-next", "--preset", "wanda", "--das-cap", 0.03, "--out", out) == 2
    assert "das_cap has no effect with allocation='uniform'" in capsys.readouterr().err
