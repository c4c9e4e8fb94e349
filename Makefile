# Every task of this repository. `make demo` and `make test` are all a fresh machine needs.

PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench/bin
VERL := .venv-verl/bin
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt
export NO_MKDOCS_2_WARNING := 1
unexport PYTHONDONTWRITEBYTECODE # what pytest makes of the tests is kept for its next start

# Tests wait for browsers, servers and programs a third of their time.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
WORKERS ?= $(shell expr \( $(CORES) \& $(CORES) \< 16 \| 16 \) \* 3 / 2)
# A file's tests share what it makes once; `worksteal` is faster where they share nothing, as the slow ones.
DIST ?= loadfile

ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all fuzz test-verl check docs dist reproduce bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## Train the tiny world with and without the search, write runs/demo/
	$(BIN)/effopd demo

test: .venv/.installed ## Run the tests (5 minutes on two cores; no network, no GPU needed); MARKS=slow runs others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist $(DIST) $(if $(MARKS),-m '$(MARKS)' --durations=12)

test-all: .venv/.installed ## Run the slow tests and those of several ranks too, and the GPU tests where there is one
	$(BIN)/python -m pytest -m 'not network'

fuzz: .venv/.installed ## Look for new failing examples of the Hypothesis tests, 90 seconds; SEED=N repeats a run
	@echo 'make fuzz SEED=$(SEED)'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist load -m 'hypothesis and not slow and not distributed and not gpu and not network' \
	  --hypothesis-profile=fuzz --hypothesis-seed=$(SEED)

test-verl: .venv-verl/.installed ## Run verl with the search for real, on the CPU, in an environment of its own
	OMP_NUM_THREADS=1 $(VERL)/python -m pytest tests/verl

check: .venv/.installed ## Lint, formatting, types, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

docs: .venv/.installed ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

dist: ## Build wheel and sdist into dist/ and check them in an empty environment; needs the network
	PYTHON=$(PYTHON) .ci/dist

reproduce: .venv/.installed ## Every figure and table of the paper in the tiny world, into docs/reproduction.md
	$(BIN)/python -m studies.paper

bench: .venv-bench/.installed ## Measure against the peers of bench/requirements.txt
	$(BENCH)/python bench/kl.py
	$(BENCH)/python bench/search.py
	$(BENCH)/python -W ignore bench/spectra.py
	$(BENCH)/python bench/code.py

clean: ## Remove caches and built pages; environments and runs/ stay
	rm -rf site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench examples studies -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'effopd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	@echo 'Installing effopd and its tools into .venv (once; PyTorch is the large part) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

.venv-bench/.installed: bench/requirements.txt pyproject.toml constraints.txt
	@echo 'Installing effopd and the benchmark peers into .venv-bench ...'
	@$(PYTHON) -m venv .venv-bench
	@$(BENCH)/python $(PIP) -r bench/requirements.txt
	@$(BENCH)/python $(PIP) --no-deps liger-kernel==0.8.5
	@touch $@

.venv-verl/.installed: tests/verl/requirements.txt pyproject.toml constraints.txt
	@echo 'Installing effopd and verl into .venv-verl ...'
	@$(PYTHON) -m venv .venv-verl
	@$(VERL)/python $(PIP) -e . -r tests/verl/requirements.txt
	@touch $@
