"""Steps of GSA and its relatives against their definitions, written out with autograd on a small network."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltzoo
from ltzoo.errors import GkpGsaError
from ltzoo.gkpgsa.flat import FlatParameters
from ltzoo.gkpgsa.rows import RowsForm
from ltzoo.gkpgsa.settings import SharpnessSettings
from ltzoo.gkpgsa.sharpness import GroupedSharpness, StepReport
from ltzoo.losses import create_objective
from ltzoo.training.learner import Learner

CLASSES = 6
CLASS_GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])
COUNTS = torch.tensor([90, 60, 30, 20, 6, 2])
SAMPLES = torch.tensor([150, 50, 8])
LABELS = torch.tensor([4, 0, 2, 1, 0, 3, 0, 1, 5, 0])


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# How the engine of a test works.
ROWS: RowsForm = 'sliced'


@pytest.fixture(params=['sliced', 'one_hot', 'sorted'])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], 'ROWS', request.param)


# Steps with `ascent` a number are sliced in any case; they, and tests without a step, run once.
in_every_form = pytest.mark.usefixtures('rows')


class Setting:
    """A network without batch-norm, a batch, and one step of an engine on it."""

    def __init__(self, groups: Tensor = CLASS_GROUPS, samples: Tensor = SAMPLES, **settings: Any) -> None:
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        self.x = torch.randn(len(LABELS), 3, 2, 2)
        self.labels = LABELS
        self.start = copy.deepcopy(self.net)
        self.engine = GroupedSharpness(self.net, groups, samples, SharpnessSettings(**settings), rows_form=ROWS)

    def losses(self, views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(views[0]), labels, reduction='none')

    def step(self, pieces: int = 1, **options: Any) -> StepReport:
        self.net.zero_grad(set_to_none=True)
        parts = [((x,), y) for x, y in zip(self.x.chunk(pieces), self.labels.chunk(pieces), strict=True)]
        return self.engine.step(self.losses, parts, **options)

    @property
    def gradient(self) -> Tensor:
        return torch.cat([p.grad.reshape(-1) for p in self.net.parameters()])  # type: ignore[union-attr]

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.net.parameters()])

    def gradient_at(self, theta: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the gradient of the mean loss of the kept samples at other weights."""
        net = copy.deepcopy(self.net)
        nn.utils.vector_to_parameters(theta, net.parameters())
        keep = torch.ones(len(self.labels), dtype=torch.bool) if keep is None else keep
        loss = F.cross_entropy(net(self.x[keep]), self.labels[keep])
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])

    def of_group(self, g: int) -> Tensor:
        return self.engine.class_groups[self.labels] == g


def without(v: Tensor, m: Tensor) -> Tensor:
    """Eq. 12."""
    return v - (v @ m) / (m @ m) * m


def bounded(s: Setting, v: Tensor, g: int, scale: float) -> Tensor:
    """Return the perturbation of a group along v, as long as Eq. 13 has it."""
    n = max(int(s.engine.group_samples[g]), 2)
    rho = scale * math.sqrt(s.theta.norm() / (2 * v.norm())) * len(v) ** -0.25 * (n - 1) ** -0.25
    return math.sqrt(len(v)) * rho * v / v.norm()


