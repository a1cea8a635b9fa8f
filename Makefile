# Two commands for a fresh machine that has Python 3.11 or newer: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-min lint clean

quickstart: .venv/.run
	$(BIN)/grafalign quickstart --out runs/quickstart

test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# the oldest versions that pyproject.toml allows, all at once
test-min: .venv-min/.test
	OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -n 2

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv-min/.test: pyproject.toml
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install --quiet uv
	.venv-min/bin/uv pip install --quiet --python .venv-min/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

clean:
	rm -rf .venv .venv-min .venv-stac runs build dist
