"""``hepta sft``: teach a language model to answer, from conversations; all weights or low-rank adapters."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hepta.catalog.documents import language_by_script
from hepta.config import HeptaError
from hepta.console import warn
from hepta.data.conversations import Conversation, load_conversations
from hepta.data.sft import SftOrder
from hepta.model.adapters import (
    ADAPTER_WEIGHTS,
    PREFIX,
    adapter_parameters,
    attach_lora,
    lora_layers,
    merge_adapters,
    save_adapter,
)  # fmt: skip
from hepta.model.load import load_model, read_hepta_json, refuse_quantized, refuse_translator, resolve_model, save_model
from hepta.model.network import Network
from hepta.model.quantized import is_quantized
from hepta.model.whole import fill
from hepta.objectives.causal import Causal
from hepta.planning.rates import automatic_lr, automatic_tuning_lr
from hepta.stage import withdraw_if_refused
from hepta.tokenizer.load import check_matches, load_tokenizer
from hepta.training.config import SftConfig
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.pretrain import restore_weights
from hepta.training.processes import in_processes
from hepta.training.resolve import pick_device, precision_of
from hepta.training.result import TrainingResult, already_done, finish
from hepta.training.samples import Prompt, answer
from hepta.training.together import claim_together
from hepta.training.world import world

VERSION = 1
ASKED = 20  # held-out prompts asked in each language


def chat_prompt(messages: Sequence[dict[str, str]], tokenizer: Any, held_out: bool = False) -> Prompt:
    """A conversation up to its first question, as the model is asked it."""
    end = next(i for i, message in enumerate(messages) if message["role"] == "user") + 1
    text = messages[end - 1]["content"]
    ids = tokenizer.render(list(messages[:end]), add_generation_prompt=True)
    return Prompt(text, ids, "chat", language_by_script(text), held_out)


def conversation_orders(config: SftConfig, tokenizer: Any) -> tuple[SftOrder, SftOrder | None]:
    """The conversations in a run's order, and those held out; None, with a warning, where nothing is."""
    conversations = load_conversations(config.data, config.bad_rows)

    def order(split: Any) -> SftOrder:
        return SftOrder(
            conversations, tokenizer, config.sequence_length, config.seed, config.packing, config.overlong,
            split, config.validation, config.loss_on,
        )  # fmt: skip

    train = order("train")
    if config.validation > 0 and not train.held_out():
        warn("only one first message in all conversations: nothing is held out, so this run has no validation loss")
        return train, None
    return train, order("val") if config.validation > 0 else None


def _adapt(config: SftConfig, model: Network, base: Path, provenance: dict[str, Any]) -> tuple[Callable, Callable]:
    """Make the model trainable as ``method`` says; gives how to save it and how to read it back."""
    if config.method == "full":
        if lora_layers(model):
            merge_adapters(model)
        return (
            lambda place, dtype: save_model(model, place, base, dtype, provenance),
            lambda place: restore_weights(model, place),
        )
    if lora_layers(model):
        raise HeptaError(
            f"{base}: has adapters already; use method=full, which folds them in and trains all weights"
        )
    targets = None if config.targets == "all" else config.targets
    attach_lora(model, config.rank, config.alpha, targets, config.dropout, config.seed)

    def restore(place: Path) -> None:
        stored = load_file(place / ADAPTER_WEIGHTS)
        with torch.no_grad():
            for name, parameter in adapter_parameters(model).items():
                fill(parameter, stored[f"{PREFIX}{name}.weight"])

    return lambda place, dtype: save_adapter(model, place, base, provenance), restore


