"""`exporter merge` on bases that are not what they seem: quantized ones, other tasks' heads, encoder-decoders."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

# PEFT asks transformers by a name that it deprecates; bitsandbytes has a faster kernel in a package that is not here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*kernels.*:UserWarning"),
]


@pytest.fixture
def merge(run_here, out):
    def run(*args):
        done = run_here("merge", "-o", out, "--threads", 1, "--format", "json", *args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def refused(run_here, out):
    def run(*args):
        done = run_here("merge", "-o", out, "--threads", 1, *args)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert not out.exists()
        return done.stderr

    return run


@pytest.fixture
def plain_adapter(tiny, tmp_path):
    """The shipped adapter without the hash of its base."""
    folder = tmp_path / "lora"
    shutil.copytree(tiny / "adapter", folder)
    (folder / "base_model.sha256").unlink()
    return folder


@pytest.fixture(scope="module")
def nf4(tiny, tmp_path_factory):
    """The tiny model as transformers and bitsandbytes save it in 4 bits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("models") / "tiny-bnb-4bit"
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(tiny, quantization_config=how, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_an_adapter_of_a_quantized_checkpoint_goes_into_its_values(merge, refused, out, nf4, plain_adapter, tiny):
    """The quantized checkpoint, and the float one with --base-quant, are the same base to within bfloat16."""
    line = refused("-m", nf4, "--adapter", tiny / "adapter")
    assert "was trained on other weights" in line  # the hash in the shipped adapter is the float model's
    assert "give its float original with -m" in refused(
        "-m", nf4, "--adapter", plain_adapter, "--merge-base", "original"
    )
    record = merge("-m", nf4, "--adapter", plain_adapter)
    assert record["merged_into"] == "dequantized"
    assert "dequantized 21 nf4 weights of tiny-bnb-4bit to bfloat16" in record["history"]
    assert record["proof"]["other_base"] is None  # the original is not here
    quantized = load_file(out / "model.safetensors")
    shutil.rmtree(out)
    record = merge("-m", "tiny", "--adapter", tiny / "adapter", "--base-quant", "nf4")
    assert record["adapters"][0]["identity"].startswith("verified")
    # The tiny model at 4 bits is another model; merging into the original would be this far from what was trained.
    assert 1e-3 < record["proof"]["other_base"]["kl"] < 0.1
    simulated = load_file(out / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    original = load_file(tiny / "model.safetensors")[name]
    far, near = (original - simulated[name]).abs().mean(), (quantized[name].float() - simulated[name]).abs().mean()
    assert near < 0.05 * far


def test_a_choice_of_base_that_makes_no_sense(refused, nf4, plain_adapter):
    assert "say how it was quantized in training" in refused(
        "-m", "tiny", "--adapter", plain_adapter, "--merge-base", "dequantized"
    )
    assert "is quantized already (nf4)" in refused("-m", nf4, "--adapter", plain_adapter, "--base-quant", "nf4")


def test_a_float_base_of_an_adapter_that_records_a_quantized_one(run_here, tmp_path, plain_adapter):
    config = plain_adapter / "adapter_config.json"
    recorded = json.loads(config.read_text()) | {"base_model_name_or_path": "unsloth/tiny-bnb-4bit"}
    config.write_text(json.dumps(recorded))
    done = run_here(
        "run", "-m", "tiny", "--adapter", plain_adapter, "-t", "torch:fp32", "--no-speed", "--eval-tokens", 256,
        "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["model"]["notes"]
    assert any("which by its name is quantized" in note for note in notes)


def save_adapter(model, config, folder):
    """An adapter with random, non-zero factors on a transformers model."""
    from peft import get_peft_model

    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
            assert "lora" in name or "modules_to_save" in name
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize("way", ["memory", "streaming"])
def test_a_classifier_whose_head_comes_with_the_adapter(merge, out, tiny, tmp_path, way):
    """A text-generation base has no head for three classes: the adapter brings it, and says the task."""
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3, pad_token_id=0)
    truth = save_adapter(base, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"], r=4), tmp_path / "cls")
    record = merge("-m", "tiny", "--adapter", tmp_path / "cls", "--merge", way)
    assert record["way"] == way
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    assert merged.config.num_labels == 3
    ids = torch.randint(1, 2048, (1, 12))
    with torch.inference_mode():
        assert torch.allclose(truth(ids).logits, merged(ids).logits, atol=1e-5)


def test_an_encoder_decoder_which_no_target_takes_is_merged(merge, out, tiny, tmp_path):
    from peft import LoraConfig, TaskType
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=2048, d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "t5")
    base = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
    truth = save_adapter(
        base, LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, target_modules=["q", "v"]), tmp_path / "lora"
    )
    record = merge("-m", tmp_path / "t5", "--adapter", tmp_path / "lora")
    assert record["proof"]["saved"]["kl"] < 1e-9
    ids = torch.randint(1, 2048, (1, 12))
    merged = T5ForConditionalGeneration.from_pretrained(out)
    with torch.inference_mode():
        expected, found = (model(input_ids=ids, decoder_input_ids=ids).logits for model in (truth, merged))
    assert torch.allclose(expected, found, atol=1e-5)


def test_a_head_that_nobody_brings_is_not_made_up(refused, tiny, tmp_path):
    """PEFT would keep the random head that transformers made, and say nothing."""
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3, pad_token_id=0)
    save_adapter(base, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"]), tmp_path / "cls")
    path = tmp_path / "cls" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "score" not in name}, path)
    assert "tiny has no weights for score.weight" in refused("-m", "tiny", "--adapter", tmp_path / "cls")
