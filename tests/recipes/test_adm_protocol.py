"""The protocol of ImageNet's papers from end to end, with random weights in the published file's place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails, run

from evaluation import Reference
from evaluation.features import inception
from evaluation.results import read_results
from recipes.speed.inception import random_inception

PROTOCOL = ["protocol=adm256-50k", "evaluation.protocol.image_size=20", "evaluation.protocol.extractor.path=weights.pth",
            "evaluation.protocol.reference=adm.npz", "evaluation.batch_size=4"]  # fmt: skip


@pytest.mark.slow
def test_adms_reference_and_anybodys_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_inception(), "weights.pth")
    own = hashlib.sha256(Path("weights.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", own)
    chosen = ["extractor.path=weights.pth", f"+extractor.sha256={own}", "output=adm.npz", "batch_size=4"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), np.uint8)
    statistics = {"mu": np.full(2048, 0.3), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez("VIRTUAL.npz", arr_0=pixels, **statistics)  # of all training images, as ADM's are
    run("data", "stats", "VIRTUAL.npz", *chosen)
    reference = Reference.load("adm.npz")
    np.testing.assert_array_equal(reference.mu, statistics["mu"])
    np.testing.assert_array_equal(reference.sigma_s, statistics["sigma_s"])
    assert (reference.n, reference.features.shape) == (None, (16, 2048))

    np.savez("samples.npz", arr_0=pixels[:12])
    protocol = [*PROTOCOL, f"+evaluation.protocol.extractor.sha256={own}"]
    run("eval", "images=samples.npz", *protocol, "label=theirs")
    (row,) = read_results(Path("runs/eval/results.jsonl"))
    assert {key.partition("_")[0] for key in row.metrics} == {"fid", "sfid", "is", "precision", "recall"}
    assert row.metrics["precision_adm256-50k_12"] == 1  # they are among the real ones
    features = reference.features[:12].astype(np.float64)
    moments = features.mean(axis=0), np.cov(features, rowvar=False)
    expected = np.square(moments[0] - 0.3).sum() + np.trace(moments[1]) + 2048
    expected -= 2 * np.sqrt(np.linalg.eigvalsh(moments[1]).clip(0)).sum()  # against the unit covariance
    assert row.metrics["fid_adm256-50k_12"] == pytest.approx(expected, rel=1e-5)
    assert any("12 images; protocol adm256-50k is for 50000" in remark for remark in row.remarks)
    assert any("fid: 12 images for 2048 features; the covariance is rank-deficient" in told for told in row.remarks)

    # the file as ADM published it has no features of single images, and goes with no other network
    bare = [word.replace("adm.npz", "VIRTUAL.npz") for word in protocol]
    error = fails(capsys, "eval", "images=samples.npz", *bare, "output_dir=bare")
    assert "metric 'precision' needs the features of real images, and reference 'VIRTUAL' holds moments only" in error
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", "0" * 64)
    error = fails(capsys, "eval", "images=samples.npz", *bare, "output_dir=bare")
    assert (
        "does not say which extractor made it, as ADM's files do not; those are of the published Inception alone"
        in error
    )
    assert "weights.pth is not the file that was asked for" in fails(
        capsys, "eval", "images=samples.npz", *PROTOCOL, "output_dir=bare"
    )
