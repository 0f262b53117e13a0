# One word per job. Every line is a Python command, for machines without make (README.md).
PYTHON ?= python3
BIN := .venv/bin

MINUTES ?= 30

.PHONY: demo test test-fast simulate faults soak lint stack stack-stop bench bench-full docs lock

demo:            ## set up, index the sample pictures, serve the search page; ARGS=--check exits 0 or 1
	@$(PYTHON) -m deploy.setup run
	@$(BIN)/headwater demo $(ARGS)

test:            ## everything, on real Kafka and MinIO
	@$(PYTHON) -m deploy.setup dev
	@$(PYTHON) -m deploy.run_tests $(ARGS)

test-fast:       ## no servers, no model, no browser; four workers on two cores, since half of their time is waiting
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile -m "not kafka and not minio and not model and not browser and not slow" $(ARGS)

simulate:        ## the whole protocol by seeds, and each planted bug; ARGS="--seeds 10000"
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m tests.simulation $(ARGS)

faults:          ## every fault of the matrix on real processes, a Kafka and a MinIO of its own; results/faults.json; ARGS="--only 4,9"
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m tests.faults $(ARGS)

soak:            ## random faults under load for MINUTES; results/soak.json; ARGS="--seed 7"
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m tests.faults --soak --minutes $(MINUTES) $(ARGS)

lint:
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports && $(BIN)/mypy

stack:           ## Apache Kafka and MinIO on this machine, without Docker
	@$(PYTHON) -m deploy.local.stack start

stack-stop:
	@$(PYTHON) -m deploy.local.stack stop

bench:           ## results/bench.json and results/bench.png, in twenty minutes on two cores; ARGS="--only W4"
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m bench $(ARGS)

bench-full:      ## the same at the lengths that the goals speak of; about an hour
	@$(PYTHON) -m deploy.setup dev
	@$(BIN)/python -m bench --full $(ARGS)

docs:            ## pages that are generated from the code
	@$(BIN)/python -m docs.generate

lock:            ## resolve anew; commit the result
	@$(BIN)/python -m deploy.lock
