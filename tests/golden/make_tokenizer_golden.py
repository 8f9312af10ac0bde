# tests/golden/make_tokenizer_golden.py
# Records what llama.cpp makes of many strings.
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001
"""Records what llama.cpp makes of many strings with the vocabulary of Gemma 3 270M.

    OMP_NUM_THREADS=1 python make_tokenizer_golden.py gemma-3-270m.gguf

writes ``tokenizer_gemma3.json`` beside this file: a list of cases, each a text, whether
spellings of control tokens are parsed, and the ids, without a bos. The vocabulary itself
is not recorded; tests that use the file need the same GGUF.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import llama_cpp

PLAIN = [
    "",
    " ",
    "a",
    "hello",
    " hello",
    "hello ",
    "Hello world! Café déjà vu — 123 😊",
    "Hello,",
    "thought",
    "user\nHello.",
    "The quick brown fox jumps over the lazy dog.",
    "I don't know; can't you say? She's told us they'd've gone.",
    "CamelCaseIdentifier snake_case_identifier kebab-case SCREAMING_CASE",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "Donaudampfschifffahrtsgesellschaftskapitän, Rindfleischetikettierungsgesetz",
    "supercalifragilisticexpialidocious" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababab",
    "=" * 100,
    "-" * 77,
    "." * 50,
    "_" * 33,
    "*" * 19,
    "ha" * 40,
    "lorem ipsum dolor sit amet " * 8,
]

DIGITS = [
    "0",
    "7",
    "42",
    "1234567890",
    "3.14159265358979323846264338327950288",
    "1,000,000.00",
    "-273.15 °C",
    "2026-07-09T12:34:56Z",
    "0xDEADBEEF 0b1010 0o777 1e-10",
    "+49 (0)30 1234-5678",
    "½ ¼ ¾ ² ³ ¹ ₀ ₁ ① ② Ⅳ",
    "٠١٢٣٤٥٦٧٨٩ ०१२३४५६७८९ ０１２３",
    "a1b2c3d4",
    "12 345 678",
]

SCRIPTS = [
    "Bonjour, où êtes-vous né ? L'été, ça coûte 5 €.",
    "Ärger über Öl, Straße, ẞ, „Zitat“",
    "¿Qué pasó mañana? ¡Olé!",
    "Zażółć gęślą jaźń",
    "İstanbul'da ığdır şöyle",
    "Đây là tiếng Việt, có dấu thanh: ắ ằ ẳ ẵ ặ",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "שלום עולם, מה שלומך?",
    "שָׁלוֹם עֲלֵיכֶם",
    "مرحبا بالعالم، كيف حالك؟",
    "السَّلَامُ عَلَيْكُمْ",
    "سلام دنیا، می‌خواهم",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय",
    "আমি বাংলায় গান গাই",
    "தமிழ் மொழி",
    "తెలుగు భాష",
    "ಕನ್ನಡ ನುಡಿ",
    "മലയാളം",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "ພາສາລາວ",
    "မြန်မာဘာသာ",
    "ភាសាខ្មែរ",
    "ქართული ენა",
    "Հայերեն լեզու",
    "አማርኛ ቋንቋ",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "ᐃᓄᒃᑎᑐᑦ",
    "བོད་སྐད།",
    "你好，世界！今天天气怎么样？",
    "繁體中文測試：龍、龜、鬱",
    "日本語のテスト。ひらがなカタカナ漢字ﾊﾝｶｸ",
    "안녕하세요 세계, 반갑습니다",
    "안녕 (조합형)",
    "𠮷野家で𩸽を食べる",
    "㍿ ㌔ ㎏ ﷽",
    "𝕳𝖊𝖑𝖑𝖔 𝓦𝓸𝓻𝓵𝓭 𝟙𝟚𝟛",
    "ℵ₀ ∀x∈ℝ: ∃y ≥ x² ⇒ ∑ᵢ xᵢ ≠ ∞ ∂f/∂x",
    "𐍈 𐌰𐌱 𒀀𒁀 𓀀𓀁",
]

EMOJI = [
    "😊",
    "😊😊😊",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "👩🏾‍💻 writes code",
    "🏳️‍🌈",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "🇩🇪🇯🇵🇺🇸",
    "1️⃣2️⃣3️⃣",
    "❤️‍🔥",
    "☺️ ☺ ☹︎",
    "🫠🫡🫶🪬🫨",
    "a😊b👍c🎉d",
    "🧑🏿‍🤝‍🧑🏻",
    "⌚⏰⏳☕♿⚡⛔",
]

COMBINING = [
    "e\u0301",
    "e\u0301\u0301\u0301\u0301",
    "\u0301",
    "\u0301" * 30,
    "Z̷̢̛̝̦̫a̸̧̢̱̮l̴̨̧̙g̷̡̢̛o̶̧̡̨",
    "a\u030a vs \u00e5",
    "n\u0303 o\u0308 c\u0327",
    "\u1100\u1161\u11a8",
    "क\u094dष\u093f",
    "x\u20d7 y\u0305",
]

ODD = [
    "\u00a0non\u00a0breaking",
    "zero\u200bwidth\u200cjoin\u200der\u2060\ufeff",
    "\ufeffbom at start",
    "\u202eright to left\u202c",
    "soft\u00adhyphen",
    "ideographic\u3000space",
    "line\u2028para\u2029sep",
    "form\x0cfeed vertical\x0btab bell\x07 esc\x1b[31m",
    "\x01\x02\x03\x7f",
    "nul\x00inside",
    "\ue000\ue001 private",
    "\U0010ffff\U000f0000",
    "\ufffd\ufffd",
    "\ufffe\uffff",
    "\u0378\u0379 unassigned",
    "ƿ ȝ ɮ ʢ ꜣ ꟸ",
    "▁literal▁lower▁one▁eighth▁block",
    "▁",
    "▁▁▁",
    " ▁ ▁ ",
    "<0x41>",
    "<0x0A><0xE2><0x96><0x81>",
    "<0x",
    "<0xZZ>",
    "\u2581 \u2582\u2583\u2588 ░▒▓",
    "ꦲꦏ꧀ꦱꦫ ꦗꦮ",
    "🀄🂡🃟",
    "𑄌𑄋𑄴𑄟𑄳𑄦 𞤀𞤣𞤤𞤢𞤥",
    "᚛ᚑᚌᚐᚋ᚜ ᚠᛇᚻ",
    "⠠⠓⠑⠇⠇⠕",
    "𝄞𝄢♩♪♫",
    "܀ ܫܠܡܐ ߒߞߏ ⴰⵎⴰⵣⵉⵖ",
    "ɐ̯ ʃ t͡ʃ ˈhɛləʊ̯",
]

WHITESPACE = (
    [" " * n for n in range(1, 41)]
    + ["\n" * n for n in range(1, 41)]
    + ["\t" * n for n in (1, 2, 3, 4, 7, 16, 31, 32, 40)]
    + [
        "a" + " " * 2 + "b",
        "a" + " " * 3 + "b",
        "a" + " " * 33 + "b",
        "a" + "\n" * 2 + "b",
        "a" + "\n" * 35 + "b",
        "a\r\nb\r\n\r\nc\r",
        "\r",
        " \n \n \n",
        "\n \n",
        "  \n\t \n  ",
        "\t \t ",
        "a \n b",
        "trailing   ",
        "   leading",
        "tabs\tand\t\tspaces  \t mixed",
        "\n\n  indented\n\n    more\n",
        "one  two   three    four     five",
    ]
)

CODE = [
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return None\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n",
    "#include <vector>\n#include <string>\n\nint main() { return 0; }\n",
    "SELECT * FROM t WHERE id = 42 AND name LIKE '%x%';",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9"}}',
    "https://example.org/a/b?c=d&e=f#g mailto:x@y.z",
    "C:\\Users\\x\\file.txt /usr/bin/env python3",
    "let f = |x: &str| -> Result<(), Box<dyn Error>> { Ok(()) };",
    "// comment ///// ****** /* block */ # hash ## // <? ?>",
    "x = y if z else w  # comment\n\n\nclass A(B): ...\n",
    "\\begin{align} \\frac{a}{b} &= \\sqrt{x^2} \\end{align}",
    "$ git commit -m 'fix' && make -j2 2>&1 | tee log",
    "a<-c(1,2); b|>f() ; x||y; x|>g; !@#$%^&*()_+-=[]{};':\",./<>?`~",
    "```python\nprint('hi')\n```\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "base64: SGVsbG8sIHdvcmxkIQ== c2hhMjU2Cg==",
    "550e8400-e29b-41d4-a716-446655440000",
]

HTML = [
    "<table><tr><td>x</td></tr></table>",
    "<html><body><h1>Title</h1><p>text</p></body></html>",
    "<b>bold</b> <i>it</i> <u>u</u> <code>c</code>",
    "<strong>a</strong><em>b</em><sub>1</sub><sup>2</sup>",
    "<ul>\n  <li>one</li>\n  <li>two</li>\n</ul>",
    "<div class='x'><span>y</span></div>",
    "<TABLE> <Table> <table > < table>",
    "<a href='x'>y</a> <img src='z'/> <br/>",
    "<tab<table>le>",
    "<h1<h2><h7>",
    "<blockquote>q</blockquote><iframe></iframe><footer></footer>",
    "[multimodal] [multi modal] [multimodal",
    "&lt;table&gt; &amp; &#x27;",
]

# `</s>` is left out without parsing: llama.cpp calls it an end token by its name there,
# while the vocabulary says it is an ordinary tag, as the end of `<s>`.
MARKERS = [
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<bos><bos>",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn>",
    "<end_of_turn>",
    " <start_of_turn> ",
    "<start_of_turn",
    "start_of_turn>",
    "<start_of_image><end_of_image>",
    "<unused0><unused1><unused98>",
    "<unused99><unused6241>",
    "<unused9> <unused62> <unused624>",
    "<unused>",
    "<unused6242>",
    "<bos <bos> bos>",
    "a<eos>b",
    "a <eos> b",
    "é<eos>é",
    "<table><bos></table>",
    "\n\n<start_of_turn>\n\n",
    "  <end_of_turn>  ",
    "<<bos>>",
    "<|turn>user\nx<turn|>",
    "<|im_start|>user",
    "[INST] x [/INST]",
    "<0x41><bos><0x0A>",
]


def cases() -> list[tuple[str, bool]]:
    """Every text with the parsing of control tokens off, the markers also with it on."""
    texts = (
        PLAIN + DIGITS + SCRIPTS + EMOJI + COMBINING + ODD + WHITESPACE + CODE + HTML
    )
    texts += MARKERS
    off = [(text, False) for text in texts]
    on = [(text, True) for text in MARKERS + HTML + PLAIN[:8] + ["<s>a</s>"]]
    return off + on


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    model = llama_cpp.Llama(parser.parse_args().gguf, vocab_only=True, verbose=False)
    lines = []
    for text, special in cases():
        ids = model.tokenize(text.encode(), add_bos=False, special=special)
        case = {"text": text, "special": special, "ids": ids}
        lines.append(json.dumps(case, separators=(",", ":")))
    head = {
        "source": f"llama-cpp-python {llama_cpp.__version__}, vocab_only",
        "model": "gemma-3-270m-q4_k_m.gguf",
        "sha256": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    }
    out = Path(__file__).with_name("tokenizer_gemma3.json")
    body = json.dumps(head)[:-1] + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n"
    out.write_text(body, encoding="ascii")


if __name__ == "__main__":
    main()
