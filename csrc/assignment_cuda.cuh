// Matchings of 5 to 32 rows, by a group of 8, 16 or 32 lanes per problem; and the choice of the kernel by size.
//
// A lane owns the columns j and the rows i with j, i = lane (modulo the group width): `Slots` of each, in registers.
// Costs are read a row at a time from shared memory; each lane reads only its own columns. Two slots are for linking,
// where one warp of the block matches up to 64 responses.
#pragma once

#include "block_assignment_cuda.cuh"
#include "device.cuh"
#include "enumeration_cuda.cuh"

namespace art {

// Costs in shared memory, negated when maximizing; `own` is the first column of the lane.
template <class Real, int Slots>
struct StagedCosts {
  static constexpr int kStride = kWarp * Slots;
  Real* own;

  __device__ void row(int i, double (&costs)[Slots]) const {
#pragma unroll
    for (int s = 0; s < Slots; ++s) costs[s] = static_cast<double>(own[i * kStride + s * kWarp]);
  }
};

// State of both methods: the matching so far.
template <int Width, int Slots>
struct Matching {
  Group<Width> group;
  int size;
  int column_of[Slots];      // of the rows of this lane, or -1
  unsigned free_rows[Slots];  // bit b of word s: row s * Width + b has no column; the same in all lanes
  bool feasible = true;       // not every matching has a forbidden pair; the same in all lanes

  __device__ bool is_own(int slot) const { return slot * Width + group.lane < size; }

  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < Slots; ++s) column_of[s] = -1;
  }

  __device__ void count_free(bool there) {
#pragma unroll
    for (int s = 0; s < Slots; ++s) free_rows[s] = group.ballot(there && is_own(s) && column_of[s] < 0);
  }

  __device__ int first_free() const {
    int row = -1;
#pragma unroll
    for (int s = Slots - 1; s >= 0; --s) {
      if (free_rows[s]) row = s * Width + __ffs(static_cast<int>(free_rows[s])) - 1;
    }
    return row;
  }

  __device__ void occupy(int row) {
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      const bool here = static_cast<unsigned>(row) / Width == static_cast<unsigned>(s);
      free_rows[s] &= ~(here ? 1u << row % Width : 0u);
    }
  }
};

// Shortest augmenting paths (Jonker and Volgenant) with duals of the columns only: that of a matched row is implied by
// the cost of its match. Rounding can move a dual, but cannot break the matching: each step closes a column, and each
// path ends in a free one.
template <int Width, int Slots, class Costs>
struct ShortestPaths : Matching<Width, Slots> {
  using Matching<Width, Slots>::group;
  using Matching<Width, Slots>::size;
  using Matching<Width, Slots>::column_of;

  double dual[Slots];
  double distance[Slots];
  int previous[Slots];  // the row before the column, on the shortest path to it
  int row_of[Slots];    // -1: the column is free
  unsigned open;        // bit s: the shortest path to the column of slot s is not yet final

  struct Step {
    int column;
    int row;  // row of that column, or -1 if the path ends
    double length;
  };

