"""Fill-mask, token classification and question answering through the whole program: small random checkpoints."""

from __future__ import annotations

import json
import math

import clients
import numpy as np
import onnx
import pytest
import torch
import transformers
from clients import artifact, client
from onnx import numpy_helper
from token_models import HEADS, checkpoint, text

from exporter import Job, run
from exporter.checkpoint.opened import open_checkpoint
from exporter.form import FILL_MASK, QUESTIONS, TOKENS
from exporter.measure.quality import ANSWERS, Reference
from exporter.measure.spans import LONGEST, best_span
from exporter.targets import known
from exporter.targets.onnx.layout import MODEL
from exporter.tasks.known import TASKS, answer, compare
from exporter.tasks.question_answering import spans_of

node = clients.node


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint of a family for a task, made once."""
    made = {}

    def get(family, task):
        if (family, task) not in made:
            made[family, task] = checkpoint(tmp_path_factory.mktemp(family) / task, family, task)
        return made[family, task]

    return get


def job(model, folder, *targets, **more):
    (folder / "text").write_text(text())
    how = {"eval_tokens": 512, "window": 48, "calib_tokens": 2048, "speed": False, "threads": 1} | more
    return Job(model=str(model), target=targets, output=folder / "out", eval_text=folder / "text", **how)


def rows_of(report):
    return {f"{row['target']}:{row['precision']}": row for row in report["results"]}


def figures(row):
    return {name: one["value"] for name, one in row["quality"].items() if one["value"] is not None}


@pytest.mark.parametrize(("family", "task"), [
    ("Bert", FILL_MASK), ("Roberta", FILL_MASK), ("DistilBert", FILL_MASK), ("ModernBert", FILL_MASK),
    ("Bert", TOKENS), ("ModernBert", TOKENS), ("Bert", QUESTIONS), ("DistilBert", QUESTIONS),
])  # fmt: skip
def test_family(models, family, task, tmp_path):
    more = ("onnx:int8-dynamic", "onnx:fp16") if family == "Bert" else ()
    rows = rows_of(run(job(models(family, task), tmp_path, "onnx:fp32", "onnx:int8-weight", "torch:bf16", *more)))
    assert {row["status"] for row in rows.values()} == {"ok"}, rows
    of_itself = set(TASKS[task].of_itself) | ({"ppl", "ppl_ratio"} if task == FILL_MASK else set())
    for name, row in rows.items():
        found = figures(row)
        assert of_itself <= set(found), name
        judged = {gate["name"] for gate in row["gates"]}
        assert name == str(known.REFERENCE) or judged & {"max_kl", "min_top1", "max_ppl_ratio"}, name
    float32 = figures(rows["onnx:fp32"])
    assert float32["kl"] < 1e-6
    assert float32["top1"] == 1.0
    assert float32["logit_error"] < 1e-4
    assert 0 < figures(rows["onnx:int8-weight"])["kl"] < 0.01


@pytest.mark.parametrize(("target", "task"), [
    ("coreml:fp16", QUESTIONS), ("coreml:fp16", FILL_MASK), ("litert:int8-dynamic", QUESTIONS),
    ("litert:int8-dynamic", TOKENS), ("tensorrt-rtx:fp16", QUESTIONS), ("tensorrt-rtx:fp16", FILL_MASK),
])  # fmt: skip
def test_other_engines(models, target, task, tmp_path):
    if target.startswith("tensorrt") and known.unavailable(known.parse(target, task)[0], None):
        pytest.skip("no package tensorrt-rtx")
    row = rows_of(run(job(models("Bert", task), tmp_path, target)))[target]
    assert row["status"] == "ok", row["reason"]
    assert figures(row)["kl"] < 1e-3
    assert any(gate["name"] in ("max_kl", "max_ppl_ratio") and gate["passed"] for gate in row["gates"])


def test_pseudo_perplexity_is_of_each_token_masked_alone(models, tmp_path):
    """By hand, one forward a token, against the batched figure."""
    folder = models("Bert", FILL_MASK)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    passages = TASKS[FILL_MASK].read(words, text(), 96, 48, 48)
    with open_checkpoint(folder, FILL_MASK, 1) as runner:
        answers = answer(runner, passages, lambda done, total: None)
    expected = []
    for piece in passages:
        for place, token in enumerate(piece.tolist()):
            if token not in words.all_special_ids:
                ids = torch.tensor(piece)[None].clone()
                ids[0, place] = words.mask_token_id
                with torch.no_grad():
                    logp = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, place].log_softmax(-1)
                expected.append(-float(logp[token]))
    assert len(passages.ids) == 96
    assert len(expected) == 92  # 2 of 48 are [CLS] and [SEP]
    np.testing.assert_allclose(answers.nll, expected, atol=1e-5)


def test_a_wrong_head_fails_its_gates(models, tmp_path):
    """The classes' rows of a tagger, exchanged: each token gets another tag."""
    wanted = job(models("Bert", TOKENS), tmp_path, "onnx:fp32")
    assert run(wanted)["exit_status"] == 0
    file = tmp_path / "out" / "onnx-fp32" / MODEL
    graph = onnx.load(file)
    for one in graph.graph.initializer:
        if one.name.startswith("classifier"):
            values = numpy_helper.to_array(one)
            one.CopyFrom(numpy_helper.from_array(np.roll(values, 1, axis=values.ndim - 1).copy(), one.name))
    onnx.save(graph, file)
    with open_checkpoint(models("Bert", TOKENS), TOKENS, 1) as runner:
        reference = Reference.load(tmp_path / "out" / "reference" / ANSWERS)
        assert compare(runner, reference)[0]["top1"].value == 1.0
    with known.get("onnx").open(tmp_path / "out" / "onnx-fp32", 1) as runner:
        found = compare(runner, reference)[0]
    limits = known.get("onnx").precisions["fp32"].limits(TOKENS)
    assert found["top1"].value < 0.5
    assert found["kl"].value > limits.max_kl


