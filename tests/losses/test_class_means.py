import pytest
import torch

from robustfg.core.errors import UserError
from robustfg.losses import GaussianMixture
from robustfg.losses.covariance import Identity
from robustfg.losses.diagonal_covariance import Diagonal, Isotropic
from robustfg.losses.full_covariance import Full
from robustfg.losses.priors import Learned

N, K, C, D = 40, 4, 5, 3
KINDS = [(Identity, True), *((kind, tied) for kind in (Isotropic, Diagonal, Full) for tied in (False, True))]


def mixture(kind, tied, **options):
    torch.manual_seed(0)
    given = {} if kind is Identity else {"tied": tied, "floor": 1e-9}
    make = lambda **sizes: kind(**sizes, **given)  # noqa: E731
    return GaussianMixture(channels=C, num_classes=K, embedding_dim=D, covariance=make, **options).double().eval()


def samples():
    """Maps of classes 0, 1 and 3; class 2 has none."""
    generator = torch.Generator().manual_seed(3)
    label = torch.tensor([0, 1, 3])[torch.randint(3, (N,), generator=generator)]
    return torch.randn(N, C, 2, 2, generator=generator, dtype=torch.float64) + label[:, None, None, None], label


def surveyed(module, processes, name="class_gaussians"):
    """What is logged after each process saw its share in batches."""
    maps, label = samples()
    surveys = [module.survey(name) for _ in range(processes)]
    for rank, survey in enumerate(surveys):
        for start in range(rank, N, 7 * processes):
            rows = slice(start, min(start + 7 * processes, N), processes)
            survey.see(maps[rows], label[rows], torch.arange(N)[rows])
    return module.survey(name).conclude([survey.findings() for survey in surveys])


def within(rows):
    """The naive covariance of some rows."""
    return sum(torch.outer(row - rows.mean(0), row - rows.mean(0)) for row in rows) / len(rows)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_the_mixture_becomes_the_naive_one_for_any_number_of_processes(kind, tied, processes):
    module = mixture(kind, tied, priors=Learned)
    before = module.means.detach().clone()
    maps, label = samples()
    with torch.no_grad():
        rows = module.embedding(maps)
    by_class = [rows[label == k] for k in range(K)]
    told = surveyed(module, processes)
    for k, mine in enumerate(by_class):
        expected = mine.mean(0) if len(mine) else before[k]
        assert torch.allclose(module.means[k], expected, rtol=0, atol=1e-12)
    pooled = sum(len(mine) * within(mine) for mine in by_class if len(mine)) / N
    average = pooled.diagonal().mean()
    assert told["variance"] == pytest.approx(average.item(), rel=1e-12)
    counts = torch.tensor([max(len(mine), 1) for mine in by_class]).double()
    assert torch.allclose(module.priors.log().exp(), counts / counts.sum(), rtol=0, atol=1e-12)
    needed, eye = D if kind is Full else 1, torch.eye(D, dtype=torch.float64)
    spread = [pooled] if tied else [within(mine) if len(mine) else 0 * eye for mine in by_class]
    counts = [N] if tied else [len(mine) for mine in by_class]
    for k, (scatter, count) in enumerate(zip(spread, counts, strict=True)):
        if kind is Identity:
            continue
        estimate = (count * scatter + needed * average * eye) / (count + needed)
        expected = {
            Full: estimate + 1e-3 * eye,  # its remainder
            Diagonal: estimate.diagonal().diag(),
            Isotropic: estimate.diagonal().mean() * eye,
        }[kind]
        assert torch.allclose(module.covariance.matrices()[k], expected, rtol=0, atol=1e-7)


def test_moving_means_are_surveyed_as_well():
    module, learned = mixture(Identity, True, means_momentum=0.9), mixture(Identity, True)
    surveyed(module, 1)
    surveyed(learned, 2)
    assert torch.allclose(module.means, learned.means, rtol=0, atol=1e-12)


def test_collapsed_features_leave_covariances_that_can_be_used():
    for kind in (Isotropic, Diagonal, Full):
        module = mixture(kind, False)
        survey, maps = module.survey("class_gaussians"), torch.ones(8, C, 1, 1, dtype=torch.float64)
        survey.see(maps, torch.arange(8) % K, torch.arange(8))
        survey.conclude([survey.findings()])
        assert module(maps).logits.isfinite().all()
        assert module.covariance.log_determinants().isfinite().all()


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_the_survey_of_means_leaves_the_covariances(kind, tied):
    module, whole = mixture(kind, tied, priors=Learned), mixture(kind, tied, priors=Learned)
    before = module.covariance.matrices()
    surveyed(module, 1, "class_means")
    surveyed(whole, 1)
    assert torch.equal(module.covariance.matrices(), before)
    assert torch.equal(module.means, whole.means)
    assert torch.equal(module.priors.log(), whole.priors.log())


def test_what_is_logged_says_how_far_the_means_moved():
    module = mixture(Identity, True)
    before, told = module.means.detach().clone(), surveyed(module, 1)
    moved = (module.means - before).square().sum(1)[[0, 1, 3]].mean()
    assert told["moved"] == pytest.approx(moved.item(), rel=1e-12)


def test_other_surveys_are_refused():
    with pytest.raises(UserError, match="GaussianMixture has no survey named 'push'"):
        mixture(Identity, True).survey("push")
