"""Checker of the project's plain English: `python -m tests.prose [PATH ...]` prints findings with better wording."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SKIPPED = {"build", "node_modules", "__pycache__", "checkpoints"}
HASH, SLASHES = r"(?m)(?:^|(?<=\s))#+[ \t]+(.+)$", r"(?m)(?:^|(?<=\s))//+[ \t]+(.+)$|/\*+(?s:(.+?))\*/"
COMMENTS = {".js": SLASHES, ".css": SLASHES, ".tpl": SLASHES, ".proto": SLASHES, ".pbtxt": HASH, ".txt": HASH}
COMMENTS |= dict.fromkeys((".toml", ".yaml", ".yml", ".sh", ".cfg", ".Dockerfile", "Dockerfile", "sca", "run"), HASH)
VERBS = set(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8").split())  # a docstring's first words
RELATIVE = {"that", "which", "whose", "where", "when", "of", "for", "by", "at", "from", "who", "whom", "with"}
PRONOUNS = {"it", "its", "they", "their", "theirs", "them", "those"}
WORDS = [  # (rule, pattern, suggestion)
    ("L4", r"nobody('s)?|somebody|anybody", "name the component: client, bridge, engine, user, caller"),
    ("L5", r"tells?|told|telling", "use send, report, emit, return or distinguish"),
    ("L6", r"so (many|much|far)", "name the parameter or the quantity: 'at most `count` tokens', 'until now'"),
    ("L8", r"anew", "write 'again'"),
    ("L8", r"besides?", "write 'next to', 'also' or 'except'"),
    ("L8", r"likewise", "write 'also' or 'in the same way'"),
    ("L8", r"but for", "write 'except' or 'except for'"),
    ("L8", r"be it", "write 'even if' or 'including'"),
    ("L8", r"as yet", "write 'yet' or 'until now'"),
    ("L8", r"of (its|their) own", "write 'its own X', 'a separate X' or 'independently'"),
    ("L8", r"by (itself|themselves)", "write 'automatically', or name what starts or ends it"),
    ("L8", r"alone", "write 'only', or 'without X'"),
    ("L9", r"where (there (is|are)|none|nothing|not)", "write 'if': 'where' is for a place"),
]
WORDS = [(rule, re.compile(rf"(?i)\b({pattern})\b".replace(" ", r"\s+")), advice) for rule, pattern, advice in WORDS]
ERRORS = [
    ("L11", re.compile(r"\bcame\b"), "write 'expected Y, got X' and what to do"),
    ("L11", re.compile(r"(?<!there )\b(is|are) no\b"), "write 'must be Y'"),
]
TRANSFER = re.compile(r"_*(tell|told|ask|asked|say|said)(_\w+)?")
BOUND = re.compile(r"(?i)(^|_)(most|least)(_|$)")
DIRECTIVE = re.compile(r"(type|noqa|ruff|mypy|fmt|pragma|shellcheck|hadolint|syntax|eslint)\b.?[:=( -]")
MESSAGES = ("Error", "Exception", "Counter", "Gauge", "Histogram", "print", "info", "warning", "error", "exit")
PROPERTIES = {"property", "cached_property", "setter", "abstractproperty"}


class Finding(NamedTuple):
    """A text that breaks a rule, with advice."""

    path: Path
    line: int
    text: str
    rule: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text!r}: {self.advice}"


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Problem = tuple[int, str, str, str]  # line, text, rule, advice


def check_words(line: int, text: str) -> Iterator[Problem]:
    """Report words of the list, outside of `code`."""
    plain = re.sub(r"`[^`]*`", lambda code: "`" + " " * (len(code[0]) - 2) + "`", text)
    for rule, pattern, advice in WORDS:
        for found in pattern.finditer(plain):
            around = " ".join(plain[max(0, found.start() - 25) : found.end() + 25].split())
            yield line + plain.count("\n", 0, found.start()), around, rule, advice


def check_head(line: int, text: str) -> Iterator[Problem]:
    """Report a comment or docstring that begins with a dangling clause or with a pronoun."""
    if not (word := re.match(r"[A-Za-z]+", text)):
        return
    first, sentence = word[0].lower(), re.split(r"[.;:](\s|$)", text)[0]
    is_clause = word[0][0].isupper() and "," in sentence and first != "of"  # "When the context is full, ..."
    if (first in RELATIVE or text.lower().startswith("in which")) and not is_clause:
        if not re.match(r"(?i)at (most|least)\b", text):
            yield line, text[:60], "L1", "begin with the noun that this describes: '# timeout of a probe, in seconds'"
    elif first in PRONOUNS:
        yield line, text[:60], "L3", "name the noun"


def check_comments(comments: Iterator[tuple[int, int, bool, str]]) -> Iterator[Problem]:
    """Report problems of comments (line, column, whether nothing is left of the comment, text), joined to blocks."""
    blocks: list[tuple[int, str]] = []
    last = (-1, -1)
    for line, column, is_whole_line, text in comments:
        if is_whole_line and last == (line - 1, column):
            blocks[-1] = blocks[-1][0], f"{blocks[-1][1]}\n{text}"
        elif not DIRECTIVE.match(text):
            blocks.append((line, text))
        last = line, column
    for line, text in blocks:
        yield from check_head(line, text)
        yield from check_words(line, text)


def check_docstring(node: Documented, text: str) -> Iterator[Problem]:
    """Report a docstring whose beginning does not fit what it describes."""
    if not text:
        return
    line = node.body[0].lineno
    yield from check_words(line, text)
    first = (re.match(r"[\w-]+", text) or [""])[0].lower()
    names = {getattr(d, "attr", getattr(d, "id", "")) for d in getattr(node, "decorator_list", ())}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not names & PROPERTIES:
        if first not in VERBS and not node.name.startswith("test_"):
            stems = (first[:-1], first[:-2], first[:-3] + "y")
            verb = next((stem for stem in stems if first.endswith("s") and stem in VERBS), "")
            examples = f"'{verb.capitalize()} ...' or 'Return ...'" if verb else "'Return ...', 'Send ...'"
            yield line, text[:60], "L2", f"begin with a verb: {examples}; add a missing verb to tests/verbs.txt"
    elif first in {"whether", "what", "how", "return", "returns", "get", "gets"}:
        yield line, text[:60], "L2", "begin with a noun, and the unit of a quantity; 'True if ...' for a condition"
    else:
        yield from check_head(line, text)


def check_python(source: str) -> Iterator[Problem]:
    """Report problems of comments, docstrings, error messages, help texts and names."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [t for t in tokens if t.type == tokenize.COMMENT and not t.string.startswith("#!")]
    yield from check_comments((*t.start, not t.line[: t.start[1]].strip(), t.string.strip("# ")) for t in comments)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented):
            yield from check_docstring(node, ast.get_docstring(node) or "")
        name = next((n for n in (getattr(node, a, None) for a in ("name", "arg", "id", "attr")) if n), "")
        is_bound = isinstance(getattr(node, "ctx", ast.Store()), ast.Store)
        if isinstance(name, str) and is_bound and hasattr(node, "lineno"):
            if BOUND.search(name):
                yield node.lineno, name, "L10", "name a bound max_ or min_ (MAX_, MIN_)"
            if TRANSFER.fullmatch(name):
                yield node.lineno, name, "L5", "name a transfer emit, send, report, return, request or receive"
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            shown = [k.value for k in node.keywords if k.arg in ("help", "description", "epilog")]
            shown += node.args if called.endswith(MESSAGES) else []
            for value in shown:
                text = literal(value)
                yield from check_words(value.lineno, text)
                matched = (
                    error for error in ERRORS if called.endswith(("Error", "Exception")) and error[1].search(text)
                )
                yield from ((value.lineno, text[:60], rule, advice) for rule, _, advice in matched)