def test_the_best_span_is_the_largest_sum_of_all(models):
    rng = np.random.default_rng(0)
    for length in (2, 9, 60):
        logits = rng.normal(size=(length, 2)).astype(np.float32)
        allowed = [(0, 0)] + [(i, j) for i in range(1, length) for j in range(i, min(i + LONGEST, length))]
        assert best_span(logits) == max(allowed, key=lambda one: logits[one[0], 0] + logits[one[1], 1])


def test_a_question_is_asked_of_its_text_alone(models):
    words = transformers.AutoTokenizer.from_pretrained(models("Bert", QUESTIONS))
    passages = TASKS[QUESTIONS].read(words, text(), 512, 48, 48)
    assert passages.segments is not None
    assert passages.segments.any()
    whole = np.zeros((len(passages.ids), 2), np.float32)
    for piece, places in zip(passages, spans_of(passages, whole), strict=True):
        question, rest, _ = " ".join(words.convert_ids_to_tokens(piece)).split(" [SEP]")
        assert len(places) == 1 + len(rest.split())  # the text's, and the first for "no answer"
        assert question.startswith("[CLS] word")


@pytest.mark.parametrize(("task", "lacks"), [(FILL_MASK, "mask token"), (QUESTIONS, "paragraphs of two sentences")])
def test_what_cannot_be_measured_is_refused(models, refused, task, lacks, tmp_path):
    folder = checkpoint(tmp_path / "model", "Bert", task)
    (tmp_path / "text").write_text(text().replace("? ", "").replace(". ", " "))
    if task == FILL_MASK:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("mask_token")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert lacks in refused("-m", folder, "-t", "onnx:fp32", "--eval-text", tmp_path / "text", "--no-speed")


