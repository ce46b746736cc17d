"""Hand out a model: as timm, Hugging Face transformers, ONNX, or raydino's own safetensors; or import published weights.

    python recipes/export.py --model runs/dinov2-1a2b --format timm --out vit-timm/     # timm.create_model("local-dir:vit-timm")
    python recipes/export.py --model runs/dinov2-1a2b --format hf --out vit-hf/         # AutoModel.from_pretrained("vit-hf")
    python recipes/export.py --model runs/dinov2-1a2b@2000 --format onnx --out vit-onnx/  # any batch, height and width
    python recipes/export.py --model runs/dinov2-1a2b --format mlflow --out vit-mlflow/ --register encoder
    python recipes/export.py --model timm:vit_small_patch14_dinov2 --format safetensors --out vit/
    python recipes/export.py --import dinov2_vits14_pretrain.pth --arch vit_small_patch14_dinov2 --out vits14/

Every export is loaded in a fresh process and compared with the model on real images, at its own size, at another and at one
that is not square; only what agrees to 1e-4 is left at --out, with a README.md that says how to load it.
Hardware: any; seconds, at 518 pixels on two cores minutes. docs/exports.md has the formats and what was measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))  # this checkout

from raydino.launch.export import main

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
