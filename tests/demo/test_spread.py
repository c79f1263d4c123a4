"""Spreading the demo's columns changes the size of its weights, and not a single bit of what they compute."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jmedlite import demo

pytestmark = pytest.mark.oracle

TOOLS = Path(__file__).parents[2] / "tools" / "demo"


@pytest.fixture(scope="module")
def spreading() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import spread as module
    return module


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(1, 200)[None] * 7).logits


def test_the_shipped_model_computes_what_was_trained(spreading: ModuleType) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.MODEL, dtype=torch.float32).eval()
    shipped = {name: x.clone() for name, x in model.state_dict().items()}
    before = logits(model)
    trained = spreading.spread(shipped, -1)
    changed = [name for name, x in trained.items() if not torch.equal(x, shipped[name])]
    assert len(changed) >= 6 * model.config.num_hidden_layers
    model.load_state_dict(trained)
    assert torch.equal(logits(model), before)
    again = spreading.spread(trained)
    assert all(torch.equal(again[name], x) for name, x in shipped.items())


def test_the_adapter_goes_with_it(spreading: ModuleType) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.MODEL, dtype=torch.float32).eval()
    alone = logits(model)
    adapted = PeftModel.from_pretrained(model, demo.ADAPTER).eval()
    before = logits(adapted)
    assert not torch.equal(before, alone)
    weights = {name.replace(".base_layer", "").replace(".default", ""): name for name in adapted.state_dict()}
    trained = spreading.spread({short: adapted.state_dict()[name] for short, name in weights.items()}, -1)
    adapted.load_state_dict({weights[short]: x for short, x in trained.items()})
    assert torch.equal(logits(adapted), before)
