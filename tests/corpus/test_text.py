"""Repair, language, rules: what is done to a text, and what must never be."""

import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.conftest import NO_RULES, rows

from hepta.config import HeptaError
from hepta.config import build as make_config
from hepta.corpus.characters import Counts
from hepta.corpus.config import CorpusConfig, RulesConfig
from hepta.corpus.repair import repair
from hepta.corpus.rules import RULES, judge, threshold_of
from hepta.corpus.shingles import shingle
from hepta.corpus.signals import SIGNALS, measure

FULL_WIDTH = "，。！？；：、（）《》「」『』“”‘’…—～ＡＢＣ１２３　％"


def texts_of(path: Path, key: str = "text") -> list[str]:
    return [json.loads(line)[key] for line in path.read_text(encoding="utf-8").splitlines()]


# --- repair (trap C11) ---


def test_clean_chinese_keeps_its_typography(sanguo_zh, alpaca_zh):
    """trap C11: full-width punctuation is counted before and after."""
    for text in [*texts_of(sanguo_zh)[:40], *texts_of(alpaca_zh, "output"), FULL_WIDTH, "“你好”，ＡＢＣ！ﬁ…"]:
        mended, _ = repair(text)
        assert [mended.count(mark) for mark in FULL_WIDTH] == [text.count(mark) for mark in FULL_WIDTH]


@pytest.mark.parametrize("clean", ["It’s “fine” — really…", "你好，世界。今天好！", "naïve café £5", "😀 ok", "привет"])
@pytest.mark.parametrize("misread", ["cp1252", "latin-1"])
def test_mojibake_is_mended(clean, misread):
    """trap C11: UTF-8 that was read as something else, wherever that something else can hold it."""
    data = clean.encode()
    try:
        broken = data.decode(misread)
    except UnicodeDecodeError:
        pytest.skip("these bytes are not valid in that encoding")
    assert repair(broken) == (clean, True)
    assert repair(clean) == (clean, False)


def test_mended_text_reaches_the_corpus_and_is_counted(corpus):
    clean = "The café on the corner was closed — it’s open again now, and we are all very glad of it."
    done = corpus([clean.encode().decode("cp1252", "ignore")])
    assert rows(Path(done.output))[0]["text"] == clean
    assert done.facts["repaired"] == 1


def test_clean_text_is_kept_byte_for_byte(corpus, sanguo_zh, wiki_en):
    """trap C12: nothing that was normalised for comparing comes back into a text."""
    given = texts_of(sanguo_zh)[:5] + texts_of(wiki_en)[:50]
    done = corpus(given)
    assert sorted(row["text"] for row in rows(Path(done.output))) == sorted(given)


# --- language (trap C10) ---

LANGUAGES = [
    ("en", "The committee met on Tuesday to talk about the new bridge over the river."),
    ("zh", "委员会星期二开会，讨论河上新桥的事情。大家都同意尽快动工。"),
    ("zh", "委員會星期二開會，討論河上新橋的事情。大家都同意盡快動工。"),
    ("yue", "我哋今日唔使返工，佢話嚟咗之後先至食飯，你嘅嘢喺邊度呀？"),
    ("ja", "日本国憲法は一九四七年五月三日に施行された。戦争放棄、国民主権、基本的人権の尊重を三大原則とする。"),
    ("ko", "위원회는 화요일에 모여 강 위의 새 다리에 대해 이야기했다."),
    ("fr", "Le comité s'est réuni mardi pour parler du nouveau pont sur la rivière qui traverse la ville."),
    ("nl", "De man was in de stad en we had of over het water gepraat; daarna gingen zij samen naar huis toe. " * 2),
    ("de", "Der Ausschuss traf sich am Dienstag, um in der Stadt die neue Art von Bau an dem Fluss zu beraten. " * 2),
    ("ru", "Комитет собрался во вторник, чтобы обсудить новый мост через реку."),
    ("zh", "使用 Python 的 pandas 库读取 CSV 文件，然后调用 DataFrame 的 groupby 方法进行统计。"),
    ("und", "12345 67890"),
    ("und", "😀🎉"),
]


@pytest.mark.parametrize(("lang", "text"), LANGUAGES)
def test_language_of_real_sentences(lang, text):
    """trap C10."""
    assert measure([text], [False])[0] == [lang]


def test_a_page_that_begins_in_english_and_goes_on_in_chinese_is_chinese(sanguo_zh):
    """trap C10: the first 80 characters are not the document."""
    head = "Home | About us | Contact | Log in. The history of the three kingdoms, chapter one. "
    assert len(head) >= 80
    assert measure([head + texts_of(sanguo_zh)[0][:600]], [False])[0] == ["zh"]


