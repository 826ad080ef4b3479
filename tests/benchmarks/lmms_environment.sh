#!/usr/bin/env bash
# Make an environment with tamp and lmms-eval, without the packages that only other models and tasks of lmms-eval need, and run
# the tests of the bridge in it: tests/benchmarks/lmms_environment.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.venv-lmms}
python3 -m venv "$folder"
bin=$(cd "$folder/bin" && pwd)
"$bin/pip" install --quiet --constraint constraints.txt --editable '.[datasets,media]' pytest accelerate
# lmms-eval asks for av below 16 and for 150 packages more; --no-deps leaves both out, which no extra of a package can express
"$bin/pip" install --quiet --no-deps lmms-eval==0.7.3
"$bin/pip" install --quiet aiohttp evaluate 'filelock<4' loguru opencv-python-headless pytablewriter pytz pyyaml sacrebleu scipy tenacity
export HF_HOME=${HF_HOME:-$folder/hub}
OMP_NUM_THREADS=1 "$bin/python" -m pytest -o addopts= -q tests/test_lmms_bridge.py
