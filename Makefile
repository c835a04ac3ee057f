# Everything a person or a CI runs. `make` alone lists it. Each target makes the virtual environment that it needs.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
TRAIN_VENV ?= .venv-train
ARGS ?=
# Tests run in processes side by side, a module in one of them, each with servers of its own; those that take longest
# begin first.
SPREAD ?= -n auto --maxprocesses=4 --dist loadscope --no-loadscope-reorder
NOT_RUN := $(abspath $(VENV))/tests-not-run.txt

# Benchmarks and training read pictures and texts from here; tests need none of it.
ifneq ($(wildcard ../shared/data),)
export PGEMBED_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all suites lint lint-format lint-python lint-types lint-sql format bench train clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_VENV)/.installed ## search thousands of real pictures in an embedded Postgres (ARGS="--psql", "--clean", ...)
	$(DEMO_VENV)/bin/pgembed demo $(ARGS)

test: lint ## lint, types and all tests, with a coverage figure: what CI runs
	@rm -f $(NOT_RUN)*
	$(VENV)/bin/coverage erase
	PGEMBED_NOT_RUN_FILE=$(NOT_RUN).1 $(VENV)/bin/coverage run -m pytest $(SPREAD) -m "not full_server" \
		tests/acceptance tests/migration tests/integration tests/unit
	PGEMBED_NOT_RUN_FILE=$(NOT_RUN).2 $(VENV)/bin/coverage run -m pytest $(SPREAD) -m full_server tests
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report --skip-covered --sort=cover
	@echo; cat $(NOT_RUN).* 2>/dev/null || echo "All tests ran."

test-all: test suites ## make test, published tests of the libraries beside pgembed, and every benchmark in its quick form
	$(MAKE) bench ARGS=--quick

suites: $(VENV)/.installed ## tests of SQLAlchemy, Alembic and pgvector-python, without pgembed and with it
	$(VENV)/bin/python -m tools.foreign_suites $(ARGS)

lint: lint-format lint-python lint-types lint-sql ## format, lint, types, and the SQL files (-k: all of them in any case)

lint-format: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .

lint-python: $(VENV)/.installed
	$(VENV)/bin/ruff check .

lint-types: $(VENV)/.installed
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

lint-sql: $(VENV)/.installed
	$(VENV)/bin/python -m tools.lint_sql

format: $(VENV)/.installed ## format the Python files, and fix what ruff can fix
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(VENV)/.installed ## run every benchmark and tell which missed its target (ARGS=--quick: each under a minute)
	@status=0; \
	for name in $$(cd benchmarks && ls *.py | sed 's/\.py$$//' | grep -vx -e __init__ -e common); do \
		echo "== $$name"; $(VENV)/bin/python -m benchmarks.$$name $(ARGS) || status=1; \
	done; exit $$status

train: $(TRAIN_VENV)/.installed ## make the built-in encoder's weights again (ARGS=--quick: only see that it runs)
	$(TRAIN_VENV)/bin/python -m training.make $(ARGS)

clean: ## remove the virtual environments and what the tools cached here
	rm -rf $(VENV) $(DEMO_VENV) $(TRAIN_VENV) .pytest_cache .ruff_cache .hypothesis .coverage dist build

$(VENV)/.installed: pyproject.toml
	@$(call make_venv,$(VENV))
	$(VENV)/bin/python -m pip install -qq --editable '.[all]' --group dev
	@touch $@

$(DEMO_VENV)/.installed: pyproject.toml
	@$(call make_venv,$(DEMO_VENV))
	$(DEMO_VENV)/bin/python -m pip install -qq --editable '.[embedded]'
	@touch $@

$(TRAIN_VENV)/.installed: pyproject.toml
	@$(call make_venv,$(TRAIN_VENV))
	$(TRAIN_VENV)/bin/python -m pip install -qq --editable . --group train
	@touch $@

# The first pip with --group is 25.1.
define make_venv
	echo "Making $(1) and installing what it needs (the first time takes minutes)."; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "$(PYTHON) is not Python 3.11 or newer. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }; \
	[ -x $(1)/bin/python ] || $(PYTHON) -m venv $(1) \
		|| { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }; \
	$(1)/bin/python -m pip install -qq --upgrade 'pip>=25.1'
endef
