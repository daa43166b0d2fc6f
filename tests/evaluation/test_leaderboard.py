"""The leaderboard, looked at in headless Chromium."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltzoo.evaluation.benchmark import COLUMNS
from ltzoo.evaluation.leaderboard import leaderboard
from ltzoo.models.lt_zoo import METHODS

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium found: apt-get install chromium')


def row(model: str, data: str, method: str | None, top1: float | None, **more: Any) -> dict[str, Any]:
    known = {'model': model, 'data': data, 'method': method, 'status': 'ok', 'top1': top1, **more}
    return {key: known.get(key) for key in COLUMNS}


ROWS = [
    row('resnet32_a', 'cifar100_lt_r100', 'ce', 39.8, many=67.3, few=9.4, medium=38.4, parameters=470004),
    row('resnet32_b', 'cifar100_lt_r100', 'bcl', 51.9, many=67.2, few=32.9, medium=53.1, parameters=1234567),
    row('resnet32_c', 'cifar10_lt_r50', 'ce', 9.75, many=9.5, few=None, parameters=80000),
    row('local-dir:/some/place/mine/model', 'cifar10_lt_r50', None, 70.0, many=80.0, few=60.0),
    row('broken</script><b>', 'cifar10_lt_r50', 'bcl', None, status='failed', reason='<img src=x onerror=alert(1)>'),
]
PAPERS = [
    {'model': f'resnet32_cifar_{method}.{data}', 'data': data, 'method': method, 'top1': top1, 'source': 'Table 1'}
    for method, data, top1 in (('ce', 'cifar100_lt_r100', 38.3), ('bcl', 'cifar10_lt_r50', 87.2))
]


def test_every_method_of_the_zoo_has_a_colour_of_its_own() -> None:
    colours = re.findall(
        "'(#[0-9a-f]{6})'", leaderboard(ROWS, PAPERS).partition('const COLOURS = [')[2].partition(']')[0]
    )
    # And one for those that have no name there.
    assert len(set(colours)) == len(colours) > len(METHODS)


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    file = tmp_path / 'leaderboard.html'
    file.write_text(leaderboard(ROWS, PAPERS), encoding='utf-8')
    page = browser.new_page()
    said: list[str] = []
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('dialog', lambda dialog: said.append(dialog.message))
    page.on(
        'request', lambda request: said.append(request.url) if not request.url.startswith(('file:', 'data:')) else 0
    )
    page.goto(file.as_uri())
    yield page
    assert said == []
    page.close()


def column(page: Any, number: int, table: str = 'ours') -> list[str]:
    return page.locator(f'#{table} tbody tr td:nth-child({number})').all_inner_texts()


@needs_chromium
def test_sorting_by_any_column(page: Any) -> None:
    assert column(page, 1)[:4] == ['… place/mine', 'resnet32_b', 'resnet32_a', 'resnet32_c']
    heading = page.locator('#ours th', has_text='Top-1')
    assert heading.get_attribute('aria-sort') == 'descending'
    heading.get_by_role('button').click()
    # As numbers, not as words, and what failed stays last.
    assert column(page, 4)[:4] == ['9.75', '39.80', '51.90', '70.00']
    assert heading.get_attribute('aria-sort') == 'ascending'
    assert column(page, 1)[-1] == 'broken</script><b>'
    page.locator('#ours th', has_text='Parameters').get_by_role('button').click()
    assert column(page, 10)[:3] == ['1,234,567', '470,004', '80,000']
    assert heading.get_attribute('aria-sort') is None
    page.locator('#ours th', has_text='Model').get_by_role('button').click()
    assert column(page, 1)[-3:] == ['resnet32_a', 'resnet32_b', 'resnet32_c']


@needs_chromium
def test_filters_take_rows_and_points_away(page: Any) -> None:
    points = page.locator('#scatter circle')
    # Without few-shot classes, or failed: no point.
    assert (len(column(page, 1)), points.count()) == (5, 3)
    assert page.locator('#count').inner_text() == '5 of 5 rows'
    page.select_option('#data', 'cifar10_lt_r50')
    assert (len(column(page, 1)), points.count()) == (3, 1)
    assert column(page, 1, 'papers') == ['resnet32_cifar_bcl'], 'its tag is the data'
    page.select_option('#method', 'ce')
    assert column(page, 1) == ['resnet32_c']
    assert points.count() == 0
    page.select_option('#data', '')
    page.select_option('#method', '')
    page.fill('#text', 'NET32_B')
    assert column(page, 1) == ['resnet32_b']
    assert page.locator('#count').inner_text() == '1 of 5 rows'


@needs_chromium
def test_points_lie_where_their_scores_are(page: Any) -> None:
    places = {
        point.locator('title').text_content().split(' on ')[0]: (
            float(point.get_attribute('cx')),
            float(point.get_attribute('cy')),
        )
        for point in page.locator('#scatter circle').all()
    }
    axes = page.locator('#scatter line.axis').all()
    width = max(float(line.get_attribute('x2')) for line in axes) - min(
        float(line.get_attribute('x1')) for line in axes
    )
    a, b = places['resnet32_a'], places['resnet32_b']
    assert a[0] - b[0] == pytest.approx(width * 0.001, abs=1e-6), 'many-shot runs to the right, 0 to 100'
    assert b[1] < a[1], 'more few-shot accuracy is higher up'


@needs_chromium
def test_papers_stand_apart(page: Any) -> None:
    assert not set(column(page, 1)) & set(column(page, 1, 'papers'))
    assert page.get_by_text('What papers report').is_visible()
    assert page.get_by_text('Not measured here').is_visible()


@needs_chromium
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
def test_it_fits_and_can_be_read(browser: Any, page: Any, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({'width': width, 'height': 800})
    assert page.evaluate('document.documentElement.scrollWidth') <= width, 'only tables scroll sideways'
    ink, ground = (page.evaluate(f'getComputedStyle(document.body).{key}') for key in ('color', 'backgroundColor'))
    assert contrast(ink, ground) > 7


@needs_chromium
@pytest.mark.parametrize(('width', 'most'), [(390, 0.5), (1280, 0.3)])
def test_scores_stand_beside_the_model_at_any_width(page: Any, width: int, most: float) -> None:
    page.set_viewport_size({'width': width, 'height': 800})
    model = page.locator('#ours tbody td').first
    assert model.bounding_box()['width'] <= most * width
    left = model.bounding_box()['x']
    top1 = page.locator('#ours th', has_text='Top-1').bounding_box()
    assert top1['x'] + top1['width'] <= width
    page.locator('#ours').evaluate('table => { table.parentElement.scrollLeft = 200; }')
    assert model.bounding_box()['x'] == left, 'the name of the model does not scroll away'


@needs_chromium
def test_reasons_and_axes_can_be_read(page: Any) -> None:
    frame, reason = (page.locator(what).bounding_box() for what in ('#ours', '#ours .reason span'))
    assert reason['x'] + reason['width'] <= min(frame['x'] + frame['width'], 1280)
    page.set_viewport_size({'width': 390, 'height': 800})
    label = page.locator('#scatter text', has_text='many-shot').bounding_box()
    assert label['height'] >= 10
    assert label['y'] >= page.locator('#scatter text', has_text='20').first.bounding_box()['y'] + 5


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two CSS colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r'\d+', colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_needs_nothing_but_itself_and_nothing_breaks_out_of_its_data() -> None:
    text = leaderboard(ROWS, PAPERS)
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count('</script>') == 1
    assert '<img' not in text
