"""Train the shipped tiny model and its LoRA adapter, from texts that every Python installation has.

Run it from the root of the repository:

    python models/train_tiny.py

It writes models/tiny (a LlamaForCausalLM, its tokenizer, eval.txt, calib.txt) and models/tiny/adapter (a PEFT LoRA
adapter for Python code, its own eval.txt). It needs torch, transformers, peft and tokenizers, no network and no GPU.

The texts are those of the Python that runs it; another version gives another model. The shipped one, from 3.11.7, took
29 minutes on 2 busy cores (some 10 on idle ones): perplexity 38.7 on eval.txt; on code 94.7, and 63.9 with the adapter.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import random
import re
import sysconfig
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy

OUT = Path(__file__).resolve().parent / "tiny"
STEPS, ADAPTER_STEPS = 3200, 400  # of 1,024 tokens: larger batches learn less from these few tokens
PROJECTIONS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
VOCABULARY, POSITIONS, SEED, PEAK = 2048, 1024, 20, 2e-3  # PEAK: learning rate
EOT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=512,  # multiples of 256: the super-block of GGUF's K-quants
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=POSITIONS,
    tie_word_embeddings=True,
    # Not the default 10,000: an exporter that forgets to carry it over is found out.
    rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
# Not code that someone wrote to be read: tables, generated files, bundled copies, and the topics themselves.
SKIPPED = re.compile(r"site-packages|/test/|/tests/|_test|encodings|pydoc_data|idle_test|lib2to3/pgen2|_sysconfigdata")


def draw(sizes: dict[str, int], shares: dict[str, int], rng: random.Random) -> dict[str, list[str]]:
    """Deal names out until each share (in characters) is full; what no share takes goes to "train"."""
    room = {**shares, "train": sum(sizes.values())}
    dealt: dict[str, list[str]] = {share: [] for share in room}
    for name in rng.sample(sorted(sizes), len(sizes)):
        share = next(share for share in room if sizes[name] <= room[share])
        room[share] -= sizes[name]
        dealt[share].append(name)
    return {share: sorted(names) for share, names in dealt.items()}


def fingerprints(text: str) -> set[str]:
    """What must not be seen twice: each run of 10 words, and each line of 60 characters or more."""
    words = text.split()
    grams = {" ".join(words[i : i + 10]) for i in range(len(words) - 9)}
    return grams | {line.strip() for line in text.splitlines() if len(line.strip()) >= 60}


def unseen(text: str, held_out: set[str]) -> str:
    """The text less each paragraph that shares a fingerprint: topics quote one another ("compound" contains "with")."""
    return "\n\n".join(p for p in text.split("\n\n") if not fingerprints(p) & held_out)


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of the node and of everything in it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        doc = ast.get_docstring(node)
        if doc and len(doc) > 60:
            yield name, doc
        for child in node.body:
            yield from docstrings(child, f"{name}.{getattr(child, 'name', '')}")


def comments(source: str) -> Iterator[str]:
    """Blocks of comments long enough to be prose."""
    for block in re.findall(r"(?:^[ \t]*#.*\n){3,}", source, flags=re.MULTILINE):
        text = "\n".join(line.strip().lstrip("#").removeprefix(" ") for line in block.splitlines())
        if len(text) > 150 and sum(c.isalpha() or c == " " for c in text) > 0.85 * len(text):
            yield text


def read_modules() -> dict[str, str]:
    """{path in the standard library: source} of the modules that are read, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return {n: (root / n).read_text(encoding="utf-8", errors="ignore") for n in names if not SKIPPED.search("/" + n)}


def write_prose(topic_names: list[str], modules: dict[str, str], held_out: set[str], rng: random.Random) -> list[str]:
    """The base model's training documents, shuffled: topics, docstrings, comments."""
    documents = [unseen(topics[name], held_out) for name in topic_names] * 3  # what eval.txt looks like
    for path, source in modules.items():
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for number, (name, doc) in enumerate(docstrings(ast.parse(source), module)):
            doc = unseen(doc, held_out)
            # One in eight as a dialogue, so that the chat template's tokens are trained too.
            chat = f"{IM_START}user\nWhat is {name}?{IM_END}\n{IM_START}assistant\n{doc}{IM_END}\n"
            documents.append(chat if number % 8 == 7 else f"{name}\n\n{doc}")
        documents += [unseen(text, held_out) for text in comments(source)]
    rng.shuffle(documents)
    return documents


