# tests/python/test_cli.py
# The command as users run it: another process, real files, real pipes and terminals.
# SPDX-License-Identifier: Apache-2.0
"""The command `halfbyte`, run as another process on tiny models."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
from halfbyte import __version__, bundled, choice, demo, doctor, load
from halfbyte._sizes import size_text
from halfbyte.cli import memory, models, terminal
from halfbyte.cli.errors import one_line

HELP = Path(__file__).parent.parent / "golden" / "cli_help.txt"
COMMANDS = (
    "run",
    "chat",
    "batch",
    "inspect",
    "convert",
    "repair",
    "lineage",
    "verify",
    "tokenize",
    "perplexity",
    "bench",
    "doctor",
)
PROMPT = "the end of the line and"

# A context that no test fills: an answer there goes on until it is stopped.
ENDLESS = 200_000

_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


# --- Running it ------------------------------------------------------------------------


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment of a plain terminal, with a cache of its own."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HALFBYTE_", "NO_COLOR", "CI", "XDG_", "_HALFBYTE"))
    }
    own = {"COLUMNS": "80", "TERM": "xterm", "HALFBYTE_CACHE": str(tmp_path / "cache")}
    return kept | own


class Command:
    """Runs `halfbyte` in another process."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    def __call__(
        self, *args: object, stdin: bytes = b"", code: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end and check the exit code."""
        done = subprocess.run(
            self.line(*args),
            input=stdin,
            check=False,
            capture_output=True,
            env=self.env,
            timeout=120,
        )
        assert done.returncode == code, done.stderr.decode()
        return done

    def json(self, *args: object, **kwargs: Any) -> Any:
        return json.loads(self(*args, "--json", **kwargs).stdout)

    def start(self, *args: object, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.line(*args), env=self.env, **streams)

    def line(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "halfbyte", *map(str, args)]


@pytest.fixture
def halfbyte(env: dict[str, str]) -> Command:
    return Command(env)


def one_error_line(stderr: bytes) -> str:
    """The message, checked to be one line without a traceback."""
    lines = stderr.decode().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("halfbyte: ")
    return lines[0]


# --- Models ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def plain(folder: Path) -> Path:
    """A model without a chat template and with room for an endless answer."""
    extra = {"context_length": ENDLESS}
    return tiny.save_gguf(tiny.talkative("gemma3"), folder / "plain.gguf", extra=extra)


@pytest.fixture(scope="session")
def talking(folder: Path) -> Path:
    """A model with a chat template and recommended sampling parameters."""
    path = folder / "talking.gguf"
    original = tiny._add_tokenizer

    def with_template(writer: gguf.GGUFWriter, arch: str) -> None:
        original(writer, arch)
        template = "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }}"
        writer.add_chat_template(template)
        writer.add_float32("general.sampling.temp", 0.75)
        writer.add_int32("general.sampling.top_k", 64)
        writer.add_float32("general.sampling.top_p", 0.95)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "_add_tokenizer", with_template)
        return tiny.save_gguf(
            tiny.talkative("e2b"), path, extra={"context_length": ENDLESS}
        )


@pytest.fixture(scope="session")
def vast(folder: Path) -> Path:
    """A model larger than any memory that takes no room on the disk."""
    return tiny.save_vast_gguf(folder / "vast.gguf")


@pytest.fixture(scope="session")
def foreign(folder: Path) -> Path:
    """A well-formed file of an architecture that cannot be run here."""
    writer = gguf.GGUFWriter(folder / "foreign.gguf", "llama")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(2048)
    writer.add_string("general.name", "evil\x1b[31m\nname" + "y" * 200)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(1000)])
    writer.add_tensor("one", tiny.np.zeros((3, 64), tiny.np.float32))
    raw = tiny.np.zeros((2, 34), tiny.np.uint8)
    writer.add_tensor("two", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "foreign.gguf"


# --- Help ------------------------------------------------------------------------------


def all_help(halfbyte: Command) -> str:
    texts = []
    for command in ((), *((name,) for name in COMMANDS)):
        out = halfbyte(*command, "--help").stdout.decode()
        texts.append(f"$ halfbyte {' '.join((*command, '--help'))}\n{out}")
    return "\n".join(texts)


def test_help_is_what_was_agreed(halfbyte: Command) -> None:
    """Words and layout of every help text.

    `HALFBYTE_UPDATE_HELP=1 pytest tests/python/test_cli.py -k agreed` writes the file
    again; read the difference before committing it.
    """
    here = "typer " + ".".join(metadata.version("typer").split(".")[:2])
    found = all_help(halfbyte)
    if os.environ.get("HALFBYTE_UPDATE_HELP"):
        HELP.write_text(f"{here}\n{found}", encoding="utf-8")
        return
    made_by, _, expected = HELP.read_text(encoding="utf-8").partition("\n")
    if made_by != here:
        pytest.skip(f"the layout is that of {made_by}, this is {here}")
    assert found == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_fit(halfbyte: Command, command: str) -> None:
    lines = halfbyte(command, "--help").stdout.decode().splitlines()
    start = lines.index("  Examples:")
    examples = [line for line in lines[start + 1 :] if "halfbyte " in line]
    assert 2 <= len(examples) <= 4
    assert max(map(len, lines)) <= 80
    options = set(re.findall(r"--[a-z-]+", "\n".join(lines[:start])))
    used = set(re.findall(r"--[a-z-]+", "\n".join(examples)))
    assert used <= options


def test_help_loads_nothing_heavy(halfbyte: Command) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "halfbyte", "--help"]
    done = subprocess.run(command, env=halfbyte.env, capture_output=True, check=True)
    loaded = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"typer" in loaded
    assert not loaded & {b"rich", b"torch", b"transformers", b"readline"}


def test_the_library_does_not_load_the_command_line(env: dict[str, str]) -> None:
    program = (
        "import sys, halfbyte; halfbyte.load; "
        "sys.exit(bool({'typer', 'rich', 'halfbyte.cli', 'readline'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], env=env, check=True)


def test_version_and_no_arguments(halfbyte: Command) -> None:
    assert halfbyte("--version").stdout.decode() == f"halfbyte {__version__}\n"
    assert halfbyte().stdout == halfbyte("--help").stdout


# --- run -------------------------------------------------------------------------------


def test_run_streams_the_continuation_alone(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, PROMPT, "-n", 20)
    document = halfbyte.json("run", plain, PROMPT, "-n", 20)
    text = document["text"]
    assert text
    assert done.stdout.decode() == text.removesuffix("\n") + "\n"
    note, stats = done.stderr.decode().splitlines()
    assert "no chat template" in note
    assert re.fullmatch(
        r"prompt \d+ tokens, [\d.]+ tok/s \| answer 20 tokens, [\d.]+ tok/s \| "
        r"peak memory [\d,.]+ [GMK]iB",
        stats,
    )


def test_run_json_is_complete(halfbyte: Command, plain: Path) -> None:
    document = halfbyte.json("run", plain, PROMPT, "-n", 5)
    assert document["schema"] == 1
    assert document["model"] == str(plain)
    assert document["prompt"] == PROMPT
    assert document["system"] is None
    assert document["finish_reason"] == "length"
    assert document["sampling"]["temperature"] == 0
    stats = document["stats"]
    ids = halfbyte.json("tokenize", plain, PROMPT)["ids"]
    assert stats["prompt_tokens"] == len(ids)
    assert stats["generated_tokens"] == 5
    assert stats["decode_seconds"] > 0
    assert stats["peak_rss_bytes"] > 1 << 20


def test_run_is_silent_on_request(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, PROMPT, "-n", 3, "--quiet")
    assert done.stderr == b""
    assert done.stdout


def test_the_prompt_comes_from_stdin(halfbyte: Command, plain: Path) -> None:
    document = halfbyte.json("run", plain, "one\ntwo", "-n", 8)
    for args in ((plain,), (plain, "-")):
        piped = halfbyte.json("run", *args, "-n", 8, stdin=b"one\ntwo\n")
        assert piped["prompt"] == "one\ntwo"
        assert piped["text"] == document["text"]


def test_stdin_that_is_no_text_is_refused(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, stdin=b"caf\xe9", code=2)
    assert "not UTF-8 at byte 3" in one_error_line(done.stderr)
    done = halfbyte("run", plain, code=2)
    assert "no text" in one_error_line(done.stderr)


@pytest.mark.parametrize("text", ["one\ntwo", "one\ntwo\r\n", "\ufeffone\ntwo\n"])
def test_the_prompt_comes_from_a_file(
    halfbyte: Command, plain: Path, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "question.txt"
    file.write_bytes(text.encode())
    options = ("-n", 8, "--quiet")
    typed = halfbyte.json("run", plain, "one\ntwo", *options)
    read = halfbyte.json("run", plain, "--file", file, *options)
    assert (read["prompt"], read["text"]) == ("one\ntwo", typed["text"])
    assert read["model"] == str(plain)
    piped = halfbyte.json("run", plain, "--file", "-", *options, stdin=text.encode())
    assert (piped["prompt"], piped["text"]) == ("one\ntwo", typed["text"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{file}: no text"),
        (b"caf\xe9", "{file}: not UTF-8 at byte 3"),
        ("two".encode("utf-16"), "{file}: not UTF-8 at byte 0"),
        (b"word " * 200_000, "prompt: found "),  # more than the context holds
        (None, "{file}: No such file or directory"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused(
    halfbyte: Command,
    plain: Path,
    tmp_path: Path,
    content: bytes | None,
    message: str,
) -> None:
    file = tmp_path / "question.txt"
    if content is not None:
        file.write_bytes(content)
    done = halfbyte("run", plain, "--file", file, "--context", 100, "--quiet", code=2)
    assert one_error_line(done.stderr).startswith(
        f"halfbyte: {message.format(file=file)}"
    )
    assert done.stdout == b""


def test_a_file_larger_than_any_prompt_is_not_read(
    halfbyte: Command, plain: Path
) -> None:
    done = halfbyte("run", plain, "--file", "/dev/zero", code=2)
    assert one_error_line(done.stderr) == (
        "halfbyte: /dev/zero: more than 64.0 MiB of text"
    )


def test_a_folder_is_no_prompt(halfbyte: Command, plain: Path, tmp_path: Path) -> None:
    done = halfbyte("run", plain, "--file", tmp_path, code=2)
    assert one_error_line(done.stderr) == f"halfbyte: {tmp_path}: Is a directory"


def test_two_prompts_are_refused(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, PROMPT, "--file", "-", code=2)
    assert "a prompt and --file" in one_error_line(done.stderr)
    done = halfbyte("run", PROMPT, "--file", "-", stdin=b"more", code=2)
    assert PROMPT in one_error_line(done.stderr)  # no model of that name


def test_stdin_above_the_context_is_refused_at_once(
    halfbyte: Command, plain: Path
) -> None:
    start = time.perf_counter()
    done = halfbyte(
        "run", plain, "--context", 100, "--quiet", stdin=b"word " * 200_000, code=2
    )
    assert "100" in one_error_line(done.stderr)
    assert done.stdout == b""
    # Computing a million tokens takes minutes even here; refusing takes none.
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    "option",
    ["--text=x", "-n=3", "--max-kl=0", "--min-top1=1", "--activations=f32"],
)
def test_a_comparison_needs_somebody_to_compare_with(
    halfbyte: Command, plain: Path, option: str
) -> None:
    """A check that compares nothing would pass."""
    done = halfbyte("verify", plain, *option.split("="), code=2)
    assert "need --against" in one_error_line(done.stderr)


@pytest.mark.parametrize("command", ["perplexity", "verify"])
def test_a_text_is_bounded_and_there(
    halfbyte: Command, plain: Path, tmp_path: Path, command: str
) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for file, message in (
        (empty, f"{empty}: no text"),
        ("/dev/zero", "/dev/zero: more than 64.0 MiB of text"),
    ):
        options = ("--file", file)
        if command == "verify":
            options = ("--against", plain, "--text", file)
        done = halfbyte(command, plain, *options, code=2)
        assert one_error_line(done.stderr) == f"halfbyte: {message}"


def test_a_lone_argument_is_the_prompt_of_the_demo_model(
    halfbyte: Command, plain: Path
) -> None:
    cache = Path(halfbyte.env["HALFBYTE_CACHE"])
    cache.mkdir()
    made = cache / demo.NAME
    made.symlink_to(plain)
    found = plain.stat()
    stamp = f"{demo.SHA256} {found.st_size} {found.st_mtime_ns}\n"
    made.with_name(demo.NAME + ".checked").write_text(stamp)
    question = cache / "question.txt"
    question.write_text(PROMPT)
    for args in ((PROMPT,), ("--file", question)):
        document = halfbyte.json("run", *args, "-n", 4)
        assert document["prompt"] == PROMPT
    assert document["model"] == str(made)
    assert document["text"] == halfbyte.json("run", plain, PROMPT, "-n", 4)["text"]
    assert halfbyte.json("tokenize", "the")["model"] == str(made)


def test_without_the_extra_one_line_says_how_to_get_it(halfbyte: Command) -> None:
    program = (
        "import sys; from halfbyte import demo; from halfbyte.cli import main; "
        "demo.PARTS = (demo.Part('no_such_package', 'data/x'),); "
        "sys.exit(main(['run', 'hi']))"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=halfbyte.env, capture_output=True, check=False)
    assert done.returncode == 2
    assert 'pip install "halfbyte[demo]"' in one_error_line(done.stderr)


def test_the_same_seed_gives_the_same_text(halfbyte: Command, plain: Path) -> None:
    args = ("run", plain, PROMPT, "-n", 24, "--temp", 2, "--top-k", 50)
    first = halfbyte.json(*args)
    seed = first["sampling"]["seed"]
    assert halfbyte.json(*args, "--seed", seed)["text"] == first["text"]
    # Two unseeded answers of 24 tokens are equal with a chance below 1e-9.
    assert halfbyte.json(*args)["text"] != first["text"]


def test_sampling_options_turn_sampling_on(halfbyte: Command, plain: Path) -> None:
    sampling = halfbyte.json("run", plain, PROMPT, "-n", 1, "--min-p", 0.1)["sampling"]
    assert sampling["temperature"] == 1
    assert sampling["min_p"] == 0.1


def test_guesses_change_no_answer(halfbyte: Command, plain: Path) -> None:
    text = "the end of the line, the end of the line, the end of"
    args = ("run", plain, text, "-n", 40, "--raw", "--temp", 0)
    alone, guessing = (halfbyte.json(*args, "--draft", n) for n in (0, 16))
    assert guessing["text"] == alone["text"]
    assert alone["stats"]["drafted_tokens"] == 0
    assert guessing["stats"]["accepted_tokens"] > 0
    assert b" guesses came)" in halfbyte(*args, "--draft", 16).stderr
    halfbyte(*args, "--draft", 17, code=2)


def test_the_models_own_sampling_is_the_default(
    halfbyte: Command, talking: Path
) -> None:
    sampling = halfbyte.json("run", talking, "Hi", "-n", 1)["sampling"]
    assert (sampling["temperature"], sampling["top_k"]) == (0.75, 64)
    assert sampling["top_p"] == pytest.approx(0.95, abs=1e-7)  # a float32 in the file
    greedy = halfbyte.json("run", talking, "Hi", "-n", 1, "--temp", 0)["sampling"]
    assert greedy["temperature"] == 0


def test_a_template_wraps_the_prompt_unless_raw(
    halfbyte: Command, talking: Path
) -> None:
    count = len(halfbyte.json("tokenize", talking, "Hello")["ids"])
    options = ("-n", 1, "--temp", 0)
    raw = halfbyte.json("run", talking, "Hello", *options, "--raw")
    assert raw["stats"]["prompt_tokens"] == count
    turn = halfbyte.json("run", talking, "Hello", *options)
    assert turn["stats"]["prompt_tokens"] > count
    told = halfbyte.json("run", talking, "Hello", *options, "-s", "Be brief.")
    assert told["stats"]["prompt_tokens"] > turn["stats"]["prompt_tokens"]
    done = halfbyte("run", talking, "Hello", *options)
    assert len(done.stderr.splitlines()) == 1


def test_a_system_text_needs_a_template(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, PROMPT, "-s", "Be brief.", code=2)
    assert "--system" in one_error_line(done.stderr)


def test_think_asks_for_thoughts(halfbyte: Command) -> None:
    options = ("-n", 1, "--temp", 0)
    plain = halfbyte.json("run", "tiny", "Hello", *options)
    assert (plain["thought"], plain["tool_calls"]) == ("", [])
    for option in ("--think", "--show-thoughts"):
        asked = halfbyte.json("run", "tiny", "Hello", *options, option)
        # <|turn> system, a line break, <|think|>, a line break, <turn|>, a line break
        more = asked["stats"]["prompt_tokens"] - plain["stats"]["prompt_tokens"]
        system = halfbyte.json("tokenize", "tiny", "system")["ids"][1:]
        assert more == 6 + len(system)
        talk = halfbyte("chat", "tiny", *options, option, "--stats", stdin=b"Hello\n")
        prompt = f"prompt {asked['stats']['prompt_tokens']} tokens"
        assert talk.stderr.decode().startswith(prompt)


def test_thinking_needs_a_template(halfbyte: Command, plain: Path) -> None:
    for args in (
        ("run", plain, PROMPT),
        ("run", "tiny", "Hello", "--raw"),
        ("chat", plain),
    ):
        done = halfbyte(*args, "--think", code=2)
        assert "--think needs a chat template" in one_error_line(done.stderr)


# --- How it ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "no/such.gguf", "hi"), "no/such.gguf: No such file"),
        (("run", "no-such.gguf"), "no-such.gguf: No such file"),
        (("inspect", "no\nsuch"), r"no\x0asuch: No such file"),
        (("tokenize", "no-such.gguf", "hi"), "No such file"),
        (("perplexity", "x.gguf", "--file", "no-such.txt"), "no-such.txt: No such"),
        (("perplexity", "x.gguf"), "--file"),
        (("run", "a", "b", "c"), "unexpected extra argument"),
        (("run", "-n", "x", "hi"), "max-tokens"),
        (("run", "--top-p", "1.5", "hi"), "top-p"),
        (("run", "--top-p", "0", "hi"), "top-p"),
        (("run", "--min-p", "1", "hi"), "min-p"),
        (("chat", "--temp", "inf"), "temp"),
        (("chat", "--repeat-penalty", "nan"), "repeat-penalty"),
        (("chat", "--seed", str(2**64)), "seed"),
        (("convert", "tiny", ""), "a name is empty"),
        (("repair", "tiny", ""), "a name is empty"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_usage_errors_end_with_2(
    halfbyte: Command, args: tuple[str, ...], words: str
) -> None:
    done = halfbyte(*args, code=2)
    assert words in one_error_line(done.stderr)
    assert done.stdout == b""


def test_a_folder_for_a_file_ends_with_2(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    for args in (
        ("perplexity", plain, "--file", tmp_path),
        ("repair", tmp_path, tmp_path / "out.gguf"),
        ("inspect", plain / "file"),
    ):
        assert "director" in one_error_line(halfbyte(*args, code=2).stderr)


@pytest.mark.parametrize("command", ["run", "inspect", "tokenize"])
def test_an_empty_name_is_said(halfbyte: Command, command: str) -> None:
    text = ("hi",) if command != "inspect" else ()
    said = one_error_line(halfbyte(command, "", *text, code=2).stderr)
    assert said == "halfbyte: a name is empty: expected that of a model or file"


@pytest.mark.parametrize("command", ["run", "inspect", "tokenize"])
def test_a_bad_file_ends_with_4(
    halfbyte: Command, plain: Path, tmp_path: Path, command: str
) -> None:
    text = ("hi",) if command != "inspect" else ()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"<!DOCTYPE html><html>" + bytes(200))
    assert "[GGUF_BAD_MAGIC]" in one_error_line(
        halfbyte(command, bad, *text, code=4).stderr
    )
    whole = plain.read_bytes()
    bad.write_bytes(whole[: len(whole) - 1000])
    assert "[GGUF_DATA_TRUNCATED]" in one_error_line(
        halfbyte(command, bad, *text, code=4).stderr
    )


def test_weights_that_are_no_numbers_end_with_4(
    halfbyte: Command, tmp_path: Path
) -> None:
    model = tiny.build("gemma3", wide=True)
    with tiny.torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    source = tiny.save_gguf(model, tmp_path / "nan.gguf")
    done = halfbyte("convert", source, tmp_path / "out.gguf", "--quiet", code=4)
    assert "found nan in row 0" in one_error_line(done.stderr)
    done = halfbyte("run", source, "hi", "--quiet", code=4)
    assert "logits: found NaN" in one_error_line(done.stderr)


def test_a_folder_that_one_may_not_enter_is_said(tmp_path: Path) -> None:
    locked, user = tmp_path / "locked", os.geteuid()
    locked.mkdir(mode=0)
    os.seteuid(user or 65534)  # root may enter any
    try:
        with pytest.raises(PermissionError) as caught:
            models.existing(str(locked / "model.gguf"))
    finally:
        os.seteuid(user)
    assert one_line(caught.value) == f"{locked / 'model.gguf'}: Permission denied"


def test_an_unusable_cache_is_said_with_its_variable(tmp_path: Path) -> None:
    program = (
        "import sys; from halfbyte import demo; from halfbyte.cli import main; "
        "demo.PARTS = (); sys.exit(main(['run', 'hi']))"
    )
    file = tmp_path / "file"
    file.touch()
    line = [sys.executable, "-c", program]
    env = {**os.environ, "HALFBYTE_CACHE": str(file / "cache")}
    done = subprocess.run(line, env=env, capture_output=True, check=False, timeout=60)
    assert one_error_line(done.stderr) == (
        f"halfbyte: {file / 'cache'}: Not a directory "
        "(HALFBYTE_CACHE moves the demo model)"
    )


@pytest.mark.parametrize("command", ["convert", "repair"])
def test_a_model_is_not_written_over_itself(
    halfbyte: Command, plain: Path, tmp_path: Path, command: str
) -> None:
    source, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    shutil.copy(plain, source)
    before = source.read_bytes()
    other.hardlink_to(source)
    options = ("--force",) if command == "repair" else ()
    for target in (source, other):
        done = halfbyte(command, source, target, *options, code=2)
        assert one_error_line(done.stderr) == (
            f"halfbyte: {target}: found the file that is read; expected another one"
        )
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "other.gguf"]


def test_what_stands_beside_the_weights_is_not_written_over(
    halfbyte: Command, tmp_path: Path
) -> None:
    tiny.save_hf(tiny.build("gemma3", wide=True), tmp_path / "hf")
    config = tmp_path / "hf/config.json"
    before = config.read_bytes()
    done = halfbyte("convert", tmp_path / "hf", config, code=2)
    assert "found the file that is read" in one_error_line(done.stderr)
    assert config.read_bytes() == before


def test_a_foreign_architecture_ends_with_4(halfbyte: Command, foreign: Path) -> None:
    done = halfbyte("run", foreign, "hi", code=4)
    assert "llama" in one_error_line(done.stderr)


def test_debug_shows_where_it_happened(halfbyte: Command, foreign: Path) -> None:
    done = halfbyte("run", foreign, "hi", "--debug", code=4)
    assert b"Traceback (most recent call last)" in done.stderr


def test_a_context_above_the_models_ends_with_2(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("run", plain, "hi", "--context", 2 * ENDLESS, code=2)
    assert str(ENDLESS) in one_error_line(done.stderr)


def test_a_model_larger_than_memory_ends_with_5(halfbyte: Command, vast: Path) -> None:
    start = time.perf_counter()
    done = halfbyte("run", vast, "hi", code=5)
    assert re.search(r"[\d.]+ GiB needed .*, [\d.]+ GiB", one_error_line(done.stderr))
    assert time.perf_counter() - start < 30


def test_ctrl_c_prints_what_there_is_and_ends_with_130(
    halfbyte: Command, plain: Path
) -> None:
    args = ("run", plain, PROMPT, "-n", ENDLESS, "--context", ENDLESS)
    pipe = subprocess.PIPE
    process = halfbyte.start(*args, stdout=pipe, stderr=pipe, stdin=pipe)
    assert process.stdout is not None
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first) == 20
    assert rest.endswith(b"\n")
    assert b"Traceback" not in stderr
    whole = halfbyte.json("run", plain, PROMPT, "-n", 500)["text"].encode()
    length = min(len(whole), len(first + rest.removesuffix(b"\n")))
    assert (first + rest)[:length] == whole[:length]


def test_ctrl_c_still_gives_the_json(halfbyte: Command, plain: Path) -> None:
    args = ("run", plain, PROMPT, "-n", ENDLESS, "--context", ENDLESS, "--json")
    pipe = subprocess.PIPE
    process = halfbyte.start(*args, stdout=pipe, stderr=pipe, stdin=pipe)
    assert process.stderr is not None
    assert b"no chat template" in process.stderr.readline()
    time.sleep(0.5)  # into the answer
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(stdout)["finish_reason"] == "interrupted"
    assert json.loads(stdout)["text"]


def test_a_closed_pipe_ends_quietly(halfbyte: Command, plain: Path) -> None:
    line = " ".join(
        halfbyte.line("run", plain, "the", "-n", ENDLESS, "--context", ENDLESS)
    )
    done = subprocess.run(
        ["bash", "-c", f"{line} --quiet | head -c 1; exit ${{PIPESTATUS[0]}}"],
        env=halfbyte.env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 141
    assert len(done.stdout) == 1
    assert done.stderr == b""


# --- A terminal ------------------------------------------------------------------------


class Terminal:
    """A terminal with the command in it."""

    def __init__(self, halfbyte: Command, *args: object, raw: bool = True) -> None:
        self.fd, inner = pty.openpty()
        if raw:
            tty.setraw(inner)
        self.process = halfbyte.start(*args, stdin=inner, stdout=inner, stderr=inner)
        os.close(inner)
        self.seen = b""

    def shows(self, words: bytes, seconds: float) -> bool:
        """Read until `words` come, or for so long."""
        deadline = time.monotonic() + seconds
        while words not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not select.select([self.fd], [], [], left)[0]:
                continue
            piece = self._read()
            assert piece, f"it ended: {self.seen!r}"
            self.seen += piece
        return True

    def until(self, words: bytes, seconds: float = 60.0) -> bytes:
        """Read until `words` come; what came up to their end."""
        assert self.shows(words, seconds), self.seen
        head, _, self.seen = self.seen.partition(words)
        return head + words

    def some(self, count: int) -> None:
        """Wait until so many more bytes have come."""
        while len(self.seen) < count:
            piece = self._read()
            assert piece, f"it ended: {self.seen!r}"
            self.seen += piece

    def rest(self) -> bytes:
        """Read to the end."""
        while piece := self._read():
            self.seen += piece
        return self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def code(self) -> int:
        return self.process.wait(timeout=60)

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except OSError:  # Linux's way to say that the other side is gone
            return b""


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals to clean up after the test."""
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.fd)


