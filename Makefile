# Everything from a clone on a bare machine with Python: `make demo`, `make quick`, `make test`.
comma := ,

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,demo
# Which tests: their files, a marker expression, how many at a time, and whatever else pytest takes.
TESTS ?= tests
MARKS ?= not nightly
JOBS ?= logical
PYTEST_ARGS ?=
ifneq ($(wildcard ../shared/data),)
export EDGEFACE_DATA ?= $(abspath ../shared/data)
endif

# Some images set it. Every process of the tests would compile all that it imports, again.
unexport PYTHONDONTWRITEBYTECODE

BIN = $(VENV)/bin
# One stamp a set of extras, so that asking for more of them installs them.
STAMP = $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo quick test nightly lint docs release clean

demo: EXTRAS = demo
demo: $(VENV)/.installed-demo
	$(BIN)/edgeface demo

# Side by side whatever can be, then one after another what measures this machine's time, load or memory.
PYTEST = $(BIN)/python -m pytest --hypothesis-profile=$(PROFILE) $(PYTEST_ARGS)
PROFILE = default
RUN = run() { $(PYTEST) "$$@" || test $$? -eq 5; } && \
	run -n $(JOBS) --dist worksteal -m "($(MARKS)) and not alone" $(TESTS) && \
	files=$$(grep -rl --include='test_*.py' mark.alone $(TESTS) || test $$? -eq 1) && \
	{ test -z "$$files" || run -m "($(MARKS)) and alone" $$files; }  # 5: there are none

# While you write: unit tests without those that are slow or want the machine for themselves, and few examples of what
# Hypothesis makes up.
quick: TESTS = tests/unit
quick: PROFILE = quick
quick: $(STAMP)
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow and not nightly and not alone" $(TESTS)

test: $(STAMP)
	$(RUN)

# What takes minutes: all of the data, and ten times the examples.
nightly: EXTRAS = test,demo,fuzz
nightly: PROFILE = nightly --timeout=1800
nightly: MARKS = nightly or hypothesis
nightly: $(STAMP)
	$(RUN)

lint: $(VENV)/.installed-lint-serve  # whose types FastAPI and uvicorn bring themselves
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

# The pages of docs/ into site/. Strict: a dead link or an unknown name fails. They need no network to be read.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@! grep -rnE '<(script|link|img)[^>]*(src|href)="?https?://' site --include='*.html'

# Builds the wheel into dist/, installs it into a new environment outside of this clone, and runs the demo there.
release: $(VENV)/bin/python
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	away=$$(mktemp -d) && trap 'rm -rf "$$away"' EXIT && \
	$(PYTHON) -m venv "$$away/venv" && \
	"$$away/venv/bin/python" -m pip install --quiet "$$(echo $(CURDIR)/dist/edgeface-*.whl)[demo]" && \
	cd "$$away" && export EDGEFACE_CACHE="$$away/cache" && unset PYTHONPATH && \
	venv/bin/edgeface demo --output-dir demo && \
	venv/bin/python -c 'import edgeface, skimage; a = skimage.data.astronaut()[..., ::-1]; print(edgeface.verify(a, a))'
	@echo "released: $$(echo dist/*.whl)"
