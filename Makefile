# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check format docs slow bench clean

demo: $(READY)
	$(BIN)/leakmap demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/leakmap list --markdown > docs/catalogue.md
	$(BIN)/leakmap schema --markdown > docs/result.md
	$(BIN)/leakmap schema > docs/result.schema.json
	$(BIN)/leakmap schema --evidence > docs/evidence.schema.json
	$(BIN)/leakmap schema --entry > docs/entry.schema.json
	$(BIN)/leakmap entry board entries > docs/board.md

slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout=1800

# Hours on a quiet machine; make bench LEAKPRO=DIR also measures a checkout of LeakPro.
bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed $(if $(LEAKPRO),--leakpro $(LEAKPRO))

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("leakmap needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
