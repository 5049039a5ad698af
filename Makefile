# Every target makes what it needs: `make demo` and `make test` work in a bare clone.
PYTHON  ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.made

# make extract DATASET=...: each of these has a default
DATASET ?= demo
DATA    ?=
STORE   ?= features
MODEL   ?= dinov3-s
RES     ?=
WEIGHTS ?=
DEVICE  ?= auto

DEMO    := build/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo extract test test-long check format docs docs-serve bench constraints clean

help: ## Say what there is to make
	@echo "make TARGET [VARIABLE=value ...]"; echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r t d; do printf '  %-12s %s\n' "$$t" "$$d"; done
	@echo; echo "Variables of 'make extract' and their defaults:"
	@echo "  DATASET=$(DATASET)    a shipped dataset, a manifest, or a table of images (.csv, .tsv, .parquet)"
	@echo "  DATA=            the data folder (data/<dataset>; a table's own folder)"
	@echo "  STORE=$(STORE)   root of the feature stores"
	@echo "  MODEL=$(MODEL)   encoder ('dinocache encoders' lists them)"
	@echo "  RES=             resolution, px (the dataset's; 256 for a table; else the encoder's own)"
	@echo "  WEIGHTS=         hub, a file, or random:0 (what the store has, else hub)"
	@echo "  DEVICE=$(DEVICE)      auto, cuda, cuda:1, mps, cpu"

setup: $(STAMP) ## Make the environment in .venv, with everything

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Python 3.11 or newer is needed, this is %d.%d; name another: make PYTHON=/path/to/python3" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[extract,cluster,dense,dev,docs]'
	@touch $@

demo: $(STAMP) ## Embedded X-rays -> DINOv3 features -> two probes -> an HTML page
	$(BIN)/dinocache extract demo --store $(DEMO)/features --model dinov3-s --weights hub,random:0
	$(BIN)/probe fit $(DEMO)/features/demo/dinov3-s/256 --target projection --positive pa --head linear --out $(DEMO)/runs/linear
	$(BIN)/probe fit $(DEMO)/features/demo/dinov3-s/256 --target projection --positive pa --head knn --out $(DEMO)/runs/knn
	$(BIN)/probe report $(DEMO)/runs --store $(DEMO)/features/demo/dinov3-s/256 --out $(DEMO)/report.html

extract: $(STAMP) ## Extract what is missing of DATASET
	$(BIN)/dinocache extract $(DATASET) --store $(STORE) --model $(MODEL) --device $(DEVICE) $(if $(DATA),--data $(DATA)) $(if $(RES),--resolution $(RES)) $(if $(WEIGHTS),--weights $(WEIGHTS))

test: check ## All checks, then the test suite: what CI runs
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

test-long: $(STAMP) ## The tests that take minutes or many gigabytes
	$(BIN)/python -m pytest -m long

check: $(STAMP) ## Style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Put the code into its style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## The documentation as a site -> build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f .mkdocs.yml

docs-serve: $(STAMP) ## The site while one writes, at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve -f .mkdocs.yml

bench: $(STAMP) ## CPU cost of a row against the bare decoder and the bare forward
	$(BIN)/python benchmarks/overhead.py

constraints: $(STAMP) ## Write down the versions that are installed now
	{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove the environment and what the demo made
	rm -rf $(VENV) build
