"""The MS-STS VIS model (arXiv 2203.13253), as plain PyTorch modules.

The baseline is that of the released code. Split attention, the decoder's temporal attention and the discriminator are
reconstructed from the paper's Figure 2; its text could not be consulted.

Letters in tensor names: B clips, T frames, N = B·T, L scales ("levels"), S tokens of all scales together, C channels,
M heads, D channels a head, P points, Q queries, K kept instances, H and W height and width, h and w those of a scale.
"""