def test_control_characters_reach_a_pipe_but_no_terminal(
    halfbyte: Command, plain: Path, terminals: list[Terminal]
) -> None:
    # So hot that every one of the 512 tokens is about as likely: 33 are controls.
    args = ("run", plain, PROMPT, "-n", 200, "--temp", 1e4, "--seed", 5, "--quiet")
    piped = halfbyte(*args).stdout
    assert _CONTROL.search(piped)
    terminals += [Terminal(halfbyte, *args), Terminal(halfbyte, *args, "--raw-output")]
    shown, obeyed = (each.rest() for each in terminals)
    assert not _CONTROL.search(shown)
    assert rb"\x" in shown
    assert obeyed == piped
    assert shown.decode() == terminal.without_controls(piped.decode())


def test_a_table_on_a_terminal_is_whole(
    halfbyte: Command, foreign: Path, terminals: list[Terminal]
) -> None:
    halfbyte.env["COLUMNS"] = "50"
    terminals.append(Terminal(halfbyte, "inspect", foreign))
    shown = terminals[0].rest().decode()
    assert "…" not in shown
    assert shown.count("y") >= 60 - len("evil\\x1b[31m\\x0aname")  # of the cut name
    assert "1,024" in shown


def test_a_bar_is_shown_for_what_is_done_alone(
    halfbyte: Command, plain: Path, terminals: list[Terminal]
) -> None:
    terminals += [
        Terminal(halfbyte, "inspect", "halfbyte:tiny"),
        Terminal(halfbyte, "chat", plain, "--quiet"),
    ]
    assert b"fetching" not in terminals[0].rest()
    assert b"loading" not in terminals[1].until(b"> ")


