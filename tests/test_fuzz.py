"""A short fuzz of every kind of file that tamp reads, and the fuzz itself, which must see each kind of fault."""

import random

import fuzz
import pytest

from tamp.errors import UserError


def test_no_mutated_file_gets_past_its_reader_but_as_a_sentence(tmp_path):
    targets = fuzz.make(tmp_path)
    counts, faults = fuzz.run(targets, seed=22, share=0.026)
    assert not faults
    assert sum(map(sum, (each.values() for each in counts.values()))) >= 290
    assert {kind for kind, each in counts.items() if each["refused"]} >= {"plan", "manifest", "comparison", "benchmark"}


def endless(folder):
    while True:
        pass


def write(folder):
    (folder / "left").touch()
    return True


def refuse(folder):
    raise UserError("It is damaged: load it again.")


READERS = {"accepted": lambda folder: True, "refused": refuse, "raised": lambda folder: {}["key"], "hung": endless}
READERS |= {"wrong": lambda folder: False}


@pytest.mark.parametrize("outcome", READERS)
def test_every_outcome_is_told_apart(outcome, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LIMIT", 0.2)
    target = fuzz.Target("a.json", 1, READERS[outcome])
    assert fuzz.tried(target, tmp_path, b"{}")[0] == outcome


def test_what_a_reader_writes_is_seen(tmp_path):
    assert fuzz.tried(fuzz.Target("a.json", 1, write), tmp_path, b"{}")[0] == "wrong"


def test_mutations_differ_and_depend_on_the_seed_alone():
    target, data = fuzz.Target("a.json", 1, bool), b'{"a": [1, {"b": "x"}], "c": null}'
    made = [[fuzz.mutated(data, target, dice) for _ in range(50)] for dice in map(random.Random, (0, 0, 1))]
    assert made[0] == made[1] != made[2]
    assert len(set(made[0])) > 30 and data not in made[0][:5]
