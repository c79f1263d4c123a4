"""Stop texts: where an answer ends because of what it says, though the model would go on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .chat_template import Part

SHORTEST_HEADER = 3  # characters; shorter beginnings of lines stand in many an answer


class StopTexts:
    """Ends an answer at the first of some texts, which is no part of it; pieces go in, and out once they are sure."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts, self._held, self.met = texts, "", False

    def take(self, piece: str) -> str:
        """What of the answer is sure with its next piece; `met` is true once it ends."""
        text = self._held + piece
        ends = [at for at in map(text.find, self._texts) if at >= 0]
        if ends:
            self._held, self.met = "", True
            return text[: min(ends)]
        held = max((n for stop in self._texts for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, where the answer ends for another reason."""
        return self._held


def turn_header(parts: Sequence[Part], controls: Collection[str], between: Collection[str]) -> str | None:
    """The line that begins a person's turn in this prompt, where it is plain text (`### Instruction:`, `[INST]`).

    A model that writes it has begun to speak for the person: its answer is over. Turns that begin with control tokens
    (`controls`, but for those `between` turns: BOS and EOS) end with one too, which needs no text.
    """
    question = next((i for i in reversed(range(len(parts))) if parts[i].private), 0)
    before = parts[question - 1].text if question and parts[question - 1].trusted else ""
    line = next((x for x in reversed(before.splitlines()) if x.strip()), "")
    for token in filter(None, between):
        line = line.rpartition(token)[2]
    line = line.strip()
    if len(line) < SHORTEST_HEADER or any(c and c in line for c in controls):
        return None
    return line
