# There is one way to do each thing: `make` alone lists the targets. CI calls the same ones.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup constraints train quick test coverage soak fuzz throughput gpu-check gpu-lower lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# On Colab, Kaggle and Debian, python3 lacks ensurepip, so that `venv` fails and leaves an incomplete .venv.
WITHOUT_ENSUREPIP = $(PYTHON) -m venv --clear --without-pip .venv && \
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip

setup: .venv/.installed ## Make .venv and install fastae with its tested versions

# CUDA_MAJOR=12 or 13, and TORCH_INDEX=URL, replace what fits this machine's driver and GPU.
.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { $(WITHOUT_ENSUREPIP); } || { echo "$(PYTHON) makes no \
	virtual environment with pip: apt install python3-venv python3-pip" >&2; exit 2; }
	cuda=$(or $(CUDA_MAJOR),$$($(PYTHON) scripts/cuda_major.py)) && \
	index=$(or $(TORCH_INDEX),$$(test $$cuda = 13 || echo https://download.pytorch.org/whl/cu126)) && \
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		$${index:+--extra-index-url $$index} -e ".[cuda$$cuda,dev]"
	@$(BIN)/python -m fastae.device.compatibility
	@touch $@

# For all extras and Pythons. PyTorch's build, for CUDA 12 or 13, determines the versions of the two that are left out.
constraints: setup ## Pin in constraints.txt what pyproject.toml newly needs (ARGS=--upgrade: the newest of all)
	$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--no-emit-package cuda-toolkit --no-emit-package cuda-bindings \
		--custom-compile-command "make constraints" --output-file constraints.txt $(ARGS)

# Limited by time, not by iterations, so that it fits any machine. The learning rate is higher because the run is short.
train: setup ## Train on the built-in synthetic faces for 2.5 minutes; print which picture to open
	$(BIN)/fastae train --loss minibatch_bce --amp --minutes 2.5 --batch-size 16 --lr 5e-4 \
		--log-every 50 --eval-every 100

quick: setup ## Run the tests that start no process, and neither compile, train nor draw (a minute)
	$(BIN)/python -m pytest --quick -q -r fE --ignore=tests/benchmarks --ignore=tests/fuzz --ignore=tests/faults

test: setup ## Run all tests (GPU tests are skipped without a GPU)
	$(BIN)/python -m pytest

coverage: setup ## Run all tests and list the lines of fastae/ that none runs
	$(BIN)/python -m pytest --cov=fastae --cov-report=term-missing:skip-covered

soak: setup ## Run the long tests: four faults at each file operation, 20,000 simulated seconds (up to an hour)
	FASTAE_SOAK=1 $(BIN)/python -m pytest --numprocesses=2 -v -rA \
		tests/faults tests/training/test_soak.py tests/training/test_distributed.py tests/test_frameworks.py

FILES ?= 20000
SEED ?= 0
fuzz: setup ## Run the long form of tests/fuzz: FILES=20000 broken images of SEED=0, 2,000 examples per parser
	FASTAE_FUZZ=$(FILES) FASTAE_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest --numprocesses=0 tests/fuzz

throughput: setup ## Measure loaders, step, whole runs and the budget of the six runs; write a record
	$(BIN)/python -m benchmarks.throughput $(ARGS)

OUT ?= gpu-check
gpu-check: setup ## On a GPU machine: run tests/gpu, throughput, decoder sweep, into OUT=dir; resumes
	$(BIN)/python scripts/gpu_check.py --out $(OUT) $(ARGS)

HOLLOW_VENV ?= $(HOME)/.cache/fastae-hollow-gpu
gpu-lower: $(HOLLOW_VENV)/bin/torchrun ## Without a GPU: compile the step for one, and print what it launches (5 GB)
	$(HOLLOW_VENV)/bin/python -m scripts.hollow_gpu $(ARGS)

# PyPI's PyTorch for Linux is a CUDA build. A configured folder or index may hold a CPU build of the same version.
$(HOLLOW_VENV)/bin/torchrun:
	$(PYTHON) -m venv $(HOLLOW_VENV)
	env PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(HOLLOW_VENV)/bin/pip install --quiet \
		--disable-pip-version-check -c constraints.txt -e '.[cuda13]' pytest pytest-xdist

lint: setup ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove .venv, caches and build files (runs/ stays)
	rm -rf .venv .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
