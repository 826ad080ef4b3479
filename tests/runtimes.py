"""Other environments than the one that runs the tests: Colab's, a bare install, one with torchvision.

None of them downloads torch: they borrow the installed one.
"""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLAB = {
    "accelerate": "1.13.0",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "ipywidgets": "7.7.1",
    "jupyter_client": "7.4.9",
    "matplotlib": "3.10.0",
    "numpy": "2.1.3",
    "pandas": "2.2.2",
    "pillow": "11.3.0",
    "pyzmq": "26.2.1",
    "seaborn": "0.13.2",
    "soundfile": "0.13.1",
    "tornado": "6.5.1",
    "tqdm": "4.67.3",
    "traitlets": "5.7.1",
    "transformers": "5.15.0",
}
"""What Colab's published package list has of the packages that tamp needs or could replace (2026)."""

# The CPU wheel of torch lacks the operators that PyPI's torchvision was built with; pictures need none of them.
OPERATORS = """
import torch

_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in (
    "nms qnms roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward ps_roi_pool "
    "_ps_roi_pool_backward qroi_align deform_conv2d _deform_conv2d_backward"
).split():
    _library.define(f"{_name}(Tensor x) -> Tensor")
"""


def pip(python: str | Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run pip of an interpreter."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def environment(folder: Path, *requirements: str) -> Path:
    """Make a virtual environment with the tests' own torch and what else is asked for; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    here, there = Path(sysconfig.get_path("purelib")), packages(folder)
    for pattern in ("torch-*", "torch", "torchgen", "functorch", "nvidia*", "triton*", "cuda*"):
        for path in here.glob(pattern):
            (there / path.name).symlink_to(path)
    lines = [line for line in metadata.requires("torch") or [] if "extra ==" not in line]
    needed = [line.split(";")[0].strip() for line in lines if not line.startswith(("nvidia", "triton", "cuda"))]
    pip(python, *needed, *requirements)
    return python


def packages(environment: Path) -> Path:
    """Return the folder that an environment's packages lie in."""
    return next(environment.glob("lib/python*/site-packages"))


def torchvision(folder: Path, complete: bool = True) -> Path:
    """Install the torchvision made for the installed torch into a folder, for ``PYTHONPATH`` or an environment.

    Args:
        folder: where to.
        complete: define the operators that it lacks beside a CPU torch; without them it does not import there.
    """
    minor = int(metadata.version("torch").split(".")[1])
    pip(sys.executable, "--no-deps", "--target", str(folder), f"torchvision==0.{minor + 15}.*")
    works = subprocess.run(
        [sys.executable, "-c", "import torchvision"], env={"PYTHONPATH": str(folder)}, capture_output=True
    )
    if complete and works.returncode:
        first = folder / "torchvision" / "__init__.py"
        first.write_text(OPERATORS + first.read_text())
    return folder
