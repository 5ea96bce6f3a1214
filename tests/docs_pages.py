"""The documentation's pages taken apart: fenced blocks, and the commands in those of them that are for a shell."""

import dataclasses
import functools
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = tuple(f"docs/tutorials/{name}.md" for name in ("laptop", "data_engineer", "evaluator", "pod_trainer"))
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")))
# What a command may begin with: a fence without a language that begins so holds commands, any other holds output.
PROGRAMS = {
    ".", "anygpt", "python", "python3.11", "pip", "bash", "pre-commit", ".ci/run",
    "cat", "curl", "grep", "kill", "ln", "ls", "mkdir", "tail", "wait",
    "dask", "docker", "gcloud", "kubectl", "sed", "sleep", "srun", "until", "for", "do", "done",
}  # fmt: skip
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block. `info` is console, python, …; after it may stand how it runs: no-run: WHY, server, typed."""

    page: str
    info: str
    text: str
    before: str  # all that stands above it

    @property
    def is_shell(self) -> bool:
        if self.info:
            return self.info.split()[0] in ("console", "bash", "sh")
        first = next((line for line in self.text.splitlines() if line and not line.startswith("#")), "")
        return _program(first) in PROGRAMS or re.match(r"[A-Z_]+=", first) is not None

    @property
    def file(self) -> str | None:
        """The name under which the page says that it is to be saved."""
        found = re.search(r"`(\w+\.py)`[^`]*\Z", self.before.rpartition("\n\n")[0][-300:] + "\n")
        return found[1] if found and self.info == "python" else None


@functools.cache
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, text=None):
    text = text_of(page) if text is None else text
    return [Block(page, m[1].strip(), m[2], text[: m.start()]) for m in FENCE.finditer(text)]


def prose(page):
    return FENCE.sub("", text_of(page))


def _program(line):
    """The first word that is no assignment, without the folder of an environment; "" if the line only assigns."""
    rest = re.sub(r"^(\w+=(\"[^\"]*\"|\$\(.*\)|\S*)\s*)+", "", line)
    return re.sub(r"^\.venv(-next)?/bin/", "", rest.partition(" ")[0])


@dataclasses.dataclass(frozen=True)
class Command:
    """One command as bash takes it, on one line; what the page's variables stand for is filled in."""

    text: str

    @property
    def name(self) -> str:
        """The same for every way to write it: without the environment's folder and further spaces."""
        return " ".join(re.sub(r"^\.venv/bin/", "", self.text).split())

    @property
    def words(self) -> list[str] | None:
        """Of `anygpt` alone, what follows it; None for what needs a shell or is another program."""
        is_plain = self.name.startswith("anygpt ") and not re.search(r"[|<>]|\$\(", _QUOTED.sub("", self.text))
        return shlex.split(self.name)[1:] if is_plain else None


_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def single_commands(block):
    """A block's commands one by one, for pages without heredocs and loops; pipes and redirections stay whole."""
    known = dict(re.findall(r'^(\w+)="(.*)"$', "\n".join(b.text for b in blocks(block.page)), flags=re.MULTILINE))
    for line in re.sub(r"(?<!\S)#.*", "", block.text.replace("\\\n", " ")).splitlines():
        for name, value in known.items():
            line = line.replace(f"${name}", value)
        parts = re.split(r"&&|;|&", _QUOTED.sub(lambda m: m[0].replace("&", "\0").replace(";", "\1"), line))
        for part in parts:
            text = part.replace("\0", "&").replace("\1", ";").strip()
            if text and not re.fullmatch(r'\w+="[^"]*"', text):
                yield Command(text)


def commands(block):
    """Each simple command of a block as its words, without heredocs' texts; variables that it sets are filled in."""
    shell = re.sub(r"<<'(\w+)'([^\n]*)\n.*?\n\1$", r"\2", block.text, flags=re.DOTALL | re.MULTILINE)
    shell = re.sub(r"(?<!\S)#.*", "", shell.replace("\\\n", " "))
    shell = re.sub(r"^\w+=\$\((.*)\)$", r"\1", shell, flags=re.MULTILINE)
    known = dict(re.findall(r'^(\w+)="(.*)"$', "\n".join(b.text for b in blocks(block.page)), flags=re.MULTILINE))
    for line in shell.splitlines():
        for name, value in known.items():
            line = line.replace(f"${name}", value)
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split, lexer.commenters = True, ""
        words = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|"):
                while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
                    words = words[1:]
                words = words[: next((i for i, w in enumerate(words) if w[:1] in ("<", ">")), len(words))]
                if words:
                    yield [re.sub(r"^\.venv(-next)?/bin/", "", words[0]), *words[1:]]
                words = []
            else:
                words.append(word)
