# What to do with a checkout. `make` lists the targets. Needs Python 3.11 or later, and nothing else.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# One file per content of pyproject.toml: what is installed already is not installed again.
INSTALLED := $(VENV)/installed-$(shell cksum < pyproject.toml | tr -d ' ')
DEMO_HOME ?= $(CURDIR)/build/demo
# Two tests at a time on a small machine, at most eight on a large one.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 8 ] && echo 8 || echo $$n)
PYTEST := $(BIN)/pytest
# Every kind of server that the store's tests also run on in full: Debian's Redis, TLS and passwords, Sentinel, Cluster.
SERVERS ?= redis tls sentinel sentinel-tls cluster cluster-tls
# Tests that share something dear to make (a built wheel) run in one process.
PARALLEL := -n $(JOBS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full check format bench bench-peers chaos clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-11s %s\n' "$$name" "$$what"; done

install: $(INSTALLED) ## make .venv with Orch and its tools (the others do it as needed)

$(INSTALLED):
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or later found. Say which one: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if [ ! -x $(BIN)/python ]; then $(PYTHON) -m venv $(VENV); fi
	@echo "Installing Orch and its tools into $(VENV) (once)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@rm -f $(VENV)/installed-*
	@touch $@

demo: $(INSTALLED) ## run two flows on a private Redis and watch them
	@mkdir -p $(DEMO_HOME)
	@env -u ORCH_REDIS_URL -u ORCH_PROFILE -u ORCH_NAMESPACE ORCH_HOME=$(DEMO_HOME) $(BIN)/orch demo

test: $(INSTALLED) ## all tests that need pip alone
	@$(PYTEST) $(PARALLEL) tests

test-full: $(INSTALLED) ## all tests in full size, with what Debian packages allow; REQUIRE_ALL=1 fails if any could not run
	@REQUIRE_ALL=$(REQUIRE_ALL) $(PYTEST) $(PARALLEL) -m '' tests
	@for server in $(SERVERS); do echo "The store on: $$server"; \
		REQUIRE_ALL=$(REQUIRE_ALL) $(PYTEST) $(PARALLEL) --server=$$server tests/store || exit 1; done

check: $(INSTALLED) ## format, lint, types and the fast tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(PYTEST) -q $(PARALLEL) tests/unit

format: $(INSTALLED) ## rewrite the files as `make check` wants them
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(INSTALLED) ## measure; a table, and build/bench.json
	@mkdir -p build
	@$(BIN)/python -m bench

# The folder has run.py, which takes contenders such as bench/peer_orch.py, and a module for each peer. ONLY="rq huey" of the peers.
bench-peers: $(INSTALLED) ## measure beside other task queues (PEERS=DIR, with a run.py); build/peers
	@if [ ! -f "$(PEERS)/run.py" ]; then \
		echo "error: there is no run.py in '$(PEERS)'. Say where the peers' runner is: make bench-peers PEERS=DIR" >&2; exit 2; fi
	@mkdir -p build/peers
	@$(BIN)/python $(PEERS)/run.py --work build/peers $(if $(ONLY),--only $(shell echo $(ONLY) | tr ' ' ','))
	@$(BIN)/python $(PEERS)/run.py --work build/peers --contender bench/peer_orch.py --python $(abspath $(BIN))/python

# ONLY="F7 F8" plays those, QUICK=1 for seconds instead of minutes, SEED=3 repeats; REQUIRE_ALL=1 fails if any could not run.
chaos: $(INSTALLED) ## faults under load (ONLY="F1 F7" QUICK=1 SEED=3), judged from outside; build/chaos.json
	@REQUIRE_ALL=$(REQUIRE_ALL) $(BIN)/python -m bench.chaos $(ONLY) $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

clean: ## stop the demo's Redis; remove .venv and build
	@if [ -x $(BIN)/orch ] && [ -d $(DEMO_HOME) ]; then ORCH_HOME=$(DEMO_HOME) $(BIN)/orch server stop --force || true; fi
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
