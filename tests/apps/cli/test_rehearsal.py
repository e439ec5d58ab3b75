"""`shoal train text-to-lora --rehearse`: what it keeps, and what cannot be rehearsed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.text_to_lora.checkpoint import load_hypernetwork
from tests.fixtures.cli import QUICK_NETWORK, Shoal, assert_one_line


@pytest.fixture
def old(tmp_path: Path) -> Path:
    file = tmp_path / "old.txt"
    file.write_text("Write the word in capital letters.\nWrite the word backwards.\n")
    return file


def test_a_network_that_rehearses_goes_on_as_it_is(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path, old: Path
) -> None:
    """Its sizes are those of the start, and what it emits for old descriptions is nearly the same."""
    before, out = load_hypernetwork(hypernetwork), tmp_path / "out"
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--start", hypernetwork)
    steps = ("--steps", 2, "--batch-size", 2, "--rehearse", 1, "--rehearsed", 2)
    ended = shoal(*where, *steps, "--old-descriptions", old, "--out", out)
    assert ended.code == 0, ended.err
    after = load_hypernetwork(out)
    assert after.network.architecture == before.network.architecture
    assert after.provenance["config"]["rehearse"] == 1 and after.provenance["start"]["steps"] == 2
    rows = (tmp_path / "out.run" / "log.jsonl").read_text()
    assert '"forgotten"' in rows and '"answer_loss"' in rows
    assert not all(
        torch.equal(one, other)
        for one, other in zip(
            before.network.state_dict().values(), after.network.state_dict().values(), strict=True
        )
    )


def test_what_cannot_be_rehearsed(
    shoal: Shoal, hypernetwork: Path, multi_task: Path, tiny_llama: Path, data: Path, old: Path
) -> None:
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--out", "nowhere")
    start = ("--start", hypernetwork)
    for given, says in (
        (("--rehearse", 1, *QUICK_NETWORK), "rehearse has no start"),
        (("--rehearse", 1, "--start", multi_task), "rehearse has an adapter to start from"),
        (("--rehearse", -1, *start), "--rehearse"),
        (("--rehearse", "inf", *start), "--rehearse"),
        (("--rehearse", "nan", *start), "--rehearse"),
        (
            ("--rehearse", 1, *start, "--adapter-rank", 5),
            "adapter_rank 5: the hypernetwork to start from has",
        ),
        (("--rehearse", 1, *start), "none is made in code; give --old-descriptions FILE"),
        ((*start, "--old-descriptions", old), "--rehearse is 0; add --rehearse 1"),
        (
            ("--rehearse", 1, "--objective", "reconstruction", "--adapters", multi_task),
            "reconstruction reads",
        ),
    ):
        assert_one_line(shoal(*where, *given), 2, says)
