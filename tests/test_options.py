"""Options: none is ignored in silence, and every command has those that all commands share."""

import json

import pytest

import tamp
from tamp import cli
from tamp.errors import UserError
from tamp.evaluation import benchmarks, compare, retention_table


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def asked(tmp_path):
    """A file of one question, which is a calibration set too."""
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "What?", "answer": "yes", "choices": ["yes", "no"]}))
    return path


IDLE = {
    "--mix": "prune mini-llava-next --preset magnitude --mix facts=1.0 --out OUT",
    "--filter": "prune mini-llava-next --preset magnitude --filter a=b --out OUT",
    "--calibration": "prune mini-llava-next --preset magnitude --calibration ASKED --out OUT",
    "--n-samples": "prune mini-llava-next --preset magnitude --n 4 --out OUT",
    "--calibration-seed": "plan mini-llava-next --preset wanda --seed 3 --out OUT",
    "--min-tokens": "plan mini-llava-next --allocation alphapruning --preset das --min-tokens 4 --out OUT",
    "--on-error": "prune mini-llava-next --calibration mini-vqa --on-error skip --out OUT",
    "--balance": "drop-experts mini-llava-next --calibration mini-vqa --balance text image --out OUT",
    "--media": "table mini-llava-next --benchmarks pope --methods magnitude --media OUT --out OUT",
    "--max-tokens": "table mini-llava-next --benchmarks pope --methods dense --max-tokens 9 --out OUT",
    "--sparsity": "plan diff ONE TWO --sparsity 0.3",
    "--out": "plan diff ONE TWO --out OUT",
    "--question-seed": "evaluate mini-llava-next --benchmark ASKED --seed 3",
    "frames": "evaluate mini-llava-next --benchmark pope --frames 4",
    "'videollama2'": "evaluate mini-llava-next --benchmark pope textvqa --protocol videollama2",
    "--calibration-seeds": "compare mini-llava-next --methods magnitude --seeds 4 --out OUT",
    "question_seed": "compare mini-llava-next --methods magnitude --benchmark ASKED --question-seed 4 --out OUT",
    "--data": "benchmark mini-llava-next --tasks mme --data pope:test=ASKED",
    "allocation_samples": "prune mini-llava-next --preset wanda --allocation-samples 8 --out OUT",
}


@pytest.mark.parametrize("option", IDLE)
def test_an_option_that_another_makes_meaningless_is_refused(option, asked, tmp_path, capsys):
    files = {"OUT": tmp_path / "out", "ASKED": asked}
    words = []
    for word in IDLE[option].split():
        before, sign, name = word.rpartition("=")
        words.append(f"{before}{sign}{files.get(name, name)}")
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert option.replace("question_seed", "--question-seed") in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_option_is_not_refused_where_one_of_several_methods_uses_it(asked, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tamp, "compare", lambda settings, *rest, **more: seen.append(settings) or {"cells": []})
    monkeypatch.setattr(retention_table, "make", lambda settings, *rest, **more: seen.append(settings) or 1 / 0)
    methods = ("--methods", "magnitude", "wanda")
    run("compare", "mini-llava-next", *methods, "--n", 4, "--seeds", 5, "--out", tmp_path / "o.json")
    run("table", "mini-llava-next", *methods, "--n", 4, "--benchmarks", "pope", "--calibration", asked)
    assert [each.n_samples for each in seen] == [4, 4]


def test_a_mix_passes_over_broken_records_where_there_can_be_any(processor, asked):
    made = tamp.calibration_set({"facts": 0.5, str(asked): 0.5}, processor, 2, on_error="skip")
    assert len(made) == 2
    with pytest.raises(UserError, match="on_error has no effect on a shipped set"):
        tamp.calibration_set("facts", processor, 2, on_error="skip")


