# The commands of README.md. The virtual environment is created if it is missing and
# updated when the requirements change. pip need not compile what is installed (--no-compile): most
# of it is never imported, and the rest is compiled when it is.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint audit

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

quickstart: $(VENV)/.installed  ## three teachers, a student alone and a distilled student on digits, a few minutes
	$(BIN)/python train_kd.py

test: $(VENV)/.installed-dev  ## all tests but the slow ones and those that need a GPU
	$(BIN)/python -m pytest -rs -n 4 --dist loadscope --no-loadscope-reorder --timeout 1800

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: $(VENV)/.installed-dev  ## check that installed packages are compatible and that the code uses them
	$(BIN)/python -m pip check
	$(BIN)/python -m pytest -q tests/project/test_dependencies.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --no-compile -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements.txt requirements-export.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --no-compile -r requirements-dev.txt
	@touch $@ $(VENV)/.installed
