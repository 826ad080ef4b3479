"""Where users run it: on Colab, from a bare install, beside torchvision."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import runtimes
import tiny_folders
from nbclient import NotebookClient
from test_notebooks import NOTEBOOKS, code, read, tagged

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
KEPT = ("torch", "numpy", "ipykernel", "ipywidgets", "jupyter_client", "ipython", "transformers", "pillow", "pandas")
CELL = tagged(read(NOTEBOOKS[0]), "remove-cell")[0].source
UNREACHABLE = "git+file:///nowhere/tamp"


def versions(python: Path) -> dict[str, str]:
    """List what is installed: ``{name: version}``."""
    script = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.name.lower().replace('-', '_'): d.version for d in m.distributions()}))"
    )
    return json.loads(subprocess.check_output([python, "-c", script], text=True))


@pytest.fixture(scope="class")
def colab(tmp_path_factory):
    """A kernel with Colab's versions of what tamp needs, ``google.colab`` imported and torchvision installed."""
    folder = tmp_path_factory.mktemp("colab")
    pins = [f"{name}=={version}" for name, version in runtimes.COLAB.items()]
    python = runtimes.environment(folder / "venv", *pins)
    packages = runtimes.packages(folder / "venv")
    runtimes.torchvision(packages)
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "colab_kernel.pth").write_text("import google.colab\n")
    kernel = folder / "share" / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    (folder / "content").mkdir()
    return folder


def run(cells: list[str], folder: Path, monkeypatch, **variables) -> list[nbformat.NotebookNode]:
    """Run cells in a fresh Colab kernel and return them with their outputs, the failing one last."""
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    resources = {"metadata": {"path": str(folder / "content")}}
    NotebookClient(notebook, timeout=600, kernel_name="colab", allow_errors=True, resources=resources).execute()
    return notebook.cells


