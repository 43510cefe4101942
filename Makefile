# Each target makes its own virtual environment where there is none. Needs Python 3.11 or newer, and make.
#   make demo     the main job on real weights: convert, load in both frameworks, verify, search
#   make test     every test
#   make lint     ruff and mypy
#   make native   the compiled kernels for this checkout, without installing it; pip install builds them, too
#   make bench    latency, import time and memory beside transformers' figures
PYTHON     ?= python3
VENV       ?= .venv
TORCH      ?= torch==2.13.0
TENSORFLOW ?= tensorflow-cpu==2.21.0
RUN        := $(VENV)/bin/python

.PHONY: demo test lint native bench clean

demo: $(VENV)/ready
	$(RUN) docs/examples/semantic_search.py

test: $(VENV)/ready
	$(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m mypy

native:
	cmake -S bertkit/core/csrc -B build/native
	cmake --build build/native --parallel
	cmake --install build/native --prefix .

bench: $(VENV)/ready
	$(RUN) docs/examples/benchmark.py

# The frameworks are pinned here so that everybody tests the same; the package itself takes a range of them.
$(VENV)/ready: pyproject.toml $(wildcard bertkit/core/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TENSORFLOW)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[torch,tf-cpu,dev]"
	touch $@

clean:
	rm -rf $(VENV) .demo build dist bertkit/core/_native
