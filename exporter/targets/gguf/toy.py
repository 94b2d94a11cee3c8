"""A toy model through llama.cpp's quantized kernels: a build with the wrong CPU features dies here, not in a run.

llama-cpp-python is compiled on the user's machine. With its default, GGML_NATIVE=ON, it was seen to be killed by SIGILL
on every quantized type, on virtual machines that list AMX and do not let it be used.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.errors import BuildError
from exporter.targets.gguf import log
from exporter.targets.gguf.quantize import quantize
from exporter.targets.gguf.runner import GgufDecoder

_WIDTH, _WORDS = 256, 288
_SAFE = "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"


def run_toy() -> None:
    """Quantizes a two-layer Llama to several types and decodes with each; to be called in a child."""
    import numpy as np

    with TemporaryDirectory() as name:
        source = Path(name) / "toy.gguf"
        _write_toy(source)
        for precision in ("q8_0", "q4_0", "q4_k_m", "q6_k", "iq4_nl"):
            file = source.with_name(f"{precision}.gguf")
            quantize(source, file, precision, {}, (), threads=1)
            with GgufDecoder(file, threads=1) as runner:
                logits = runner.logits(np.arange(64, dtype=np.int64))
                runner.prefill(np.arange(64, dtype=np.int64))
                step = runner.step(64)
            if not (np.isfinite(logits).all() and np.isfinite(step).all()):
                raise BuildError(f"llama.cpp computes NaN or Inf with {precision}: {mending_command()}")


def mending_command() -> str:
    """Builds llama-cpp-python without what this CPU may only claim to have."""
    version = metadata.version("llama-cpp-python")
    return (
        f'CMAKE_ARGS="{_SAFE}" pip install --no-cache-dir --force-reinstall --no-deps --no-binary llama-cpp-python '
        f"llama-cpp-python=={version}"
    )


def _write_toy(file: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_WORDS)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {f"blk.0.{matrix}.weight": (_WIDTH, _WIDTH) for matrix in matrices}
    shapes |= {f"blk.0.{norm}.weight": (_WIDTH,) for norm in ("attn_norm", "ffn_norm")}
    shapes |= {"token_embd.weight": (_WORDS, _WIDTH), "output_norm.weight": (_WIDTH,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape, np.float32) / 16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    log.listen()
    run_toy()
