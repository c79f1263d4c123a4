"""Ask a model for an answer of a given form: JSON that follows a schema.

python examples/ask_with_schema.py MODEL.gguf "Which nerve innervates the deltoid?"
"""

from __future__ import annotations

import json
import sys

import jmedlite

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 60}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
}


def main(model: str, question: str) -> None:
    with jmedlite.Runner(model, ctx=512) as runner:
        answer = runner.ask(question, max_tokens=128, json_schema=json.dumps(SCHEMA))
        print(json.loads(answer.text))
        print(f"{runner.facts['name']}, licence: {runner.facts['license']}; for research only, not for diagnosis")


if __name__ == "__main__":
    main(*sys.argv[1:])
