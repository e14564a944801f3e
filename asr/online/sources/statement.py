"""Statements: a query reaches a database only as one SELECT that changes nothing, and in the very words looked at."""

from __future__ import annotations

import itertools
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils import UserError

if TYPE_CHECKING:
    from sqlglot.expressions import Expr, Query
    from sqlglot.tokens import Token

# What SQLAlchemy calls a database, and sqlglot its dialect of SQL, where the names differ.
DIALECTS = {"mariadb": "mysql", "postgresql": "postgres", "cockroachdb": "postgres", "mssql": "tsql"}
HAVE_LIMIT = ("mysql", "postgres", "sqlite")
RUNS_COMMENTS = "mysql"


@dataclass(frozen=True)
class Statement:
    """One SELECT.

    Attributes:
        text: what is sent: the query without its comments and its closing semicolon.
        counts: statements that count its rows, the cheapest first; not every one is sure to run.
        ordered: whether its rows come in an order that it says.
    """

    text: str
    counts: tuple[str, ...] = ()
    ordered: bool = False


def one_select(query: str, backend: str, limit: int = 0) -> Statement:
    """Look whether a query is one SELECT that changes nothing.

    Args:
        query: of the user.
        backend: the database, as SQLAlchemy calls it.
        limit: rows that will be read at most, and so are worth counting; 0 for all.

    Raises:
        UserError: it is something else, or cannot be understood.
    """
    import sqlglot
    from sqlglot.errors import SqlglotError, TokenError

    # sqlglot would quote what it does not understand on standard error.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    name = DIALECTS.get(backend, backend)
    name = name if sqlglot.Dialect.get(name) else ""
    dialect = sqlglot.Dialect.get_or_raise(name)
    try:
        tokens = dialect.tokenize(query)
        text = _text(query, tokens, name)
        tree = dialect.parse(text)[0] if text else None
    except TokenError:
        raise UserError("--db-query: a quotation mark, bracket or comment in it is not closed") from None
    except SqlglotError as error:
        raise UserError(
            f"--db-query: {_trouble(tokens, error)}; give one plain SELECT, or a view to --db-table"
        ) from None
    if tree is None:
        raise UserError("--db-query is empty: give it a SELECT")
    _refuse_changes(tree, tokens)
    return Statement(text, _counts(text, tree, name, limit), bool(tree.args.get("order")))


def _text(query: str, tokens: list[Token], dialect: str) -> str:
    """Return the query as its tokens stand in it. What lies between them is white space and comments, and these stay
    here: databases disagree on where a comment ends."""
    from sqlglot.tokens import TokenType

    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens.pop()
    if any(token.token_type == TokenType.SEMICOLON for token in tokens):
        raise UserError("--db-query holds more than one statement: give one SELECT")
    starts = [token.start for token in tokens] + [len(query)]
    ends = [0] + [token.end + 1 for token in tokens]
    between = [query[end:start] for end, start in zip(ends, starts, strict=True)]
    if dialect == RUNS_COMMENTS and any(re.search(r"/\*M?!", gap) for gap in between):
        raise UserError("--db-query holds a comment that the database runs (/*! ... */): write out what it says")
    white = [gap if gap.isspace() or not gap else " " for gap in between]
    words = [query[token.start : token.end + 1] for token in tokens]
    return "".join(itertools.chain.from_iterable(zip(white, words, strict=False))).strip()


def _trouble(tokens: list[Token], error: Exception) -> str:
    """Say why a query cannot be parsed. INTO OUTFILE is no syntax that the parser knows."""
    from sqlglot.tokens import TokenType

    if any(token.token_type == TokenType.INTO for token in tokens):
        return "INTO writes, and the database is only read"
    details = (getattr(error, "errors", None) or [{}])[0]
    return f"it cannot be understood at line {details.get('line')}, column {details.get('col')}"


def _refuse_changes(tree: Expr, tokens: list[Token]) -> None:
    """Raise UserError unless the parsed statement is a SELECT, all through."""
    from sqlglot import exp

    root = tree.unnest()
    if not isinstance(root, exp.Select | exp.SetOperation):
        raise UserError(f"--db-query is no SELECT, it begins with {tokens[0].text.upper()}: the database is only read")
    for node in tree.walk():
        if isinstance(node, exp.Into):
            raise UserError("--db-query: INTO writes, and the database is only read: take it out")
        if isinstance(node, exp.Lock):
            raise UserError("--db-query locks rows (FOR UPDATE, FOR SHARE), and the database is only read: take it out")
        inside_cte = isinstance(node.parent, exp.CTE) and node.arg_key == "this"
        if isinstance(node, exp.DML | exp.DDL | exp.Command) or (
            inside_cte and not isinstance(node, exp.Query | exp.Values)
        ):
            raise UserError(f"--db-query holds {node.key.upper()}, and the database is only read: take it out")


def _counts(text: str, tree: Expr, dialect: str, limit: int) -> tuple[str, ...]:
    """Return statements that count the rows: without the columns where that changes nothing, else as it is."""
    bodies = [*_without_columns(tree, dialect), text]
    if limit and dialect in HAVE_LIMIT:
        bodies = [f"SELECT 1 FROM (\n{body}\n) given_rows LIMIT {limit}" for body in bodies]
    return tuple(f"SELECT COUNT(*) FROM (\n{body}\n) counted_rows" for body in bodies)


def _without_columns(tree: Expr, dialect: str) -> list[str]:
    """Return the SELECT with a 1 for its columns, or nothing. A database that stores what it counts on its disk, as
    MariaDB does below a LIMIT, would copy every recording to count them."""
    from sqlglot import exp

    if not isinstance(tree, exp.Select) or any(
        tree.args.get(key) for key in ("distinct", "group", "having", "qualify")
    ):
        return []
    if not all(isinstance(column, exp.Column | exp.Star) for column in tree.expressions):
        return []
    counted: Query = tree.copy()
    counted.set("expressions", [exp.Literal.number(1)])
    counted.set("order", None)
    return [counted.sql(dialect)]
