# Needs only make and Python 3.11 or newer; everything else is put into .venv by the targets themselves.
# PYTHON=... picks an interpreter, EXTRAS=dev,cuda adds extras of pyproject.toml, PYTEST_ARGS=... goes to pytest.

VENV := .venv
PYTHON ?=
EXTRAS ?= dev
# A worker that dies ends the run: with the rest of its file gone, xdist would wait for it for ever.
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart 0

comma := ,
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
CANDIDATES := $(or $(PYTHON),python3.12 python3.11 python3)

.DEFAULT_GOAL := help
.PHONY: help setup test demo docs lint lock clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv with the locked dependencies

test: lint ## Set up, check style and types, run the tests (slow ones: make test PYTEST_ARGS='-m slow')
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: $(STAMP) ## Set up, train BC, TD3+BC and A2PR on the embedded data, show scores with intervals, in minutes
	for algo in bc td3_bc a2pr; do \
		$(BIN)/python -m experiments.train algo=$$algo run=demo size=small setting=demo 'seed=[0,1,2,3]' || exit; \
	done
	$(BIN)/python -m experiments.report runs/demo

docs: ## Set up, build the documentation into site/, to be opened from disk or served
	@$(MAKE) --no-print-directory setup EXTRAS=dev,docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(STAMP) ## Set up, check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The first candidate that runs, is new enough and can make environments; launchers that fail are passed over.
$(STAMP): pyproject.toml requirements.lock
	@set -e; good='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$good" >/dev/null 2>&1; then \
		for python in $(CANDIDATES); do \
			if "$$python" -c "$$good" >/dev/null 2>&1; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: none of '$(CANDIDATES)' is Python >= 3.11 with venv; install one or set PYTHON=/path/to/python" >&2; \
			exit 2; \
		fi; \
		echo "making $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "installing adaptax[$(EXTRAS)] into $(VENV)"
	@$(PIP) install -c requirements.lock -e '.[$(EXTRAS)]'
	@touch $@

# On the oldest supported Python, whose newest versions also install on later ones.
lock: ## Write requirements.lock anew from pyproject.toml (needs Python 3.11)
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	for python in $(or $(PYTHON),python3.11 python3); do \
		if "$$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then \
			found=$$python; break; \
		fi; \
	done; \
	if [ -z "$$found" ]; then echo "error: make lock needs Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	"$$found" -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install -e '.[dev,docs]'; \
	"$$folder/venv/bin/python" -m pip --disable-pip-version-check freeze --exclude-editable > "$$folder/lock"; \
	cp "$$folder/lock" requirements.lock; \
	echo "requirements.lock: $$(wc -l < requirements.lock) packages"

clean: ## Remove .venv and caches; runs and data stay
	rm -rf $(VENV) site .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find algos envs experiments configs tests -name __pycache__ -type d -prune -exec rm -rf {} +
