# make demo shows kvintro, and make test tests it. Both install what they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := vmcores/debian-6.12/core.kdump
# Use all processors. All tests on the same core run in the same worker.
PARALLEL := -n auto --dist loadgroup

TYPED := kvintro tools vmcores/build.py vmcores/lab examples/kvintro-example/kvintro_example tests

.PHONY: help demo test test-fuzz fuzz test-vm test-vm-all test-vm-built vmcores lint types bench docs test-browser dist clean \
	test-pythons coverage site zipapp release

help:
	@echo "make demo          show the layout of this host if it can be read, or else of a sample dump"
	@echo "make test          run unit tests and tests on the sample dumps (needs neither root nor a kernel)"
	@echo "make test-fuzz     run damaged inputs; THOROUGH=--thorough runs twice as many, KVINTRO_FUZZ=N N times"
	@echo "make fuzz          run coverage-guided fuzzing: TARGET=btf, html, kallsyms, kdump, lime ... SECONDS=600"
	@echo "make test-vm       boot kernels under QEMU and compare their dumps with the kernels' own data (needs root)"
	@echo "make test-vm-all   the same on every row of the lab's matrix"
	@echo "make vmcores       build the dumps of every row without testing them"
	@echo "make bench         compare time and memory with other tools"
	@echo "make docs          make schemas, manual page, completions and examples in docs/ from the code"
	@echo "make dist          make a wheel and an sdist in dist/, and run each outside the repository"
	@echo "make test-browser  test the HTML report in headless Chromium"
	@echo "make lint          run ruff"
	@echo "make types         run mypy"
	@echo "make test-pythons  run fast tests on the oldest and the newest Python of this machine"
	@echo "make coverage      run make test and report which lines it ran; fail if they are too few"
	@echo "make site          make the documentation site in build/site"
	@echo "make zipapp        make one file, build/kvintro.pyz, for hosts with drgn and numpy but without pip"
	@echo "make release       check that a release can be made, and make its files in dist/"
	@echo "make clean         remove .venv and built files"

# Each extra has a stamp file, so that it is installed again when pyproject.toml changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
	  || { echo "kvintro needs Python 3.9 or later; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { rm -rf $(VENV); echo "this Python cannot make a virtual environment:" \
	  "install it, on Debian and Ubuntu with: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: $(BIN)/python pyproject.toml
	@echo "installing kvintro and what it needs into $(VENV); this takes a minute or two" >&2
	@$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)" >&2
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
	@echo "running the unit tests and the tests on the sample dumps: some minutes on many processors, ten on two" >&2
	@$(BIN)/python -m pytest -q -rs $(PARALLEL) tests/unit tests/cores

vmcores: $(VENV)/.installed
	@$(BIN)/python vmcores/build.py
	@$(BIN)/python vmcores/build.py --arch arm64
	@$(BIN)/python vmcores/build.py --arch riscv64

# atheris has wheels only for some systems; without it, its tests are skipped.
$(VENV)/.fuzz: $(VENV)/.test
	@$(BIN)/pip install -q --disable-pip-version-check --only-binary atheris -e '.[fuzz]' \
	  || echo "atheris cannot be installed here: no coverage-guided fuzzing" >&2
	@touch $@

test-fuzz: $(VENV)/.fuzz
	@$(BIN)/python -m pytest -q -s -rs tests/fuzz $(THOROUGH)

# The inputs that reached new code stay in build/fuzz until make clean.
TARGET := kdump
SECONDS := 600
fuzz: $(VENV)/.fuzz
	@mkdir -p build/fuzz
	@cd build/fuzz && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m tests.fuzz.guided $(TARGET) $(TARGET) \
	  -max_total_time=$(SECONDS)

test-vm: $(VENV)/.test
	@$(BIN)/python vmcores/build.py --few
	@$(BIN)/python vmcores/build.py --arch arm64 --few
	@$(MAKE) --no-print-directory test-vm-built

