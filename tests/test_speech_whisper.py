"""A small random Whisper of two languages through the whole program: heard, exported, opened, and broken on purpose."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import speech_models as sounds
import torch
import transformers
import whisper_models as made
from clients import client
from onnx import numpy_helper
from test_client_defaults import node

from exporter import Job, run
from exporter.checkpoint.opened import open_checkpoint
from exporter.checkpoint.speech import check_speech, transcribing
from exporter.errors import JobError
from exporter.form import SPEECH
from exporter.measure.latency import measure_round, warm_up
from exporter.measure.transcripts import plain
from exporter.report.table import value
from exporter.targets import known
from exporter.targets.folder.kit import kit
from exporter.targets.onnx.layout import open_onnx
from exporter.targets.onnx.pair import DECODER, ENCODER
from exporter.tasks.speech_recognition import transcript

node = node
EVERY = ("fp32", "fp16", "bf16", "int8-weight", "int8-dynamic", "int4-weight")
SAID = made.sentences(8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, and sounds of a second and less with what is said in them."""
    place = tmp_path_factory.mktemp("whisper")
    made.checkpoint(place / "model", several=True)
    lines = []
    for number, (sound, text) in enumerate(zip(sounds.sounds(8), SAID, strict=True)):
        sounds.write_wav(place / f"{number}.wav", sound[: sounds.RATE - 1000 * number])
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text.upper() + "!"}))
    (place / "said.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def ran(place):
    """(the report, its rows by their names) of all precisions that there are."""
    targets = (*(f"onnx:{one}" for one in EVERY), "torch:int8-dynamic")
    job = Job(
        model=str(place / "model"), target=targets, output=place / "out", eval_data=place / "said.jsonl", speed=False,
        threads=1,
    )  # fmt: skip
    report = run(job)
    return report, {f"{row['target']}:{row['precision']}": row for row in report["results"]}


def spectrogram(folder, file):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    with file.open("rb") as opened:
        opened.seek(44)
        sound = np.frombuffer(opened.read(), "<i2").astype(np.float32) / 32768
    return extractor(sound, sampling_rate=sounds.RATE, return_tensors="np")["input_features"][0]


def test_every_precision_keeps_its_gates(ran):
    report, rows = ran
    assert report["model"]["task"] == SPEECH
    assert {name: row["reason"] for name, row in rows.items() if row["status"] != "ok"} == {}
    failed = {name: [one for one in row["gates"] if not one["passed"]] for name, row in rows.items()}
    assert {name: gates for name, gates in failed.items() if gates} == {}
    for row in (row for name, row in rows.items() if name != "torch:fp32"):
        assert {"max_ppl_ratio", "max_kl", "min_cosine", "max_cache_kl"} <= {gate["name"] for gate in row["gates"]}
        assert value(row, "processor_error") == 0
        assert 0.9 < value(row, "cosine") <= 1
    exact, coarse = rows["onnx:fp32"], rows["onnx:int4-weight"]
    assert value(exact, "ppl_ratio") == pytest.approx(1, abs=1e-5)
    assert value(exact, "transcripts") == value(exact, "top1") == 1
    assert value(exact, "wer") == value(rows["torch:fp32"], "wer") > 0.5  # it was never trained
    assert value(coarse, "transcripts") < 1
    assert value(coarse, "cosine") < value(rows["onnx:int8-weight"], "cosine") < 1
    sample = coarse["samples"]
    assert (sample["kind"], sample["of"]) == ("transcripts", 8)
    assert sample["shown"][0]["label"] in [text.upper() + "!" for text in SAID]
    assert report["evaluation"]["data"]["columns"]["label"] == "text"


def test_what_is_compared_is_what_is_said(place, ran):
    """Teacher forcing: the text's tokens behind the prompt, and their likelihood is transformers' own loss of them."""
    from exporter.measure.quality import Reference

    reference = Reference.load(place / "out" / "reference" / "reference.npz")
    passages = reference.passages
    model = transformers.WhisperForConditionalGeneration.from_pretrained(place / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    losses = []
    for number, text in enumerate(SAID):
        ids = passages.ids[passages.offsets[number] : passages.offsets[number + 1]].tolist()
        said = tokenizer(text.upper() + "!", add_special_tokens=False)["input_ids"]
        assert ids[0] in (made.IDS["en"], made.IDS["de"])
        assert ids[1:] == [made.IDS["transcribe"], made.IDS["notimestamps"], *said, made.END]
        labels = torch.tensor([[*ids]])
        with torch.no_grad():
            logits = model(torch.tensor(passages.source(number))[None], labels=labels).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[3:], labels[0, 3:], reduction="none").numpy())
    np.testing.assert_allclose(reference.answers.nll, np.concatenate(losses), atol=1e-4)


