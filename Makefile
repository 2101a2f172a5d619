# Two commands do everything: `make demo` and `make test`. Each target makes .venv where it needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo demo-lm demo-text test test-all check docs clean \
	bench-quality bench-formats bench-layers bench-models bench-heal bench-concepts bench-conv

# A pitch tracker cut to a tenth, healed and heard: three and a half minutes on two cores. ARGS="--wav FILE"
demo: $(READY)
	$(BIN)/bondwise demo --force $(ARGS)

# A language model on real text, compressed and compared: ten to twelve minutes on two cores.
demo-lm: $(READY)
	$(BIN)/bondwise demo --lm --force $(ARGS)

# An encoder, rated against people before and after: a minute and a half.
demo-text: $(READY)
	$(BIN)/bondwise demo --text --force $(ARGS)

# The tests that every change has to pass.
test: $(READY)
	$(PYTEST) -m "not thorough"

# All tests, with more examples of each property: run before an issue ends.
test-all: $(READY)
	HYPOTHESIS_PROFILE=thorough $(PYTEST)

# Style, types, the direction of imports, and the documentation.
check: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The documentation as a site: build/site/index.html. A warning is an error.
docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

# docs/benchmarks.md, quality: hours; resumes. ARGS="--models minilm --keeps 0.6" runs a part of it.
bench-quality: $(READY)
	$(BIN)/python benchmarks/quality.py $(ARGS)

# docs/benchmarks.md, formats; resumes.
bench-formats: $(READY)
	$(BIN)/python benchmarks/formats.py $(ARGS)

# docs/benchmarks.md, layers: under 20 minutes, on a machine that does nothing else. The peers are
# installed for this alone; one that cannot be is named and left out.
bench-layers: $(READY)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		tensorly-torch==0.5.0 torchTT==0.5.0
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/layers.py $(ARGS)

# docs/benchmarks.md, models, on a machine that does nothing else. ARGS=DIR takes SmolLM2 from there.
bench-models: $(READY)
	$(BIN)/python benchmarks/models.py $(ARGS)

# docs/benchmarks.md, healing: hours; resumes. ARGS="--keeps 0.6 --methods both" runs a part of it.
bench-heal: $(READY)
	$(BIN)/python benchmarks/healing.py $(ARGS)

# docs/benchmarks.md, convolutions; resumes. The peers are put into a folder of their own, and one that
# cannot be had is named and left out. ARGS="--subjects mnist --methods ours,vbmf" runs a part of it.
PEERS := build/peers
bench-conv: $(READY)
	-@test -d $(PEERS) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(PEERS) -c constraints.txt tensorly-torch==0.5.0 torch-pruning==1.6.1
	PYTHONPATH=$(PEERS) $(BIN)/python benchmarks/convolutions.py $(ARGS)
	PYTHONPATH=$(PEERS) $(BIN)/python benchmarks/convolutions.py --seconds $(ARGS)
	$(BIN)/python benchmarks/convolutions.py --formats --keeps 0.25,0.1
	$(BIN)/python benchmarks/convolutions.py --kinds
	$(BIN)/python benchmarks/convolutions.py --stacks

# docs/reading.md: bond features against neurons, principal components and random gauges; resumes.
bench-concepts: $(READY)
	$(BIN)/python benchmarks/concepts.py $(ARGS)

# Away with the environment, the site and all caches.
clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (torch and friends, about 1 GB; once, a few minutes) .."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
