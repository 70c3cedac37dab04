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

export CONFIG SET

VENV := .venv
INSTALLED := $(VENV)/installed
LOOKBACK := $(VENV)/bin/lookback
SETTINGS = --config "$$CONFIG" $${SET:+--set "$$SET"}
STAGES := ingest features train index rank baselines evaluate publish monitor score report similar

PYTEST := $(VENV)/bin/pytest -n logical --maxprocesses 4 --dist worksteal

.PHONY: help install demo test test-slow test-all data $(STAGES) all nightly update deliver tune ui compare prune check lint type bench clean

##@ Start here
demo: $(INSTALLED)  ## install, simulate the demo log, run every stage, print where the results are
	@$(LOOKBACK) run all --config pipeline/configs/demo.toml
	@echo
	@echo "recommendations  $$($(LOOKBACK) path score --config pipeline/configs/demo.toml | tail -n 1)/recommendations"
	@echo "report           $$($(LOOKBACK) path report --config pipeline/configs/demo.toml | tail -n 1)/report.html"
	@echo "MLflow           make ui, then the address that it prints"

test: $(INSTALLED)  ## install, run the fast tests (minutes)
	@$(PYTEST) -m 'not slow'

##@ Stages (CONFIG=file.toml SET="train.epochs=3 model.dim=128"); each first brings its inputs up to date
ingest:    ## read the log: typed events, refused rows in quarantine
features:  ## vocabularies, user histories, train/validation/test split
train:     ## train the model, with early stopping on validation NDCG@10
index:     ## item vectors and their FAISS index
rank:      ## train the second-stage ranker
baselines: ## tune and fit the baselines, rank the same targets
evaluate:  ## metrics over the whole catalogue, compared with the baselines
publish:   ## refit on all data, write the bundle, register the model
monitor:   ## what became of the lists delivered before, and alerts
score:     ## recommendations for every user
report:    ## one self-contained HTML file
similar:   ## the items most similar to each item, popular items by segment; not part of all
$(STAGES): $(INSTALLED)
	@$(LOOKBACK) run $@ $(SETTINGS)

all: $(INSTALLED)  ## every stage but similar, from the log to recommendations and report
	@$(LOOKBACK) run all $(SETTINGS)

nightly: $(INSTALLED)  ## ingest new events, judge earlier lists, score with the champion, move score/live; trains nothing
	@$(LOOKBACK) run ingest features monitor score $(SETTINGS) --set score.model=champion

update: $(INSTALLED)  ## nightly, and a training that goes on from the champion; it is champion once its nights have shown it
	@$(LOOKBACK) update $(SETTINGS)

deliver: $(INSTALLED)  ## write the live lists to the table of [deliver]; a run that goes live does it itself
	@$(LOOKBACK) deliver $(SETTINGS)

##@ Data and experiments
data: $(INSTALLED)  ## download the public data set of CONFIG and check its digest
	@$(LOOKBACK) data --config "$$CONFIG"

tune: $(INSTALLED)  ## hyper-parameter search (TRIALS=20)
	@$(LOOKBACK) tune $(SETTINGS) --trials $(TRIALS)

compare: $(INSTALLED)  ## compare runs (RUNS="RUN RUN", MLflow run ids or names; HTML=page.html)
	@$(LOOKBACK) compare $(RUNS) $(if $(HTML),--html '$(HTML)')

ui: $(INSTALLED)  ## MLflow UI on 127.0.0.1:5000
	@$(LOOKBACK) ui --config "$$CONFIG"

prune: $(INSTALLED)  ## remove old artifacts and model versions (KEEP=N)
	@$(LOOKBACK) prune --config "$$CONFIG" $(if $(KEEP),--keep $(KEEP))

##@ Development
check: lint type test  ## lint, types and fast tests

test-slow: $(INSTALLED)  ## slow tests only: kills, Ray, torchrun, processors, public data, a fresh environment
	@$(PYTEST) -m slow

test-all: test test-slow  ## all tests (half an hour)

lint: $(INSTALLED)  ## ruff: format and lint
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .

type: $(INSTALLED)  ## mypy, strict
	@$(VENV)/bin/mypy

bench: $(INSTALLED)  ## run the benchmarks in tests/benchmarks
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(VENV)/bin/python "$$file"; done

install: $(INSTALLED)  ## create or update the virtual environment with the pinned dependencies
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
