"""Encoder-decoders through the whole program: pairs measured, both halves exported, opened, and broken on purpose."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import text2text_models as made
import torch
import transformers
from clients import artifact, client
from onnx import numpy_helper
from optimum.utils.file_utils import find_files_matching_pattern
from test_client_defaults import in_node, node

from exporter import Job, run
from exporter.checkpoint.encoder_decoder import start_of
from exporter.checkpoint.opened import open_checkpoint
from exporter.form import TEXT2TEXT
from exporter.measure.generation import time_generation
from exporter.measure.quality import Passages, Reference
from exporter.report.table import value
from exporter.targets.onnx.layout import open_onnx
from exporter.targets.onnx.pair import DECODER, ENCODER
from exporter.targets.onnx.target import ONNX
from exporter.tasks.text2text_generation import pairs_of

node = node
EVERY = ("fp32", "fp16", "bf16", "int8-weight", "int8-dynamic", "int4-weight")
SOURCE = "word1 word5 word77 word3."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """`checkpoints(family)`: a folder, made once."""
    place = tmp_path_factory.mktemp("text2text")

    def of(family):
        folder = place / family / "model"
        return folder if folder.is_dir() else made.checkpoint(folder, family)

    return of


@pytest.fixture(scope="module")
def artifacts(checkpoints):
    """`artifacts(family)`: its ONNX folder in float32, as it is published, made once."""

    def of(family):
        model = checkpoints(family)
        folder = model.parent / "onnx-fp32"
        return folder if folder.is_dir() else artifact(ONNX, "fp32", model, TEXT2TEXT, folder)

    return of


def rows_of(model, tmp_path, *targets, **more):
    for name, first in (("text", 0), ("calib", 120)):
        (tmp_path / name).write_text(made.text(first=first))
    texts = {"calib_text": tmp_path / "calib"} | ({} if "eval_data" in more else {"eval_text": tmp_path / "text"})
    report = run(
        Job(
            model=str(model), target=targets, output=tmp_path / "out", eval_tokens=500, calib_tokens=2048, speed=False,
            threads=1, **texts, **more,
        )
    )  # fmt: skip
    return report, {f"{row['target']}:{row['precision']}": row for row in report["results"]}


@pytest.mark.parametrize("family", [name for name in made.FAMILIES if name != "Flan"])
def test_every_family_as_its_own_code_at_other_lengths_than_traced(checkpoints, artifacts, family):
    rng = np.random.default_rng(0)
    model, folder = checkpoints(family), artifacts(family)
    with open_checkpoint(model, TEXT2TEXT, 1) as own, open_onnx(folder, 1) as graph:
        for source, target in ((1, 2), (11, 9), (90, 70)):
            ids, wanted = rng.integers(4, 250, source), rng.integers(4, 250, target)
            np.testing.assert_allclose(graph.encode(ids), own.encode(ids), atol=2e-4)
            expected, got = own.logits(wanted), graph.logits(wanted)
            np.testing.assert_allclose(got, expected, atol=1e-3)
            assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.95
            steps = [graph.prefill(wanted[:1]), *(graph.step(int(token)) for token in wanted[1:])]
            np.testing.assert_allclose(np.stack(steps), got, atol=2e-4)
        sources, mask = rng.integers(4, 250, (2, 13)), np.ones((2, 13), np.int64)
        mask[1, 6:], wanted = 0, rng.integers(4, 250, (2, 8))
        padded = graph.paired(sources, mask, wanted)
        np.testing.assert_allclose(padded, own.paired(sources, mask, wanted), atol=1e-3)
        own.encode(sources[1, :6])
        np.testing.assert_allclose(padded[1], own.logits(wanted[1]), atol=1e-3)


def test_the_decoder_is_begun_and_fed_as_transformers_does(checkpoints):
    """Teacher forcing: the passages' decoder ids are what a model makes of labels, and their likelihood is its loss."""
    for family in ("T5", "Bart", "MBart", "Pegasus"):
        folder = checkpoints(family)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        pairs = [("word1 word2", "word9 " * 99), ("word3", "word4 word6")]
        passages, cut = pairs_of(tokenizer, pairs, 80)
        assert cut == 1
        config = json.loads((folder / "config.json").read_text())
        passages = Passages(**{**vars(passages), "start": start_of(config)})
        labels = torch.tensor(passages.ids[passages.offsets[1] :])[None]
        wanted = model.prepare_decoder_input_ids_from_labels(labels=labels)[0].tolist()
        assert passages.decoded(1).tolist() == wanted
        with open_checkpoint(folder, TEXT2TEXT, 1) as own, torch.no_grad():
            loss = model(**tokenizer("word3", return_tensors="pt"), labels=labels).loss.item()
            timed = time_generation(own, passages.sources, 4096)
            assert timed["seconds"] > 0
            assert "one at a time" in timed["not_timed"]
            own.encode(passages.source(1))
            logits = torch.tensor(own.logits(passages.decoded(1)))
        assert torch.nn.functional.cross_entropy(logits, labels[0]).item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_every_precision_keeps_its_gates(checkpoints, tmp_path, family):
    own = ("onnx:int8-static", "torch:int8-dynamic") if family == "T5" else ()  # test_text2text_static has BART's
    targets = (*(f"onnx:{one}" for one in EVERY), "torch:bf16", *own)
    data = {"eval_data": made.pairs(tmp_path / "pairs.jsonl")} if family == "Bart" else {}
    report, rows = rows_of(checkpoints(family), tmp_path, *targets, **data)
    assert report["model"]["task"] == TEXT2TEXT
    assert {name for name, row in rows.items() if row["status"] != "ok"} == set()
    failed = {name: [one for one in row["gates"] if not one["passed"]] for name, row in rows.items()}
    assert {name: gates for name, gates in failed.items() if gates} == {}
    exact = rows["onnx:fp32"]
    assert value(exact, "ppl_ratio") == pytest.approx(1, abs=1e-5)
    assert value(exact, "top1") == 1
    assert exact["generation"]["greedy_agreement"] == 1
    for row in (row for name, row in rows.items() if name != "torch:fp32"):
        assert {"max_ppl_ratio", "max_kl", "min_cosine", "max_cache_kl"} <= {gate["name"] for gate in row["gates"]}
        assert 0.9 < value(row, "cosine") <= 1
    assert value(rows["onnx:int4-weight"], "cosine") < value(rows["onnx:int8-weight"], "cosine") < 1
    assert "GPTQ over 1536 tokens" in " ".join(rows["onnx:int4-weight"]["build"]["quantization"]["history"])
    if family == "T5":  # whose distances are in buckets: the float16 graph is right beyond the last one too
        assert "beyond relative_attention_max_distance 32" in rows["onnx:fp16"]["reason"]
        static = rows["onnx:int8-static"]
        assert "100% of the linear layers' multiplications run in integer kernels" in static["reason"]
        assert static["artifact"]["named_share"] > 0.98  # the tables of distances are in float
        assert "neighbouring sentences" in report["evaluation"]["text"]
    else:
        assert report["evaluation"]["data"]["columns"] == {"text": "source", "pair": "target"}
    assert rows["onnx:int8-weight"]["samples"]["of"] == 3
    stored = Reference.load(tmp_path / "out" / "reference" / "reference.npz").passages
    assert len(stored.source_offsets) == len(stored.offsets) > 8


