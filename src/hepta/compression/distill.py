"""``hepta compress distill``: a small model that learns from a larger one beside the data; the loop of pretraining."""

from typing import Any

import torch

from hepta.compression.config import DistillConfig
from hepta.config import HeptaError, nearest
from hepta.console import warn
from hepta.data.shards import read_tokens_manifest
from hepta.evaluation.text import load_pair
from hepta.model.families import PRESETS, network_class, preset
from hepta.model.history import NGRAM_PRESETS
from hepta.model.load import ADAPTER, build_model, read_hepta_json, resolve_model, save_model
from hepta.model.network import Network
from hepta.objectives.causal import Causal
from hepta.objectives.distill import Distill, Mixture
from hepta.planning.rates import automatic_lr
from hepta.stage import claim, withdraw_if_refused
from hepta.tokenizer.load import Tokenizer, check_matches, load_tokenizer
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.pretrain import restore_weights, token_orders
from hepta.training.result import TrainingResult, already_done, finish
from hepta.training.samples import completion_prompts

VERSION = 1
MICRO = 16  # sequences of one pass when the teacher is scored


def distill(config: DistillConfig) -> TrainingResult:
    """Train a student on token shards and a teacher's distributions; the same call goes on after a stop.

    Raises:
        HeptaError: no such teacher or student, tokens made with another tokenizer, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    manifest = read_tokens_manifest(config.data)
    stage = claim(config, "compress distill", VERSION)
    if stage.state == "done":
        return already_done(stage, config)
    with withdraw_if_refused(stage):
        tokenizer = load_tokenizer(config.data / "tokenizer")
        teacher, facts = _teacher(config, tokenizer)
        model = _student(config, teacher, tokenizer)
        _check_length(config, {"teacher": teacher, "student": model})
        train_order, held_out = token_orders(config, manifest)
        provenance = {
            "verb": "compress distill", "teacher": stage.inputs["teacher"], "student": stage.inputs["student"],
            "data": manifest["digest"], "temperature": config.temperature, "weight": config.weight,
            "seed": config.seed, "sequence_length": config.sequence_length,
        }  # fmt: skip
        mixture = Mixture(config.temperature, config.weight, config.z_loss)
        job = Job(
            verb="distill", model=model, tokenizer=tokenizer, train=train_order, held_out=held_out,
            prompts=completion_prompts(config.sample_prompts, tokenizer),
            lr=automatic_lr(model.config) * (1.0 if config.student in PRESETS else 0.2),
            save=lambda place, dtype: save_model(model, place, tokenizer.path, dtype, provenance),
            restore=lambda place: restore_weights(model, place), objective=Distill(teacher=teacher, mixture=mixture),
        )  # fmt: skip
    outcome = train(config, stage, job)
    if held_out is not None:
        widths = bytes_per_token(tokenizer, teacher.config.vocab_size)
        facts |= evaluate(teacher, Causal(), held_out, widths, (), MICRO).row()
    report = {"sequences_per_epoch": train_order.sequences_per_epoch, "waste": train_order.waste}
    return finish(stage, job, outcome, report, teacher=facts)


def _teacher(config: DistillConfig, tokenizer: Tokenizer) -> tuple[Network, dict[str, Any]]:
    """The frozen teacher, and what is told of it."""
    name = config.teacher
    if name in PRESETS:
        raise HeptaError(f"teacher {name!r}: is a preset with fresh weights, which knows nothing; name a trained model")
    teacher, theirs, length = load_pair(name, None, "fp32", "cpu")
    if teacher.config.kind != "causal":
        raise HeptaError(f"teacher {name}: is {teacher.config.kind}; a teacher here predicts the next token")
    if theirs.encoding_sha256 != tokenizer.encoding_sha256:
        raise HeptaError(
            f"{config.data}: made with another tokenizer than the teacher's; build the tokens with --tokenizer {name}"
        )
    if config.sequence_length > length:
        warn(f"teacher {name}: learned from {length} tokens at a time; of later positions it knows little")
    facts = {"parameters": teacher.config.num_parameters, "sequence_length": length}
    return teacher.requires_grad_(False), facts


def _student(config: DistillConfig, teacher: Network, tokenizer: Tokenizer) -> Network:
    """A preset with fresh weights, a directory's model, or the teacher with fewer layers."""
    name, rows = config.student, teacher.config.vocab_size
    if name is None:
        assert config.keep_layers is not None, "the config asks for one of the two"
        return keep_layers(teacher, config.keep_layers)
    if name in PRESETS:
        shape = _with_sizes(preset(name, rows), config.shape)
        if name in NGRAM_PRESETS or shape.kind != "causal":
            kind = "counted" if name in NGRAM_PRESETS else shape.kind
            raise HeptaError(f"student {name}: is {kind}; a student learns to predict the next token")
        model = network_class(shape)(shape)
        model.init_weights(config.seed)
        return model
    place = resolve_model(name)
    if (place / ADAPTER).is_file():
        raise HeptaError(f"student {name}: is an adapter beside its base; choose the base")
    model = build_model(place)
    if model.config.kind != "causal" or not any(True for p in model.parameters() if p.is_floating_point()):
        raise HeptaError(f"student {name}: cannot learn to predict the next token; choose another model")
    check_matches(tokenizer, model.config.vocab_size, read_hepta_json(place).get("template"))
    if model.config.vocab_size != rows:
        raise HeptaError(f"student {name}: has {model.config.vocab_size} rows of vocabulary, the teacher {rows}")
    return model


def _with_sizes(shape: Any, changes: dict[str, int]) -> Any:
    known = [name for name in shape.sizes if name != "vocab_size"]
    for name in changes:
        if name not in known:
            raise HeptaError(f"unknown key 'shape.{name}'; {nearest(name, known)}")
    return shape.replace(**changes)


def _check_length(config: DistillConfig, models: dict[str, Network]) -> None:
    for role, model in models.items():
        longest = model.config.longest
        if longest is not None and config.sequence_length > longest:
            found = f"reads at most {longest} tokens, sequence_length is {config.sequence_length}"
            raise HeptaError(f"{role}: {found}; lower it")


def spaced_layers(count: int, kept: int) -> list[int]:
    """``kept`` of ``count`` layers, evenly spaced, the first and the last among them."""
    return [0] if kept == 1 else [round(i * (count - 1) / (kept - 1)) for i in range(kept)]


def keep_layers(teacher: Network, kept: int) -> Network:
    """A copy of a model with some of its layers, evenly spaced (DistilBERT's start, Sanh et al. 2019).

    Raises:
        HeptaError: the family is no stack of equal blocks, or has no more layers than that.
    """
    shape, blocks = teacher.config, teacher.blocks
    if not blocks:
        raise HeptaError("keep_layers: the teacher is no stack of equal blocks; name a preset with --student")
    if kept >= len(blocks):
        raise HeptaError(f"keep_layers {kept}: the teacher has {len(blocks)} layers; keep fewer")
    layers = spaced_layers(len(blocks), kept)
    changes: dict[str, Any] = {"num_layers": kept}
    if getattr(shape, "window_layers", None) is not None:
        changes["window_layers"] = tuple(shape.window_layers[i] for i in layers)
    shape = shape.replace(**changes)
    student = network_class(shape)(shape)
    with torch.no_grad():
        for mine, i in zip(student.blocks, layers, strict=True):
            mine.load_state_dict(blocks[i].state_dict())
        theirs, inside = dict(teacher.named_parameters()), {id(p) for b in student.blocks for p in b.parameters()}
        for name, parameter in student.named_parameters():
            if id(parameter) not in inside:
                parameter.copy_(theirs[name])
    return student
