"""The tokenizer inside a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``: byte-level BPE only."""

from typing import Any

from hepta.config import HeptaError

CONTROL, USER_DEFINED = 3, 4  # token types of GGUF: structure of conversations; text that is never cut
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# How text is cut into pieces, by the name in tokenizer.ggml.pre; those names are llama.cpp's.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
    "llama-bpe": [_split(LLAMA3_PATTERN), _BYTES],
    "qwen2": [_split(QWEN2_PATTERN), _BYTES],
}


def tokenizer_files(fields: dict[str, Any], vocab_size: int, where: str) -> dict[str, Any]:
    """File name → JSON value of the two tokenizer files.

    Args:
        fields: the GGUF's metadata by key.
        vocab_size: rows of the embedding.
        where: file name for messages.

    Raises:
        HeptaError: no tokenizer, not byte-level BPE, an unknown way of cutting text, or another number of tokens.
    """
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise HeptaError(f"{where}: tokenizer of kind {kind!r} is not supported; 'gpt2' (byte-level BPE) is")
    if cut not in PRE_TOKENIZERS:
        raise HeptaError(
            f"{where}: tokenizer that cuts text like {cut!r} is not supported; like {', '.join(PRE_TOKENIZERS)} is"
        )
    tokens, merges = fields.get("tokenizer.ggml.tokens") or [], fields.get("tokenizer.ggml.merges") or []
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not len(tokens) == len(types) == vocab_size:
        raise HeptaError(f"{where}: {len(tokens)} tokens and {len(types)} token types for {vocab_size} embeddings")
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": types[i] == CONTROL}
        for i, token in enumerate(tokens) if types[i] in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    named = _named_tokens(fields, tokens, where)
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added, "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[cut]},
        "post_processor": _bos_first(fields, named),
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": cut == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }  # fmt: skip
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", **named, "clean_up_tokenization_spaces": False,
        "model_max_length": fields.get("llama.context_length", 1_000_000),
    }  # fmt: skip
    if template := fields.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {"tokenizer.json": spec, "tokenizer_config.json": config}


def _named_tokens(fields: dict[str, Any], tokens: list[str], where: str) -> dict[str, str]:
    """``bos_token``, ``eos_token`` … as text, for those that the metadata name."""
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = fields.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            if not 0 <= token < len(tokens):
                raise HeptaError(f"{where}: its {name} token is number {token} of {len(tokens)}")
            named[f"{name}_token"] = tokens[token]
    return named


def _bos_first(fields: dict[str, Any], named: dict[str, str]) -> dict[str, Any] | None:
    """The post-processor of a tokenizer that puts BOS before every text."""
    if not fields.get("tokenizer.ggml.add_bos_token") or "bos_token" not in named:
        return None
    bos, number = named["bos_token"], fields["tokenizer.ggml.bos_token_id"]
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, second],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }  # fmt: skip