def test_what_is_broken_fails_its_gate(checkpoints, tmp_path, run_cli):
    model = checkpoints("Bart")
    _, rows = rows_of(model, tmp_path, "onnx:fp32", min_greedy_agreement=1)
    assert all(gate["passed"] for gate in rows["onnx:fp32"]["gates"])
    assert rows["onnx:fp32"]["generation"]["prompts"] == 8
    whole = tmp_path / "out" / "onnx-fp32"

    def measured(half, change):
        graph = onnx.load(whole / half)
        change(graph.graph)
        onnx.save(graph, whole / half)
        done = run_cli("bench", tmp_path / "out", "--format", "json")
        assert done.returncode == 3, done.stderr
        [row] = [row for row in json.loads(done.stdout.splitlines()[-1])["results"] if row["target"] == "onnx"]
        return {gate["name"] for gate in row["gates"] if not gate["passed"]}

    def of(name):
        def change(graph):
            [weight] = [one for one in graph.initializer if one.name == name]
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, name))

        return change

    shutil.copytree(whole / "onnx", tmp_path / "kept")
    failed = measured(ENCODER, of("layers.0.fc1.weight"))
    assert {"min_cosine", "max_kl", "min_greedy_agreement"} <= failed
    shutil.copy(tmp_path / "kept" / "encoder_model.onnx", whole / ENCODER)

    def forgets(graph):  # the decoder's cache of its own tokens, where it goes in
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == "past_key_values.1.decoder.key":
                    node.input[place] = "past_key_values.0.decoder.key"

    assert "max_cache_kl" in measured(DECODER, forgets)


