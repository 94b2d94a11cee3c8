"""Bad input: one clear line, the right exit status, and an output folder without anything half-made."""

import json

import numpy as np
import pytest
from conftest import SMALL, rewrite, the_error
from safetensors.numpy import load_file, save_file

from exporter.checkpoint.weights import check_weights
from exporter.errors import JobError


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no such", "no such folder: no such"),
        ("tinny", "did you mean tiny"),
        ("./org/name", "no such folder: ./org/name"),
        ("/nowhere/at/all", "no such folder"),
        ("~/nowhere/at/all", "no such folder"),
        ("pyproject.toml", "is a file; give the checkpoint's folder"),
        ("tests", "has no config.json"),
        ("models/tiny/adapter", "is an adapter, not a model; give its base with -m and this with --adapter"),
        ("org/name", "no folder org/name here, and no download from the hub"),
    ],
)
def test_a_model_that_is_not_there(refused, name, says):
    # A port where nothing listens: no network, on any machine.
    assert says in refused("-m", name, env={"HF_ENDPOINT": "http://127.0.0.1:9"} if name == "org/name" else None)


@pytest.mark.parametrize("forbid", [["--offline"], []])
def test_a_hub_id_without_the_hub(refused, forbid):
    line = refused("-m", "org/name", *forbid, env={} if forbid else {"HF_HUB_OFFLINE": "1"})
    assert "org/name is not a folder here" in line
    assert "drop --offline" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
    ],
)
def test_a_broken_config(refused, model, content, says):
    folder = model()
    rewrite(folder / "config.json", content)
    assert f"config.json {says}" in refused("-m", folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "its config.json says gptq, left there",
        ),
        ({"quantization": {"group_size": 64, "bits": 4}}, "its config.json says MLX, left there"),
        ({"architectures": None}, "give --task with one of text-generation"),
        ({"architectures": ["DetrForObjectDetection"]}, "DetrForObjectDetection is for object-detection"),
        ({"model_type": "no-such"}, "transformers cannot read the configuration"),
        ({"hidden_size": "wide"}, "expected int, got str (value: 'wide')"),
        ({"num_hidden_layers": 4}, "no weights for model.layers.3.input_layernorm.weight"),
        ({"tie_word_embeddings": False}, "no weights for lm_head.weight"),
        ({"vocab_size": 1000}, "model.embed_tokens.weight is [2048, 256], not [1000, 256]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_does_not_fit(refused, model, config, says):
    assert says in refused("-m", model(**config))


def test_a_task_that_the_model_was_not_trained_for(refused):
    assert "no weights for score.weight" in refused("-m", "tiny", "--task", "text-classification")


def test_a_task_that_is_misspelt(refused):
    assert "did you mean text-generation" in refused("-m", "tiny", "--task", "text-generatoin")


def test_a_missing_tokenizer(refused, model):
    assert "the tokenizer of" in refused("-m", model(without=("tokenizer.json", "tokenizer_config.json")))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights(refused, model, name):
    folder = model(without=("model.safetensors",))
    (folder / name).write_bytes(b"\x80\x02")
    (folder / "training_args.bin").write_bytes(b"\x80\x02")
    line = refused("-m", folder)
    assert f"pickled weights ({name})" in line
    assert "import LlamaForCausalLM as M" in line


@pytest.mark.parametrize("name", ["model.gguf", "tf_model.h5", "training_args.bin"])
def test_other_weights(refused, model, name):
    folder = model(without=("model.safetensors",))
    (folder / name).write_bytes(b"GGUF")
    assert "lacks model.safetensors" in refused("-m", folder)


def test_a_truncated_download(refused, model, tiny):
    folder = model()
    rewrite(folder / "model.safetensors", (tiny / "model.safetensors").read_bytes()[:-1])
    line = refused("-m", folder)
    assert "model.safetensors is not a whole safetensors file" in line
    assert "(9185303 bytes, of 9185304)" in line


def test_a_missing_shard(refused, model):
    folder = model(without=("model.safetensors",))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    save_file({"a": np.zeros(2, np.float32)}, folder / names["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert f"lacks {names['b']}; copy it again" in refused("-m", folder)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 1}'])
def test_a_broken_shard_index(refused, model, index):
    folder = model(without=("model.safetensors",))
    (folder / "model.safetensors.index.json").write_text(index)
    assert "is not a safetensors index" in refused("-m", folder)


def test_weights_that_are_not_finite(refused, model, tiny):
    folder = model()
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")
    assert "the tensor model.norm.weight holds NaN or Inf" in refused("-m", folder)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_any_value_that_is_not_finite_is_found(tmp_path, dtype, value):
    save_file({"fine": np.full(5, 65504, dtype), "bad": np.array([0, value], dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(JobError, match="the tensor bad holds NaN or Inf"):
        check_weights(tmp_path)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bfloat16_that_is_not_finite_is_found(tmp_path, bits):
    write_raw(
        tmp_path,
        {"bad": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}},
        np.array([0x3F80, bits], "<u2").tobytes(),
    )
    with pytest.raises(JobError, match="the tensor bad holds NaN or Inf"):
        check_weights(tmp_path)


def write_raw(folder, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"\xff\xff",
        [],
        1,
        {"a": 1},
        {"a": {}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}},
        {"a": {"dtype": 1, "shape": [2], "data_offsets": ["x", 8]}},
    ],
)
def test_a_broken_safetensors_header(tmp_path, header):
    write_raw(tmp_path, header, bytes(8))
    with pytest.raises(JobError, match="is not a whole safetensors file"):
        check_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"<html>rate limited</html>"])
def test_a_file_that_is_no_safetensors(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(JobError, match="is not a whole safetensors file"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; give another"),
        (b" \n\t\n", "is empty; give another"),
        ("caf\xe9".encode("latin1"), "is not UTF-8 (byte 3); convert it: iconv"),
        (b"A few words.", "tokens, and at least 64 are needed"),
    ],
)
def test_a_text_that_cannot_be_measured_on(run_here, out, tmp_path, content, says):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    done = run_here("run", *SMALL, "-m", "tiny", "-o", out, "--eval-text", text)
    assert done.returncode == 2
    assert says in the_error(done.stderr)
    assert not any(path.is_dir() and path.name != "logs" for path in out.glob("*"))


@pytest.mark.parametrize("text", ["nowhere.txt", "tests"])
def test_a_text_that_is_not_there(refused, text):
    assert f"cannot read the text {text}" in refused("-m", "tiny", "--eval-text", text)


def test_a_refused_job_does_not_block_the_folder_for_the_mended_one(run_here, refused, out):
    refused("-m", "tiny", "--window", 4096)
    assert (out / "logs").is_dir()
    done = run_here("run", *SMALL, "-m", "tiny", "--dry-run", "-o", out)
    assert done.returncode == 0, done.stderr