@pytest.mark.parametrize("several", [True, False])
def test_a_transcript_is_what_transformers_generates(place, tmp_path, several):
    folder = place / "model" if several else made.checkpoint(tmp_path / "english")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    how = transcribing(folder)
    found = set()
    with open_checkpoint(folder, SPEECH, 1) as runner:
        for number in range(4):
            features = spectrogram(folder, place / f"{number}.wav")
            prompt, text = transcript(runner, how, features)
            found.add(prompt[0])
            wanted = model.generate(torch.tensor(features)[None], do_sample=False, num_beams=1)[0].tolist()
            assert [token for token in text if token != made.END] == [one for one in wanted if one < made.END]
    assert found <= ({made.IDS["en"], made.IDS["de"]} if several else {made.IDS["notimestamps"]})


def test_the_graphs_answer_as_the_model_at_other_lengths_than_traced(place, ran):
    rng = np.random.default_rng(0)
    folder = place / "model"
    with open_checkpoint(folder, SPEECH, 1) as own, open_onnx(place / "out" / "onnx-fp32", 1) as graph:
        for number, length in ((0, 1), (1, 9), (2, made.LONGEST)):
            features = spectrogram(folder, place / f"{number}.wav")
            np.testing.assert_allclose(graph.encode(features), own.encode(features), atol=1e-4)
            ids = rng.integers(0, made.VOCABULARY, length)
            got = graph.logits(ids)
            np.testing.assert_allclose(got, own.logits(ids), atol=1e-4)
            steps = [graph.prefill(ids[:1]), *(graph.step(int(token)) for token in ids[1:])]
            np.testing.assert_allclose(np.stack(steps), got, atol=1e-4)
        warm_up(graph, features, made.LONGEST)
        times = measure_round(graph, features, made.LONGEST)
    assert (len(times["speech"]), len(times["decode"])) == (3, made.LONGEST - 1)
    encoder, decoder = (onnx.load(place / "out" / "onnx-fp32" / half).graph for half in (ENCODER, DECODER))
    assert [one.name for one in encoder.input] == ["input_features"]
    assert [one.name for one in decoder.input][:2] == ["input_ids", "encoder_hidden_states"]
    assert not {node.op_type for node in (*encoder.node, *decoder.node)} & {"If", "Loop"}


def test_the_clients_write_the_same(node, place, ran):
    folder, sound = place / "out" / "onnx-fp32", place / "2.wav"
    features = spectrogram(place / "model", sound)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(place / "model").eval()
    for language in (None, "de"):
        told = {} if language is None else {"language": language}
        wanted = [one for one in model.generate(torch.tensor(features)[None], **told)[0].tolist() if one < made.END]
        asked = () if language is None else ("--language", language)
        assert [*map(int, client(folder, sound, "--ids", *asked).split())] == wanted
    assert [*map(int, client(folder, sound, "--ids", "--language", "de", file="run.mjs").split())] == wanted
    text = client(place / "out" / "torch-int8-dynamic", sound).strip()
    assert text
    assert "ffmpeg" in client_error(folder, sounds.write_wav(place / "fast.wav", np.zeros(800), 8000))