def literal_gsa(s: Setting, scale: float, groups: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Eq. 11 to 16 without lambda: the gradient, and the perturbation of every group."""
    theta, whole = s.theta, s.gradient_at(s.theta)
    total, perturbations = torch.zeros_like(theta), []
    for g in range(groups):
        keep = s.of_group(g)
        if not keep.any():
            continue
        own = s.gradient_at(theta, keep)
        v = without(own, whole)
        perturbations.append(bounded(s, v, g, scale))
        total += keep.double().mean() * s.gradient_at(theta + perturbations[-1], keep)
    return total, perturbations


@in_every_form
def test_per_group_is_the_method_as_written() -> None:
    s = Setting(scale=0.05)
    expected, perturbations = literal_gsa(s, 0.05)
    report = s.step()
    torch.testing.assert_close(s.gradient, expected)
    torch.testing.assert_close(report.length, torch.stack([e.norm() for e in perturbations]))
    assert report.length.min() > 0.01
    assert (s.gradient - s.gradient_at(s.theta)).norm() > 1e-3


@in_every_form
def test_combined_perturbs_all_by_the_weighted_mean() -> None:
    s = Setting(scale=0.05, mode='combined')
    _, perturbations = literal_gsa(s, 0.05)
    epsilon = sum(s.of_group(g).double().mean() * e for g, e in enumerate(perturbations))
    expected = s.gradient_at(s.theta + epsilon)
    report = s.step()
    torch.testing.assert_close(s.gradient, expected)
    # What is told is what was applied, which can be far shorter than each group's own.
    torch.testing.assert_close(report.length, torch.full((3,), epsilon.norm().item()))
    assert epsilon.norm() < 0.7 * min(e.norm() for e in perturbations)


def shares_of(s: Setting) -> list[Tensor]:
    return [s.of_group(g).double().mean() for g in range(3)]


def moved_gradients(s: Setting, epsilon: list[Tensor]) -> list[Tensor]:
    """Return each group's gradient at its own perturbed weights; zero for one that is not in the batch."""
    keeps = [s.of_group(g) for g in range(3)]
    return [
        s.gradient_at(s.theta + e, keep) if keep.any() else torch.zeros_like(s.theta)
        for e, keep in zip(epsilon, keeps, strict=True)
    ]


def take_step(s: Setting) -> None:
    with torch.no_grad():
        for p in s.net.parameters():
            p -= 0.2 * p.grad


@in_every_form
@pytest.mark.parametrize('mode', ['per_group', 'combined'])
def test_directions_from_averages_are_those_of_the_gradients_so_far(mode: str) -> None:
    s = Setting(ascent='ema', ema_decay=0.6, scale=0.05, mode=mode)
    averages, seen = [torch.zeros_like(s.theta) for _ in range(3)], [0.0] * 3
    whole = torch.zeros_like(s.theta)
    for step, labels in enumerate((LABELS, LABELS % 4, LABELS, LABELS, LABELS, LABELS)):
        s.labels = labels
        if step == 4:
            # The averages of former groups are no more; that of the whole gradient goes on.
            s.engine.set_groups(CLASS_GROUPS.flip(0), SAMPLES.flip(0))
            averages, seen = [torch.zeros_like(s.theta) for _ in range(3)], [0.0] * 3
        epsilon = [
            bounded(s, without(averages[g] / seen[g], whole), g, 0.05)
            if seen[g] and s.of_group(g).any()
            else torch.zeros_like(s.theta)
            for g in range(3)
        ]
        shares = shares_of(s)
        if mode == 'combined':
            epsilon = [sum(share * e for share, e in zip(shares, epsilon, strict=True))] * 3  # type: ignore[list-item]
        own = moved_gradients(s, epsilon)
        expected = sum(share * g for share, g in zip(shares, own, strict=True))
        report = s.step()
        torch.testing.assert_close(s.gradient, expected)
        torch.testing.assert_close(report.length, torch.stack([e.norm() for e in epsilon]))
        assert bool(report.length.any()) == (step not in (0, 4))
        for g in range(3):
            if s.of_group(g).any():
                averages[g], seen[g] = 0.6 * averages[g] + 0.4 * own[g], 0.6 * seen[g] + 0.4
        whole = 0.6 * whole + 0.4 * expected
        take_step(s)


@in_every_form
@pytest.mark.parametrize('mode', ['per_group', 'combined'])
def test_the_residual_can_be_against_an_average_of_the_whole_gradient(mode: str) -> None:
    s = Setting(global_gradient='ema', ema_decay=0.6, scale=0.05, mode=mode)
    average = torch.zeros_like(s.theta)
    for _ in range(3):
        s.x = torch.randn_like(s.x)
        average = 0.6 * average + 0.4 * s.gradient_at(s.theta)
        own = [s.gradient_at(s.theta, s.of_group(g)) for g in range(3)]
        epsilon = [bounded(s, without(v, average), g, 0.05) for g, v in enumerate(own)]
        shares = shares_of(s)
        if mode == 'combined':
            epsilon = [sum(share * e for share, e in zip(shares, epsilon, strict=True))] * 3  # type: ignore[list-item]
        expected = sum(share * g for share, g in zip(shares, moved_gradients(s, epsilon), strict=True))
        s.step()
        torch.testing.assert_close(s.gradient, expected)
        take_step(s)


def test_a_kept_perturbation_saves_the_first_pass() -> None:
    s, calls = Setting(ascent=2, scale=0.05), []
    losses = s.losses
    s.losses = lambda views, labels: calls.append(1) or losses(views, labels)  # type: ignore[method-assign]
    for _ in range(2):
        _, epsilon = literal_gsa(s, 0.05)
        s.step()
        assert len(calls) == 2
        take_step(s)
        s.x = torch.randn_like(s.x)
        expected = sum(share * g for share, g in zip(shares_of(s), moved_gradients(s, epsilon), strict=True))
        s.step()
        torch.testing.assert_close(s.gradient, expected)
        assert len(calls) == 3
        calls.clear()


@in_every_form
def test_the_direction_can_be_of_the_first_view_alone() -> None:
    s = Setting(ascent_views='first', scale=0.05)
    views, seen = (s.x, torch.randn_like(s.x)), []

    def losses(given: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        seen.append(len(given))
        each = [F.cross_entropy(s.net(view), labels, reduction='none') for view in given]
        return sum(w * loss for w, loss in zip((1.0, 0.5), each, strict=False))  # type: ignore[return-value]

    _, epsilon = literal_gsa(s, 0.05)
    expected = torch.zeros_like(s.theta)
    for s.x, weight in zip(views, (1.0, 0.5), strict=True):
        expected += weight * sum(a * g for a, g in zip(shares_of(s), moved_gradients(s, epsilon), strict=True))
    s.engine.step(losses, [(views, s.labels)])
    torch.testing.assert_close(s.gradient, expected)
    assert seen == [1, 2]
    # With a single group both passes are ordinary ones.
    one, samples = torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208])
    settings = SharpnessSettings(ascent_views='first', mode='combined', direction='full', radius=0.3)
    s.engine = GroupedSharpness(s.net, one, samples, settings, rows_form=ROWS)
    s.x = views[0]
    g = s.gradient_at(s.theta)
    expected = torch.zeros_like(g)
    for s.x, weight in zip(views, (1.0, 0.5), strict=True):
        expected += weight * s.gradient_at(s.theta + 0.3 * g / g.norm())
    s.net.zero_grad()
    s.engine.step(losses, [(views, s.labels)])
    torch.testing.assert_close(s.gradient, expected)
    assert seen == [1, 2, 1, 2]