ASKED = {
    FILL_MASK: ("word1 word2 [MASK] word4",),
    TOKENS: ("word1 word2 word3 word4.",),
    QUESTIONS: ("word1 word2?", "word3 word4. word5 word6 word7."),
}


def said(model, words, task):
    """What transformers' model answers, in the form of the artifact's program."""
    asked = ASKED[task]
    read = words(*asked, return_tensors="pt", return_offsets_mapping=True)
    places = read.pop("offset_mapping")[0].tolist()
    taken = {name: read[name] for name in read if name != "token_type_ids" or "Distil" not in type(model).__name__}
    with torch.no_grad():
        out = model(**taken)
    if task == FILL_MASK:
        [[place]] = (read["input_ids"][0] == words.mask_token_id).nonzero().tolist()
        best = out.logits[0, place].softmax(-1).topk(5)
        return [[{"token": words.convert_ids_to_tokens(int(i)), "score": float(p)} for p, i in zip(*best, strict=True)]]
    if task == TOKENS:
        chances, classes = out.logits[0].softmax(-1).max(-1)
        names = [model.config.id2label[int(one)] for one in classes]
        return [
            {"entity": name, "score": float(chance), "word": asked[0][begin:end], "start": begin, "end": end}
            for name, chance, (begin, end) in zip(names, chances, places, strict=True)
            if name != "O" and end > begin
        ]
    allowed = torch.tensor([which == 1 for which in read.sequence_ids(0)])
    begin, end = (one[0].masked_fill(~allowed, -math.inf).softmax(-1) for one in (out.start_logits, out.end_logits))
    i, j = max(
        ((i, j) for i in range(len(begin)) for j in range(i, len(begin))), key=lambda at: begin[at[0]] * end[at[1]]
    )
    start, stop = places[i][0], places[j][1]
    return {"answer": asked[1][start:stop], "score": float(begin[i] * end[j]), "start": start, "end": stop}


@pytest.mark.parametrize("target", ["onnx", "torch", "litert"])
@pytest.mark.parametrize("task", HEADS)
def test_the_artifact_s_own_program_answers_as_transformers_does(models, target, task, tmp_path):
    folder = models("Bert", task)
    precision = {"torch": "fp16"}.get(target, "fp32")
    options = known.get(target).options
    more = {} if options is None else {"options": options.model_validate({})}
    made = artifact(known.get(target), precision, folder, task, tmp_path / "made", **more)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, f"BertFor{HEADS[task]}").from_pretrained(folder).eval()
    wanted, got = _listed(said(model, words, task)), _listed(json.loads(client(made, *ASKED[task])))
    assert [{**one, "score": 0} for one in got] == [{**one, "score": 0} for one in wanted]
    scores = [one["score"] for one in wanted]
    assert [one["score"] for one in got] == pytest.approx(scores, abs=0.02 if target == "torch" else 1e-4)


def _listed(answer):
    """An answer's parts in one list."""
    if isinstance(answer, dict):
        return [answer]
    return [one for part in answer for one in (part if isinstance(part, list) else [part])]


@pytest.mark.parametrize("task", HEADS)
def test_transformers_js_opens_the_folder(node, models, task, tmp_path):
    folder = models("Bert", task)
    made = artifact(known.get("onnx"), "fp32", folder, task, tmp_path / "made")
    got = json.loads(client(made, *ASKED[task], file="run.mjs"))
    words = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = said(getattr(transformers, f"BertFor{HEADS[task]}").from_pretrained(folder).eval(), words, task)
    if task == FILL_MASK:
        assert [one["token_str"] for one in got] == [one["token"] for one in wanted[0]]
    elif task == TOKENS:
        assert [one["entity"] for one in got] == [one["entity"] for one in wanted]
    else:
        assert got["answer"].replace(" ", "") == wanted["answer"].replace(" ", "")


def test_a_plain_decoder_is_no_masked_model(refused, tiny):
    assert "fill-mask" in refused("-m", tiny, "--task", "fill-mask", "-t", "onnx:fp32")
