"""Ollama's Modelfile: its template says what the checkpoint's Jinja template says, or there is none."""

import json

import gguf_checkpoints
import pytest
import transformers

from exporter.targets.gguf.modelfile import find_wrapping, modelfile, written

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
LAST_ONLY = "{{ messages[-1]['content'] }}"

LOOP = "{{ range .Messages }}"
GO = {
    CHATML: '{{ if ne (index .Messages 0).Role "system" }}<|im_start|>system\nBe kind.<|im_end|>\n{{ end }}' + LOOP
    + '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
    + '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    + '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    + "<|im_start|>assistant\n",
    LLAMA3: LOOP + "".join(
        f'{{{{ {branch} eq .Role "{role}" }}}}<|start_header_id|>{role}<|end_header_id|>\n\n'
        "{{ .Content }}<|eot_id|>"
        for branch, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
    ) + "{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
    GEMMA: LOOP + '{{ if eq .Role "user" }}<start_of_turn>user\n{{ .Content }}<end_of_turn>\n'
    + '{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}{{ end }}'
    + "<start_of_turn>model\n",
    INST: LOOP + '{{ if eq .Role "user" }}[INST] {{ .Content }} [/INST]'
    + '{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}',
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that puts a BOS token in front, as the engine then does: the template must not repeat it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    gguf_checkpoints.pieces(folder)
    return folder


@pytest.mark.parametrize("template", GO, ids=["chatml", "llama3", "gemma", "inst"])
def test_templates_that_wrap_messages_are_written_in_go(template, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    wrapping = find_wrapping(tokenizer)
    assert wrapping is not None
    assert wrapping.go() == GO[template]
    conversation = [("user", "Why?"), ("assistant", "So."), ("user", "Oh.\n\nAnd {this}?")]
    told = [{"role": role, "content": content} for role, content in conversation]
    expected = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    assert wrapping.render(conversation) == expected.removeprefix("<s>")


@pytest.mark.parametrize("template", [NUMBERED, DATED, LAST_ONLY], ids=["numbered", "dated", "last"])
def test_templates_that_do_more_are_not(template, folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    assert find_wrapping(tokenizer) is None
    tokenizer.save_pretrained(tmp_path)
    told, [note] = modelfile(tmp_path)
    assert "no TEMPLATE" in note
    assert "TEMPLATE" not in written("model.gguf", told)


def test_the_whole_file(folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = INST
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [2, 1], "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}'
    )
    told, notes = modelfile(tmp_path)
    assert notes == []
    assert written("model.gguf", told) == (
        f'FROM ./model.gguf\nTEMPLATE """{GO[INST]}"""\nPARAMETER stop "</s>"\nPARAMETER stop "<s>"\n'
        "PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER repeat_penalty 1.1\n"
    )


def test_a_model_writes_no_line_of_it_and_no_template(folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    stops = ["{{ 7 * 7 }}{% if %}", 'a"\nFROM /etc']
    tokenizer.add_tokens([transformers.AddedToken(text, normalized=False) for text in stops])
    tokenizer.chat_template = INST.replace("[INST]", '{{ "{{ 7 * 7 }} {% if %}" }}"""\nFROM /etc')
    tokenizer.save_pretrained(tmp_path)
    ends = {"eos_token_id": tokenizer.convert_tokens_to_ids(stops)}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    told, [] = modelfile(tmp_path)
    text = written("model.gguf", told)
    assert '{{ "{{" }} 7 * 7 }} {% if %}{{ "\\"\\"\\"" }}' in text
    assert text.count('"""') == 2
    assert text.endswith('"""\nPARAMETER stop "{{ 7 * 7 }}{% if %}"\nPARAMETER stop "a\\"\\nFROM /etc"\n')
