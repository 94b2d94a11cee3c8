"""llama.cpp through llama-cpp-python's low-level binding: a GGUF file as a runner.

The logits of many positions come from one decode for each batch and one view of the engine's own buffer, copied once.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.errors import BuildError
from exporter.runner import Floats, Ids
from exporter.targets.gguf import log

_CONTEXT = 1024  # tokens of KV cache at first; a longer text opens a longer one
_BATCH = 512
_ALL = 1 << 20  # layers: more than any model has


class GgufRunner:
    """A loaded file and its context. The weights are mapped, not read; leaving the `with` frees everything.

    `exact` is for a file of float32 weights: its KV cache and arithmetic are float32 too. Else the cache is float16,
    llama.cpp's default and what users get.
    """

    def __init__(
        self, file: Path, threads: int, exact: bool = False, gpu: int | None = None, gpu_layers: int | None = None
    ) -> None:
        """`gpu`: the GPU's number, None: the CPU; `gpu_layers`: how many of the layers it gets, None: all."""
        import llama_cpp

        self._api: Any = llama_cpp
        self._threads, self._exact, self._gpu = threads, exact, gpu
        self._context: Any = None
        self._batch: Any = None
        self._length = self._position = 0
        log.listen()
        log.forget()
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
        # What the report says of the engine must be so on every machine.
        parameters.n_gpu_layers = 0 if gpu is None else _ALL if gpu_layers is None else gpu_layers
        parameters.split_mode, parameters.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, gpu or 0
        self._model: Any = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise BuildError(f"llama.cpp cannot load {file.name}: {log.last_errors()}")
        self._vocabulary: Any = llama_cpp.llama_model_get_vocab(self._model)
        kind = "float32" if exact else "float16"
        where = "CPU" if gpu is None else f"CUDA, {'all' if gpu_layers is None else gpu_layers} layers there"
        self.engine = f"llama.cpp (llama-cpp-python {metadata.version('llama-cpp-python')}) {where}, {kind} KV cache"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close_context()
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = self._vocabulary = None

    def tokenize(self, text: str) -> Ids:
        """[T] ids; special tokens are parsed, and added as the file's metadata says."""
        raw = text.encode()
        room = len(raw) + 16
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, True, True)
        if count < 0:
            raise BuildError(f"llama.cpp makes {-count} tokens of {len(raw)} bytes")
        return np.ctypeslib.as_array(ids)[:count].astype(np.int64)

    def _decode(self, ids: Ids, every: bool) -> None:
        """Reads ids into the context; asks for the answers at every position, or at the last one."""
        self._fill(ids, every)
        status = self._api.llama_decode(self._context, self._batch)
        if status != 0:
            raise BuildError(f"llama_decode failed with status {status}: {log.last_errors()}")
        self._position += len(ids)

    def _fill(self, ids: Ids, every: bool) -> None:
        """Puts ids into the batch that is read next."""
        batch, count = self._batch, len(ids)
        batch.n_tokens = count
        _array(batch.token, count)[:] = ids
        _array(batch.pos, count)[:] = np.arange(self._position, self._position + count)
        wanted = _array(batch.logits, count)
        wanted[:] = every
        wanted[-1] = 1

    def _open_context(self, length: int, batch: int, **settings: Any) -> None:
        api = self._api
        self._close_context()
        parameters = api.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch, parameters.n_seq_max = length, batch, batch, 1
        parameters.offload_kqv = parameters.op_offload = self._gpu is not None
        parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._exact:
            parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
            parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16 on the way
        for name, value in settings.items():
            setattr(parameters, name, value)
        self._context = api.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise BuildError(f"llama.cpp cannot open a context of {length} tokens: {log.last_errors()}")
        self._length = length
        self._batch = api.llama_batch_init(batch, 0, 1)
        _array(self._batch.n_seq_id, batch)[:] = 1
        for index in range(batch):
            self._batch.seq_id[index][0] = 0

    def _empty(self) -> None:
        """Forgets what was decoded."""
        memory = self._api.llama_get_memory(self._context)
        if memory:  # BERT has none
            self._api.llama_memory_clear(memory, False)
        self._position = 0

    def _close_context(self) -> None:
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
            self._batch = None
        if self._context:
            self._api.llama_free(self._context)
            self._context = None


class GgufDecoder(GgufRunner):
    """A text generation model, with llama.cpp's KV cache."""

    def logits(self, ids: Ids) -> Floats:
        self._restart(len(ids))
        out = np.empty((len(ids), self._columns()), np.float32)
        for begin in range(0, len(ids), _BATCH):
            piece = ids[begin : begin + _BATCH]
            self._decode(piece, every=True)
            out[begin : begin + len(piece)] = self._view(len(piece))
        return out

    def prefill(self, ids: Ids) -> Floats:
        self._restart(len(ids))
        for begin in range(0, len(ids), _BATCH):
            self._decode(ids[begin : begin + _BATCH], every=False)
        return self._last()

    def step(self, token: int) -> Floats:
        self._decode(np.array([token], np.int64), every=False)
        return self._last()

    def _columns(self) -> int:
        return int(self._api.llama_vocab_n_tokens(self._vocabulary))

    def _view(self, rows: int) -> Floats:
        """[rows, V] of the engine's own buffer, good until the next decode."""
        view: Floats = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (rows, self._columns()))
        return view

    def _last(self) -> Floats:
        last: Floats = self._view(1)[0].copy()
        return last

    def _restart(self, tokens: int) -> None:
        """An empty cache with room for that many tokens and as many to come."""
        if self._context is None or tokens > self._length:
            self._open_context(max(_CONTEXT, 2 * tokens), _BATCH)
        self._empty()


class GgufEncoder(GgufRunner):
    """What is asked for hidden states, such as BERT: the last ones of a whole text at once."""

    def logits(self, ids: Ids) -> Floats:
        if self._context is None or len(ids) > self._length:
            length = max(_BATCH, len(ids))
            # An encoder's every position attends to all others: one physical batch must hold them.
            pooling = self._api.LLAMA_POOLING_TYPE_NONE
            self._open_context(length, length, embeddings=True, pooling_type=pooling)
        self._empty()
        self._decode(ids, every=True)
        columns = int(self._api.llama_model_n_embd(self._model))
        states = np.ctypeslib.as_array(self._api.llama_get_embeddings(self._context), (len(ids), columns))
        return states.copy()


def _array(pointer: Any, count: int) -> Any:
    """The first elements behind a ctypes pointer as a NumPy array that shares their memory."""
    return np.ctypeslib.as_array(pointer, (count,))
