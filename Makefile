# make demo | make test | make bench: each starts from nothing (own .venv, install, build, run).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

NATIVE := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f)
DEMO_STAMP := $(VENV)/.demo-installed
DEV_STAMP := $(VENV)/.dev-installed

.PHONY: demo test check bench bench-full accuracy docs gpu clean
.PHONY: gpu-build gpu-test gpu-ceilings gpu-linear24 gpu-linear24-cusparselt gpu-linear24-algorithms gpu-model
.PHONY: gpu-scoring gpu-attention gpu-sanitize

demo: $(DEMO_STAMP)  ## prune, run and measure the built-in model (a few minutes)
	$(BIN)/vlprune run demo --out out/demo

test: $(DEV_STAMP) check  ## lint, types, tests
	$(BIN)/python -m pytest

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEMO_STAMP)  ## every operator and whole towers beside their peers: two minutes, a page in out/bench
	$(BIN)/vlprune bench --quick --out out/bench

bench-full: $(DEMO_STAMP)  ## the same with every shape, dtype and tower
	$(BIN)/vlprune bench --full --out out/bench-full

accuracy: $(DEMO_STAMP)  ## what every method costs the built-in model, and every split between its towers
	$(BIN)/python -m benchmarks.accuracy methods --out out/demo-methods.json
	$(BIN)/python -m benchmarks.accuracy split --seeds 3 --out out/demo-split.json

docs: $(DEMO_STAMP)  ## the API reference from the docstrings, a page in out/api
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m pdoc -d google -o out/api vlprune '!vlprune.kernels'

# With the Python that has torch for the GPU already, so that it needs no network. PARTS takes some: PARTS="build
# test", or single measurements, PARTS="linear24 model". A part that fails does not keep the others from running.
# FULL=1 measures every shape and form, which takes several times as long.
FULL ?=
QUICK := $(if $(filter-out 0,$(FULL)),,--quick)
GPU_MEASURED := ceilings linear24 model scoring attention linear24-cusparselt \
    $(if $(QUICK),,linear24-algorithms)
PARTS ?= build test sanitize measure
GPU_OUT ?=
# What needs a GPU; the other tests run anywhere. cuSPARSELt may leave a process that can do nothing more.
GPU_TESTS ?= tests/ops/test_cuda.py tests/ops/test_cuda_linear24.py
GPU_PATH := PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH}
# A kernel that hangs costs one part.
GPU_RUN := $(GPU_PATH) timeout --foreground --kill-after 5 $(if $(QUICK),600,3600) $(PYTHON)
# Of what runs only the kernels here, by parts of their names (any of them: a list in one option means all):
# PyTorch's own are not what is checked. Nor are the compilers that Triton starts.
GPU_KERNELS := _pack_one _pack_many _mask4 _mask_ranked _mask_units _count_digits _count_ties _write _partial \
    _total _unpack
GPU_KERNELS_24 := linear24_kernel device_kernel product finish
GPU_KERNELS_ATTENTION := whole_kernel tiled_kernel rows_kernel columns_kernel
# Not in the foreground, where only the sanitizer itself would be ended, and not what it runs.
SANITIZE = PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(GPU_PATH) timeout --kill-after 5 240 \
    compute-sanitizer --error-exitcode 1 --target-processes application-only $(addprefix --kernel-name kns=,$(1))
MEMCHECK := --tool memcheck --report-api-errors no

gpu:  ## on a machine with a GPU: build, test, sanitize, measure; rows go to GPU_OUT, or benchmarks/results/<gpu>
	@failed=; for part in $(patsubst measure,$(GPU_MEASURED),$(PARTS)); do \
	    echo "gpu: $$part"; $(MAKE) --no-print-directory gpu-$$part || failed="$$failed $$part"; done; \
	    if [ -n "$$failed" ]; then echo "gpu: failed:$$failed"; exit 1; fi

gpu-build:
	VLPRUNE_CUDA=1 $(PYTHON) setup.py build_ext --inplace

gpu-test:
	@status=0; for tests in "not cusparselt" cusparselt; do \
	    $(GPU_RUN) -m pytest -q -k "$$tests" $(GPU_TESTS) || [ $$? = 5 ] || status=1; done; exit $$status

gpu-linear24-cusparselt gpu-linear24-algorithms: gpu-linear24-%:
	$(GPU_RUN) -m benchmarks.gpu_linear24 $(QUICK) --part $* $(if $(GPU_OUT),--out $(GPU_OUT)/linear24-$*.json)

gpu-linear24 gpu-model gpu-attention: gpu-%:
	$(GPU_RUN) -m benchmarks.gpu_$* $(QUICK) $(if $(GPU_OUT),--out $(GPU_OUT)/$*.json)

gpu-ceilings gpu-scoring: gpu-%:
	$(GPU_RUN) -m benchmarks.gpu_$* $(if $(GPU_OUT),--out $(GPU_OUT)/$*.json)

# Races are looked for where threads share memory by what the tool follows: not by wgmma and bulk copies.
gpu-sanitize:
	@if ! command -v compute-sanitizer >/dev/null; then \
	    echo 'gpu: compute-sanitizer is not on the PATH: memory and races are not checked'; exit 0; fi; \
	    status=0; \
	    $(call SANITIZE,$(GPU_KERNELS)) $(MEMCHECK) $(PYTHON) -m benchmarks.gpu_scoring --check || status=1; \
	    $(call SANITIZE,$(GPU_KERNELS)) --tool racecheck $(PYTHON) -m benchmarks.gpu_scoring --check || status=1; \
	    $(call SANITIZE,$(GPU_KERNELS_24)) $(MEMCHECK) $(PYTHON) -m benchmarks.gpu_linear24 --check || status=1; \
	    $(call SANITIZE,linear24_kernel) --tool racecheck \
	        $(PYTHON) -m benchmarks.gpu_linear24 --check || status=1; \
	    $(call SANITIZE,$(GPU_KERNELS_ATTENTION)) $(MEMCHECK) \
	        $(PYTHON) -m benchmarks.gpu_attention --check || status=1; \
	    exit $$status

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
