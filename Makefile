# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
  $$python -c '$(FITS)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test test-slow test-foreign foreign check format lock clean

install: $(VENV)/.installed ## make .venv from requirements.lock and install dataengine into it

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python 3.11 or 3.12 found; install one, or run make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@

quickstart: install ## run the main job offline on the built-in sample web
	$(BIN)/dataengine quickstart quickstart

test: install ## run every quick test
	$(BIN)/python -m pytest

test-slow: install foreign ## the long suites: kills, soak, foreign readers
	$(BIN)/python -m pytest -m slow --timeout 1800

test-foreign: install foreign ## what we publish, read by open_clip, Energon, datasets, webdataset, wids; xtuner trains on it
	$(BIN)/python -m pytest -m slow --timeout 1800 tests/foreign

# Readers and trainers whose pins clash with ours and each other's have an environment each.
foreign: .foreign/open_clip/.installed .foreign/energon/.installed .foreign/datasets/.installed .foreign/xtuner/.installed

.foreign/%/.installed: tests/foreign/%.txt
	test -x .foreign/$*/bin/python || $(PYTHON) -m venv .foreign/$*
	.foreign/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

check: install ## format, lint, types, then the quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: install ## rewrite the code in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --extra engine --extra cpu --extra dev --python-version 3.11 --universal \
	  --no-header --no-annotate --output-file requirements.lock

clean: ## remove the environment and the quickstart
	rm -rf $(VENV) quickstart
