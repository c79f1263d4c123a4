"""Schema mask: which tokens may come next in an answer that follows a JSON schema, by llguidance.

The mask is put on a model's logits before anything else looks at them, so that temperature, penalties and greedy
choice have their effect among the tokens that are left.
"""

from __future__ import annotations

import ctypes
import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError

from .bounded import bounded
from .json_schema import JsonSchema, read_schema
from .protocol import Emit
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# JSON in one line, with a space after commas and colons or without: a model that is lost writes white space for ever
# where it may, and a good one spends a third of its tokens on indenting. Characters are written as they are: with \u, a
# name would have two spellings, and a property could come again under the other one.
FORM = {
    "whitespace_flexible": False,
    "item_separator": r",\x20?",
    "key_separator": r":\x20?",
    "json_allowed_escapes": 'nrbtf\\"',
}
# tokens that are a piece of any text are masked at once: 0.1 s more for the tokenizer, and 0.1 ms a mask instead of 0.8
SLICES = [r'[^"\\\x00-\x1F\x7F]{1,30}']
SECONDS = 30.0  # a schema of five thousand properties takes two


def check_schema(text: str, emit: Emit) -> str:
    """llguidance's grammar of a schema. Raises DataError where there is none; taking too long ends this process."""
    return bounded(emit, "making a grammar of the JSON schema", SECONDS, lambda: grammar_of(read_schema(text)))


def grammar_of(schema: JsonSchema) -> str:
    """llguidance's grammar of a schema. Raises DataError, which says where, for one that it can't make."""
    from llguidance import LLMatcher

    grammar = _grammar(schema.form)
    if why := _first_line(LLMatcher.validate_grammar(grammar)):
        where = "#"
        for where, part in schema.parts:  # noqa: B007 - the first one that fails in the same way
            if isinstance(part, dict) and "$ref" not in part:
                found = _first_line(LLMatcher.validate_grammar(_grammar({"$defs": schema.form["$defs"], **part})))
                if found == why:
                    break
        raise DataError(f"the JSON schema can't be used: {where}: {_advice(why)}")
    return grammar


def _grammar(form: dict[str, Any]) -> str:
    """In llguidance's Lark, where it may be told to leave a text's tokens to the model (llama.cpp's may be others)."""
    return f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps({**form, "x-guidance": FORM})}\n'


def _first_line(message: str) -> str:
    return next(iter(message.splitlines()), "").rpartition("failed to compile JSON schema: ")[2]


def _advice(why: str) -> str:
    for mark, advice in (
        ("oneOf", "several branches of `oneOf` may fit one value; use `anyOf`, or a property that tells them apart"),
        ("circular", "the reference leads to itself by way of other keywords beside it; move them into `$defs`"),
        ("min/maxProperties", "`minProperties` and `maxProperties` need all `properties` in `required`"),
        ("Unsatisfiable", f"no answer fits it ({why.removeprefix('Unsatisfiable schema: ')})"),
    ):
        if mark in why:
            return advice
    return why[:200]


def make_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """llguidance's view of a vocabulary; takes a second for 150,000 tokens."""
    from llguidance import LLTokenizer

    llama, n = vocabulary.llama, vocabulary.n_tokens
    nothing = llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_UNUSED | llama.LLAMA_TOKEN_ATTR_CONTROL
    ends = [i for i in range(n) if vocabulary.ends(i)]
    if not ends:
        raise DataError("the model has no token that ends an answer, so it can't follow a schema")
    said = [b"" if llama.llama_vocab_get_attr(vocabulary.vocab, i) & nothing else vocabulary.piece(i) for i in range(n)]
    for i in ends:
        said[i] = b"\xff" + vocabulary.metadata["tokenizer.ggml.tokens"][i]  # llguidance's mark of what is not text
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined, no-any-return]
        tokens=said,
        vocab_ptr=vocabulary.vocab,
        tokenize_fptr=ctypes.cast(llama.llama_tokenize, ctypes.c_void_p).value,
        eos_token=ends,
        slices=SLICES,
    )


class SchemaMasks:
    """What answers of one loaded model share: the tokenizer, made when a schema is first asked for; the last schema."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._last: tuple[str, LLMatcher] | None = None
        self._one_at_a_time = threading.Lock()

    def begin(self, schema: str, emit: Emit) -> SchemaMask:
        """The mask of one answer. Raises DataError for a schema that can't be followed."""
        from llguidance import LLMatcher

        with self._one_at_a_time:
            if self._last is None or self._last[0] != schema:
                grammar = check_schema(schema, emit)
                # not beside the prompt, whose evaluation asks Python before every node whether it shall stop
                tokenizer = self._tokenizer = self._tokenizer or make_tokenizer(self._vocabulary)
                self._last = (
                    schema,
                    bounded(emit, "the JSON schema", SECONDS, lambda: LLMatcher(tokenizer, grammar, log_level=0)),
                )
            return SchemaMask(self._last[1].deep_copy(), self._vocabulary)


class SchemaMask:
    """Where one answer stands in its schema, from the first token it is applied to; `whole` once none can follow."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self.matcher, self._vocabulary, self.whole = matcher, vocabulary, False
        self._bits = np.zeros(-(-vocabulary.n_tokens // 32), np.int32)
        self._said = bytearray()

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Leave only tokens that may come next: all others of `logits` (n_vocab,) become minus infinity, in place."""
        self.matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(self._bits.view(np.uint8), count=len(logits), bitorder="little").view(bool)
        np.putmask(logits, ~allowed, -np.inf)

    def take(self, token: int, logits: NDArray[np.float32]) -> int:
        """The token that is taken: `token`, unless the mask left it no probability; `logits` are masked."""
        if logits[token] == -np.inf:  # a draw of exactly 0 takes the first token, whatever its share
            token = int(logits.argmax())
        if self._vocabulary.ends(token):
            self._finish()
            return token
        self.matcher.consume_token(token)
        self._check()
        self._said += self._vocabulary.piece(token)
        if self.matcher.is_stopped():
            self._finish()
        return token

    def _check(self) -> None:
        if self.matcher.is_error():
            why = _first_line(self.matcher.get_error())[:200] or self.matcher.stop_reason()
            if why.startswith("NoExtension"):
                raise self._stuck()
            raise DataError(f"the JSON schema can't be used: it is too large for this answer ({why}); make it simpler")

    def _finish(self) -> None:
        """The answer is complete, or nothing that the schema allows is left (6 to 9, a multiple of 5)."""
        self.whole = True
        try:
            json.loads(self._said.decode("utf-8"), parse_int=len, parse_float=len)
        except RecursionError:
            pass  # only that it is deep
        except ValueError:
            raise self._stuck() from None

    def _stuck(self) -> DataError:
        said = json.dumps(self._said.decode("utf-8", "replace")[-40:], ensure_ascii=False)
        return DataError(
            f"the JSON schema can't be used: nothing may follow {said}; see whether its bounds contradict each other, "
            "or it asks for characters that this model has no tokens for"
        )