def client_error(folder, *words):
    import subprocess
    import sys

    done = subprocess.run([sys.executable, folder / "run.py", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    return line


def test_the_program_s_own_spectrogram(place, monkeypatch):
    monkeypatch.syspath_prepend(str(kit("onnx") / SPEECH))
    monkeypatch.syspath_prepend(str(kit("any") / SPEECH))
    from sound import read_sound
    from spectrogram import mel_filters, settings
    from spectrogram import spectrogram as written
    from transformers.audio_utils import mel_filter_bank

    sound = read_sound(place / "1.wav", sounds.RATE)
    np.testing.assert_allclose(
        written(sound, settings(place / "model"))[0], spectrogram(place / "model", place / "1.wav"), atol=1e-4
    )
    asked = {"min_frequency": 0.0, "max_frequency": 8000.0, "sampling_rate": 16000, "norm": "slaney"}
    np.testing.assert_allclose(mel_filters(80, 400, 16000).T, mel_filter_bank(201, 80, mel_scale="slaney", **asked))


def test_what_is_broken_fails_its_gate(place, ran, tmp_path, run_cli):
    """In one of two artifacts the encoder, in the other the cache of the decoder's own tokens, where it goes in."""
    out = tmp_path / "out"
    shutil.copytree(place / "out", out)
    told = json.loads((out / "report.json").read_text())
    told["results"] = [row for row in told["results"] if row["precision"] in ("fp32", "fp16")]
    (out / "report.json").write_text(json.dumps(told))
    encoder = onnx.load(out / "onnx-fp32" / ENCODER)
    [weight] = [one for one in encoder.graph.initializer if one.name == "layers.0.fc1.weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(encoder, out / "onnx-fp32" / ENCODER)
    decoder = onnx.load(out / "onnx-fp16" / DECODER)
    for one in decoder.graph.node:
        for at, name in enumerate(one.input):
            if name.startswith("past_key_values.1.decoder.key"):
                one.input[at] = name.replace("values.1", "values.0")
    onnx.save(decoder, out / "onnx-fp16" / DECODER)
    done = run_cli("bench", out, "--format", "json")
    assert done.returncode == 3, done.stderr
    rows = {row["precision"]: row for row in json.loads(done.stdout.splitlines()[-1])["results"]}
    failed = {name: {one["name"] for one in row["gates"] if not one["passed"]} for name, row in rows.items()}
    assert {"min_cosine", "max_kl"} <= failed["fp32"]
    assert "max_cache_kl" in failed["fp16"]
    assert "min_cosine" not in failed["fp16"]


def test_what_cannot_be_is_refused_before_work(place, tmp_path, refused):
    config = json.loads((place / "model" / "config.json").read_text())
    for name, precision in (("tensorrt", "fp16"), ("gguf", "q8_0"), ("coreml", "fp16"), ("litert", "fp16")):
        assert known.get(name).check(config, SPEECH, precision), name
    other = tmp_path / "other"
    shutil.copytree(place / "model", other)
    (other / "config.json").write_text(json.dumps(config | {"model_type": "speech_to_text"}))
    read = transformers.AutoConfig.from_pretrained
    with pytest.raises(JobError, match=r"speech_to_text.*Whisper's are measured"):
        check_speech("other", other, read(other), False)
    (other / "config.json").write_text(json.dumps(config | {"num_mel_bins": 80}))
    with pytest.raises(JobError, match=r"12 x 100.*80 x 100"):
        check_speech("other", other, read(other), False)
    told = json.loads((other / "generation_config.json").read_text())
    for key in ("forced_decoder_ids", "no_timestamps_token_id"):
        told.pop(key)
    (other / "generation_config.json").write_text(json.dumps(told))
    with pytest.raises(JobError, match=r"does not say how a transcript begins.*no_timestamps_token_id"):
        transcribing(other)
    sounds.write_wav(place / "long.wav", np.zeros(int(1.5 * sounds.RATE)))
    lines = (place / "said.jsonl").read_text() + '\n{"audio": "long.wav", "text": "word1"}'
    (place / "long.jsonl").write_text(lines)
    said = refused("-m", place / "model", "-t", "onnx", "--eval-data", place / "long.jsonl")
    assert "long.wav lasts 1.5 s, and the model reads 1 s at once" in said
    assert "--qat" in refused("-m", place / "model", "-t", "onnx", "--qat")


@pytest.mark.quick
def test_words_alone():
    assert plain("  It's 1/2 of “Naïve”, HE said…") == "it's 1 2 of naïve he said"
