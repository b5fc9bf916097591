# Two commands do everything: `make demo` and `make test`. Each makes the environment it needs, once.

VENV ?= .venv
OUT ?= labkit-demo
DATA ?= auto
WORKERS ?= 2
TORCH_INDEX ?=
LAB_OPTIONS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

# Without PYTHON on the command line an environment that is good is kept, whatever Python made it.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
kept := $(BIN)/python tools/environment.py --ready --venv $(VENV) --extras
endif

too_old := "labkit needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name a newer one, as in: make demo PYTHON=python3.12"

# $(call environment,EXTRAS)
define environment
@{ $(if $(kept),$(kept) "$(1)" 2>/dev/null,false); } || { \
  command -v $(PYTHON) >/dev/null || { echo 'labkit needs Python 3.11 or newer, and there is no $(PYTHON). Name one, as in: make demo PYTHON=python3.12' >&2; exit 1; }; \
  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and $(too_old) or 0)' && \
  $(PYTHON) tools/environment.py --venv $(VENV) --extras "$(1)" --torch-index "$(TORCH_INDEX)"; }
endef

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-full check lab environment dev-environment lab-environment

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12        which Python makes the environment (3.11 or newer)"
	@echo "  TORCH_INDEX=URL          where torch comes from, for one without CUDA (see README.md)"
	@echo "  DATA=auto|cifar10|mnist5k, OUT=DIR   what the demo runs on, where its report goes"
	@echo "  LAB_OPTIONS='--no-browser --port 8899'   options for JupyterLab, for make lab"

demo: environment ## quantize a trained network, run and prove it on real images, write a report
	$(BIN)/labkit demo --data $(DATA) --out $(OUT)

test: dev-environment demo ## the demo, then the tests
	$(PYTEST) -n $(WORKERS) --dist worksteal --durations 10

test-full: dev-environment demo ## the demo, then the tests with every exhaustive one
	$(PYTEST) -n $(WORKERS) --dist worksteal --durations 20 -m ""

check: dev-environment ## format, lint, types, house rules, then the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/house
	$(PYTEST) -q -n $(WORKERS) --dist worksteal --ignore tests/house

lab: lab-environment ## make a folder of notebooks, labkit-lab, and open JupyterLab in it
	$(BIN)/labkit lab -- $(LAB_OPTIONS)

environment:
	$(call environment,)

dev-environment:
	$(call environment,dev)

lab-environment:
	$(call environment,lab)
