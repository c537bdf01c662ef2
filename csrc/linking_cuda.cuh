// Links adjacent frames: the cosines of all pairs of responses, and the matching, in one kernel.
//
// Up to 4 responses per frame, a warp processes a pair of frames: its lanes divide the channels and reduce the sums
// with shuffles. Above that, a block does: tiles of channels are staged in shared memory, each thread accumulates a
// square of dot products, and the first warp solves the matrix of cosines, which replaces the tiles.
#pragma once

#include "assignment_cuda.cuh"

namespace art {

// The smallest normal number: the direction of a vector with a smaller squared norm is lost.
__device__ inline float least_normal(float) { return 0x1p-126f; }
__device__ inline double least_normal(double) { return 0x1p-1022; }

// A zero vector has an infinite norm, so its cosines are 0.
__device__ inline float norm_of(float square) {
  return square < least_normal(square) ? static_cast<float>(kInfinity) : sqrtf(square);
}
__device__ inline double norm_of(double square) { return square < least_normal(square) ? kInfinity : sqrt(square); }

// The cost of a pair whose cosine is NaN: above all others.
constexpr int kUnknown = 2;

template <class Real>
__device__ Real cost_of_cosine(Real cosine) {
  return is_finite(cosine) ? Real{0} - cosine : Real{kUnknown};
}

template <class Real>
__device__ Real cosine_of_cost(Real cost) {
  return cost == Real{kUnknown} ? static_cast<Real>(__builtin_nan("")) : Real{0} - cost;
}

// Values that a thread reads at a time: 16 bytes of Real.
template <class Real>
constexpr int kUnit = 16 / static_cast<int>(sizeof(Real));

template <class T, int Count>
struct alignas(sizeof(T) * Count) Unit {
  T numbers[Count];
};

// A pair of adjacent frames. `wide`: units can be read with one instruction.
struct FramePair {
  const void* values;
  int64_t here, next;  // the first responses of both frames
  int64_t stride;
  int size, channels;
  bool wide;

  // Response `row`; rows from `rows_a_frame` (at least `size`) are in the next frame.
  __device__ bool has(int row, int rows_a_frame) const { return row % rows_a_frame < size; }
  __device__ int64_t offset(int row, int rows_a_frame) const {
    return (row < rows_a_frame ? here : next) + static_cast<int64_t>(row % rows_a_frame) * stride;
  }
};

struct FramePairs {
  Responses responses;
  bool wide;

  __device__ FramePair at(int64_t index) const {
    const int64_t pairs = responses.frames - 1;
    const int64_t here = index / pairs * responses.stride_video + index % pairs * responses.stride_frame;
    return {responses.values, here, here + responses.stride_frame, responses.stride_response,
            responses.size,   responses.channels, wide};
  }
};

// A unit of channels of one response; zeros beyond the last channel and the last response.
template <class Real, class T>
__device__ Unit<Real, kUnit<Real>> read_unit(const T* response, int channel, int channels, bool there, bool wide) {
  constexpr int kCount = kUnit<Real>;
  Unit<Real, kCount> unit;
  if (there && wide && channel + kCount <= channels) {
    const auto read = *reinterpret_cast<const Unit<T, kCount>*>(response + channel);
#pragma unroll
    for (int n = 0; n < kCount; ++n) unit.numbers[n] = number(read.numbers[n]);
  } else {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      unit.numbers[n] = there && channel + n < channels ? number(response[channel + n]) : Real{0};
    }
  }
  return unit;
}

template <class Real>
__device__ void add_products(const Unit<Real, kUnit<Real>>& a, const Unit<Real, kUnit<Real>>& b, Real& sum) {
#pragma unroll
  for (int n = 0; n < kUnit<Real>; ++n) sum += a.numbers[n] * b.numbers[n];
}

// Sums of a lane, or of all lanes, over the channels of two frames of at most `Rows` responses.
template <class Real, int Rows>
struct FewProducts {
  Real dots[Rows * Rows];
  Real squares[2 * Rows];

