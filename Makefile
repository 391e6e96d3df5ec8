# kvintro: make demo shows it, make test tests it. Both set up what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := vmcores/debian-6.12/core.kdump
# On all processors; what is asked of one core stays with one worker.
PARALLEL := -n auto --dist loadgroup

.PHONY: help demo test test-fuzz test-vm test-vm-all test-vm-built vmcores lint types bench docs test-browser dist clean

help:
	@echo "make demo     the layout of this host if it can be read, else of a sample dump"
	@echo "make test     unit tests and the sample dumps (no root, no kernel needed)"
	@echo "make test-fuzz  ten thousand damaged inputs; KVINTRO_FUZZ=N for N times as many"
	@echo "make test-vm  boot kernels under QEMU and test their dumps against their own words (root)"
	@echo "make test-vm-all  the same on every row of the lab's matrix"
	@echo "make vmcores  build the dumps of every row, and test nothing"
	@echo "make bench    time and memory against peers"
	@echo "make docs     schemas, manual, completions, and the examples in docs/, from the code"
	@echo "make dist     a wheel and an sdist in dist/, each installed and run outside of here"
	@echo "make test-browser  the HTML report in headless Chromium"
	@echo "make lint types docs clean"

# A stamp an extra: what is installed follows pyproject.toml and nothing else.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
	  || { echo "kvintro needs Python 3.9 or later; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { rm -rf $(VENV); echo "this Python cannot make a virtual environment:" \
	  "install it, on Debian and Ubuntu with: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[test,lint]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/kvintro layout; status=$$?; \
	if [ $$status -eq 3 ]; then \
	  echo; echo "The running kernel cannot be read (see above); here is the sample $(SAMPLE):"; echo; \
	  $(BIN)/kvintro -c $(SAMPLE) layout; \
	else exit $$status; fi

test: $(VENV)/.test
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/unit tests/cores

vmcores: $(VENV)/.installed
	@$(BIN)/python vmcores/build.py

test-fuzz: $(VENV)/.test
	@$(BIN)/python -m pytest -q -s tests/fuzz

test-vm: $(VENV)/.test
	@$(BIN)/python vmcores/build.py --few
	@$(MAKE) --no-print-directory test-vm-built

test-vm-all: $(VENV)/.test vmcores
	@$(MAKE) --no-print-directory test-vm-built

# On whatever the lab has built.
test-vm-built: $(VENV)/.test
	@$(BIN)/python vmcores/build.py --debug-vmlinux >/dev/null
	@$(BIN)/python -m pytest -q tests/vm --cores built
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/cores --cores built

lint: $(VENV)/.lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.lint
	@$(BIN)/mypy kvintro
	@cd vmcores && MYPYPATH=. ../$(BIN)/mypy --strict build.py

$(VENV)/.docs: $(VENV)/.installed
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

# Everything that is made from the code: schemas, the manual, completions, and the examples in docs/.
docs: $(VENV)/.docs
	@$(BIN)/python tools/gen_schemas.py
	@$(BIN)/python tools/gen_man.py
	@$(BIN)/python tools/gen_docs.py
	@$(BIN)/python -m tests.transcripts docs/prompt.md docs/api.md

# In a real browser. As root on Debian a missing one is installed, else it is named.
test-browser: $(VENV)/.test
	@if ! command -v chromedriver >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -qy --no-install-recommends chromium chromium-driver; \
	  else echo "a browser is missing; on Debian: sudo apt install chromium chromium-driver" >&2; exit 1; fi; \
	fi
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[browser]'
	@$(BIN)/python -m pytest -q tests/browser

dist: $(VENV)/.test
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dist]'
	@rm -rf build dist
	@$(BIN)/python -m build . >/dev/null
	@$(BIN)/python -m pytest -q tests/dist

bench: $(VENV)/.installed
	@$(BIN)/python tools/bench.py --large

clean:
	rm -rf $(VENV) build dist *.egg-info
