import pytest
import torch
from answers import LEARNERS, answer, learn, samples

from robustfg.cli.config import build
from robustfg.core.errors import UserError
from robustfg.detectors import Fitted, threshold_at

NODES = {
    "mahalanobis": {"_target_": "robustfg.detectors.Mahalanobis", "features": ["embedding", "inner"]},
    "kernel_density": {"_target_": "robustfg.detectors.KernelDensity", "bandwidth": 0.5},
    "energy": {"_target_": "robustfg.detectors.Energy"},
}


@pytest.fixture
def fitted():
    detectors = {name: build(node, "detector") for name, node in NODES.items()}
    for name in ("mahalanobis", "kernel_density"):
        learn(detectors[name], *samples())
    seen, of, _ = samples(50, seed=1)
    scores = {name: detector.score(answer(seen, of)).sort().values for name, detector in detectors.items()}
    return Fitted(detectors, NODES, scores, {"weights_sha256": "abc", "fpr": 0.05})


def test_a_file_gives_back_scores_thresholds_and_what_it_is_about(fitted, tmp_path):
    path = tmp_path / "deep" / "detectors.pt"
    fitted.write(path)
    torch.load(path, weights_only=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["detectors.pt"]
    again = Fitted.read(path, build)
    seen, of, _ = samples(30, seed=2)
    for name, detector in fitted.detectors.items():
        assert torch.equal(again.detectors[name].score(answer(seen, of)), detector.score(answer(seen, of)))
        assert again.tau(name, 0.1) == fitted.tau(name, 0.1) == threshold_at(fitted.calibration[name], 0.1)
    assert again.about == fitted.about
    assert again.nodes == fitted.nodes


def test_the_builder_is_asked_before_anything_is_made(fitted, tmp_path):
    fitted.write(tmp_path / "d.pt")

    def refuse(node, option):
        raise UserError(f"{option}: {node['_target_']} is not trusted")

    with pytest.raises(UserError, match=r"detector.mahalanobis: robustfg.detectors.Mahalanobis is not trusted"):
        Fitted.read(tmp_path / "d.pt", refuse)


def test_an_unknown_name_is_told_with_the_known_ones(fitted):
    with pytest.raises(UserError, match="detector=nope is not among the fitted ones: mahalanobis, kernel_density"):
        fitted.tau("nope", 0.05)
    with pytest.raises(UserError, match="must have the same names"):
        Fitted(fitted.detectors, {}, fitted.calibration)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_damaged_and_foreign_files_are_refused(fitted, tmp_path, capsys):
    path = tmp_path / "d.pt"
    with pytest.raises(UserError, match="no fitted detectors at"):
        Fitted.read(path, build)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        Fitted.read(path, build)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="holds no detectors"):
        Fitted.read(path, build)
    torch.save({"robustfg_detectors": 1, "nodes": Evil()}, path)
    with pytest.raises(UserError, match="could run code"):
        Fitted.read(path, build)
    assert "ran" not in capsys.readouterr().out
    fitted.write(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        Fitted.read(path, build)


def test_a_detector_that_has_changed_is_told(fitted, tmp_path):
    fitted.write(tmp_path / "d.pt")
    with pytest.raises(UserError, match="what mahalanobis learned does not fit it any more"):
        Fitted.read(tmp_path / "d.pt", lambda node, option: LEARNERS["kernel"]())
