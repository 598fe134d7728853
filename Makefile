# percore: `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODELS := models
FETCHED := build/models
HOST := 127.0.0.1
PORT := 8080
STATUS_PORT := 9090
E2E := tests/e2e
E2E_IMAGES :=
# Where tools/install-test-programs puts the npm package.
export NODE_PATH ?= $(CURDIR)/build/node/node_modules
KUBE_SCORE := go run github.com/zegl/kube-score/cmd/kube-score@v1.20.0
COMPOSE_VERSION := v2.40.3
SCRIPTS := .ci/run .ci/pause-api-server $(addprefix tools/,install-system-packages install-test-programs lock package-chart) \
  $(addprefix tests/,one-machine e2e/addons e2e/images e2e/kind-image e2e/run)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up: the other targets run it if they need it ------------------------------------------------------------------------

.venv/installed: requirements/uv.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"percore needs Python 3.11 or later, and this is {sys.version}" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/install-system-packages python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@# Compiled here, because otherwise, if Python may not write bytecode, each worker would compile all of TensorFlow at its start.
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements/uv.txt requirements/dev.txt
	@# Installed from this folder, so that every process finds the package and the command `percore`.
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(MODELS)/built: .venv/installed $(wildcard demo/*.py)
	$(BIN)/python -m demo.models $(MODELS)
	@touch $@

.PHONY: models
models: $(MODELS)/built ## Train and write the demo models (cached)

# --- run ---------------------------------------------------------------------------------------------------------------------

.PHONY: run
ifdef MODEL
run: .venv/installed
	@$(BIN)/percore fetch '$(MODEL)' $(FETCHED)
	@exec $(BIN)/percore serve --models $(FETCHED) --host $(HOST) --port $(PORT) --status-port $(STATUS_PORT)
else
run: $(MODELS)/built ## Serve the demo models on this machine, one call per core (MODEL=URI: others; HOST, PORT, STATUS_PORT)
	@$(BIN)/python -m demo.try_it http://$(HOST):$(PORT) http://$(HOST):$(STATUS_PORT)
	@exec $(BIN)/percore serve --models $(MODELS) --host $(HOST) --port $(PORT) --status-port $(STATUS_PORT)
endif

$(MODELS)/digits.keras: .venv/installed demo/flask_model.py
	$(BIN)/python -m demo.flask_model $@

.PHONY: run-app
run-app: $(MODELS)/digits.keras ## Serve the demo's Flask app on this machine, one request per core (HOST, PORT, STATUS_PORT)
	@exec env DEMO_MODEL=$< $(BIN)/percore serve demo.flask_app:app --host $(HOST) --port $(PORT) --status-port $(STATUS_PORT)

# --- checks ------------------------------------------------------------------------------------------------------------------

.PHONY: test
test: lint drift unit service-test gateway-test chart-test rules-test ## Everything that must pass on one machine, without a cluster

.PHONY: lint
lint: .venv/installed ## Ruff, mypy, import contracts, shell scripts, YAML, workflows, spelling, links of the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/yamllint --strict .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/zizmor --offline --quiet --min-severity medium .github
	$(BIN)/codespell
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.PHONY: docs
docs: .venv/installed ## Build the documentation as a site, build/site, and show it on port 8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

.PHONY: format
format: .venv/installed ## Rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: drift
drift: .venv/installed ## Fail if a generated file differs from its source
	$(BIN)/python -m tools.generate --check

.PHONY: update
update: .venv/installed ## Write the generated files again
	$(BIN)/python -m tools.generate

.PHONY: unit
unit: .venv/installed ## Unit tests
	$(BIN)/pytest -n auto tests/unit

.PHONY: service-test
service-test: $(MODELS)/built ## Tests of the running service: real processes, real sockets, real faults
	$(BIN)/pytest -n 2 --dist loadfile tests/service

.PHONY: gateway-test
gateway-test: .venv/installed ## Tests of the gateway: fake and real pods, real sockets, real faults
	$(BIN)/pytest -n 2 --dist loadfile tests/gateway

.PHONY: chart-test
chart-test: .venv/installed ## Tests of the Helm chart as it renders, and of the Dockerfile
	$(BIN)/pytest -n auto tests/chart

.PHONY: chart-findings
chart-findings: .venv/installed ## checkov and kube-score on the chart: fail if a finding has no reason (needs Go)
	$(BIN)/uv venv --quiet --allow-existing build/checkov
	$(BIN)/uv pip sync --quiet --python build/checkov --require-hashes requirements/checkov.txt
	$(BIN)/python -m tools.chart_findings --checkov build/checkov/bin/checkov --kube-score "$(KUBE_SCORE)"

.PHONY: compose-check
compose-check: ## Docker Compose reads compose.yaml, and starts nothing (needs Go, which builds it: minutes the first time)
	@mkdir -p build/compose
	@# A module of its own, because `go run` refuses a program whose go.mod has `exclude` lines.
	@printf 'module compose\n' >build/compose/go.mod
	@cd build/compose && go get github.com/docker/compose/v2/cmd@$(COMPOSE_VERSION) 2>go.log && go build -o docker-compose github.com/docker/compose/v2/cmd
	build/compose/docker-compose --file compose.yaml config --quiet

.PHONY: rules-test
rules-test: .venv/installed ## Tests of the alerts: promtool, on the rules as the chart renders them
	@promtool --version >/dev/null 2>&1 || tools/install-system-packages prometheus
	$(BIN)/pytest -n auto tests/rules

.PHONY: e2e
e2e: .venv/installed ## Tests on the cluster that KUBECONFIG points at (E2E: which tests; E2E_IMAGES: which images; CLUSTER_IMAGE: the program that builds one)
	images=$$(tests/e2e/images $(E2E_IMAGES)) && eval "$$images" && tests/e2e/run $(BIN)/pytest $(E2E)

.PHONY: bench
bench: $(MODELS)/built ## Measure percore and the usual set-ups; writes build/bench (eleven minutes; QUEUES: see docs/bench/stored-calls.md)
	$(BIN)/python -m bench
	$(BIN)/python -m bench.stored_calls $(if $(QUEUES),--queues $(QUEUES))

.PHONY: lock
lock: .venv/installed ## Pin the newest allowed versions of every dependency, with hashes
	tools/lock

.PHONY: clean
clean: ## Remove the files that the other targets made, except .venv
	rm -rf build dist $(MODELS)/{digits,digits.keras,burn,built} .mypy_cache .ruff_cache .pytest_cache .hypothesis
