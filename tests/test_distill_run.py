"""Distillation in whole runs: what is exported is what was taught, and what cannot be is said before any work."""

import json

import pytest
import torch
from conftest import SMALL, last_json
from safetensors.torch import load_file, save_file

from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import load_model
from exporter.errors import JobError
from exporter.stages.prune.student import cut_student, parse_shape

FEW = ("--distill-steps", 6, "--distill-window", 64, "--distill-save", 3, "--calib-tokens", 4096)
LOOSE = ("--max-ppl-ratio", 1000, "--max-kl", 100, "--min-top1", 0)


@pytest.fixture
def compressed(run_here, tmp_path):
    """compressed(*words): the folder that `exporter compress` writes, and its record."""

    def make(*words, model="tiny"):
        folder = tmp_path / "taught"
        done = run_here("compress", "-m", model, *words, *FEW, "--format", "json", "-o", folder)
        return folder, last_json(done)

    return make


def test_a_run_with_everything(run_here, tmp_path):
    """Pruned, distilled, trained for quantization, exported: in this order, each told in the report."""
    given = ("--prune", "depth:1", *FEW, "--qat-steps", 2, "--qat-window", 64, *LOOSE, *SMALL, "--format", "json")
    report = last_json(run_here("run", "-m", "tiny", "-t", "onnx:int4-weight", *given, "-o", tmp_path / "out"))
    kinds = [line.split()[0] for line in report["model"]["history"]]
    assert kinds == ["loaded", "dropped", "distilled", "trained"]
    record = report["model"]["distill"]
    assert record["after"] < record["before"]
    assert record["teacher_name"] == "tiny"
    assert report["job"]["distill"]["temperature"] == 2.0
    assert run_here("verify", tmp_path / "out").returncode == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index('id="distill"') < page.index('id="qat"')
    assert "held out" in page
    assert "**Distillation**" in (tmp_path / "out" / "report.md").read_text()


def test_pruned_zeros_reach_the_artifact(run_here, tmp_path):
    given = ("--prune", "magnitude-layer:2:4", *FEW, *LOOSE, *SMALL, "--format", "json", "-o", tmp_path / "out")
    report = last_json(run_here("run", "-m", "tiny", "-t", "torch:fp32", "-t", "torch:bf16", *given))
    weights = load_file(tmp_path / "out" / "torch-bf16" / "model.safetensors")
    pruned = [name for name in weights if name.endswith("_proj.weight")]
    assert len(pruned) == 21
    for name in pruned:
        used = (weights[name] != 0).reshape(len(weights[name]), -1, 4).sum(-1)
        assert (used <= 2).all(), name
    assert report["model"]["distill"]["zeros_held"] > 0


def test_zeros_of_a_taught_folder_are_counted(compressed, run_here, tmp_path):
    folder, record = compressed("--prune", "magnitude-layer:2:4")
    assert [line.split()[0] for line in record["history"]] == ["loaded", "pruned", "distilled"]
    run = run_here("run", "-m", folder, "-t", "onnx:fp32", *SMALL, "--format", "json", "-o", tmp_path / "out")
    assert last_json(run)["results"][-1]["artifact"]["zeros"]["share"] == pytest.approx(0.5, abs=0.01)


def test_a_student_of_another_shape_is_an_ordinary_checkpoint(compressed, run_here, tiny, tmp_path):
    folder, record = compressed("--distill-student", "layers:2,hidden:128,intermediate:256", "--distill-features", 1)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]) == (2, 128, 256)
    assert record["distill"]["cut"]["parameters_after"] < 0.3 * record["distill"]["cut"]["parameters_before"]
    assert [line.split()[0] for line in record["history"]] == ["loaded", "made", "distilled"]
    run = run_here("run", "-m", folder, "-t", "onnx:fp32", *SMALL, "--format", "json", "-o", tmp_path / "out")
    assert all(gate["passed"] for gate in last_json(run)["results"][-1]["gates"])


