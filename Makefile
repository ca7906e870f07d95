PYTHON ?= python3
BIN = .venv/bin
FAST = tests/orders tests/models tests/data tests/results tests/serving/test_router.py tests/serving/test_holders.py tests/serving/test_priority_queue.py

.PHONY: quickstart docs style test test-fast test-all gpu format container clean

quickstart: .venv/installed  ## the paper's comparison in miniature, on glyphs
	$(BIN)/layershuffle experiment quickstart --jobs 5

docs: .venv/docs  ## the documentation as a site, in build/docs; a broken link or a warning fails
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --write-all docs build/docs
	@echo "see build/docs/index.html"

style: .venv/ready  ## how dense the code is, beside six projects that read well
	$(BIN)/python -m benchmarks.style

# The tests run in two processes of one thread each, and the types are checked meanwhile. The tests of a file share a process.
test: .venv/ready  ## the tests, formatting and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder; \
	tests=$$?; wait $$types && exit $$tests

# No training and no other process: for the inner loop.
test-fast: .venv/ready  ## the quick tests of orders, models, data, results and the router
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses 2 -m "not slow and not heavy" $(FAST)

test-all: .venv/ready  ## the tests, those that take long, and the documentation's trainings as they are printed
	AS_PRINTED=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m ""

gpu: .venv/ready  ## check the GPU: does the package compute what it should, and how fast?
	$(BIN)/layershuffle check-gpu

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

container:  ## lint and build the image, then train a step and evaluate in it (downloads gigabytes)
	docker run --rm --interactive hadolint/hadolint < docker/Dockerfile
	docker build --tag layershuffle --file docker/Dockerfile .
	docker run --rm layershuffle bash -euc 'cd "$$(mktemp -d)"; \
		layershuffle train mini_digits digits layershuffle cpu --trainer.max_steps 1; \
		layershuffle evaluate runs/version_0/checkpoints/last.ckpt --random_orders 1 --depths 6'

# The environment, without any package.
.venv/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	touch $@

# The package alone, for those who use it. Python compiles what it imports; to compile all of it takes minutes.
.venv/installed: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --no-compile --editable .
	touch $@

# And what the tests need, for those who change it.
.venv/ready: pyproject.toml | .venv/created
	$(BIN)/python -m pip install --no-compile --editable ".[dev]"
	touch .venv/installed $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv
