"""Reports as a run would write them, and one that means harm: what test_report.py shows in every form."""

from __future__ import annotations

import copy
from typing import Any

from exporter.report.document import VERSION
from exporter.report.result import Figure, Gate, Result
from exporter.report.winners import winners
from exporter.types import FEATURES, GENERATION, Status

HOSTILE = "a|b`c*d_ <script>alert(1)</script> {{7*7}} {% raw %} \"q\" 'p' \x00\x1b[31m\x07\ud800 @everyone </title> ]]>"


QUANTIZATION: dict[str, Any] = {
    "policy": {},
    "given": False,
    "schemes": {"int4 in groups of 32 with zero points": 180, "int8 in groups of 32": 30, "float": 1},
    "others": {f"model.layers.{number}.mlp.down_proj": "int8 in groups of 32" for number in range(31)},
    "loss": 0.031,
    "budget": 0.038,
    "unit": "KL, nats",
    "tokens": 2048,
    "cost": 91_200_000.0,
    "cost_unit": "bytes",
    "sensitivity": [[["model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj"], 0.021]],
    "history": ["GPTQ over 6144 tokens rounded 210 linear layers"],
    "attempts": [
        {"budget": 0.038, "loss": 0.031, "passed": False, "ppl_ratio": 1.0871, "kl": 0.05, "top1": 0.89, "cosine": None}
    ],
    "seconds": 211.4,
}


PRUNE: dict[str, Any] = {
    "steps": [
        {"method": "depth", "before": 30, "after": 28, "parameters_before": 134_515_008},
        {
            "method": "wanda", "amount": "2:4", "weights": 100_000_000, "zeros": 50_000_000, "share": 0.5, "layers": {},
            "two_of_four": 196, "dense": {"lm_head": "the embedding shares its weights"},
        },
    ],
    "parameters_before": 134_515_008,
    "parameters_after": 127_000_000,
    "text": "calib.txt",
}  # fmt: skip


def row(
    target: str, precision: str, mb: float, ratio: float, se: float, kl: float, top1: float, speed: float
) -> dict[str, Any]:
    gates = [
        Gate(
            "max_ppl_ratio", 1.05, ratio, ratio + 2 * se <= 1.05, "" if ratio + 2 * se <= 1.05 else "beyond the limit"
        ),
        Gate("max_kl", 0.05, kl, kl <= 0.05),
        Gate("min_top1", 0.9, top1, top1 >= 0.9),
        Gate("max_size_ratio", 1.01, mb / 538.1, mb / 538.1 <= 1.01),
    ]
    return Result(
        target,
        precision,
        path=f"{target}-{precision}",
        artifact={
            "bytes": int(mb * 1e6),
            "size_ratio": mb / 538.1,
            "tokenizer_bytes": 2_100_000,
            "engine": "onnxruntime 1.31 CPUExecutionProvider",
        },
        quality={
            "ppl": Figure(18.31 * ratio, 0.22),
            "ppl_ratio": Figure(ratio, se),
            "kl": Figure(kl, kl / 20),
            "top1": Figure(top1, 0.002),
            "logit_error": Figure(kl * 30),
        },
        speed={
            "prefill_tokens_per_s": speed * 9.3,
            "decode_tokens_per_s": speed,
            "latency_ms": {
                "prefill": {"p50": 2e4 / speed, "p90": 2.1e4 / speed, "p99": 2.6e4 / speed},
                "decode": {"p50": 1e3 / speed, "p90": 1.1e3 / speed, "p99": None},
            },
        },
        memory={"peak_rss_bytes": int(mb * 1.4e6 + 2.2e8)},
        build={"export_s": 12.5, "quantization": QUANTIZATION if precision == "int4-weight" else None},
        gates=[] if (target, precision) == ("torch", "fp32") else gates,
    ).to_json()


def unbuilt(target: str, precision: str, status: Status, reason: str) -> dict[str, Any]:
    return Result(target, precision, status, reason).to_json()