  __device__ void take(const FramePair& pair, Dtype dtype) {
#pragma unroll
    for (int n = 0; n < Rows * Rows; ++n) dots[n] = 0;
#pragma unroll
    for (int n = 0; n < 2 * Rows; ++n) squares[n] = 0;
    with_type<Real>(dtype, [&](auto type) {
      const auto* values = static_cast<decltype(type)>(pair.values);
      const int lane = static_cast<int>(threadIdx.x) % kWarp;
      for (int channel = lane * kUnit<Real>; channel < pair.channels; channel += kWarp * kUnit<Real>) {
        Unit<Real, kUnit<Real>> units[2 * Rows];
#pragma unroll
        for (int row = 0; row < 2 * Rows; ++row) {
          const auto* response = values + (pair.has(row, Rows) ? pair.offset(row, Rows) : 0);
          units[row] = read_unit<Real>(response, channel, pair.channels, pair.has(row, Rows), pair.wide);
        }
#pragma unroll
        for (int row = 0; row < 2 * Rows; ++row) add_products<Real>(units[row], units[row], squares[row]);
#pragma unroll
        for (int n = 0; n < Rows * Rows; ++n) add_products<Real>(units[n / Rows], units[Rows + n % Rows], dots[n]);
      }
    });
  }

  // Every lane gets the same sums, added in the same order.
  __device__ void sum_over_lanes() {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int n = 0; n < Rows * Rows; ++n) dots[n] += __shfl_xor_sync(kAllLanes, dots[n], distance, kWarp);
#pragma unroll
      for (int n = 0; n < 2 * Rows; ++n) squares[n] += __shfl_xor_sync(kAllLanes, squares[n], distance, kWarp);
    }
  }

  // Converts dot products to costs. Padding rows and columns cost more than all others, except with each other.
  __device__ void to_costs(int size) {
#pragma unroll
    for (int n = 0; n < Rows * Rows; ++n) {
      const bool row = n / Rows < size;
      const bool column = n % Rows < size;
      const Real cosine = dots[n] / norm_of(squares[n / Rows]) / norm_of(squares[Rows + n % Rows]);
      dots[n] = row && column ? cost_of_cosine(cosine) : row || column ? Real{100} : Real{0};
    }
  }
};

constexpr int kFewThreads = 64;

template <class Real, int Rows>
__global__ void __launch_bounds__(kFewThreads) link_few(FramePairs pairs, Method method, Links links) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kFewThreads / kWarp) + threadIdx.x / kWarp;
  const Responses& responses = pairs.responses;
  if (index >= responses.videos * (responses.frames - 1)) return;  // a whole warp

  FewProducts<Real, Rows> products;
  products.take(pairs.at(index), responses.dtype);
  products.sum_over_lanes();
  products.to_costs(responses.size);
  Real costs[Rows * Rows];
#pragma unroll
  for (int n = 0; n < Rows * Rows; ++n) {
    costs[n] = n / Rows == n % Rows ? products.dots[n] - static_cast<Real>(responses.tie) : products.dots[n];
  }
  const int code = enumerate<Real, Rows>(costs, method);
  if (lane < responses.size) {
    const int column = enumerated_column(code, lane);
    Real cost = 0;
#pragma unroll
    for (int n = 0; n < Rows * Rows; ++n) {
      if (n / Rows == lane && n % Rows == column) cost = products.dots[n];
    }
    links.matches[index * responses.size + lane] = column;
    static_cast<Real*>(links.matched)[index * responses.size + lane] = cosine_of_cost(cost);
  }
}

// A tile: 8 units of channels of all responses of both frames. Rows are padded by one unit, so that threads that read
// adjacent rows access different banks.
constexpr int kTileUnits = 8;

