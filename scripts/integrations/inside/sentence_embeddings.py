"""sentence-transformers: a folder of its own kind loads, and gives the embeddings that it gave before."""

from __future__ import annotations

from pathlib import Path

from compared import Rows, main, references


def run(material: Path, _: Path, rows: Rows) -> None:
    """Compare embeddings with the source's in the same tool, and with those of graftkit's environment."""
    from models import TEXTS
    from sentence_transformers import SentenceTransformer

    expected = references(material)
    source = SentenceTransformer((material / "sentences.source").read_text(encoding="utf-8"), device="cpu")
    result = SentenceTransformer(str(material / "sentences"), device="cpu")
    old = TEXTS[:2]
    rows.equal("embeddings of old texts, beside the source's", result.encode(old), source.encode(old))
    found = result.encode(TEXTS, batch_size=1, normalize_embeddings=True)
    rows.near(
        "embeddings, beside graftkit's environment",
        found,
        expected["sentences/embeddings"],
        expected["sentences/exact"],
    )
    new = result.tokenizer.convert_tokens_to_ids("biorxiv")
    rows.true("a new word is one token", result.tokenizer("biorxiv")["input_ids"].count(new) == 1, "biorxiv")


if __name__ == "__main__":
    main(("transformers", "sentence_transformers"), run)
