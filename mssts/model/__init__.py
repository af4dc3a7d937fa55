"""The MS-STS VIS model (paper: arXiv 2203.13253, Figure 2), as plain PyTorch modules.

Letters in tensor names: B clips, T frames, N = B·T, L scales ("levels"), S tokens of all scales together, C channels,
M heads, D channels a head, P points, Q queries, K kept instances, H and W height and width, h and w those of a scale.
"""