@in_every_form
def test_the_second_term_of_the_bound_and_its_gradient() -> None:
    s = Setting(scale=0.05, regulariser=0.1)
    expected, perturbations = literal_gsa(s, 0.05)
    theta = s.theta
    value = sum(
        theta.norm() / (2 * math.sqrt(n - 1) * e.norm() / math.sqrt(len(theta)))
        for n, e in zip(SAMPLES.tolist(), perturbations, strict=True)
    )
    report = s.step()
    torch.testing.assert_close(report.regulariser, value)
    # Its radii held fixed.
    torch.testing.assert_close(s.gradient, expected + 0.1 * value * theta / theta.square().sum())


@in_every_form
@pytest.mark.parametrize('mode', ['per_group', 'combined'])
@pytest.mark.parametrize('ascent', ['fresh', 'ema', 2])
def test_without_a_radius_the_step_is_the_ordinary_one(mode: str, ascent: Any) -> None:
    s = Setting(scale=0.0, mode=mode, ascent=ascent)
    for _ in range(3):
        s.step()
        torch.testing.assert_close(s.gradient, s.gradient_at(s.theta), rtol=1e-10, atol=1e-12)


@in_every_form
def test_sam_asam_and_friendly_sam_are_settings() -> None:
    one, samples = torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208])
    sam = {'mode': 'combined', 'direction': 'full', 'radius': 0.3}
    s = Setting(one, samples, **sam)
    g = s.gradient_at(s.theta)
    s.step()
    torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + 0.3 * g / g.norm()))

    # Beside groups, as `mode: combined` bounds each group's gradient by itself.
    s = Setting(mode='focal', radius=0.3, focal_power=0, focal_weight=1)
    s.step()
    torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + 0.3 * g / g.norm()))

    s = Setting(one, samples, **sam, adaptive=1)
    t = s.theta.abs()
    s.step()
    torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + 0.3 * t * t * g / (t * g).norm()))

    s = Setting(one, samples, **{**sam, 'direction': 'subtract'}, global_gradient='ema', ema_decay=0.6)
    average = torch.zeros_like(g)
    for _ in range(2):
        average = 0.6 * average + 0.4 * g
        d = g - average
        s.step()
        torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + 0.3 * d / d.norm()))


@in_every_form
@pytest.mark.parametrize('perturbed', [False, True])
def test_losses_that_are_a_mean_are_refused(perturbed: bool) -> None:
    s = Setting()
    s.losses = lambda views, labels: F.cross_entropy(s.net(views[0]), labels)  # type: ignore[method-assign]
    with pytest.raises(GkpGsaError, match=rf'have shape \(\), where one of each sample is needed, \({len(LABELS)},\)'):
        s.step(perturbed=perturbed)


