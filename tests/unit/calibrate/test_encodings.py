"""Bytes are decoded as they were written, or refused by name."""

from __future__ import annotations

import random

import pytest

from calibrate.encodings import decode
from compress.core.errors import DataError

CHINESE = "量化把模型的权重从浮点数变成低比特整数，这样模型占用的内存更少，推理也更快。"
JAPANESE = "量子化はモデルの重みを低ビットの整数に変換します。これによりメモリの使用量が減ります。"
KOREAN = "양자화는 모델의 가중치를 낮은 비트의 정수로 바꾸는 것입니다. 메모리를 덜 쓰고 더 빠릅니다."
FRENCH = "La quantification réduit le modèle : les poids, codés à l’origine en flottants. Ça, où, élève."
RUSSIAN = "Квантование уменьшает модель: веса с плавающей запятой превращаются в целые числа."
POLISH = "Kwantyzacja zmniejsza model: wagi stają się liczbami całkowitymi. Źródło, żółw, ćma, ślad, łąka."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", ["plain", CHINESE, FRENCH])
def test_unicode_with_and_without_a_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding), "f.txt") == (text, "utf-8" if encoding == "utf-8" else encoding)


def test_utf16_of_either_byte_order() -> None:
    assert decode(b"\xfe\xff" + CHINESE.encode("utf-16-be"), "f.txt") == (CHINESE, "utf-16")


@pytest.mark.parametrize(
    ("text", "written", "named"),
    [
        (CHINESE, "gb18030", "gb18030"),
        (JAPANESE, "shift_jis", "cp932"),
        (JAPANESE * 3, "euc_jp", "euc_jp"),
        (KOREAN * 2, "euc_kr", "cp949"),
        (FRENCH * 2, "cp1252", "cp1252"),
        ("Größere Gewichte werden ganze Zahlen. Übung, Straße, schön, für, über. " * 3, "latin-1", "cp1252"),
        (RUSSIAN * 2, "cp1251", "cp1251"),
        (RUSSIAN * 2, "koi8_r", "koi8_r"),
        (POLISH * 2, "cp1250", "cp1250"),
    ],
)
def test_other_encodings_are_detected(text: str, written: str, named: str) -> None:
    assert decode(text.encode(written), "f.txt") == (text, named)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x7fELF\x00\x00\x01", "zero bytes"),
        ("no mark".encode("utf-16-le"), "zero bytes"),
        (random.Random(0).randbytes(4000).replace(b"\0", b"a"), "no encoding that could be recognised"),
        ("你好".encode("gb18030"), "could be .*gb18030.*iconv -f "),
        (CHINESE.encode() + b"\xff\n", "line 1 holds the stray byte 0xFF"),
        ((CHINESE + "\n").encode() * 3 + "é".encode("latin-1"), "line 4 holds the stray byte 0xE9"),
        (b"\xff\xfe" + b"ab\x00", "not valid utf-16 at byte"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(raw: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as refused:
        decode(raw, "notes.txt")
    assert "notes.txt" in str(refused.value)


def test_newlines_are_one_kind() -> None:
    assert decode(b"a\r\nb\rc\n", "f.txt")[0] == "a\nb\nc\n"


def test_a_character_cut_at_the_end_of_a_head_is_dropped() -> None:
    raw = CHINESE.encode()[:-1]
    assert decode(raw, "f.txt", partial=True)[0] == CHINESE[:-1]
    with pytest.raises(DataError):
        decode(raw, "f.txt")
