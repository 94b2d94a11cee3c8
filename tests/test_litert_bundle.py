"""A bundle for LiteRT-LM: what is in it, and what that engine says, beside the interpreter's own greedy tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import transformers
from litert_models import CACHE, export

from exporter.measure.samples import greedy
from exporter.targets.litert.target import LITERT
from exporter.types import GENERATION

pytest.importorskip("litert_torch", reason="needs the extra [litert]")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PROMPT = "The list of functions"
# An engine in a process of its own: it brings a runtime of its own, and whatever it prints stays there.
ENGINE = """
import json, sys
import litert_lm
with litert_lm.Engine(sys.argv[1]) as engine:
    greedy = litert_lm.SamplerConfig(top_k=1)
    with engine.create_session(apply_prompt_template=False, sampler_config=greedy) as session:
        session.run_prefill([sys.argv[2]])
        said = session.run_decode().texts[0]
    with engine.create_conversation(sampler_config=greedy) as conversation:
        reply = str(conversation.send_message(sys.argv[2]))
    print(json.dumps([engine.tokenize(sys.argv[2]), said, reply]))
"""


@pytest.fixture(scope="module")
def bundled(tiny, tmp_path_factory):
    """The shipped model with a chat template, and the folder of its artifact with a bundle."""
    place = tmp_path_factory.mktemp("bundle")
    shutil.copytree(tiny, place / "model")
    settings = place / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": TEMPLATE}))
    given = {"options": {"bundle": True}}
    exported = export(place / "model", GENERATION, "int8-weight", place / "out", place / "scratch", **given)
    assert exported.extras == ("model.litertlm",)
    return place / "model", place / "out"


def test_a_bundle_holds_the_program_and_its_tokenizer(bundled, tmp_path):
    from litert_lm_builder import litertlm_peek

    folder = bundled[1]
    (tmp_path / "peeked").mkdir()
    with (tmp_path / "peeked.txt").open("w") as told:
        litertlm_peek.peek_litertlm_file(str(folder / "model.litertlm"), str(tmp_path / "peeked"), told)
    program = (folder / "model.tflite").read_bytes()
    assert any(program in path.read_bytes() for path in (tmp_path / "peeked").rglob("*") if path.is_file())
    assert f"max_num_tokens: {CACHE}" in (tmp_path / "peeked.txt").read_text()


def test_litert_lm_says_what_the_interpreter_says(bundled):
    """A prompt as it is, and a message through the chat template, whose parts of content a text model's is not for."""
    pytest.importorskip("litert_lm", reason="needs litert-lm-api, of the extra [dev]")
    checkpoint, folder = bundled
    words = [sys.executable, "-c", ENGINE, str(folder / "model.litertlm"), PROMPT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tokens, said, reply = json.loads(done.stdout.splitlines()[-1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    plain = tokenizer(PROMPT).input_ids
    assert tokens == plain
    message = [{"role": "user", "content": PROMPT}]
    asked = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    told = tokenizer(asked, add_special_tokens=False).input_ids
    with LITERT.open(folder, 1) as runner:
        for ids, got in ((plain, said), (told, reply)):
            expected = tokenizer.decode(greedy(runner, np.array(ids), [], CACHE - len(ids)))
            assert len(got) > 20
            assert expected.strip().startswith(got.strip())
