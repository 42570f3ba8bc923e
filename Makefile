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
ORACLE := .cache/oracle/.installed
PROTOC := .cache/venv-proto/.installed
LOCKER := .cache/venv-lock/.installed

# What the checks read: folders that are not there yet are left out.
TYPED := client/src server/src $(wildcard tests benchmarks examples scripts)
FAST_TESTS := $(wildcard tests/unit tests/contracts tests/system)

.PHONY: help setup frameworks demo test container-test up down lint verify proto lock conformance bench wheels clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' Makefile

setup: $(DEV) ## build .venv from the lock file, with both packages installed editable

frameworks: $(FRAMEWORKS) ## put PyTorch, JAX and Ray into .venv too, for the tests that are skipped without

demo: $(DEV) ## train on handwritten digits: two workers, in step and not, and one that dies
	$(BIN)/python -m examples.digits

test: $(DEV) ## run the unit, contract and system tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile -m "not conformance" $(PYTEST_ARGS) $(FAST_TESTS)

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
	for name in lock runtime client dev worker build proto conformance-oracle; do \
	    .cache/venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	        --generate-hashes --no-emit-index-url --no-emit-find-links \
	        --custom-compile-command 'make lock' $(UPGRADE) \
	        --output-file "requirements/$$name.txt" "requirements/$$name.in" || exit 1; \
	done

conformance: $(DEV) $(ORACLE) ## compare with MXNet 1.9.1, in an environment of its own
	$(BIN)/python -m pytest -m conformance $(PYTEST_ARGS) tests

bench: $(DEV) ## measure pulls, pushes, steps and updates beside their floors, 1 to 4 shards, and snapshots
	$(BIN)/python -m benchmarks

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

$(ORACLE): requirements/conformance-oracle.txt
	$(ORACLE_PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit("MXNet 1.9.1 needs Python 3.11 here: make ORACLE_PYTHON=...")'
	$(ORACLE_PYTHON) -m venv --clear .cache/oracle
	.cache/oracle/bin/python $(PIP_INSTALL) --require-hashes -r requirements/conformance-oracle.txt
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