@in_every_form
def test_losses_of_other_tensors_than_they_are_given_are_refused() -> None:
    s = Setting()
    s.losses = lambda views, labels: F.cross_entropy(s.net(s.x), s.labels, reduction='none')  # type: ignore[method-assign]
    with pytest.raises(GkpGsaError, match='not computed from the views that they are given'):
        s.step()


@in_every_form
def test_imbsam_leaves_head_classes_alone() -> None:
    s = Setting(direction='full', radius=0.3, radius_by_group=(0.0, 1.0, 1.0))
    expected = torch.zeros_like(s.theta)
    for g, factor in enumerate((0.0, 1.0, 1.0)):
        own = s.gradient_at(s.theta, s.of_group(g))
        share = s.of_group(g).double().mean()
        expected += share * s.gradient_at(s.theta + factor * 0.3 * own / own.norm(), s.of_group(g))
    s.step()
    torch.testing.assert_close(s.gradient, expected)


@in_every_form
def test_focal_sam_adds_the_rise_of_the_weighted_losses() -> None:
    classes = torch.arange(CLASSES)
    s = Setting(classes, COUNTS, mode='focal', radius=0.3, focal_power=2.0, focal_weight=0.7)
    weights = (1 - COUNTS / COUNTS.sum()) ** 2.0

    def focused(theta: Tensor) -> Tensor:
        net = copy.deepcopy(s.net)
        nn.utils.vector_to_parameters(theta, net.parameters())
        loss = (weights[s.labels] * F.cross_entropy(net(s.x), s.labels, reduction='none')).mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])

    v = focused(s.theta)
    expected = s.gradient_at(s.theta) + 0.7 * (focused(s.theta + 0.3 * v / v.norm()) - v)
    report = s.step()
    torch.testing.assert_close(s.gradient, expected)
    assert (s.gradient - s.gradient_at(s.theta)).norm() > 1e-3
    torch.testing.assert_close(report.length, torch.full((CLASSES,), 0.3))
    plain = F.cross_entropy(s.start(s.x), s.labels)
    torch.testing.assert_close(report.loss, plain.detach())
    # Where all groups count alike and fully, it is SAM.
    same = Setting(classes, COUNTS, mode='focal', radius=0.3, focal_power=0.0, focal_weight=1.0)
    sam = Setting(torch.zeros_like(classes), COUNTS.sum()[None], mode='combined', direction='full', radius=0.3)
    same.step(pieces=2)
    sam.step()
    torch.testing.assert_close(same.gradient, sam.gradient)


@in_every_form
def test_one_group_falls_back_on_the_average() -> None:
    s = Setting(torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208]), scale=0.05)
    first = s.step()
    # The average is parallel to the first gradient, so there is no residual yet.
    assert first.length.item() == 0
    s.x = torch.randn_like(s.x)
    average = 0.9 * s.engine.global_average
    g = s.gradient_at(s.theta)
    average = average + 0.1 * g
    v = g - (g @ average) / (average @ average) * average
    report = s.step()
    rho = 0.05 * (s.theta.norm() / (2 * v.norm())).sqrt() * len(g) ** -0.25 * 207**-0.25
    torch.testing.assert_close(report.length[0], len(g) ** 0.5 * rho)
    torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + len(g) ** 0.5 * rho * v / v.norm()))


@in_every_form
def test_one_group_falls_back_on_an_average_of_its_own_time() -> None:
    one, samples = torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208])
    s = Setting(one, samples, scale=0.05)
    s.step()
    s.engine.set_groups(CLASS_GROUPS, SAMPLES)
    s.step()
    s.engine.set_groups(one, samples)
    s.x = torch.randn_like(s.x)
    # As in the first step: the average, begun anew, is parallel to the gradient.
    assert s.step().length.item() == 0


@pytest.mark.parametrize('mode', ['per_group', 'combined'])
def test_a_perturbation_is_kept_until_the_group_is_in_a_batch_with_a_first_pass(mode: str) -> None:
    s = Setting(scale=0.05, ascent=2, direction='full', mode=mode)
    there, gone = LABELS, torch.where(CLASS_GROUPS[LABELS] == 2, 0, LABELS)
    s.labels = there
    s.step()
    assert s.engine.kept is not None
    kept = s.engine.kept[0].clone()
    s.step()
    s.labels, s.x = gone, torch.randn_like(s.x)
    # The third step has a first pass, without group 2, which the fourth is taken without; then it comes back.
    s.step()
    s.step()
    changed = (s.engine.kept[0] != kept).any(1)
    assert changed.tolist() == [True, True, False]
    s.engine.steps = 3
    s.labels = there
    shares = torch.bincount(CLASS_GROUPS[there]) / len(there)
    report = s.step()
    if mode == 'combined':
        torch.testing.assert_close(s.gradient, s.gradient_at(s.theta + shares @ s.engine.kept[0]))
    else:
        torch.testing.assert_close(report.length, s.engine.kept[0].norm(dim=1))


