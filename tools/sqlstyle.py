"""House rules for teguh's SQL that no off-the-shelf linter checks.

Works with PostgreSQL's own scanner and parser (pglast), so it sees inside dollar-quoted bodies,
where other linters see one string.

usage: python tools/sqlstyle.py FILE...      exit 1 if any rule is broken

T001  a line has more than 100 columns
T002  tab, trailing blank or no newline at the end
T003  banner comment (a banner is a missing file)
T004  psql command
T010  SQL text with doubled quotes over several lines: a static statement or $sql$ reads better
T011  a keyword or unquoted name is not lower-case
T012  PostgreSQL cannot parse the file
T020  no comment right above a function
T021  a public function without `comment on function`
T022  space before the bracket of a signature
T023  a function does not say `set search_path = pg_catalog, pg_temp`, and is neither a procedure
      (which may commit, and cannot) nor one SQL expression in which every name and operator is
      qualified (which PostgreSQL puts in the place of the call, unless it has settings)
T024  a parameter's name does not start with p_
T025  the declare block is not aligned
T026  a variable's name does not start with v_
T030  `raise exception` without an errcode
T031  `raise exception` without a detail
T032  `raise exception` without a hint
T040  a function has more than 80 lines
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pglast import ast, enums, parse_sql
from pglast.parser import ParseError, Token, scan
from pglast.visitors import Visitor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH = 100
LENGTH = 80

# Words that PL/pgSQL knows and SQL's scanner takes for plain names.
PLPGSQL = {
    "alias", "assert", "constant", "continue", "debug", "detail", "diagnostics", "elsif", "errcode",
    "exception", "exit", "found", "foreach", "get", "hint", "if", "log", "loop", "message", "next",
    "notice", "open", "perform", "query", "raise", "record", "reverse", "rowtype", "slice",
    "stacked", "strict", "warning", "while",
}  # fmt: skip

# Parameters that a caller gives; the columns of `returns table` and plain `out` are results.
GIVEN = {
    enums.FunctionParameterMode.FUNC_PARAM_DEFAULT,
    enums.FunctionParameterMode.FUNC_PARAM_IN,
    enums.FunctionParameterMode.FUNC_PARAM_INOUT,
    enums.FunctionParameterMode.FUNC_PARAM_VARIADIC,
}


class Problem(NamedTuple):
    """One broken rule."""

    line: int
    rule: str
    message: str


class Function(NamedTuple):
    """One `create function` or `create procedure` of a file."""

    node: ast.CreateFunctionStmt
    name: str
    start: int
    text: str

    @property
    def head(self) -> str:
        """The text up to the body."""
        return re.split(r"\bas \$", self.text, maxsplit=1)[0]

    @property
    def body(self) -> tuple[int, str]:
        """Where the body starts in the file, and its text."""
        for token in scanned(self.text):
            width = quote_width(self.text[token.start : token.end + 1])
            if token.name == "SCONST" and width:
                begin = token.start + width
                return self.start + begin, self.text[begin : token.end + 1 - width]
        return self.start, ""


def line_of(source: str, position: int) -> int:
    """Return the number of the line on which a position lies."""
    return source.count("\n", 0, position) + 1


def lines(source: str) -> Iterator[Problem]:
    """Check what can be seen without understanding SQL."""
    for number, text in enumerate(source.split("\n"), 1):
        if len(text) > WIDTH:
            yield Problem(number, "T001", f"line is {len(text)} columns wide, {WIDTH} allowed")
        if "\t" in text or text != text.rstrip():
            yield Problem(number, "T002", "tab or trailing blank")
        if re.match(r"\s*--\s*[=#*-]{10,}", text):
            yield Problem(number, "T003", "banner comment: split the file instead")
        if text.startswith("\\"):
            yield Problem(number, "T004", "psql command: a driver cannot send it")
    if not source.endswith("\n"):
        yield Problem(source.count("\n") + 1, "T002", "no newline at the end of the file")


def scanned(source: str) -> list[Token]:
    """Return the tokens of a text, none if it is no SQL (a pattern, a document)."""
    try:
        return list(scan(source))
    except ParseError:
        return []


def quote_width(literal: str) -> int:
    """Return how long a literal's dollar quote is; 0 without one, or for prose in $doc$."""
    quote = re.match(r"\$\w*\$", literal)
    return len(quote.group()) if quote and quote.group() != "$doc$" else 0


