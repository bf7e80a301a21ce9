# make demo   a whole fleet on this machine, moved under live traffic
#             TENANTS=3 ROWS=600000 RATE=50 TENANT_SQL=dump.sql SOURCE_PG=15 TARGET_PG=18 KEEP=1
#             STORY=rollback: move, write, roll back, write, move again
# make down   stop what a demo with KEEP=1, or an interrupted one, left running
# make test   all tests, in three processes; PYTEST_ARGS="tests/local -x" for some of them, in one
# make soak   drawn cases, then faults at every point of a move, for as long as wanted: MINUTES=60 each
#             SOAK_SEED=n draws again what it drew where it printed that seed
# make replay play a drawn case again that has failed: SCRIPT=.local/model/failed.sql
# make lint   ruff and mypy

PYTEST_ARGS ?= --numprocesses=3
PURPOSE = run
MINUTES ?= 10
# Where tests are marked "soak".
SOAK_TESTS = tests/model tests/faults
SCRIPT ?= .local/model/failed.sql
export TENANTS ROWS RATE TENANT_SQL SOURCE_PG TARGET_PG KEEP STORY SOAK_SEED
# Each task of Airflow is a process, which would compile all of Airflow again.
unexport PYTHONDONTWRITEBYTECODE
# Airflow and its workers are started by name, so the environment comes first on PATH.
USE_PYTHON = python=$$(scripts/environment.sh $(PURPOSE)) && PATH="$$(dirname "$$python"):$$PATH" && \
	export PYTHONPATH=include:plugins &&

.PHONY: demo down test soak replay lint environment pgbouncer spin gcc

demo: pgbouncer
	@$(USE_PYTHON) exec "$$python" -m tenantferry.local.demo

down:
	@$(USE_PYTHON) exec "$$python" -m tenantferry.local.down

test: pgbouncer spin gcc
	@$(USE_PYTHON) exec "$$python" -m pytest $(PYTEST_ARGS)

soak: export SOAK_MINUTES = $(MINUTES)
soak: pgbouncer
	@$(USE_PYTHON) exec "$$python" -m pytest -s -m soak $(SOAK_TESTS)

replay: export MODEL_SCRIPT = $(abspath $(SCRIPT))
replay:
	@$(USE_PYTHON) exec "$$python" -m pytest -s tests/model/test_model_replay.py -k of_a_case

lint: PURPOSE = lint
lint:
	@$(USE_PYTHON) "$$python" -m ruff check && "$$python" -m ruff format --check && \
	"$$python" -m mypy

environment:
	@scripts/environment.sh

# spin checks the specifications in docs/spec; it needs a C compiler.
pgbouncer spin gcc:
	@scripts/program.sh $@
