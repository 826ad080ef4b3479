"""How the house is built: core, wings and workshop, imports that only go down, and files of a size to be read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = (
    "errors",
    "writing",
    "schema",
    "methods",
    "masks",
    "ranks",
    "accumulators",
    "criteria",
    "diversity",
    "matrices",
    "passes",
    "models",
    "onloading",
    "graphs",
    "choices",
    "selection",
    "updates",
    "allocation",
    "attention",
    "watching",
    "captured",
    "walk",
    "scores",
    "recipe",
    "plans",
    "planning",
    "report",
    "pruning",
)
"""The pruning core, low to high: a module imports only what stands before it."""

WINGS = (
    "files",
    "shrinking",
    "experts",
    "finetuning",
    "checkpoint",
    "verifying",
    "cache",
    "media",
    "pixels",
    "reading",
    "records",
    "calibration_sources",
    "worlds",
    "videollama2",
    "zoo",
    "conversations",
    "calibration",
    "compact",
    "estimate",
    "streaming",
    "missing",
    "loading",
    "packs",
    "evaluation",
    "cli",
    "__main__",
)
"""Everything else, low to high too; a folder's modules may import each other, but not in a circle."""

LADDER = (*CORE, *WINGS)


def modules() -> dict[str, Path]:
    """List the modules of the package and of the workshop: ``{dotted name: file}``."""
    found = {}
    for folder, top in ((ROOT / "tamp", "tamp"), (ROOT / "data" / "training", "training")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((top, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """List the project's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in deeper}
    return {name for name in found if name in MODULES}


def place(module: str) -> int:
    """Return the step of the ladder that a module of the package stands on."""
    return LADDER.index(module.split(".")[1])


PACKAGE = [name for name in MODULES if name.startswith("tamp.")]


def test_every_module_of_the_package_is_of_the_core_or_a_wing():
    assert {name.split(".")[1] for name in PACKAGE} == set(LADDER)


@pytest.mark.parametrize("module", PACKAGE)
def test_imports_only_go_down(module):
    for other in imports(MODULES[module]) - {"tamp"}:
        assert other.startswith("tamp."), f"{module} imports {other} of the workshop"
        same = other.split(".")[1] == module.split(".")[1]
        assert same or place(other) < place(module), f"{module} imports {other}, which stands above it"


@pytest.mark.parametrize(
    "module", ["masks", "accumulators", "criteria", "diversity", "graphs", "selection", "allocation"]
)
def test_the_maths_needs_torch_alone(module):
    tree = ast.parse(MODULES[f"tamp.{module}"].read_text())
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {name.split(".")[0] for name in named} & {"transformers", "numpy", "pandas", "matplotlib"}


def test_there_is_no_circle():
    graph = {name: imports(path) - {name, "tamp"} for name, path in MODULES.items()}
    while loose := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in loose}
    assert not graph, f"a circle among {sorted(graph)}"


def test_no_file_is_longer_than_400_lines():
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_core_stays_small():
    lines = sum(len(MODULES[f"tamp.{name}"].read_text().splitlines()) for name in CORE)
    assert lines <= 5550  # a third of it is what models do differently: matrices, watching, captured


HEAVY = ("matplotlib", "pandas", "seaborn", "torchvision", "tamp.worlds", "tamp.videollama2", "tamp.evaluation")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import tamp", ("torch", "transformers", *HEAVY)),
        ("import tamp; tamp.prune, tamp.Recipe, tamp.plan, tamp.save", HEAVY),
    ],
)
def test_what_an_import_loads(code, absent):
    script = f"{code}\nimport sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT).split()
    assert not [name for name in absent if name in loaded]


def test_the_walk_is_the_only_loop_over_blocks():
    """No file but the walk runs blocks itself, and the proof that it may: there is one place for odd families."""
    for name, path in MODULES.items():
        if name.startswith("tamp.") and name not in ("tamp.walk", "tamp.watching", "tamp.captured"):
            assert "matrix_tokens(" not in path.read_text() and ".run(block" not in path.read_text(), name
