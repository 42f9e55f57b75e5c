# make demo | make test: each starts from nothing (own .venv, install, build, run).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

NATIVE := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')
DEMO_STAMP := $(VENV)/.demo-installed
DEV_STAMP := $(VENV)/.dev-installed

.PHONY: demo test check bench accuracy clean

demo: $(DEMO_STAMP)  ## prune, run and measure the built-in model (a few minutes)
	$(BIN)/vlprune run demo --out out/demo

test: $(DEV_STAMP) check  ## lint, types, tests
	$(BIN)/python -m pytest

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEMO_STAMP)  ## linear24 against the dense layer on this machine
	$(BIN)/vlprune bench

accuracy: $(DEMO_STAMP)  ## what every method costs the built-in model, and every split between its towers
	$(BIN)/python benchmarks/accuracy.py methods --out out/demo-methods.json
	$(BIN)/python benchmarks/accuracy.py split --out out/demo-split.json

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(DEMO_STAMP): $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV_STAMP): $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(DEMO_STAMP)

clean:
	rm -rf $(VENV) build dist out *.egg-info vlprune/*.so