def test_frames_go_to_the_benchmarks_that_show_videos(tmp_path):
    settings = {"model": "mini-llava-next", "calibration": "facts", "chosen": {}, "frames": 2}
    made = retention_table.Settings(**settings)
    assert [retention_table._frames(made, name) for name in ("pope", "mvbench")] == [None, 2]
    with pytest.raises(UserError, match="none of these benchmarks shows videos"):
        retention_table.make(made, ["wanda"], [0.5], ["pope"], out=tmp_path / "t")


def test_every_command_has_the_options_that_all_share():
    for name in cli.COMMANDS:
        made = {parser.prog: parser for parser in cli.parsers(cli.parser_of(name))}
        assert f"tamp {name}" in made and (name != "mask" or len(made) > len(cli.COMMANDS) + 1)
        for prog, parser in made.items():
            assert "--debug" in parser.format_help(), prog
    assert cli.parse(["mask", "export", "m", "--out", "o", "--debug"]).debug
    assert cli.parse(["mask", "--debug", "export", "m", "--out", "o"]).debug
    assert cli.parse(["--debug", "mask", "export", "m", "--out", "o"]).debug
    assert not cli.parse(["mask", "export", "m", "--out", "o"]).debug


def test_debug_shows_the_traceback_in_a_command_of_a_command(tmp_path):
    with pytest.raises(UserError):
        run("mask", "compare", tmp_path / "a", tmp_path / "b", "--debug")


NUMBERS = [0, -1, 2.5, float("nan"), float("inf"), -float("inf"), "3", None, True, 10**400]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value)[:9])
def test_every_option_of_every_method_takes_its_numbers_and_no_others(value):
    """The range is read off the table; what a value means is written out here."""
    from tamp.recipe import METHODS, SAMPLES, options

    presets = {}
    for axis, table in METHODS.items():
        for name, row in table.items():
            presets |= {option: {axis: name} for option in row.options}
    for name, option in {**options(), "allocation_samples": SAMPLES}.items():
        fits = not option.choices and isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and abs(value) < 10**300 and option.least <= value <= (option.most or float("inf"))
        fits = fits and not (isinstance(option.default, int) and value != int(value))
        chosen = {"tokens": "all"} | presets.get(name, {"allocation": "das"}) | {name: value}
        if fits or (name == "allocation_samples" and value is None):
            tamp.Recipe(**chosen)
        else:
            with pytest.raises(UserError, match=name):
                tamp.Recipe(**chosen)


COUNTS = {
    "n": lambda value: tamp.calibration_set([{"text": "a"}], None, n=value),
    "seed": lambda value: tamp.calibration_set([{"text": "a"}], None, seed=value),
    "min_tokens": lambda value: tamp.calibration_set([{"text": "a"}], None, min_tokens=value),
    "max_tokens": lambda value: tamp.calibration_set([{"text": "a"}], None, max_tokens=value),
    "limit": lambda value: tamp.evaluate(None, None, [{"question": "?", "answer": "a"}], value),
    "evaluation seed": lambda value: tamp.evaluate(None, None, "facts", 1, value),
    "limit of a published one": lambda value: benchmarks.answers(None, None, "pope", value),
    "batch_size": lambda value: benchmarks.answers(None, None, "pope", batch_size=value),
    "frames": lambda value: benchmarks.check(None, "mvbench", None, value),
    "compare's n_questions": lambda value: compare.Settings(
        model="m", benchmark="b", calibration="c", n_questions=value
    ),
    "compare's seeds": lambda value: compare.cells(["wanda"], [0.5], [value]),
    "a share": lambda value: tamp.calibration_set({"facts": value, "mini-vqa": 0.5}, None),
    "a level": lambda value: compare.cells(["wanda"], [value], [0]),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "value", [-1, 2.5, float("nan"), float("inf"), "3", 10**400], ids=lambda value: repr(value)[:9]
)
def test_numbers_elsewhere_are_checked_before_any_work(name, value, monkeypatch):
    monkeypatch.setattr(benchmarks.running, "check", lambda *given: pytest.fail("the number is looked at first"))
    with pytest.raises(UserError):
        COUNTS[name](value)
