"""MS-STS VIS: multi-scale spatio-temporal split attention for video instance segmentation, ready to deploy.

Importing this package imports neither torch nor onnxruntime: the Triton Python backend imports it too.
"""

__version__ = "0.1.0"
