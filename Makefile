# make demo   a whole fleet on this machine, moved under live traffic
#             TENANTS=3 ROWS=600000 RATE=50 TENANT_SQL=dump.sql SOURCE_PG=15 TARGET_PG=18 KEEP=1
#             STORY=rollback: move, write, roll back, write, move again
# make down   stop what a demo with KEEP=1, or an interrupted one, left running
# make test   the tests; PYTEST_ARGS="tests/local -x" for some of them
# make lint   ruff and mypy

PYTEST_ARGS ?=
PURPOSE = run
export TENANTS ROWS RATE TENANT_SQL SOURCE_PG TARGET_PG KEEP STORY
# Airflow and its workers are started by name, so the environment comes first on PATH.
USE_PYTHON = python=$$(scripts/environment.sh $(PURPOSE)) && PATH="$$(dirname "$$python"):$$PATH" && \
	export PYTHONPATH=include:plugins &&

.PHONY: demo down test lint environment pgbouncer spin gcc

demo: pgbouncer
	@$(USE_PYTHON) exec "$$python" -m tenantferry.local.demo

down:
	@$(USE_PYTHON) exec "$$python" -m tenantferry.local.down

test: pgbouncer spin gcc
	@$(USE_PYTHON) exec "$$python" -m pytest $(PYTEST_ARGS)

lint: PURPOSE = lint
lint:
	@$(USE_PYTHON) "$$python" -m ruff check && "$$python" -m ruff format --check && \
	"$$python" -m mypy

environment:
	@scripts/environment.sh

# spin checks the specifications in docs/spec; it needs a C compiler.
pgbouncer spin gcc:
	@scripts/program.sh $@