SKIPPED = "coremltools runs its models on macOS only; on a Mac: pip install 'exporter[coreml]' and exporter bench out/"
ROWS = [
    row("torch", "fp32", 538.1, 1.0, 0.0, 0.0, 1.0, 14.2),
    row("onnx", "fp32", 539.6, 1.0, 0.00001, 2.1e-7, 0.99995, 22.8),
    row("onnx", "int8-weight", 164.2, 1.0124, 0.0011, 0.0041, 0.9731, 41.7),
    row("onnx", "int4-weight", 118.7, 1.0871, 0.0042, 0.0512, 0.8893, 58.9),
    row("gguf", "q8_0", 144.8, 1.0009, 0.0004, 0.0006, 0.9902, 63.1),
    row("gguf", "q4_k_m", 105.5, 1.0312, 0.0021, 0.0193, 0.9357, 88.4),
    row("litert", "int8-dynamic", 140.1, 1.0127, 0.0013, 0.0044, 0.9722, 39.5),
    unbuilt("tensorrt", "fp16", "failed", "the child process died: SIGSEGV\n" + "frame in libnvinfer.so\n" * 60),
    unbuilt("coreml", "fp16", "skipped", SKIPPED),
]


MERGE: dict[str, Any] = {
    "way": "memory",
    "dtype": "keep",
    "history": ["merged LoRA support-v3 (float32, PEFT, in memory)"],
    "adapters": [{"path": "support-v3", "tensors": 420, "identity": "base identity not verifiable"}],
    "proof": {
        "on": "probe tokens",
        "steps": [{"max_error": 1.2e-5, "max_error_limit": 1.8e-3, "kl": 4.7e-13, "kl_limit": 1e-6}],
        "saved": {"dtype": "bfloat16", "max_error": 0.02, "max_error_limit": 2.1, "kl": 3e-5, "kl_limit": 0.02},
        "probe_kl": None,
        "other_base": {"kl": 0.031, "max_error": 1.9, "largest": 18.2},
    },
    "merged_into": "dequantized",
    "seconds": 21.4,
    "peak_rss_bytes": 1_180_000_000,
}


