"""docs/: what the pages say of commands, flags, targets and numbers is what the program has, and they become a site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml
from conftest import ROOT
from pages import BLOCKS, PAGES, blocks, only_read, run_as_they_stand

from exporter.checkpoint.recipes import RECIPES
from exporter.command.cli import cli
from exporter.command.flags import given
from exporter.form import FEATURES, QUESTIONS
from exporter.job import CompressJob, Job, MergeJob, load_job
from exporter.measure import latency
from exporter.measure.arithmetic import TOP_K
from exporter.pipeline import lengths, texts
from exporter.pipeline.sections import job_schema, read_sections
from exporter.quantization.policy import Policy
from exporter.stages.merge.proof import LIMITS
from exporter.targets import known
from exporter.tasks.known import TASKS
from exporter.types import GENERATION

DOCS = {page: text for page, text in PAGES.items() if page != "README.md"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
JOBS = {"run": Job, "calibrate": Job, "compress": CompressJob, "merge": MergeJob}
NO_KEY = {"config", "dry_run", "form", "policy_out", "verbose"}  # flags of a command that are no key of its job
FILES = ("adapter", "eval_text", "calib_text", "eval_data", "probe")
READERS = {
    "./llama", "./lora", "./second", "./classifier", "./flan-t5", "./vit", "./clip", "./tagger", "reviews.jsonl",
    "pairs.jsonl", "sentences.jsonl", "own.txt", "job.yaml", "./wav2vec2", "said.csv",
}  # fmt: skip
# Flags of pip, of other programs and of bench/.
FOREIGN = {
    "--extra-index-url", "--no-deps", "--model-repository", "--windows", "--rounds", "--sparsity", "--text",
    "--of", "--pack", "--part-size", "--python", "--rehearse", "--rows", "--run", "--seconds", "--what-is-there",
}  # fmt: skip


def read(words):
    """A command's parameters, as its own parser has them; raises what it would tell."""
    name, *rest = words
    return cli.commands[name].make_context(name, list(rest)).params


def job_file(page):
    """The job file that a page shows, or else the one that docs/jobs.md does."""
    found = [values for text in blocks("yaml", page) if "model" in (values := yaml.safe_load(text))]
    return found[0] if found else job_file("docs/jobs.md")


def there(text, page):
    """Whether a model or a file is the reader's own, or in the checkout, or made by a command above it."""
    path = re.sub(r"=[\d.]+$", "", text)  # an adapter's weight
    made = {word for one in run_as_they_stand() if one.page == page for word in one.words}
    return path in READERS | made or (ROOT / path).exists()


def commands():
    return [*run_as_they_stand(), *only_read()]


@pytest.mark.parametrize("command", commands(), ids=lambda one: f"{one.page}: {' '.join(one.words)}")
def test_a_command_is_one_that_the_program_has(command):
    words = command.exporter
    if words is None:
        return
    params = read(words)
    if words[0] in ("fetch", "targets") and params["target"]:
        known.get(params["target"])
    if words[0] not in JOBS:
        return
    flags = given({name: value for name, value in params.items() if name not in NO_KEY})
    if params["config"]:
        assert str(params["config"]) == "job.yaml"
        flags = job_file(command.page) | flags
    job = load_job(JOBS[words[0]], {"output": "out", **flags})
    assert job.model in RECIPES or there(job.model, command.page), job.model
    sections = read_sections(job) if words[0] == "run" else None
    named = [getattr(job, name, None) for name in FILES]
    if sections and sections.qat:
        named.append(sections.qat.data)
    for value in named:
        for file in value if isinstance(value, tuple) else (value,) if value else ():
            assert there(str(file), command.page), file
    for text in getattr(job, "target", ()):
        assert [known.parse(text, task) for task in TASKS]


def test_another_program_s_command_can_be_typed_here():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in run_as_they_stand():
        assert command.words[0] in ("exporter", "pip", "echo"), command
    for page, text in PAGES.items():
        for extras in re.findall(r"pip install '?\.\[([\w,-]+)\]", text):
            assert set(extras.split(",")) <= set(EXTRAS), (page, extras)
        for name in re.findall(r"(?:`|^ {4})make ([a-z]+)", text, re.M):
            assert re.search(rf"^{name}:", makefile, re.M), (page, name)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_command_takes_was_made_above_it(page):
    made = {"out"}
    for words in (one.exporter for one in run_as_they_stand() if one.page == page and one.exporter):
        params = read(words)
        if words[0] in ("bench", "report", "verify"):
            assert str(params["folder"]) in made, words
        if params.get("policy") not in (None, "off", "auto"):
            assert params["policy"] in made, words
        made |= {str(params[name]) for name in ("output", "policy_out") if params.get(name)}


