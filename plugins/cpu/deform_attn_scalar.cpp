// Multi-scale deformable attention, one number at a time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "scalar.h"
#include "scratch.h"
#include "storage.h"

namespace mssts {
namespace {

constexpr int64_t kQueriesATask = 64;

template <class Storage>
struct Problem {
  using Real = decltype(load_one(static_cast<const Storage*>(nullptr)));
  using Reference = Real;  // fp32, or fp64 with fp64

  const mssts_deform_attn& call;
  const std::vector<Level>& levels;

  int64_t points() const { return int64_t{call.levels} * call.points; }

  // Softmax of the logits of one (n, q, m) into `weights` [L*P].
  void softmax(int64_t nqm, Real* weights) const {
    const Storage* logits = static_cast<const Storage*>(call.logits) + nqm * points();
    Real most = -std::numeric_limits<Real>::infinity(), sum = 0;
    for (int64_t j = 0; j < points(); ++j) {
      weights[j] = load_one(logits + j);
      most = weights[j] > most ? weights[j] : most;
    }
    for (int64_t j = 0; j < points(); ++j) sum += weights[j] = std::exp(weights[j] - most);
    for (int64_t j = 0; j < points(); ++j) weights[j] /= sum;
  }
};

// One point: its four corners (rows, columns, shares) and the slopes of the location.
template <class Real>
struct Point {
  bool inside;            // whether any corner may be in the level
  int64_t token[4];       // -1: outside
  Real fx, fy;            // where between the corners; NaN if the location is
  Real slope_x, slope_y;  // d(pixel)/d(offset)
  Real offset_x, offset_y;