def tokens(source: str, offset: int = 0, whole: str | None = None) -> Iterator[Problem]:
    """Check every token, also those inside dollar quotes, to any depth."""
    whole = source if whole is None else whole
    for token in scanned(source):
        raw = source[token.start : token.end + 1]
        line = line_of(whole, offset + token.start)
        if token.name == "SCONST":
            if width := quote_width(raw):
                yield from tokens(raw[width:-width], offset + token.start + width, whole)
            elif "''" in raw[1:-1] and "\n" in raw and is_sql(raw):
                yield Problem(line, "T010", "SQL with doubled quotes: use static SQL or $sql$")
        elif not token.name.endswith("COMMENT") and is_upper(raw, token):
            yield Problem(line, "T011", f"{raw!r} is not lower-case")


def is_sql(literal: str) -> bool:
    """Tell whether a string literal reads like a statement."""
    return bool(re.match(r"\W*(select|insert|update|delete|create|alter|drop|if|begin)\b", literal))


def is_upper(raw: str, token: Token) -> bool:
    """Tell whether a token that has no case of its own is written with capitals."""
    if raw == raw.lower() or raw.startswith('"') or token.name in ("BCONST", "XCONST", "USCONST"):
        return False
    return token.kind != "NO_KEYWORD" or token.name == "IDENT" or raw.lower() in PLPGSQL


def dotted(parts: Sequence[ast.Node] | None) -> str:
    """Return a qualified name as it is written."""
    return ".".join(str(part.sval) for part in parts or () if isinstance(part, ast.String))


def parsed(source: str) -> tuple[list[Function], set[str]]:
    """Return the functions of a file, and the names of those that have a comment."""
    functions: list[Function] = []
    commented: set[str] = set()
    for raw in parse_sql(source):
        node, start = raw.stmt, raw.stmt_location or 0
        if isinstance(node, ast.CreateFunctionStmt):
            end = start + raw.stmt_len if raw.stmt_len else len(source)
            # what a statement is said to begin with is, for some parsers, the comment above it
            if above := re.match(r"(?:\s+|--[^\n]*\n)+", source[start:]):
                start += above.end()
            functions.append(Function(node, dotted(node.funcname), start, source[start:end]))
        elif isinstance(node, ast.CommentStmt) and isinstance(node.object, ast.ObjectWithArgs):
            commented.add(dotted(node.object.objname))
    return functions, commented


def is_public(name: str) -> bool:
    """Tell whether a function is for everybody: neither private nor the template queue's."""
    return not (name.rpartition(".")[2].startswith("_") or name.endswith("_template"))


class Unqualified(Visitor):
    """Looks for a name or operator that the search path would resolve."""

    found = False

    def visit_FuncCall(self, _: object, node: ast.FuncCall) -> None:  # noqa: N802
        self._look(node.funcname)

    def visit_A_Expr(self, _: object, node: ast.A_Expr) -> None:  # noqa: N802
        self._look(node.name)

    def visit_TypeName(self, _: object, node: ast.TypeName) -> None:  # noqa: N802
        self._look(node.names)

    def visit_RangeVar(self, _: object, node: ast.RangeVar) -> None:  # noqa: N802
        self.found = True

    def _look(self, name: Sequence[ast.Node] | None) -> None:
        self.found = self.found or len(name or ()) < 2


def is_expression(function: Function) -> bool:
    """Tell whether a function is one SQL expression that depends on no search path."""
    if not re.search(r"(?m)^  language sql$", function.head):
        return False
    statements = parse_sql(function.body[1])
    unqualified = Unqualified()
    unqualified(statements)
    return len(statements) == 1 and not unqualified.found


