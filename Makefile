# The commands of a working copy. They need Python 3.11 or newer, and install into .venv alone.

PYTHON := .venv/bin/python
# Test processes side by side; JOBS=0 runs the tests in one process, with a debugger if need be.
JOBS ?= 2
PIP := $(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

INSTALLED := .venv/.installed
INSTALLED_TEST := .venv/.installed-test

.PHONY: help quickstart test test-slow check bench clean

help:
	@echo "make quickstart   train, evaluate and export a small real model on this computer"
	@echo "make test         the tests (JOBS=$(JOBS)), without the slow ones"
	@echo "make test-slow    the slow tests"
	@echo "make check        formatting, lint and types"
	@echo "make bench        measurements, side by side with the references"
	@echo "make clean        remove caches and .venv; runs/ stays"

quickstart: $(INSTALLED)
	.venv/bin/bactrian run recipes/quickstart.toml --run-dir runs/quickstart

test: $(INSTALLED_TEST)
	$(PYTHON) -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(INSTALLED_TEST)
	$(PYTHON) -m pytest -m slow

check: $(INSTALLED_TEST)
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

bench: $(INSTALLED_TEST)
	$(PYTHON) bench/startup.py
	$(PYTHON) bench/step.py
	$(PYTHON) bench/generate.py
	$(PYTHON) bench/dpo.py
	$(PYTHON) bench/sft.py

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt | $(PYTHON)
	@echo "Installing Bactrian into .venv; the first time takes a minute or more"
	@$(PIP) --editable .
	@touch $@

$(INSTALLED_TEST): pyproject.toml constraints.txt | $(PYTHON)
	@echo "Installing Bactrian and what its tests need into .venv; the first time takes some minutes"
	@$(PIP) --editable ".[test]"
	@touch $(INSTALLED) $@

# An interpreter without ensurepip (Debian's python3 without python3-venv) cannot make an environment: passed over.
$(PYTHON):
	@for candidate in python3.13 python3.12 python3.11 python3; do \
	  if $$candidate -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating .venv with $$($$candidate --version)"; \
	    $$candidate -m venv --clear .venv; exit; \
	  fi; \
	done; \
	echo "No Python 3.11 or newer that can make a venv; install one (on Debian: python3 and python3-venv)" >&2; exit 1