def language_check(job: Job, held_out: Sequence[Conversation]) -> dict[str, dict[str, int]]:
    """How many held-out questions are answered in their own language, greedily.

    Returns:
        language → ``asked`` (at most 20) and ``right``.
    """
    prompts: dict[str, list[Prompt]] = defaultdict(list)
    for conversation in held_out:
        prompt = chat_prompt(conversation.messages, job.tokenizer, held_out=True)
        known = prompt.lang == conversation.lang != "und"
        if known and len(prompts[prompt.lang]) < ASKED and prompt.ids not in [p.ids for p in prompts[prompt.lang]]:
            prompts[prompt.lang].append(prompt)
    counts = {}
    for lang, some in sorted(prompts.items()):
        right = sum(language_by_script(text) == lang for text in answer(job.model, job.tokenizer, some))
        counts[lang] = {"asked": len(some), "right": right}
    return counts


@in_processes
def sft(config: SftConfig) -> TrainingResult:
    """Tune a model on conversations; the same call goes on after a stop.

    Raises:
        HeptaError: no model, no conversations, a tokenizer without chat template, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    base = resolve_model(config.model)
    stage = claim_together(config, "sft", VERSION)
    if stage.state == "done":
        return already_done(stage, config)
    with withdraw_if_refused(stage):
        job, order, held_out = _prepare(config, base, stage.inputs["model"])
    outcome = train(config, stage, job)
    widths = bytes_per_token(job.tokenizer, job.model.config.vocab_size)
    micro = outcome.resolved.micro_batch
    learned = evaluate(job.model, Causal(), order, widths, job.answer_ends, micro, config.eval.tokens, world())
    p_stop = {"train": learned.overall.p_stop, "held_out": outcome.final.get("p_stop")}
    report = {"train": order.report, "held_out": held_out.report if held_out else {}}
    languages = language_check(job, order.held_out()) if held_out else {}
    return finish(stage, job, outcome, report, p_stop=p_stop, prompt_language=languages)


def _load(config: SftConfig, base: Path) -> Network:
    """The base, float32 where it learns; where adapters learn beside it, its matrices in the dtype of the products.

    Raises:
        HeptaError: integers where they cannot be, on a GPU or in several processes.
    """
    alone = world().size == 1  # else each process gathers parts, in the dtype of the products too
    half = config.method == "lora" and alone and precision_of(config) != "fp32"
    model = load_model(base, torch.float32, matrices=torch.bfloat16 if half else None)
    if is_quantized(model) and (not alone or torch.device(pick_device(config.device)).type != "cpu"):
        raise HeptaError(f"{base}: is quantised, which one process on a CPU tunes; use device=cpu without nproc")
    return model


def _prepare(config: SftConfig, base: Path, digest: str) -> tuple[Job, SftOrder, SftOrder | None]:
    refuse_translator(base)
    if config.method == "full":
        refuse_quantized(base)
    tokenizer = load_tokenizer(base)
    model = _load(config, base)
    if model.config.kind != "causal":
        kind = model.config.kind
        raise HeptaError(f"{base}: a {kind} model does not hold conversations; sft wants one that predicts next tokens")
    check_matches(tokenizer, model.config.vocab_size, read_hepta_json(base).get("template"))
    order, held_out = conversation_orders(config, tokenizer)
    provenance = {
        "verb": "sft", "method": config.method, "base": digest, "data": order.digest,
        "sequence_length": config.sequence_length,
    }  # fmt: skip
    save, restore = _adapt(config, model, base, provenance)
    prompts = [chat_prompt([{"role": "user", "content": text}], tokenizer) for text in config.sample_prompts]
    if held_out is not None:
        prompts += [chat_prompt(c.messages, tokenizer, held_out=True) for c in order.held_out_prompts().values()]
    job = Job(
        verb="sft", model=model, tokenizer=tokenizer, train=order, held_out=held_out, prompts=prompts,
        lr=(automatic_tuning_lr if config.method == "full" else automatic_lr)(model.config), save=save, restore=restore,
        answer_ends=tuple(tokenizer.stop_ids), whole_model=config.method == "full",
        objective=Causal(config.z_loss),
    )  # fmt: skip
    return job, order, held_out
