"""Bytes to text: UTF-8, a byte order mark, or an encoding that charset-normalizer is sure about."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from compress.core.errors import DataError

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

# Longest mark first: the UTF-32 mark begins with the UTF-16 one.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What people really have on disk. Offering all ~90 code pages makes the detector pick exotic ones.
CANDIDATES = [
    *("gb18030", "big5", "cp932", "euc_jp", "cp949"),
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
]
WESTERN = "cp1252"
MAX_CHAOS = 0.1  # charset-normalizer's measure of mess, 0 to 1
CLOSE = 0.02  # two readings closer than this in mess and in coherence cannot be told apart
MIN_FOREIGN = 8  # fewer bytes outside ASCII than this say nothing about a multi-byte encoding
KANA = re.compile("[\u3041-\u30fa]")  # every Japanese sentence has some, a wrong reading has next to none
BAD_BYTE = re.compile("[\udc80-\udcff]")
MULTIBYTE = re.compile("[^\x00-\x7f\udc80-\udcff]")


def decode(raw: bytes, name: str, partial: bool = False) -> tuple[str, str]:
    """`(text, encoding)` of the bytes of file `name`; newlines become \\n and a byte order mark is dropped.

    partial: the bytes are the head of a longer file, so a character cut in two at the end is dropped.
    Raises DataError for binary content, damaged UTF-8 (naming the line) and undecidable encodings.
    """
    for mark, encoding in MARKS:
        if raw.startswith(mark):
            return _strict(raw, encoding, name, partial), encoding
    if b"\x00" in raw:
        raise DataError(
            f"{name} holds zero bytes: it is binary, or UTF-16 without a byte order mark; "
            "give a text file, or save it as UTF-8"
        )
    try:
        return _strict(raw, "utf-8", name, partial), "utf-8"
    except DataError:
        _refuse_damaged_utf8(raw, name)
    return _detect(raw, name)


def _strict(raw: bytes, encoding: str, name: str, partial: bool) -> str:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(raw, final=not partial)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not valid {encoding} at byte {error.start}; save it again as UTF-8") from None
    return _newlines(text)


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_damaged_utf8(raw: bytes, name: str) -> None:
    """A file that is nearly all UTF-8 is damaged, not in another encoding: guessing would give mojibake."""
    text = raw.decode("utf-8", errors="surrogateescape")
    bad, good = len(BAD_BYTE.findall(text)), len(MULTIBYTE.findall(text))
    if good > 3 * bad:
        first = BAD_BYTE.search(text)
        assert first is not None
        line = text.count("\n", 0, first.start()) + 1
        byte = ord(first.group()) - 0xDC00
        raise DataError(
            f"{name} is UTF-8 but line {line} holds the stray byte 0x{byte:02X} ({bad} such bytes in all); "
            "correct that line, or drop the bytes with: iconv -c -f UTF-8 -t UTF-8"
        )


def _detect(raw: bytes, name: str) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    remedy = "save it as UTF-8, for example with: iconv -f {} -t UTF-8"
    matches = [m for m in from_bytes(raw, cp_isolation=CANDIDATES) if m.chaos <= MAX_CHAOS]
    if not matches:
        raise DataError(f"{name} is in no encoding that could be recognised; {remedy.format('ENCODING')}")
    best = matches[0]
    rivals = [m for m in matches[1:] if str(m) != str(best) and _close(m, best)]
    foreign = sum(byte > 0x7F for byte in raw)
    multibyte = {m.encoding for m in (best, *rivals)} & set(CANDIDATES[:5])
    if rivals or (multibyte and foreign < MIN_FOREIGN):
        names = sorted((m.encoding for m in matches[:4]), key=lambda e: e != WESTERN)
        raise DataError(f"{name} is not UTF-8 and could be {' or '.join(names)}; {remedy.format(names[0])}")
    encoding = WESTERN if WESTERN in best.could_be_from_charset else best.encoding
    return _newlines(raw.decode(encoding)), encoding


def _kana(text: str) -> float:
    return len(KANA.findall(text)) / max(len(text), 1)


def _close(one: CharsetMatch, other: CharsetMatch) -> bool:
    if _kana(str(other)) > 0.1 > 5 * _kana(str(one)):
        return False
    return abs(one.chaos - other.chaos) < CLOSE and abs(one.coherence - other.coherence) < CLOSE
