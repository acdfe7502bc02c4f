# Two commands are the front door: `make serve` and `make test`.

VENV    := .venv
BIN     := $(VENV)/bin
PORT    ?= 8000
HOST    ?= 127.0.0.1
# The first interpreter that is new enough; `make serve PYTHON=/path/to/python3.12` chooses another.
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: help serve train test test-slow check format clean
help:            ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.runtime  ## Install, train if there is no model yet, start the API
	@$(BIN)/python train_als.py --if-needed
	@printf '\n  Open   http://%s:%s/docs\n  Try    curl "http://%s:%s/recommend?user_id=1&k=5"\n         curl "http://%s:%s/recommend_cold?liked=1,2,3&k=5"\n  Stop   Ctrl+C\n\n' \
		$(HOST) $(PORT) $(HOST) $(PORT) $(HOST) $(PORT)
	@exec $(BIN)/python -m uvicorn app.main:app --host $(HOST) --port $(PORT) --timeout-graceful-shutdown 30

train: $(VENV)/.runtime  ## Train again and publish a new version
	@$(BIN)/python train_als.py

test: $(VENV)/.dev       ## Every test that is not marked slow
	@$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(VENV)/.dev  ## The slow tests
	@$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev      ## ruff, strict mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev     ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:           ## Remove the environment and caches; data and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# An interpreter that is gone, after an upgrade of the system say, takes the stamps of its environment with it.
$(shell test -x $(BIN)/python || rm -f $(BIN)/python* $(VENV)/.created $(VENV)/.runtime $(VENV)/.dev)

# An environment without pip, because its making was interrupted say, is completed.
$(VENV)/.created:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }; \
		echo "Creating $(VENV) with $(PYTHON) ..."; \
		$(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.runtime: requirements.txt | $(VENV)/.created
	@echo "Installing requirements.txt (about a minute the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt | $(VENV)/.created
	@echo "Installing requirements-dev.txt ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.runtime