def test_a_chinese_page_with_english_at_every_sampled_place_is_chinese(sanguo_zh):
    """trap C10: the share of Han characters counts, not only the sample a model reads."""
    english = "This part of the page is a menu in English, with links to all of the other pages of it. " * 2
    chinese = texts_of(sanguo_zh)[0][:1500]
    assert measure([english + chinese + english + chinese + english], [False])[0] == ["zh"]


def test_a_long_page_is_judged_by_its_middle_and_end_too():
    """trap C10: a French page under an English menu."""
    french = "Le comité s'est réuni mardi pour parler du nouveau pont sur la rivière qui traverse la ville. " * 30
    assert measure(["Home page of the town and the people of it. " + french], [False])[0] == ["fr"]


def test_traditional_and_simplified_are_told_apart(corpus):
    done = corpus([LANGUAGES[1][1], LANGUAGES[2][1]], **NO_RULES)
    scripts = {row["script"] for row in rows(Path(done.output), "signals")}
    assert scripts == {"hans", "hant"}


def test_language_identification_never_opens_a_connection(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    from hepta.corpus import language

    monkeypatch.setattr(socket, "socket", refuse)
    language._detector.cache_clear()
    assert measure([LANGUAGES[6][1]], [False])[0] == ["fr"]


# --- measuring (trap C8) ---


def test_measuring_does_not_depend_on_neighbours_or_batches(wiki_en, sanguo_zh):
    """trap C8: one by one, all at once, and shuffled."""
    texts = ["", "a", "你好", "😀", "...", "two words", " lead", "trail "]
    texts += [*texts_of(wiki_en)[:60], *texts_of(sanguo_zh)[:3]]
    languages, signals, shingles = measure(texts, [False] * len(texts))
    signatures = shingles.signatures()
    order = list(range(len(texts)))
    random.Random(5).shuffle(order)
    for batch in [[index] for index in order] + [order[:17], order[17:]]:
        own_languages, own_signals, own_shingles = measure([texts[i] for i in batch], [False] * len(batch))
        assert own_languages == [languages[i] for i in batch]
        assert own_signals == [signals[i] for i in batch]
        assert (own_shingles.signatures() == signatures[batch]).all()


def test_counts_equal_counting_by_hand():
    text = "Hello, 世界! 12 たこ #tag don't\nnaïve"
    counts = Counts(["x y", text, ""])
    by_hand = {"chars": len(text), "han": 2, "kana": 2, "digits": 2, "latin": 5 + 3 + 4 + 5, "symbols": 1}
    assert {name: int(getattr(counts, name)[1]) for name in by_hand} == by_hand
    assert counts.runs.tolist() == [2, 7, 0]  # Hello 世界 たこ tag don t naïve


def test_word_shingles_equal_python_sets(wiki_en):
    for text in texts_of(wiki_en)[:50]:
        plain = "".join(c if c.isalpha() and c.isascii() else " " for c in text.lower()).split()
        joined = " ".join(plain)
        own = shingle([joined])
        assert len(own.set_of(0)) == max(len({tuple(plain[i : i + 5]) for i in range(len(plain) - 4)}), 1)


# --- rules (trap C9) ---


@pytest.fixture(scope="module")
def good(wiki_en, sanguo_zh, alpaca_zh) -> dict[str, list[str]]:
    """200 good paragraphs of each language: encyclopedic, classical, modern."""
    lines = [line.strip() for text in texts_of(sanguo_zh)[:40] for line in text.split("\n")]
    classical = [line for line in lines if len(line) >= 40]
    answers = texts_of(alpaca_zh, "output")
    modern = [text for text in answers if len(text) >= 60 and "```" not in text and "|" not in text]
    return {"en": texts_of(wiki_en)[:200], "zh": classical[:100] + modern[:100]}


def verdicts(text_list: list[str], lang: str) -> dict[str, int]:
    """How many texts each rule drops, judged as ``lang``."""
    _, signals, _ = measure(text_list, [False] * len(text_list))
    columns = {name: np.array([row[name] for row in signals]) for name in SIGNALS}
    failed = judge(RulesConfig(), np.array([lang] * len(text_list)), columns)
    found = {rule.name: 0 for rule in RULES}
    for reasons in failed.values():
        for reason in reasons:
            found[reason.rule] += 1
    return found


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_rule_keeps_good_paragraphs(good, lang):
    """trap C9: each rule keeps at least 95 % of 200 good paragraphs of each language."""
    assert len(good[lang]) == 200
    assert {rule: count for rule, count in verdicts(good[lang], lang).items() if count > 10} == {}


SPAM_EN = "shoes cheap discount outlet online store brand leather sale boots fashion men " * 2
BAD = {
    ("min_words", "en"): "Read on.",
    ("min_words", "zh"): "点击进入",
    ("min_mean_run", "en"): "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    ("min_mean_run", "zh"): "优 惠 折 扣 特 价 正 品 包 邮 批 发 代 理 加 盟",
    ("max_mean_run", "en"): "aaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbb cccccccccccccccccccc ddddddddddddddddd",
    ("min_letter_share", "en"): "12:30 | 14:50 | 16:10 | 18:20 | Monday | 20:15 | 21:45 | 23:05 |",
    ("min_letter_share", "zh"): "价格：１２３．４５　￥　６７８．９０　￥　（１２）（３４）－－－－－－合计",
    ("max_digit_share", "en"): "Call 555-0100 or 555-0101 or 555-0102 or 555-0103 now and ask",
    ("max_digit_share", "zh"): "电话13800000000，13900000000，传真010-88888888转分机",
    ("max_symbol_share", "en"): "#love #summer #sun #beach #happy #fun #best #life #day #night",
    ("max_symbol_share", "zh"): "★★★好评★★★包邮★★★正品★★★代购★★★特价★★★",
    ("min_end_share", "en"): "Home\nAbout\nProducts\nNews of the day\nContact\nSite map",
    ("min_end_share", "zh"): "首页\n关于我们\n产品中心\n新闻动态\n联系方式\n网站地图",
    ("max_bullet_share", "en"): "- red\n- green\n- blue\n- yellow\n- orange",
    ("max_bullet_share", "zh"): "- 红色\n- 绿色\n- 蓝色\n- 黄色\n- 橙色",
    ("max_repeated_line_share", "en"): "Buy it now and save.\nBuy it now and save.\nBuy it now and save.\nThe end.",
    ("max_repeated_line_share", "zh"): "立即购买，马上省钱。\n立即购买，马上省钱。\n立即购买，马上省钱。\n完。",
    ("max_repeated_shingle_share", "en"): "the best price of all is here " * 12,
    ("max_repeated_shingle_share", "zh"): "全网最低价就在这里，" * 12,
    ("min_function_share", "en"): SPAM_EN,
    ("min_function_share", "zh"): "连衣裙女装夏季新款韩版修身显瘦短袖雪纺碎花长裙中裙牛仔裤",
    ("max_boilerplate_share", "en"): "Sign up for our newsletter\nClick here to read more\nAll rights reserved.",
    ("max_boilerplate_share", "zh"): "上一篇：无\n下一篇：无\n版权所有，转载请注明出处\n点击查看更多",
}


@pytest.mark.parametrize(("rule", "lang"), BAD)
def test_every_rule_catches_its_bad_example(rule, lang):
    """trap C9."""
    assert verdicts([BAD[rule, lang]], lang)[rule] == 1


def test_every_rule_of_each_language_has_a_bad_example():
    thresholds = RulesConfig().model_dump()
    pairs = [(rule.name, lang) for rule in RULES for lang in ("en", "zh")]
    assert {pair for pair in pairs if threshold_of(thresholds, *pair) is not None} == set(BAD)


def test_other_languages_are_judged_by_neutral_rules_only(corpus):
    """A language nobody wrote rules for is not judged by English ones."""
    done = corpus([LANGUAGES[5][1], LANGUAGES[4][1], "Ja", "Да!"])
    assert done.kept == 4


def test_one_threshold_changes_alone_and_null_switches_a_rule_off():
    config = make_config(CorpusConfig, {"input": ["x"], "output": "y", "rules": {"min_words": {"en": 3, "zh": None}}})
    assert config.rules.min_words == {"en": 3, "zh": None, "*": 1}
    with pytest.raises(HeptaError, match="min_words"):
        make_config(CorpusConfig, {"input": ["x"], "output": "y", "rules": {"min_wrods": {"en": 3}}})


def test_languages_can_be_chosen(corpus):
    done = corpus([text for _, text in LANGUAGES], languages=["fr", "ko"], **NO_RULES)
    assert sorted(row["lang"] for row in rows(Path(done.output))) == ["fr", "ko"]
    assert done.facts["reasons"]["languages"] == len(LANGUAGES) - 2
