"""A recipe's output folder in the stages' own formats, small and with hostile text, for tests of the page."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }} </pre>\x00\u202e"
)
PROMPTS = ["今天天气怎么样？", "I love programming.", "The cat sat on the mat."]


def scores(bpb: float, xz: float) -> dict[str, Any]:
    return {
        "documents": 90, "tokens": 9000, "bytes": 30000, "characters": 29000, "words": 5000, "empty_documents": 0,
        "nats_per_token": 4.2, "nats_per_token_sliding": 4.0, "perplexity_per_token": 66.7,
        "perplexity_per_token_sliding": 54.6, "perplexity_per_document": 70.0, "perplexity_per_word": 900.0,
        "bits_per_byte": bpb, "bits_per_byte_sliding": bpb - 0.05, "bits_per_character": 2.0, "accuracy": 0.27,
        "xz_bits_per_byte": xz,
    }  # fmt: skip


def _manifest(path: Path, verb: str, facts: dict[str, Any], seconds: float, minute: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 1, "verb": verb, "version": 1, "fingerprint": "f", "identity": {}, "inputs": {}, "budget": {},
        "digest": "d", "finished": f"2026-01-01T00:{minute:02d}:00Z", "seconds": seconds, "facts": facts,
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _training(path: Path, verb: str, minute: int, before: float, after: float, samples: list[dict[str, Any]]) -> None:
    more: dict[str, Any] = {"p_stop": 0.96} if verb == "sft" else {}
    asked = {"en": {"right": 10, "asked": 10}, "zh": {"right": 9, "asked": 10}} if verb == "sft" else {}
    facts = {
        "parameters": 3_170_496, "trained_parameters": 3_170_496, "steps": 200, "tokens": 3_200_000,
        "tokens_per_second": 20_000.0, "mfu": 0.31, "seconds": 160.0, "uniform_loss": math.log(8192),
        "weights_sha256": "ab" * 32, "peak_memory_bytes": 2_100_000_000, "skipped_steps": 1, "precision": "bf16",
        "compiled": True, "lr": 3.9e-3,
        "before": {"val_loss": before, "val_accuracy": 0.0, "val_bpb": {"all": 3.6, "en": 3.1, "zh": 4.1}},
        "final": {"train_loss": after - 0.1, "val_loss": after, "val_accuracy": 0.27,
                  "val_bpb": {"all": 1.7, "en": 1.6, "zh": 1.9}, **more},
        "data_report": {"conversations": 2000, "dropped": {"empty answer": 3, "overlong": 11}} if verb == "sft" else {},
        "prompt_language": asked, "p_stop": {"train": 0.97, "held_out": 0.96} if verb == "sft" else {},
    }  # fmt: skip
    _manifest(path, verb, facts, 170.0, minute)
    rows: list[dict[str, Any]] = [
        {"step": s, "epoch": s / 50, "tokens_seen": s * 16384, "loss": after + (before - after) * math.exp(-s / 40),
         "grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 20_000, "mfu": 0.3, "memory_bytes": 2e9, "seconds": s}
        for s in range(1, 201)
    ]  # fmt: skip
    rows[50]["loss"] = None
    for step in (0, 100, 200):
        loss = before if step == 0 else after
        bpb = {"all": loss / 2, "en": loss / 3, "zh": loss / 2}
        rows.append({"step": step, "val_loss": loss, "val_accuracy": 0.2, "val_bpb": bpb})
    rows.append({"step": 200, "epoch": 4.0, "epoch_loss": after})
    _lines(path / "metrics.jsonl", rows)
    _lines(path / "samples.jsonl", samples)
    _lines(path / "journal.jsonl", [{"step": 7, "event": "skip", "reason": "loss is not finite", "documents": ["d1"]}])


def said(step: int, verb: str, prompt: str, text: str, held_out: bool = False) -> dict[str, Any]:
    lang = "zh" if any("\u4e00" <= c <= "\u9fff" for c in prompt) else "en"
    kind = "completion" if verb == "pretrain" else "chat"
    row = {"step": step, "stage": verb, "prompt": prompt, "text": text, "kind": kind, "lang": lang}
    return {**row, "held_out": held_out}


def make_demo(root: Path) -> Path:
    """Write ``root`` as ``hepta run recipes/demo.yaml`` leaves it."""
    root.mkdir(parents=True)
    ids = [("raw", "fetch"), ("corpus", "corpus"), ("tok", "tokenizer"), ("tokens", "tokens"), ("base", "pretrain"),
           ("score", "eval"), ("chat", "sft")]  # fmt: skip
    place = {name: str(root / name) for name, _ in ids}
    keys: dict[str, dict[str, Any]] = {
        "raw": {"names": ["wiki-en", "sanguo-zh"]}, "corpus": {"input": [place["raw"]]},
        "tok": {"input": place["corpus"]}, "tokens": {"input": place["corpus"], "tokenizer": place["tok"]},
        "base": {"data": place["tokens"], "model": "nano"},
        "score": {"model": place["base"], "text": place["corpus"]},
        "chat": {"model": place["base"], "data": [f"alpaca={place['raw']}/alpaca-zh"]},
    }  # fmt: skip
    stages = [{"id": name, "verb": verb, "output": place[name], **keys[name]} for name, verb in ids]
    recipe = {"name": "demo", "seed": 7, "note": "It cannot reason. 它不会推理。", "prompts": PROMPTS, "stages": stages}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    (root / "environment.json").write_text(json.dumps({
        "python": "3.11.7", "platform": "Linux", "machine": "x86_64", "cores": 2,
        "versions": {"hepta": "0.1.0", "torch": "2.13.0"}, "command": ["hepta", "run", "recipes/demo.yaml"],
    }))  # fmt: skip
    _lines(root / "runs.jsonl", [{"name": "demo", "seconds": 600.0, "stages": [
        {"id": name, "verb": verb, "seconds": 60.0, "skipped": name == "raw"} for name, verb in ids
    ]}])  # fmt: skip
    _manifest(root / "raw", "fetch", {"names": {
        "wiki-en": {"rows": 10033, "characters": 4_100_000, "licence": "CC BY-SA 3.0", "package": "p 1.0"},
        "sanguo-zh": {
            "rows": 120, "characters": 600_000, "licence": "public domain", "package": "q 2.0", "caution": "mind",
        },
    }}, 12.0, 1)  # fmt: skip
    _manifest(root / "corpus", "corpus", {
        "read": 10153, "kept": 9800, "dropped": 350, "quarantined": 3, "characters": {"kept": 4_500_000},
        "by_stage_source_lang": [
            {"stage": stage, "source": source, "lang": lang, "documents": n, "characters": n * 400}
            for source, lang, counts in (("wiki-en", "en", (10033, 9690, 340)), ("sanguo-zh", "zh", (120, 110, 10)))
            for stage, n in zip(("read", "kept", "dropped"), counts, strict=True)
        ],
        "reasons": {"near-duplicate": 200, "too-short": 140, HOSTILE: 10},
        "splits": {"train": {"documents": 9500, "characters": 4_300_000},
                   "val": {"documents": 150, "characters": 80_000}, "test": {"documents": 150, "characters": 80_000}},
        "languages": {"en": 9690, "zh": 110}, "warnings": ["source sanguo-zh: 2 files without text"],
    }, 21.0, 2)  # fmt: skip
    _manifest(root / "tok", "tokenizer", {
        "vocab_size": 8192, "padded_size": 8192, "bytes_per_token": {"en": 4.1, "zh": 4.4},
        "unique_piece_ratio": {"en": 0.1, "zh": 0.2}, "longest_tokens": [" international", "诸葛亮曰", HOSTILE],
    }, 15.0, 3)  # fmt: skip
    _manifest(root / "tokens", "tokens", {"splits": {
        "train": {"documents": 9500, "tokens": 1_500_000, "bytes": 6_300_000},
        "val": {"documents": 150, "tokens": 9000, "bytes": 33000},
    }}, 5.0, 4)  # fmt: skip
    _training(root / "base", "pretrain", 9, math.log(8192), 4.2, [
        said(step, "pretrain", prompt, text)
        for step, text in ((0, "xq zz"), (100, "mid"), (200, "of the city of the"))
        for prompt in PROMPTS
    ])  # fmt: skip
    _manifest(root / "score", "eval", {
        "model": "m", "text": "t", "split": "test", "parameters": 3_170_496, "vocabulary": 8192, "sequence_length": 512,
        "precision": "fp32", "uniform_loss": math.log(8192), "total": scores(1.8, 2.4),
        "by_language": {"en": scores(1.7, 2.3), "zh": scores(2.6, 2.5)}, "by_source": {},
        "notes": ["2 documents without text"], "seconds": 5.0, "output": "o",
    }, 6.0, 10)  # fmt: skip
    question = "什么是光合作用？"
    _training(root / "chat", "sft", 13, 5.0, 3.1, [
        *[said(step, "sft", prompt, text) for step, text in ((0, "???"), (200, HOSTILE)) for prompt in PROMPTS],
        said(0, "sft", question, "的的的", held_out=True),
        said(200, "sft", question, "光合作用是植物……", held_out=True),
    ])  # fmt: skip
    return root
