"""Encoders and classifiers through the whole program: small random checkpoints of several families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from exporter import Job, run
from exporter.report.table import value
from exporter.store import file_names

WORDS = [f"word{(i * i * 31 + i) % 180}" for i in range(3000)]
TEXT = " ".join(WORDS)
LINES = "\n".join(" ".join(WORDS[begin : begin + 12]) for begin in range(0, len(WORDS), 12))  # a classifier's texts


def tokenizer(folder: Path, length: int) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(180))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=length, **named)
    fast.save_pretrained(folder)


SIZES = {
    "vocab_size": 184,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
FAMILIES = {
    "BertModel": transformers.BertConfig(**SIZES),
    "RobertaModel": transformers.RobertaConfig(**SIZES, pad_token_id=0),
    "DistilBertModel": transformers.DistilBertConfig(vocab_size=184, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "MPNetModel": transformers.MPNetConfig(**SIZES, pad_token_id=0),
    "ModernBertModel": transformers.ModernBertConfig(**SIZES, pad_token_id=0, local_attention=16),
    "BertForSequenceClassification": transformers.BertConfig(**SIZES, num_labels=3),
}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_family(architecture, tmp_path):
    more = ("onnx:all", "torch:all") if architecture == "BertModel" else ()
    torch.manual_seed(0)
    config = FAMILIES[architecture]
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():  # the usual initialization makes all texts alike
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "model")
    tokenizer(tmp_path / "model", 500)
    (tmp_path / "text").write_text(LINES if architecture.endswith("Classification") else TEXT)
    report = run(
        Job(
            model=str(tmp_path / "model"),
            target=("onnx:fp32", "onnx:int8-weight", "onnx:int8-dynamic", *more),
            output=tmp_path / "out",
            eval_text=tmp_path / "text",
            eval_tokens=1024,
            window=64,
            calib_tokens=2048,
            speed=False,
            threads=1,
            min_cosine=0.5,
        )
    )
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    assert {row["status"] for row in rows.values()} == {"ok"}, report
    classifier = architecture.endswith("Classification")
    assert report["model"]["task"] == ("text-classification" if classifier else "feature-extraction")
    fp32 = rows["onnx:fp32"]
    # A batch of lengths 17, 5 and 11, none of which it was traced at: the mask must hide what is padding.
    assert value(fp32, "logit_error") < 1e-4
    assert value(fp32, "ppl") is None
    if classifier:
        assert value(fp32, "top1") == 1.0
        assert value(fp32, "kl") < 1e-7  # squares of logits' errors, which are below 1e-4
    else:
        assert value(fp32, "cosine") > 0.999999
        assert value(rows["onnx:int8-weight"], "cosine") > 0.999
        assert value(rows["onnx:int8-dynamic"], "cosine") > 0.99
    size, whole = rows["onnx:int8-dynamic"]["artifact"]["bytes"], fp32["artifact"]["bytes"]
    assert size < 0.45 * whole  # of a model so small, the graph is a large part
    names = set(file_names(tmp_path / "out" / "onnx-fp32"))
    assert {"onnx/model.onnx", "config.json", "tokenizer.json", "run.py"} <= names


def test_the_bare_target_means_int8_dynamic_for_an_encoder_and_int8_weight_for_a_decoder(run_here, tmp_path, tiny):
    torch.manual_seed(0)
    transformers.BertModel(FAMILIES["BertModel"]).save_pretrained(tmp_path / "bert")
    tokenizer(tmp_path / "bert", 500)
    for model, meant in ((tmp_path / "bert", "onnx:int8-dynamic"), (tiny, "onnx:int8-weight")):
        done = run_here("run", "-m", model, "-o", tmp_path / "out", "--dry-run", "--format", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["job"]["target"] == [meant]
