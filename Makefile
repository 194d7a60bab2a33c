# `make demo` and `make test` set themselves up in .venv; nothing outside the checkout is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test setup check format lock bench clean

demo: setup
	@$(BIN)/unstuck demo

test: check
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Formatter, linter, types, import contracts.
check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup
	@$(BIN)/python -m tests.bench

setup: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"unstuck needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name another one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Needs uv. Writes the pinned, hashed requirements; they name no package host.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--all-extras --group dev pyproject.toml --output-file requirements/dev.txt

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
