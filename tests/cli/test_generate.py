from counterpoint.data.text.tokenizer import ByteTokenizer, text_pieces


def pieces(ids: list[int], before: str = "") -> list[str]:
    tokenizer = ByteTokenizer()
    return list(text_pieces(tokenizer, ids, tokenizer.encode(before).tolist()))


def test_text_comes_character_by_character() -> None:
    assert pieces(list("añ€😀z".encode()), before="Grüße ") == ["a", "ñ", "€", "😀", "z"]


def test_broken_bytes_do_not_hold_the_text_back() -> None:
    found = "".join(pieces([0xFF, 0xFE, 0x80, 0x80, *b"abc"]))
    assert found.endswith("abc")
    assert found.startswith("\N{REPLACEMENT CHARACTER}")


def test_last_character_may_stay_incomplete() -> None:
    assert pieces([*b"a", 0xE2, 0x82]) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_special_ids_give_no_text() -> None:
    assert "".join(pieces([*b"end", 257])) == "end"
