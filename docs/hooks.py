"""What the site needs beyond mkdocs: links to source files as plain text, our fences, Chinese words for the search."""

import re
from typing import Any

import rjieba
from markdown.extensions.toc import slugify_unicode
from material.plugins.search import plugin as search

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")  # on GitHub a link to a file of the repository; the site has none
WRAPPED = re.compile(r"(?<=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])\n(?=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])")
FENCE = re.compile(r"^( *```text) (?:exact|sample)$", re.MULTILINE)  # words for tests/shell_blocks.py


class Words:
    """Stands where the search plugin looks for jieba, which has no wheel; rjieba cuts the same words."""

    @staticmethod
    def cut(text: bytes) -> list[str]:
        """A run of Han characters as words."""
        return rjieba.cut(text.decode())


def on_config(config: Any) -> Any:
    """Anchors keep Chinese characters; the search cuts Chinese into words."""
    search.jieba = Words
    config["mdx_configs"]["toc"]["slugify"] = slugify_unicode
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page's text as mkdocs understands it; its link to itself in the other language is the button at the top."""
    name = page.file.src_uri.removesuffix(".md").removesuffix(".zh")
    itself = re.compile(rf"\[([^\]]+)\]\({re.escape(name)}(?:\.zh)?\.md\)")
    return FENCE.sub(r"\1", OUTSIDE.sub(r"\1", itself.sub(r"\1", markdown)))


def on_page_content(html: str, **_: Any) -> str:
    """Chinese lines are joined without the space that a browser makes of a line's end; what is set as code stays."""
    parts = re.split(r"(?s)(<pre.*?</pre>)", html)
    return "".join(part if part.startswith("<pre") else WRAPPED.sub("", part) for part in parts)
