# Each target is complete on a fresh machine: what it needs is built or fetched first.

PYTHON = python3
BROKER = database
ARGS =

VENV = .venv
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
SERVICES = $(RUN) -m tests.services run --postgres --kafka
CHECKED = folio_events sample_project tests docs manage.py

# The library of the demo: on SQLite and the database broker, or on PostgreSQL and Kafka.
DEMO_database = $(RUN) -m sample_project.demo --broker database
DEMO_kafka = $(SERVICES) --require -- $(RUN) -m sample_project.demo --broker kafka
DEMO = $(DEMO_$(BROKER))
ifeq ($(DEMO),)
$(error BROKER is 'database' or 'kafka', not '$(BROKER)')
endif

# Without the services, whatever the shell names: SQLite and the database broker.
FAST = env -u DATABASE_URL -u KAFKA_HOST TESTS_WITHOUT_SERVICES=1 \
    $(RUN) -m pytest -m 'not postgres and not kafka' $(ARGS)

SYSTEMS = tests/faults tests/contract tests/acceptance
# Each part mostly waits for processes, so two cores serve three. Where a server is given, they
# would share its test database.
JOBS = $(if $(DATABASE_URL),1,3)

.DEFAULT_GOAL := help
.PHONY: help venv demo up test test-systems test-database test-fast bench faults lint format clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(READY)  ## build the environment in .venv (PYTHON=python3)

demo: $(READY)  ## run the sample library through its whole story (BROKER=database or kafka)
	$(DEMO)

up: $(READY)  ## the same, then leave it running until Ctrl-C (BROKER=database or kafka)
	$(DEMO) --up

test: $(READY)  ## run every test, on SQLite and on real PostgreSQL and Kafka (ARGS=...)
ifeq ($(strip $(ARGS)),)
	@echo 'Three parts of the tests, $(JOBS) at a time; each shows its output when it ends.'
	$(MAKE) --keep-going --jobs=$(JOBS) --output-sync=target test-systems test-database test-fast
else
	@# 5: ARGS chose none of these
	$(FAST) || [ $$? -eq 5 ]
	$(SERVICES) -- $(RUN) -m pytest $(ARGS)
endif

test-systems: $(READY)  ## run the tests of whole systems and of brokers, on PostgreSQL and Kafka
	$(SERVICES) -- $(RUN) -m pytest $(SYSTEMS)

test-database: $(READY)  ## run the tests of single parts, on PostgreSQL and Kafka
	$(SERVICES) -- $(RUN) -m pytest $(SYSTEMS:%=--ignore=%) --ignore=tests/unit

test-fast: $(READY)  ## run the tests that need no service (ARGS=...)
	$(FAST)

bench: $(READY)  ## measure against controls into docs/benchmarks (ARGS='--only relay --quick')
	$(RUN) -m tests.bench $(ARGS)

faults: $(READY)  ## break real processes on a seeded schedule, and let an oracle judge (ARGS=--help)
	$(RUN) -m tests.faults $(ARGS)

lint: $(READY)  ## check style, layers, types, Django's checks and migrations
	$(RUN) -m ruff check $(CHECKED)
	$(RUN) -m ruff format --check $(CHECKED)
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy $(CHECKED)
	$(RUN) manage.py check
	$(RUN) manage.py makemigrations --check --dry-run

format: $(READY)  ## sort the imports and format the code
	$(RUN) -m ruff check --fix $(CHECKED)
	$(RUN) -m ruff format $(CHECKED)

clean:  ## remove everything that was built here
	rm -rf $(VENV) .demo .bench build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

# Old releases of pip know no dependency groups, so pip comes first.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null \
	    || { echo "$(PYTHON) is missing: install Python 3.11 or newer, or name one by PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is too old: folio_events needs Python 3.11 or newer; name one by PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "$(PYTHON) cannot make environments; running apt-get install $$package"; \
	        apt-get update -q && apt-get install -q -y --no-install-recommends $$package; \
	    else \
	        echo "$(PYTHON) cannot make environments. On Debian or Ubuntu: sudo apt-get install $$package" >&2; \
	        exit 1; \
	    fi; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(RUN) -m pip install --quiet --editable '.[postgres]' --group dev
	@touch $@