def test_a_group_that_is_not_in_the_batch_has_no_length() -> None:
    s = Setting(scale=0.05, ascent=2, regulariser=0.1)
    s.step()
    s.labels = torch.where(CLASS_GROUPS[LABELS] == 2, 0, LABELS)
    report = s.step()
    assert (report.length > 0).tolist() == [True, True, False]
    assert s.engine.kept is not None
    s.engine.kept[1][2] = 0
    s.engine.steps = 1
    assert s.step().regulariser == report.regulariser


def test_the_regulariser_is_the_same_with_a_kept_perturbation() -> None:
    s = Setting(scale=0.05, ascent=2, adaptive=1)
    reports = [s.step() for _ in range(2)]
    torch.testing.assert_close(reports[0].regulariser, reports[1].regulariser)
    torch.testing.assert_close(reports[0].length, reports[1].length)


@in_every_form
@pytest.mark.parametrize('labels', [[0, 1, 0, 0, 1, 0, 1, 1, 2, 3], [0, 1, 0, 0, 1, 0, 1, 1, 1, 4]])
def test_missing_groups_and_groups_of_one_sample(labels: list[int]) -> None:
    s = Setting(scale=0.05)
    s.labels = torch.tensor(labels)
    expected, _ = literal_gsa(s, 0.05)
    report = s.step()
    torch.testing.assert_close(s.gradient, expected)
    assert [length > 0 for length in report.length] == [bool(s.of_group(g).any()) for g in range(3)]


@in_every_form
def test_class_vectors_see_their_group_of_the_whole_batch_in_every_piece() -> None:
    gradients = []
    for pieces in (1, 2):
        s = Setting(scale=0.05)
        s.labels = torch.tensor([4, 0, 2, 1, 0, 3, 0, 1, 1, 0])  # the second half has none of group 2
        samples, spread = s.losses, torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        s.losses = lambda views, y, samples=samples, spread=spread, net=s.net: (  # type: ignore[method-assign]
            samples(views, y) + F.linear(net[3].weight, spread).square().mean()
        )
        s.step(pieces)
        gradients.append(s.gradient)
    torch.testing.assert_close(*gradients)


@in_every_form
def test_what_the_loss_does_not_use_has_no_gradient() -> None:
    s = Setting(scale=0.05)
    s.net.register_parameter('spare', nn.Parameter(torch.ones(3)))
    s.engine = GroupedSharpness(s.net, CLASS_GROUPS, SAMPLES, SharpnessSettings(scale=0.05), rows_form=ROWS)
    parts = [((s.x,), s.labels)]
    for perturbed in (True, False):
        s.net.zero_grad(set_to_none=True)
        s.engine.step(s.losses, parts, perturbed=perturbed)
        assert s.net.spare.grad is None
        assert all(p.grad is not None for name, p in s.net.named_parameters() if name != 'spare')


@in_every_form
def test_adaptive_radius_is_measured_where_the_perturbation_is_bounded() -> None:
    # |eps / |theta|| <= sqrt(d) rho lets the loss rise by sqrt(d) rho ||theta| v|, so that Eq. 13 has that norm.
    one, samples = torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208])
    s = Setting(one, samples, mode='combined', direction='full', adaptive=1, scale=0.05)
    t, g = s.theta.abs(), s.gradient_at(s.theta)
    rho = 0.05 * (s.theta.norm() / (2 * (t * g).norm())).sqrt() * len(g) ** -0.25 * 207**-0.25
    s.step()
    expected = s.gradient_at(s.theta + len(g) ** 0.5 * rho * t * t * g / (t * g).norm())
    torch.testing.assert_close(s.gradient, expected)


@in_every_form
def test_a_group_without_an_average_yet_is_not_perturbed() -> None:
    s = Setting(direction='subtract', ascent='ema', radius=0.3)
    s.labels = LABELS % 4
    s.step()
    s.labels = LABELS
    assert (s.step().length > 0).tolist() == [True, True, False]
    s.engine.set_groups(CLASS_GROUPS.flip(0), SAMPLES.flip(0))
    assert not s.step().length.any()
    assert s.step().length.all()