// `Rows` is the number of responses per frame, rounded up; a thread accumulates Square x Square dot products.
template <class Real, int Rows, int Square>
struct ManyProducts {
  static constexpr int kSide = Rows / Square;
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kUnits = 2 * Rows * kTileUnits / kThreads;  // units of a tile per thread
  static constexpr int kSlots = Rows > kWarp ? 2 : 1;
  static constexpr int kTileBytes = 2 * Rows * (kTileUnits + 1) * 16;
  static constexpr int kCostBytes = Rows * kSlots * kWarp * static_cast<int>(sizeof(Real));
  static constexpr int kMainBytes = kTileBytes > kCostBytes ? kTileBytes : kCostBytes;
  static constexpr int kSharedBytes = kMainBytes + 2 * Rows * static_cast<int>(sizeof(Real));
  using RealUnit = Unit<Real, kUnit<Real>>;

  RealUnit* tile;
  Real* norms;
  int thread;
  Real dots[Square * Square];
  Real square;  // of row `thread`

  __device__ void read(const FramePair& pair, Dtype dtype, int first, RealUnit (&units)[kUnits]) const {
    with_type<Real>(dtype, [&](auto type) {
      const auto* values = static_cast<decltype(type)>(pair.values);
#pragma unroll
      for (int n = 0; n < kUnits; ++n) {
        const int row = (thread + n * kThreads) / kTileUnits;
        const int channel = first + thread % kTileUnits * kUnit<Real>;
        const auto* response = values + (pair.has(row, Rows) ? pair.offset(row, Rows) : 0);
        units[n] = read_unit<Real>(response, channel, pair.channels, pair.has(row, Rows), pair.wide);
      }
    });
  }

  __device__ void store(const RealUnit (&units)[kUnits]) const {
#pragma unroll
    for (int n = 0; n < kUnits; ++n) {
      tile[(thread + n * kThreads) / kTileUnits * (kTileUnits + 1) + thread % kTileUnits] = units[n];
    }
  }

  __device__ void add_tile() {
#pragma unroll 2
    for (int u = 0; u < kTileUnits; ++u) {
      RealUnit a[Square];
      RealUnit b[Square];
#pragma unroll
      for (int n = 0; n < Square; ++n) {
        a[n] = tile[(thread / kSide + n * kSide) * (kTileUnits + 1) + u];
        b[n] = tile[(Rows + thread % kSide + n * kSide) * (kTileUnits + 1) + u];
      }
#pragma unroll
      for (int n = 0; n < Square * Square; ++n) add_products<Real>(a[n / Square], b[n % Square], dots[n]);
    }
    if (thread < 2 * Rows) {
#pragma unroll 2
      for (int u = 0; u < kTileUnits; ++u) {
        const RealUnit unit = tile[thread * (kTileUnits + 1) + u];
        add_products<Real>(unit, unit, square);
      }
    }
  }

  __device__ void take(const FramePair& pair, Dtype dtype) {
    static_assert(kThreads >= 2 * Rows && kThreads % kTileUnits == 0 && kThreads % kWarp == 0);
    square = 0;
#pragma unroll
    for (int n = 0; n < Square * Square; ++n) dots[n] = 0;
    for (int first = 0; first < pair.channels; first += kTileUnits * kUnit<Real>) {
      RealUnit units[kUnits];
      read(pair, dtype, first, units);
      __syncthreads();  // all threads are done with the previous tile
      store(units);
      __syncthreads();
      add_tile();
    }
  }

  // The costs replace the tile. Those of the diagonal are reduced by `tie`, and replace the norms in full.
  __device__ Real* write_costs(int size, double tie) const {
    if (thread < 2 * Rows) norms[thread] = norm_of(square);
    __syncthreads();
    Real* costs = reinterpret_cast<Real*>(tile);
#pragma unroll
    for (int n = 0; n < Square * Square; ++n) {
      const int row = thread / kSide + n / Square * kSide;
      const int column = thread % kSide + n % Square * kSide;
      const Real cosine = dots[n] / norms[row] / norms[Rows + column];
      costs[row * kSlots * kWarp + column] = row < size && column < size ? cost_of_cosine(cosine) : Real{0};
    }
    __syncthreads();
    if (thread < Rows) {
      Real& cost = costs[thread * (kSlots * kWarp + 1)];
      norms[thread] = cost;
      cost -= static_cast<Real>(tie);
    }
    __syncthreads();
    return costs;
  }
};

