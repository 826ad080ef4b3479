"""Run the tests that need a GPU and record how each ended.

python tests/benchmarks/gpu_tests.py [--rehearse]
"""

import argparse
import os

import pytest
import recording


class Outcomes:
    """Notes how every test ended."""

    def __init__(self):
        self.ended: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        """Note a test that ran, failed or was skipped."""
        if report.when == "call" or report.outcome != "passed":
            why = f": {report.longrepr[2]}" if report.skipped and isinstance(report.longrepr, tuple) else ""
            self.ended[report.nodeid.rpartition("::")[2]] = report.outcome + why


def main(arguments: list[str] | None = None) -> dict:
    """Run, record and return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on any machine, few of them")
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    few = []
    if options.rehearse:
        os.environ["TAMP_REHEARSE"] = "1"
        few = ["-k", "released or wanda"]
    outcomes = Outcomes()
    tests = recording.ROOT / "tests" / "test_gpu.py"
    code = pytest.main([str(tests), "-m", "gpu", "-q", "-p", "no:cacheprovider", *few], plugins=[outcomes])
    result = {"exit": int(code), "tests": outcomes.ended}
    recording.write("gpu_tests", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
