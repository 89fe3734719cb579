# The project's jobs. All that is needed beforehand: python3 (3.11 or newer), pip and make.
# Each job first makes .venv if it is missing or made by another PYTHON, and brings it up to date with pyproject.toml.

PYTHON ?= python3
VENV ?= .venv

run := $(VENV)/bin/python
ready_to_run := $(VENV)/.ready-to-run-$(notdir $(PYTHON))
ready_to_test := $(VENV)/.ready-to-test-$(notdir $(PYTHON))
demo := $(run) -m experiments atari --preset demo

.PHONY: demo test soak fuzz cluster lint bench clean
.DELETE_ON_ERROR:

demo: $(ready_to_run)  ## DQN on Pong with and without NaP, then a report
	$(demo) --method none
	$(demo) --method nap
	$(run) -m experiments report runs/atari --out runs/atari/report.html

test: $(ready_to_test)  ## the whole test suite
	$(run) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

soak: $(ready_to_test)  ## runs that are killed again and again; minutes
	$(run) -m pytest -m soak

fuzz: $(ready_to_test)  ## hostile values, seeded (NAP_FUZZ_SEED) and bounded (NAP_FUZZ_CASES); minutes
	$(run) -m pytest -m fuzz $(PYTEST_ARGS)

cluster: $(ready_to_test)  ## sweeps on Ray and SLURM, started here (apt install slurmctld slurmd munge)
	$(run) -m pip install --quiet --constraint constraints.txt --editable '.[ray,slurm]'
	$(run) -m pytest -m cluster

lint: $(ready_to_test)  ## style and types
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m pyrefly check

bench: $(ready_to_run)  ## what it costs, against what it could cost
	$(run) -m experiments bench

clean:  ## remove the virtual environment (runs/ stays)
	rm -rf $(VENV)

$(ready_to_run): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed; try make PYTHON=python3.12")'
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	$(run) -m pip install --quiet --constraint constraints.txt --editable '.[experiments]'
	@touch $@

$(ready_to_test): $(ready_to_run)
	$(run) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
