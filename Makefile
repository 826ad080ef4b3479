# Every target sets itself up: a virtual environment in .venv from pyproject.toml and constraints.txt, nothing global.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= smol-llava-next
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test book quality train adapt adapt-av clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@test -f $@ || $(PYTHON) -m venv --clear $(VENV)  # what a killed install left has no pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

install: $(READY)  ## set up the virtual environment only

demo: $(READY)  ## prune smol-llava-next (or MODEL=mini-llava-next) four ways, evaluate, write demo.html
	$(BIN)/tamp demo --model $(MODEL) --out demo.html

test: $(READY)  ## lint, check the format, run every test, and run the notebooks against their stored outputs
	$(BIN)/ruff check tamp tests book notebooks data
	$(BIN)/ruff format --check tamp tests book notebooks data
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadscope --nbval tests notebooks

book: $(READY)  ## build the book into _build/html, warnings as errors
	$(BIN)/jupyter-book build . --toc book/_toc.yml -W --keep-going

quality: $(READY)  ## measure every method on fresh questions, into data/results/ (hours; goes on where it stopped)
	$(BIN)/python tests/benchmarks/quality.py --model $(MODEL)
	$(BIN)/python tests/benchmarks/pages.py

train: $(READY)  ## train mini-llava-next again, from scratch; go on where it was stopped
	PYTHONPATH=data $(BIN)/python -m training.mini --out data/mini-llava-next

adapt: $(READY)  ## train smol-llava-next's tower, projector and updates again; go on where it was stopped
	PYTHONPATH=data $(BIN)/python -m training.adapting --out data/smol-llava-next --threads 2

adapt-av: $(READY)  ## the same of smol-videollama2
	PYTHONPATH=data $(BIN)/python -m training.clip_training --out data/smol-videollama2 --threads 2

clean:  ## remove the virtual environment and what the targets wrote
	rm -rf $(VENV) _build demo.html notebooks/results