@pytest.mark.parametrize("page", DOCS)
def test_a_page_starts_with_a_command(page):
    language = "sh" if page == "docs/shell.md" else "console"  # test_shell.py types that one into shells
    assert re.match(rf"# [^\n]+\n\n```{language}\n.*?^```\n\n", DOCS[page], re.M | re.S)
    assert "exporter" in next(block.text for block in BLOCKS if block.page == page)


def test_every_page_is_in_the_nav_and_in_the_readme():
    assert set(DOCS) == {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert all(f"]({page})" in PAGES["README.md"] for page in DOCS)
    assert all(f"]({page.removeprefix('docs/')})" in DOCS["docs/index.md"] for page in DOCS if "index" not in page)


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_a_link_leads_somewhere(page):
    place, text = (ROOT / page).parent, (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
        path = place / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in map(slug, headings), (target, anchor)


def options():
    for command in cli.commands.values():
        for param in command.get_params(click.Context(command)):
            yield from (*param.opts, *param.secondary_opts)


def test_every_flag_is_one_that_the_program_has():
    flags = {*options(), "--version"}
    for page, text in PAGES.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
        assert named <= flags | FOREIGN, page


def test_every_variant_is_one_that_a_target_has():
    for text in PAGES.values():
        for variant in set(re.findall(r"\b(?:torch|onnx|gguf|tensorrt(?:-rtx)?|coreml|litert):[a-z][\w-]*", text)):
            assert known.parse(variant, GENERATION)


def test_a_target_s_page_has_its_precisions():
    rooms = {path.parent.name for path in (ROOT / "exporter" / "targets").glob("*/target.py")}
    assert rooms == {Path(page).stem for page in DOCS if page.startswith("docs/targets/")}
    for target in known.BUILTIN.values():
        page = DOCS[f"docs/targets/{target.name.removesuffix('-rtx')}.md"]
        table = page.partition("| Precision | What it is |\n|---|---|\n")[2].partition("\n\n")[0]
        told = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", table, re.M))
        assert told == {name: precision.summary for name, precision in target.precisions.items()}


def test_yaml_is_what_it_is_shown_as():
    for page, language, text in BLOCKS:
        values = yaml.safe_load(text) if language == "yaml" else {}
        if "model" in values:
            assert load_job(Job, values).model_fields_set == set(values)
            assert set(values) <= set(job_schema()["properties"]), page
        elif "modules" in values:
            assert Policy.model_validate(values).modules
        elif language == "yaml":
            assert page == "docs/ci.md"


def default(name):
    return Job.model_fields[name].default


def test_numbers_on_the_pages_are_those_of_the_code():
    for dtype, (error, kl) in LIMITS.items():
        assert f"| {dtype} | {error:g} | {kl:g} |" in DOCS["docs/merging.md"]
    page = " ".join(DOCS["docs/measuring.md"].split())
    prefill, window = " and over ".join(map(str, latency.PREFILL_LENGTHS)), TASKS[GENERATION].window
    for said in (
        f"the {TOP_K} most likely tokens",
        (
            f"Defaults are {default('eval_tokens'):,} tokens, windows of {window} (encoders {TASKS[FEATURES].window}, "
            f"question answering {TASKS[QUESTIONS].window})"
        ),
        f"shares {texts.PASSAGE} words in a row",
        f"boundaries up to {lengths.ALWAYS:,} tokens always",
        f"one forward over {prefill} tokens; decode is {latency.DECODED} tokens",
        f"after a prompt of {latency.PROMPT}",
        f"(`--repeats`, {default('repeats')})",
        f"`--speed-budget SECONDS` ({default('speed_budget')})",
    ):
        assert said in page


def test_the_shell_completes_commands_and_flags():
    """What docs/shell.md has bash do, for one word of a command and one of a flag."""
    command = [str(Path(sys.executable).parent / "exporter")]

    def asked(instruction, words="", at=0):
        asks = {"_EXPORTER_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return subprocess.run(command, env={**os.environ, **asks}, capture_output=True, text=True).stdout

    assert all("complete" in asked(f"{shell}_source") for shell in ("bash", "zsh"))
    assert asked("bash_complete", "exporter cal", 1).split() == ["plain,calibrate"]
    flags = asked("bash_complete", "exporter run --onnx", 2).split()
    assert "plain,--onnx-min-onnxruntime" in flags


def test_they_become_a_site_that_fetches_nothing(tmp_path):
    if find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -e '.[docs]'")
    build = ["-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *build], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    made = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("*.html")} - {"404.html"}
    assert made == {page.removeprefix("docs/").replace(".md", ".html") for page in DOCS}
    for page in made:
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=.?(?:https?:)?//", text), page
        assert not re.findall(r"<link[^>]* rel=.?(?:stylesheet|preconnect)[^>]* href=.?(?:https?:)?//", text), page
