"""Where samples come from: datasets in RefCOCO's layout, and the way from samples to batches."""

from rislib.data.batches import make_batch
from rislib.data.check import Report, check_folder
from rislib.data.errors import DataError, UnsafePickle
from rislib.data.index import Record, find_datasets
from rislib.data.instances import propose, recall, with_instances
from rislib.data.masks import box_of_mask, decode_segmentation, encode_mask
from rislib.data.own import import_own
from rislib.data.pictures import open_picture
from rislib.data.refcoco import RefDataset, cached, load_refcoco
from rislib.data.refmini.build import build_refmini, load_refmini
from rislib.data.splits import open_split
from rislib.data.transforms import Geometry, Letterbox, Stretch, geometry_for, to_tensor

__all__ = [
    "DataError",
    "Geometry",
    "Letterbox",
    "Record",
    "RefDataset",
    "Report",
    "Stretch",
    "UnsafePickle",
    "box_of_mask",
    "build_refmini",
    "cached",
    "check_folder",
    "decode_segmentation",
    "encode_mask",
    "find_datasets",
    "geometry_for",
    "import_own",
    "load_refcoco",
    "load_refmini",
    "make_batch",
    "open_picture",
    "open_split",
    "propose",
    "recall",
    "to_tensor",
    "with_instances",
]
