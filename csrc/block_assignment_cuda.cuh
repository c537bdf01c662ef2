// Matchings of more rows than a warp has lanes, with several warps per problem: thread j handles column j and row j,
// with the dual variable, the path length and both matches in registers.
//
// Costs are in shared memory if the device has enough for a block, otherwise in global memory, read through the L1
// cache. The warps exchange the nearest column through alternating buffers, so one barrier per step suffices.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace art {

// Costs in shared memory, negated when maximizing.
template <class Real>
struct SharedCosts {
  const Real* costs;
  int size;

  __device__ double at(int row, int column) const { return static_cast<double>(costs[row * size + column]); }
};

// Costs in global memory, padded to a square with zeros, which change no optimum.
struct GlobalCosts {
  const void* problem;
  Dtype dtype;
  int rows, cols;
  double scale;
  double tie;

  __device__ double at(int row, int column) const {
    if (row >= rows || column >= cols) return 0.0;
    double value = 0;
    const int place = row * cols + column;
    if (dtype == Dtype::float64) {
      value = static_cast<const double*>(problem)[place];
    } else {
      with_type<float>(dtype, [&](auto type) { value = number(static_cast<decltype(type)>(problem)[place]); });
    }
    return scale * value + 0.0 - (row == column ? tie : 0.0);  // -0 becomes 0
  }
};

constexpr int kMostBlockWarps = kMaxSize / kWarp;

// The nearest column of a warp, then of the block.
struct Nearest {
  uint64_t length;  // in the order of `ordered`
  int column;
  int row;      // row of the column, or -1 if it is free
  double dual;  // of the column
};

// One bit per row.
struct Rows {
  unsigned words[kMostBlockWarps];

  __device__ bool has(int row) const { return words[row / kWarp] >> row % kWarp & 1u; }
  __device__ void add(int row) { words[row / kWarp] |= 1u << row % kWarp; }
};

// Data exchanged between the threads of a block.
struct BlockMemory {
  Nearest nearest[2][kMostBlockWarps];
  int of_column[kMaxSize];  // a row for each column
  int of_row[kMaxSize];     // a column for each row
  Rows rows;
};

__device__ inline int block_warps() { return static_cast<int>(blockDim.x) / kWarp; }

// Returns whether the predicate is true for any thread; all threads of the block must call it.
__device__ inline bool any_of_block(bool vote, BlockMemory& memory) {
  const unsigned votes = __ballot_sync(kAllLanes, vote);
  if (threadIdx.x % kWarp == 0) memory.rows.words[threadIdx.x / kWarp] = votes;
  __syncthreads();
  unsigned all = 0;
  for (int warp = 0; warp < block_warps(); ++warp) all |= memory.rows.words[warp];
  __syncthreads();  // before the buffers are reused
  return all != 0;
}

// The minimum of the block; of equal ones a free column, then that of the lowest thread.
__device__ inline Nearest nearest_of_block(const Nearest& own, BlockMemory& memory, int turn) {
  const auto warp = Group<kWarp>::here();
  const uint64_t least = warp.least(own.length);
  const unsigned lanes = __ballot_sync(kAllLanes, own.length == least);
  const unsigned free_lanes = __ballot_sync(kAllLanes, own.length == least && own.row < 0);
  const int lane = __ffs(static_cast<int>(free_lanes ? free_lanes : lanes)) - 1;
  Nearest* places = memory.nearest[turn % 2];
  if (warp.lane == lane) places[threadIdx.x / kWarp] = own;
  __syncthreads();
  Nearest best = places[0];
  for (int other = 1; other < block_warps(); ++other) {
    const Nearest& place = places[other];
    if (place.length < best.length || (place.length == best.length && place.row < 0 && best.row >= 0)) best = place;
  }
  return best;
}

// Shortest augmenting paths, as in assignment_cuda.cuh.
template <class Costs>
struct BlockPaths {
  const Costs& costs;
  BlockMemory& memory;
  int size;
  int column;  // of this thread, also the index of its row
  int turn = 0;
  double dual = 0;
  int row_of = -1;     // row of this thread's column, or -1 if it is free
  int column_of = -1;  // column of this thread's row, or -1

