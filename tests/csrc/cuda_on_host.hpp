// Runs CUDA kernels on a CPU: the subset of CUDA that the kernels of csrc/ use, in plain C++.
//
// The threads of a block are fibers that yield only where they wait for others; the first thread runs first in one
// block and last in the next, and runs are deterministic. Shuffles, votes and barriers must be reached by all
// participating threads in the same way; if threads wait for one that never arrives, or two meet in different calls,
// the program exits with an error. Shared memory is initialized with NaN (all bits set), has exactly the size of the
// launch, and is on the heap, so that the address sanitizer detects every access beyond it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "stacks.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cuda_on_host {

constexpr int kLanes = 32;

struct Index {
  unsigned x = 0;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s\n", what);
  std::exit(3);
}

// A call that threads make together. `round` is the number of times it was made.
struct Meeting {
  int call = 0;
  int arrived = 0;
  unsigned round = 0;
  uint64_t given[kLanes];
};

enum Call : int { kBarrier = 1, kWarpBarrier, kVote, kLeast, kShuffle, kShuffleXor };

struct Fiber {
  Place place;
  std::unique_ptr<char[]> stack;
  unsigned thread = 0;
  bool done = false;
  const Meeting* waits_for = nullptr;
  unsigned round = 0;
};

class Block {
 public:
  static constexpr size_t kStack = 256 * 1024;

  // The block whose threads are running.
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  void run(unsigned block, unsigned blocks, unsigned threads, int shared_bytes, std::function<void()> kernel) {
    if (threads % kLanes != 0 || threads == 0 || threads > 1024) fail("a block that is not a multiple of a warp");
    if (shared_bytes > 227 * 1024) fail("more shared memory than any device has");
    kernel_ = std::move(kernel);
    block_index.x = block, block_count.x = blocks, block_size.x = threads;
    shared_ = std::make_unique<Aligned[]>((static_cast<size_t>(shared_bytes) + 15) / 16);
    std::memset(shared_.get(), 0xff, (static_cast<size_t>(shared_bytes) + 15) / 16 * 16);
    warps_.assign(threads / kLanes, Meeting{});
    all_ = Meeting{};
    current() = this;
    start(threads);
    take_turns();
    current() = nullptr;
  }

  unsigned thread() const { return running_->thread; }
  unsigned char* shared() { return reinterpret_cast<unsigned char*>(shared_.get()); }

  // All threads of the block.
  void barrier() { meet(all_, static_cast<int>(block_size.x), kBarrier); }

  // All lanes of the warp, which see the values of each other.
  const uint64_t* meet_warp(unsigned mask, int call, uint64_t given) {
    if (mask != 0xffffffffu) fail("a call by part of a warp");
    Meeting& warp = warps_[thread() / kLanes];
    given_[warp.round & 1][thread()] = given;
    const unsigned round = warp.round;
    meet(warp, kLanes, call);
    return &given_[round & 1][thread() / kLanes * kLanes];
  }

  Index block_index, block_count, block_size;

 private:
  struct alignas(16) Aligned {
    char bytes[16];
  };

  static void enter() {
    Block& block = *current();
    arrive(nullptr, block.main_);
    block.kernel_();
    block.running_->done = true;
    block.give_way();
  }

