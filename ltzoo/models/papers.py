"""The papers that models are from: what they cite, and their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['PAPERS', 'Paper', 'citation']


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv: its title, its number there, and its authors as BibTeX takes them."""

    title: str
    number: str
    authors: str

    @property
    def id(self) -> str:
        """Its number as timm writes it."""
        return f'arXiv:{self.number}'


PAPERS = {
    'resnet': Paper(
        'Deep Residual Learning for Image Recognition',
        '1512.03385',
        'Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun',
    ),
    'resnext': Paper(
        'Aggregated Residual Transformations for Deep Neural Networks',
        '1611.05431',
        'Saining Xie and Ross Girshick and Piotr Dollár and Zhuowen Tu and Kaiming He',
    ),
    'focal': Paper(
        'Focal Loss for Dense Object Detection',
        '1708.02002',
        'Tsung-Yi Lin and Priya Goyal and Ross Girshick and Kaiming He and Piotr Dollár',
    ),
    'ldam': Paper(
        'Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss',
        '1906.07413',
        'Kaidi Cao and Colin Wei and Adrien Gaidon and Nikos Arechiga and Tengyu Ma',
    ),
    'decoupling': Paper(
        'Decoupling Representation and Classifier for Long-Tailed Recognition',
        '1910.09217',
        'Bingyi Kang and Saining Xie and Marcus Rohrbach and Zhicheng Yan and Albert Gordo and Jiashi Feng and Yannis '
        'Kalantidis',
    ),
    'balanced_softmax': Paper(
        'Balanced Meta-Softmax for Long-Tailed Visual Recognition',
        '2007.10740',
        'Jiawei Ren and Cunjun Yu and Shunan Sheng and Xiao Ma and Haiyu Zhao and Shuai Yi and Hongsheng Li',
    ),
    'sam': Paper(
        'Sharpness-Aware Minimization for Efficiently Improving Generalization',
        '2010.01412',
        'Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur',
    ),
    'ride': Paper(
        'Long-tailed Recognition by Routing Diverse Distribution-Aware Experts',
        '2010.01809',
        'Xudong Wang and Long Lian and Zhongqi Miao and Ziwei Liu and Stella X. Yu',
    ),
    'mislas': Paper(
        'Improving Calibration for Long-Tailed Recognition',
        '2104.00466',
        'Zhisheng Zhong and Jiequan Cui and Shu Liu and Jiaya Jia',
    ),
    'sade': Paper(
        'Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition',
        '2107.09249',
        'Yifan Zhang and Bryan Hooi and Lanqing Hong and Jiashi Feng',
    ),
    'paco': Paper(
        'Parametric Contrastive Learning',
        '2107.12028',
        'Jiequan Cui and Zhisheng Zhong and Shu Liu and Bei Yu and Jiaya Jia',
    ),
    'bcl': Paper(
        'Balanced Contrastive Learning for Long-Tailed Visual Recognition',
        '2207.09052',
        'Jianggang Zhu and Zheng Wang and Jingjing Chen and Yi-Ping Phoebe Chen and Yu-Gang Jiang',
    ),
    'gpaco': Paper(
        'Generalized Parametric Contrastive Learning',
        '2209.12400',
        'Jiequan Cui and Zhisheng Zhong and Zhuotao Tian and Shu Liu and Bei Yu and Jiaya Jia',
    ),
    'sam_on_tails': Paper(
        'Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data',
        '2212.13827',
        'Harsh Rangwani and Sumukh K Aithal and Mayank Mishra and R. Venkatesh Babu',
    ),
    'gkpgsa': Paper(
        'Reframing Long-Tailed Learning via Loss Landscape Geometry',
        '2603.21217',
        'Shenghan Chen and Yiming Liu and Yanzhen Wang and Yujia Wang and Xiankai Lu',
    ),
}
_AUTHORS = {paper.number: paper.authors for paper in PAPERS.values()}


def citation(paper: str | Sequence[str] | None, paper_id: str | Sequence[str] | None) -> str:
    """Return a card's section that cites a paper on arXiv, or '' where there is none.

    Args:
        paper: its title; of several the first is cited.
        paper_id: its number, as timm writes it: 'arXiv:2207.09052'.
    """
    paper, paper_id = (
        next(iter(said), None) if isinstance(said, Sequence) and not isinstance(said, str) else said
        for said in (paper, paper_id)
    )
    if not (isinstance(paper, str) and isinstance(paper_id, str) and paper and paper_id):
        return ''
    paper, paper_id = ' '.join(paper.split()), ' '.join(paper_id.split())
    number = paper_id.removeprefix('arXiv:')
    author = f'  author = {{{_AUTHORS[number]}}},\n' if number in _AUTHORS else ''
    return f"""
## Citation

```bibtex
@misc{{{paper_id.replace(':', '')},
  title = {{{paper}}},
{author}  year = {{20{number[:2]}}},
  eprint = {{{number}}},
  archivePrefix = {{arXiv}}
}}
```
"""
