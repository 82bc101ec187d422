# `make demo` and `make test` are all a fresh machine needs: each makes .venv once, from the pins in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LAYOUT := build/layout
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: docs demo test test-slow test-all replay lint bench fuzz clean

demo: $(READY)
	$(BIN)/fusion demo $(ARGS)

test: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

# What is marked slow.
test-slow: $(READY)
	$(PYTEST) -m slow $(ARGS)

# Both, with all of torch's samples, and all combinations of what they take one by one. Hours.
test-all: export FUSION_OPINFO = full
test-all: $(READY)
	$(PYTEST) $(ARGS)

replay: $(READY)
	$(BIN)/python tests/replay $(if $(ACCEPT),--accept) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(LAYOUT) && mkdir -p $(LAYOUT)
	cp -Rp fusion $(LAYOUT)/ && cp -Rp patterns kernels runtime $(LAYOUT)/fusion/
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p fusion
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml

bench: $(READY)
	$(BIN)/python -m bench $(ARGS)

fuzz: $(READY)
	$(BIN)/python tests/fuzz $(if $(SEED),--seed $(SEED)) $(if $(N),--count $(N))

docs: $(READY)
	$(BIN)/python -m fusion.patterns.ops patterns/OPERATORS.md

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: everything after it then resolves against the build that this machine's index offers.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[hf,dev]'
	touch $@
