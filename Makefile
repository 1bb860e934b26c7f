# Everything from a clone on a bare machine with Python: `make demo`, `make test`.
comma := ,

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,demo
PYTEST_ARGS ?=
export EDGEFACE_DATA ?= $(abspath ../shared/data)

BIN = $(VENV)/bin
# One stamp a set of extras, so that asking for more of them installs them.
STAMP = $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo test nightly lint clean

demo: EXTRAS = demo
demo: $(VENV)/.installed-demo
	$(BIN)/edgeface demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What takes minutes: the same on all of the data, and in more rounds.
nightly: PYTEST_ARGS += -m nightly
nightly: test

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$(subst -,$(comma),$*)]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-omz edgeface-demo
