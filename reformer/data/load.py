"""From the `data` group of a config to the data set that it names."""

from typing import Any

from reformer.data.data_set import DataSet
from reformer.data.duplication import Duplication
from reformer.data.images import ImageFiles, ImageNet64
from reformer.data.labelled_images import Digits, LabelledImageFiles
from reformer.data.listops import ListOps
from reformer.data.packages import Packages
from reformer.data.pairs import WMT14, Pairs
from reformer.data.recall import Recall
from reformer.data.source import Source
from reformer.data.text import Enwik8, Stdlib, TextFiles
from reformer.host import options

DATA_SETS: dict[str, type[DataSet]] = {
    "stdlib": Stdlib,  # Python's own source files
    "enwik8": Enwik8,
    "text": TextFiles,  # any file or folder
    "pairs": Pairs,  # two text files, line by line translations
    "wmt14_ende": WMT14,  # the original archives
    "imagenet64": ImageNet64,  # the original tars
    "images": ImageFiles,  # any folder, or an .npz
    "duplication": Duplication,  # the made-up task of the paper
    "packages": Packages,  # windows of text that are labelled with their folder
    "recall": Recall,  # keys and values, made up as it goes
    "listops": ListOps,  # nested lists of digits, likewise
    "labelled_images": LabelledImageFiles,  # a folder with one sub-folder for each label, or an .npz
    "digits": Digits,  # 1,797 written digits of 8x8 pixels
}
NAME = options.Field("stdlib", False, options.rule_of_name(DATA_SETS))  # the field that chooses one


def find_class(name: Any) -> type[DataSet]:
    """Returns the data set of a name, or the user's own at FILE.py:CLASS; raises ValueError if there is none."""
    return options.find_class(name, DATA_SETS, DataSet)


def load(group: options.Group, length: int) -> Source:
    """Reads the data that the `data` group names, as `DataSet.load`."""
    return find_class(group["name"]).read(group).load(length)


def kind(name: str) -> str:
    """Returns what examples are, such as 'text' or 'images'."""
    return find_class(name).kind
