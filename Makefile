# Each target sets up what it needs: Python 3.11 or later is all that has to be there.
#   make demo                       the whole thing on this machine, in a browser
#   make test ARGS="-k redelivered" some of the tests
#   make PYTHON=/path/to/python3.12 another Python for the virtual environment
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 3
ARGS ?=
# Where tests are that take seconds; to read all the others first would take a quarter of a minute.
SLOW := tests/browser tests/contract tests/fault tests/integration
export PYTHON VENV

.PHONY: help demo test slow check audit format soak bench chaos mutants clean

help:
	@echo "make demo     a node, a server, an agent and a page that shows its run, on this machine"
	@echo "make test     the tests; what needs a missing package is skipped by the package's name"
	@echo "make slow     the tests of several seconds each: browsers, most of the faults"
	@echo "make check    lint, format, types, import rules, what the packages pull in"
	@echo "make audit    ask the network whether a flaw is known of anything that is installed"
	@echo "make format   put the code into the project's format"
	@echo "make soak     the tests that take longer than 30 seconds each"
	@echo "make bench    the benchmark suite"
	@echo "make chaos    everything at once under random faults, and a judge: make chaos ARGS=\"--minutes 10 --topology cluster\""
	@echo "make mutants  show that the tests of the guarantees fail when their guards are taken out"
	@echo "make clean    remove the virtual environment and everything that tools left behind"

demo:
	@.ci/venv gateway,local
	@exec $(BIN)/eventbus-gateway dev $(ARGS)

test:
	@.ci/venv dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

slow:
	@.ci/venv dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'slow and not soak and not bench' $(SLOW) $(ARGS)

check:
	@.ci/venv dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/audit

audit:
	@.ci/venv dev
	$(BIN)/python .ci/audit
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

format:
	@.ci/venv dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak:
	@.ci/venv dev
	$(BIN)/python -m pytest -m soak --timeout 1800 $(ARGS)

bench:
	@.ci/venv dev
	$(BIN)/python -m benchmarks $(ARGS)

chaos:
	@.ci/venv dev
	$(BIN)/python -m chaos $(ARGS)

mutants:
	@.ci/venv dev
	$(BIN)/python -m tests.mutants $(ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
