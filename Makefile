# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
CORES ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo test lock

setup: $(VENV)/.complete

# The venv is only called complete once everything in the lock is in it. A mirror set for pip serves uv too.
$(VENV)/.complete: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "asdflow needs Python 3.11 to 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Remedy: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) from requirements.txt (PyTorch is large; some minutes on a slow line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	@mirror=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true); \
	  if [ -n "$$mirror" ]; then export UV_DEFAULT_INDEX="$$mirror"; fi; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# The default run; its last line is the report. A second run does nothing and says so.
demo: setup
	@snakemake --cores $(CORES)
	@echo "Report: $(CURDIR)/results/report/index.html"

test: setup
	@python -m pytest -n $(CORES) --dist loadfile

# Not part of any target: makes a new lock from pyproject.toml.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate --upgrade-package "$(PACKAGE)" -o requirements.txt
