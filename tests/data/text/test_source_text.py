import pytest

from counterpoint.data.text.corpus import Folder, HubDataset, Jsonl, Kjv, Parquet, Source
from counterpoint.data.text.source_text import parse_source, write_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("kjv", Kjv()),
        ("folder:a/b:c", Folder(path="a/b:c")),
        ("jsonl:a,b.jsonl,text_field=body", Jsonl(path="a,b.jsonl", text_field="body")),
        ("parquet:x", Parquet(path="x")),
        ("hub:me/it,split=test,subset=en", HubDataset(name="me/it", split="test", subset="en")),
    ],
)
def test_source_is_one_word(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(write_source(source)) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kvj", "got 'kvj'. The nearest is 'kjv'."),
        ("folder", "needs its path: write folder:PATH."),
        ("folder:", "needs its path"),
        ("jsonl:a,txt=b", "has the fields path, text_field, title_field: got 'txt'"),
        ("kjv:x", "has the fields none"),
    ],
)
def test_wrong_source_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_source(text)
