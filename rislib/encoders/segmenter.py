"""Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870) as a finder of things, whatever they are.

MaIL reads instance masks beside picture and words, and does not say where they come from. Here they come
from a segmenter that answers with masks and no names: they are proposals, and which of them a sentence means
is MaIL's affair. The parts are torchvision's; the small network's backbone is timm's.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from PIL import Image
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes, nms

from rislib.encoders import fingerprint, load_weights, shipped

LEAKAGE = (
    "Torchvision's Mask R-CNN was trained on COCO's training pictures, and the val and test pictures of "
    "RefCOCO, RefCOCO+ and RefCOCOg are among them: its masks there are better than they would be on new "
    "pictures. Say so beside every number that depends on them."
)


class Segmenter(nn.Module):
    """A Mask R-CNN that answers with its surest masks.

    Args:
        model: torchvision's network, of any number of classes.
        name: which one it is, for the record.
        weights: which weights these are, likewise: other weights make other proposals.
        min_score: how sure it must be of a mask. MAttNet's value.
        overlap: of two masks whose boxes have a larger IoU the surer one remains, whatever their classes.
        most: how many masks a picture has at most.
    """

    def __init__(
        self,
        model: MaskRCNN,
        *,
        name: str,
        weights: str,
        min_score: float = 0.65,
        overlap: float = 0.5,
        most: int = 16,
    ) -> None:
        super().__init__()
        self.model = model
        self.name, self.weights = name, weights
        self.overlap, self.most = overlap, most
        model.roi_heads.score_thresh = min_score  # before masks are made, which cost the most
        model.roi_heads.nms_thresh = overlap  # within a class

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """An RGB picture of any size -> masks (N, H, W) bool, at its size, and scores (N,), the surest first.

        N may be 0. Puts the network into eval mode.
        """
        self.eval()
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # (3, H, W)
        (found,) = self.model([pixels.to(next(self.parameters()).device)])
        masks = found["masks"][:, 0] > 0.5  # (M, H, W)
        filled = masks.flatten(1).any(1)  # there are boxes without any pixel
        masks, scores = masks[filled], found["scores"][filled]
        kept = nms(boxes_of(masks), scores, self.overlap)[: self.most]  # the surest first
        return masks[kept].cpu().numpy(), scores[kept].cpu().numpy()


def boxes_of(masks: Tensor) -> Tensor:
    """masks (N, H, W), none of them empty -> (N, 4) float: left, top, right, bottom edges."""
    return masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0], device=masks.device)


# --- named sizes ------------------------------------------------------------------------------


def segmenter_mini(pretrained: bool = False, *, width: int = 64, **filters) -> Segmenter:
    """For RefMini's pictures of 128 px, 1.9 M parameters: random, or the shipped weights.

    Its things are 20 to 110 px long, where torchvision's defaults expect 32 to 512.

    Args:
        width: channels of the pyramid.
        filters: `min_score`, `overlap` and `most` of `Segmenter`.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    resnet = ResNet(BasicBlock, (2, 2, 2, 2), num_classes=0, stem_width=32, channels=(32, 64, 128, 128))
    stages = {"layer1": "0", "layer2": "1", "layer3": "2"}  # strides 4, 8 and 16; pooling adds 32
    pyramid = BackboneWithFPN(resnet, stages, [32, 64, 128], width, norm_layer=nn.BatchNorm2d)
    # A box of 56 px or less is read from stride 4, one of 112 or less from stride 8.
    levels = {"featmap_names": ["0", "1", "2"], "sampling_ratio": 2, "canonical_scale": 112}
    model = MaskRCNN(
        pyramid,
        min_size=128,
        max_size=256,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator([(24,), (36,), (54,), (80,)], [(0.5, 1.0, 2.0)] * 4),
        # Four to nine things are in a picture: a few dozen boxes are choice enough.
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(output_size=7, **levels),
        box_head=TwoMLPHead(width * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, 2),  # nothing, or something
        box_batch_size_per_image=32,
        mask_roi_pool=MultiScaleRoIAlign(output_size=14, **levels),
        mask_head=MaskRCNNHeads(width, (width,) * 3, 1, nn.BatchNorm2d),
        mask_predictor=MaskRCNNPredictor(width, width, 2),
    )
    weights = fingerprint("segmenter") if pretrained else "random"
    segmenter = Segmenter(model, name="mini", weights=weights, **filters)
    if pretrained:
        load_weights(segmenter, shipped("segmenter"))
    return segmenter


def coco_segmenter(pretrained: bool = True, **filters) -> Segmenter:
    """For photographs: torchvision's Mask R-CNN (ResNet-50, FPN, version 2), 46.4 M parameters. Warns.

    Args:
        pretrained: with torchvision's weights, trained on COCO (downloaded once).
        filters: `min_score`, `overlap` and `most` of `Segmenter`.

    Raises:
        RuntimeError: the weights cannot be had; says what to do.
    """
    if not pretrained:
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        return Segmenter(model, name="coco", weights="random", **filters)
    warnings.warn(LEAKAGE, stacklevel=2)
    try:
        model = maskrcnn_resnet50_fpn_v2(weights="COCO_V1")
    except Exception as error:  # whatever torch.hub raises, which depends on what is missing
        raise RuntimeError(
            f"torchvision could not load its Mask R-CNN ({error}). Run this once on a machine with a network "
            "and copy its folder ~/.cache/torch/hub/checkpoints here, or bring proposals of another program."
        ) from error
    return Segmenter(model, name="coco", weights="maskrcnn_resnet50_fpn_v2 COCO_V1", **filters)


SEGMENTERS = {"mini": segmenter_mini, "coco": coco_segmenter}
