# The few commands to remember. Everything runs in $(VENV), which is made on first use.
VENV ?= .venv
PY := $(VENV)/bin/python
SIZE ?= 1.24b
CORES := $(shell nproc 2>/dev/null || echo 2)
export PYTHONUNBUFFERED = 1

.PHONY: help demo test check format docs bench parity exactness latent-bench clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

$(VENV)/.core: pyproject.toml scripts/setup.sh
	scripts/setup.sh $(VENV) hf
	@touch $@

$(VENV)/.dev: pyproject.toml scripts/setup.sh
	scripts/setup.sh $(VENV) dev
	@touch $@ $(VENV)/.core

demo: $(VENV)/.core  ## make tiny models, merge them by TIES, verify, generate a line
	$(PY) scripts/demo.py

check: $(VENV)/.dev  ## style, types, generated docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) scripts/make_docs.py --check

test: check  ## everything: style, types, rooms, laws, tests, docs and examples
	$(VENV)/bin/pytest -q --doctest-modules src/smelt
	$(VENV)/bin/pytest -q -n $(CORES) --dist worksteal tests

format: $(VENV)/.dev  ## rewrite files in house style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.dev  ## rewrite the generated pages (methods, schema)
	$(PY) scripts/make_docs.py

bench: $(VENV)/.core  ## smelt against mergekit and the I/O floor -> docs/benchmarks.md (SIZE=0.33b|1.24b|3b)
	$(PY) -m bench.run --size $(SIZE)
	$(PY) -m bench.latent_cost --docs docs/latent_cost.md

parity: $(VENV)/.core  ## every case against mergekit 0.1.5 -> docs/parity.md
	$(PY) -m bench.parity

exactness: $(VENV)/.core  ## outputs against float64 -> docs/exactness.md
	$(PY) -m bench.exactness

latent-bench: $(VENV)/.dev  ## latent merging of tiny trained models, four seeds -> docs/latent.md
	$(PY) -m bench.latent

clean:  ## remove what the commands above made, but not the environment
	rm -rf demo-out .work build .pytest_cache .mypy_cache .ruff_cache .hypothesis
