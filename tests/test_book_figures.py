"""The book's figures: their data are what was recorded, their arithmetic is the package's, and they ask for nothing."""

import base64
import json
import random
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import answers
import drawings
import figure_data
import figure_models
import numpy as np
import pytest
import stills
import torch

from tamp import allocation, selection
from tamp.evaluation import results

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "book" / "_static"
SCRIPT = STATIC / "tamp-figures.js"
NAMES = [*figure_data.DERIVED, *figure_data.MEASURED]
DRAWN = [*stills.STILLS, *drawings.DRAWINGS]


def test_every_figure_has_data_a_still_and_a_part_of_the_script():
    made = set(re.findall(r'figures\["([\w-]+)"\] =', SCRIPT.read_text()))
    assert set(NAMES) == set(stills.STILLS) == made == {path.stem for path in (STATIC / "figures").glob("*.json")}
    assert {path.stem for path in (STATIC / "figures").glob("*.svg")} == set(DRAWN)


@pytest.mark.parametrize("name", figure_data.DERIVED)
def test_the_data_of_a_figure_are_what_was_recorded(name):
    made = figure_data.packed(figure_data.DERIVED[name]())
    assert (STATIC / "figures" / f"{name}.json").read_text() == made, "run python tests/benchmarks/pages.py"


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_is_what_its_script_draws_and_reads_at_phone_width(name):
    draw = drawings.DRAWINGS.get(name) or (lambda: stills.STILLS[name](figure_data.read(name)))
    text = (STATIC / "figures" / f"{name}.svg").read_text()
    assert text == draw(), "run python tests/benchmarks/pages.py"
    root = ElementTree.fromstring(text)
    width = float(root.get("viewBox").split()[2])
    sizes = [float(node.get("font-size")) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert min(sizes) * 350 / width >= 7.5, "too small on a phone"
    for node in root.iter():
        link = node.get("href") or ""
        assert not link or link.startswith("data:image/png"), "asks for a file"


def test_the_figures_together_are_small():
    sizes = {path.name: path.stat().st_size for path in [SCRIPT, *(STATIC / "figures").glob("*.json")]}
    assert sum(sizes.values()) < 150_000, sizes


def test_script_and_looks_ask_for_nothing_outside():
    for path in (SCRIPT, STATIC / "tamp.css"):
        assert set(re.findall(r"https?://[^\s\"')]+", path.read_text())) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\(|@import|url\(", path.read_text())


def test_the_answers_are_judged_as_the_grid_judged_them():
    """Recorded in words by one script, as right and wrong by another: the same model, samples and questions."""
    recorded, grid = results.recorded("answers"), results.recorded("smol_quality")
    for name in ("benchmark", "n_samples", "question_seed", "dtype"):
        assert recorded[name] == grid[name]
    compared = 0
    for cell in recorded["cells"]:
        others = results.cells_of(grid, cell["method"], cell["level"])
        for other in others:
            if other["calibration_seed"] == recorded["calibration_seed"]:
                right = answers.right(recorded, cell["answers"])
                assert right == results.unpack(other)[: len(right)].tolist(), cell
                compared += 1
    assert compared >= 5


@pytest.mark.slow
def test_the_answers_are_recorded_and_go_on_where_they_stopped(tmp_path):
    asked = ["--n-questions", "2", "--n-samples", "1", "--methods", "magnitude", "--out", str(tmp_path)]
    made = answers.main([*asked, "--levels", "0.5"])
    recorded = results.recorded("answers")
    assert made["questions"] == recorded["questions"][:2]
    assert answers.answers_of(made, "dense", 0.0) == answers.answers_of(recorded, "dense", 0.0)[:2]
    made["cells"][0]["answers"] = ["kept", "kept"]
    (tmp_path / "answers.json").write_text(json.dumps(made))
    again = answers.main([*asked, "--levels", "0.5"])
    assert answers.answers_of(again, "dense", 0.0) == ["kept", "kept"]


def test_ranks_count_the_methods_that_are_better():
    data = figure_data.read("ranking")
    for column in range(len(data["columns"])):
        rows = data["methods"].values()
        for each in rows:
            better = sum(other["accuracy"][column] > each["accuracy"][column] for other in rows)
            ties = sum(other["accuracy"][column] == each["accuracy"][column] for other in rows) - 1
            assert better < each["ranks"][column] <= better + ties + 1
            assert each["low"][column] <= each["ranks"][column] <= each["high"][column]


def run_script(code: str) -> str:
    """Run JavaScript behind the figures' script, in node or else in a browser, and return what ``say`` was given."""
    whole = f"const module = {{ exports: {{}} }};\n{SCRIPT.read_text()}\nconst {{ allocate }} = module.exports;\n"
    if node := shutil.which("node"):
        whole += f"const say = (text) => console.log(text);\n{code}"
        return subprocess.run([node, "-"], input=whole, capture_output=True, text=True, check=True, timeout=60).stdout
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        pytest.skip("there is neither node nor a browser")
    say = "const say = (text) => document.querySelector('pre').append(text);"
    page = f"<body><pre></pre><script>{whole}{say}{code}</script>"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command = [browser, *flags, "data:text/html;base64," + base64.b64encode(page.encode()).decode()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return re.search(r"<pre>(.*?)</pre>", dumped, re.S)[1]


def test_the_page_allocates_as_the_package_does_to_one_weight():
    models = figure_data.read("plan-sliders")["models"]
    cases = [
        (scores, model["sizes"], target, room)
        for model in models.values()
        for scores in (model["scores"], [1.0] * len(model["sizes"]))
        for target, room in ((60, 10), (37, 0), (90, 50), (10, 5), (81, 13))
    ]
    rng = random.Random(0)
    for _ in range(60):
        n = rng.randint(1, 9)
        scores = [rng.choice([0.0, 0.25, round(rng.random(), 4)]) for _ in range(n)]
        cases.append((scores, [rng.randint(1, 300) for _ in range(n)], rng.randint(1, 99), rng.randint(0, 50)))
    printed = run_script(f"say(JSON.stringify({json.dumps(cases)}.map((each) => allocate(...each))));")
    for (scores, sizes, target, room), found in zip(cases, json.loads(printed), strict=True):
        cap = min(1, round((target + room) / 100, 2))
        assert found == allocation.allocate(scores, sizes, target / 100, cap), (scores, sizes, target, room)


def test_the_row_loses_what_the_formulas_say():
    data = figure_data.read("one-row")
    weight, norm, hessian = (np.array(data[name]) for name in ("weight", "norm", "hessian"))
    assert len(weight) == len(norm) == len(data["inputs"]) == 12
    assert norm**2 == pytest.approx(hessian.diagonal(), rel=0.02)
    for name, values in (("magnitude", abs(weight)), ("wanda", abs(weight) * norm)):
        assert set(np.flatnonzero(data["methods"][name]["dropped"])) == set(values.argsort()[:6])
    for name, found in data["methods"].items():
        after = np.array(found["weight"])
        assert sum(found["dropped"]) == 6 and (after[found["dropped"]] == 0).all()
        apart = after - weight
        assert found["error"] == pytest.approx(
            np.sqrt(apart @ hessian @ apart / (weight @ hessian @ weight)), abs=0.01
        ), name
        assert found["moves"] == bool((abs(apart) > 1e-4)[~np.array(found["dropped"])].any())
    kept = ~np.array(data["methods"]["update"]["dropped"])
    damped = hessian + 0.01 * np.diag(hessian.diagonal())
    best = np.linalg.solve(damped[np.ix_(kept, kept)], damped[kept] @ weight)
    assert np.array(data["methods"]["update"]["weight"])[kept] == pytest.approx(best, abs=0.001)
    errors = [data["methods"][name]["error"] for name in ("magnitude", "wanda", "update")]
    assert errors == sorted(errors, reverse=True)


def test_the_picks_are_in_the_sample_and_stop_at_the_bound():
    data = figure_data.read("step-through-picks")
    (down, across), (rows, columns) = data["base"], data["full"]
    n = len(data["words"]) + down * across + rows * (columns + 1)
    assert len(data["attention"]) == len(data["neighbours"]) == n
    assert len(set(data["picks"])) == len(data["picks"]) == len(data["mmd"]) and max(data["picks"]) < n
    assert data["mmd"][-1] < data["bound"] <= min(data["mmd"][:-1])
    assert all(len(set(joined) - {i}) == 3 for i, joined in enumerate(data["neighbours"]))


def test_picks_in_order_are_those_of_the_package():
    random = torch.Generator().manual_seed(0)
    outputs = torch.randn(40, 12, generator=random)
    attention, modality = torch.rand(40, generator=random), (torch.arange(40) > 29).long()
    picked, distances = figure_models.picks_in_order(selection.token_graph([outputs], attention, modality))
    assert sorted(picked) == selection.amia(outputs, attention, modality).nonzero().flatten().tolist()
    assert 2 <= len(picked) == len(distances) < 40


def test_picks_of_the_clip_add_up_and_padding_is_silence():
    data = figure_data.read("clip-picks")
    plain, paper = data["policies"]["plain"], data["policies"]["paper"]
    for found in (plain, paper):
        assert len(found["seen"]) == data["times"] * data["edge"] ** 2 == found["tokens"]["frames"]
        sound = found["tokens"]["sound"]
        assert len(found["hear"]) == sound + found["tokens"]["silence"]
        for kind, per_cent in (
            ("frames", found["seen"]),
            ("sound", found["hear"][:sound]),
            ("silence", found["hear"][sound:]),
        ):
            assert found["picks"][kind] == pytest.approx(sum(per_cent) / 100)
        assert found["padding"] == pytest.approx(sound / len(found["hear"]), abs=1e-4)
    assert (plain["tokens"]["silence"], paper["tokens"]["silence"]) == (0, 696)
    assert plain["tokens"]["words"] == paper["tokens"]["words"]


def test_votes_are_shares_and_likeness_is_mutual():
    data = figure_data.read("who-votes")
    (down, across), (rows, columns) = data["base"], data["full"]
    n = len(data["words"]) + down * across + rows * (columns + 1)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(data["alike"]), np.uint8))[: n * n].reshape(n, n)
    assert (bits == bits.T).all() and bits.diagonal().all()
    assert sorted(name for each in data["shares"] for name in each["linears"]) == sorted(
        ("q", "k", "v", "o", "gate", "up", "down")
    )
    votes = results.recorded("votes")["models"]["smol-llava-next"]  # another script, the same samples
    shown = {f"{name}_proj": each["share"] for each in data["shares"] for name in each["linears"]}
    assert shown == pytest.approx(votes["vote"], abs=2e-4) and data["tokens"] == pytest.approx(votes["words"], abs=1e-4)
