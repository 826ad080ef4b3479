"""Peak memory of AMIA on long sequences, beside that of the kernels which it holds at once.

    python tests/benchmarks/amia_memory.py [--tokens 4000 8000] [--width 16]

Text and visual tokens stand in one run each, or take turns; each case runs in a process of its own.
"""

import argparse

import peak
import recording

from tamp import selection

LINEARS = 2
CODE = """
import sys, torch, peak
sys.path[:0] = sys.argv[5:]
from tamp import selection
tokens, width, linears, turns = map(int, sys.argv[1:5])
torch.set_num_threads(1)
chance = torch.Generator().manual_seed(0)
outputs = [torch.randn(tokens, width, generator=chance) + 1 for _ in range(linears)]
modality = torch.arange(tokens) % 2 if turns else (torch.arange(tokens) >= tokens // 2).long()
attention = torch.rand(tokens, generator=chance)
selection.amia_batch([([each[:600] for each in outputs], attention[:600], modality[:600])])
before = peak.start()
masks = selection.amia_batch([(outputs, attention, modality)])
print(peak.resident("VmHWM") - before, *(int(mask.sum()) for mask in masks[0]))
"""


def main(arguments: list[str] | None = None) -> dict:
    """Measure, record and return."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4000, 8000])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--out", default=recording.RESULTS, type=recording.Path)
    options = parser.parse_args(arguments)
    rows = []
    for tokens in options.tokens:
        for turns in (False, True):
            growth, *picked = peak.alone(CODE, tokens, options.width, LINEARS, int(turns), recording.ROOT)
            held = 4 * tokens**2 * min(LINEARS, max(1, selection.ENTRIES // tokens**2))
            rows.append(
                {
                    "tokens": tokens,
                    "modalities": "take turns" if turns else "in runs",
                    "kernels": held,
                    "growth": growth,
                    "ratio": round(growth / held, 2),
                    "picked": picked,
                }
            )
    result = {"width": options.width, "linears": LINEARS, "rows": rows}
    recording.write("amia_memory", result, options.out)
    return result


if __name__ == "__main__":
    print(main())
