"""Definitions of our ONNX nodes in standard ONNX, which travel in the file.

They are function bodies.

A runtime without our kernels inlines them. One with a kernel or TensorRT plugin of the same name prefers that. They
avoid branches and GridSample, which several TensorRT releases compute wrongly in this use (NVIDIA/TensorRT#4813): they
are plain arithmetic, Gather and MatMul for any sizes, and compute in fp32 whatever the type of the inputs.
"""

from __future__ import annotations

import onnx
from onnx import parser

from mssts.ops.exporting import DOMAIN

DOMAIN_VERSION = 1

# value [N,S,M,D], shapes [L,2] int64 (h, w), reference [N,Q,L,2 or 4], offsets [N,Q,M,L,P,2], logits [N,Q,M,L,P]
# → [N,Q,M·D]
_MS_DEFORM_ATTN = """
MSDeformAttn <plugin_version, plugin_namespace> (value, shapes, reference, offsets, logits) => (out) {
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  minus_one = Constant <value_ints = [-1]> ()
  zero_f = Constant <value_float = 0.0> ()
  half = Constant <value_float = 0.5> ()
  one_f = Constant <value_float = 1.0> ()
  two_f = Constant <value_float = 2.0> ()

  offsets_f = Cast <to = 1> (offsets)
  logits_f = Cast <to = 1> (logits)
  reference_f = Cast <to = 1> (reference)

  # [L,1,2] as (w, h)
  wh_order = Constant <value_ints = [1, 0]> ()
  wh_L2 = Gather <axis = 1> (shapes, wh_order)
  wh_f_L2 = Cast <to = 1> (wh_L2)
  wh_L12 = Unsqueeze (wh_f_L2, one)

  # A 2-coordinate reference is a box of 2P/(w, h): then offset / P * box * 1/2 = offset / (w, h). Appended behind
  # the reference, this default stands where a 4-coordinate one has its own box.
  offsets_shape = Shape (offsets)
  axis_P = Constant <value_ints = [4]> ()
  P = Gather <axis = 0> (offsets_shape, axis_P)
  P_f = Cast <to = 1> (P)
  two_P = Mul (P_f, two_f)
  default_L2 = Div (two_P, wh_f_L2)
  two = Constant <value_ints = [2]> ()
  four = Constant <value_ints = [4]> ()
  xy_NQL2 = Slice (reference_f, zero, two, minus_one)
  xy_zero = Mul (xy_NQL2, zero_f)
  default_NQL2 = Add (xy_zero, default_L2)
  boxed = Concat <axis = -1> (reference_f, default_NQL2)
  box_NQL2 = Slice (boxed, two, four, minus_one)
  unsqueeze_axes = Constant <value_ints = [2, 4]> ()
  xy = Unsqueeze (xy_NQL2, unsqueeze_axes)
  box = Unsqueeze (box_NQL2, unsqueeze_axes)
  step = Div (box, two_P)
  moved = Mul (offsets_f, step)
  location = Add (xy, moved)
  scaled = Mul (location, wh_L12)
  pixel = Sub (scaled, half)

  index_x = Constant <value_int = 0> ()
  index_y = Constant <value_int = 1> ()
  px = Gather <axis = -1> (pixel, index_x)
  py = Gather <axis = -1> (pixel, index_y)
  w_L1 = Gather <axis = -1> (wh_L12, index_x)
  h_L1 = Gather <axis = -1> (wh_L12, index_y)
  w_max = Sub (w_L1, one_f)
  h_max = Sub (h_L1, one_f)
  x0 = Floor (px)
  y0 = Floor (py)
  x1 = Add (x0, one_f)
  y1 = Add (y0, one_f)
  fx1 = Sub (px, x0)
  fy1 = Sub (py, y0)
  fx0 = Sub (one_f, fx1)
  fy0 = Sub (one_f, fy1)

  # Zero outside: the weight of a corner beyond the border is 0 and its index clamped.
  x0_in = Clip (x0, zero_f)
  x0_c = Min (x0_in, w_max)
  x1_in = Clip (x1, zero_f)
  x1_c = Min (x1_in, w_max)
  y0_in = Clip (y0, zero_f)
  y0_c = Min (y0_in, h_max)
  y1_in = Clip (y1, zero_f)
  y1_c = Min (y1_in, h_max)
  x0_ok = Equal (x0, x0_c)
  x1_ok = Equal (x1, x1_c)
  y0_ok = Equal (y0, y0_c)
  y1_ok = Equal (y1, y1_c)
  wx0 = Where (x0_ok, fx0, zero_f)
  wx1 = Where (x1_ok, fx1, zero_f)
  wy0 = Where (y0_ok, fy0, zero_f)
  wy1 = Where (y1_ok, fy1, zero_f)

  # Attention over the L*P points of a head.
  flat_points = Constant <value_ints = [0, 0, 0, -1]> ()
  logits_shape = Shape (logits)
  logits_flat = Reshape (logits_f, flat_points)
  attention_flat = Softmax <axis = -1> (logits_flat)
  attention = Reshape (attention_flat, logits_shape)
  ay0 = Mul (attention, wy0)
  ay1 = Mul (attention, wy1)
  a00 = Mul (ay0, wx0)
  a01 = Mul (ay0, wx1)
  a10 = Mul (ay1, wx0)
  a11 = Mul (ay1, wx1)

  # Row of value, seen as [N*S*M, D]: ((n*S + start of the level + y*w + x) * M + m.
  value_shape = Shape (value)
  axis_S = Constant <value_int = 1> ()
  axis_M = Constant <value_int = 2> ()
  axis_N = Constant <value_int = 0> ()
  zero_s = Constant <value_int = 0> ()
  one_s = Constant <value_int = 1> ()
  N = Gather <axis = 0> (value_shape, axis_N)
  S = Gather <axis = 0> (value_shape, axis_S)
  M = Gather <axis = 0> (value_shape, axis_M)
  n = Range (zero_s, N, one_s)
  m = Range (zero_s, M, one_s)
  n_S = Mul (n, S)
  n_axes = Constant <value_ints = [1, 2, 3, 4]> ()
  m_axes = Constant <value_ints = [1, 2]> ()
  n_row = Unsqueeze (n_S, n_axes)
  m_row = Unsqueeze (m, m_axes)
  area_L = ReduceProd <keepdims = 0> (shapes, one)
  start_L = CumSum <exclusive = 1> (area_L, zero_s)
  start_L1 = Unsqueeze (start_L, one)
  base = Add (n_row, start_L1)
  w_int = Cast <to = 7> (w_L1)
  x0_i = Cast <to = 7> (x0_c)
  x1_i = Cast <to = 7> (x1_c)
  y0_i = Cast <to = 7> (y0_c)
  y1_i = Cast <to = 7> (y1_c)
  y0_w = Mul (y0_i, w_int)
  y1_w = Mul (y1_i, w_int)
  row0 = Add (base, y0_w)
  row1 = Add (base, y1_w)
  i00 = Add (row0, x0_i)
  i01 = Add (row0, x1_i)
  i10 = Add (row1, x0_i)
  i11 = Add (row1, x1_i)

  D_axis = Constant <value_ints = [3]> ()
  D = Gather <axis = 0> (value_shape, D_axis)
  table_shape = Concat <axis = 0> (minus_one, D)
  value_f = Cast <to = 1> (value)
  table = Reshape (value_f, table_shape)
  weights_shape = Constant <value_ints = [0, 0, 0, 1, -1]> ()
CORNERS
  sum_a = Add (s00, s01)
  sum_b = Add (s10, s11)
  sum = Add (sum_a, sum_b)
  out_shape = Constant <value_ints = [0, 0, -1]> ()
  out_f = Reshape (sum, out_shape)
  out = CastLike (out_f, value)
}
"""

