# python/halfbyte/transformers/config.py
# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint is to be packed, or how it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers.utils.quantization_config import QuantizationConfigMixin

from halfbyte.errors import ArgumentError
from halfbyte.formats import FormatInfo, format_info, formats

__all__ = ["METHOD", "HalfbyteConfig"]

METHOD = "halfbyte"

_OF_BITS = {4: "q4_0", 6: "q6_k", 8: "q8_0"}
_CHOICES = {
    "activations": ("auto", "f32"),
    "repack": ("auto", "always", "never"),
}


class HalfbyteConfig(QuantizationConfigMixin):
    """A ``quantization_config`` for ``from_pretrained``.

    Parameters
    ----------
    bits : {4, 6, 8}, optional
        Short for a format: Q4_0, Q6_K, Q8_0. 4 if neither it nor `format` is given.
    format : str, optional
        The format that matrices are packed in: one of those that `halfbyte.quantize`
        writes, such as ``"q4_0"``.
    modules_to_not_convert : list of str, optional
        Names of modules that stay as they are, beside those that always do. The end of
        a name, its beginning up to a dot, or a regular expression, as elsewhere in
        Transformers.
    embeddings : bool or str
        Whether tables, and a head tied to one, are packed too: in `format`, or in one
        of their own, such as ``"q6_k"``. Neither may have one scale a row.
    activations : {"auto", "f32"}
        As for `halfbyte.linear`.
    repack : {"auto", "always", "never"}
        Whether to keep a second copy of the weights in the order of the products, which
        then run at the speed of memory. ``"auto"``: if the memory that is free holds
        it with a fifth to spare.
    fuse : bool
        Whether what stands between the products of a Gemma 3 or Gemma 4 model is
        computed by halfbyte too: norms, rotary embeddings, GELU, the choice of experts,
        and attention, unless another ``attn_implementation`` is asked for.
    module_formats : dict of str to str, optional
        Names of packed modules to their formats. Saved checkpoints have it; nothing
        else is packed then.
    quant_method : {"halfbyte"}

    Raises
    ------
    ArgumentError
        If a value is none of those it may be, or two contradict each other.
    """

    def __init__(
        self,
        bits: int | None = None,
        format: str | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
        embeddings: bool | str = False,
        activations: str = "auto",
        repack: str = "auto",
        fuse: bool = False,
        module_formats: Mapping[str, str] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise ArgumentError(
                f"quant_method: expected {METHOD!r}, got {quant_method!r}"
            )
        self.quant_method = METHOD
        self.format = _format_of(bits, format)
        self.modules_to_not_convert = _names(modules_to_not_convert)
        self.embeddings = _embeddings(embeddings, self.format)
        self.activations = _choice("activations", activations)
        self.repack = _choice("repack", repack)
        self.fuse = _flag("fuse", fuse)
        self.module_formats = _module_formats(module_formats)

    @property
    def table_format(self) -> str | None:
        """Format of tables; None if they stay as they are."""
        return self.format if self.embeddings is True else self.embeddings or None

    def to_diff_dict(self) -> dict[str, object]:
        """Whatever it takes to make an equal one."""
        kept: dict[str, object] = {
            name: value for name, value in self.to_dict().items() if value is not None
        }
        return kept


def _format_of(bits: int | None, format: str | None) -> str:
    if bits is not None and bits not in _OF_BITS:
        known = ", ".join(str(n) for n in _OF_BITS)
        raise ArgumentError(f"bits: expected one of {known}, got {bits!r}")
    if format is None:
        return _OF_BITS[bits or 4]
    writable = _writable("format", format)
    if bits is not None and _OF_BITS[bits] != writable.name:
        raise ArgumentError(
            f"bits: {bits} stand for {_OF_BITS[bits]}, and format is {format!r}: "
            "pass one of the two"
        )
    return writable.name


def _writable(name: str, format: object) -> FormatInfo:
    known = [f for f in formats() if format_info(f).writable]
    if format not in known:
        raise ArgumentError(
            f"{name}: expected one of {', '.join(known)}, got {format!r}"
        )
    return format_info(str(format))


def _names(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(
            f"modules_to_not_convert: expected a list of names, got {names!r}"
        )
    return list(names)


def _embeddings(embeddings: bool | str, format: str) -> bool | str:
    if embeddings is False:
        return False
    of_table = format if embeddings is True else embeddings
    # Transformers takes the type of a model from its first float tensor. Where the
    # tables are packed, that must not be the scales of rows.
    if _writable("embeddings", of_table).row_scaled or format_info(format).row_scaled:
        raise ArgumentError(
            f"embeddings: tables are packed in and beside formats of blocks, such as "
            f"q4_0 and q6_k, got {of_table} beside {format}"
        )
    return embeddings


def _choice(name: str, value: str) -> str:
    if value not in _CHOICES[name]:
        known = ", ".join(repr(choice) for choice in _CHOICES[name])
        raise ArgumentError(f"{name}: expected one of {known}, got {value!r}")
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected True or False, got {value!r}")
    return value


def _module_formats(found: Mapping[str, str] | None) -> dict[str, str] | None:
    if found is None:
        return None
    if not isinstance(found, Mapping) or not all(isinstance(n, str) for n in found):
        raise ArgumentError(
            f"module_formats: expected names of modules to formats, got {found!r}"
        )
    known = formats()
    for name, format in found.items():
        if format not in known:
            raise ArgumentError(
                f"module_formats: {name!r}: expected one of {', '.join(known)}, "
                f"got {format!r}"
            )
    return dict(found)
