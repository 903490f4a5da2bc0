# make demo          install, analyse a prompt with the starter, say where the report is
# make test          the whole test suite
# make check         format, lint, types, import direction
# make test-compat   model and hook tests on the oldest transformers we support
# make bench         gemlens beside its peers, in an environment of theirs: equality, then times; docs/performance.md
#                    ROWS="encode decode" times these rows alone, REPEAT=1 tries them and writes nothing
# make clean         remove the environments and outputs

PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
PEERS := benchmarks/.env-peers
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet
SOURCES := $(shell find src starter/src -type f -not -name '*.pyc') pyproject.toml starter/pyproject.toml constraints.txt

.PHONY: demo test check test-compat bench clean

demo: $(VENV)/.installed
	$(BIN)/gemlens analyze --model-id starter \
	  --prompt "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in" \
	  --max-new-tokens 24 --export html --export json --export jsonl --out-dir outputs
	@echo
	@echo "The report: $(CURDIR)/outputs/gemma_scope_2_report.html"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_face.py

test-compat: $(COMPAT)/.installed
	$(COMPAT)/bin/python -m pytest tests/test_hooks.py tests/test_kinds.py tests/test_gemma.py tests/test_analyze_many.py tests/test_resume.py tests/test_load_model.py tests/test_hub.py

# The peers' pins and ours conflict: their environment sees our sources, not our installation.
bench: export PYTHONPATH := src:starter/src
bench: $(PEERS)/.installed
ifndef ROWS
	$(PEERS)/bin/python benchmarks/peers_equal.py
	$(PEERS)/bin/python -m pytest -p no:cacheprovider tests/test_saelens.py
endif
	$(PEERS)/bin/python benchmarks/bench.py $(addprefix --repeat ,$(REPEAT)) $(ROWS)

$(PEERS)/.installed: benchmarks/peers.txt
	test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(PIP) -r benchmarks/peers.txt
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("gemlens needs Python 3.11 to 3.13") if not (3, 11) <= sys.version_info < (3, 14) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python $(PIP) -c constraints.txt '.[starter]' ./starter
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(PIP) -c constraints.txt '.[starter,dev]'
	@touch $@

$(COMPAT)/.installed: $(SOURCES)
	test -d $(COMPAT) || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python $(PIP) torch==2.13.0 transformers==4.57.3 pytest '.[starter]' ./starter
	@touch $@

clean:
	rm -rf $(VENV) $(COMPAT) $(PEERS) benchmarks/.activations outputs