  __device__ void open_all() {
    open = 0;
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      distance[s] = kInfinity;
      previous[s] = 0;
      if (this->is_own(s)) open |= 1u << s;
    }
  }

  // Column reduction: the dual of a column is its minimal cost, and a row takes the first column whose minimum it has.
  __device__ void start(const Costs& costs) {
    int nearest[Slots];
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      dual[s] = kInfinity;
      nearest[s] = row_of[s] = -1;
    }
    for (int i = 0; i < size; ++i) {
      double values[Slots];
      costs.row(i, values);
#pragma unroll
      for (int s = 0; s < Slots; ++s) {
        if (this->is_own(s) && values[s] < dual[s]) {
          dual[s] = values[s];
          nearest[s] = i;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      if (group.ballot(this->is_own(s) && nearest[s] < 0)) this->feasible = false;
    }
    for (int i = 0; i < size; ++i) {
      int column = -1;
#pragma unroll
      for (int s = Slots - 1; s >= 0; --s) {
        const unsigned lanes = group.ballot(nearest[s] == i);
        if (lanes) column = s * Width + __ffs(static_cast<int>(lanes)) - 1;
      }
      if (column >= 0) {
        group.set(column_of, i, column);
        group.set(row_of, column, i);
      }
    }
  }

  // Extends the paths by `row`, which `last` reached, and selects the nearest open column; of equally near ones a free
  // column, which ends the path.
  __device__ Step extend(const Costs& costs, int row, const Step& last) {
    double reduced[Slots];
    costs.row(row, reduced);
#pragma unroll
    for (int s = 0; s < Slots; ++s) reduced[s] -= dual[s];
    const double tight = group.at(reduced, last.column);
    const double offset = last.column < 0 ? 0.0 : tight - last.length;

    double least = kInfinity;
    int nearest = 0;
    int nearest_row = 0;
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      if (open >> s & 1u) {
        const double length = reduced[s] - offset;
        if (length < distance[s]) {
          distance[s] = length;
          previous[s] = row;
        }
        if (distance[s] < least || (distance[s] == least && row_of[s] < 0 && nearest_row >= 0)) {
          least = distance[s];
          nearest = s * Width + group.lane;
          nearest_row = row_of[s];
        }
      }
    }
    const uint64_t key = ordered(least);
    const uint64_t least_key = group.least(key);
    const unsigned lanes = group.ballot(key == least_key);
    const unsigned free_lanes = group.ballot(key == least_key && nearest_row < 0);
    const int lane = __ffs(static_cast<int>(free_lanes ? free_lanes : lanes)) - 1;
    return {Slots == 1 ? lane : group.from(nearest, lane), group.from(nearest_row, lane), from_ordered(least_key)};
  }

  // Each row on the path to `column` takes the next column. Groups without a path only participate in the calls.
  __device__ void augment(bool walking, int start, int column) {
    while (__any_sync(kAllLanes, walking)) {
      const int row = group.at(previous, column);
      const int next = group.at(column_of, row);
      if (walking) {
        group.set(row_of, column, row);
        group.set(column_of, row, column);
        column = next;
        walking = row != start;
      }
    }
  }

  __device__ void update_duals(double length) {
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      if (this->is_own(s) && !(open >> s & 1u)) dual[s] += distance[s] - length;
    }
  }

  __device__ void solve(const Costs& costs, bool there) {
    this->clear();
    start(costs);
    this->count_free(there && this->feasible);
    open_all();
    int start_row = this->first_free();
    int row = start_row;
    Step step{-1, 0, 0.0};
    while (__any_sync(kAllLanes, start_row >= 0)) {
      step = extend(costs, row < 0 ? 0 : row, step);
      const bool stuck = start_row >= 0 && step.length == kInfinity;  // every path is forbidden
      const bool ends = start_row >= 0 && !stuck && step.row < 0;
      if (__any_sync(kAllLanes, ends)) augment(ends, start_row, step.column);
      if (stuck) {
        this->feasible = false;
        start_row = row = step.column = -1;
      } else if (ends) {
        update_duals(step.length);
        this->occupy(start_row);
        open_all();
        start_row = row = this->first_free();
        step.column = -1;
      } else {
        row = step.row;
        if (step.column % Width == group.lane) open &= ~(1u << step.column / Width);
      }
    }
  }
};

// The smallest cost first. Each column keeps its smallest cost among the remaining rows, and searches again when that
// row is matched.
template <int Width, int Slots, class Costs>
struct LeastFirst : Matching<Width, Slots> {
  using Matching<Width, Slots>::group;
  using Matching<Width, Slots>::size;
  using Matching<Width, Slots>::column_of;
  using Matching<Width, Slots>::free_rows;

  double least[Slots];
  int least_row[Slots];

  __device__ void look(const Costs& costs, unsigned slots) {
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      if (slots >> s & 1u) least[s] = kInfinity;
    }
#pragma unroll
    for (int word = 0; word < Slots; ++word) {
      for (int i = word * Width; i < size && i < (word + 1) * Width; ++i) {
        double values[Slots];
        costs.row(i, values);
        const bool is_free = free_rows[word] >> (i - word * Width) & 1u;
#pragma unroll
        for (int s = 0; s < Slots; ++s) {
          if (is_free && (slots >> s & 1u) && values[s] < least[s]) {
            least[s] = values[s];
            least_row[s] = i;
          }
        }
      }
    }
  }

  // The row and column of the smallest cost, as row * kMaxSize + column; of equal costs the smallest number.
  __device__ unsigned nearest(unsigned open) const {
    double value = kInfinity;
    unsigned place = ~0u;
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      const unsigned other = static_cast<unsigned>(least_row[s]) * kMaxSize + s * Width + group.lane;
      if ((open >> s & 1u) && (least[s] < value || (least[s] == value && other < place))) {
        value = least[s];
        place = other;
      }
    }
    const uint64_t key = ordered(value);
    return group.least(key == group.least(key) ? place : ~0u);
  }

  __device__ void solve(const Costs& costs, bool there) {
    this->clear();
    this->count_free(there);
    unsigned open = 0;
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      least_row[s] = 0;
      if (this->is_own(s)) open |= 1u << s;
    }
    unsigned changed = open;
    for (int round = 0; round < size; ++round) {
      if (__any_sync(kAllLanes, changed != 0)) look(costs, changed);
      const unsigned place = nearest(open);
      const int row = static_cast<int>(place / kMaxSize);
      const int column = static_cast<int>(place % kMaxSize);
      group.set(column_of, row, column);
      this->occupy(row);
      if (column % Width == group.lane) open &= ~(1u << column / Width);
      changed = 0;
#pragma unroll
      for (int s = 0; s < Slots; ++s) {
        if ((open >> s & 1u) && least_row[s] == row) changed |= 1u << s;
      }
    }
  }
};