def train_tokenizer(documents: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2: any text comes back exactly, and nothing is added in front of it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special, letters = [EOT, IM_START, IM_END], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters)
    bpe.train_from_iterator((re.sub(r"<\|\w+\|>", "", text) for text in documents), trainer)
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no annotations
        tokenizer_object=bpe,
        bos_token=EOT,
        eos_token=EOT,
        pad_token=EOT,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: Any, text: str) -> torch.Tensor:
    """Token numbers, shape [tokens], int64."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def perplexity(model: torch.nn.Module, ids: torch.Tensor, window: int = 512, stride: int = 256) -> float:
    """exp(mean negative log-likelihood); each token is scored once, with the longest context, and the first never."""
    model.eval()
    total, scored = 0.0, 1
    with torch.inference_mode():
        for start in range(0, len(ids) - stride, stride):
            chunk = ids[start : start + window]
            fresh = start + len(chunk) - scored
            logits = model(input_ids=chunk[None], use_cache=False).logits[0]
            total += cross_entropy(logits[-fresh - 1 : -1], chunk[-fresh:], reduction="sum").item()
            scored += fresh
    return math.exp(total / (len(ids) - 1))


def batches(ids: torch.Tensor, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (inputs, targets) of 1,024 tokens, each token once per epoch, in windows of 256, 256, 512, 1024."""
    lengths = itertools.cycle((256, 256, 512, 1024))
    while True:
        first = rng.randrange(POSITIONS)  # other window edges in each epoch
        starts = list(range(first, len(ids) - POSITIONS - 1, POSITIONS))
        rng.shuffle(starts)
        for start in starts:
            yield ids[start : start + POSITIONS].view(-1, next(lengths)), ids[start + 1 : start + POSITIONS + 1]