test-vm-all: $(VENV)/.test vmcores
	@$(MAKE) --no-print-directory test-vm-built THOROUGH=--thorough

# Test every core that the lab has built.
test-vm-built: $(VENV)/.test
	@$(BIN)/python vmcores/build.py --debug-vmlinux >/dev/null
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/vm --cores built $(THOROUGH)
	@$(BIN)/python -m pytest -q $(PARALLEL) tests/cores --cores built $(THOROUGH)

lint: $(VENV)/.lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.lint
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/mypy --python-version 3.13 $(TYPED)

$(VENV)/.docs: $(VENV)/.lint
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

# Make everything that is generated from the code: schemas, the manual page, completions, examples in docs/.
docs: $(VENV)/.docs
	@$(BIN)/python tools/gen_schemas.py
	@$(BIN)/python tools/gen_man.py
	@$(BIN)/python tools/gen_methods.py
	@$(BIN)/python tools/gen_docs.py
	@$(BIN)/python -m tests.transcripts docs/prompt.md docs/api.md

# Test in a real browser. If it is missing, root on Debian installs it; otherwise a message names it.
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
	@$(MAKE) --no-print-directory zipapp
	@$(BIN)/python -m pytest -q tests/dist

# Seconds: tests that start no programs.
SMOKE := tests/unit/test_paging.py tests/unit/test_text.py tests/unit/test_drawing.py

test-pythons: tools/pythons.py
	@set -e; pythons=$$($(PYTHON) tools/pythons.py); for python in $$pythons; do \
	  echo "$$($$python --version):"; \
	  rm -rf $(VENV)-smoke; $$python -m venv $(VENV)-smoke; bin=$(VENV)-smoke/bin; \
	  $$bin/pip install -q --disable-pip-version-check -e . 'pytest>=7.3' 'hypothesis>=6'; \
	  $$bin/python -W error -m compileall -q -f kvintro; \
	  $$bin/kvintro -c $(SAMPLE) --no-pager layout >/dev/null; \
	  $$bin/kvintro -c $(SAMPLE) report -o $(VENV)-smoke/report.html; \
	  $$bin/python -m pytest -q -p no:cacheprovider $(SMOKE); \
	done; rm -rf $(VENV)-smoke

$(VENV)/.site: $(VENV)/.installed
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[site]'
	@touch $@

# Every warning is an error: a link that leads nowhere, a page that no other one reaches.
site: $(VENV)/.site
	@$(BIN)/python tools/gen_site.py build/site-source
	@$(BIN)/sphinx-build -q -W --keep-going -c docs/site build/site-source build/site
	@echo "made: build/site/index.html"

# The lines that programs run which tests start are not counted.
coverage: $(VENV)/.test
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[coverage]'
	@$(BIN)/python -m pytest -q $(PARALLEL) --cov --cov-report=term:skip-covered --cov-report=html:build/coverage \
	  tests/unit tests/cores

# One file, with all that is Python. drgn and numpy cannot go in: they are compiled.
zipapp: $(BIN)/python
	@rm -rf build/zipapp && mkdir -p build/zipapp
	@$(BIN)/pip install -q --disable-pip-version-check --no-compile --no-deps --target build/zipapp \
	  . Jinja2 MarkupSafe tqdm
	@rm -rf build/zipapp/bin build/zipapp/share; find build/zipapp -name '*.so' -delete
	@cp kvintro/__main__.py build/zipapp/
	@$(BIN)/python -m zipapp -c -p '/usr/bin/env python3' -o build/kvintro.pyz build/zipapp
	@echo "made: build/kvintro.pyz"

# Uploads nothing.
release: $(VENV)/.lint
	@$(BIN)/python tools/release.py
	@$(MAKE) --no-print-directory test lint types dist
	@$(BIN)/pip install -q --disable-pip-version-check twine
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python tools/release.py --next

bench: $(VENV)/.installed
	@$(BIN)/python tools/bench.py --large

clean:
	rm -rf $(VENV) $(VENV)-smoke build dist *.egg-info