@pytest.mark.parametrize("name", ["NO_COLOR", "CI", "TERM"])
def test_a_terminal_can_be_kept_plain(
    halfbyte: Command, plain: Path, terminals: list[Terminal], name: str
) -> None:
    terminals.append(Terminal(halfbyte, "inspect", plain))
    assert b"\x1b[" in terminals[0].rest()
    halfbyte.env[name] = "dumb"
    terminals.append(Terminal(halfbyte, "inspect", plain))
    assert not _CONTROL.search(terminals[1].rest())


def test_chat_remembers_and_survives_ctrl_c(
    halfbyte: Command, talking: Path, terminals: list[Terminal]
) -> None:
    args = (
        "chat",
        talking,
        "-n",
        ENDLESS,
        "--context",
        ENDLESS,
        "--temp",
        0,
        "--stats",
    )
    # Not a raw terminal: readline shows what is typed only where echo was on.
    terminals.append(Terminal(halfbyte, *args, raw=False))
    talk = terminals[0]
    talk.until(b"> ")
    talk.type(b"hello\n")
    talk.until(b"\n")
    talk.some(20)  # not much: sliding layers forget what is far back
    talk.ctrl_c()
    talk.until(b"(stopped)")
    first = talk.until(b"tok/s | peak memory")
    talk.until(b"> ")
    talk.type(b"again\n")
    talk.until(b"\n")
    talk.some(20)
    talk.ctrl_c()
    talk.until(b"(stopped)")
    second = talk.until(b"tok/s | peak memory")
    assert b"kept)" not in first
    assert b"kept)" in second  # the first turn was not computed again
    talk.until(b"> ")
    time.sleep(0.5)  # the prompt is shown just before keys are read
    talk.type(b"half a line")
    talk.until(b"half a line")
    talk.ctrl_c()
    # Python loses a signal that comes just before readline waits: one presses again.
    if not talk.shows(b"> ", seconds=20.0):
        talk.ctrl_c()
    talk.until(b"> ")
    talk.type(b"/bye\n")
    assert talk.code() == 0
    assert b"Traceback" not in talk.rest()


