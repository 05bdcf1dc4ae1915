# A thin face over the `rapport` command: every target can be done by hand with .venv/bin/rapport.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HOME_DIR ?= .rapport
PORT ?= 8080
BACKEND ?= embedded
# The ids that the load test asks for: those of the data set that is up.
DATASET := $(if $(DATA),$(basename $(notdir $(DATA))),generated)
# Torch, Feast, Triton and the tools take about 3 GB installed; the rest is for data and wheels on their way.
NEEDED_MB := 6000

.PHONY: up down test check format loadtest bench quality wrk triton test-image system-packages

up: $(INSTALLED) $(if $(filter triton,$(BACKEND)),triton)
	@exec $(BIN)/rapport up --home $(HOME_DIR) --port $(PORT) --backend $(BACKEND) \
		--customers $(or $(CUSTOMERS),20000) $(if $(DATA),--data "$(DATA)") $(if $(ACCEPT),--accept "$(ACCEPT)")

down:
	@if [ -x $(BIN)/rapport ]; then $(BIN)/rapport down --home $(HOME_DIR); else echo "nothing was running"; fi

test: $(INSTALLED) system-packages wrk
	@$(MAKE) -s triton || echo "without it the tests on a real Triton are skipped" >&2
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "not image and not chaos"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Against a gateway that is up (make up, in another terminal); fails on a wrong answer.
loadtest: $(INSTALLED)
	$(BIN)/locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:$(PORT) \
		--users 8 --spawn-rate 8 --run-time $(or $(SECONDS),30)s --customers $(HOME_DIR)/$(DATASET)/customers.txt

# How good the model is on unseen cutoffs, beside LightGBM and simpler models: tables, then one line of JSON. DATA= another file of
# events, CUTOFFS=2011-05-19,2011-06-02 other test cutoffs: training and validation follow from them.
quality: $(INSTALLED)
	@$(BIN)/rapport quality "$(or $(DATA),$(or $(RAPPORT_DATA),../shared/data)/online_retail_ii.parquet)" --workspace $(HOME_DIR)/quality \
		$(if $(CUTOFFS),--cutoffs "$(CUTOFFS)")

# Every performance row, with ratios inside one run, and the pages docs/performance*.md from it. SECONDS= of one load, ROUNDS= of
# each comparison, ROWS=throughput,tail or ROWS=on_triton for some of them, CUSTOMERS=10000000 for the large store (8 GB of memory),
# ROWS=offline for the steps from events to a trained model with SIZES=100000,1000000 customers (or CUSTOMERS= and a tenth of them),
# PEERS=1 for other systems beside ours.
bench: $(INSTALLED) wrk
	@$(MAKE) -s triton || echo "without it the Triton rows are not measured" >&2
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m loadtests.bench --home $(HOME_DIR)/bench \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CUSTOMERS),--customers $(CUSTOMERS)) \
		$(if $(SIZES),--sizes $(SIZES)) $(if $(ROWS),--rows $(ROWS)) $(if $(filter-out on_triton offline,$(ROWS)),,--docs docs) $(if $(PEERS),--peers)

# The load of `make bench`. Unpacked with the one library that it needs, so that it needs no root.
wrk: $(INSTALLED)
	@if ! command -v wrk >/dev/null && [ ! -x $(BIN)/wrk ]; then \
		if command -v apt-get >/dev/null && { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && mkdir -p $(VENV)/wrk && cd $(VENV)/wrk && \
			apt-get -o APT::Sandbox::User=root download -qq wrk libluajit-5.1-2 && \
			for package in *.deb; do dpkg -x $$package . || exit 1; done; \
		then mv usr/lib/*/libluajit*.so* usr/bin/wrk . && \
			printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/wrk "$$@"\n' "$$PWD" "$$PWD" > ../bin/wrk && chmod +x ../bin/wrk; \
		else echo "wrk is missing: install Debian's package wrk; without it there is no bench, and its tests are skipped" >&2; fi; fi

# A real tritonserver without a container, in $(VENV)/triton. Its Python processes need Debian's libpython3.11.
triton: $(INSTALLED)
	@if ! ldconfig -p | grep -q 'libpython3\.11\.so\.1\.0' && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends libpython3.11 >/dev/null; fi || true
	@$(BIN)/rapport triton install

# The container image, built and started without a Docker daemon: a tier of its own.
test-image: $(INSTALLED)
	$(BIN)/pytest -m image tests/image -s -p no:logging

# Faults in any order under load, for SECONDS= on each backend; SEED= repeats a run, whose seed is its first line.
test-chaos: $(INSTALLED)
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) $(BIN)/pytest -m chaos tests/faults -s -p no:logging

# promtool checks the scrape configuration, the dashboard's queries and the metrics. Unpacked, not installed: Debian's
# package prometheus would start a server.
system-packages: $(INSTALLED)
	@if ! command -v promtool >/dev/null && [ ! -x $(BIN)/promtool ]; then \
		if command -v apt-get >/dev/null && { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && \
			cd $(VENV) && apt-get -o APT::Sandbox::User=root download -qq prometheus && dpkg -x prometheus_*.deb promtool.deb; \
		then mv promtool.deb/usr/bin/promtool bin/ && rm -rf promtool.deb prometheus_*.deb; \
		else echo "promtool is missing: install Debian's package prometheus; without it its tests are skipped" >&2; fi; fi

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || \
		{ echo "rapport: Python 3.11 or 3.12 is needed (PYTHON=/path/to/python3.11 chooses one)" >&2; exit 1; }
	@free=$$(df -Pm . | awk 'NR == 2 {print $$4}'); if [ ! -x $(BIN)/pip ] && [ "$$free" -lt $(NEEDED_MB) ]; then \
		echo "rapport: $$free MB are free here; the installation needs $(NEEDED_MB) MB" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -q -e ".[cpu,triton,objects,signing,features,export,report,local,loadtest,dev]"
	@touch $@