@in_every_form
def test_clamp_bounds_the_length() -> None:
    s = Setting(scale=0.05, clamp=(0.2, 0.21))
    length = s.step().length
    assert ((length >= 0.2 - 1e-9) & (length <= 0.21 + 1e-9)).all()


@in_every_form
@pytest.mark.parametrize(
    'settings',
    [
        {}, {'mode': 'combined'}, {'ascent': 'ema'}, {'ascent': 'ema', 'mode': 'combined'}, {'regulariser': 0.1},
        {'mode': 'focal', 'radius': 0.3}, {'start': False},
    ],
)  # fmt: skip
def test_scaled_losses_leave_a_scaled_gradient_of_the_same_step(settings: dict[str, Any]) -> None:
    perturbed = settings.pop('start', True)
    plain, scaled = (Setting(**{'scale': 0.05, **settings}) for _ in range(2))
    for _ in range(3):
        one = plain.step(perturbed=perturbed)
        other = scaled.step(perturbed=perturbed, loss_scale=torch.tensor(1024.0))
        torch.testing.assert_close(scaled.gradient, 1024 * plain.gradient)
        for field in dataclasses.fields(StepReport):
            torch.testing.assert_close(getattr(other, field.name), getattr(one, field.name))
        take_step(plain)
        nn.utils.vector_to_parameters(plain.theta, scaled.net.parameters())


@in_every_form
def test_an_overflow_in_the_first_pass_perturbs_nothing() -> None:
    s = Setting(scale=0.05)
    report = s.step(loss_scale=torch.tensor(math.inf))
    assert not report.length.any()
    assert not s.gradient.isfinite().all()
    assert s.theta.isfinite().all()


