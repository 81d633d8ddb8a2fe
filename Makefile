# Everything runs in a virtual environment that this file makes; nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: bench test browser bench-check bench-peers check format build setup clean

bench: build  ## time regops against PyTorch and write the report
	$(BIN)/python -m bench

test: build  ## all tests, in TEST_JOBS processes
	@$(MAKE) --no-print-directory browser || echo "no browser: tests of the report's page are skipped"
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --benchmark-quiet -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

browser: setup  ## a Chromium for the tests of the report's page, unless there is one
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get install -y -qq chromium && exit 0; fi; \
	$(BIN)/playwright install chromium

bench-check: build  ## fail unless the last benchmark's ratios meet the goals
	$(BIN)/python -m bench.check

bench-peers: setup  ## install the other libraries that this machine can run, for bench
	$(BIN)/python -m bench.install_peers

check: setup  ## format, lint and types, as CI runs them
	$(BIN)/pre-commit run --all-files

build: setup
	$(BIN)/python setup.py -q build_ext --inplace

setup: $(VENV)/installed

# torch comes first, alone: every other package then finds it there.
$(VENV)/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"regops: its tests and benchmarks need Python 3.11 or newer; $(PYTHON) is %d.%d: set PYTHON" \
		% sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build regops/_C*.so
