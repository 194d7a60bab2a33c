# `make demo` and `make test` set themselves up in .venv, `make test-torch` in .venv-torch; nothing outside the
# checkout is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv/.bench
TORCH_BIN := .venv-torch/bin
TORCH_READY := .venv-torch/.ready
TORCH := torch==2.13.0
PYTEST := python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
INSTALL := python -m pip install --quiet --disable-pip-version-check
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"unstuck needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name another one: make setup PYTHON=python3.12")'

.PHONY: demo test test-thorough test-jax test-torch setup check format rules lock bench benchmark-diagnosis clean

demo: setup
	@$(BIN)/unstuck demo

# Every check, and the tests on TensorFlow.
test: check
	@KERAS_BACKEND=tensorflow $(BIN)/$(PYTEST) -m "not thorough"

# On TensorFlow what those test in further ways of training: several replicas, mixed precision, long demos.
test-thorough: setup
	@KERAS_BACKEND=tensorflow $(BIN)/$(PYTEST) -m thorough

# On JAX those tests that run on every backend.
test-jax: setup
	@KERAS_BACKEND=jax $(BIN)/$(PYTEST) -m every_backend

# The same on torch, in an environment without TensorFlow and JAX.
test-torch: $(TORCH_READY)
	@KERAS_BACKEND=torch $(TORCH_BIN)/$(PYTEST) -m every_backend

# Formatter, linter, types, import contracts.
check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

# With the loggers it is compared to.
bench: $(BENCH_READY)
	@$(BIN)/python -m tests.bench

# How often the diagnosis is right; hours the first time. ARGUMENTS="--part tuning --seeds 2" and so on.
benchmark-diagnosis: setup
	@KERAS_BACKEND=tensorflow $(BIN)/python -m tests.diagnosis_benchmark $(ARGUMENTS)

$(BENCH_READY): $(READY) requirements/bench.txt
	$(BIN)/$(INSTALL) --require-hashes -r requirements/bench.txt
	@touch $(BENCH_READY)

setup: $(READY)

$(READY): requirements/dev.txt pyproject.toml
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) --require-hashes -r requirements/dev.txt
	$(BIN)/$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(READY)

# Torch comes without a hash: which build it is, pip decides; all that the build for the CPU needs is there by then.
$(TORCH_READY): requirements/torch.txt pyproject.toml Makefile
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv-torch
	$(TORCH_BIN)/$(INSTALL) --require-hashes -r requirements/torch.txt
	$(TORCH_BIN)/$(INSTALL) $(TORCH)
	$(TORCH_BIN)/$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $(TORCH_READY)

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# The page about the rules, from their docstrings and examples.
rules: setup
	@$(BIN)/python -m monitor.diagnosis.page > docs/rules.md

# Needs uv. Writes the pinned, hashed requirements; they name no package host.
lock:
	$(LOCK) --all-extras --group dev pyproject.toml --output-file requirements/dev.txt
	$(LOCK) --extra client --extra monitor --group torch --constraint requirements/dev.txt pyproject.toml \
		--output-file requirements/torch.txt
	$(LOCK) --group bench --constraint requirements/dev.txt --output-file requirements/bench.txt

clean:
	rm -rf .venv .venv-torch build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
