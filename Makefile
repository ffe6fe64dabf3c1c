# Every target creates .venv and installs what it needs: a machine with Python 3.11 or later and make is enough.
#   PYTHON=python3.12 make ...   another interpreter for .venv
#   TORCH_INDEX=URL make ...     take torch from this index of wheels (for one without CUDA, say)
PYTHON ?= python3
TORCH_INDEX ?=
# The number of test processes, and the benchmark to run.
JOBS ?= 2
BENCH ?= demo

BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help venv peers stores demo test test-portable soak lint typecheck docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(INSTALLED) ## create .venv with retrodb and everything its tests need

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "retrodb needs Python 3.11 or later; name one: PYTHON=python3.12 make venv")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-c constraints.txt -e '.[cpu,minilm,dev]'
	touch $@

# Each is wanted by some tests only, which are skipped by name without it: what cannot be installed is reported, no error.
# retro-pytorch needs older packages, in an environment of its own, and takes what is large (torch, faiss) from .venv.
RETRO := .venv-retro-pytorch
RETRO_PACKAGES := retro-pytorch==0.3.9 pyarrow==19.0.1 numpy==1.26.4 pandas==2.3.3 autofaiss==2.18.0 \
	embedding-reader==1.8.1 einops==0.8.2 fire==0.6.0 termcolor python-dateutil pytz tzdata six fsspec

peers: $(INSTALLED) ## install the trainers' own readers, which tests compare the exports with
	-$(BIN)/python -m pip install --quiet -c constraints.txt datasets
	-$(BIN)/python -m pip install --quiet --no-deps megatron-core==0.15.3
	-$(PYTHON) -m venv $(RETRO) \
		&& $(RETRO)/bin/python -m pip install --quiet --no-deps $(RETRO_PACKAGES) \
		&& $(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
		> $$($(RETRO)/bin/python -c 'import site; print(site.getsitepackages()[0])')/from-venv.pth
	$(BIN)/python tests/export/peers.py

# Object stores that others wrote, which run on this machine. Debian has Ceph, and installs it for root alone.
STORES := .venv-stores
stores: ## install object stores of others, in which tests try a database
	-npm install --silent --no-audit --no-fund --prefix $(STORES) s3rver@3.7.1 azurite@3.37.0
	-command -v radosgw > /dev/null || { apt-get update --quiet=2 && \
		apt-get install --quiet=2 --yes --no-install-recommends ceph-mon ceph-osd radosgw; }

demo: $(INSTALLED) ## build a database from the standard library's documentation
	test ! -f demo.retrodb/retrodb.toml || rm -r demo.retrodb  # an earlier demo; nothing else is removed
	$(BIN)/retrodb demo demo.retrodb

test: $(INSTALLED) ## run the tests (JOBS=processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not soak' -n $(JOBS) --dist loadfile

# Kernels and numbers once more as on an older processor: what depends on the processor without being promised to shows here.
NUMERIC := tests/ann tests/dedup tests/encode/test_hashing.py tests/view tests/stages/neighbours tests/stages/search tests/bench
test-portable: $(INSTALLED) ## run the numeric tests as on a processor without AVX2 and AVX-512 (JOBS=processes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/older_processor.py \
		$(BIN)/python -m pytest -m 'not soak and not corpora' -n $(JOBS) --dist loadfile $(NUMERIC)

soak: $(INSTALLED) ## run the tests that take minutes, an hour in all (JOBS=processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -n $(JOBS)

lint: $(INSTALLED) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

docs: $(INSTALLED) ## check the documents against the code
	$(BIN)/python -m retrodb_cli.docs --check
	$(BIN)/python -m pytest tests/test_docs.py

bench: $(INSTALLED) ## run benchmarks/bench_$(BENCH).py (BENCH=stage)
	$(BIN)/python benchmarks/bench_$(BENCH).py

clean: ## remove .venv and what tools left; databases stay
	rm -rf .venv $(RETRO) $(STORES) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
