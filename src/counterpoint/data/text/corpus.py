"""The training text of a run: a frozen config that becomes a corpus, cached on disk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from counterpoint.data.loader import Loader
from counterpoint.data.source import ALONE, Preparation, existing_files
from counterpoint.data.text.documents import (
    KJV_FILE,
    Document,
    UnitKind,
    folder_files,
    kjv,
    read_folder,
    read_hub,
    read_jsonl,
    read_parquet,
)
from counterpoint.data.text.held_out import TEXT_STREAM, HeldOutText
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.parquet import parquet_files
from counterpoint.data.text.shards import VERSION, ShardWriter, TokenShards, Unit
from counterpoint.data.text.tokenizer import Tokenizer, load_tokenizer
from counterpoint.digests import file_digest
from counterpoint.errors import UserError, nearest
from counterpoint.files import whole_folder
from counterpoint.literals import literals_checked
from counterpoint.locks import locked
from counterpoint.progress import spell_count
from counterpoint.streams.spec import Layout, Role

KJV_HELD_OUT = (
    "Ruth",
    "Esther",
    "Ecclesiastes",
    "Daniel",
    "Hosea",
    "John",
    "Romans",
    "Revelation",
)
"""Books of the King James Bible that are held out: 9.0 % of its text.

They are story, wisdom, vision, prophecy, gospel and letter. They have few parallels elsewhere:
0.23 % of their distinct 8-word sequences also occur in the other books. Books with strong parallels
stay in training (share of their 8-word sequences that occur in other books: Samuel, Kings and
Chronicles 5-11 %, Ezra 6 %, Isaiah 4 %, Matthew, Mark and Luke 5-8 %).
"""

_MAX_TITLES = 10_000  # they are kept only to suggest the nearest title in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class Kjv:
    """The King James Bible, which comes with this library."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """All .txt and .md files below ``path``; each is a document."""

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Jsonl:
    """A file with one JSON object a line.

    Attributes:
        path: The file.
        text_field: Key of the text of a document.
        title_field: Key of its title, which may be missing.
    """

    path: str
    text_field: str = "text"
    title_field: str = "title"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parquet:
    """A file, or all files below a folder, of rows of columns.

    Attributes:
        path: A .parquet file, or a folder with such files.
        text_column: Column with the texts of the documents.
        title_column: Column with their titles, which may be missing.
    """

    path: str
    text_column: str = "text"
    title_column: str = "title"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDataset:
    """A data set that the `datasets` package loads by name and reads as a stream.

    It is cached under its name: delete the cache if the data set has changed.

    Attributes:
        name: Name of the data set, such as "wikitext".
        subset: Name of one of its configurations; ``None`` takes the only one.
        split: Split to read.
        text_column: Column with the texts of the documents.
        title_column: Column with their titles, which may be missing.
    """

    name: str
    subset: str | None = None
    split: str = "train"
    text_column: str = "text"
    title_column: str = "title"


Source = Kjv | Folder | Jsonl | Parquet | HubDataset


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A corpus, how it is cut into units and rows, and what is held out.

    Attributes:
        source: Source of the documents.
        tokenizer: "bytes", or the path of a Hugging Face tokenizer.json or a SentencePiece .model.
        unit: Pieces that are packed as one: each "section", or the whole "document".
        row_ticks: Number of ticks in a row of a batch.
        held_out: Titles of the documents that are held out; or the fraction of documents, chosen by
            a hash of their titles (of their texts if they have none), at least one document.
            ``None`` means `KJV_HELD_OUT` for `Kjv` and 5 % for other sources. ``()`` holds out
            nothing.
        cache_folder: Folder of the cached token shards.
    """

    source: Source = Kjv()
    tokenizer: str = "bytes"
    unit: UnitKind = "section"
    row_ticks: int = 1024
    held_out: float | tuple[str, ...] | None = None
    cache_folder: str = "~/.cache/counterpoint"

    def __post_init__(self) -> None:
        if self.unit not in get_args(UnitKind):
            raise UserError(f"`unit` must be one of {get_args(UnitKind)}: got {self.unit!r}.")
        if self.row_ticks < 1:
            raise UserError(f"`row_ticks` must be >= 1, got {self.row_ticks}.")
        is_known = type(self.held_out) in (tuple, float, type(None))
        if not is_known or (isinstance(self.held_out, float) and not 0 < self.held_out < 1):
            raise UserError(
                f"`held_out` must be a tuple of titles or a fraction between 0 and 1: got "
                f"{self.held_out!r}. To hold out nothing, give no titles: ()."
            )

    def file_names(self) -> dict[str, str]:
        """Return the name of the tokeniser; see `KeepsFiles`."""
        return {"tokenizer": self.tokenizer}

    def find_files(self) -> dict[str, Path]:
        """Return the file of the tokeniser; see `KeepsFiles`."""
        return existing_files(self.file_names())

    def with_files(self, files: Mapping[str, str]) -> "DataConfig":
        """Return the same source with a tokeniser elsewhere; see `KeepsFiles`."""
        return replace(self, tokenizer=files.get("tokenizer", self.tokenizer))

    @property
    def held_out_rule(self) -> tuple[str, ...] | float:
        """``held_out``, or the default of the source if it is ``None``."""
        if self.held_out is not None:
            return self.held_out
        return KJV_HELD_OUT if isinstance(self.source, Kjv) else 0.05

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system reads text, and so has a part with the name that text fills.

        See `DataSource.fits`.
        """
        return any(stream.name == TEXT_STREAM for stream in layout.by_role(Role.PART))

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks in a row; see `DataSource.num_ticks`."""
        return self.row_ticks

    def shaped(self, row_ticks: int | None, trained: str) -> "DataConfig":
        """Return the same text in other rows; all of it is trained, for it has no spans.

        See `counterpoint.train.phases.Shapeable`.
        """
        return self if row_ticks is None else replace(self, row_ticks=row_ticks)

    def prepare(self, system: Any, how: Preparation = ALONE) -> "Corpus":
        """Make the corpus of this config; see `DataSource.prepare` and `prepare`.

        The process that comes first makes what is not in the cache, and shows the progress.
        """
        block_ticks = how.block_ticks or system.layout.block_ticks
        if how.progress is None:
            return prepare(self, block_ticks)
        # The total is not known before the end.
        task = how.progress.task("tokenising", spell=lambda size: f"{spell_count(size)}B")

        def show(num_documents: int, num_bytes: int) -> None:
            noun = "document" if num_documents == 1 else "documents"
            task(num_bytes, figures=f"{num_documents:,} {noun}")

        try:
            return prepare(self, block_ticks, show)
        finally:
            task.end()


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A tokenised corpus.

    Attributes:
        train: Training rows.
        held_out: Units of the held-out documents; may be empty.
        tokenizer: Tokeniser that made the ids.
        fingerprint: Digests of the training and held-out text; see
            `counterpoint.data.source.PreparedSource`. They change if, and only if, an id or a title
            changes.
    """

    train: PackedRows
    held_out: Sequence[Unit]
    tokenizer: Tokenizer
    fingerprint: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches by step; the arguments are those of `Loader`."""
        return Loader(self.train, batch_rows, seed, rank, world_size)

    def describe(self) -> str:
        """Return the amount of text, in words."""
        return (
            f"{len(self.train)} rows of {self.train.row_ticks} ticks to learn from, "
            f"{len(self.held_out)} held-out units"
        )

    def held_out_units(self) -> HeldOutText | None:
        """Return the held-out text, sized in bytes; ``None`` if nothing is held out."""
        if not self.held_out:
            return None
        return HeldOutText(
            units=self.held_out,
            byte_lengths=self.tokenizer.byte_lengths,
            block_ticks=self.train.block_ticks,
        )