  __device__ bool is_own() const { return column < size; }

  // The dual of a column is its minimal cost, and a row takes the first column whose minimum it has. Returns false if a
  // column is forbidden for every row.
  __device__ bool start() {
    int nearest = -1;
    dual = kInfinity;
    for (int i = 0; is_own() && i < size; ++i) {
      const double cost = costs.at(i, column);
      if (cost < dual) {
        dual = cost;
        nearest = i;
      }
    }
    if (any_of_block(is_own() && nearest < 0, memory)) return false;
    if (is_own()) memory.of_column[column] = nearest;
    __syncthreads();
    for (int j = size - 1; is_own() && j >= 0; --j) {
      if (memory.of_column[j] == column) column_of = j;
    }
    if (is_own()) memory.of_row[column] = column_of;
    const unsigned free_rows = __ballot_sync(kAllLanes, is_own() && column_of < 0);
    if (threadIdx.x % kWarp == 0) memory.rows.words[threadIdx.x / kWarp] = free_rows;
    __syncthreads();
    if (is_own() && memory.of_row[nearest] == column) row_of = nearest;
    return true;
  }

  // The shortest path from a row to a free column; each row on it takes the next column. Returns false if every path is
  // forbidden.
  __device__ bool augment(int start_row) {
    double distance = kInfinity;
    int previous = start_row;  // the row before the column, on the shortest path to it
    bool open = is_own();
    int row = start_row;
    double offset = 0;
    Nearest step;
    while (true) {
      if (open) {
        const double length = costs.at(row, column) - dual - offset;
        if (length < distance) {
          distance = length;
          previous = row;
        }
      }
      step = nearest_of_block({open ? ordered(distance) : ~uint64_t{0}, column, row_of, dual}, memory, turn++);
      if (step.length >= ordered(kInfinity)) return false;
      if (step.row < 0) break;
      if (column == step.column) open = false;
      row = step.row;
      offset = costs.at(row, step.column) - step.dual - from_ordered(step.length);
    }
    if (is_own() && !open) dual += distance - from_ordered(step.length);
    take_path(start_row, step.column, previous);
    return true;
  }

  // Threads publish their part of the matching, the first thread walks along the path, and each thread reads its part
  // back. A column is on the path if the row before it has it now; the row that had it before follows it.
  __device__ void take_path(int start_row, int end, int previous) {
    if (is_own()) {
      memory.of_column[column] = previous;
      memory.of_row[column] = column_of;
    }
    __syncthreads();
    if (column == 0) walk(start_row, end);
    __syncthreads();
    if (is_own()) {
      column_of = memory.of_row[column];
      if (memory.of_row[previous] == column) row_of = previous;
    }
  }

  __device__ void walk(int start_row, int end) const {
    int row;
    do {
      row = memory.of_column[end];
      const int next = memory.of_row[row];
      memory.of_row[row] = end;
      end = next;
    } while (row != start_row);
  }

  // Returns the column of this thread's row, or -1 if there is no matching.
  __device__ int solve() {
    if (!start()) return -1;
    for (int row = 0; row < size; ++row) {
      // No path takes a row's column away, or matches another free row.
      if (memory.rows.has(row) && !augment(row)) return -1;
    }
    return column_of;
  }
};

// The smallest cost first. Each column keeps its smallest cost among the remaining rows.
template <class Costs>
struct BlockLeastFirst {
  const Costs& costs;
  BlockMemory& memory;  // its rows: the matched ones
  int size;
  int column;
  double least = 0;
  int least_row = 0;
  int column_of = -1;  // column of this thread's row, or -1

  __device__ void look() {
    least = kInfinity;
    for (int i = 0; i < size; ++i) {
      if (memory.rows.has(i)) continue;
      const double cost = costs.at(i, column);
      if (cost < least) {
        least = cost;
        least_row = i;
      }
    }
  }

