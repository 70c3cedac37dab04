# lookback: stages and checks. `make` alone prints the help, which is read from the lines with two hashes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CONFIG ?= pipeline/configs/demo.toml
SET ?=
RUNS ?=
HTML ?=
TRIALS ?= 20
KEEP ?=

VENV := .venv
INSTALLED := $(VENV)/installed
LOOKBACK := $(VENV)/bin/lookback
SETTINGS = --config '$(CONFIG)' $(foreach pair,$(SET),--set '$(pair)')
STAGES := ingest features train index rank baselines evaluate publish score report

PYTEST := $(VENV)/bin/pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: help install demo test test-slow test-all data $(STAGES) all nightly tune ui compare prune check lint type bench clean

##@ Two commands
demo: $(INSTALLED)  ## install, generate the demo log, run every stage on it, say where everything is
	@$(LOOKBACK) run all --config pipeline/configs/demo.toml
	@echo
	@echo "recommendations  $$($(LOOKBACK) path score --config pipeline/configs/demo.toml | tail -n 1)/recommendations"
	@echo "report           $$($(LOOKBACK) path report --config pipeline/configs/demo.toml | tail -n 1)/report.html"
	@echo "MLflow           make ui, then the address that it prints"

test: $(INSTALLED)  ## install, run the tests: the whole behaviour in minutes
	@$(PYTEST) -m 'not slow'

##@ Stages (CONFIG=file.toml SET="train.epochs=3 model.dim=128"); each first brings what it needs up to date
ingest:    ## read the log: typed events, and a quarantine of refused rows
features:  ## vocabularies, per-user histories, the split
train:     ## the model, with early stopping on validation NDCG@10
index:     ## item vectors and their FAISS index
rank:      ## the second-stage ranker
baselines: ## what to beat: tuned on validation, fitted, ranking the same targets
evaluate:  ## metrics over the whole catalogue, against the baselines
publish:   ## refit on everything, the bundle, the model registry
score:     ## recommendations for every user
report:    ## one self-contained HTML file
$(STAGES): $(INSTALLED)
	@$(LOOKBACK) run $@ $(SETTINGS)

all: $(INSTALLED)  ## every stage, from the log to recommendations and report
	@$(LOOKBACK) run all $(SETTINGS)

nightly: $(INSTALLED)  ## ingest what is new and score with the champion; trains nothing
	@$(LOOKBACK) run ingest features score $(SETTINGS) --set score.model=champion

##@ Data and experiments
data: $(INSTALLED)  ## download the public data set that CONFIG names, checked against its digest
	@$(LOOKBACK) data --config '$(CONFIG)'

tune: $(INSTALLED)  ## hyper-parameter search (TRIALS=20)
	@$(LOOKBACK) tune $(SETTINGS) --trials $(TRIALS)

compare: $(INSTALLED)  ## runs side by side (RUNS="RUN RUN", MLflow run ids or names; HTML=page.html)
	@$(LOOKBACK) compare $(RUNS) $(if $(HTML),--html '$(HTML)')

ui: $(INSTALLED)  ## MLflow on 127.0.0.1:5000
	@$(LOOKBACK) ui --config '$(CONFIG)'

prune: $(INSTALLED)  ## remove old artifacts and model versions (KEEP=N)
	@$(LOOKBACK) prune --config '$(CONFIG)' $(if $(KEEP),--keep $(KEEP))

##@ The code
check: lint type test  ## everything below that judges the code, and the tests

test-slow: $(INSTALLED)  ## the slow tests alone: kills, Ray, torchrun, processors, public data, a fresh environment
	@$(PYTEST) -m slow

test-all: test test-slow  ## all tests, in half an hour

lint: $(INSTALLED)  ## ruff: format and lint
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .

type: $(INSTALLED)  ## mypy, strict
	@$(VENV)/bin/mypy

bench: $(INSTALLED)  ## the benchmarks in tests/benchmarks
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(VENV)/bin/python "$$file"; done

install: $(INSTALLED)  ## the virtual environment with the pinned dependencies, when they changed
	@echo "installed in $(VENV)"

clean:  ## remove the virtual environment and every cache; data/ and mlruns/ stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov build dist
	@find features models pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this help
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lookback needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
