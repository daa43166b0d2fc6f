"""Every paper that a card names can be cited with its authors."""

from __future__ import annotations

import pytest

from ltzoo.models.checkpoints.families import FAMILIES
from ltzoo.models.lt_zoo import ARCHITECTURES, METHODS
from ltzoo.models.papers import AUTHORS, citation

NAMED = {(of.paper, of.paper_id) for table in (ARCHITECTURES, METHODS, FAMILIES) for of in table.values() if of.paper}


@pytest.mark.parametrize(('paper', 'paper_id'), sorted(NAMED))
def test_a_paper_is_cited_with_title_authors_year_and_number(paper: str, paper_id: str) -> None:
    number = paper_id.removeprefix('arXiv:')
    _, heading, *entry = citation(paper, paper_id).splitlines()
    assert heading == '## Citation'
    assert entry == [
        '',
        '```bibtex',
        f'@misc{{arXiv{number},',
        f'  title = {{{paper}}},',
        f'  author = {{{AUTHORS[number]}}},',
        f'  year = {{20{number[:2]}}},',
        f'  eprint = {{{number}}},',
        '  archivePrefix = {arXiv}',
        '}',
        '```',
    ]


def test_no_paper_is_kept_that_nothing_names() -> None:
    assert set(AUTHORS) == {paper_id.removeprefix('arXiv:') for _, paper_id in NAMED}


def test_a_paper_of_a_users_own_has_no_authors_and_no_paper_no_citation() -> None:
    assert 'author' not in citation('A Paper', 'arXiv:2501.00001')
    assert citation('A Paper', 'arXiv:2501.00001').count('arXiv2501.00001') == 1
    assert citation(None, None) == citation('A Paper', None) == ''
