"""Every paper that a card names can be cited with its authors."""

from __future__ import annotations

import re

from ltzoo.models.checkpoints.families import FAMILIES
from ltzoo.models.lt_zoo import ARCHITECTURES, METHODS
from ltzoo.models.papers import PAPERS, citation

RESNEXT = """
## Citation

```bibtex
@misc{arXiv1611.05431,
  title = {Aggregated Residual Transformations for Deep Neural Networks},
  author = {Saining Xie and Ross Girshick and Piotr Dollár and Zhuowen Tu and Kaiming He},
  year = {2016},
  eprint = {1611.05431},
  archivePrefix = {arXiv}
}
```
"""
BALANCED_SOFTMAX = """
## Citation

```bibtex
@misc{arXiv2007.10740,
  title = {Balanced Meta-Softmax for Long-Tailed Visual Recognition},
  author = {Jiawei Ren and Cunjun Yu and Shunan Sheng and Xiao Ma and Haiyu Zhao and Shuai Yi and Hongsheng Li},
  year = {2020},
  eprint = {2007.10740},
  archivePrefix = {arXiv}
}
```
"""


def test_two_of_them_in_full() -> None:
    resnext, softmax = ARCHITECTURES['resnext50'], METHODS['bs']
    assert softmax.paper is not None
    assert citation(resnext.paper.title, resnext.paper.id) == RESNEXT
    assert citation(softmax.paper.title, softmax.paper.id) == BALANCED_SOFTMAX


def test_no_paper_is_kept_that_nothing_names() -> None:
    named = {of.paper for table in (ARCHITECTURES, METHODS, FAMILIES) for of in table.values()} - {None}
    assert named == set(PAPERS.values())
    assert all(re.fullmatch(r'\d{4}\.\d{5}', paper.number) for paper in PAPERS.values())


def test_a_paper_of_a_users_own_has_no_authors_and_no_paper_no_citation() -> None:
    assert 'author' not in citation('A Paper', 'arXiv:2501.00001')
    assert citation('A Paper', 'arXiv:2501.00001').count('arXiv2501.00001') == 1
    assert citation(None, None) == citation('A Paper', None) == citation('A Paper', 7) == ''  # type: ignore[arg-type]
    # timm's own type lets there be several.
    several = citation(['A\nPaper', 'Another'], ('arXiv:2501.00001', 'arXiv:2501.00002'))
    assert several == citation('A Paper', 'arXiv:2501.00001')
