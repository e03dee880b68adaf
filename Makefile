# The two commands of this repository: `make demo` (crawl, filter, train and score a small real web) and
# `make test` (every test and check). Both make .venv first; nothing outside this folder is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A folder for the demo's results; rerunning continues what is there.
DEMO ?= runs/emoji
# Threads that wait sleep: spinning ones take the cores from the other processes, and small fits take ten times as long.
export OMP_WAIT_POLICY ?= passive
# Tests run in as many processes as there are cores, four at most: each holds up to three gigabytes.
TEST_PROCESSES ?= --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help demo test check install clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install, then crawl, filter, train and score the emoji web (about 10 minutes on 2 CPU cores)"
	@echo "make test    install, then run every test and check"
	@echo "make check   formatting, lint, types and import direction only"
	@echo "make install make $(VENV) with everything the demo and the tests need"
	@echo "make clean   remove $(VENV) and the demo's results"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard data_pipeline/native/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[examples]" --group dev --constraint constraints.txt
	-$(BIN)/python -m data_pipeline.native  # speed only: goes on without a C compiler
	touch $@

demo: install
	$(BIN)/python -m examples.emoji.recipe output_dir=$(DEMO)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

test: check
	$(BIN)/python -m pytest $(TEST_PROCESSES)

clean:
	rm -rf $(VENV) $(DEMO)
