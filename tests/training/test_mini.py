"""The training of mini-llava-next."""

import json

import pytest
import torch
import transformers
from resuming import whole_and_pieces
from training import mini

SMOKE = (
    "--vision-steps",
    "4",
    "--alignment-steps",
    "4",
    "--language-steps",
    "4",
    "--save-every",
    "2",
    "--check-every",
    "2",
    "--held-out",
    "10",
    "--final",
    "20",
)


@pytest.mark.slow
def test_interrupted_training_gives_the_same_weights_and_record(tmp_path):
    folders = whole_and_pieces(mini.main, tmp_path, SMOKE, minutes="0.002", most=60)
    whole, pieces = [
        transformers.LlavaNextForConditionalGeneration.from_pretrained(folder).state_dict() for folder in folders
    ]
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    for record in records:
        for entry in record["curve"]:
            del entry["seconds"]
    assert records[0]["curve"] == records[1]["curve"]
    assert records[0]["held_out"] == records[1]["held_out"]
    assert {entry["stage"] for entry in records[0]["curve"]} == {"vision", "alignment", "language"}


@pytest.mark.slow
def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *SMOKE]
    assert mini.main([*arguments, "--minutes", "0"]) == 3
    with pytest.raises(ValueError, match="another seed or recipe"):
        mini.main([*arguments, "--seed", "5"])
