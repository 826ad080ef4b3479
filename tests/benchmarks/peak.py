"""Peak memory of work in a process of its own, as Linux counts it: the highest resident size."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def resident(line: str) -> int:
    """Return a line of ``/proc/self/status`` in bytes: ``"VmRSS"``, what is resident, or ``"VmHWM"``, the most that was."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{line}:")[1].split()[0])


def start() -> int:
    """Forget the peak so far, and return what is resident now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def alone(code: str, *arguments: object) -> list[int]:
    """Run Python code beside the benchmarks in a process of its own, and return the whole numbers that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
    return [int(word) for word in made.stdout.split()]