@pytest.mark.parametrize("way", ["ctrl-c", "ctrl-d"])
def test_chat_ends_on_an_empty_line(
    halfbyte: Command, plain: Path, terminals: list[Terminal], way: str
) -> None:
    terminals.append(Terminal(halfbyte, "chat", plain, raw=False))
    talk = terminals[0]
    talk.until(b"> ")
    time.sleep(0.3)  # the prompt is shown just before keys are read
    if way == "ctrl-c":
        talk.ctrl_c()
    else:
        talk.type(b"\x04")
    assert talk.code() == 0
    assert b"Traceback" not in talk.rest()


def test_chat_keeps_the_lines_typed_for_next_time(
    halfbyte: Command, plain: Path, terminals: list[Terminal]
) -> None:
    terminals.append(Terminal(halfbyte, "chat", plain, "-n", 2))
    terminals[0].until(b"> ")
    terminals[0].type(b"remember me\n")
    terminals[0].until(b"> ")
    terminals[0].type(b"/bye\n")
    assert terminals[0].code() == 0
    history = Path(halfbyte.env["HALFBYTE_CACHE"]) / "chat_history"
    assert history.read_text().splitlines()[-2:] == ["remember me", "/bye"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_two_chats_at_once_both_keep_their_lines(
    halfbyte: Command, plain: Path, terminals: list[Terminal]
) -> None:
    for _ in range(2):
        terminals.append(Terminal(halfbyte, "chat", plain, "-n", 2))
    for number, talk in enumerate(terminals):
        talk.until(b"> ")
        talk.type(f"of chat {number}\n".encode())
        talk.until(b"> ")
    for talk in terminals:
        talk.type(b"/bye\n")
        assert talk.code() == 0
    history = Path(halfbyte.env["HALFBYTE_CACHE"]) / "chat_history"
    lines = history.read_text().splitlines()
    assert lines[-4:] == ["of chat 0", "/bye", "of chat 1", "/bye"]


# --- chat through a pipe ---------------------------------------------------------------


def test_chat_commands(halfbyte: Command, talking: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    options = ("-n", 4, "--temp", 0)
    lines = f"hello\n/save {saved}\n/save {saved}\n/nonsense\n/bye\nnever read\n"
    done = halfbyte("chat", talking, *options, "-s", "Be odd.", stdin=lines.encode())
    notes = done.stderr.decode()
    assert "saved 2 messages" in notes
    assert "exists; /save --force" in notes
    assert "/nonsense: no such command" in notes
    document = json.loads(saved.read_text())
    assert document["system"] == "Be odd."
    assert [m["role"] for m in document["messages"]] == ["user", "assistant"]
    answer = document["messages"][1]["content"]
    assert done.stdout.decode() == answer + "\n"
    once = halfbyte.json("run", talking, "hello", *options, "-s", "Be odd.")
    assert once["text"] == answer

    lines = f"/load {saved}\nmore\n/save --force {saved}\n"
    halfbyte("chat", talking, *options, stdin=lines.encode())
    went_on = json.loads(saved.read_text())
    assert went_on["messages"][:2] == document["messages"]
    assert [m["content"] for m in went_on["messages"][2:3]] == ["more"]
    assert went_on["system"] == "Be odd."

    lines = f"/load {saved}\n/reset\n/system Be even.\nhello\n/save --force {saved}\n"
    halfbyte("chat", talking, *options, stdin=lines.encode())
    anew = json.loads(saved.read_text())
    assert anew["system"] == "Be even."
    assert len(anew["messages"]) == 2


@pytest.mark.parametrize("empty", ['""', "''"])
def test_chat_takes_instructions_away(
    halfbyte: Command, talking: Path, tmp_path: Path, empty: str
) -> None:
    saved = tmp_path / "talk.json"
    lines = f"hello\n/system {empty}\n/system\nhello\n/save {saved}\n"
    options = ("-n", 4, "--temp", 0, "-s", "Be odd.")
    done = halfbyte("chat", talking, *options, "--quiet", stdin=lines.encode())
    assert done.stderr.decode().splitlines() == [
        "forgotten",
        "no instructions",
        "saved 2 messages",
    ]
    document = json.loads(saved.read_text())
    assert document["system"] is None
    once = halfbyte.json("run", talking, "hello", "-n", 4, "--temp", 0)
    assert document["messages"][1]["content"] == once["text"]


def test_chat_loads_what_it_saved(halfbyte: Command, tmp_path: Path) -> None:
    saved, again = tmp_path / "talk.json", tmp_path / "again.json"
    call = {"id": "call_0", "type": "function"}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather? \u00e9\U0001f600\u2028"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "I ask.",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    saved.write_text(json.dumps({"schema": 1, "system": None, "messages": messages}))
    lines = f"/load {saved}\n/save {again}\n"
    done = halfbyte("chat", "tiny", "--quiet", stdin=lines.encode())
    assert done.stderr.decode().splitlines() == [
        "loaded 4 messages",
        "saved 4 messages",
    ]
    assert json.loads(again.read_text())["messages"] == messages

    # What the template cannot write is told with the next message, and nothing ends.
    for broken in ({"tool_calls": 5}, {"tool_calls": [{"function": {}}]}):
        messages[1] |= broken
        document = {"system": None, "messages": messages[:2]}
        saved.write_text(json.dumps(document))
        lines = f"/load {saved}\nhello\n/reset\nhello\n"
        done = halfbyte("chat", "tiny", "--quiet", "-n", 2, stdin=lines.encode())
        _, refused, forgotten = done.stderr.decode().splitlines()
        assert "found" in refused
        assert forgotten == "forgotten"
        assert done.stdout.decode().strip()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"system": 1, "messages": []}',
        '{"system": 0, "messages": []}',
        '{"messages": [{"role": "tool"}]}',
        '{"system": null, "messages": [[["role", "user"], ["content", "x"]]]}',
    ],
)
def test_chat_refuses_what_is_no_conversation(
    halfbyte: Command, plain: Path, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    done = halfbyte("chat", plain, "--quiet", stdin=f"/load {file}\n/load\n".encode())
    assert done.stderr.decode().splitlines() == [
        f"{file}: not a saved conversation",
        "/load needs one file name",
    ]


def test_chat_says_what_it_did_not_send(halfbyte: Command, plain: Path) -> None:
    done = halfbyte("chat", plain, "--quiet", stdin=b'"""one\ntwo\n')
    assert done.stderr.decode() == '(not sent: a message without its closing """)\n'
    assert done.stdout == b""


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ('"""\none\ntwo\n"""', "one\ntwo"),
        ('"""one\ntwo\n"""  ', "one\ntwo"),
        ('"""one\ntwo""" and three', "one\ntwo and three"),
        ('"""one\n"""\ttwo', "one\n\ttwo"),
        ('"""one""" """two"""', 'one """two"""'),
        ('"""/usr/lib: cannot open\nWhy?"""', "/usr/lib: cannot open\nWhy?"),
        ('"""/reset"""', "/reset"),
        ("\ufeffone", "one"),
    ],
)
def test_chat_sends_all_of_several_lines(
    halfbyte: Command, plain: Path, tmp_path: Path, typed: str, sent: str
) -> None:
    saved = tmp_path / "talk.json"
    lines = f"{typed}\n/save {saved}\n"
    halfbyte("chat", plain, "--quiet", "-n", 1, stdin=lines.encode())
    messages = json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == [sent]


