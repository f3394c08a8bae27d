# QueryWarden. Every target sets up what it needs: `make` alone prints them all.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

BIN := .venv/bin
# Written last by the installation; older than the lock or the project's metadata means: install again.
STAMP := .venv/.installed

# Folders of scripts that hold some.
SCRIPTS := $(patsubst %/,%,$(sort $(dir $(wildcard examples/*.py benchmarks/*.py docs/*.py notebooks/*.py))))

## Getting started

.PHONY: help
help: ## Print this list
	@awk 'BEGIN { FS = ":.*## " } /^## / { printf "\n%s\n", substr($$0, 4) } \
	     /^[a-z][a-z-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nPYTHON=/path/to/python3.12 chooses the interpreter for a new .venv.\n'

.PHONY: install
install: $(STAMP) ## Set up .venv/ as locked, with .venv/bin/querywarden (needs Python 3.11 or newer)

$(STAMP): requirements/dev.txt requirements/uv.txt requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Real thefts against a real model, watched from start to report (TEXT=1: a model of texts; ONCE=1: end with the report)
	@ONCE="$(ONCE)" $(BIN)/python $(if $(TEXT),-m examples.text_demo,examples/demo.py) $(ARGS)

.PHONY: up
up: $(STAMP) ## The whole service on this machine until Ctrl-C: Kafka, Redis, ingest, detect, serve (TRAFFIC=1: with clients)
	@examples/install-kafka.sh
	@$(BIN)/python -m examples.up $(if $(TRAFFIC),--traffic) $(ARGS)

.PHONY: down
down: $(STAMP) ## Stop what `make up` started
	@$(BIN)/python -m examples.up --down $(ARGS)

## Checking

# Lanes side by side: most tests wait for a server, so there is one lane more than cores. A lane takes the next file when it is through with
# one (tests/support/lanes.py). $(1): how many; $(2): which tests; $(3): more options, then coverage is kept apart. Whether one failed in
# `failed`; the closing lines of each are printed.
LANE := $(BIN)/python -m pytest -q -o console_output_style=classic --durations=20 --durations-min=8
define lanes
lanes=$$(mktemp -d); failed=0; others=; \
  for lane in $$(seq 2 $(1)); do \
    $(if $(3),COVERAGE_FILE=.coverage.$$lane) $(LANE) $(3) --lanes $$lanes $(2) >$$lanes.$$lane.log 2>&1 & others+=" $$!"; done; \
  $(if $(3),COVERAGE_FILE=.coverage.1) $(LANE) $(3) --lanes $$lanes $(2) || failed=1; \
  for lane in $$others; do wait $$lane || failed=1; done; cat $$lanes.*.log; rm -rf $$lanes $$lanes.*.log
endef
QUICK := -m "not soak and not alone" tests

# What needs no server and changes most: the core, the log's formats, stored records, the rules of the house.
CHECKED := tests/detector tests/log tests/records tests/alerts/test_formats.py tests/test_house.py tests/test_guarantees.py

.PHONY: check
check: $(STAMP) ## The loop for daily work: lint, and beside it the tests of core and formats, without a server
	@log=$$(mktemp); linted=0; $(MAKE) lint >$$log 2>&1 & lint=$$!; \
	  $(call lanes,2,--no-servers -m "not soak and not alone and not server" $(or $(ARGS),$(CHECKED))); \
	  wait $$lint || linted=$$?; cat $$log; rm -f $$log; exit $$((failed + linted > 0))

.PHONY: test
test: $(STAMP) ## Every test, against real servers; starts what is missing (ARGS="-k store" for some)
	@tests/install-servers.sh
ifdef ARGS
	@$(BIN)/python -m pytest -q -m "not soak" $(ARGS)
else
	@# then the tests that need both cores
	@$(call lanes,3,$(QUICK)); \
	  $(BIN)/python -m pytest -q -m "alone and not soak" tests/crash tests/simulation || failed=1; \
	  exit $$failed
endif

.PHONY: lint
lint: $(STAMP) ## Style, types, who may import whom, unused dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy detector consumers tests $(SCRIPTS)
	$(BIN)/lint-imports
	$(BIN)/deptry .

.PHONY: format
format: $(STAMP) ## Format the code and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(STAMP) ## Write the tables of the docs anew, from the code
	@$(BIN)/python docs/generate.py

.PHONY: docs-site
docs-site: $(STAMP) ## The docs as a site, in dist/docs/VERSION/, beside the versions that lie there; a link that leads nowhere ends it
	@docs/site/build.sh dist/docs

.PHONY: coverage
coverage: $(STAMP) ## The tests again, with branch coverage of the workers too, about 25 minutes; writes htmlcov/
	@tests/install-servers.sh
	@rm -f .coverage .coverage.*
	@$(call lanes,3,$(QUICK),--cov --cov-report=); \
	  $(BIN)/coverage combine -q .coverage.?; $(BIN)/coverage html -q; $(BIN)/coverage report --fail-under=95 || failed=1; \
	  exit $$failed

.PHONY: simulate
simulate: $(STAMP) ## The commit protocol in every interleaving: deterministic simulation (SEEDS=2000; ARGS="--variant controls --until-bad")
	@PYTHONPATH=.:tests $(BIN)/python -m simulation $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

.PHONY: soak
soak: $(STAMP) ## The tests that take minutes to hours, and those that test the tests
	@tests/install-servers.sh
	@$(BIN)/python -m pytest -q -m soak $(ARGS)

.PHONY: mutation
mutation: $(STAMP) ## Whether the tests of access and of exactly-once notice small faults put into the code; hours (SAMPLE=60 ARGS="auth paths": a sample of modules)
	@$(BIN)/python -m pip install -q --require-hashes --target .venv/mutation -r requirements/mutation.txt
ifdef SAMPLE
	@# puts the faults in and tries none, so that there are names to choose from
	@PYTHONPATH=.venv/mutation $(BIN)/python -m mutmut run --max-children 2 none >/dev/null 2>&1 || true
	@PYTHONPATH=.venv/mutation $(BIN)/python -m mutmut run --max-children 2 \
	    $$($(BIN)/python -m benchmarks.mutation --names --sample $(SAMPLE) $(ARGS)) || true
	@$(BIN)/python -m benchmarks.mutation --sample $(SAMPLE) $(ARGS)
else
	@PYTHONPATH=.venv/mutation $(BIN)/python -m mutmut run --max-children 2 $(ARGS) || true
	@$(BIN)/python -m benchmarks.mutation
endif

.PHONY: bench
bench: $(STAMP) ## What a query costs from log to store, beside naive ways and other tools, and the plans of capacity, 7 to 30 minutes (SHORT=1: seconds, no file)
ifdef SHORT
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.throughput --short $(ARGS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.detecting --short
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ratios
else
	@examples/install-kafka.sh
	@requirements/install-peers.sh
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.throughput $(ARGS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.detecting
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.whole_path
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale
	@$(BIN)/python -m benchmarks.capacity --write
	@$(BIN)/python docs/generate.py
endif

.PHONY: bench-ratios
bench-ratios: $(STAMP) ## Whether a step of ingest has become much dearer, in parses of the same events: ratios, no times; CI runs it
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ratios

.PHONY: bench-long
bench-long: $(STAMP) ## Five million events through ingest, with flat memory, about 10 minutes (ARGS="--events 1000000": the short form)
	@examples/install-kafka.sh
	@OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m benchmarks.long_run $(ARGS)

.PHONY: bench-gateway
bench-gateway: $(STAMP) ## How fast gateways are answered, with Redis running and stopped (SHORT=1: no file)
	@$(BIN)/python -m benchmarks.gateway $(if $(SHORT),--short) $(ARGS)

.PHONY: bench-detection
bench-detection: $(STAMP) ## Ours and the literature on ten victims, about 35 minutes (SHORT=1: three victims, no file; ARGS=--ours: ours alone)
	@nice -n 10 $(BIN)/python -m benchmarks.detection $(if $(SHORT),--short) $(ARGS)

.PHONY: bench-campaigns
bench-campaigns: $(STAMP) ## Campaigns as reported, split thefts, honest organisations, 30 minutes of CPU time; resumes (ARGS=--short: 1 minute, no file)
	@nice -n 10 $(BIN)/python -m benchmarks.campaigns $(ARGS)

.PHONY: bench-weak-pairs
bench-weak-pairs: $(STAMP) ## Campaigns whose accounts share two weak links, 15 minutes of CPU time; resumes (ARGS=--short: one world, no file)
	@nice -n 10 $(BIN)/python -m benchmarks.weak_pairs $(ARGS)

.PHONY: bench-exposure
bench-exposure: $(STAMP) ## Estimated exposure against real copies of thirteen models, about 6 minutes (ARGS=--short: prints only)
	@nice -n 10 $(BIN)/python -m benchmarks.exposure $(ARGS)

.PHONY: bench-text
bench-text: $(STAMP) ## Ours and the literature on three models of texts, about 15 minutes (ARGS=--short: prints only)
	@$(BIN)/python -m pip install -q --no-deps --require-hashes --target .venv/texts -r requirements/texts.txt
	@nice -n 10 $(BIN)/python -m benchmarks.text_detection $(ARGS)

.PHONY: bench-text-campaigns
bench-text-campaigns: $(STAMP) ## Thefts of models of texts, split over accounts that share one template, about 6 minutes (ARGS=--short: prints only)
	@$(BIN)/python -m pip install -q --no-deps --require-hashes --target .venv/texts -r requirements/texts.txt
	@nice -n 10 $(BIN)/python -m benchmarks.text_campaigns $(ARGS)

.PHONY: bench-joining
bench-joining: $(STAMP) ## What joining a query's halves costs, in memory and through the store, about 5 minutes (ARGS=--short: prints only)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.joining $(ARGS)

.PHONY: bench-text-meanings
bench-text-meanings: $(STAMP) ## Whole clients with sentence embeddings, ours and the literature, on models of texts; resumes (ARGS=--short: prints only)
	@$(BIN)/python -m pip install -q --no-deps --require-hashes --target .venv/texts -r requirements/texts.txt
	@nice -n 10 $(BIN)/python -m benchmarks.text_meanings $(ARGS)

.PHONY: bench-budget
bench-budget: $(STAMP) ## The 1 % and the .1 % budget with 5,000 honest clients, about 10 minutes (ARGS=--short: prints only)
	@nice -n 10 $(BIN)/python -m benchmarks.budget $(ARGS)

.PHONY: bench-small-fleets
bench-small-fleets: $(STAMP) ## Twelve real clients beside simulated ones, alone, and 150, on ten models, about 10 minutes (ARGS=--short: prints only)
	@OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m benchmarks.small_fleets $(ARGS)

.PHONY: bench-carry-over
bench-carry-over: $(STAMP) ## Other people's models, and two generators of honest clients, each tested on the other, 16 minutes of CPU time; resumes (ARGS=--short: prints only)
	@$(BIN)/python -m pip install -q --no-deps --require-hashes --target .venv/others -r requirements/others.txt
	@OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m benchmarks.carry_over $(ARGS)

.PHONY: bench-degradation
bench-degradation: $(STAMP) ## What graded answers cost thieves and honest clients, and how surely marked copies are recognised, about 5 minutes (ARGS=--short: prints only)
	@nice -n 10 $(BIN)/python -m benchmarks.degradation $(ARGS)

.PHONY: unchanged
unchanged: $(STAMP) ## Whether an older commit judges the same logs the same (BEFORE=commit LOGS=folder; ARGS=--spoil: the control)
	@nice -n 10 $(BIN)/python -m benchmarks.unchanged --before $(BEFORE) --logs $(LOGS) $(ARGS)

## Keeping house

.PHONY: release
release: $(STAMP) ## Wheel, source archive, bill of materials and their SHA-256 in dist/: the same bytes for the same commit
	@requirements/release.sh dist

.PHONY: audit
audit: $(STAMP) ## Known vulnerabilities of the pinned packages, by advisories in OSV format, without a network (OSV=folder or PyPI/all.zip of osv.dev)
	@$(BIN)/python requirements/audit.py $(or $(OSV),$(error OSV=folder: where the advisories lie)) requirements/*.txt

.PHONY: lock
lock: $(STAMP) ## Pin the dependencies again, with hashes (ARGS=--upgrade for the newest versions)
	@requirements/lock.sh $(ARGS)

.PHONY: clean
clean: ## Remove everything that the other targets made, .venv/ too
	@rm -rf .venv .venv-bench .venv-docs build dist demo-out htmlcov .coverage .coverage.* .deptry_cache .hypothesis .import_linter_cache \
	    .mypy_cache .pytest_cache .ruff_cache mutants
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
