"""tools/compare_quality.py: which peer a file is held against, and their ratio chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.scripts import load_tool

quality = load_tool("compare_quality")


def line(model: str, chunks: list[float], **facts: Any) -> dict[str, Any]:
    mean = sum(chunks) / len(chunks)
    found = {"model": model, "reference": "m-BF16", "text": "ja", "kl_mean": mean, "kl_chunks": chunks}
    return {**found, "kl_interval": [0.9 * mean, 1.1 * mean], "top_agreement": 0.9, **facts}


def made(folder: Path, kind: str, level: str, size: int) -> Any:
    path = folder / f"{kind}-{level}.gguf"
    path.write_bytes(bytes(size))
    return quality.Made(kind, level, path)


def test_chunks_are_paired() -> None:
    """Chunks differ tenfold, their ratio does not: the interval is that of the ratio."""
    peer = [1.0, 10.0, 2.0, 7.0, 3.0, 9.0, 1.0, 4.0, 8.0, 5.0]
    assert quality.ratio(line("a", [x / 2 for x in peer]), line("b", peer)) == "0.500 (0.500 … 0.500)"
    low, high = quality.ratio(line("a", peer[::-1]), line("b", peer)).split("(")[1].rstrip(")").split(" … ")
    assert float(low) < 0.8
    assert float(high) > 1.2


def test_the_best_peer_that_is_no_larger(tmp_path: Path) -> None:
    files = [
        made(tmp_path, "peer", "Q3_K_M", 8000), made(tmp_path, "peer", "IQ4_XS", 9000),
        made(tmp_path, "both", "Q3_K_M", 7999), made(tmp_path, "both", "IQ4_XS", 9000),
    ]  # fmt: skip
    # the larger peer is the worse one here: the smaller is what the larger file of ours must beat
    lines = [
        line("peer-Q3_K_M", [4.0] * 10), line("peer-IQ4_XS", [5.0] * 10),
        line("both-Q3_K_M", [2.0] * 10), line("both-IQ4_XS", [1.0] * 10),
        {"model": "m-BF16", "reference": None, "text": "ja"},
    ]  # fmt: skip
    rows = [[x.strip() for x in row.split("|")[2:7]] for row in quality.table(files, lines)[2:]]
    assert [(level, kind, ratio) for level, kind, _, _, ratio in rows] == [
        ("Q3_K_M", "peer", ""), ("IQ4_XS", "peer", ""),
        ("Q3_K_M", "both", "0.500 (0.500 … 0.500)"), ("IQ4_XS", "both", "0.250 (0.250 … 0.250)"),
    ]  # fmt: skip


def test_the_picture_has_levels_and_kinds(tmp_path: Path) -> None:
    files = [made(tmp_path, kind, "Q4_K_M", 1000) for kind in ("peer", "both")]
    quality.draw(files, [line("peer-Q4_K_M", [2.0] * 10), line("both-Q4_K_M", [1.0] * 10)], tmp_path / "x.svg")
    told = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert all(text in told for text in ("Q4_K_M", "llama-quantize, imatrix", "mix and error feedback", "ja"))