template <class Real, int Rows, int Square>
__global__ void __launch_bounds__(ManyProducts<Real, Rows, Square>::kThreads)
    link_many(FramePairs pairs, Method method, Links links) {
  using Products = ManyProducts<Real, Rows, Square>;
  constexpr int kSlots = Products::kSlots;
  constexpr int kWidth = Rows < kWarp ? Rows : kWarp;
  const int64_t index = blockIdx.x;
  const int size = pairs.responses.size;
  Products products;
  products.tile = reinterpret_cast<typename Products::RealUnit*>(dynamic_shared_memory());
  products.norms = reinterpret_cast<Real*>(dynamic_shared_memory() + Products::kMainBytes);
  products.thread = static_cast<int>(threadIdx.x);
  products.take(pairs.at(index), pairs.responses.dtype);
  Real* costs = products.write_costs(size, pairs.responses.tie);
  if (threadIdx.x >= kWarp) return;

  const auto group = Group<kWidth>::here();
  int column_of[kSlots];
  match<kWidth, kSlots>(StagedCosts<Real, kSlots>{costs + group.lane}, size, group.first == 0, method, column_of);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int row = s * kWidth + group.lane;
    if (group.first == 0 && row < size) {
      const int64_t place = index * size + row;
      links.matches[place] = column_of[s];
      const Real cost = column_of[s] == row ? products.norms[row] : costs[row * kSlots * kWarp + column_of[s]];
      static_cast<Real*>(links.matched)[place] = cosine_of_cost(cost);
    }
  }
}

// Whether every response starts at an address from which a whole unit can be read.
template <class Real>
bool reads_units(const Responses& responses) {
  const int bytes = responses.dtype == Dtype::float64 ? 8 : responses.dtype == Dtype::float32 ? 4 : 2;
  const int64_t unit = kUnit<Real> * bytes;
  const auto is_whole = [&](int64_t stride) { return stride * bytes % unit == 0; };
  return reinterpret_cast<uintptr_t>(responses.values) % static_cast<uintptr_t>(unit) == 0 &&
         is_whole(responses.stride_video) && is_whole(responses.stride_frame) && is_whole(responses.stride_response);
}

template <class Real, int Rows, int Square>
Launch launch_of_many(int64_t pairs) {
  using Products = ManyProducts<Real, Rows, Square>;
  return {pairs, Products::kThreads, Products::kSharedBytes};
}

// Calls `run` with the kernel that matches the frames, its launch and its first argument.
template <class Real, class Run>
auto with_linker_of(const Responses& responses, Run run) {
  const FramePairs pairs{responses, reads_units<Real>(responses)};
  const int64_t count = responses.videos * (responses.frames - 1);
  const Launch few{blocks_for(count, kFewThreads / kWarp), kFewThreads, 0};
  if (responses.size <= 2) return run(link_few<Real, 2>, few, pairs);
  if (responses.size <= 4) return run(link_few<Real, 4>, few, pairs);
  if (responses.size <= 8) return run(link_many<Real, 8, 1>, launch_of_many<Real, 8, 1>(count), pairs);
  if (responses.size <= 16) return run(link_many<Real, 16, 2>, launch_of_many<Real, 16, 2>(count), pairs);
  if (responses.size <= 32) return run(link_many<Real, 32, 4>, launch_of_many<Real, 32, 4>(count), pairs);
  return run(link_many<Real, 64, 4>, launch_of_many<Real, 64, 4>(count), pairs);
}

template <class Run>
auto with_linker(const Responses& responses, Run run) {
  if (responses.dtype == Dtype::float64) return with_linker_of<double>(responses, run);
  return with_linker_of<float>(responses, run);
}

}  // namespace art