def test_chat_goes_on_after_a_line_that_is_no_utf_8(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    lines = b"one\ncaf\xe9\ntwo\n" + f"/save {saved}\n".encode()
    halfbyte("chat", plain, "--quiet", "-n", 1, stdin=lines)
    messages = json.loads(saved.read_text())["messages"]
    said = [m["content"] for m in messages if m["role"] == "user"]
    assert said == ["one", "caf\udce9", "two"]


def test_chat_saves_where_it_is_told(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    saved, link, pipe = (tmp_path / name for name in ("saved", "link", "pipe"))
    saved.touch(mode=0o640)
    link.symlink_to(saved)
    os.mkfifo(pipe)
    lines = [
        f"/save --force {link}",
        f"/save --force {pipe}",
        f"/save {tmp_path / 'no' / 'such'}",
        "/save ~nobody-of-that-name/x",
        "/load ~nobody-of-that-name/x",
        f"/load {pipe}",
        "/save ''",
    ]
    done = halfbyte("chat", plain, "--quiet", stdin="\n".join(lines).encode())
    notes = done.stderr.decode().splitlines()
    assert notes.pop(2).startswith(f"{tmp_path / 'no' / 'such'}: No such file")
    assert notes == [
        "saved 0 messages",
        f"{pipe}: expected a regular file or none",
        "~nobody-of-that-name/x: no such home directory",
        "~nobody-of-that-name/x: no such home directory",
        f"{pipe}: not a saved conversation",
        "/save needs one file name",
    ]
    assert link.is_symlink()
    assert saved.stat().st_mode & 0o777 == 0o640
    assert json.loads(saved.read_text())["messages"] == []


def test_chat_refuses_unusable_options_at_once(halfbyte: Command, plain: Path) -> None:
    # Within the range of a float, not of the float32 that is computed with.
    done = halfbyte("chat", plain, "--temp", 1e39, "--quiet", stdin=b"hello\n", code=2)
    assert "temperature: found inf" in one_error_line(done.stderr)
    assert done.stdout == b""


def test_chat_goes_on_after_a_message_that_is_too_long(
    halfbyte: Command, plain: Path
) -> None:
    lines = b"word " * 1000 + b"\nshort\n"
    args = ("chat", plain, "-n", 3, "--context", 100, "--quiet", "--stats")
    done = halfbyte(*args, stdin=lines)
    refused, stats = done.stderr.decode().splitlines()
    assert "/reset" in refused
    assert "answer 3 tokens" in stats


def test_chat_without_a_template_goes_on_with_the_text(
    halfbyte: Command, plain: Path
) -> None:
    done = halfbyte("chat", plain, "-n", 6, stdin=f"{PROMPT}\n".encode())
    assert b"no chat template" in done.stderr
    text = halfbyte.json("run", plain, PROMPT, "-n", 6)["text"]
    assert done.stdout.decode() == text + "\n"


# --- How a model is loaded -------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "chat", "perplexity", "bench"])
def test_every_command_that_runs_a_model_says_how_inputs_are_rounded(
    halfbyte: Command, plain: Path, command: str
) -> None:
    text = ("--file", "-") if command == "perplexity" else ()
    args = (command, plain, *text, "--quiet", "--activations")
    # There are no steps in this file; only the one mode that needs them is refused.
    done = halfbyte(*args, "static", stdin=PROMPT.encode(), code=4)
    assert "steps of activations" in one_error_line(done.stderr)
    done = halfbyte(*args, "statics", stdin=PROMPT.encode(), code=2)
    assert "--activations" in one_error_line(done.stderr)


def test_quantize_rounds_as_load_does(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(PROMPT)
    args = ("perplexity", plain, "--file", tmp_path / "text")
    loaded = load(plain, quantize="q4_0")
    want = loaded.perplexity(loaded.tokenize(PROMPT))
    rounded = halfbyte.json(*args, "--quantize", "q4_0")["perplexity"]
    assert rounded == want
    assert rounded != halfbyte.json(*args)["perplexity"]
    done = halfbyte(*args, "--quantize", "q9", "--quiet", code=2)
    assert "quantize" in one_error_line(done.stderr)


# --- inspect ---------------------------------------------------------------------------


def test_inspect_shows_a_file_that_cannot_be_run(
    halfbyte: Command, foreign: Path
) -> None:
    text = halfbyte("inspect", foreign, "--tensors").stdout.decode()
    assert "architecture  llama" in text
    assert r"evil\x1b[31m\x0aname" in text
    assert "1,000 of them: t0, t1, t2, t3, ..." in text
    assert re.search(r"Q8_0 +1 +64 +68 B +8.50", text)
    assert re.search(r"one +F32 +3 x 64 +768 B", text)
    document = halfbyte.json("inspect", foreign, "--tensors")
    assert document["schema"] == 1
    assert document["architecture"] == "llama"
    assert document["tensors"] == 2
    assert document["weights"] == 3 * 64 + 64
    assert document["bytes"] == 3 * 64 * 4 + 68
    assert document["bits_per_weight"] == round(8 * 836 / 256, 3)
    assert [group["type"] for group in document["types"]] == ["F32", "Q8_0"]
    assert document["tensor_list"][1]["shape"] == [2, 32]
    tokens = document["metadata"]["tokenizer.ggml.tokens"]
    assert tokens == {"count": 1000, "first": ["t0", "t1", "t2", "t3"]}
    # Three layers, two heads of 64 / 4 = 16 numbers, keys and values.
    assert document["memory"][0] == {
        "context": 1024,
        "kv_f32_bytes": 1024 * 3 * 2 * (16 + 16) * 4,
        "kv_f16_bytes": 1024 * 3 * 2 * (16 + 16) * 2,
        "kv_int8_bytes": 1024 * 3 * 2 * (16 + 4 + 16 + 4),
    }
    assert "* beyond the model's context of 2,048" in text


@pytest.mark.parametrize("name", ["e2b", "12b", "gemma3"])
def test_inspect_reads_a_directory_as_it_reads_the_file(
    halfbyte: Command, tmp_path: Path, name: str
) -> None:
    model = tiny.build(name)
    tiny.save_gguf(model, tmp_path / "m.gguf")
    tiny.save_hf(model, tmp_path / "hf", shards=2)
    tiny.save_hf(model, tmp_path / "released", released=True)
    expected = halfbyte.json("inspect", tmp_path / "m.gguf")["memory"]
    assert expected is not None
    for folder in ("hf", "released"):
        document = halfbyte.json("inspect", tmp_path / folder)
        assert document["memory"] == expected
        assert document["types"][0]["type"] == "F32"
    single = halfbyte.json("inspect", tmp_path / "released" / "model.safetensors")
    assert single["memory"] == expected


def test_memory_of_known_shapes() -> None:
    # Gemma 3 270M: 18 layers, every sixth full, one head of 256, window 512.
    shape = memory.cache_shape(
        {
            "general.architecture": "gemma3",
            "gemma3.block_count": 18,
            "gemma3.embedding_length": 640,
            "gemma3.attention.head_count": 4,
            "gemma3.attention.head_count_kv": 1,
            "gemma3.attention.key_length": 256,
            "gemma3.attention.value_length": 256,
            "gemma3.attention.sliding_window": 512,
            "gemma3.context_length": 32768,
        }
    )
    assert shape is not None
    assert shape.context == 32768
    assert shape.elements(8192) == 512 * (3 * 8192 + 15 * 512)
    assert shape.elements(100) == 512 * 18 * 100


def test_memory_of_arrays_and_shared_layers() -> None:
    # Four layers, the last two share; the first slides with heads of its own size.
    shape = memory.cache_shape(
        {
            "general.architecture": "gemma4",
            "gemma4.block_count": 4,
            "gemma4.attention.head_count": [8, 8, 8, 8],
            "gemma4.attention.head_count_kv": [2, 1, 2, 1],
            "gemma4.attention.key_length": 512,
            "gemma4.attention.value_length": 512,
            "gemma4.attention.key_length_swa": 256,
            "gemma4.attention.value_length_swa": 256,
            "gemma4.attention.sliding_window": 128,
            "gemma4.attention.sliding_window_pattern": [True, False, True, False],
            "gemma4.attention.shared_kv_layers": 2,
        }
    )
    assert shape is not None
    assert shape.elements(1000) == 2 * 512 * 128 + 1 * 1024 * 1000


@pytest.mark.parametrize(
    "changed",
    [
        {"block_count": 1 << 40},
        {"block_count": "many"},
        {"block_count": -1},
        {"attention.head_count": 0},
        {"attention.head_count_kv": [1]},
        {"attention.sliding_window_pattern": [True] * 5, "attention.sliding_window": 4},
        {"attention.shared_kv_layers": float("nan")},
        {"embedding_length": None},
    ],
)
def test_memory_of_nonsense_is_unknown(changed: dict[str, Any]) -> None:
    good = {"block_count": 2, "embedding_length": 64, "attention.head_count": 4}
    name = {"general.architecture": "x"}
    assert memory.cache_shape(name | {f"x.{k}": v for k, v in good.items()}) is not None
    bad = name | {f"x.{k}": v for k, v in (good | changed).items()}
    assert memory.cache_shape(bad) is None


# --- batch -----------------------------------------------------------------------------


def records(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.decode().splitlines()]


def test_batch_answers_every_line_as_run_does(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    prompts = ["the end of the line", "and then", "what is the end of it", "the"]
    file = tmp_path / "prompts.txt"
    file.write_bytes("\n\r\n".join(prompts).encode() + b"\n\n")
    options = ("-n", 9, "--temp", 0.8)
    done = halfbyte("batch", plain, "--file", file, "--size", 3, "--seed", 5, *options)
    told = records(done.stdout)
    assert [one["index"] for one in told] == [0, 1, 2, 3]
    for i, (one, prompt) in enumerate(zip(told, prompts, strict=True)):
        alone = halfbyte.json("run", plain, prompt, "--seed", 5 + i, *options)
        for key in ("text", "thought", "tool_calls", "finish_reason"):
            assert one[key] == alone[key]
        assert one["prompt_tokens"] == alone["stats"]["prompt_tokens"]
        assert one["generated_tokens"] == alone["stats"]["generated_tokens"]
    assert b"no chat template" in done.stderr
    piped = halfbyte(
        "batch", plain, "--file", "-", "--seed", 5, *options, stdin=file.read_bytes()
    )
    assert piped.stdout == done.stdout


def test_batch_reads_lines_of_json(halfbyte: Command, talking: Path) -> None:
    lines: list[Any] = [
        {"id": "a", "prompt": "the end"},
        {"id": 7, "messages": [{"role": "user", "content": "the end"}]},
        "the end",
    ]
    text = "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines)
    stdin = text.encode()
    done = halfbyte("batch", talking, "--file", "-", "--temp", 0, "-n", 6, stdin=stdin)
    told = records(done.stdout)
    assert [one.get("id") for one in told] == ["a", 7, None]
    assert "id" not in told[2]
    assert len({one["text"] for one in told}) == 1
    alone = halfbyte.json("run", talking, "the end", "--temp", 0, "-n", 6)
    assert told[0]["text"] == alone["text"]
    spoken = ("--system", "Be brief.", "--temp", 0, "-n", 6)
    done = halfbyte("batch", talking, "--file", "-", *spoken, stdin=b"the end\n")
    assert records(done.stdout)[0]["prompt_tokens"] > told[0]["prompt_tokens"]


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('{"prompt": ', (), "line 2: no JSON"),
        ("{" * 3 + '"a":' + "[" * 100_000, (), "line 2: no JSON"),
        ('{"prompt": 3}', (), "line 2: expected a text as prompt"),
        ('{"messages": []}', (), "line 2: expected a text as prompt"),
        ('{"messages": ["a"]}', (), "line 2: messages: expected a list of objects"),
        ('{"prompt": "a", "messages": [{}]}', (), "line 2: expected a text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', ("--raw",), "--raw"),
        ("a", ("--system", "b"), "--system needs a chat template"),
        ("a", ("--size", 0), "--size"),
    ],
)
def test_batch_refuses_a_line_before_it_begins(
    halfbyte: Command, plain: Path, line: str, options: tuple[Any, ...], message: str
) -> None:
    stdin = f"good\n{line}\n".encode()
    done = halfbyte("batch", plain, "--file", "-", *options, stdin=stdin, code=2)
    assert message in one_error_line(done.stderr)
    assert done.stdout == b""


def test_batch_stopped_by_ctrl_c_keeps_what_was_written(
    halfbyte: Command, plain: Path
) -> None:
    pipe = subprocess.PIPE
    args = ("--file", "-", "--size", 1, "-n", 2000, "--context", ENDLESS)
    with halfbyte.start(
        "batch", plain, *args, stdout=pipe, stderr=pipe, stdin=pipe
    ) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        assert p.stderr is not None
        p.stdin.write(b"the end\n" * 500)
        p.stdin.close()
        first = p.stdout.readline()
        p.send_signal(signal.SIGINT)
        rest, stderr = p.stdout.read(), p.stderr.read()
        assert p.wait(60) == 130
    told = records(first + rest)  # whole lines
    assert [one["index"] for one in told] == list(range(len(told)))
    assert 1 <= len(told) < 500
    assert b"interrupted: the answers so far are written" in stderr
    assert b"Traceback" not in stderr


# --- tokenize, perplexity, doctor ------------------------------------------------------


def test_tokenize_gives_ids_and_pieces(halfbyte: Command, plain: Path) -> None:
    document = halfbyte.json("tokenize", plain, "the end\t<bos>é")
    assert document["ids"][0] == 2
    assert document["count"] == len(document["ids"])
    assert "".join(document["pieces"]).endswith("the end\t<bos>é")
    tokens = tiny.vocabulary()[0]
    assert document["ids"].count(tokens.index("<bos>")) == 1  # text stays text
    lines = halfbyte("tokenize", plain, "the end\t<bos>é").stdout.decode().splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == document["ids"]
    assert [json.loads(line.split("\t", 1)[1]) for line in lines] == document["pieces"]
    bare = halfbyte.json("tokenize", plain, "the end\t<bos>é", "--no-bos")
    assert bare["ids"] == document["ids"][1:]
    special = halfbyte.json("tokenize", plain, "a<bos>", "--no-bos", "--special")
    assert special["ids"][-1] == tokens.index("<bos>")
    # What has no text, or half a character, goes by its name.
    assert special["pieces"][-1] == document["pieces"][0] == "<bos>"
    half = halfbyte.json("tokenize", plain, "\N{SNOWMAN}", "--no-bos")["pieces"]
    assert half[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]


def test_perplexity_is_that_of_the_library(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    import halfbyte as library

    text = "the end of the line and the start of the other one\n" * 4
    file = tmp_path / "text.txt"
    file.write_text(text)
    model = library.load(plain)
    ids = model.tokenize(text)
    expected = model.perplexity(ids)
    document = halfbyte.json("perplexity", plain, "--file", file)
    assert document["tokens"] == len(ids)
    assert document["perplexity"] == pytest.approx(expected, rel=1e-9)
    done = halfbyte("perplexity", plain, "--file", file)
    assert done.stdout.decode() == f"perplexity {expected:.4f}, {len(ids)} tokens\n"
    assert done.stderr == b""


def test_a_text_is_the_same_by_stdin(
    halfbyte: Command, plain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfthe end of the line\r\n\n")
    read = halfbyte.json("perplexity", plain, "--file", file)
    piped = halfbyte.json("perplexity", plain, "--file", "-", stdin=file.read_bytes())
    assert piped == read | {"file": "-"}


def test_json_is_json_in_any_encoding(halfbyte: Command, plain: Path) -> None:
    halfbyte.env["PYTHONIOENCODING"] = "ascii"
    done = halfbyte("tokenize", plain, "é\x7f€", "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["text"] == "é\x7f€"


def test_perplexity_shows_a_bar_on_a_terminal_only(
    halfbyte: Command, plain: Path, tmp_path: Path, terminals: list[Terminal]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the end of the line and the start of the other one\n" * 100)
    terminals.append(Terminal(halfbyte, "perplexity", plain, "--file", file))
    out = terminals[0].rest()
    assert b"%" in out
    assert b"\x1b[" in out


def test_doctor_reports_what_python_knows(halfbyte: Command) -> None:
    halfbyte.env["HALFBYTE_NUM_THREADS"] = "1"
    found = halfbyte.json("doctor")
    assert found["schema"] == 1
    assert found["halfbyte"]["version"] == __version__
    assert found["halfbyte"]["target"] in found["halfbyte"]["targets"]
    assert found["python"]["version"] == sys.version.split()[0]
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["packages"]["typer"] == metadata.version("typer")
    assert found["cpu"]["affinity"] == len(os.sched_getaffinity(0))
    assert found["threads"] == {"count": 1, "reason": "HALFBYTE_NUM_THREADS=1"}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["memory"]["total"] == pytest.approx(total, rel=0.01)
    text = halfbyte("doctor").stdout.decode()
    for section in ("halfbyte", "python", "cpu", "threads", "memory", "packages"):
        for fact in found[section]:
            assert re.search(rf"^{section}\.{re.escape(fact)} +\S", text, re.MULTILINE)


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "cpus", "limit"),
    [
        ({}, None, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
                "sys/fs/cgroup/a/b/memory.max": "4096",
                "sys/fs/cgroup/a/memory.max": "1024",
            },
            1.5,
            1024,
        ),
        (
            {  # inside a container: the path is the host's, the mount is the group
                "proc/self/cgroup": "0::/docker/abc",
                "sys/fs/cgroup/cpu.max": "400000 100000",
                "sys/fs/cgroup/memory.max": "max",
            },
            4.0,
            None,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n1:cpu,cpuacct:/c\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "8192",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            0.5,
            8192,
        ),
    ],
)
def test_limits_of_a_container(
    tmp_path: Path, files: dict[str, str], cpus: float | None, limit: int | None
) -> None:
    root = _tree(tmp_path, files)
    assert doctor.cpu_quota(root) == cpus
    assert doctor.memory_limit(root) == limit


# --- Small parts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (1.5, "1.50"), (12.34, "12.3"), (4321.6, "4322")],
)
def test_quantities_have_three_digits(value: float, shown: str) -> None:
    assert terminal.quantity(value) == shown


@pytest.mark.parametrize(
    ("size", "shown"),
    [(68, "68 B"), (1536, "1.5 KiB"), (250 << 20, "250.0 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_have_one_digit(size: int, shown: str) -> None:
    assert size_text(size) == shown


def test_controls_are_shown_not_obeyed() -> None:
    assert terminal.without_controls("a\x1b[2J\r\x9b\x7f\tb\n") == (
        "a\\x1b[2J\\x0d\\x9b\\x7f\tb\n"
    )
    assert terminal.printable("a\nb\u2028") == "a\\x0ab\\u2028"
    # A byte of a name that is no text here, and half a character of a JSON file.
    assert terminal.printable("\udcff\ud800") == "\\xff\\ud800"
    assert choice.shown("\udcff\ud800\n'é") == "\\xff\\ud800\\n'é"


# ---- streams that are closed


@pytest.mark.parametrize("command", ["doctor", "inspect halfbyte:tiny", "--help"])
def test_a_closed_stdout_is_said(command: str) -> None:
    line = f"{sys.executable} -m halfbyte {command}"
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "halfbyte: stdout is closed: send it to a file or /dev/null\n"
    quiet = subprocess.run(
        ["sh", "-c", f"{line} >/dev/null 2>&-"], check=False, timeout=60
    )
    assert quiet.returncode == 0


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("chat halfbyte:tiny", 0),
        ("run halfbyte:tiny", 2),
        ("tokenize halfbyte:tiny -", 2),
        ("perplexity halfbyte:tiny --file -", 2),
    ],
)
def test_a_closed_stdin_is_an_empty_one(command: str, code: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m halfbyte {command} <&-"],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == (b"halfbyte: stdin: no text\n" if code else b"")


def test_an_unwritable_stderr_changes_no_exit_code(plain: Path, foreign: Path) -> None:
    for model, code in ((plain, 0), (foreign, 4)):
        line = f"{sys.executable} -m halfbyte run '{model}' hi -n 1 2>/dev/full"
        done = subprocess.run(["sh", "-c", line], check=False, timeout=60)
        assert done.returncode == code


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_model_without_a_tokenizer_is_refused_at_once(
    command: str, tmp_path: Path
) -> None:
    source = bundled.locate("tiny-mobile")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    line = [sys.executable, "-m", "halfbyte", command, str(tmp_path)]
    done = subprocess.run(
        line, check=False, input=b"hello", capture_output=True, timeout=60
    )
    assert done.returncode == 4
    assert "found none - logits" in one_error_line(done.stderr)