def bcl_learner(dtype: torch.dtype = torch.float64) -> tuple[Learner, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = ltzoo.create_model('resnet20_cifar', num_classes=CLASSES, head='cosine')
    learner = Learner(model, create_objective('bcl', model, COUNTS, hidden_dim=8, out_dim=4)).to(dtype).train()
    return learner, tuple(torch.randn(len(LABELS), 3, 8, 8, dtype=dtype) for _ in range(3))


@in_every_form
@pytest.mark.parametrize('missing', [False, True])
def test_with_batchnorm_and_prototypes_nothing_is_lost(missing: bool) -> None:
    learner, views = bcl_learner()
    labels = LABELS % 4 if missing else LABELS
    plain = copy.deepcopy(learner)
    plain(views, labels).mean().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters()])
    engine = GroupedSharpness(learner, CLASS_GROUPS, SAMPLES, SharpnessSettings(scale=0.0), rows_form=ROWS)
    engine.step(learner.forward, [(views, labels)])
    found = torch.cat([p.grad.reshape(-1) for p in learner.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@in_every_form
@pytest.mark.parametrize(
    'settings',
    [
        {'mode': 'per_group'}, {'mode': 'combined', 'direction': 'full'}, {'ascent_views': 'first'},
        {'mode': 'combined', 'ascent_views': 'first', 'global_gradient': 'ema'}, {'ascent': 'ema'},
        {'mode': 'combined', 'ascent': 'ema'}, {'mode': 'focal', 'radius': 0.1},
    ],
)  # fmt: skip
def test_nothing_of_a_perturbation_stays(settings: dict[str, Any]) -> None:
    learner, views = bcl_learner()
    engine = GroupedSharpness(learner, CLASS_GROUPS, SAMPLES, SharpnessSettings(scale=0.1, **settings), rows_form=ROWS)
    if settings.get('ascent') == 'ema':
        # In the first step there is no average to take a direction from.
        engine.step(learner.forward, [(views, LABELS)])
    plain = copy.deepcopy(learner)
    plain(views, LABELS)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    report = engine.step(learner.forward, [(views, LABELS)])
    assert report.length.all()
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    # One update of the running statistics. Where no pass sees all views at the weights themselves, the perturbed one.
    exact = settings.get('ascent_views') != 'first' and settings.get('ascent') != 'ema'
    for (name, b), expected in zip(learner.named_buffers(), plain.buffers(), strict=True):
        tolerance = {'rtol': 1e-9, 'atol': 1e-11} if exact else {'rtol': 0.5, 'atol': 0.1}
        torch.testing.assert_close(b, expected, **tolerance, msg=name)


@in_every_form
@pytest.mark.parametrize('settings', [{'mode': 'combined', 'direction': 'full'}, {'mode': 'focal', 'radius': 0.1}])
def test_nothing_of_a_perturbation_stays_where_its_pass_fails(settings: dict[str, Any]) -> None:
    learner, views = bcl_learner()
    plain = copy.deepcopy(learner)
    plain(views, LABELS)
    passes = iter([learner.forward])

    def losses(given: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        return next(passes)(given, labels)

    engine = GroupedSharpness(learner, CLASS_GROUPS, SAMPLES, SharpnessSettings(scale=0.1, **settings), rows_form=ROWS)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    with pytest.raises(StopIteration):
        engine.step(losses, [(views, LABELS)])
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    for (name, b), expected in zip(learner.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b, expected, rtol=1e-9, atol=1e-11, msg=name)


def test_state_goes_on_where_it_was() -> None:
    options: dict[str, Any] = {'scale': 0.05, 'global_gradient': 'ema', 'ascent': 3, 'mode': 'combined'}
    one, other = Setting(**options), Setting(**options)
    for s in (one, other):
        s.step()
        s.step()
    fresh = Setting(**options)
    fresh.engine.load_state_dict(copy.deepcopy(other.engine.state_dict()))
    for _ in range(3):
        one.step()
        fresh.step()
        assert torch.equal(one.gradient, fresh.gradient)


@in_every_form
def test_bf16_autocast_is_that_of_the_ordinary_step() -> None:
    gradients = []
    for engine_settings in (None, SharpnessSettings(scale=0.0), SharpnessSettings(scale=1e-4)):
        learner, views = bcl_learner(torch.float32)
        with torch.autocast('cpu', torch.bfloat16):
            plain = learner(views, LABELS).mean()
        if engine_settings is None:
            plain.backward()
        else:
            engine = GroupedSharpness(learner, CLASS_GROUPS, SAMPLES, engine_settings, rows_form=ROWS)
            cast: list[bool] = []

            def losses(views: tuple[Tensor, ...], labels: Tensor) -> Tensor:
                cast.append(torch.is_autocast_enabled('cpu'))  # noqa: B023
                return learner(views, labels)  # noqa: B023

            engine.step(losses, [(views, LABELS)], autocast=lambda: torch.autocast('cpu', torch.bfloat16))
            assert cast == [True, True]
        gradients.append(torch.cat([p.grad.reshape(-1) for p in learner.parameters()]))  # type: ignore[union-attr]
    # Rounding alone turns the gradient of so small a batch: that of fp32 has a cosine of 0.98 to the first.
    for gradient in gradients[1:]:
        assert F.cosine_similarity(gradients[0], gradient, dim=0) > 0.9


@in_every_form
def test_autocast_around_the_whole_step_does_not_keep_the_weights_of_the_first_pass() -> None:
    losses = []
    for around in (True, False):
        s = Setting(torch.zeros_like(CLASS_GROUPS), SAMPLES.sum()[None], direction='full', radius=2.0)
        s.net.float()
        s.x = s.x.float()
        cast = lambda: torch.autocast('cpu', torch.bfloat16)  # noqa: E731
        if around:
            with cast():
                losses.append(s.step().perturbed_loss)
        else:
            losses.append(s.step(autocast=cast).perturbed_loss)
            assert losses[-1] > 1.1 * F.cross_entropy(s.net(s.x), s.labels)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'mode': 'each'}, "mode: 'each' does not exist; known: per_group, combined, focal"),
        ({'mode': 'focal'}, 'mode focal needs radius'),
        ({'mode': 'focal', 'radius': 0.1, 'ascent': 'ema'}, 'mode focal has no ascent: it takes one perturbation'),
        ({'mode': 'focal', 'radius': 0.1, 'adaptive': 1.0}, 'mode focal has no adaptive'),
        ({'mode': 'focal', 'radius': 0.1, 'clamp': (0.1, 0.2)}, 'mode focal has no clamp'),
        ({'ascent': 'ema', 'ascent_views': 'first'}, 'ascent ema has no first pass that ascent_views could shorten'),
        ({'ascent': 0}, "ascent: 'fresh', 'ema' or a number of steps, not 0"),
        ({'scale': -1.0}, 'scale must be 0 or more, not -1'),
        ({'clamp': (2.0, 1.0)}, r'clamp must be \(least, greatest\)'),
        ({'clamp': (2.0,)}, r'clamp must be \(least, greatest\)'),
        ({'radius_by_group': (1.0,)}, 'radius_by_group has 1 entries, there are 3 groups'),
        ({'ema_decay': 1.0}, 'ema_decay must be 0 or more and below 1'),
    ],
)
def test_settings_that_do_not_exist(settings: dict[str, Any], message: str) -> None:
    make: Callable[[], Any] = lambda: Setting(**settings)  # noqa: E731
    with pytest.raises(GkpGsaError, match=message):
        make()


