#!/usr/bin/env bash
# All that wants a GPU, in under 12 minutes; each part has its own limit and its own record, gpu_*.json.
#
#     tests/benchmarks/gpu.sh [--rehearse] [OUT]
#
# OUT is data/results if not given. --rehearse runs the same parts small, on any machine. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/../.." || exit 1
rehearse=()
if [ "${1:-}" = --rehearse ]; then rehearse=(--rehearse); shift; fi
out=${1:-data/results}
python=${PYTHON:-python}
export PYTHONPATH="$PWD:$PWD/tests:$PWD/tests/benchmarks:$PWD/data${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
failed=0

part() {  # seconds, script, arguments
    local limit=$1 script=$2
    shift 2
    echo "== $script"
    timeout --kill-after=10 "$limit" "$python" "tests/benchmarks/$script" "$@" --out "$out" || { failed=1; echo "$script ended with $?"; }
}

scale=()
if [ ${#rehearse[@]} -gt 0 ]; then scale=(--scale tiny --n 1 --rounds 1 --device cpu --methods wanda); fi
part 180 gpu_tests.py "${rehearse[@]}"
part 300 full_scale.py "${scale[@]}"
part 90 semi_structured.py "${rehearse[@]}"
part 120 update_speed.py "${rehearse[@]}"
exit $failed
