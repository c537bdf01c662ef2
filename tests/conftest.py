"""Without a GPU the Triton kernels run in Triton's interpreter, which is to be asked for before they are imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