TextProgress = Callable[[int, int], None]
"""A function called with the numbers of documents and bytes that have been tokenised so far."""


def prepare(
    config: DataConfig,
    block_ticks: int,
    on_progress: TextProgress | None = None,
    *,
    normalising: bool = False,
) -> Corpus:
    """Make the corpus of a config: read it from the cache, or tokenise it into the cache once.

    Processes that ask for the same corpus at the same time wait until the first one has written it.
    The cache is found by the config, the tokeniser's file and the content of the source's files
    (0.7 GB are read a second). Its content is checked against the stored digests.

    Args:
        config: The config.
        block_ticks: Every unit starts at a multiple of this (`Layout.block_ticks`).
        on_progress: Called after each document while the corpus is written.
        normalising: Whether a SentencePiece tokeniser that normalises text is accepted.

    Raises:
        UserError: The source, the tokeniser or the held-out titles cannot be used, the source
            changes while it is read, or the cache is damaged.
        OSError: The cache cannot be written.
    """
    if config.row_ticks % block_ticks:
        raise UserError(
            f"`row_ticks` must be a multiple of the layout's block_ticks: got "
            f"row_ticks={config.row_ticks}, block_ticks={block_ticks}."
        )
    tokenizer = load_tokenizer(config.tokenizer, normalising=normalising)
    folder = Path(config.cache_folder).expanduser() / _key(config, tokenizer)
    if not folder.exists():
        with _locked(folder):
            if not folder.exists():
                _build(config, tokenizer, folder, on_progress)
    train = _verified(folder / "train")
    held_out = _verified(folder / "held_out") if config.held_out_rule else None
    return Corpus(
        train=PackedRows(train, config.row_ticks, block_ticks, TEXT_STREAM),
        held_out=held_out or (),
        tokenizer=tokenizer,
        fingerprint={"text": {"train": _facts(train), "held_out": held_out and _facts(held_out)}},
    )


def _verified(folder: Path) -> TokenShards:
    shards = TokenShards(folder)
    shards.verify()
    return shards


