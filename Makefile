# Everything runs in a virtual environment of its own, .venv, which the first call makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REFERENCE := .venvs/reference
SPARK := .venvs/spark
# For these alone: the pipeline itself would warn of a variable that it does not know.
bench bench-history bench-dream: export VIDURAI_REFERENCE_PYTHON ?= $(CURDIR)/$(REFERENCE)/bin/python

# The user's own store only if they name it; otherwise a sample in this folder.
ifeq ($(strip $(VIDURAI_HOME)$(VIDURAI_DB)),)
export VIDURAI_HOME := $(CURDIR)/sample
SAMPLE := sample/vidurai.db
endif
# More for pytest: make test PYTEST_ARGS="-k query -x"
PYTEST_ARGS ?=
.DEFAULT_GOAL := help
.PHONY: help run dev environments test test-fast lint format hooks docs snapshot bench bench-history bench-dream bench-compaction bench-scrub bench-search bench-fleet bench-objects clean

help:  ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

run: $(VENV)/running $(SAMPLE)  ## run the maintenance job on your store, or on a sample
	@$(BIN)/vidurai-pipeline run

dev: $(VENV)/running $(SAMPLE)  ## open Dagster's UI at http://127.0.0.1:3000, with the nightly schedule on
	@$(BIN)/vidurai-pipeline ui

environments: $(VENV)/installed $(REFERENCE)/installed $(SPARK)/installed

test: environments  ## run all tests
	$(BIN)/pytest -n 3 --dist worksteal -rs $(PYTEST_ARGS)

test-fast: $(VENV)/installed  ## run each package's main promises, in less than a minute
	$(BIN)/pytest -n 2 -m fast $(PYTEST_ARGS)

hooks: $(VENV)/installed  ## run the linters before each commit
	$(BIN)/pre-commit install

lint: $(VENV)/installed  ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH="$(CURDIR)/$(BIN):$$PATH" lint-imports

format: $(VENV)/installed  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed  ## write docs/configuration.md anew from the settings
	$(BIN)/python docs/generate_configuration.py > docs/configuration.md.part
	mv docs/configuration.md.part docs/configuration.md

snapshot: $(VENV)/installed  ## renew what the tests keep: the list of what Dagster shows, the notebook's outputs
	RENEW_SNAPSHOT=1 $(BIN)/pytest -q vidurai_pipeline_tests/test_specs.py vidurai_pipeline_tests/test_notebook.py

bench: $(VENV)/installed $(REFERENCE)/installed  ## compare with the reference implementation
	$(BIN)/python -m benchmarks.archive

bench-history: $(VENV)/installed $(REFERENCE)/installed  ## the same for questions to an archive of 3 million memories
	$(BIN)/python -m benchmarks.history

bench-dream: $(VENV)/installed $(REFERENCE)/installed  ## compare the learning with the reference implementation
	$(BIN)/python -m benchmarks.dream

bench-compaction: $(VENV)/installed  ## measure what compaction costs and saves
	$(BIN)/python -m benchmarks.compaction

bench-search: $(VENV)/installed  ## what a search finds by the index and without it, and how fast
	$(BIN)/python -m benchmarks.search

bench-scrub: $(VENV)/installed  ## compare the proof of archived files with SHA-256 alone
	$(BIN)/python -m benchmarks.scrub

bench-fleet: $(VENV)/installed  ## one Q-table from 100,000,000 experiences of 200 stores: some minutes, and 2 GB of disk
	$(BIN)/python -m benchmarks.fleet

bench-objects: $(VENV)/installed  ## count what an archive in an object store takes in requests and bytes
	$(BIN)/python -m benchmarks.objects

clean:  ## remove the sample stores and the virtual environments
	rm -rf sample another $(VENV) .venvs

# uv installs in seconds what takes pip a minute. pip does it where uv finds no index: uv doesn't read pip's settings.
install = { $(1)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv && \
    $(1)/bin/uv pip install --quiet --python $(1)/bin/python $(2) 2>/dev/null; } || \
    $(1)/bin/pip install --quiet --disable-pip-version-check $(2)

# What running needs. If Python is too old, or the installation fails, no half-made .venv is left.
$(VENV)/running: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "vidurai-pipeline needs Python 3.11 or later, this is %d.%d: make PYTHON=python3.11" % v[:2])'
	@echo "Installing into $(VENV): this takes about a minute"
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@{ $(call install,$(VENV),--constraint constraints.txt --editable .); } || \
	    { test -e $(VENV)/installed || test -e $@ || rm -rf $(VENV); echo "Not installed: see above"; exit 1; }
	@touch $@

# What the tests, linters and benchmarks need beside it.
$(VENV)/installed: $(VENV)/running
	@echo "Installing the test tools"
	@$(call install,$(VENV),--constraint constraints.txt --editable '.[dev]')
	@touch $@

# The public vidurai package without sentence-transformers, to test that each reads what the other writes.
$(REFERENCE)/installed: vidurai_pipeline_tests/requirements-reference.txt
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/pip install --quiet --disable-pip-version-check --no-deps vidurai==2.2.0
	@$(call install,$(REFERENCE),--requirement vidurai_pipeline_tests/requirements-reference.txt)
	@touch $@

# Spark: 400 MB of Java, in a folder of its own, which one module of tests adds to Python's path. Nothing else needs it.
$(SPARK)/installed: constraints.txt | $(VENV)/running
	@echo "Installing Spark into $(SPARK)"
	@rm -rf $(SPARK)
	@$(call install,$(VENV),--constraint constraints.txt --target $(SPARK) pyspark)
	@touch $@

sample/vidurai.db: | $(VENV)/running
	@$(BIN)/vidurai-pipeline demo sample
