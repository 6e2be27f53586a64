"""Shifts of class scores for mean IoU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sapiens_hf import SapiensForSemanticSegmentation
from training.balance import SHIFTS, balance, best_shifts, confusion, main, mean_iou
from training.layouts import class_layout

ROOT = Path(__file__).resolve().parents[1]
PEOPLE, MODEL = ROOT / "examples" / "people", ROOT / "checkpoints" / "tiny-segmentation"


def scores_and_labels(num_pixels=3000, num_labels=5):
    """Scores that favour class 0 far too much; class 3 does not occur."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.randint(num_labels, (num_pixels,), generator=generator)
    labels[labels == 3] = 0
    scores = 2 * torch.nn.functional.one_hot(labels, num_labels) + torch.randn(
        num_pixels, num_labels, generator=generator
    )
    scores[:, 0] += 2.5
    return scores, labels


def iou_of(scores, labels):
    predicted, classes = scores.argmax(dim=1).numpy(), range(scores.shape[1])
    truth = labels.numpy()
    unions = [np.sum((predicted == c) | (truth == c)) for c in classes]
    hits = [np.sum((predicted == c) & (truth == c)) for c in classes]
    return np.mean([hit / union for hit, union in zip(hits, unions) if union])


def test_mean_iou_counts_what_is_there_or_predicted():
    scores, labels = scores_and_labels()
    tables = confusion(scores.argmax(dim=1), labels, 5)
    assert tables[1, 0] == ((labels == 1) & (scores.argmax(dim=1) == 0)).sum()
    assert mean_iou(tables).item() == pytest.approx(iou_of(scores, labels))
    assert mean_iou(torch.stack([tables, tables.diag().diag()]))[1].item() == 1.0


def test_one_class_gets_the_best_of_all_shifts():
    scores, labels = scores_and_labels()
    scores, labels = scores[:, :2], labels.clamp(max=1)  # of two classes only the difference counts
    chosen = best_shifts(scores, labels, num_rounds=1)
    tried = [iou_of(scores + torch.tensor([shift, 0.0]), labels) for shift in SHIFTS]
    assert chosen[0].item() == pytest.approx(SHIFTS[int(np.argmax(tried))].item(), abs=1e-6) and chosen[0] < -1
    assert iou_of(scores + chosen, labels) >= max(tried)


def test_several_classes():
    scores, labels = scores_and_labels()
    first, last = (best_shifts(scores, labels, num_rounds=rounds) for rounds in (1, 3))
    before, middle, after = (iou_of(scores + shift, labels) for shift in (0, first, last))
    assert after >= middle > before + 0.1
    assert last[3] == 0  # no pixel tells how often it should be there


def test_only_the_last_bias_changes(tmp_path, capsys):
    output = tmp_path / "balanced"
    given = [str(MODEL), "--data", str(PEOPLE), "--max_samples", "4", "--output_dir", str(output)]
    scores = main(given)
    assert scores["after"] > scores["before"] and f"{scores['after']:.4f}" in capsys.readouterr().out
    before, after = (SapiensForSemanticSegmentation.from_pretrained(path).state_dict() for path in (MODEL, output))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.final_conv.bias"]
    assert (output / "preprocessor_config.json").is_file()
    with pytest.raises(FileExistsError, match="give another --output_dir"):
        main(given)


def test_large_inputs_give_a_part_of_their_pixels(monkeypatch, tmp_path):
    monkeypatch.setattr("training.balance.MAX_PIXELS", 20_000)
    given = [str(MODEL), "--data", str(PEOPLE), "--max_samples", "3", "--output_dir", str(tmp_path / "a")]
    from training import balance as module

    kept = []
    monkeypatch.setattr(module, "best_shifts", lambda scores, labels: kept.append(labels) or torch.zeros(28))
    main(given)
    assert len(kept[0]) == pytest.approx(20_000, rel=0.05) and kept[0].unique().numel() > 5


def test_what_does_not_fit_is_refused():
    model = SapiensForSemanticSegmentation.from_pretrained(MODEL)
    with pytest.raises(ValueError, match="28 classes and lip20 20"):
        balance(model, None, [], class_layout("lip20"))
    with pytest.raises(ValueError, match="at least 1"):
        main([str(MODEL), "--data", str(PEOPLE), "--output_dir", "nowhere", "--max_samples", "0"])
