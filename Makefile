# make demo   raw text to a chat model, on this machine
# make test   lint, types, import rules, tests (≤ 12 minutes on 2 cores)
# make proof  the long proofs: slow, chaos, model, browser (≤ 60 minutes)
# make docs   the handbook as a site in English and 中文: site/index.html
# make setup  the environment alone
#
# PYTHON=python3.12        another interpreter (3.11 or newer)
# TORCH_INDEX=URL          take torch from this wheel index (pytorch.org names one per CUDA version and one for CPU)
# RECIPE=recipes/demo.yaml what `make demo` runs

PYTHON ?= python3
TORCH_INDEX ?=
RECIPE ?= recipes/demo.yaml
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test proof docs setup lint clean

demo: $(VENV)/.runtime
	$(BIN)/hepta run $(RECIPE)

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

proof: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow or chaos or model or browser' --timeout 2400 -v

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; its search needs a server: $(BIN)/python -m http.server -b 127.0.0.1 -d site" >&2

setup: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; name a newer one: make demo PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python's venv module is missing (on Debian and Ubuntu: apt install python3-venv)" >&2; rm -rf $(VENV); exit 2; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing what hepta needs into $(VENV) (a few minutes, once)" >&2
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the tools of the tests into $(VENV) (once)" >&2
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@echo "installing what builds the handbook into $(VENV) (once)" >&2
	$(PIP) -e '.[docs]'
	@touch $@
