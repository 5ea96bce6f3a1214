"""The documentation is true: commands are taken by the program, files and links exist. `test_docs_commands.py` runs it."""

import ast
import contextlib
import importlib.util
import os
import re
import shlex
import subprocess
import textwrap

import pytest
from docs_pages import FENCE, PAGES, PROGRAMS, ROOT, TUTORIALS, Block, blocks, commands, prose, text_of

from anygpt_jax import cli
from anygpt_jax.launching.main import TARGETS

PLACEHOLDER = re.compile(r"\b[A-Z][A-Z0-9_]{2,}\b")
ROOMS = {path.name for path in (ROOT / "anygpt_jax").iterdir() if path.is_dir()}
SHELL = [block for page in PAGES for block in blocks(page) if block.is_shell]
COMMANDS = [(block, words) for block in SHELL for words in commands(block)]
OURS = [(block, words[1:]) for block, words in COMMANDS if words[0] == "anygpt"]


def name(value):
    return " ".join(value)[:60] if isinstance(value, list) else value.page if isinstance(value, Block) else None


def test_there_is_something_to_check():
    assert len(OURS) > 60 and len(SHELL) > 40 and {block.page for block in SHELL} >= {"README.md", *TUTORIALS}


@pytest.mark.parametrize("page", PAGES)
def test_every_line_in_a_block_of_commands_is_one(page):
    for block in blocks(page):
        if block.is_shell:
            checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
            assert checked.returncode == 0, checked.stderr
            for words in commands(block):
                assert words[0] in PROGRAMS, f"{words}: what is it?"
        else:
            assert not re.search(r"^(\.venv/bin/)?anygpt ", block.text, flags=re.MULTILINE), f"console? {block.text}"


def spelled_out(block, words, folder):
    """The words with files that the page has the reader write, or that stand for one's own, in `folder`."""
    for other in blocks(block.page):
        if other.file:
            (folder / other.file).write_text(other.text)
    return [
        word.replace("--config=", f"--config={folder}/", 1) if (folder / word.partition("=")[2]).is_file() else word
        for word in words
    ]


@pytest.mark.parametrize(("block", "words"), OURS, ids=name)
def test_the_program_takes_the_command(block, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = spelled_out(block, words, tmp_path)
    overrides = [w for w in words if w.startswith("--config.")]
    own = [w for w in words if not w.startswith("--config.")]
    if "…" in own:
        return known_flags(own)
    args = cli.build_parser(own).parse_args(own)
    place = args.config or ""
    if not PLACEHOLDER.fullmatch(place):
        config = cli._config_of(args, overrides)
        assert config is not None or args.config is None
    if args.verb == "launch" and not getattr(args, "stacks", False):
        at = words.index("--") if "--" in words else len(words)
        assert cli.main([*words[:at], "--dry-run", *words[at:]]) == 0, capsys.readouterr().err
        assert "anygpt" in capsys.readouterr().out


def known_flags(words):
    """Of an excerpt of a command, or a mention in the text; without --target, launch has the flags of all targets."""
    targets = [[]] if words[0] != "launch" else [[f"--target={target}"] for target in TARGETS]
    if any(word.startswith("--target=") for word in words):
        targets = [[]]
    known = {"--"}
    for target in targets:
        (verbs,) = cli.build_parser([*words, *target])._subparsers._group_actions
        known |= set(verbs.choices[words[0]]._option_string_actions)
    for word in words[1:]:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or flag.startswith("--config.") or flag in known, word


@pytest.mark.parametrize(("block", "words"), [c for c in COMMANDS if c[1][0] != "anygpt"], ids=name)
def test_files_and_modules_of_other_commands_exist(block, words):
    program, *rest = words
    if program.startswith("python") and rest[:1] == ["-m"]:
        assert rest[1] == "venv" or importlib.util.find_spec(rest[1]), rest[1]
    extras = re.findall(r"(?:anygpt-jax|\.)\[([\w,]+)\]", " ".join(rest)) if program == "pip" else []
    for extra in ",".join(extras).split(",") if extras else ():
        assert f'"{extra}":' in text_of("setup.py"), extra
    for word in rest:
        if re.fullmatch(r"(configs|constraints|docs|launch|tests)/[\w./-]+", word):
            assert (ROOT / word).exists(), word
    if program == "bash":
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize("page", PAGES)
def test_what_stands_in_backticks_exists(page):
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        if span.startswith("anygpt "):
            words = [w for w in shlex.split(span) if w not in ("…", "=", "VERB")]
            if len(words) > 1 and words[1] in cli.VERBS:
                known_flags(words[1:])
            continue
        path = span.split("::")[0].rstrip(":")
        if re.fullmatch(r"anygpt_jax(\.\w+)+", span):
            assert module_or_member(span), f"{page}: {span}"
        elif re.fullmatch(r"[\w.*{},-]+(/[\w.*{},-]+)*/?(:\w+)?", path) and "…" not in path:
            path = path.partition(":")[0]
            first, slash, _ = path.partition("/")
            if slash and first in {"anygpt_jax", "configs", "constraints", "data_pipelines", "launch", "tests", ".ci"}:
                assert there(ROOT, path), f"{page}: {span}"
            elif slash and first in ROOMS and path.endswith(".py"):
                assert there(ROOT / "anygpt_jax", path), f"{page}: {span}"
            elif path.endswith(".md") and path.startswith("docs/"):
                assert (ROOT / path).is_file(), f"{page}: {span}"


def there(folder, path):
    braces = re.search(r"\{([^}]*)\}", path)
    if braces:
        return all(there(folder, path.replace(braces[0], one)) for one in braces[1].split(","))
    return any(folder.glob(path.rstrip("/")))


def module_or_member(dotted):
    module, _, member = dotted.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(dotted):
            return True
    return hasattr(importlib.import_module(module), member)


def anchors(path):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        target = target[0] or target[1]
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


def test_the_index_has_every_page():
    linked = re.findall(r"\]\(([^)#\s]+)", text_of("docs/README.md"))
    assert {f"docs/{target}" for target in linked} >= set(PAGES) - {"README.md", "CONTRIBUTING.md", "docs/README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_python_in_pages_is_well_formed_and_imports_what_there_is(page):
    for block in blocks(page):
        if block.info.startswith("python"):
            for node in ast.walk(ast.parse(textwrap.dedent(block.text))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anygpt_jax"):
                    for alias in node.names:
                        assert module_or_member(f"{node.module}.{alias.name}"), f"{page}: {node.module}.{alias.name}"


@pytest.mark.slow
def test_the_reference_is_built_from_docstrings_without_a_warning(tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "", "XLA_FLAGS": ""}
    done = subprocess.run(
        ["bash", ROOT / "launch" / "reference.sh", tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "anygpt_jax").rglob("*.py")}
    for module in sorted(m for m in modules if not m.endswith("__")):
        page = (tmp_path / f"{module.replace('.', '/')}.html").read_text(encoding="utf-8")
        assert f"<title>{module} API documentation</title>" in page


def test_public_modules_say_what_they_are():
    """A line at the head of every module with code."""
    without = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "anygpt_jax").rglob("*.py"))
        if (tree := ast.parse(path.read_text(encoding="utf-8"))).body and not ast.get_docstring(tree)
    ]
    assert without == []
