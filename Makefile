# make demo    a simulated city on the embedded service; DEMO="--seconds 20 --json" passes arguments on
# make bench   measures a part; BENCH="nearest --json": ingest, nearest, assignment, requests, city or memory
# make test    everything that must hold: style, types, tests (installs Redis and MariaDB where missing)
# make lint    style and types alone
# make lock    pins the dependencies anew, keeping versions; LOCK=--upgrade takes newer ones
# make clean   removes what these made

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(shell grep -lE '^from (geo\.compiled|numba) import' geo/*.py matcher/*.py)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq
DEMO ?=
BENCH ?= --help
LOCK ?=
TESTS ?=
# Two workers, each with servers of its own; whole files stay together, for what they share.
PARALLEL ?= -n 2 --dist loadfile

.PHONY: help demo bench test lint lock clean servers

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.kernels
	@exec $(BIN)/hexhail demo $(DEMO)

# It starts servers of its own, whatever the tests are told to use.
bench: $(VENV)/.bench $(VENV)/.kernels
	@env -u HEXHAIL_TEST_REDIS_URL -u HEXHAIL_TEST_DATABASE_URL requirements/servers.sh
	@exec $(BIN)/hexhail bench $(BENCH)

test: $(VENV)/.test $(VENV)/.kernels servers lint
	$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

servers:
	@requirements/servers.sh

lock: $(VENV)/.runtime
	@test -x $(BIN)/uv || $(PIP) install uv
	UV=$(BIN)/uv requirements/lock.sh $(LOCK)

clean:
	rm -rf $(VENV) build dist hexhail.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than the lock it was installed from; an interrupted install leaves none.
$(VENV)/.runtime: requirements/runtime.txt pyproject.toml requirements/venv.sh
	@requirements/venv.sh $(VENV)
	@echo "installing what hexhail needs into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# numba does not see that a function changed which a compiled one of another file calls: all are compiled anew.
$(VENV)/.kernels: $(KERNELS) $(VENV)/.runtime
	@echo "compiling the index and the solver, once ..."
	@rm -f geo/__pycache__/*.nb[ic] matcher/__pycache__/*.nb[ic]
	@$(BIN)/python -m geo.warm
	@$(BIN)/python -m matcher.solver_child warm
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.runtime
	@echo "installing what the tests need into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/test.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.runtime
	@echo "installing what the measurements need into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements/bench.txt
	@touch $@
