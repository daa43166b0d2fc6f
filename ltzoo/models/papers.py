"""The papers that models are from, for their cards."""

from __future__ import annotations

__all__ = ['AUTHORS', 'citation']

# By the number on arXiv, as BibTeX takes them.
AUTHORS = {
    '1512.03385': 'Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun',
    '1611.05431': 'Saining Xie and Ross Girshick and Piotr Dollár and Zhuowen Tu and Kaiming He',
    '1708.02002': 'Tsung-Yi Lin and Priya Goyal and Ross Girshick and Kaiming He and Piotr Dollár',
    '1906.07413': 'Kaidi Cao and Colin Wei and Adrien Gaidon and Nikos Arechiga and Tengyu Ma',
    '1910.09217': 'Bingyi Kang and Saining Xie and Marcus Rohrbach and Zhicheng Yan and Albert Gordo and Jiashi Feng '
    'and Yannis Kalantidis',
    '2007.10740': 'Jiawei Ren and Cunjun Yu and Shunan Sheng and Xiao Ma and Haiyu Zhao and Shuai Yi and Hongsheng Li',
    '2010.01412': 'Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur',
    '2010.01809': 'Xudong Wang and Long Lian and Zhongqi Miao and Ziwei Liu and Stella X. Yu',
    '2104.00466': 'Zhisheng Zhong and Jiequan Cui and Shu Liu and Jiaya Jia',
    '2107.09249': 'Yifan Zhang and Bryan Hooi and Lanqing Hong and Jiashi Feng',
    '2107.12028': 'Jiequan Cui and Zhisheng Zhong and Shu Liu and Bei Yu and Jiaya Jia',
    '2207.09052': 'Jianggang Zhu and Zheng Wang and Jingjing Chen and Yi-Ping Phoebe Chen and Yu-Gang Jiang',
    '2209.12400': 'Jiequan Cui and Zhisheng Zhong and Zhuotao Tian and Shu Liu and Bei Yu and Jiaya Jia',
    '2212.13827': 'Harsh Rangwani and Sumukh K Aithal and Mayank Mishra and R. Venkatesh Babu',
    '2603.21217': 'Shenghan Chen and Yiming Liu and Yanzhen Wang and Yujia Wang and Xiankai Lu',
}


def citation(paper: str | None, paper_id: str | None) -> str:
    """Return a card's section that cites a paper on arXiv, or '' where there is none.

    Args:
        paper: its title.
        paper_id: its number, as timm writes it: 'arXiv:2207.09052'.
    """
    if not paper or not paper_id:
        return ''
    number = paper_id.removeprefix('arXiv:')
    author = f'  author = {{{AUTHORS[number]}}},\n' if number in AUTHORS else ''
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