def literal(node: ast.expr) -> str:
    """Return the text of a string or f-string, with {} for each value."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def check_text(name: str, source: str) -> Iterator[Problem]:
    """Report problems of the comments of a file that is not Python, or of a Markdown page outside of code blocks."""
    if name.endswith(".md"):
        text = re.sub(r"(?ms)^( *)```.*?^\1```", lambda code: "\n" * code[0].count("\n"), source)
        yield from check_words(1, text)
        return
    pattern = next(pattern for suffix, pattern in COMMENTS.items() if name.endswith(suffix))
    places = []
    for found in re.finditer(pattern, source):
        begin = source.rfind("\n", 0, found.start()) + 1
        is_whole_line = not source[begin : found.start()].strip()
        text = next(group for group in found.groups() if group)
        places.append(
            (source.count("\n", 0, found.start()) + 1, found.start() - begin, is_whole_line, text.strip("* \n"))
        )
    yield from check_comments(iter(places))


def files(path: Path) -> Iterator[Path]:
    """Yield the files of a folder that the rules apply to, or the path itself."""
    if path.is_file():
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(n for n in folders if n not in SKIPPED and (not n.startswith(".") or n == ".ci"))
        yield from (Path(folder, n) for n in sorted(names) if n.endswith((".py", ".md", *COMMENTS)))


def check(path: Path) -> list[Finding]:
    """Return the findings of a file, or of every file of a folder, in their order."""
    findings = []
    for file in files(path):
        source = file.read_text(encoding="utf-8")
        problems = check_python(source) if file.suffix == ".py" else check_text(file.name, source)
        findings += [Finding(file, *problem) for problem in sorted(set(problems))]
    return findings


if __name__ == "__main__":
    results = [finding for path in sys.argv[1:] or [ROOT] for finding in check(Path(path))]
    print(*results, f"{len(results)} findings", sep="\n")
    sys.exit(bool(results))
