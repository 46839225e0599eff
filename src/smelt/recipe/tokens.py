"""Reads the tokenizer fields: which vocabulary the output gets and where single embedding rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smelt.core.errors import did_you_mean
from smelt.recipe import fields
from smelt.recipe.cursor import Cursor
from smelt.recipe.model import ModelToken, Tokenizer, TokenRule, ZeroRow
from smelt.recipe.model_reader import read_plain_reference
from smelt.recipe.reference import ModelRef
from smelt.recipe.vocabulary import refuse_unknown_keys


def read_tokenizer_source(cursor: Cursor) -> Any:
    """``union``, ``base`` or a model."""
    return cursor.raw if cursor.raw in ("union", "base") else read_plain_reference(cursor)


def read_tokenizer(cursor: Cursor) -> Tokenizer | None:
    """``tokenizer:``."""
    if isinstance(cursor.raw, Tokenizer):
        return cursor.raw
    if isinstance(cursor.raw, str):
        cursor.error(
            f"tokenizer is {cursor.shown()}", "a mapping", f"write `tokenizer: {{source: {cursor.raw}}}`"
        )
        return None
    if not fields.read_mapping(cursor, "{source, tokens, pad_to_multiple_of}"):
        return None
    before = len(cursor.findings.errors)
    refuse_unknown_keys(cursor, Tokenizer.model_fields)
    source: Any = read_tokenizer_source(cursor.child("source")) if cursor.has("source") else "union"
    tokens = _read_tokens(cursor.child("tokens")) if cursor.has("tokens") else {}
    multiple = None
    if cursor.has("pad_to_multiple_of"):
        multiple = fields.read_whole(cursor.child("pad_to_multiple_of"), 1)
    if len(cursor.findings.errors) > before:
        return None
    return Tokenizer(source=source, tokens=tokens, pad_to_multiple_of=multiple)


def check_token_models(cursor: Cursor, tokenizer: Tokenizer, refs: Sequence[ModelRef]) -> None:
    """Rows come from models of the merge; a token rule that names another one is an error."""
    for token, rule in tokenizer.tokens.items():
        source = rule.source.model if isinstance(rule.source, ModelToken) else rule.source
        if isinstance(source, ModelRef) and source not in refs:
            place = cursor.child("tokens").child(token).child("source")
            place.error(
                f"{str(source)!r} is not a model of this merge",
                fix=did_you_mean(str(source), [*map(str, refs)]),
            )


def _read_tokens(cursor: Cursor) -> dict[str, TokenRule]:
    if not fields.read_mapping(cursor, "a mapping of tokens to {source, force}"):
        return {}
    found = {str(token): _read_rule(cursor.child(token)) for token in cursor.raw}
    return {token: rule for token, rule in found.items() if rule is not None}


def _read_rule(cursor: Cursor) -> TokenRule | None:
    """One of ``tokens:``."""
    if isinstance(cursor.raw, TokenRule):
        return cursor.raw
    if not fields.read_mapping(cursor, "{source, force}"):
        return None
    before = len(cursor.findings.errors)
    refuse_unknown_keys(cursor, TokenRule.model_fields)
    source = _read_source(cursor.child("source")) if cursor.has("source") else None
    force = fields.read_flag(cursor.child("force")) if cursor.has("force") else False
    if source is None and force and len(cursor.findings.errors) == before:
        cursor.error("force without a source", "a source whose row every model then gets")
    return None if len(cursor.findings.errors) > before else TokenRule(source=source, force=bool(force))


def _read_source(cursor: Cursor) -> ModelRef | ModelToken | ZeroRow | None:
    """A model, {kind: model_token, ...} or {kind: zero}."""
    raw = cursor.raw
    if isinstance(raw, ModelToken | ZeroRow):
        return raw
    if not isinstance(raw, Mapping) or not {"kind", "token", "token_id"} & set(raw):
        return read_plain_reference(cursor)
    kind = raw.get("kind")
    if kind is None:
        cursor.error("kind is missing", "model_token or zero", "add `kind: model_token`")
    elif kind == "zero":
        before = len(cursor.findings.errors)
        refuse_unknown_keys(cursor, ("kind",))
        return ZeroRow() if len(cursor.findings.errors) == before else None
    elif kind == "model_token":
        return _read_model_token(cursor)
    else:
        cursor.child("kind").error(
            f"unknown kind {kind!r}", fix=did_you_mean(str(kind), ["model_token", "zero"])
        )
    return None


def _read_model_token(cursor: Cursor) -> ModelToken | None:
    """{kind: model_token, model, token or token_id}."""
    before = len(cursor.findings.errors)
    refuse_unknown_keys(cursor, ModelToken.model_fields)
    model = None
    if cursor.has("model"):
        model = read_plain_reference(cursor.child("model"))
    else:
        cursor.error("model is missing", "the model whose row is taken")
    if cursor.has("token") == cursor.has("token_id"):
        found = "both token and token_id" if cursor.has("token") else "neither token nor token_id"
        cursor.error(f"{found}", "exactly one of token and token_id")
    token = cursor.raw.get("token")
    if token is not None and not isinstance(token, str):
        token = fields.read_text(cursor.child("token"), "a token as text")
    number = fields.read_whole(cursor.child("token_id"), 0) if cursor.has("token_id") else None
    if model is None or len(cursor.findings.errors) > before:
        return None
    return ModelToken(model=model, token=token, token_id=number)
