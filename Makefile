.PHONY: help check test prove lint fix bench

help:   ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

check:  ## everything that CI checks
	uv run --group dev pytest

test:   ## the tests alone, without lint and packaging
	uv run --group dev pytest --ignore tests/test_checks.py --ignore tests/test_packaging.py

prove:  ## the long proofs for their whole time
	uv run --group dev pytest -n 0 -s --prove -o faulthandler_timeout=0 tests/test_faults.py tests/test_crash.py tests/test_replicas.py tests/test_run_machine.py tests/test_fuzz.py tests/test_plans.py tests/test_local_model.py

lint:   ## ruff, types and the import rule
	uv run --group dev pytest -q tests/test_checks.py

fix:    ## format, and mend what ruff can mend
	uv run --group dev ruff check --fix .
	uv run --group dev ruff format .

bench:  ## size, start, memory, what the embedded model remembers, and Sessions side by side
	uv run --group dev python benchmarks/footprint.py
	uv run --group dev python benchmarks/sessions.py
	uv run --group dev python benchmarks/dialogues.py --direct
	uv run --group dev python benchmarks/interop.py
	uv run --group dev --group benchmarks python benchmarks/conformance.py
