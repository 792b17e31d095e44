"""A SentencePiece tokeniser for a text of one's own, with the ids that Moshi's text keeps free."""

from collections.abc import Iterable
from pathlib import Path

from counterpoint.data.monologue import EPAD_ID, PAD_ID


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Learn pieces by byte-pair encoding and write them as a .model file.

    Id 0 is the unknown piece and the end of padding, 3 is padding, as in Moshi's own tokeniser.

    Args:
        texts: What it learns from.
        path: The file to write; ends in .model.
        vocab_size: Most pieces; fewer where the texts have no more.

    Raises:
        ValueError: The package `sentencepiece` is missing, or there is no text.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError(
            "Training a tokenizer needs the package `sentencepiece`: "
            "pip install 'counterpoint[speech]'."
        ) from error
    partial = path.with_name(f".{path.stem}.partial")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(partial),
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type="bpe",
            character_coverage=1.0,
            unk_id=EPAD_ID,
            bos_id=1,
            eos_id=2,
            pad_id=PAD_ID,
            num_threads=1,
            minloglevel=2,
        )
        Path(f"{partial}.model").replace(path)
    except RuntimeError as error:
        raise ValueError(
            f"A tokenizer must have text to learn from: got none that gives {vocab_size} pieces "
            f"({' '.join(str(error).split())[:100]})."
        ) from error
    finally:
        for ending in ("model", "vocab"):
            Path(f"{partial}.{ending}").unlink(missing_ok=True)
