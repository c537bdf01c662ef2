// Matchings of at most four rows, by one thread in registers.
#pragma once

#include "device.cuh"

namespace art {

// Two bits per row: its column.
__device__ inline int enumerated_column(int code, int row) { return (code >> (2 * row)) & 3; }

// The best sums of the first rows over all sets of the same number of columns. Of equal sums the one with the last row
// in the higher column is used, so equal costs yield the identity. Returns -1 if every matching has a forbidden pair.
template <class Real, int Size>
__device__ int enumerate_optimal(const Real (&cost)[Size * Size]) {
  double sums[1 << Size];
  int codes[1 << Size];
  sums[0] = 0.0;
  codes[0] = 0;
#pragma unroll
  for (int set = 1; set < 1 << Size; ++set) {
    const int row = ((set >> 0) & 1) + ((set >> 1) & 1) + ((set >> 2) & 1) + ((set >> 3) & 1) - 1;
    bool found = false;
    sums[set] = 0.0;
    codes[set] = 0;
#pragma unroll
    for (int column = Size - 1; column >= 0; --column) {
      if ((set >> column) & 1) {
        const int rest = set ^ (1 << column);
        const double sum = sums[rest] + static_cast<double>(cost[row * Size + column]);
        if (!found || sum < sums[set]) {
          sums[set] = sum;
          codes[set] = codes[rest] | column << (2 * row);
        }
        found = true;
      }
    }
  }
  return sums[(1 << Size) - 1] < kInfinity ? codes[(1 << Size) - 1] : -1;
}

template <class Real, int Size>
__device__ int enumerate_greedy(const Real (&cost)[Size * Size]) {
  int code = 0;
  unsigned taken = 0;  // rows, and columns from bit 8
#pragma unroll
  for (int round = 0; round < Size; ++round) {
    bool found = false;
    Real least = 0;
    int row = 0;
    int column = 0;
#pragma unroll
    for (int i = 0; i < Size; ++i) {
#pragma unroll
      for (int j = 0; j < Size; ++j) {
        const bool open = (taken & (1u << i | 256u << j)) == 0;
        if (open && (!found || cost[i * Size + j] < least)) {
          found = true;
          least = cost[i * Size + j];
          row = i;
          column = j;
        }
      }
    }
    taken |= 1u << row | 256u << column;
    code |= column << (2 * row);
  }
  return code;
}

template <class Real, int Size>
__device__ int enumerate(const Real (&cost)[Size * Size], Method method) {
  return method == Method::optimal ? enumerate_optimal<Real, Size>(cost) : enumerate_greedy<Real, Size>(cost);
}

// Copies the costs of the problems of a warp, which are contiguous, to shared memory, padded to squares with zeros; odd
// strides there place the lanes, each of which reads its own problem, on different banks.
template <class Real, int Size>
__device__ void stage_neighbors(const Problems& problems, int64_t first, int there, Real* staged) {
  constexpr int kNumbers = Size * Size;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int numbers = problems.rows * problems.cols;
  if (numbers < kNumbers) {
#pragma unroll
    for (int e = 0; e < kNumbers; ++e) staged[lane * (kNumbers | 1) + e] = 0;
    __syncwarp();
  }
  with_type<Real>(problems.dtype, [&](auto type) {
    const auto* source = static_cast<decltype(type)>(problems.cost) + first * numbers;
    if (numbers == kNumbers) {
#pragma unroll
      for (int step = 0; step < kNumbers; ++step) {
        const int e = step * kWarp + lane;
        if (e < there * kNumbers) staged[e / kNumbers * (kNumbers | 1) + e % kNumbers] = number(source[e]);
      }
    } else {
      for (int e = lane; e < there * numbers; e += kWarp) {
        const int place = e % numbers;
        staged[e / numbers * (kNumbers | 1) + place / problems.cols * Size + place % problems.cols] = number(source[e]);
      }
    }
  });
  __syncwarp();
}

template <class Real, int Size>
__device__ int enumerate_staged(const Real* staged, const Problems& problems) {
  constexpr int kNumbers = Size * Size;
  Real cost[kNumbers];
  Range range;
#pragma unroll
  for (int e = 0; e < kNumbers; ++e) {
    cost[e] = problems.maximize ? -staged[e] : staged[e];
    range.see(cost[e]);
  }
  if (range.huge && problems.method == Method::optimal) {
#pragma unroll
    for (int e = 0; e < kNumbers; ++e) cost[e] *= static_cast<Real>(kShrink);
  }
#pragma unroll
  for (int i = 0; i < Size; ++i) cost[i * Size + i] -= static_cast<Real>(problems.tie);
  return range.unsolvable(problems.method) ? -1 : enumerate<Real, Size>(cost, problems.method);
}

// The problem of this lane has `code`; adjacent lanes write adjacent rows.
template <int Size>
__device__ __forceinline__ void write_columns(const Problems& problems, int64_t first, int there, int code, int rows) {
#pragma unroll
  for (int step = 0; step < Size; ++step) {
    const int e = step * kWarp + static_cast<int>(threadIdx.x) % kWarp;
    const int of_problem = __shfl_sync(kAllLanes, code, e / rows % kWarp, kWarp);
    if (e < there * rows) {
      const int column = enumerated_column(of_problem, e % rows);
      problems.columns[first * rows + e] = of_problem >= 0 && column < problems.cols ? column : -1;
    }
  }
}

constexpr int kEnumerateThreads = 128;

template <class Real, int Size>
__global__ void __launch_bounds__(kEnumerateThreads) solve_by_enumeration(Problems problems) {
  constexpr int kNumbers = Size * Size;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kEnumerateThreads + warp * kWarp;
  const int64_t left = problems.count - first;
  const int there = left < kWarp ? (left < 0 ? 0 : static_cast<int>(left)) : kWarp;
  Real* staged = reinterpret_cast<Real*>(dynamic_shared_memory()) + warp * kWarp * (kNumbers | 1);
  stage_neighbors<Real, Size>(problems, first, there, staged);

  int code = 0;
  if (lane < there) {
    code = enumerate_staged<Real, Size>(staged + lane * (kNumbers | 1), problems);
  }
  if (problems.rows == Size) {
    write_columns<Size>(problems, first, there, code, Size);  // divides by a constant
  } else {
    write_columns<Size>(problems, first, there, code, problems.rows);
  }
}

template <class Real, int Size>
Launch launch_of_enumeration(const Problems& problems) {
  const int shared_bytes = kEnumerateThreads * (Size * Size | 1) * static_cast<int>(sizeof(Real));
  return {blocks_for(problems.count, kEnumerateThreads), kEnumerateThreads, shared_bytes};
}

}  // namespace art