def test_without_groups_or_what_is_trained_there_is_nothing_to_perturb() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(GkpGsaError, match='there must be at least one group'):
        Setting(CLASS_GROUPS, none)
    s = Setting(radius_by_group=(0.0, 1.0, 1.0))
    for groups, message in ((none, 'at least one group'), (SAMPLES[:2], 'has 3 entries, there are 2 groups')):
        with pytest.raises(GkpGsaError, match=message):
            s.engine.set_groups(CLASS_GROUPS, groups)
    # What is refused changes nothing.
    assert s.engine.groups == 3
    with pytest.raises(GkpGsaError, match='nothing of the module is trained'):
        GroupedSharpness(nn.Linear(2, 2).requires_grad_(False), CLASS_GROUPS, SAMPLES, SharpnessSettings())


@pytest.mark.parametrize('settings', [{'mode': 'combined', 'radius': 0.1}, {'global_gradient': 'ema'}])
def test_an_average_that_no_direction_needs_is_not_kept(settings: dict[str, Any]) -> None:
    run = Setting(**settings, direction='full')
    run.step()
    assert run.engine.global_average is None


def test_the_flat_vector_is_the_parameters_as_they_lie_in_memory() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(5, 2)).to(memory_format=torch.channels_last)
    layout = FlatParameters(list(net.parameters()))
    vector = layout.flatten([p.detach() for p in net.parameters()])
    tensors = layout.unflatten(vector)
    for tensor, p in zip(tensors, net.parameters(), strict=True):
        assert torch.equal(tensor, p)
        assert tensor.stride() == p.stride()
    vector.zero_()
    assert not any(tensor.any() for tensor in tensors)
    filled = layout.flatten([None, *tensors[1:-1], torch.ones(2)])
    assert filled.sum() == 2
    assert len(filled) == len(vector)


@in_every_form
@pytest.mark.parametrize('direction', ['residual', 'subtract'])
def test_of_one_group_without_a_first_pass_the_last_gradient_is_held_against_the_average(direction: Any) -> None:
    one, samples = torch.zeros(CLASSES, dtype=torch.int64), torch.tensor([208])
    s = Setting(one, samples, direction=direction, ascent='ema', ema_decay=0.6, radius=0.3)
    average, seen, lengths = torch.zeros_like(s.theta), 0.0, []
    for step in range(4):
        theta, epsilon = s.theta, torch.zeros_like(s.theta)
        if step > 1:  # The first gradient is the average itself.
            mean, last = average / seen, s.gradient
            v = last - ((last @ mean) / (mean @ mean) * mean if direction == 'residual' else mean)
            epsilon = 0.3 * v / v.norm()
        expected = s.gradient_at(theta + epsilon)
        lengths.append(float(s.step().length))
        torch.testing.assert_close(s.gradient, expected)
        average, seen = 0.6 * average + 0.4 * s.gradient, 0.6 * seen + 0.4
        nn.utils.vector_to_parameters(theta - 0.5 * s.gradient, s.net.parameters())
    assert lengths == pytest.approx([0, 0, 0.3, 0.3])


@in_every_form
def test_a_frozen_classifier_has_a_row_for_each_class_too() -> None:
    model = ltzoo.create_model('resnet8_cifar', num_classes=CLASSES, head='cosine')
    learner = Learner(model, create_objective('bcl', model, COUNTS)).train()
    model.get_classifier().weight.requires_grad_(False)
    views = tuple(torch.randn(len(LABELS), 3, 8, 8) for _ in range(3))
    engine = GroupedSharpness(learner, CLASS_GROUPS, SAMPLES, SharpnessSettings(scale=0.0), rows_form=ROWS)
    engine.step(learner.forward, [(views, LABELS)])
    found = {name: p.grad for name, p in learner.named_parameters()}
    learner.zero_grad(set_to_none=True)
    learner(views, LABELS).mean().backward()
    torch.testing.assert_close(found, {name: p.grad for name, p in learner.named_parameters()})


def test_focal_sam_can_be_recorded_with_any_number_of_groups() -> None:
    """Its passes go through the network as it is, whereas the others hold every group's weights."""
    for mode, static in (('focal', True), ('per_group', False)):
        settings = SharpnessSettings(mode=mode, radius=0.05)  # type: ignore[arg-type]
        engine = GroupedSharpness(nn.Linear(3, 20), torch.arange(20), torch.ones(20), settings, rows_form='one_hot')
        assert engine.static == static
