# Two commands do everything: `make demo` and `make test`. Each makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-tiny test check bench-quality bench-formats bench-models clean

demo: $(READY)
	$(BIN)/bondwise demo --force

demo-tiny: $(READY)
	$(BIN)/bondwise demo --tiny --force

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Hours; resumes where it stopped. ARGS="--models minilm --keeps 0.6" runs a part of it.
bench-quality: $(READY)
	$(BIN)/python benchmarks/quality.py $(ARGS)

bench-formats: $(READY)
	$(BIN)/python benchmarks/formats.py $(ARGS)

# Under 20 minutes, on a machine that does nothing else. The peers are installed for this alone; one
# that cannot be is named and left out.
.PHONY: bench-layers
bench-layers: $(READY)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		tensorly-torch==0.5.0 torchTT==0.5.0
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/layers.py $(ARGS)

# On a machine that does nothing else. ARGS=DIR takes SmolLM2 as compress left it there.
bench-models: $(READY)
	$(BIN)/python benchmarks/models.py $(ARGS)

# Hours; resumes where it stopped. ARGS="--keeps 0.6 --methods both" runs a part of it.
.PHONY: bench-heal
bench-heal: $(READY)
	$(BIN)/python benchmarks/healing.py $(ARGS)

# Bond features against neurons, principal components and random gauges; resumes. For docs/reading.md.
.PHONY: bench-concepts
bench-concepts: $(READY)
	$(BIN)/python benchmarks/concepts.py $(ARGS)

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (torch and friends, about 1 GB; once, a few minutes) .."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