def test_what_cannot_be_is_refused_before_work(checkpoints, run_here, tmp_path):
    def refused(*words, model="Bart", status=4):
        done = run_here("run", "-m", checkpoints(model), "-o", tmp_path / "no", *words)
        assert done.returncode == status, done.stderr
        return " ".join(done.stderr.split())

    assert "final_logits_bias" in refused("-t", "torch:int8-dynamic")
    assert "t5, mt5, umt5" in refused("-t", "gguf:q8_0")
    assert "tied head" in refused("-t", "gguf:q8_0", model="T5")
    assert "--qat trains models for text-generation" in refused("-t", "onnx", "--qat", status=2)
    assert "models for text2text-generation are not pruned" in refused(
        "-t", "onnx", "--prune", "magnitude:0.5", status=2
    )
    pairs = made.pairs(tmp_path / "pairs.jsonl")
    asked = ("-t", "onnx", "--eval-data", pairs)
    assert "did you mean source?" in refused(*asked, "--text-column", "sauce", status=2)
    assert "no label" in refused(*asked, "--label-column", "target", status=2)


@pytest.mark.parametrize("family", ["MT5", "Bart", "Marian"])
def test_the_clients_make_the_same_text(node, checkpoints, artifacts, family):
    model, folder = checkpoints(family), artifacts(family)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    torch_model = transformers.AutoModelForSeq2SeqLM.from_pretrained(model)
    out = torch_model.generate(**tokenizer(SOURCE, return_tensors="pt"), max_new_tokens=24, do_sample=False)
    wanted = out[0, 1:].tolist()
    assert len(set(wanted)) > 2
    for file in ("run.py", "run.mjs"):
        assert [*map(int, client(folder, SOURCE, "-n", 24, "--ids", file=file).split())] == wanted
    body = """
    const generate = await pipeline("text2text-generation", process.argv[1]);
    const [{ generated_text }] = await generate(process.argv[2], { max_new_tokens: 24, do_sample: false });
    console.log(JSON.stringify(generated_text));
    """
    said = tokenizer.decode(wanted, skip_special_tokens=True)
    for mark in (" .", " ?"):  # transformers.js cleans spaces up
        said = said.replace(mark, mark.strip())
    assert in_node(body, folder, SOURCE) == said


def test_optimum_finds_both_by_their_names(artifacts):
    """As ORTModelForSeq2SeqLM looks, which cannot be installed beside transformers 5: one file of each pattern, whose
    inputs and outputs have the names that it feeds and reads, and a first cache of no tokens."""
    folder = artifacts("Bart")
    for pattern, file in ((r"encoder.*\.onnx$", ENCODER), (r"decoder.*merged.*\.onnx$", DECODER)):
        assert find_files_matching_pattern(folder, rf"(.*)?{pattern}", glob_pattern="**/*.onnx") == [folder / file]
    graph = onnx.load(folder / DECODER).graph
    parts = [
        f"{layer}.{half}.{part}" for layer in (0, 1) for half in ("decoder", "encoder") for part in ("key", "value")
    ]
    assert [one.name for one in graph.input] == [
        "encoder_attention_mask", "input_ids", "encoder_hidden_states", *(f"past_key_values.{one}" for one in parts),
    ]  # fmt: skip
    assert [one.name for one in graph.output] == ["logits", *(f"present.{one}" for one in parts)]
    assert [one.name for one in onnx.load(folder / ENCODER).graph.input] == ["input_ids", "attention_mask"]
    shared = [one for one in graph.initializer if list(one.dims) == [made.VOCABULARY, 64]]
    assert len(shared) == 1  # the embedding is the head's too, and is there once


def test_llama_cpp_runs_a_t5(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is missing: pip install 'exporter[gguf]'")
    model = made.pieces(tmp_path / "pieces")
    report, rows = rows_of(model, tmp_path, "gguf:f32", "gguf:q8_0")
    assert {row["status"] for row in rows.values()} == {"ok"}, [row["reason"] for row in rows.values()]
    assert report["passed"], [row["gates"] for row in rows.values()]
    assert value(rows["gguf:f32"], "cosine") > 0.9999
    assert value(rows["gguf:f32"], "top1") > 0.99
    folder = tmp_path / "out" / "gguf-f32"
    out = transformers.AutoModelForSeq2SeqLM.from_pretrained(model).generate(
        **transformers.AutoTokenizer.from_pretrained(model)(SOURCE, return_tensors="pt"), max_new_tokens=16
    )
    assert [*map(int, client(folder, SOURCE, "-n", 16, "--ids").split())] == out[0, 1:].tolist()
