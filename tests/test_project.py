"""The project's own files agree with each other."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    every = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [made for line in every if (made := Requirement(line)).name != "tamp"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_has_a_pin_that_its_bound_admits_and_every_pin_a_dependency():
    named = {each.name: each for each in requirements()}
    assert set(pins()) == set(named)
    for name, pin in pins().items():
        assert named[name].specifier.contains(pin), f"{name}=={pin} is outside {named[name]}"
        assert named[name].specifier, f"{name} has no lower bound"


def test_the_conda_environment_installs_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert Version(python.split("=")[1]) in Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier
    assert pip == "pip"
    assert extra["pip"] == ["--constraint constraints.txt", "--editable .[test]"]
    makefile = (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt --editable '.[test]'" in makefile


def test_the_installed_versions_are_the_pinned_ones():
    from importlib.metadata import version

    vision = {Requirement(line).name for line in PYPROJECT["project"]["optional-dependencies"]["vision"]}
    tested = {name: pin for name, pin in pins().items() if name not in vision}  # those are tested in test_runtimes.py
    different = {name: version(name) for name, pin in tested.items() if version(name).split("+")[0] != pin}
    assert not different, f"not the tested set: {different}"


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M)) - {"install"} | {"install"}
    said = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in said.splitlines()} == targets


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make demo" in (ROOT / "README.md").read_text()


def test_no_file_of_the_package_prints_but_the_command_line():
    for path in (ROOT / "tamp").rglob("*.py"):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert path.parent.name == "cli" or not calls, path


def test_links_of_the_readme_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "data/README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_deprecated_call_of_the_package_is_noticed(deprecated_calls):
    source = "import warnings; warnings.warn('past_key_values is deprecated', FutureWarning)"
    for path, noticed in ((ROOT / "tests" / "x.py", 0), (ROOT / "tamp" / "x.py", 1)):
        with pytest.warns(FutureWarning):
            exec(compile(source, path, "exec"), {})
        assert len(deprecated_calls) == noticed
    deprecated_calls.clear()