def test_another_teacher(compressed, tiny, tmp_path):
    """A copy that knows better: the student, the same model with a damaged layer, comes nearer to it."""
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in tiny.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (damaged / path.name).write_bytes(path.read_bytes())
    weights = load_file(tiny / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 0.5
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    _, record = compressed("--distill-teacher", tiny, model=damaged)
    assert record["prune"] is None
    assert record["distill"]["teacher_name"] == str(tiny)
    assert record["distill"]["after"] < record["distill"]["before"]


def test_it_is_kept_in_the_cache(run_here, cache, tmp_path):
    given = ("run", "-m", "tiny", "--prune", "depth:1", *FEW, "--distill-seed", 7, *LOOSE, *SMALL, "-t", "torch:fp32")
    records = []
    for name in ("one", "two"):
        done = run_here(*given, "--format", "json", "-o", tmp_path / name)
        records.append(last_json(done)["model"]["distill"])
    assert records[0] == records[1]  # the seconds too: the second run took what the first had made
    assert not list((cache / "training").glob("*"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--distill", "there is nothing to learn, for the model is its own teacher"),
        ("--prune depth:1 --distill-student layers:2", "both say what goes; give one of them"),
        ("--distill-student layers:two", "layers needs a number, 1 or more; for example: layers:6"),
        ("--distill-student layer:2", "unknown part 'layer'; did you mean layers?"),
        ("--distill-student layers:2,layers:1", "layers is there twice"),
        ("--distill-student layers:2 --distill-data nowhere.txt", "cannot read the text nowhere.txt"),
        ("--distill-student layers:2 --distill-teacher nowhere", "nowhere"),
        (
            "--distill-student layers:2 --distill-alpha 2",
            "--distill-alpha 2.0: input should be less than or equal to 1",
        ),
        ("--distill-student layers:2 --distill-window 4096", "--distill-window 4096: the model has 1024 positions"),
        ("--distill-student layers:2 --policy policy.yaml", "a policy is of one model's weights"),
        (
            "--distill-student layers:2 --distill-data README.md --eval-text README.md",
            "learned from it, the figures would flatter; give another --distill-data. The first passage that",
        ),
    ],
)
def test_what_makes_no_sense_is_said_before_any_work(asked, said, refused):
    assert said in refused("-m", "tiny", *asked.split())


def test_a_shape_that_cannot_be(run_here, tmp_path):
    for shape, said in (("layers:3", "the teacher has 3, and a student has fewer"), ("hidden:130", "no such shape")):
        done = run_here("compress", "-m", "tiny", "--distill-student", shape, *FEW, "-o", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_tokens(refused, tiny, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[300:302]
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = refused("-m", "tiny", "--distill-teacher", other)
    assert "its vocabulary is another" in said
    assert "its answers are about other tokens" in said


def test_the_vocabulary_is_pruned_last(run_here, tiny, tmp_path):
    asked = ("--prune", f"vocabulary:{tiny / 'calib.txt'}", "--distill-teacher", tiny)
    done = run_here("compress", "-m", "tiny", *asked, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "distill first: exporter compress --distill-steps" in done.stderr


def test_a_text_has_no_labels(run_here, tmp_path):
    torch.manual_seed(0)
    import transformers as t

    model = tmp_path / "classifier"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    t.BertForSequenceClassification(t.BertConfig(vocab_size=2048, **sizes, num_labels=3)).save_pretrained(model)
    t.AutoTokenizer.from_pretrained("models/tiny").save_pretrained(model)
    asked = ("-m", model, "--distill-student", "layers:1", "--calib-text", "README.md", "-o", tmp_path / "out")
    done = run_here("compress", *asked, "--distill-alpha", 1)
    assert done.returncode == 2
    assert "--distill-alpha 1: a text has no labels to learn" in done.stderr
    rows = [{"text": f"the {word} of it", "label": number % 3} for number, word in enumerate(["one", "two", "red"] * 8)]
    data = tmp_path / "labels.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("--distill-steps", 6, "--distill-save", 3, "--distill-alpha", 1, "--distill-lr", 1e-2, "--format", "json")
    record = last_json(run_here("compress", *asked, "--distill-data", data, *few))["distill"]
    assert record["hard"]
    assert (record["examples"], record["examples_held_out"], record["text"]) == (23, 1, "labels.jsonl")


def test_a_policy_is_not_made_of_what_will_be_another_model(run_here, tmp_path):
    asked = ("-t", "onnx:int8-static", "--distill-student", "layers:2", "--policy-out", tmp_path / "policy.yaml")
    done = run_here("calibrate", "-m", "tiny", *asked)
    assert done.returncode == 2
    assert "and then: exporter calibrate -m smaller" in done.stderr


def test_a_dry_run_tells_of_it(run_here, tmp_path):
    asked = ("--prune", "depth:1", "--distill-steps", 6, "--dry-run", "--format", "json", "-o", tmp_path / "out")
    steps = last_json(run_here("run", "-m", "tiny", *asked))["steps"]
    places = [next(place for place, step in enumerate(steps) if step.startswith(what)) for what in ("prune", "distill")]
    assert places == sorted(places)


def test_what_shares_query_key_and_value_is_not_narrowed():
    import transformers as t

    model = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=64))
    with pytest.raises(JobError, match=r"c_attn.* holds query, key and value in one"):
        cut_student(model, parse_shape("hidden:24"))


def test_a_student_takes_its_teachers_layers_evenly(tiny):
    model = load_model(tiny, "text-generation", "float32")
    before = {name: layer.weight.clone() for name, layer in linear_layers(model).items()}
    record = cut_student(model, parse_shape("layers:1,hidden:128"))
    assert record["layers"] == [2]
    ours = linear_layers(model)["model.layers.0.self_attn.q_proj"].weight
    assert torch.equal(ours, before["model.layers.2.self_attn.q_proj"][:, :128])