def train(model: torch.nn.Module, ids: torch.Tensor, valid: torch.Tensor, steps: int) -> float:
    """AdamW with a warm-up and a cosine; leaves the weights that were best on valid. Returns the seconds it took."""
    began = time.monotonic()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for p in weights.values() if p.ndim > 1]
    scales = [p for p in weights.values() if p.ndim == 1]  # norms: decay would pull them towards 0, not towards 1
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98))
    reached: list[float] = []
    for step, (inputs, targets) in enumerate(batches(ids, random.Random(SEED)), start=1):  # no secret
        model.train()
        rate = PEAK * min(step / 100, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == steps:
            reached.append(perplexity(model, valid))
            print(f"step {step}: loss {loss.item():.3f}, validation perplexity {reached[-1]:.2f}", flush=True)
            if reached[-1] == min(reached):
                best = {name: p.detach().clone() for name, p in weights.items()}
            if step == steps or min(reached[-4:]) > min(reached):
                break
    model.load_state_dict(best, strict=False)  # an adapter's weights are only some of the model's
    return time.monotonic() - began


def amend(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def reload_and_measure() -> dict[str, Any]:
    """What a user gets: everything is loaded again from the files that were written."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(OUT)
    prose, source = ((OUT / name).read_text(encoding="utf-8") for name in ("eval.txt", "adapter/eval.txt"))
    ids, code = encode(tokenizer, prose), encode(tokenizer, source)
    if tokenizer.decode(ids) != prose:
        raise SystemExit("the tokenizer does not give eval.txt back exactly")
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32)
    prompt = tokenizer("The class definition", return_tensors="pt")
    sample = base.generate(**prompt, max_new_tokens=48, do_sample=False)
    report: dict[str, Any] = {
        "parameters": base.num_parameters(),
        "eval_tokens": len(ids),
        "code_tokens": len(code),
        "base_on_eval": perplexity(base, ids),
        "base_on_code": perplexity(base, code),
        "sample": tokenizer.decode(sample[0]),
    }
    adapted = PeftModel.from_pretrained(base, str(OUT / "adapter"))
    report["adapter_on_code"] = perplexity(adapted, code)
    with torch.inference_mode():
        before = adapted(input_ids=code[None, :POSITIONS]).logits
        merged = adapted.merge_and_unload(safe_merge=True)
        after = merged(input_ids=code[None, :POSITIONS]).logits
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    return {**report, "merge_max_error": (before - after).abs().max().item(), "bytes": size}


def main() -> None:
    """Texts, tokenizer, model, adapter, measurements."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    rng = random.Random(SEED)  # it deals out texts, no secrets

    # Texts. Topics are dealt by size, so that the shares hold whatever Python's version.
    size = sum(map(len, topics.values()))
    shares = {"eval": size // 10, "calib": size // 16, "valid": size // 25}
    dealt = draw({name: len(text) for name, text in topics.items()}, shares, rng)
    texts, held_out = dict[str, str](), set[str]()
    for share in shares:
        texts[share] = "\n".join(unseen(topics[name], held_out) for name in dealt[share])
        held_out |= fingerprints(texts[share])
    modules = read_modules()
    # Held-out code: modules of moderate size, and none with a licence of its own.
    sizes = {n: len(s) for n, s in modules.items() if 3000 < len(s) < 12000 and "copyright" not in s.lower()}
    code = draw(sizes, {"eval": 32000, "valid": 16000}, rng)
    code_eval, code_valid = ("\n".join(modules[name] for name in code[share]) for share in ("eval", "valid"))
    held_out |= fingerprints(code_eval) | fingerprints(code_valid)
    seen = {name: source for name, source in modules.items() if name not in {*code["eval"], *code["valid"]}}
    prose = write_prose(dealt["train"], seen, held_out, rng)
    sources = [unseen(seen[name], held_out) for name in rng.sample(sorted(seen), len(seen) // 3)]
    held_out_lines = {line.strip() for text in (*texts.values(), code_eval) for line in text.splitlines()}
    leaked = held_out_lines & {line.strip() for text in (*prose, *sources) for line in text.splitlines()}
    if any(len(line) >= 60 for line in leaked):
        raise SystemExit(f"held-out text is in the training text: {max(leaked, key=len)}")

    tokenizer = train_tokenizer(prose + sources[::4])
    prose_ids, code_ids = (encode(tokenizer, EOT.join(documents)) for documents in (prose, sources))
    print(f"{len(prose_ids):,} tokens of prose, {len(code_ids):,} of code; held out: {dealt['eval']}, {code['eval']}")

    model = transformers.LlamaForCausalLM(CONFIG)
    seconds = train(model, prose_ids, encode(tokenizer, texts["valid"]), STEPS)
    ends = [0, tokenizer.convert_tokens_to_ids(IM_END)]
    generation = {"bos_token_id": 0, "eos_token_id": ends, "pad_token_id": 0}
    model.generation_config = transformers.GenerationConfig.from_dict(generation)
    (OUT / "adapter").mkdir(parents=True, exist_ok=True)
    model.save_pretrained(OUT)
    tokenizer.save_pretrained(OUT, save_jinja_files=False)
    amend(OUT / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")  # known to transformers 4 too
    for share in ("eval", "calib"):
        (OUT / f"{share}.txt").write_text(texts[share], encoding="utf-8")

    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    adapter_seconds = train(adapted, code_ids, encode(tokenizer, code_valid), ADAPTER_STEPS)
    adapted.save_pretrained(str(OUT / "adapter"), save_embedding_layers=False)
    (OUT / "adapter" / "README.md").unlink()  # peft's empty model card
    # peft wrote this machine's path to the base, and the projections in the order of a set.
    amend(OUT / "adapter" / "adapter_config.json", base_model_name_or_path="models/tiny", target_modules=PROJECTIONS)
    (OUT / "adapter" / "eval.txt").write_text(code_eval, encoding="utf-8")
    (OUT / "adapter" / "base_model.sha256").write_text(sha256((OUT / "model.safetensors").read_bytes()).hexdigest())

    print(json.dumps({**reload_and_measure(), "seconds": seconds, "adapter_seconds": adapter_seconds}, indent=2))


if __name__ == "__main__":
    main()
