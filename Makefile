# make demo | make test: each starts from nothing (own .venv, install, build, run).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

NATIVE := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl')
DEMO_STAMP := $(VENV)/.demo-installed
DEV_STAMP := $(VENV)/.dev-installed

.PHONY: demo test check bench accuracy gpu clean

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

# With the Python that has torch for the GPU already, so that it needs no network.
GPU_OUT ?= out/gpu
GPU_RUN := PYTHONPATH=. $(PYTHON)
SANITIZE := PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=. compute-sanitizer --error-exitcode 1

gpu:  ## on a machine with a GPU: build, test, sanitize, measure; rows go to GPU_OUT
	$(PYTHON) setup.py build_ext --inplace
	$(GPU_RUN) -m pytest -q tests/ops tests/kernels
	for tool in memcheck racecheck; do \
	    $(SANITIZE) --tool $$tool $(PYTHON) benchmarks/gpu_scoring.py --check || exit 1; done
	$(GPU_RUN) benchmarks/gpu_scoring.py --out $(GPU_OUT)/scoring.json

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