// Returns the columns of the rows of this lane, and whether there is a matching. All lanes of a warp call it; results of
// groups not `there` are unused.
template <int Width, int Slots, class Costs>
__device__ bool match(const Costs& costs, int size, bool there, Method method, int (&column_of)[Slots]) {
  const auto solve = [&](auto solver) {
    solver.group = Group<Width>::here();
    solver.size = size;
    solver.solve(costs, there);
#pragma unroll
    for (int s = 0; s < Slots; ++s) column_of[s] = solver.column_of[s];
    return solver.feasible;
  };
  if (method == Method::optimal) return solve(ShortestPaths<Width, Slots, Costs>{});
  return solve(LeastFirst<Width, Slots, Costs>{});
}

// Pads the problem to a square with zeros, which change no optimum.
template <class Real, int Width>
__device__ Range stage_columns(const Problems& problems, int64_t problem, bool there, Real* own) {
  const int lane = Group<Width>::here().lane;
  const int size = size_of(problems);
  const Real sign = problems.maximize ? Real{-1} : Real{1};
  Range range;
  with_type<Real>(problems.dtype, [&](auto type) {
    const auto* source = static_cast<decltype(type)>(problems.cost) + problem * problems.rows * problems.cols;
#pragma unroll 4
    for (int i = 0; i < size; ++i) {
      const bool here = there && lane < problems.cols && i < problems.rows;
      const Real value = here ? sign * number(source[i * problems.cols + lane]) + Real{0} : Real{0};  // -0 becomes 0
      range.see(value);
      own[i * kWarp] = value;
    }
  });
  return range;
}

constexpr int kMaxWarps = 4;

template <class Real, int Width>
__global__ void __launch_bounds__(kMaxWarps* kWarp) solve_staged(Problems problems) {
  const auto group = Group<Width>::here();
  const int size = size_of(problems);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t in_grid = static_cast<int64_t>(blockIdx.x) * (static_cast<int>(blockDim.x) / kWarp) + warp;
  const int64_t problem = in_grid * (kWarp / Width) + group.first / Width;
  const bool there = problem < problems.count;
  Real* own = reinterpret_cast<Real*>(dynamic_shared_memory()) + warp * size * kWarp + lane;

  const Range range = stage_columns<Real, Width>(problems, problem, there, own);
  const bool good = group.ballot(range.unsolvable(problems.method)) == 0;
  if (group.ballot(range.huge) != 0 && problems.method == Method::optimal) {
    for (int i = 0; i < size; ++i) own[i * kWarp] *= static_cast<Real>(kShrink);
  }
  int column_of[1];
  if (group.lane < size) own[group.lane * kWarp] -= static_cast<Real>(problems.tie);
  const bool feasible =
      match<Width, 1>(StagedCosts<Real, 1>{own}, size, there && good, problems.method, column_of);
  if (there && group.lane < problems.rows) {
    const bool matched = good && feasible && column_of[0] < problems.cols;
    problems.columns[problem * problems.rows + group.lane] = matched ? column_of[0] : -1;
  }
}

template <class Real, int Width>
Launch launch_of_staged(const Problems& problems) {
  constexpr int kBlockBytes = 32768;  // of the 48 KiB of every device; several blocks fit a multiprocessor
  const int bytes = size_of(problems) * kWarp * static_cast<int>(sizeof(Real));
  const int fitting = kBlockBytes / bytes;
  const int warps = fitting > kMaxWarps ? kMaxWarps : fitting;
  return {blocks_for(problems.count, warps * (kWarp / Width)), warps * kWarp, warps * bytes};
}

// Calls `run` with the kernel that solves these problems and its launch, which uses at most the given bytes of shared
// memory per block.
template <class Real, class Run>
auto with_solver_of(const Problems& problems, int shared_bytes, Run run) {
  const int size = size_of(problems);
  if (size == 1) return run(solve_by_enumeration<Real, 1>, launch_of_enumeration<Real, 1>(problems));
  if (size == 2) return run(solve_by_enumeration<Real, 2>, launch_of_enumeration<Real, 2>(problems));
  if (size == 3) return run(solve_by_enumeration<Real, 3>, launch_of_enumeration<Real, 3>(problems));
  if (size == 4) return run(solve_by_enumeration<Real, 4>, launch_of_enumeration<Real, 4>(problems));
  if (size <= 8) return run(solve_staged<Real, 8>, launch_of_staged<Real, 8>(problems));
  if (size <= 16) return run(solve_staged<Real, 16>, launch_of_staged<Real, 16>(problems));
  if (size <= 32) return run(solve_staged<Real, 32>, launch_of_staged<Real, 32>(problems));
  if (block_bytes<Real>(size) <= shared_bytes) return run(solve_by_block<Real>, launch_of_block<Real>(problems));
  return run(solve_by_block<InPlace>, launch_of_block<InPlace>(problems));
}

template <class Run>
auto with_solver(const Problems& problems, int shared_bytes, Run run) {
  if (problems.dtype == Dtype::float64) return with_solver_of<double>(problems, shared_bytes, run);
  return with_solver_of<float>(problems, shared_bytes, run);
}

}  // namespace art