  // Of equal costs the one in the lowest row, then in the lowest column.
  __device__ Nearest nearest(bool open, int turn) const {
    const Nearest value = nearest_of_block({open ? ordered(least) : ~uint64_t{0}, column, 0, 0.0}, memory, 2 * turn);
    const bool equal = open && ordered(least) == value.length;
    const uint64_t place = static_cast<uint64_t>(least_row) * kMaxSize + static_cast<uint64_t>(column);
    return nearest_of_block({equal ? place : ~uint64_t{0}, column, least_row, 0.0}, memory, 2 * turn + 1);
  }

  // Returns the column of this thread's row.
  __device__ int solve() {
    if (column < kMostBlockWarps) memory.rows.words[column] = 0;
    __syncthreads();
    bool open = column < size;
    if (open) look();
    for (int round = 0; round < size; ++round) {
      const Nearest taken = nearest(open, round);
      if (column == taken.row) column_of = taken.column;
      if (column == taken.column) {
        open = false;
        memory.rows.add(taken.row);
      }
      __syncthreads();
      if (open && least_row == taken.row) look();
    }
    return column_of;
  }
};

// Returns the column of this thread's row, or -1.
template <class Costs>
__device__ int match_by_block(const Costs& costs, BlockMemory& memory, const Problems& problems) {
  const int thread = static_cast<int>(threadIdx.x);
  const int size = size_of(problems);
  if (problems.method == Method::optimal) return BlockPaths<Costs>{costs, memory, size, thread}.solve();
  return BlockLeastFirst<Costs>{costs, memory, size, thread}.solve();
}

// Selects costs in global memory where a type of costs in shared memory is expected.
struct InPlace {};

// `Real` is the type of the costs in shared memory, or InPlace.
template <class Real>
__global__ void __launch_bounds__(kMaxSize) solve_by_block(Problems problems) {
  const int size = size_of(problems);
  const int64_t problem = blockIdx.x;
  const int64_t bytes = problems.dtype == Dtype::float64 ? 8 : problems.dtype == Dtype::float32 ? 4 : 2;
  const int numbers = size * size;
  const int thread = static_cast<int>(threadIdx.x);
  BlockMemory& memory = *reinterpret_cast<BlockMemory*>(dynamic_shared_memory());
  GlobalCosts stored{static_cast<const char*>(problems.cost) + problem * problems.rows * problems.cols * bytes,
                     problems.dtype, problems.rows, problems.cols, problems.maximize ? -1.0 : 1.0, problems.tie};
  Range range;
  for (int e = thread; e < numbers; e += static_cast<int>(blockDim.x)) range.see(stored.at(e / size, e % size));
  const bool good = !any_of_block(range.unsolvable(problems.method), memory);
  if (any_of_block(range.huge, memory) && problems.method == Method::optimal) stored.scale *= kShrink;
  int column = -1;
  if (good) {
    if constexpr (!std::is_same_v<Real, InPlace>) {
      Real* staged = reinterpret_cast<Real*>(dynamic_shared_memory() + sizeof(BlockMemory));
      for (int e = thread; e < numbers; e += static_cast<int>(blockDim.x)) {
        staged[e] = static_cast<Real>(stored.at(e / size, e % size));
      }
      __syncthreads();
      column = match_by_block(SharedCosts<Real>{staged, size}, memory, problems);
    } else {
      column = match_by_block(stored, memory, problems);
    }
  }
  if (thread < problems.rows) {
    problems.columns[problem * problems.rows + thread] = column < problems.cols ? column : -1;
  }
}

template <class Real>
int block_bytes(int size) {
  return static_cast<int>(sizeof(BlockMemory)) + (std::is_same_v<Real, InPlace> ? 0 : size * size * static_cast<int>(sizeof(Real)));
}

template <class Real>
Launch launch_of_block(const Problems& problems) {
  const int size = size_of(problems);
  return {problems.count, static_cast<int>(blocks_for(size, kWarp)) * kWarp, block_bytes<Real>(size)};
}

}  // namespace art
