# A thin face over the `rapport` command: every target can be done by hand with .venv/bin/rapport.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
HOME_DIR ?= .rapport
CUSTOMERS ?= 20000
PORT ?= 8080
BACKEND ?= embedded
SECONDS ?= 30
# The ids that the load test asks for: those of the data set that is up.
DATASET := $(if $(DATA),$(basename $(notdir $(DATA))),generated)
# Torch, Feast and the tools take about 2.5 GB installed; the rest is for data and wheels on their way.
NEEDED_MB := 6000

.PHONY: up down test check format loadtest test-image system-packages

up: $(INSTALLED)
	@if [ "$(BACKEND)" != embedded ]; then \
		echo "rapport: BACKEND=$(BACKEND) is not there yet; only BACKEND=embedded (in-process ONNX Runtime) is" >&2; exit 1; fi
	@exec $(BIN)/rapport up --home $(HOME_DIR) --port $(PORT) --customers $(CUSTOMERS) $(if $(DATA),--data "$(DATA)")

down:
	@if [ -x $(BIN)/rapport ]; then $(BIN)/rapport down --home $(HOME_DIR); else echo "nothing was running"; fi

test: $(INSTALLED) system-packages
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -m "not image"

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
		--users 8 --spawn-rate 8 --run-time $(SECONDS)s --customers $(HOME_DIR)/$(DATASET)/customers.txt

# The container image, built and started without a Docker daemon: a tier of its own.
test-image: $(INSTALLED)
	$(BIN)/pytest -m image tests/image -s -p no:logging

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
	$(BIN)/pip install --disable-pip-version-check -q -e ".[cpu,features,export,local,loadtest,dev]"
	@touch $@
