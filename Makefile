# The commands of the project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export NO_ALBUMENTATIONS_UPDATE := 1

unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults check bench ui dashboards

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in requirements.lock (needs Python 3.11 or newer; PYTHON=... to choose one)

# uv, itself hash-pinned in the lock, installs the set several times faster; where it cannot (an index that only pip's own
# settings know), pip does the same work. One import of what is heavy leaves its byte code behind: without, an environment that
# sets PYTHONDONTWRITEBYTECODE compiles torch anew at every start, 20 s instead of 3.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raydino needs Python 3.11 or newer, not %d.%d: make setup PYTHON=python3.11" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@awk '/^uv==/ {on = 1} on {print} on && !/\\$$/ {exit}' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -W ignore -c 'import torch._dynamo, torch.distributed.fsdp, torchvision, timm, ray.train.torch, ray.data, ray.tune, mlflow.tracking, albumentations, faiss, matplotlib.pyplot, sklearn.linear_model, optuna'
	@touch $@

demo: $(READY) ## train DINOv2 on built-in images, from curation to k-NN, 2 to 6 minutes on 2 cores
	@$(BIN)/python recipes/dinov2.py --name demo

# Side by side, because neither half fills two cores: tests with Ray wait for its processes to start, all others have one thread.
test: $(READY) ## run the tests
	@log=$$(mktemp); $(BIN)/python -m pytest -q -m "ray and not fault" > $$log 2>&1 & ray=$$!; trap "kill $$ray 2> /dev/null" INT TERM; \
	$(BIN)/python -m pytest -q -m "not ray and not fault"; rest=$$?; \
	wait $$ray; with_ray=$$?; cat $$log; rm $$log; [ $$rest -eq 0 ] && [ $$with_ray -eq 0 ]

faults: $(READY) ## run the fault suite alone
	@$(BIN)/python -m pytest -q -m "" tests/faults tests/dashboards/test_live.py tests/launch/test_run.py tests/launch/workers/test_worker.py tests/launch/engine/test_group.py tests/launch/sweep/test_kills.py tests/launch/trials/test_run.py tests/train/test_cliffs.py

check: $(READY) ## lint, format, types, floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@PYTHONPATH=platform $(BIN)/lint-imports

bench: $(READY) ## run every benchmark; results in benchmarks/results
	@for file in $(wildcard benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

ui: $(READY) ## open the record of all runs on http://127.0.0.1:5000
	@mkdir -p runs
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db --host 127.0.0.1 --port 5000 \
	  --allowed-hosts 127.0.0.1:5000,localhost:5000 --cors-allowed-origins http://127.0.0.1:5000,http://localhost:5000 \
	  --x-frame-options DENY

dashboards: ## watch the runs of this machine: Prometheus on http://127.0.0.1:9090, and Grafana where it is installed
	@dashboards/up.sh
