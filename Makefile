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
	$(BIN)/python benchmarks/accuracy.py split --seeds 3 --out out/demo-split.json

# With the Python that has torch for the GPU already, so that it needs no network.
GPU_OUT ?=
GPU_PATH := PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH}
GPU_RUN := $(GPU_PATH) $(PYTHON)
# Of what runs only the kernels here, by parts of their names: PyTorch's own are not what is checked.
GPU_KERNELS := _pack_one _pack_many _mask4 _mask_ranked _mask_units _count_digits _count_ties _write _partial _total
EMPTY :=
COMMA := ,
SANITIZE := PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(GPU_PATH) compute-sanitizer --error-exitcode 1 \
    --kernel-name $(subst $(EMPTY) $(EMPTY),$(COMMA),$(addprefix kns=,$(GPU_KERNELS)))
MEMCHECK := --tool memcheck --report-api-errors no
GPU_BENCHMARKS := $(wildcard benchmarks/gpu_*.py)

gpu:  ## on a machine with a GPU: build, test, measure, sanitize; rows go to GPU_OUT, or benchmarks/results/<gpu>
	$(PYTHON) setup.py build_ext --inplace
	$(GPU_RUN) -m pytest -q tests/ops tests/kernels
	set -e; for script in $(GPU_BENCHMARKS); do name=$${script##*/gpu_}; \
	    $(GPU_RUN) $$script $(if $(GPU_OUT),--out $(GPU_OUT)/$${name%.py}.json); done
	if ! command -v compute-sanitizer >/dev/null; then \
	    echo 'gpu: compute-sanitizer is not on the PATH: memory and races are not checked'; else \
	    for tool in '$(MEMCHECK)' '--tool racecheck'; do \
	        $(SANITIZE) $$tool $(PYTHON) benchmarks/gpu_scoring.py --check || exit 1; done; fi

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