def _facts(shards: TokenShards) -> Mapping[str, Any]:
    """Return the facts that identify shards; counts come before the digest, for human readers."""
    return {"units": len(shards), "bytes": shards.num_bytes, "digest": shards.digest}


def _read(source: Source) -> Iterator[Document]:
    match source:
        case Kjv():
            return kjv()
        case Folder(path=path):
            return read_folder(path)
        case Jsonl():
            return read_jsonl(source.path, source.text_field, source.title_field)
        case Parquet():
            return read_parquet(source.path, source.text_column, source.title_column)
        case HubDataset():
            return read_hub(
                source.name, source.subset, source.split, source.text_column, source.title_column
            )


def _key(config: DataConfig, tokenizer: Tokenizer) -> str:
    """Return the name of the cache folder, a digest of everything on which the ids depend."""
    source = config.source
    content = {
        "version": VERSION,
        "source": [
            type(source).__name__,
            {name: value for name, value in asdict(source).items() if name != "path"},
        ],
        "content": _content(source),
        "tokenizer": tokenizer.identity,
        "unit": config.unit,
        "held_out": config.held_out_rule,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{type(source).__name__.lower()}-{digest[:16]}"


def _content(source: Source) -> list[tuple[str, str]]:
    """Return names and digests of the files of a source."""
    match source:
        case Folder(path=path):
            return [(str(f.relative_to(path)), file_digest(f)) for f in folder_files(path)]
        case Parquet(path=path):
            return [(f.name, file_digest(f)) for f in parquet_files(path)]
        case Jsonl() if Path(source.path).is_file():
            return [("", file_digest(Path(source.path)))]
        case Kjv():
            return [("", file_digest(KJV_FILE))]
    return []


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let only one process at a time work on a folder."""
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.with_name(f".{folder.name}.lock"), wait=True))
        except OSError as error:
            raise OSError(
                error.errno,
                f"The cache folder must be writable: {str(folder.parent)!r} is not "
                f"({error.strerror}). Set `cache_folder`",
            ) from error
        yield


def _build(
    config: DataConfig, tokenizer: Tokenizer, folder: Path, on_progress: TextProgress | None
) -> None:
    """Write both parts of the corpus; the folder appears complete or not at all."""
    with whole_folder(folder) as partial:
        with ShardWriter(partial / "train", tokenizer) as train:
            if config.held_out_rule:
                with ShardWriter(partial / "held_out", tokenizer) as held_out:
                    _split(config, train, held_out, on_progress)
            else:
                _split(config, train, train, on_progress)
        if _key(config, tokenizer) != folder.name:
            raise UserError(
                f"The source must stay as it is while it is read: {config.source} has changed. Run "
                "the same command again when nothing writes to it."
            )


def _split(
    config: DataConfig, train: ShardWriter, held_out: ShardWriter, on_progress: TextProgress | None
) -> None:
    """Send every document to one of the two writers.

    Raises:
        UserError: A held-out title does not occur, or one side gets no documents.
    """
    rule = config.held_out_rule
    if isinstance(rule, float):
        rule = _cutoff(_read(config.source), rule)
    titles = dict[str, None]()
    num_documents = num_bytes = 0
    for document in _read(config.source):
        num_documents += 1
        if len(titles) < _MAX_TITLES or (isinstance(rule, tuple) and document.title in rule):
            titles[document.title] = None
        writer = held_out if _is_held_out(document, rule) else train
        before = writer.num_bytes
        for heading, text in document.units(config.unit):
            writer.add(text, document.title, heading)
        num_bytes += writer.num_bytes - before
        if on_progress is not None:
            on_progress(num_documents, num_bytes)
    for title in rule if isinstance(rule, tuple) and num_documents else ():
        if title not in titles:
            raise UserError(
                f"`held_out` must name titles of the corpus: {title!r} is not among its "
                f"{num_documents} documents. {nearest(title, titles)}"
            )
    if rule and num_documents and not (train.num_units and held_out.num_units):
        side = "training" if held_out.num_units else "evaluation"
        raise UserError(
            f"`held_out` must leave documents on both sides: {config.held_out_rule} of "
            f"{num_documents} documents leaves none for {side}. Name titles, or give () to hold "
            "out nothing."
        )


def _is_held_out(document: Document, rule: tuple[str, ...] | float) -> bool:
    return document.title in rule if isinstance(rule, tuple) else _share(document) <= rule


def _cutoff(documents: Iterator[Document], fraction: float) -> float:
    """Return the fraction, or the smallest share of all if no document is below the fraction.

    Reading stops at the first document below the fraction, so a large corpus is not read twice.
    """
    smallest = 1.0
    for document in documents:
        share = _share(document)
        if share <= fraction:
            return fraction
        smallest = min(smallest, share)
    return smallest


def _share(document: Document) -> float:
    """Return a number in [0, 1] that depends on the title alone, or on the text without a title."""
    name = document.title or document.text()
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
