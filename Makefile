# Every target makes .venv and installs into it by itself; it needs Python 3.10 or newer with pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUTPUT ?= quickstart-output
DEMO_ARGS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench clean distclean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

# A system Python may come without ensurepip: then its own pip fills the environment from outside.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,demo]'
	touch $@

install: $(STAMP) ## make .venv with the tested versions

demo: $(STAMP) ## train, save, reload and generate: hf-reformer quickstart (about 3 minutes on 2 cores)
	$(BIN)/hf-reformer quickstart --output $(DEMO_OUTPUT) $(DEMO_ARGS)

test: lint ## lint, then the tests (PYTEST_ARGS="-m slow" runs the slow ones)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean: ## remove what runs and builds leave behind
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis $(DEMO_OUTPUT)
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf $(VENV)
