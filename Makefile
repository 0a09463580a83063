# Two commands for a fresh machine: `make demo` (or `make demo-t2i`) and `make test`. Everything lives in .venv; PYTHON=python3.12 picks another.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-t2i test quick lint

demo: .venv/installed
	$(BIN)/align study experiment=mnist/cca output_dir=runs/demo overwrite=true

demo-t2i: .venv/installed
	$(BIN)/align study experiment=shapes/grpo output_dir=runs/demo-t2i overwrite=true

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

quick: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable ".[mnist,dev]"
	touch $@
