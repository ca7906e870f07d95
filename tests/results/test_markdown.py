"""Texts of others in Markdown, as GitHub's rules (GFM) read it."""

import pytest

from layershuffle.results.markdown import code, plain


@pytest.mark.parametrize(
    "text",
    [
        "vit_tiny_patch16_224",
        "LayerShuffle: position",
        "94.99 ± 1.80",
        "-1.5",
        "a - b",
        "3 1 2",
        "kept=6, 0.5",
        "größer",
    ],
)
def test_ordinary_names_stay_as_they_are(text):
    assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\n# b\r\n\x1b[31mc\u2028d", r"a # b \[31mc d"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("---", r"\---"),
        ("===", r"\==="),
        ("[a](http://b)", r"\[a\](http&#58;//b)"),
        ("![a](b.png)", r"!\[a\](b.png)"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("&lt;", "&amp;lt;"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("*a* ~b~ `c`", r"\*a\* \~b\~ \`c\`"),
        ("_a_ b_c __d", r"\_a\_ b_c \_\_d"),
        ("www.a.b a@b.c", "www&#46;a.b a&#64;b.c"),
    ],
)
def test_marks_are_escaped(text, safe):
    assert plain(text) == safe


def test_code_ends_where_it_should():
    assert code("Shuffle()") == "`Shuffle()`"
    assert code("a `b`` c") == "``` a `b`` c ```"
    assert code("a\n\n# b") == "`a # b`"