DISTILL: dict[str, Any] = {
    "steps": 300, "student": None, "temperature": 2.0, "alpha": 0.5, "features": 0.0, "lr": 1e-4, "batch": 4,
    "accumulate": 2, "window": 512, "bf16": False, "patience": 3, "seed": 0, "save": 50, "text": "prose.txt",
    "examples": 400, "examples_held_out": 16, "tokens": 204800, "hard": True, "seconds": 700.0, "steps_done": 200,
    "measure": "KL to the teacher (temperature 2)", "best_step": 50, "zeros_held": 1000, "before": 0.4, "after": 0.1,
    "curve": [[step, 3 - step / 100, 0.4, 3.2, None] for step in range(1, 201)], "teacher_name": "llama", "cut": None,
    "held_out": [[0, 0.4], [50, 0.1], [100, 0.12], [150, 0.13], [200, 0.14]],
}  # fmt: skip
QAT: dict[str, Any] = {
    "steps": 200,
    "scheme": "int4-weight",
    "lr": 1e-4,
    "batch": 4,
    "window": 512,
    "kd": 0.9,
    "lora": None,
    "checkpointing": False,
    "seed": 7,
    "seconds": 311.8,
    "tokens": 51_200,
    "layers": 210,
    "shared": ["lm_head"],
    "curve": [[step, 0.5 + 0.2 / (1 + step / 20), 0.25 / (1 + step / 20), 2.9] for step in range(200)],
}


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the winners that its rows have now, each with a line that runs it."""
    report["winners"] = [one | {"run": f"try-it out/{one['folder']} --say 'a b'"} for one in winners(report)]
    return report


def generation(rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    report = {
        "schema_version": VERSION,
        "name": "smollm2-135m-support-lora",
        "exporter_version": "0.1.0",
        "created": "2026-11-21T22:00:00+00:00",
        "model": {
            "source": "/home/ada/models/smollm2-135m-support-lora",
            "sha256": "9f2c4d" * 10 + "abcd",
            "task": GENERATION,
            "parameters": 134_515_008,
            "history": ["merged adapter support-v3 (rank 16, 30 layers)", "pruned 0 heads"],
            "notes": ["its weights lie on a 4-bit grid: 4-bit formats keep more of it than of a usual model"],
            "merge": copy.deepcopy(MERGE),
            "prune": copy.deepcopy(PRUNE),
            "distill": copy.deepcopy(DISTILL),
            "qat": copy.deepcopy(QAT),
        },
        "evaluation": {
            "text": "wikitext-2 test",
            "tokens_scored": 16_384,
            "tokens": 16_385,
            "window": 512,
            "stride": 256,
            "reference_ppl": 18.3104,
            "reference_ppl_se": 0.2211,
            "reference": "torch:fp32",
            "kl": "top-256 plus rest: a lower bound",
        },
        "machine": {
            "cpu": "AMD EPYC 9R14",
            "cores": 8,
            "threads": 4,
            "memory_bytes": 33_285_996_544,
            "load_average": [0.42, 0.61, 0.58],
            "gpu": None,
            "os": "Debian GNU/Linux 12",
            "python": "3.12.8",
            "versions": {"torch": "2.11.0", "transformers": "5.2.0", "onnxruntime": "1.31.0"},
        },
        "results": copy.deepcopy(ROWS if rows is None else rows),
        "passed": False,
        "exit_status": 4,
    }
    return judged(report)


def encoder() -> dict[str, Any]:
    report = generation(ROWS[:4])
    report["name"], report["model"]["task"] = "all-minilm-l6-v2", FEATURES
    report["evaluation"].update(reference_ppl=None, reference_ppl_se=None, kl=None, window=None, stride=None)
    for index, result in enumerate(report["results"]):
        for name in ("ppl", "ppl_ratio", "kl", "top1"):
            result["quality"][name] = vars(Figure())
        cosine = 1 - 0.0031 * index**2
        result["quality"]["cosine"] = vars(Figure(cosine, 0.0002 * index))
        result["speed"]["decode_tokens_per_s"] = None
        del result["speed"]["latency_ms"]["decode"]
        result["gates"] = [vars(Gate("min_cosine", 0.98, cosine, cosine > 0.98))]
    return judged(report)


def hostile() -> dict[str, Any]:
    report = generation(ROWS[:3])
    report["name"] = HOSTILE
    report["model"].update(source=HOSTILE, history=[HOSTILE], notes=[HOSTILE], sha256=None, parameters=None)
    report["model"]["merge"]["adapters"][0].update(path=HOSTILE, identity=HOSTILE)
    report["results"][2]["build"]["quantization"] = {
        **QUANTIZATION, "schemes": {HOSTILE: 1}, "others": {HOSTILE: HOSTILE}, "history": [HOSTILE], "unit": HOSTILE,
        "sensitivity": [[[HOSTILE, HOSTILE], 0.1]],
    }  # fmt: skip
    report["model"]["prune"].update(text=HOSTILE)
    report["model"]["prune"]["steps"][1].update(method=HOSTILE, dense={HOSTILE: HOSTILE})
    report["model"]["distill"].update(text=HOSTILE, teacher_name=HOSTILE, measure=HOSTILE)
    report["model"]["qat"].update(scheme=HOSTILE, shared=[HOSTILE], kd=1.0, curve=QAT["curve"][:1])
    report["evaluation"]["text"] = HOSTILE
    report["machine"]["versions"] = {HOSTILE: HOSTILE}
    report["results"][1].update(target=HOSTILE, path=HOSTILE, reason=HOSTILE)
    report["results"][1]["artifact"]["engine"] = HOSTILE
    report["results"][2]["gates"][0].update(name=HOSTILE, passed=False, detail=HOSTILE)
    for winner in judged(report)["winners"]:
        winner |= {"run": HOSTILE + "x" * 900}
    report["results"].append(unbuilt(HOSTILE, "fp32", "failed", HOSTILE + "x" * 5000))
    report["results"].append(unbuilt("x" * 80, "fp32", "skipped", HOSTILE))
    return report


def nothing() -> dict[str, Any]:
    """Every number that may be null is null."""
    report = generation([Result("torch", "fp32").to_json(), Result("onnx", "fp32", reason="timed out").to_json()])
    for section in ("evaluation", "machine"):
        report[section] = dict.fromkeys(report[section])
    report["model"].update(sha256=None, parameters=None, history=[], notes=[], merge=None, qat=None)
    return report


REPORTS = {"generation": generation, "encoder": encoder, "hostile": hostile, "nothing": nothing}