def errors(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Return what went wrong, as the notebook shows it."""
    return ["\n".join(each.traceback) for cell in cells for each in cell.outputs if each.output_type == "error"]


class TestColab:
    """The first cell of every chapter, and what follows it, with the packages that Colab has."""

    def test_without_the_repository_it_says_so_in_a_sentence(self, colab, monkeypatch):
        (said,) = errors(run([CELL], colab, monkeypatch, TAMP_SOURCE=UNREACHABLE))
        assert said.count("\n") == 0 and said.startswith(f"tamp could not be installed from {UNREACHABLE} (")
        assert "nowhere" in said and said.endswith("Check the network, then run this cell again.")

    def test_outside_colab_it_says_how_to_install(self, colab, monkeypatch):
        away = "import sys; sys.modules.pop('google.colab')"
        (said,) = errors(run([away, CELL], colab, monkeypatch))
        assert said.startswith("tamp is not installed here: pip install 'tamp[notebooks] @ git+https://github.com/")
        assert said.count("\n") == 0

    def test_after_a_failure_it_installs_and_replaces_nothing_of_colab(self, colab, monkeypatch):
        before = versions(colab / "venv/bin/python")
        assert "tamp" not in before and "av" not in before
        (colab / "content" / "tamp").mkdir()  # as a clone or a failed install may leave it
        assert not errors(run([CELL, "import tamp; tamp.prune"], colab, monkeypatch, TAMP_SOURCE=f"file://{ROOT}"))
        after = versions(colab / "venv/bin/python")
        assert {"tamp", "av", "gguf", "num2words"} <= after.keys()
        assert {name: after[name] for name in before} == before
        assert {name: before[name] for name in KEPT}.items() <= after.items()
        assert not errors(run([CELL], colab, monkeypatch, TAMP_SOURCE=UNREACHABLE))  # nothing left to do

    def test_every_chapter_begins(self, colab, monkeypatch):
        """In one kernel, whose names are forgotten before each."""
        cells = [source for path in NOTEBOOKS for source in ("%reset -f", *(c.source for c in code(read(path))[:5]))]
        assert not errors(run(cells, colab, monkeypatch, TAMP_SOURCE=UNREACHABLE))

    def test_a_whole_chapter_runs(self, colab, monkeypatch):
        path = next(path for path in NOTEBOOKS if path.stem == "03_token_selection")
        assert not errors(run([cell.source for cell in code(read(path))], colab, monkeypatch))


def test_where_tamp_is_installed_the_first_cell_does_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", CELL], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


WORK = """
import sys, tamp
model, processor = tamp.load(sys.argv[1])
samples = tamp.calibration_set("smol-vqa", processor, n=2, seed=1)
report = tamp.prune(model, samples, tamp.Recipe.preset("tamp", sparsity=0.5), progress=False)
assert report.sparsity == 0.5 and len(tamp.evaluate(model, processor, "smol-vqa", limit=4, progress=False))
"""


class TestBareInstall:
    """What ``pip install`` from the repository gives, without extras."""

    @pytest.fixture(scope="class")
    def bare(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("bare")
        pins = (ROOT / "constraints.txt").read_text().replace("torch==", "# torch==")
        (folder / "constraints.txt").write_text(pins)
        source = f"tamp @ file://{ROOT}"
        python = runtimes.environment(folder / "venv", "--constraint", str(folder / "constraints.txt"), source)
        assert not {"torchvision", "num2words", "av"} & versions(python).keys()
        for family in tiny_folders.FAMILIES:
            tiny_folders.write(family, folder / family)
        return folder

    @staticmethod
    def said(bare: Path, family: str, **variables) -> str:
        """Load, prune and evaluate a family's tiny model; return the last line of what went wrong, if anything did."""
        done = subprocess.run(
            [bare / "venv/bin/python", "-c", WORK, bare / family],
            cwd=bare,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""

    @pytest.mark.parametrize("family", tiny_folders.FAMILIES)
    def test_a_missing_package_is_named(self, family, bare):
        said = self.said(bare, family)
        assert said.startswith("tamp.errors.UserError: Could not load") and said.endswith("pip install torchvision")

    def test_a_torchvision_that_does_not_fit_is_named(self, bare, tmp_path):
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
        information = tmp_path / "torchvision-0.1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
        said = self.said(bare, "smolvlm", PYTHONPATH=str(tmp_path))
        assert "torchvision 0.1 does not fit torch" in said and "operator nms does not exist" in said
        assert "uninstall torchvision" in said

    @pytest.mark.parametrize("family", tiny_folders.FAMILIES)
    def test_with_the_vision_extra_it_is_loaded_pruned_and_evaluated(self, family, bare):
        packages = runtimes.packages(bare / "venv")
        if not (packages / "torchvision").exists():
            runtimes.torchvision(packages)
        if family == "smolvlm":
            assert self.said(bare, family).endswith("pip install num2words")
            runtimes.pip(bare / "venv/bin/python", "num2words")
        assert self.said(bare, family) == ""


class TestTorchvision:
    """What reads pictures gives the same beside an installed torchvision, which transformers then prefers to PIL."""

    FILES = ("test_scoring.py", "test_conversations.py", "test_videollama2_processing.py", "test_compare.py")

    def test_the_tests_of_pictures_pass_beside_it(self, tmp_path):
        folder = runtimes.torchvision(tmp_path)
        probe = "import transformers; print(transformers.utils.is_torchvision_available())"
        variables = {**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": ""}
        assert "True" in subprocess.check_output([sys.executable, "-c", probe], env=variables, text=True)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.FILES],
            cwd=ROOT / "tests",
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]

    def test_transformers_alone_loads_the_shipped_processor(self, tmp_path):
        folder = runtimes.torchvision(tmp_path)
        script = (
            "import sys, numpy, transformers\n"
            "picture = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), 'uint8')\n"
            "processor = transformers.AutoProcessor.from_pretrained(sys.argv[1], backend='pil')\n"
            "print(processor(images=picture, text='<image>', return_tensors='pt')['pixel_values'].double().sum().item())\n"
        )
        said = [
            subprocess.check_output(
                [sys.executable, "-c", script, ROOT / "data/mini-llava-next"],
                env={**os.environ, "PYTHONPATH": path},
                text=True,
            )
            for path in (str(folder), "")
        ]
        assert said[0] == said[1]


@pytest.fixture(scope="module", autouse=True)
def _tidy(tmp_path_factory):
    """Environments take a gigabyte each: remove them at the end."""
    yield
    for name in ("colab", "bare"):
        for folder in tmp_path_factory.getbasetemp().glob(f"{name}*"):
            shutil.rmtree(folder / "venv", ignore_errors=True)