  Real share(int corner) const { return (corner % 2 ? fx : 1 - fx) * (corner / 2 ? fy : 1 - fy); }
};

template <class Storage>
Point<typename Problem<Storage>::Real> locate(const Problem<Storage>& problem, int64_t nq, int64_t m, int64_t l,
                                              int64_t p) {
  using Real = typename Problem<Storage>::Real;
  const mssts_deform_attn& c = problem.call;
  const Level& level = problem.levels[static_cast<size_t>(l)];
  const Real* reference = static_cast<const Real*>(c.reference) + (nq * c.levels + l) * c.coordinates;
  const Storage* offset =
      static_cast<const Storage*>(c.offsets) + (((nq * c.heads + m) * c.levels + l) * c.points + p) * 2;
  const Real w = static_cast<Real>(level.width), h = static_cast<Real>(level.height);
  Point<Real> point;
  point.offset_x = load_one(offset);
  point.offset_y = load_one(offset + 1);
  point.slope_x = c.coordinates == 2 ? 1 : reference[2] * (Real(0.5) / static_cast<Real>(c.points)) * w;
  point.slope_y = c.coordinates == 2 ? 1 : reference[3] * (Real(0.5) / static_cast<Real>(c.points)) * h;
  const Real x = reference[0] * w + point.offset_x * point.slope_x - Real(0.5);
  const Real y = reference[1] * h + point.offset_y * point.slope_y - Real(0.5);
  point.inside = x > -1 && x < w && y > -1 && y < h;
  if (!point.inside) {
    const Real nothing = std::isnan(x) || std::isnan(y) ? std::numeric_limits<Real>::quiet_NaN() : 0;
    point.fx = point.fy = nothing;
    std::fill(point.token, point.token + 4, -1);
    return point;
  }
  const int64_t column = static_cast<int64_t>(std::floor(x)), row = static_cast<int64_t>(std::floor(y));
  point.fx = x - std::floor(x);
  point.fy = y - std::floor(y);
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t i = row + corner / 2, j = column + corner % 2;
    const bool there = i >= 0 && i < level.height && j >= 0 && j < level.width;
    point.token[corner] = there ? level.start + i * level.width + j : -1;
  }
  return point;
}

template <class Storage>
void forward_query(const Problem<Storage>& problem, int64_t nq, void* memory) {
  using Real = typename Problem<Storage>::Real;
  const mssts_deform_attn& c = problem.call;
  const int64_t M = c.heads, D = c.channels, n = nq / c.queries;
  Real* weights = static_cast<Real*>(memory);
  Real* sums = weights + problem.points();
  for (int64_t m = 0; m < M; ++m) {
    problem.softmax(nq * M + m, weights);
    std::fill(sums, sums + D, Real(0));
    for (int64_t j = 0; j < problem.points(); ++j) {
      const auto point = locate(problem, nq, m, j / c.points, j % c.points);
      if (!point.inside) {
        const Real nothing = weights[j] * point.fx;  // 0 or NaN
        for (int64_t d = 0; d < D; ++d) sums[d] += nothing;
      }
      for (int corner = 0; corner < 4; ++corner) {
        if (point.token[corner] < 0) continue;
        const Real share = weights[j] * point.share(corner);
        const Storage* row = static_cast<const Storage*>(c.value) + ((n * c.tokens + point.token[corner]) * M + m) * D;
        for (int64_t d = 0; d < D; ++d) sums[d] += share * load_one(row + d);
      }
    }
    Storage* out = static_cast<Storage*>(c.out) + (nq * M + m) * D;
    for (int64_t d = 0; d < D; ++d) store_one(out + d, sums[d]);
  }
}

// The gradients of everything but value, of one query.
template <class Storage>
void backward_query(const Problem<Storage>& problem, int64_t nq, void* memory) {
  using Real = typename Problem<Storage>::Real;
  const mssts_deform_attn& c = problem.call;
  const int64_t M = c.heads, D = c.channels, L = c.levels, P = c.points, R = c.coordinates, n = nq / c.queries;
  Real* weights = static_cast<Real*>(memory);
  Real* samples = weights + problem.points();  // <sample, grad_out> of each point
  Real* grad_reference = samples + problem.points();
  std::fill(grad_reference, grad_reference + L * R, Real(0));
  for (int64_t m = 0; m < M; ++m) {
    const int64_t nqm = nq * M + m;
    const Storage* grad_out = static_cast<const Storage*>(c.grad_out) + nqm * D;
    problem.softmax(nqm, weights);
    Real mean = 0;
    for (int64_t j = 0; j < L * P; ++j) {
      const int64_t l = j / P;
      const auto point = locate(problem, nq, m, l, j % P);
      Real dots[4] = {0, 0, 0, 0};
      for (int corner = 0; corner < 4; ++corner) {
        if (point.token[corner] < 0) continue;
        const Storage* row = static_cast<const Storage*>(c.value) + ((n * c.tokens + point.token[corner]) * M + m) * D;
        for (int64_t d = 0; d < D; ++d) dots[corner] += load_one(row + d) * load_one(grad_out + d);
      }
      samples[j] = 0;
      for (int corner = 0; corner < 4; ++corner) samples[j] += point.share(corner) * dots[corner];
      mean += weights[j] * samples[j];
      const Real gx = weights[j] * ((1 - point.fy) * (dots[1] - dots[0]) + point.fy * (dots[3] - dots[2]));
      const Real gy = weights[j] * ((1 - point.fx) * (dots[2] - dots[0]) + point.fx * (dots[3] - dots[1]));
      if (c.grad_offsets != nullptr) {
        Storage* grad_offset = static_cast<Storage*>(c.grad_offsets) + (nqm * L * P + j) * 2;
        store_one(grad_offset, point.inside || gx != gx ? gx * point.slope_x : 0);
        store_one(grad_offset + 1, point.inside || gy != gy ? gy * point.slope_y : 0);
      }
      if (!point.inside && gx == gx && gy == gy) continue;
      const Level& level = problem.levels[static_cast<size_t>(l)];
      const Real w = static_cast<Real>(level.width), h = static_cast<Real>(level.height);
      const Real half = Real(0.5) / static_cast<Real>(P);
      grad_reference[l * R] += gx * w;
      grad_reference[l * R + 1] += gy * h;
      if (R == 4) {
        grad_reference[l * R + 2] += gx * w * point.offset_x * half;
        grad_reference[l * R + 3] += gy * h * point.offset_y * half;
      }
    }
    if (c.grad_logits != nullptr) {
      Storage* grad_logits = static_cast<Storage*>(c.grad_logits) + nqm * L * P;
      for (int64_t j = 0; j < L * P; ++j) store_one(grad_logits + j, weights[j] * (samples[j] - mean));
    }
  }
  if (c.grad_reference != nullptr) {
    std::copy(grad_reference, grad_reference + L * R, static_cast<Real*>(c.grad_reference) + nq * L * R);
  }
}

// The gradient of value, of one frame and head.
template <class Storage>
void backward_value(const Problem<Storage>& problem, int64_t nm, void* memory) {
  using Real = typename Problem<Storage>::Real;
  const mssts_deform_attn& c = problem.call;
  const int64_t M = c.heads, D = c.channels, S = c.tokens, Q = c.queries, n = nm / M, m = nm % M;
  Real* weights = static_cast<Real*>(memory);
  Real* sums = weights + problem.points();  // [S, D]
  std::fill(sums, sums + S * D, Real(0));
  for (int64_t nq = n * Q; nq < (n + 1) * Q; ++nq) {
    const Storage* grad_out = static_cast<const Storage*>(c.grad_out) + (nq * M + m) * D;
    problem.softmax(nq * M + m, weights);
    for (int64_t j = 0; j < problem.points(); ++j) {
      const auto point = locate(problem, nq, m, j / c.points, j % c.points);
      for (int corner = 0; corner < 4; ++corner) {
        if (point.token[corner] < 0) continue;
        const Real share = weights[j] * point.share(corner);
        Real* sum = sums + point.token[corner] * D;
        for (int64_t d = 0; d < D; ++d) sum[d] += share * load_one(grad_out + d);
      }
    }
  }
  for (int64_t s = 0; s < S; ++s) {
    Storage* grad = static_cast<Storage*>(c.grad_value) + ((n * S + s) * M + m) * D;
    for (int64_t d = 0; d < D; ++d) store_one(grad + d, sums[s * D + d]);
  }
}

// Calls body(nq, scratch) for all queries of all frames.
template <class Body>
void for_queries(const mssts_deform_attn& call, const mssts_executor* executor, size_t bytes, const Body& body) {
  const int64_t queries = call.batch * call.queries;
  Scratch scratch(thread_count(executor), bytes);
  parallel_for(executor, (queries + kQueriesATask - 1) / kQueriesATask, [&](int64_t task) {
    const Scratch::Block block(scratch);
    const int64_t end = std::min(queries, (task + 1) * kQueriesATask);
    for (int64_t nq = task * kQueriesATask; nq < end; ++nq) body(nq, block.data());
  });
}

template <class Storage>
void forward(const mssts_deform_attn& call, const std::vector<Level>& levels, const mssts_executor* executor) {
  const Problem<Storage> problem{call, levels};
  const size_t bytes = static_cast<size_t>(problem.points() + call.channels) * sizeof(double);
  for_queries(call, executor, bytes, [&](int64_t nq, void* memory) { forward_query(problem, nq, memory); });
}

template <class Storage>
void backward(const mssts_deform_attn& call, const std::vector<Level>& levels, const mssts_executor* executor) {
  const Problem<Storage> problem{call, levels};
  if (call.grad_offsets != nullptr || call.grad_logits != nullptr || call.grad_reference != nullptr) {
    const size_t bytes = static_cast<size_t>(2 * problem.points() + int64_t{call.levels} * 4) * sizeof(double);
    for_queries(call, executor, bytes, [&](int64_t nq, void* memory) { backward_query(problem, nq, memory); });
  }
  if (call.grad_value != nullptr) {
    const size_t bytes = static_cast<size_t>(problem.points() + call.tokens * call.channels) * sizeof(double);
    Scratch scratch(thread_count(executor), bytes);
    parallel_for(executor, call.batch * call.heads, [&](int64_t nm) {
      const Scratch::Block block(scratch);
      backward_value(problem, nm, block.data());
    });
  }
}

}  // namespace

mssts_status deform_attn_forward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                        const mssts_executor* executor) {
  if (call.dtype == MSSTS_FLOAT64) forward<double>(call, levels, executor);
  if (call.dtype == MSSTS_FLOAT32) forward<float>(call, levels, executor);
  if (call.dtype == MSSTS_FLOAT16) forward<Half>(call, levels, executor);
  if (call.dtype == MSSTS_BFLOAT16) forward<BFloat>(call, levels, executor);
  return MSSTS_OK;
}

mssts_status deform_attn_backward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                         const mssts_executor* executor) {
  if (call.dtype == MSSTS_FLOAT64) backward<double>(call, levels, executor);
  if (call.dtype == MSSTS_FLOAT32) backward<float>(call, levels, executor);
  if (call.dtype == MSSTS_FLOAT16) backward<Half>(call, levels, executor);
  if (call.dtype == MSSTS_BFLOAT16) backward<BFloat>(call, levels, executor);
  return MSSTS_OK;
}

}  // namespace mssts
