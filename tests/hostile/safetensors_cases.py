# tests/hostile/safetensors_cases.py
# Every way a safetensors file or its index can be wrong, and what must be said of it.
# SPDX-License-Identifier: Apache-2.0
"""Build the hostile safetensors files and name the error each must give.

A case is a set of files, the one to open, and the class, code and byte offset of the
expected error. Offsets are never counted by hand: ``^`` in a header stands before the
byte that the error must point at, and is not part of the file.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "^"
INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"


@dataclass(frozen=True)
class Case:
    """Files that must be refused, or, without a code, must open.

    Parameters
    ----------
    name : str
    build : callable
        Gives the content of each file by its name.
    error : str
        Name of the exception class, or "" if the files are valid.
    code : str
    offset : int or None
    stricter : bool
        The reference reader opens ``model.safetensors`` and we, wanting to, do not.
    open : str
        What to open, below the directory of the files; "" is the directory itself.
    """

    name: str
    build: Callable[[], dict[str, bytes]]
    error: str = ""
    code: str = ""
    offset: int | None = None
    stricter: bool = False
    open: str = ONE

    def write(self, directory: Path) -> Path:
        """Write the files into `directory` and say what to open."""
        for name, content in self.build().items():
            (directory / name).write_bytes(content)
        return directory / self.open if self.open else directory


def tensor(
    dtype: str = "F32",
    shape: str = "[2]",
    offsets: str = "[0,8]",
) -> str:
    """Give the description of one tensor as JSON text."""
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def pack(header: bytes | str, data: int = 0, length: int | None = None) -> bytes:
    """Put length, header and `data` bytes together."""
    raw = header.encode() if isinstance(header, str) else header
    n = len(raw) if length is None else length
    return struct.pack("<Q", n) + raw + bytes(i % 251 for i in range(data))


def marked(header: bytes | str) -> tuple[bytes, int | None]:
    """Take the mark out of `header`; its offset is in the file, after the length."""
    raw = header.encode() if isinstance(header, str) else header
    at = raw.find(MARK.encode())
    return raw.replace(MARK.encode(), b"", 1), None if at < 0 else at + 8


def header_case(
    name: str,
    error: str,
    code: str,
    header: bytes | str,
    data: int = 8,
    *,
    stricter: bool = False,
) -> Case:
    """Make a case whose header carries the mark."""
    raw, offset = marked(header)
    return Case(
        name, lambda: {ONE: pack(raw, data)}, error, code, offset, stricter=stricter
    )


def raw_case(name: str, error: str, code: str, content: bytes, offset: int = 0) -> Case:
    """Make a case of one file with this content."""
    return Case(name, lambda: {ONE: content}, error, code, offset)


def nested(depth: int) -> str:
    """Give arrays in arrays; the mark is before the first one too deep for us."""
    return '{"a":' + "[" * 7 + MARK + "[" * (depth - 7) + "]" * depth + "}"


A = tensor()
VALID = pack('{"a":' + A + "}", 8)


def length_cases() -> Iterator[Case]:
    """S-1 to S-3, and files that are something else."""
    short, big, length = "ST_TOO_SHORT", "ST_HEADER_TOO_LARGE", "ST_HEADER_LENGTH"
    cut, limit, form = "TruncatedFileError", "LimitError", "FormatError"
    yield raw_case("empty", cut, short, b"")
    yield raw_case("one_byte", cut, short, b"\x02")
    yield raw_case("seven_bytes", cut, short, VALID[:7])
    yield raw_case("length_limit_plus_1", limit, big, pack("{}", length=100_000_001))
    yield raw_case("length_2_63", limit, big, pack("{}", length=1 << 63))
    yield raw_case("length_all_ones", limit, big, pack("{}", length=(1 << 64) - 1))
    yield raw_case("length_2_32_plus_2", limit, big, pack("{}", length=(1 << 32) + 2))
    yield raw_case("length_0", form, length, pack("", 0))
    yield raw_case("length_1", form, length, pack("{", 0))
    yield raw_case("length_one_past_the_end", cut, length, pack("{}", length=3))
    yield raw_case("length_only", cut, length, pack("", length=2))
    yield raw_case("length_limit_small_file", cut, length, pack("{}", length=10**8))
    yield raw_case("header_cut", cut, length, VALID[:20])
    yield raw_case("web_page", form, big, b"<!DOCTYPE html><html></html>")
    yield raw_case(
        "git_lfs_pointer",
        form,
        big,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    )
    yield raw_case("zip", form, big, b"PK\x03\x04\x14" + bytes(60))
    yield raw_case("pickle", form, big, b"\x80\x02}q\x00(X\x01\x00\x00\x00ae.")
    yield raw_case("gguf", form, big, b"GGUF\x03\x00\x00\x00" + bytes(16))


def text_cases() -> Iterator[Case]:
    """S-4 to S-7: the header as text."""
    form, limit = "FormatError", "LimitError"
    utf8, start, padding = "ST_UTF8", "ST_HEADER_START", "ST_PADDING"
    yield header_case("byte_order_mark", form, utf8, b"^\xef\xbb\xbf{}", 0)
    yield header_case("lone_ff", form, utf8, b'{"^\xff":' + A.encode() + b"}")
    yield header_case("overlong", form, utf8, b'{"^\xc0\xaf":' + A.encode() + b"}")
    yield header_case(
        "surrogate_utf8", form, utf8, b'{"^\xed\xa0\x80":' + A.encode() + b"}"
    )
    yield header_case("cut_sequence_at_the_end", form, utf8, b"{}^\xe2\x82", 0)
    yield header_case("above_10ffff", form, utf8, b'{"^\xf4\x90\x80\x80":1}', 0)
    yield header_case("spaces_only", form, start, "    ^", 0)
    yield header_case("array_header", form, start, "^[]", 0)
    yield header_case("string_header", form, start, ' ^"a"', 0)
    yield header_case("nul_before", form, padding, "^\0{}", 0)
    yield header_case("nul_after", form, padding, "{}^\0\0\0", 0)
    yield header_case("spaces_then_nul", form, padding, '{"a":' + A + "}  ^\0 ", 8)
    yield header_case("form_feed_after", form, padding, "{}^\f", 0)
    syntax = "ST_JSON"
    yield header_case("cut_object", form, syntax, '{"a":' + A + "^", 8)
    yield header_case("text_after", form, syntax, "{}^x", 0)
    yield header_case("second_object", form, syntax, "{} ^{}", 0)
    yield header_case("trailing_comma", form, syntax, '{"a":' + A + ",^}")
    yield header_case(
        "trailing_comma_array",
        form,
        syntax,
        '{"a":' + tensor(shape="[2,^]") + "}",
    )
    yield header_case("comment", form, syntax, "{^/**/}", 0)
    yield header_case("single_quotes", form, syntax, "{^'a':1}", 0)
    yield header_case("nan", form, syntax, '{"a":^NaN}', 0)
    yield header_case("infinity", form, syntax, '{"a":-^Infinity}', 0)
    yield header_case("no_colon", form, syntax, '{"a" ^1}', 0)
    yield header_case("bad_escape", form, syntax, '{"^\\x41":1}', 0)
    yield header_case("short_escape", form, syntax, '{"\\u00^g1":1}', 0)
    yield header_case("lone_high_surrogate", form, syntax, '{"^\\ud800":1}', 0)
    yield header_case("lone_low_surrogate", form, syntax, '{"^\\udc00":1}', 0)
    yield header_case("swapped_pair", form, syntax, '{"^\\udc00\\ud800":1}', 0)
    yield header_case("newline_in_string", form, syntax, '{"a^\n":1}', 0)
    yield header_case("leading_zero", form, syntax, '{"a":0^1}', 0)
    yield header_case("plus_sign", form, syntax, '{"a":^+1}', 0)
    yield header_case("hexadecimal", form, syntax, '{"a":0^x10}', 0)
    yield header_case("bare_point", form, syntax, '{"a":1.^}', 0)
    yield header_case("true_cut", form, syntax, '{"a":tru^}', 0)
    yield header_case("depth_9", limit, syntax, nested(8), 0)
    yield header_case("depth_100000", limit, syntax, nested(100_000), 0)
    yield header_case(
        "metadata_value_17_mib",
        limit,
        syntax,
        '{"__metadata__":{"k":^"' + "x" * (17 << 20) + '"}}',
        0,
        stricter=True,
    )
    yield header_case(
        "metadata_key_65537",
        limit,
        syntax,
        '{"__metadata__":{^"' + "k" * 65537 + '":"v"}}',
        0,
        stricter=True,
    )
    twice = "ST_DUPLICATE"
    yield header_case(
        "same_name_twice", form, twice, '{"a":' + A + ',^"a":' + A + "}", stricter=True
    )
    yield header_case(
        "same_name_escaped",
        form,
        twice,
        '{"a":' + A + ',^"\\u0061":' + A + "}",
        stricter=True,
    )
    yield header_case(
        "metadata_twice",
        form,
        twice,
        '{"__metadata__":{},"a":' + A + ',^"__metadata__":{"k":"v"}}',
    )
    yield header_case(
        "metadata_key_twice",
        form,
        twice,
        '{"__metadata__":{"k":"1",^"k":"2"},"a":' + A + "}",
        stricter=True,
    )
    yield header_case(
        "field_twice",
        form,
        twice,
        '{"a":{"dtype":"F32","shape":[2],^"shape":[2],"data_offsets":[0,8]}}',
    )


def field_cases() -> Iterator[Case]:
    """S-8 to S-12 and S-15: what a tensor says of itself."""
    form, limit = "FormatError", "LimitError"
    meta, fields, name = "ST_METADATA", "ST_FIELDS", "ST_NAME"
    yield header_case("metadata_number", form, meta, '{"__metadata__":{"k":^1}}', 0)
    yield header_case("metadata_array", form, meta, '{"__metadata__":^[]}', 0)
    yield header_case("metadata_nested", form, meta, '{"__metadata__":{"k":^{}}}', 0)
    yield header_case(
        "metadata_key_control",
        form,
        meta,
        '{"__metadata__":{^"k\\u001b":"v"}}',
        0,
        stricter=True,
    )
    yield header_case("tensor_is_number", form, fields, '{"a":^1}', 0)
    yield header_case("tensor_is_array", form, fields, '{"a":^["F32",[2],[0,8]]}', 0)
    yield header_case("tensor_is_empty", form, fields, '{"a":^{}}', 0)
    yield header_case(
        "no_dtype", form, fields, '{"a":^{"shape":[2],"data_offsets":[0,8]}}'
    )
    yield header_case(
        "no_shape", form, fields, '{"a":^{"dtype":"F32","data_offsets":[0,8]}}'
    )
    yield header_case("no_offsets", form, fields, '{"a":^{"dtype":"F32","shape":[2]}}')
    yield header_case(
        "unknown_field",
        form,
        fields,
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],^"x":1}}',
        stricter=True,
    )
    yield header_case(
        "dtype_is_number",
        form,
        fields,
        '{"a":{^"dtype":0,"shape":[2],"data_offsets":[0,8]}}',
    )
    yield header_case(
        "shape_is_number",
        form,
        fields,
        '{"a":{"dtype":"F32",^"shape":2,"data_offsets":[0,8]}}',
    )
    for bad in ("", "f32", "F128", "Q4_0", "F32\\u0000"):
        text = '{"a":' + tensor(bad).replace(f'"{bad}"', f'^"{bad}"', 1) + "}"
        yield header_case(f"dtype_{bad or 'empty'}", form, "ST_DTYPE", text)
    for dtype, shape in (("F4", "[3]"), ("F6_E2M3", "[2]"), ("F4", "[]")):
        text = '{"a":' + tensor(dtype, "^" + shape, "[0,1]") + "}"
        yield header_case(f"subbyte_{dtype}_{shape}", form, "ST_SUBBYTE", text, 1)
    for bad in ("-2", "2.0", "2e0", "-0", '"2"', "null", "[2]", "9223372036854775808"):
        text = '{"a":' + tensor(shape=f"[^{bad}]") + "}"
        yield header_case(f"integer_{bad.strip(chr(34))}", form, "ST_INTEGER", text)
    for bad in ("18446744073709551616", "9" * 400, "1e400"):
        text = '{"a":' + tensor(shape=f"[^{bad}]") + "}"
        yield header_case(f"integer_huge_{len(bad)}", form, "ST_INTEGER", text)
    yield header_case(
        "begin_negative", form, "ST_INTEGER", '{"a":' + tensor(offsets="[^-8,0]") + "}"
    )
    yield header_case(
        "end_fraction", form, "ST_INTEGER", '{"a":' + tensor(offsets="[0,^8.5]") + "}"
    )
    over = "ST_OVERFLOW"
    for label, shape in (
        ("2_32_squared", "[4294967296,^4294967296]"),
        ("wraps", "[576460752303423487,^4]"),
        ("bits_wrap", "[^576460752303423488]"),
        ("zero_hides_it", "[0,4294967296,^4294967296]"),
        ("zero_last", "[4294967296,^4294967296,0]"),
    ):
        yield header_case(
            f"overflow_{label}",
            form,
            over,
            '{"a":' + tensor(shape=shape) + "}",
        )
    yield header_case(
        "rank_17",
        limit,
        over,
        '{"a":'
        + tensor(shape="^[" + ",".join(["1"] * 17) + "]", offsets="[0,4]")
        + "}",
        4,
        stricter=True,
    )
    yield header_case("name_empty", form, name, '{^"":' + A + "}", stricter=True)
    yield header_case(
        "name_4097", form, name, '{^"' + "n" * 4097 + '":' + A + "}", stricter=True
    )
    yield header_case("name_nul", form, name, '{^"a\\u0000":' + A + "}", stricter=True)
    yield header_case(
        "name_esc", form, name, '{^"\\u001b[2J":' + A + "}", stricter=True
    )
    yield header_case("name_c1", form, name, '{^"a\\u009b":' + A + "}", stricter=True)


def layout_cases() -> Iterator[Case]:
    """S-13 and S-14: where the data is."""
    form, cut = "FormatError", "TruncatedFileError"

    def two(first: str, second: str) -> str:
        return f'{{"a":{tensor(offsets=first)},"b":{tensor(offsets=second)}}}'

    yield header_case(
        "offsets_one", form, "ST_OFFSETS", '{"a":' + tensor(offsets="^[8]") + "}"
    )
    yield header_case(
        "offsets_three", form, "ST_OFFSETS", '{"a":' + tensor(offsets="^[0,8,8]") + "}"
    )
    yield header_case(
        "offsets_swapped", form, "ST_OFFSETS", '{"a":' + tensor(offsets="^[8,0]") + "}"
    )
    yield header_case(
        "size_small", form, "ST_SIZE", '{"a":' + tensor(offsets="^[0,7]") + "}", 7
    )
    yield header_case(
        "size_large", form, "ST_SIZE", '{"a":' + tensor(offsets="^[0,9]") + "}", 9
    )
    yield header_case(
        "size_of_empty",
        form,
        "ST_SIZE",
        '{"a":' + tensor(shape="[0]", offsets="^[0,8]") + "}",
    )
    yield header_case("overlap_by_4", form, "ST_OVERLAP", two("[0,8]", "[^4,12]"), 12)
    yield header_case("overlap_all", form, "ST_OVERLAP", two("[0,8]", "[^0,8]"), 8)
    yield header_case("overlap_backwards", form, "ST_OVERLAP", two("[^4,12]", "[0,8]"))
    yield header_case("hole_first", form, "ST_HOLE", two("[^1,9]", "[9,17]"), 17)
    yield header_case("hole_between", form, "ST_HOLE", two("[0,8]", "[^9,17]"), 17)
    yield header_case(
        "hole_before_empty",
        form,
        "ST_HOLE",
        '{"a":' + A + ',"b":' + tensor(shape="[0]", offsets="[^9,9]") + "}",
        9,
    )
    yield header_case(
        "far_away",
        form,
        "ST_HOLE",
        '{"a":' + tensor(offsets="[^9223372036854775799,9223372036854775807]") + "}",
    )
    yield header_case(
        "no_data", cut, "ST_DATA_TRUNCATED", '{"a":' + tensor(offsets="[0,^8]") + "}", 0
    )
    yield header_case("cut_first", cut, "ST_DATA_TRUNCATED", two("[0,^8]", "[8,16]"), 7)
    yield header_case("cut_last", cut, "ST_DATA_TRUNCATED", two("[0,8]", "[8,^16]"), 15)
    yield header_case(
        "data_1_tib",
        cut,
        "ST_DATA_TRUNCATED",
        '{"a":' + tensor("U8", "[1099511627776]", "[0,^1099511627776]") + "}",
    )
    after = pack('{"a":' + A + "}", 8)
    yield raw_case(
        "one_byte_after", form, "ST_TRAILING", after + b"\0", offset=len(after)
    )
    yield raw_case(
        "zip_after", form, "ST_TRAILING", after + b"PK\x05\x06", offset=len(after)
    )
    yield raw_case("data_without_tensors", form, "ST_TRAILING", pack("{}", 4), 10)


def index_case(
    name: str,
    error: str,
    code: str,
    index: bytes | str,
    files: dict[str, bytes] | None = None,
) -> Case:
    """Make a case of an index, which may carry the mark, and its shards."""
    raw, offset = marked(index)
    content = {INDEX: raw, **(SHARDS if files is None else files)}
    at = None if offset is None else offset - 8  # an index has no length in front
    return Case(name, lambda: content, error, code, at, open="")


B = pack('{"b":' + tensor("F16", "[3]", "[0,6]") + "}", 6)
SHARDS = {"x-1.safetensors": VALID, "x-2.safetensors": B}
MAP = '"a":"x-1.safetensors","b":"x-2.safetensors"'


def index_cases() -> Iterator[Case]:
    """S-17 and F-19: an index and the shards it names."""
    form, limit, cut = "FormatError", "LimitError", "TruncatedFileError"
    yield index_case("idx_utf8", form, "IDX_UTF8", b'{"^\xff":1}')
    yield index_case("idx_bom", form, "IDX_UTF8", b"^\xef\xbb\xbf{}")
    yield index_case("idx_empty", form, "IDX_JSON", "^")
    yield index_case("idx_cut", form, "IDX_JSON", '{"weight_map":{"a":"x^')
    yield index_case("idx_web_page", form, "IDX_JSON", "^<!DOCTYPE html>")
    yield index_case("idx_git_lfs", form, "IDX_JSON", "^version https://git-lfs")
    yield index_case("idx_depth_33", limit, "IDX_JSON", "[" * 32 + "^[" + "]" * 33)
    yield index_case(
        "idx_name_twice",
        form,
        "IDX_DUPLICATE",
        '{"weight_map":{"a":"x-1.safetensors",^"a":"x-2.safetensors"}}',
    )
    yield index_case("idx_array", form, "IDX_WEIGHT_MAP", "^[]")
    yield index_case("idx_no_map", form, "IDX_WEIGHT_MAP", '^{"metadata":{}}')
    yield index_case("idx_map_array", form, "IDX_WEIGHT_MAP", '{"weight_map":^[]}')
    yield index_case("idx_map_empty", form, "IDX_WEIGHT_MAP", '{"weight_map":^{}}')
    yield index_case(
        "idx_name_control",
        form,
        "IDX_NAME",
        '{"weight_map":{^"a\\n":"x-1.safetensors"}}',
    )
    yield index_case(
        "idx_name_empty", form, "IDX_NAME", '{"weight_map":{^"":"x-1.safetensors"}}'
    )
    for label, shard in (
        ("up", '"../x-1.safetensors"'),
        ("dots", '".."'),
        ("absolute", '"/etc/passwd"'),
        ("below", '"sub/x-1.safetensors"'),
        ("backslash", '"..\\\\x-1.safetensors"'),
        ("drive", '"C:x-1.safetensors"'),
        ("nul", '"x-1.safetensors\\u0000"'),
        ("empty", '""'),
        ("256_bytes", '"' + "x" * 256 + '"'),
        ("number", "1"),
        ("null", "null"),
    ):
        text = f'{{"weight_map":{{"a":^{shard}}}}}'
        yield index_case(f"idx_shard_{label}", form, "IDX_SHARD_NAME", text)
    many = ",".join(f'"t{i}":"s{i:04}"' for i in range(4097))
    yield index_case(
        "idx_4097_shards", limit, "IDX_SHARD_COUNT", '^{"weight_map":{' + many + "}}"
    )
    yield index_case(
        "idx_shard_missing",
        cut,
        "IDX_SHARD_MISSING",
        '{"weight_map":{"a":"x-1.safetensors","b":^"x-3.safetensors"}}',
    )
    yield index_case(
        "idx_tensor_nowhere",
        form,
        "IDX_TENSOR_MISSING",
        '{"weight_map":{' + MAP + ',^"c":"x-1.safetensors"}}',
    )
    yield index_case(
        "idx_tensor_elsewhere",
        form,
        "IDX_TENSOR_MISSING",
        '{"weight_map":{^"a":"x-2.safetensors","b":"x-1.safetensors"}}',
    )
    both = {"x-1.safetensors": VALID, "x-2.safetensors": VALID}
    yield index_case(
        "idx_tensor_twice",
        form,
        "IDX_DUPLICATE_TENSOR",
        '{"weight_map":{^"a":"x-1.safetensors","b":"x-2.safetensors"}}',
        both,
    )
    extra_b = pack('{"a":' + A + ',"b":' + tensor("F16", "[3]", "[8,14]") + "}", 14)
    yield index_case(
        "idx_unnamed_tensor_twice",
        form,
        "IDX_DUPLICATE_TENSOR",
        '{"weight_map":{"c":"x-1.safetensors","d":"x-2.safetensors"}}',
        {
            "x-1.safetensors": pack(
                '{"c":' + A + ',"e":' + tensor(offsets="[8,16]") + "}", 16
            ),
            "x-2.safetensors": pack(
                '{"d":' + A + ',"e":' + tensor(offsets="[8,16]") + "}", 16
            ),
        },
    )
    yield Case(
        "idx_shard_cut",
        lambda: {
            INDEX: ('{"weight_map":{' + MAP + "}}").encode(),
            "x-1.safetensors": VALID,
            "x-2.safetensors": B[:-1],
        },
        cut,
        "ST_DATA_TRUNCATED",
        B.index(b"6]"),
        open="",
    )
    yield Case(
        "idx_missing",
        lambda: SHARDS,
        form,
        "IDX_MISSING",
        None,
        open="",
    )
    yield index_case(
        "valid_index", "", "", '{"metadata":{},"weight_map":{' + MAP + "}}"
    )
    yield index_case(
        "valid_index_extra_tensor",
        "",
        "",
        '{"weight_map":{"a":"x-1.safetensors"}}',
        {"x-1.safetensors": extra_b},
    )
    yield Case(
        "valid_index_by_name",
        lambda: {INDEX: ('{"weight_map":{' + MAP + "}}").encode(), **SHARDS},
        open=INDEX,
    )
    yield Case("valid_only_file", lambda: {"other.safetensors": VALID}, open="")


def valid_cases() -> Iterator[Case]:
    """Files that must open, some of them odd."""

    def good(name: str, header: bytes | str, data: int) -> Case:
        return Case("valid_" + name, lambda: {ONE: pack(header, data)})

    yield good("no_tensors", "{}", 0)
    yield good("metadata_only", '{"__metadata__":{"format":"pt","\\u00e9":"\\n"}}', 0)
    yield good("one", '{"a":' + A + "}", 8)
    yield good("spaces_around", ' \n\t\r{"a" : ' + A + "}      ", 8)
    yield good("rank_0", '{"a":' + tensor(shape="[]", offsets="[0,4]") + "}", 4)
    yield good("empty_tensor", '{"a":' + tensor(shape="[0]", offsets="[0,0]") + "}", 0)
    yield good(
        "empty_between",
        '{"a":'
        + A
        + ',"e":'
        + tensor(shape="[3,0]", offsets="[8,8]")
        + ',"b":'
        + tensor(offsets="[8,16]")
        + "}",
        16,
    )
    yield good(
        "order_of_data_is_not_order_of_names",
        '{"b":' + tensor(offsets="[8,16]") + ',"a":' + A + "}",
        16,
    )
    yield good("unaligned", '{"a":' + A + "} ", 8)
    yield good(
        "rank_16",
        '{"a":' + tensor(shape="[" + "1," * 15 + "2]") + "}",
        8,
    )
    yield good("escaped_name", '{"\\u0061\\/\\ud83d\\ude00":' + A + "}", 8)
    yield good("non_ascii_name", '{"é日😀":' + A + "}", 8)
    yield good(
        "fields_in_any_order",
        '{"a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}',
        8,
    )
    widths = {
        "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16,
        "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
        "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    }  # fmt: skip
    for dtype, bits in widths.items():
        n = bits  # eight elements
        yield good(
            f"dtype_{dtype}", '{"a":' + tensor(dtype, "[2,4]", f"[0,{n}]") + "}", n
        )


def cases() -> list[Case]:
    """Give every case; names are unique."""
    return [
        *length_cases(),
        *text_cases(),
        *field_cases(),
        *layout_cases(),
        *index_cases(),
        *valid_cases(),
    ]


def main(root: Path) -> None:
    """Write each case into a directory of its own below `root`."""
    for case in cases():
        directory = root / case.name.replace("/", "_")
        directory.mkdir(parents=True, exist_ok=True)
        path = case.write(directory)
        sys.stdout.write(f"{path}\t{case.error}\t{case.code}\t{case.offset}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
