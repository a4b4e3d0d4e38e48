# Every target makes .venv and installs into it by itself; it needs Python 3.10 or newer with pip, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
AUDIT_STAMP := $(VENV)/.audit-installed
DEMO_OUTPUT ?= quickstart-output
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
MUTANTS_ARGS ?=
SIEGE_ARGS ?= --cases 1000
# The test models are tiny: many processes of one thread use the cores better than one process of many threads. A process
# takes up to 1 GiB, so there are no more than 8.
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
WORKERS ?= $(shell test $(CORES) -gt 8 && echo 8 || test $(CORES) -gt 1 && echo $(CORES) || echo 0)
# names of files may hold blanks and quotes, so a shell gets them from its environment
export DEMO_OUTPUT

.DEFAULT_GOAL := help
.PHONY: help install demo test testpage lint format bench mutants siege audit lowest newest wheel docs clean distclean

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
	$(BIN)/hf-reformer quickstart --output "$$DEMO_OUTPUT" $(DEMO_ARGS)

test: lint ## lint, then the tests on all cores (PYTEST_ARGS="-m slow" runs the slow ones)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

testpage: $(STAMP) ## the page of `hf-reformer demo` in headless Chromium, which must be there (Debian: apt-get install chromium)
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "make testpage: there is no Chromium"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[page-test]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q tests/test_page_browser.py

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

mutants: $(STAMP) ## break the code in many places and see whether the tests notice (MUTANTS_ARGS="--sample 40 --module hashing")
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants $(MUTANTS_ARGS)

siege: $(STAMP) ## besiege every entry and reader, figures into siege.json (SIEGE_ARGS="--cases 1000 --only gin image")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[siege]'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/siege.py $(SIEGE_ARGS)

$(AUDIT_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	touch $@

audit: $(AUDIT_STAMP) ## known vulnerabilities of the tested versions
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

lowest: $(AUDIT_STAMP) ## the tests with the lowest versions that setup.cfg allows
	$(call test_with,lowest,lowest-direct)

newest: $(AUDIT_STAMP) ## the tests with the newest versions that setup.cfg allows
	$(call test_with,newest,highest)

# name of an environment beside $(VENV), how uv chooses versions
define test_with
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-$(1)
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --resolution $(2) --python $(VENV)-$(1)/bin/python --extra test setup.cfg \
		-o $(VENV)-$(1)/versions.txt
	$(BIN)/uv pip install --quiet --python $(VENV)-$(1)/bin/python -r $(VENV)-$(1)/versions.txt
	$(BIN)/uv pip install --quiet --python $(VENV)-$(1)/bin/python --no-deps -e .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-$(1)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
endef

wheel: $(STAMP) ## build wheel and sdist into dist/, install the wheel into an empty environment and try it
	rm -rf dist && mkdir dist
	$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')" > dist/log
	rm -rf $(VENV)-wheel && $(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd / && "$(CURDIR)/$(VENV)-wheel/bin/python" -I "$(CURDIR)/tests/smoke.py" "$(CURDIR)"/dist/*.whl

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(DOCS_STAMP) ## build the documentation into site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# a folder that DEMO_OUTPUT names belongs to whoever named it
clean: ## remove what builds and `make demo` leave behind
	rm -rf build dist site src/*.egg-info .pytest_cache .ruff_cache .hypothesis quickstart-output
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-wheel
