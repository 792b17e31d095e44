"""What can be said, what is refused in one line, and where long texts are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.errors import UserError
from counterpoint.speech.sayable import Alphabet, as_sayable, check_sayable, sayable_pieces


@pytest.mark.parametrize(
    "text",
    [
        "Hello there, can I have 2 - please? At 1:30 pm.",
        "Costs $5.20 & 10 %; see [1] (or {2})!",
        "1 + 1 = 2 > 0 < 3, #1 @home a/b",
        "Don\u2019t \u201csay\u201d that\u2026 or \u2013 do \u2014",
    ],
)
@pytest.mark.parametrize("alphabet", ["ascii", "latin"])
def test_plain_text_can_be_said(text: str, alphabet: Alphabet) -> None:
    check_sayable(text, alphabet)


@pytest.mark.parametrize("text", ["café", "cafe\u0301", "naïve Łódź", "5 °C, €5", "œuvre", "½ x²"])
def test_accents_need_a_voice_that_has_them(text: str) -> None:
    check_sayable(text, "latin")
    with pytest.raises(UserError, match=r"letters that the voice has \(ascii\): got U\+0"):
        check_sayable(text, "ascii")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Press [[ENTER]] now", r"words alone: got '\[\['"),
        ("a ]] b", r"words alone: got '\]\]'"),
        ("**bold** move", r"words alone: got '\*'"),
        ("snake_case", "words alone: got '_'"),
        ("run `ls`", "words alone: got '`'"),
        ("a <br/> b", "words alone: got '<br/>'"),
        ("<b>hi</b>", "words alone: got '<b>'"),
        ("say 你好", r"U\+4F60 \(CJK UNIFIED IDEOGRAPH-4F60\)"),
        ("Привет", r"U\+041F \(CYRILLIC CAPITAL LETTER PE\)"),
        ("١٢٣", "ARABIC-INDIC DIGIT ONE"),
        ("hi \N{GRINNING FACE}", "GRINNING FACE"),
        ("Ａ", "FULLWIDTH LATIN CAPITAL LETTER A"),
        ("straße", "LATIN SMALL LETTER SHARP S"),
        ("hi\u200bthere", "ZERO WIDTH SPACE"),
        ("a\x07b", r"U\+0007 \(no letter at all\)"),
        ("a\ud800b", r"U\+D800 \(no letter at all\)"),
        ("...", "must have a letter or a digit"),
        ("", "must have a letter or a digit"),
        ("a" * 61, "at most 60 letters: got 61"),
    ],
)
@pytest.mark.parametrize("alphabet", ["ascii", "latin"])
def test_what_cannot_be_said_is_refused(text: str, message: str, alphabet: Alphabet) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_sayable(text, alphabet)
    assert str(caught.value).isprintable()


@given(
    words=st.lists(st.sampled_from(["a", "bb.", "c,", "-", "d?\u201d"]), min_size=1, max_size=200),
    longest=st.integers(1, 20),
)
def test_pieces_are_all_words_in_order(words: list[str], longest: int) -> None:
    pieces = list(sayable_pieces(words, longest))
    assert [word for piece in pieces for word in piece] == words
    for piece in pieces[:-1]:
        assert len(piece) <= longest
        assert any(map(str.isalnum, "".join(piece)))
    if any(map(str.isalnum, "".join(words))):
        assert any(map(str.isalnum, "".join(pieces[-1])))


def test_pieces_end_where_a_sentence_or_a_clause_does() -> None:
    words = ["one", "two", "three,", "four", "five.", "six", "seven,", *"abcde"]
    assert [len(piece) for piece in sayable_pieces(words, 6)] == [5, 6, 1]
    assert [len(piece) for piece in sayable_pieces(words, 4)] == [3, 4, 4, 1]
    assert list(sayable_pieces(words)) == [words]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("* Don't **forget** your `bag` \N{GRINNING FACE}!", "Don't forget your bag !"),
        ("It is **good**.", "It is good."),
        ("<b>Hi</b> café", "Hi café"),
        ("Plain text, as it is.", "Plain text, as it is."),
        ("你好", ""),
        ("* - *", ""),
        ("a" * 61, "a" * 60 + " a"),
    ],
)
def test_what_a_model_writes_is_made_sayable(text: str, said: str) -> None:
    assert as_sayable(text) == said


@given(st.text(max_size=200), st.sampled_from(["ascii", "latin"]))
def test_what_is_made_sayable_can_be_said(text: str, alphabet: Alphabet) -> None:
    if said := as_sayable(text, alphabet):
        check_sayable(said, alphabet)