_CORNER = """
  r{c}_M = Mul (i{c}, M)
  r{c}_m = Add (r{c}_M, m_row)
  r{c} = Reshape (r{c}_m, flat_points)
  v{c} = Gather <axis = 0> (table, r{c})
  w{c} = Reshape (a{c}, weights_shape)
  s{c} = MatMul (w{c}, v{c})
"""

# query [B,T,S,C], key and value [B,U,S,C] → [B,T,S,C]. Each is the channels from its start to its end of its tensor,
# which may hold several of them.
_SPLIT_TEMPORAL_ATTN = """
SplitTemporalAttn <heads, plugin_version, plugin_namespace, starts: ints = [0, 0, 0],
ends: ints = [9223372036854775807, 9223372036854775807, 9223372036854775807]>
(query, key, value) => (out) {
  keep = Constant <value_ints = [0, 0, 0]> ()
  minus_one = Constant <value_ints = [-1]> ()
  M = Constant <value_int : int = @heads> ()
  zero_axis = Constant <value_ints = [0]> ()
  M_1 = Unsqueeze (M, zero_axis)
  split = Concat <axis = 0> (keep, M_1, minus_one)
  starts = Constant <value_ints : ints = @starts> ()
  ends = Constant <value_ints : ints = @ends> ()
  of_query = Constant <value_ints = [0]> ()
  of_key = Constant <value_ints = [1]> ()
  of_value = Constant <value_ints = [2]> ()
  q_start = Gather <axis = 0> (starts, of_query)
  k_start = Gather <axis = 0> (starts, of_key)
  v_start = Gather <axis = 0> (starts, of_value)
  q_end = Gather <axis = 0> (ends, of_query)
  k_end = Gather <axis = 0> (ends, of_key)
  v_end = Gather <axis = 0> (ends, of_value)
  q_part = Slice (query, q_start, q_end, minus_one)
  k_part = Slice (key, k_start, k_end, minus_one)
  v_part = Slice (value, v_start, v_end, minus_one)
  q_split = Reshape (q_part, split)
  k_split = Reshape (k_part, split)
  v_split = Reshape (v_part, split)
  q = Transpose <perm = [0, 2, 3, 1, 4]> (q_split)
  k = Transpose <perm = [0, 2, 3, 4, 1]> (k_split)
  v = Transpose <perm = [0, 2, 3, 1, 4]> (v_split)
  q_shape = Shape (q_split)
  D_axis = Constant <value_ints = [4]> ()
  D = Gather <axis = 0> (q_shape, D_axis)
  D_f = Cast <to = 1> (D)
  root = Sqrt (D_f)
  q_f = Cast <to = 1> (q)
  k_f = Cast <to = 1> (k)
  v_f = Cast <to = 1> (v)
  q_scaled = Div (q_f, root)
  logits = MatMul (q_scaled, k_f)
  weights = Softmax <axis = -1> (logits)
  attended = MatMul (weights, v_f)
  ordered = Transpose <perm = [0, 3, 1, 2, 4]> (attended)
  merged_shape = Constant <value_ints = [0, 0, 0, -1]> ()
  merged = Reshape (ordered, merged_shape)
  out = CastLike (merged, value)
}
"""


def function_bodies(opset: int) -> list[onnx.FunctionProto]:
    """The function bodies of both ops, in the opset of the graph that takes them."""
    corners = "".join(_CORNER.format(c=c) for c in ("00", "01", "10", "11"))
    texts = (_MS_DEFORM_ATTN.replace("CORNERS", corners), _SPLIT_TEMPORAL_ATTN)
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    return [parser.parse_function(header + _without_comments(text)) for text in texts]


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
