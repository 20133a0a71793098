# `make demo` and `make test` set up everything they need in .venv; nothing else has to be installed first.
export NO_MKDOCS_2_WARNING := 1
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check format docs docs-serve slow bench dist sbom clean

demo: $(READY)
	$(BIN)/leakmap demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

# Writes the pages that are made of types, then the site into site/; docs/hooks.py adds the catalogue of the registries.
docs: $(READY)
	$(BIN)/leakmap schema --markdown > docs/result.md
	$(BIN)/leakmap schema > docs/result.schema.json
	$(BIN)/leakmap schema --evidence > docs/evidence.schema.json
	$(BIN)/leakmap schema --entry > docs/entry.schema.json
	$(BIN)/leakmap entry board entries --out docs/board.md
	$(BIN)/mkdocs build --strict

docs-serve: $(READY)
	$(BIN)/mkdocs serve

slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout=1800

# Hours on a quiet machine; make bench LEAKPRO=DIR also measures a checkout of LeakPro.
bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed $(if $(LEAKPRO),--leakpro $(LEAKPRO))

# What is uploaded, checked; and the list of everything that the lock installs (CycloneDX).
dist: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

sbom: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[release]'
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json $(BIN)/python

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
	rm -rf $(VENV) build dist site
