"""Everything measured about a document: the values rules judge, and those kept for people to look at."""

from typing import Any

import numpy as np

from hepta.corpus.characters import Counts
from hepta.corpus.language import language_of, script_of
from hepta.corpus.shingles import Shingles, shingle

ENDS = frozenset(".!?…。！？；;:：\"'”’」』）)]》〉~～—")  # what may close a sentence, or quote it
BULLETS = frozenset("-*•·▪●○◦‣■□★☆→>–—+#")
FUNCTION_WORDS = frozenset(
    word
    for line in (
        "the of and to in a is was that for it as with he be on i you at by this had not are but from or have an they",
        "which one were her all she there would their we him been has when who will more no if out so said what up its",
        "about into than them can only other new some could these may then do first any my now such like our over your",
    )
    for word in line.split()
)
BOILERPLATE = (  # lower case; a short line that holds one is page furniture
    "all rights reserved", "cookie", "privacy policy", "terms of use", "terms of service", "enable javascript",
    "sign up", "log in", "login", "subscribe", "click here", "share this", "share on", "read more", "powered by",
    "copyright ©",
)  # fmt: skip
BOILERPLATE_HAN = (
    "版权所有", "版權所有", "转载请注明", "轉載請註明", "点击这里", "点击下载", "点击进入", "点击查看", "點擊",
    "上一篇", "下一篇", "返回首页", "返回顶部", "备案号", "icp备", "登录", "注册", "免责声明", "扫码", "关注我们",
    "联系我们", "收藏本站", "友情链接",
)  # fmt: skip
SURE_ENGLISH, SURE_WORDS = 0.3, 20  # share of function words, "the" among them, in ASCII text of so many words
BOILERPLATE_LINE = 200  # characters; a longer line is prose that mentions such a word
SIGNALS = (
    "chars", "bytes", "words", "lines", "mean_run", "letter_share", "digit_share", "symbol_share", "end_share",
    "bullet_share", "repeated_line_share", "repeated_shingle_share", "function_share", "boilerplate_share", "han_share",
    "quality", "lang_score", "script", "repaired",
)  # fmt: skip
WHOLE = frozenset(("chars", "bytes", "words", "lines"))  # integers; script is text, repaired a bool, the rest floats
DIGITS = 4  # shares are rounded, so that no platform's last bit decides


def measure(texts: list[str], repaired: list[bool]) -> tuple[list[str], list[dict[str, Any]], Shingles]:
    """Language, signals and shingles of each text; none depends on the texts beside it."""
    counts, shingles = Counts(texts), shingle(texts)
    repeated = shingles.repeated_share()
    solid = np.maximum(counts.solid, 1)
    shares = {
        "mean_run": counts.letters / np.maximum(counts.runs, 1),
        "letter_share": counts.letters / solid,
        "digit_share": counts.digits / solid,
        "symbol_share": counts.symbols / solid,
        "han_share": counts.han / np.maximum(counts.letters, 1),
        "repeated_shingle_share": repeated,
    }
    columns = {name: np.round(values, DIGITS).tolist() for name, values in shares.items()}
    whole = np.stack((counts.han, counts.kana, counts.hangul, counts.letters, counts.cantonese), 1).tolist()
    words, function_han = counts.words.tolist(), counts.function_han.tolist()
    scripts = zip(counts.traditional.tolist(), counts.simplified.tolist(), strict=True)
    languages, rows = [], []
    for index, (text, (traditional, simplified)) in enumerate(zip(texts, scripts, strict=True)):
        han, lower = whole[index][0], text.lower()
        row: dict[str, Any] = {name: values[index] for name, values in columns.items()}
        row.update(chars=len(text), bytes=len(text.encode("utf-8")), words=words[index])
        row.update(_line_signals(text, lower, han > 0))
        row["function_share"] = round(_function_share(lower, han, function_han[index], row["han_share"]), DIGITS)
        row["quality"] = _quality(row)
        sure = words[index] >= SURE_WORDS and row["function_share"] >= SURE_ENGLISH
        english = sure and " the " in lower and text.isascii()
        lang, score = ("en", 1.0) if english else language_of(text, *whole[index])
        row.update(lang_score=round(score, DIGITS), script=script_of(traditional, simplified) if han else "")
        row["repaired"] = repaired[index]
        languages.append(lang)
        rows.append(row)
    return languages, rows, shingles


def _function_share(lower: str, han: int, function_han: int, han_share: float) -> float:
    """Share of function characters among Han, or of function words among words."""
    if han_share >= 0.5:
        return function_han / han
    words = lower.split()
    return sum(map(FUNCTION_WORDS.__contains__, words)) / len(words) if words else 0.0


def _is_boilerplate(lower: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in lower for phrase in phrases)


def _line_signals(text: str, lower: str, has_han: bool) -> dict[str, float]:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if not lines:
        return dict.fromkeys(("lines", "end_share", "bullet_share", "repeated_line_share", "boilerplate_share"), 0)
    count, characters = len(lines), sum(map(len, lines))
    ends = sum(line[-1] in ENDS for line in lines)
    bullets = sum(line[0] in BULLETS for line in lines)
    once = sum(map(len, set(lines))) if count > 1 else characters
    furniture, phrases = 0, BOILERPLATE + BOILERPLATE_HAN if has_han else BOILERPLATE
    if _is_boilerplate(lower, phrases):
        short = [line for line in lines if len(line) < BOILERPLATE_LINE]
        furniture = sum(len(line) for line in short if _is_boilerplate(line.lower(), phrases))
    return {
        "lines": count,
        "end_share": round(ends / count, DIGITS),
        "bullet_share": round(bullets / count, DIGITS),
        "repeated_line_share": round((characters - once) / characters, DIGITS),
        "boilerplate_share": round(furniture / characters, DIGITS),
    }


def _quality(row: dict[str, Any]) -> float:
    """Which of two twins is the better one, in [0, 1]: clean letters, little repetition, whole sentences."""
    clean = row["letter_share"] * (1 - row["symbol_share"]) * (1 - row["boilerplate_share"])
    return round(clean * (1 - row["repeated_shingle_share"]) * (0.5 + 0.5 * row["end_share"]), 3)
