"""Ask a model for an answer of a given form: JSON that follows a schema.

python examples/ask_with_schema.py MODEL.gguf "Which nerve innervates the deltoid?"
"""

from __future__ import annotations

import json
import sys

import jmedlite

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 40}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def main(model: str, question: str) -> None:
    with jmedlite.Runner(model, ctx=512) as runner:
        answer = runner.ask(question, json_schema=SCHEMA)
        print(json.loads(answer.text))
        print(f"{runner.facts['name']}, licence: {runner.facts['license']}; for research only, not for diagnosis")


if __name__ == "__main__":
    main(*sys.argv[1:])