  void start(unsigned threads) {
    while (fibers_.size() < threads) {
      fibers_.push_back(std::make_unique<Fiber>());
      fibers_.back()->stack = std::make_unique<char[]>(kStack);
    }
    count_ = threads;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = *fibers_[t];
      fiber.thread = t, fiber.done = false, fiber.waits_for = nullptr;
      begin(fiber.place, fiber.stack.get(), kStack, enter);
    }
  }

  // A warp runs until all of its lanes wait: warps are then as far apart between two barriers of a block as possible on
  // a device, in one order in every second block and in reverse order in the others.
  void take_turns() {
    for (bool any = true; any;) {
      bool left = false;
      any = false;
      for (unsigned turn = 0; turn < count_; turn += kLanes) {
        const unsigned first = block_index.x % 2 == 0 ? turn : count_ - kLanes - turn;
        while (run_warp(first, left)) any = true;
      }
      if (left && !any) fail("threads wait in a shuffle, a vote or a barrier for others that never arrive");
    }
  }

  // Whether any lane can continue; sets `left` if one has not ended.
  bool run_warp(unsigned first, bool& left) {
    bool any = false;
    for (unsigned turn = 0; turn < kLanes; ++turn) {
      Fiber& fiber = *fibers_[first + (block_index.x % 2 == 0 ? turn : kLanes - 1 - turn)];
      if (fiber.done) continue;
      left = true;
      if (fiber.waits_for != nullptr && fiber.waits_for->round == fiber.round) continue;
      any = true;
      resume(fiber);
    }
    return any;
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    change_stack(main_, fiber.place, false);
  }

  void give_way() { change_stack(running_->place, main_, running_->done); }

  void meet(Meeting& meeting, int partners, int call) {
    if (meeting.arrived == 0) meeting.call = call;
    if (meeting.call != call) fail("threads that should meet are in different calls");
    if (++meeting.arrived == partners) {
      meeting.arrived = 0;
      ++meeting.round;
      return;
    }
    Fiber& fiber = *running_;
    fiber.waits_for = &meeting;
    fiber.round = meeting.round;
    give_way();
    fiber.waits_for = nullptr;
  }

  std::function<void()> kernel_;
  std::unique_ptr<Aligned[]> shared_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Meeting> warps_;
  Meeting all_;
  // Values of the lanes for this meeting of their warp and the previous one, which slower lanes may still read.
  uint64_t given_[2][1024];
  unsigned count_ = 0;
  Fiber* running_ = nullptr;
  Place main_;
};

// kernel<<<blocks, threads, shared_bytes>>>(parameters...)
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes, Parameters... parameters) {
  static Block block;
  for (int64_t b = 0; b < blocks; ++b) {
    block.run(static_cast<unsigned>(b), static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes,
              [&] { kernel(parameters...); });
  }
}

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline Index thread_index() { return {Block::current()->thread()}; }
inline unsigned lane() { return Block::current()->thread() % kLanes; }

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::thread_index())
#define blockIdx (cuda_on_host::Block::current()->block_index)
#define blockDim (cuda_on_host::Block::current()->block_size)
#define gridDim (cuda_on_host::Block::current()->block_count)

inline void __syncthreads() { cuda_on_host::Block::current()->barrier(); }

inline void __syncwarp() { cuda_on_host::Block::current()->meet_warp(0xffffffffu, cuda_on_host::kWarpBarrier, 0); }

inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const uint64_t* given = cuda_on_host::Block::current()->meet_warp(mask, cuda_on_host::kVote, vote);
  unsigned votes = 0;
  for (int lane = 0; lane < cuda_on_host::kLanes; ++lane) votes |= static_cast<unsigned>(given[lane]) << lane;
  return votes;
}

inline int __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  const uint64_t* given = cuda_on_host::Block::current()->meet_warp(mask, cuda_on_host::kLeast, value);
  unsigned least = value;
  for (int lane = 0; lane < cuda_on_host::kLanes; ++lane) {
    least = given[lane] < least ? static_cast<unsigned>(given[lane]) : least;
  }
  return least;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width) {
  using namespace cuda_on_host;
  const uint64_t* given = Block::current()->meet_warp(mask, kShuffle + 8 * width, to_bits(value));
  const unsigned first = lane() / static_cast<unsigned>(width) * static_cast<unsigned>(width);
  return from_bits<T>(given[first + static_cast<unsigned>(source) % static_cast<unsigned>(width)]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width) {
  using namespace cuda_on_host;
  if (distance <= 0 || distance >= width) fail("a shuffle beyond its width");
  const uint64_t* given = Block::current()->meet_warp(mask, kShuffleXor + 8 * width, to_bits(value));
  return from_bits<T>(given[lane() ^ static_cast<unsigned>(distance)]);
}

inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int64_t __double_as_longlong(double value) {
  return cuda_on_host::from_bits<int64_t>(cuda_on_host::to_bits(value));
}
inline double __longlong_as_double(int64_t value) {
  return cuda_on_host::from_bits<double>(cuda_on_host::to_bits(value));
}
inline float __uint_as_float(unsigned value) { return cuda_on_host::from_bits<float>(value); }

namespace art {
inline unsigned char* dynamic_shared_memory() { return cuda_on_host::Block::current()->shared(); }
}  // namespace art
