// Batches of problems on one thread: reads costs of any dtype and selects a solver by size.
#pragma once

#include "assignment.hpp"
#include "assignment_small.hpp"
#include "greedy.hpp"
#include "numbers.hpp"
#include "shortest_paths.hpp"
#include "simd.hpp"

namespace art::ART_TARGET {

// Larger costs are scaled down by a power of two, because their sums could overflow.
constexpr double kLarge = 0x1p1000, kShrink = 0x1p-40;

// Statistics of the costs read so far.
struct Seen {
  Numbers undefined{};  // NaN after a non-finite number
  Numbers largest{};

  void see(Numbers costs) {
    undefined += costs - costs;
    const Numbers magnitude = costs < 0 ? -costs : costs;
    largest = magnitude > largest ? magnitude : largest;
  }

  bool all_finite() const {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += undefined[lane];
    return sum == 0;
  }

  bool large() const { return -least(-largest) > kLarge; }
};

// Up to eight costs, padded with 0.
template <class Cost>
Numbers some_costs(const Cost* cost, int count, double sign) {
  double lanes[kLanes] = {};
  if (count >= kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = widened(cost[lane]);
  else
    for (int lane = 0; lane < count; ++lane) lanes[lane] = widened(cost[lane]);
  return load(lanes) * sign;
}

// Loads one problem into `solver`; returns false if a number is not finite.
template <class Cost, class Solver>
bool read(const Cost* cost, int size, double sign, Solver& solver) {
  Seen seen;
  for (int i = 0; i < size; ++i, cost += size) {
    double* row = solver.row(i);
    int j = 0;
    for (; j + kLanes <= size; j += kLanes) {
      const Numbers costs = some_costs(cost + j, kLanes, sign);
      seen.see(costs);
      store(row + j, costs);
    }
    if (j < size) {
      const Numbers costs = some_costs(cost + j, size - j, sign);
      seen.see(costs);
      for (int lane = 0; j + lane < size; ++lane) row[j + lane] = costs[lane];
    }
  }
  if (!seen.all_finite()) return false;
  if (seen.large())
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) solver.row(i)[j] *= kShrink;
  return true;
}

template <class Solver, class Cost>
int64_t solve_each(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  const int size = problems.size;
  const int64_t numbers = static_cast<int64_t>(size) * size;
  const Cost* cost = static_cast<const Cost*>(problems.cost);
  Solver solver(size, memory);
  int64_t bad = -1;
  for (int64_t problem = begin; problem < end; ++problem) {
    int64_t* columns = problems.columns + problem * size;
    const bool good = read(cost + problem * numbers, size, problems.maximize ? -1.0 : 1.0, solver);
    if (good) solver.solve();
    for (int i = 0; i < size; ++i) columns[i] = good ? solver.columns()[i] : -1;
    if (!good && bad < 0) bad = problem;
  }
  return bad;
}

// One problem per lane; the last problems are repeated to fill the lanes.
template <int K, class Cost>
int64_t solve_small(const Problems& problems, int64_t begin, int64_t end) {
  const Cost* cost = static_cast<const Cost*>(problems.cost);
  const double sign = problems.maximize ? -1.0 : 1.0;
  int64_t bad = -1;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = end - first < kLanes ? static_cast<int>(end - first) : kLanes;
    double lanes[K * K][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Cost* of_lane = cost + (first + (lane < count ? lane : count - 1)) * K * K;
      for (int at = 0; at < K * K; ++at) lanes[at][lane] = sign * widened(of_lane[at]);
    }
    Numbers matrix[K * K], undefined{}, shrink = all(1.0);
    for (int at = 0; at < K * K; ++at) {
      matrix[at] = load(lanes[at]);
      undefined += matrix[at] - matrix[at];
      const Integers large = (matrix[at] > kLarge) | (matrix[at] < -kLarge);
      shrink = large ? all(kShrink) : shrink;
    }
    if constexpr (sizeof(Cost) == sizeof(double))
      for (Numbers& numbers : matrix) numbers *= shrink;
    const auto best = match_few<K>(matrix);
    const Integers good = undefined == all(0.0);
    for (int row = 0; row < K; ++row) {
      const Integers columns = good ? best.columns[row] : all(static_cast<int64_t>(-1));
      for (int lane = 0; lane < count; ++lane) problems.columns[(first + lane) * K + row] = columns[lane];
    }
    for (int lane = 0; bad < 0 && lane < count; ++lane)
      if (!good[lane]) bad = first + lane;
  }
  return bad;
}

template <class Cost>
int64_t solve_of(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  if (problems.method == Method::greedy) return solve_each<Greedy, Cost>(problems, begin, end, memory);
  switch (problems.size) {
    case 1:
      return solve_small<1, Cost>(problems, begin, end);
    case 2:
      return solve_small<2, Cost>(problems, begin, end);
    case 3:
      return solve_small<3, Cost>(problems, begin, end);
    case 4:
      return solve_small<4, Cost>(problems, begin, end);
    default:
      return solve_each<ShortestPaths, Cost>(problems, begin, end, memory);
  }
}

inline size_t solve_bytes(int size, Method method) {
  if (method == Method::greedy) return Greedy::bytes(size);
  return size <= kMaxEnumerated ? 0 : ShortestPaths::bytes(size);
}

inline int64_t solve(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  switch (problems.dtype) {
    case Dtype::float32:
      return solve_of<float>(problems, begin, end, memory);
    case Dtype::float64:
      return solve_of<double>(problems, begin, end, memory);
    case Dtype::float16:
      return solve_of<Half>(problems, begin, end, memory);
    case Dtype::bfloat16:
      return solve_of<Bfloat16>(problems, begin, end, memory);
  }
  __builtin_unreachable();
}

}  // namespace art::ART_TARGET
