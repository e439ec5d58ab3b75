"""`shoal train`: LoRAs and hypernetworks, what they go on from, and where they may be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shoal.adapters.files import load_adapter, save_adapter
from shoal.apps.cli.tasks import Data, divided
from shoal.models.backbone import load_shape
from shoal.text_to_lora.checkpoint import load_hypernetwork
from tests.fixtures.cli import (
    QUICK,
    QUICK_NETWORK,
    ROOT,
    SMALL,
    WORDS,
    Ended,
    Shoal,
    assert_one_line,
    untouched,
)


def test_train_lora_on_one_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    arguments = (
        "train",
        "lora",
        "--base",
        tiny_llama,
        "--tasks",
        data / "tasks" / "first.json",
        "--out",
        out,
    )
    ended = shoal(*arguments, *QUICK, "--seed", 3)
    assert ended.code == 0 and "2 steps" in ended.out, ended.err
    stored = load_adapter(out)
    assert stored.base_model == str(tiny_llama) and stored.lora.rank == 2
    card = stored.card
    assert card is not None and card.trained and card.seed == 3
    assert card.scores["training steps"] == 2
    assert {"training tokens", "training seconds", "training loss"} <= card.scores.keys()
    assert (tmp_path / "lora.run" / "checkpoint").is_dir()
    again = shoal(*arguments, *QUICK, "--seed", 3, "--json").record
    assert again["final_loss"] == card.scores["training loss"]  # nothing was left to train


def test_train_lora_needs_one_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    where = ("train", "lora", "--base", tiny_llama, "--out", tmp_path / "lora", *QUICK)
    assert_one_line(shoal(*where, "--tasks", data), 2, "4 tasks", "--task")
    assert_one_line(shoal(*where, "--tasks", data, "--task", "nobody"), 2, "nobody")
    assert_one_line(shoal(*where, "--tasks", data / "capitals.jsonl"), 2, "--definition")
    assert shoal(*where, "--tasks", data, "--task", "last").code == 0
    other = ("train", "lora", "--base", tiny_llama, "--out", tmp_path / "jsonl", *QUICK)
    ended = shoal(*other, "--tasks", data / "capitals.jsonl", "--definition", "Write it in capitals.")
    assert ended.code == 0, ended.err
    told = {"tasks": str(data / "capitals.jsonl"), "definition": "Write it in capitals.", "out": tmp_path}
    for kept, trained in (({}, len(WORDS) - len(WORDS) // 2), ({"test_size": 0}, len(WORDS))):
        (task,) = divided(Data(**told, **kept))[0]
        assert len(task.train) == trained


def test_two_hypernetworks_are_averaged(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    common = ("train", "text-to-lora", "--base", tiny_llama, *QUICK, "--procedural", 8)
    for seed in (0, 1):
        ended = shoal(*common, "--seed", seed, "--out", tmp_path / str(seed))
        assert ended.code == 0, ended.err
    both = ("--network", tmp_path / "0", "--network", tmp_path / "1")
    ended = shoal("train", "average", *both, "--out", tmp_path / "mean", "--json")
    assert ended.code == 0, ended.err
    assert ended.record == {"averaged": 2, "path": str(tmp_path / "mean")}
    one, other, mean = (
        load_hypernetwork(tmp_path / name).network.state_dict() for name in ("0", "1", "mean")
    )
    for name, tensor in mean.items():
        assert torch.equal(tensor, ((one[name] + other[name]) / 2).bfloat16().float())
    ended = shoal("train", "average", *both[:2], "--out", tmp_path / "alone")
    assert ended.code == 2 and "at least 2 hypernetworks, got 1" in ended.err


def test_a_hypernetwork_gets_an_adapter_for_nonsense(
    shoal: Shoal, multi_task: Path, hypernetwork: Path, tmp_path: Path
) -> None:
    given = ("train", "fallback", "--network", hypernetwork, "--adapter", multi_task)
    ended = shoal(*given, "--out", tmp_path / "both", "--json")
    assert ended.code == 0, ended.err
    assert ended.record == {"path": str(tmp_path / "both")}
    checkpoint, adapter = load_hypernetwork(tmp_path / "both"), load_adapter(multi_task)
    assert checkpoint.multi_task == adapter.lora.to(torch.bfloat16).to(torch.float32)
    assert checkpoint.provenance["multi_task"]["scores"] == adapter.card.scores


def test_train_multi_task_on_the_training_split(multi_task: Path) -> None:
    card = load_adapter(multi_task).card
    assert card is not None and card.trained and card.notes == ("Trained on 2 tasks.",)


def test_train_on_tasks_made_in_code(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "procedural"
    common = ("train", "multi-task", "--base", tiny_llama, *QUICK, "--json")
    plain = shoal(*common, "--out", out, "--procedural", 8)
    assert plain.code == 0, plain.err
    both = shoal(*common, "--out", tmp_path / "both", "--procedural", 8, "--relabelled", 1)
    assert both.code == 0, both.err
    assert 60 <= plain.record["tasks"] < both.record["tasks"] < 2 * plain.record["tasks"]
    sets = shoal(*common, "--out", tmp_path / "sets", "--procedural", 64, "--label-sets", 3)
    assert sets.code == 0, sets.err
    assert sets.record["tasks"] == plain.record["tasks"] + 3
    texts = shoal(*common, "--out", tmp_path / "texts", "--procedural", 64, "--rewrites", 3)
    assert texts.code == 0, texts.err
    assert texts.record["tasks"] == plain.record["tasks"] + 3


def test_training_goes_on_from_an_adapter(
    shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    where = ("--base", tiny_llama, "--tasks", data, "--start", multi_task)
    ended = shoal("train", "multi-task", *where, *QUICK, "--out", tmp_path / "on", "--learning-rate", 1e-9)
    assert ended.code == 0, ended.err
    before, after = load_adapter(multi_task), load_adapter(tmp_path / "on")
    for name, factors in before.lora.factors.items():
        for old, new in zip(factors, after.lora.factors[name], strict=True):
            assert torch.allclose(old, new, atol=1e-6)
    assert after.card is not None and "training tokens" in after.card.notes[1]
    other = shoal("train", "multi-task", *where[2:], "--base", "gpt2", *QUICK, "--out", tmp_path / "other")
    assert_one_line(other, 2, "gpt2")


def test_procedural_examples_that_are_evaluation_data_are_left_out(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    from shoal.tasks.procedural.catalogue import procedural_tasks

    leaking = procedural_tasks(size=8, test_size=1)[0].train[0]
    tasks = shutil.copytree(data, tmp_path / "data")
    file = tasks / "tasks" / "first.json"
    task = json.loads(file.read_text())
    task["test"] = [{"input": leaking.input, "outputs": list(leaking.outputs)}]
    file.write_text(json.dumps(task))
    where = ("--base", tiny_llama, "--tasks", tasks, "--procedural", 8, "--out", tmp_path / "out")
    ended = shoal("train", "multi-task", *where, *QUICK)
    assert ended.code == 0, ended.err


def test_train_text_to_lora_records_where_it_came_from(hypernetwork: Path) -> None:
    checkpoint = load_hypernetwork(hypernetwork)
    facts = checkpoint.provenance
    assert checkpoint.trained and checkpoint.task_encoder == "hash"
    assert facts["steps"] == 2 and facts["tokens"] > 0 and facts["tasks"] == 2 and facts["seed"] == 0
    assert facts["config"]["batch_size"] == 2 and facts["max_descriptions"] == 1
    assert facts["start"]["generator"] == "multi-task lora training"


def test_training_a_hypernetwork_goes_on_from_another_one(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    still = ("--learning-rate", 1e-9, "--offset-learning-rate", 1e-9)
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--start", hypernetwork)
    before = load_hypernetwork(hypernetwork)
    for head, whole in (("L", True), ("M", False)):
        out = tmp_path / head
        ended = shoal(*where, *QUICK_NETWORK, *still, "--head", head, "--out", out)
        assert ended.code == 0, ended.err
        after = load_hypernetwork(out)
        assert after.provenance["start"]["tokens"] == before.provenance["tokens"]
        old, new = before.network.state_dict(), after.network.state_dict()
        same = {name for name in old if name in new and torch.equal(old[name], new[name])}
        offsets = {name for name in old if name.startswith("offsets.")}
        assert offsets and offsets <= same and (same == old.keys()) == whole
    lora = ("train", "multi-task", *where[2:], *QUICK, *still[:2], "--out", tmp_path / "lora")
    assert shoal(*lora).code == 0
    kept, shared = load_adapter(tmp_path / "lora"), before.network.offset_lora()
    assert kept.card is not None and "shared adapter" in kept.card.notes[1]
    for name, (a, b) in kept.lora.factors.items():
        torch.testing.assert_close([a, b], list(shared.factors[name]), atol=1e-6, rtol=0)
    louder = (*where, *QUICK_NETWORK, *still, "--adapter-alpha", 64, "--out", tmp_path / "louder")
    assert_one_line(shoal(*louder), 2, "alpha")
    elsewhere = (*where[:3], "gpt2", *where[4:])
    assert_one_line(shoal(*elsewhere, *QUICK_NETWORK, "--out", tmp_path / "other"), 2, "gpt2")


def test_train_by_reconstruction(
    shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    stored, shape = load_adapter(multi_task), load_shape(str(tiny_llama))
    assert stored.card is not None
    for name in ("upper", "reverse"):
        save_adapter(tmp_path / "adapters" / name, stored.lora, shape=shape, card=stored.card)
    out = tmp_path / "reconstructed"
    arguments = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--out", out, *QUICK_NETWORK)
    arguments += ("--objective", "reconstruction")
    assert_one_line(shoal(*arguments), 2, "--adapters")
    ended = shoal(*arguments, "--adapters", tmp_path / "adapters")
    assert ended.code == 0, ended.err
    assert load_hypernetwork(out).provenance["config"]["objective"] == "reconstruction"
    reads_states = (*arguments, "--adapters", tmp_path / "adapters", "--head", "reader")
    assert_one_line(shoal(*reads_states, "--shots", 4), 2, "--shots 4: reconstruction reads no answers")
    ended = shoal(*reads_states, "--out", tmp_path / "reader")
    assert ended.code == 0, ended.err
    assert load_hypernetwork(tmp_path / "reader").network.architecture.head == "reader"


def test_a_run_is_kept_out_of_its_result(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, multi_task: Path
) -> None:
    where = ("train", "multi-task", "--base", tiny_llama, "--tasks", data, *QUICK)
    out = tmp_path / "new"
    for run in (out, out / "run"):
        assert_one_line(shoal(*where, "--out", out, "--run", run), 2, "name one outside it")
    before = {p.name for p in multi_task.iterdir()}
    assert_one_line(shoal(*where, "--out", out, "--run", multi_task), 2, "which is no run's")
    assert not out.exists() and {p.name for p in multi_task.iterdir()} == before


def test_settings_that_could_not_act_are_refused(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, multi_task: Path
) -> None:
    assert_one_line(shoal("ask", "hi", "--hypernetwork", tmp_path / "none"), 2, "give --describe")
    where = ("train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", tmp_path / "new", *QUICK)
    started = shoal(*where, "--start", multi_task, "--adapter-rank", 3)
    assert_one_line(started, 2, "adapter_rank 3: the LoRA to start from has 2")
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--out", tmp_path / "new")
    told = ("--objective", "reconstruction", "--adapters", multi_task)
    for flag in ("--contrastive-weight", "--token-dropout", "--nonsense"):
        assert_one_line(shoal(*where, *told, flag, 0.5, *QUICK_NETWORK), 2, f"{flag} 0.5: reconstruction")
    ended = shoal(*where, *QUICK_NETWORK, "--shots", 8, "--head", "L")
    assert_one_line(ended, 2, "head L reads no solved examples, shots 8 needs head reader")
    assert not (tmp_path / "new").exists()


def test_a_place_in_use_is_refused_before_training(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    for kind, arguments in (("multi-task", QUICK), ("text-to-lora", QUICK_NETWORK)):
        ended = shoal("train", kind, "--base", tiny_llama, "--tasks", data, "--out", out, *arguments)
        assert_one_line(ended, 2, "thesis.txt")
    assert untouched(tmp_path, {"mine"}) and untouched(out, {"thesis.txt"})


def test_ctrl_c_while_training(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "lora", tmp_path / "lora.run" / "log.jsonl"
    arguments = ["train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", out, *SMALL]
    arguments += ["--steps", 100_000, "--batch-size", 2]
    running = subprocess.Popen(
        [sys.executable, "-m", "shoal.apps.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not (log.is_file() and log.read_text().count("\n") > 2):
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        printed, said = running.communicate(timeout=300)
    finally:
        running.kill()
    last = said.splitlines(keepends=True)[-1]  # what takes long is said before
    assert_one_line(Ended(running.returncode, printed, last), 1, "interrupted after step", "resume")
    assert not out.exists()
    state = json.loads((log.parent / "checkpoint" / "state.json").read_text())
    assert state["progress"]["step"] == log.read_text().count("\n")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_write_and_print_once(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    where = [
        "--base",
        str(tiny_llama),
        "--tasks",
        str(data),
        "--out",
        str(tmp_path / "out"),
        *map(str, QUICK),
    ]
    command = [*launcher, "-m", "shoal.apps.cli.main", "train", "multi-task", *where, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    record = json.loads(ended.stdout)
    card = load_adapter(tmp_path / "out").card
    assert card is not None and card.scores["training tokens"] == record["tokens"]


def test_tasks_of_other_sources_are_trained_on(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    instructions = {
        "Definition": ["Write it in capitals."],
        "Categories": ["Text Modification"],
        "Source": ["this test"],
        "Instances": [{"input": word, "output": [word.upper()]} for word in WORDS],
    }
    (tmp_path / "task001_capitals.json").write_text(json.dumps(instructions))
    common = ("train", "lora", "--base", tiny_llama, "--out", tmp_path / "lora", *QUICK)
    for source in (f"sni:{tmp_path / 'task001_capitals.json'}", "gym:leg_counting"):
        ended = shoal(*common, "--tasks", source, "--test-size", 4, "--run", tmp_path / source[:3])
        assert ended.code == 0, ended.err


def test_sources_that_give_no_tasks_are_refused(shoal: Shoal, tmp_path: Path) -> None:
    common = ("train", "lora", "--out", tmp_path / "lora", "--tasks")
    assert_one_line(shoal(*common, "hub:ada/reviews"), 2, "holds no instruction; add --definition")
    assert_one_line(shoal(*common, "gym:nothing"), 2, "generator 'nothing'")
    assert_one_line(shoal(*common, f"sni:{tmp_path / 'no'}"), 2, "check the path")


def test_refining_is_learned_for_a_hypernetwork(
    shoal: Shoal, hypernetwork: Path, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    few = ("--shots", "4", "--queries", 2, "--curve-tasks", 1, "--max-steps", 4, "--episodes", 0)
    where = ("--base", tiny_llama, "--tasks", data, "--out", tmp_path / "refining")
    ended = shoal("train", "refining", *where, "--start", hypernetwork, *few, "--json")
    assert ended.code == 0, ended.err
    kept = (tmp_path / "refining" / "refining.json").is_file()
    assert kept == ended.record["kept"] == (ended.record["gain"]["mean"] > 0)
    assert shoal("train", "refining", *where, *few).err.startswith("error: --start is missing")
    other = shoal("train", "refining", *where, "--start", multi_task, *few)
    assert other.code == 2 and "is an adapter; refining is learned for a hypernetwork" in other.err


def test_data_check_says_how_a_file_is_understood(shoal: Shoal, tmp_path: Path) -> None:
    rows = [{"instruction": "Say it.", "input": f"word {i}", "output": "x", "id": i} for i in range(5)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    record = shoal("data", "check", file, "--json").record
    assert (record["format"], record["form"], record["rows"]) == ("a JSON array", "Alpaca", 5)
    assert record["left_out"] == ["id"] and len(record["first"]) == 3
    assert record["first"][0] == {"input": "Say it.\n\nword 0", "outputs": ["x"]}
    assert "Alpaca; 5 rows, 5 examples" in shoal("data", "check", file).out
    short = shoal("data", "check", file, "--definition", "Say it.", "--json").record
    assert short["first"][0]["input"] == "word 0"
