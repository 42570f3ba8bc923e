# `make help` lists the targets. PYTHON chooses the interpreter (3.11 or newer) for everything;
# ORACLE_PYTHON and PROTO_PYTHON choose others for the environments with older wheels.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ORACLE_PYTHON ?= $(PYTHON)
PROTO_PYTHON ?= $(PYTHON)
PYTEST_ARGS ?=
# How many of the tests' files run at a time: most of them wait for servers.
TEST_JOBS ?= 2
# Compose v2 where there is one, else v1.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
COMPOSE_WORKERS := worker-a worker-b

# Hundreds of processes are started, each of which would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
LOCKED := .venv/.locked
DEV := .venv/.installed
FRAMEWORKS := .venv/.frameworks
GPU := .venv/.gpu
ORACLE := .cache/oracle/.installed
PROTOC := .cache/venv-proto/.installed
LOCKER := .cache/venv-lock/.installed
# What the benchmark runs beside paramd: the oracle's MXNet is one of them, and its plot.
BENCH_PEERS := .cache/oracle .cache/bench/torch .cache/bench/ray .cache/bench/plot
BENCH_ARGS ?=

# What the checks read: folders that are not there yet are left out.
TYPED := client/src server/src $(wildcard tests benchmarks examples scripts)
FAST_TESTS := $(wildcard tests/unit tests/contracts tests/system)
# Tests of values, which by default read them in the server's memory, once more over gRPC.
WIRE_TESTS := $(wildcard tests/system/parameters tests/system/test_arrays.py tests/system/test_retry.py)

.PHONY: help setup frameworks demo test gpu-test container-test up down lint verify proto lock conformance bench bench-peers wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' Makefile

setup: $(DEV) ## build .venv from the lock file, with both packages installed editable

frameworks: $(FRAMEWORKS) ## put PyTorch, JAX and Ray into .venv too, for the tests that are skipped without

demo: $(DEV) ## train on handwritten digits: two workers, in step and not, and one that dies
	$(BIN)/python -m examples.digits

test: $(DEV) ## run the unit, contract and system tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not conformance" $(PYTEST_ARGS) $(FAST_TESTS)
	PARAMD_TRANSPORT=tcp $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS) $(WIRE_TESTS)

gpu-test: $(GPU) ## test and measure on a GPU: the contract, the system suite on gpu(0), transfers, updates
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS) tests/contracts tests/unit tests/system
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not conformance" --context 'gpu(0)' $(PYTEST_ARGS) tests/system
	$(BIN)/python -m benchmarks.gpu

lint: $(DEV) ## check with ruff (rules and format) and mypy --strict
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy $(TYPED)

container-test: $(DEV) ## run the tests on a Docker engine (PARAMD_REQUIRE_DOCKER=1: fail without one)
	$(BIN)/python -m pytest -m container $(PYTEST_ARGS) tests/container

up: ## train on handwritten digits in containers, and leave the servers running
	$(COMPOSE) up --build --detach
	$(COMPOSE) logs --no-color --follow $(COMPOSE_WORKERS)
	@test "$$(docker wait $$($(COMPOSE) ps --quiet --all $(COMPOSE_WORKERS)) | sort -u)" = 0

down: ## stop the containers of `make up`; the volumes with the snapshots stay
	$(COMPOSE) down

verify: $(DEV) $(PROTOC) ## fail when the generated code differs from the protos, or loads with warnings
	.cache/venv-proto/bin/python scripts/protos.py check --newest $(BIN)/python

proto: $(PROTOC) ## regenerate client/src/paramd/v1 from protos/
	.cache/venv-proto/bin/python scripts/protos.py generate

# Pins stay as they are unless an input asks for more; UPGRADE=--upgrade takes the newest of all.
lock: $(LOCKER) ## write the lock files again from requirements/*.in (UPGRADE=--upgrade)
	for name in lock runtime client cuda dev worker build proto conformance-oracle; do \
	    .cache/venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	        --generate-hashes --no-emit-index-url --no-emit-find-links \
	        --custom-compile-command 'make lock' $(UPGRADE) \
	        --output-file "requirements/$$name.txt" "requirements/$$name.in" || exit 1; \
	done

conformance: $(DEV) $(ORACLE) ## compare with MXNet 1.9.1, in an environment of its own
	$(BIN)/python -m pytest -m conformance $(PYTEST_ARGS) tests

bench: $(DEV) bench-peers ## measure beside the raw gRPC floor, MXNet's servers, PyTorch RPC and Ray (BENCH_ARGS=--quick)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# One that cannot be built here is left out, and the benchmark's table says why.
bench-peers: ## build the environments that `make bench` measures beside paramd
	@mkdir -p .cache/bench
	@for peer in $(BENCH_PEERS); do \
	    log=".cache/bench/$$(basename $$peer).log"; \
	    $(MAKE) --no-print-directory $$peer/.installed >"$$log" 2>&1 \
	        || echo "no environment $$peer: see $$log"; \
	done

wheels: $(DEV) ## build both wheels and try them in a clean environment
	$(BIN)/python scripts/wheels.py

clean: ## remove what the other targets built, the environments too
	rm -rf .venv .cache dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find client server tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(LOCKED): requirements/dev.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("paramd needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	touch $@

$(DEV): $(LOCKED) client/pyproject.toml server/pyproject.toml
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation -e client -e server
	touch $@

$(FRAMEWORKS): $(DEV) requirements/frameworks.in
	$(BIN)/python $(PIP_INSTALL) -r requirements/frameworks.in
	touch $@

$(GPU): $(DEV) requirements/cuda.txt
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements/cuda.txt
	touch $@

$(ORACLE): requirements/conformance-oracle.txt
	$(ORACLE_PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit("MXNet 1.9.1 needs Python 3.11 here: make ORACLE_PYTHON=...")'
	$(ORACLE_PYTHON) -m venv --clear .cache/oracle
	.cache/oracle/bin/python $(PIP_INSTALL) --require-hashes -r requirements/conformance-oracle.txt
	touch $@

# Exact versions and no lock file, as for the frameworks.
.cache/bench/%/.installed: requirements/bench-%.in
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP_INSTALL) -r $<
	touch $@

$(PROTOC): requirements/proto.txt
	$(PROTO_PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 12) or sys.exit("the code generator needs Python 3.11 or 3.12: make PROTO_PYTHON=...")'
	$(PROTO_PYTHON) -m venv --clear .cache/venv-proto
	.cache/venv-proto/bin/python $(PIP_INSTALL) --require-hashes -r requirements/proto.txt
	touch $@

$(LOCKER): requirements/lock.txt
	$(PYTHON) -m venv --clear .cache/venv-lock
	.cache/venv-lock/bin/python $(PIP_INSTALL) --require-hashes -r requirements/lock.txt
	touch $@
