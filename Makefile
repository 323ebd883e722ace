# make quickstart   environment, install, then PPO on a small world with a known truth (offline, CPU); TASK=mt|qa|real-mt|real-qa;
#                   GRAMMAR=languagetool: TASK=mt with the real grammar checker
# make test         environment, install, the test suite (make test-all: whole pipelines of real data too)
# make languagetool the real grammar checker for translation (97 MB from Maven Central; wants Java 17 and Maven)
# make gpu-check    10 minutes on a machine with a GPU: results against a CPU, seconds and memory; FLAGS="..." adds flags
# make plots        a PNG of the run in the folder RUN_DIR (several: RUN_DIR="runs/a runs/b"), from its log
# make style        formatter and linter
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN = $(VENV)/bin/python
PIP = $(VENV)/bin/pip --disable-pip-version-check
# several threads beside another busy process are slower than one; the tests run in two processes
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE ?= 1
# the quickstart's task: mt or qa (small worlds), real-mt or real-qa (samples of real data)
TASK ?= mt

LANGUAGETOOL = languagetool/LanguageTool-6.8

.PHONY: quickstart paper test test-all test-fast style clean-quickstart languagetool plots gpu-check

# for real translation, LanguageTool is downloaded if Java and Maven are installed; for the small one, if GRAMMAR asks for it
quickstart: $(VENV)/.installed $(if $(filter languagetool,$(GRAMMAR)),languagetool)
	if [ $(TASK) = real-mt ] && command -v java >/dev/null && command -v mvn >/dev/null; then $(MAKE) languagetool; fi
	$(RUN) -m quickstart.run --task $(TASK) $(if $(GRAMMAR),--grammar_backend $(GRAMMAR))

# hours; goes on where it was stopped. A world that is built here has other files than that of miniature/results/, so its
# records and its page have a folder of their own
GRID = miniature/work
paper: $(VENV)/.installed
	$(RUN) -m miniature.build --world mt --flips 0 0.25 --save_dir miniature/work/built/mt
	$(RUN) -m miniature.run --tasks mt --seeds 5 --results $(GRID)/results --tune
	$(RUN) -m miniature.run --tasks mt --seeds 5 --results $(GRID)/results
	cp docs/miniature.md $(GRID)/miniature.md
	$(RUN) -m miniature.paper --results $(GRID)/results --page $(GRID)/miniature.md

# test-all: whole pipelines of real data too
test: MARKS = --durations=25 -m "not whole"
test test-all: $(VENV)/.installed-dev
	if command -v java >/dev/null && command -v mvn >/dev/null; then $(MAKE) languagetool; fi
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal $(MARKS)

test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not whole"

style: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# exit code 1: a comparison failed; 2: no GPU was found
gpu-check: $(VENV)/.installed
	$(RUN) benchmarks/gpu_check.py --json gpu_check.json $(FLAGS)

plots: $(if $(RUN_DIR),$(VENV)/.installed)
	@test -n "$(RUN_DIR)" || { echo "error: name the run's folder: make plots RUN_DIR=..." >&2; exit 2; }
	$(RUN) -m alarm.plot_run $(foreach folder,$(RUN_DIR),--run_dir $(folder))

languagetool: $(LANGUAGETOOL)/.complete

$(LANGUAGETOOL)/.complete: languagetool/pom.xml
	@command -v java >/dev/null && command -v mvn >/dev/null || { echo "error: LanguageTool wants Java 17 or newer \
	and Maven; on Debian: apt-get install openjdk-17-jre-headless maven" >&2; exit 2; }
	rm -rf $(LANGUAGETOOL)
	mvn --batch-mode --no-transfer-progress --quiet --file languagetool/pom.xml dependency:copy-dependencies \
	  -DincludeScope=runtime -Dmdep.stripVersion=true -DoutputDirectory="$(CURDIR)/$(LANGUAGETOOL)/libs"
	mv $(LANGUAGETOOL)/libs/languagetool-server.jar $(LANGUAGETOOL)/
	touch $@

clean-quickstart:
	rm -rf quickstart/work

$(VENV)/.installed: requirements.txt requirements-quickstart.txt setup.py trl/setup.py
	@echo "installing the packages into $(VENV): 6 GB on disk, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps --require-hashes -r requirements-quickstart.txt
	$(PIP) install --no-deps --no-build-isolation -e . -e ./trl
	touch $@

# DeepSpeed's shared memory for processes on a CPU is switched off: it would be compiled at first use, which takes minutes
$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-trl.txt requirements-deepspeed.txt
	$(PIP) install -r requirements-dev.txt
	rm -rf build/hf-trl build/deepspeed
	$(PIP) install --no-deps --target build/hf-trl -r requirements-trl.txt
	DS_BUILD_OPS=0 $(PIP) install --no-deps --no-build-isolation --target build/deepspeed -r requirements-deepspeed.txt
	sed -i.orig "s/if sys.platform != 'linux':/if True:/" build/deepspeed/deepspeed/ops/op_builder/cpu/comm.py
	touch $@