def signature(function: Function, source: str, commented: set[str]) -> Iterator[Problem]:
    """Check what stands before a function's body."""
    line, name = line_of(source, function.start), function.name
    if not re.search(r"(?:\A|\n)--[^\n]*\n\Z", source[: function.start]):
        yield Problem(line, "T020", f"{name}: no comment right above")
    if is_public(name) and name not in commented:
        yield Problem(line, "T021", f"{name}: public, and without `comment on function`")
    if re.match(r"create [^(]*\s\(", function.text):
        yield Problem(line, "T022", f"{name}: space before (")
    pinned = re.search(r"\bset search_path = pg_catalog, pg_temp\b", function.head)
    if not (pinned or function.node.is_procedure or is_expression(function)):
        yield Problem(line, "T023", f"{name}: no `set search_path = pg_catalog, pg_temp`")
    for parameter in function.node.parameters or ():
        if parameter.mode in GIVEN and not (parameter.name or "").startswith("p_"):
            yield Problem(line, "T024", f"{name}: parameter {parameter.name} lacks p_")
    length = function.text.count("\n") + 1
    if length > LENGTH:
        yield Problem(line, "T040", f"{name}: {length} lines, {LENGTH} allowed")


def declarations(function: Function, source: str) -> Iterator[Problem]:
    """Check the variables of a function."""
    start, body = function.body
    line = line_of(source, function.start)
    for block in re.finditer(r"(?m)^( *)declare\n(.*?)\n\1begin$", body, re.DOTALL):
        inner = re.escape(block[1]) + "  "
        rows = re.findall(rf"(?m)^{inner}(\w+)( +)\w", block[2])
        if len({len(variable + gap) for variable, gap in rows}) > 1:
            at = line_of(source, start + block.start())
            yield Problem(at, "T025", f"{function.name}: declare block is not aligned")
        for variable, _ in rows:
            if not variable.startswith("v_"):
                yield Problem(line, "T026", f"{function.name}: variable {variable} lacks v_")
    # A column of `returns table` may be what a loop fills.
    known = {parameter.name for parameter in function.node.parameters or ()}
    for loop in re.finditer(r"\bfor(?:each)? (\w+)(?:, \w+)* (?:slice \d+ )?in\b", body):
        if not loop[1].startswith("v_") and loop[1] not in known:
            at = line_of(source, start + loop.start())
            yield Problem(at, "T026", f"{function.name}: variable {loop[1]} lacks v_")


def errors(source: str, offset: int = 0, whole: str | None = None) -> Iterator[Problem]:
    """Check every `raise exception`, at any depth of dollar quotes."""
    whole = source if whole is None else whole
    found = [token for token in scanned(source) if not token.name.endswith("COMMENT")]
    words = [source[token.start : token.end + 1] for token in found]
    for index, token in enumerate(found):
        if token.name == "SCONST" and (width := quote_width(words[index])):
            inner = words[index][width:-width]
            yield from errors(inner, offset + token.start + width, whole)
        if words[index : index + 2] != ["raise", "exception"]:
            continue
        end = words.index(";", index) if ";" in words[index:] else len(words)
        said = set(words[index:end])
        line = line_of(whole, offset + token.start)
        for rule, word in (("T030", "errcode"), ("T031", "detail"), ("T032", "hint")):
            if word not in said:
                yield Problem(line, rule, f"raise exception without {word}")


def check(source: str) -> list[Problem]:
    """Return all problems of a file, by line."""
    problems = {*lines(source), *tokens(source), *errors(source)}
    try:
        # psql commands are reported by themselves.
        functions, commented = parsed(re.sub(r"(?m)^\\.", "--", source))
    except ParseError as error:
        problems.add(Problem(1, "T012", f"PostgreSQL cannot parse it: {error.args[0]}"))
    else:
        for function in functions:
            problems.update(signature(function, source, commented))
            problems.update(declarations(function, source))
    return sorted(problems)


def main(paths: list[str]) -> int:
    """Print the problems of all files, and how many there are of each rule."""
    total: Counter[str] = Counter()
    for path in paths:
        for problem in check(Path(path).read_text(encoding="utf-8")):
            total[problem.rule] += 1
            print(f"{path}:{problem.line}: {problem.rule} {problem.message}")
    if total:
        counts = ", ".join(f"{rule}: {count}" for rule, count in sorted(total.items()))
        print(f"sqlstyle: {counts}", file=sys.stderr)
    return int(bool(total))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
