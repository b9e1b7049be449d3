// A GPU on the CPU, slow and strict: kernels run as C++, so that tests find their races, deadlocks and addresses beyond
// shared memory without a GPU. Blocks, or clusters of them, run one after another in random order. Their threads are
// fibers that take turns in random order and change places only where they wait for each other, so one can be far ahead
// of the next: a barrier that is missing shows as a wrong result, one that not all threads reach as an error.
//
// What it cannot see: races between blocks, a missing __threadfence or fence.proxy, what griddepcontrol overlaps, and
// speed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
struct CUstream_st;

namespace emulator {

inline constexpr int kWarp = 32;
inline constexpr int kMultiprocessors = 3;  // few, so that small problems are shared out too
inline constexpr size_t kMaxShared = 227 << 10;
inline constexpr unsigned kMaxCluster = 8;

/// Throws, out of a kernel or not, what no GPU would do.
[[noreturn]] void fail(const std::string& what);

/// Runs `thread` once for every thread of the grid, `cluster` neighbouring blocks at a time. Throws what a thread threw,
/// and where threads wait for ever.
void run(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster, const std::function<void()>& thread);

/// The block's dynamic shared memory; 0xff (NaN) when the block begins.
void* dynamic_shared();
/// Throws unless [data, data + bytes) lies in it and `data` is a multiple of `alignment`.
void check_shared(const void* data, size_t bytes, size_t alignment);

unsigned cluster_rank();
/// What block `rank` of the cluster has in its dynamic shared memory where this one has `own`: 16 aligned bytes.
const void* of_cluster(const void* own, int rank);

/// A __shared__ variable: 0xff when the block's first thread comes by. Blocks of a cluster can have none.
void poison_once(void* data, size_t bytes);
template <typename... T>
void shared_variables(T&... variables) {
  (poison_once(&variables, sizeof variables), ...);
}

void sync_block();
void sync_threads(int id, int threads);
void sync_cluster();
void sync_warp(const char* operation);

/// What a lane shows to the others of its warp.
using Shown = std::array<float, 12>;
/// Every lane of the warp shows something; what all showed, until this lane's next operation of the warp.
const std::array<Shown, kWarp>& show(const Shown& own, const char* operation);

template <typename V>
V shuffle(V value, unsigned source, const char* operation) {
  static_assert(sizeof(V) <= sizeof(Shown));
  Shown own{};
  std::memcpy(own.data(), &value, sizeof value);
  std::memcpy(&value, show(own, operation)[source].data(), sizeof value);
  return value;
}

/// An asynchronous copy of `bytes`, then zeros up to `whole`. Until it is waited for, `to` holds NaN or, at random, the
/// copy: both happen on a GPU.
void start_copy(void* to, const void* from, int bytes, int whole);
void commit_copies();
void wait_copies(int n);

/// A barrier of the PTX instructions mbarrier: its phase ends when all arrivals are there and no announced byte is open.
struct alignas(8) Barrier {
  uint8_t arrivals, open, phase;
  int32_t bytes;

  void init(int arrivals);
  /// Announces `bytes` and arrives.
  void arrive(int bytes);
  void wait(int parity);
  /// A copy that lands at some time, and then counts.
  void copy(void* to, const void* from, int bytes);
  /// The same, of what `land` writes there.
  void copy(void* to, int bytes, std::function<void()> land);
  void end_phase();
};

/// An asynchronous product of a warpgroup: `add` adds this thread's part to what it is given, at random when it starts
/// or later. `sums` holds NaN until no product onto it is under way. The warpgroup's threads meet where they wait.
void start_product(float* sums, int n, std::function<void(float*)> add);
void begin_products();
void end_products();
void wait_products(int n);

/// Runs `work` after everything else in the stream, or puts it into the graph that the stream records (runtime.cpp).
void enqueue(CUstream_st* stream, std::function<void()> work);

/// kernel<<<grid, block, shared_bytes, stream>>>(args...) is launch(kernel, grid, block, shared_bytes, stream)(args...).
template <typename Kernel>
auto launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream,
            unsigned cluster = 1) {
  return [=](auto... args) {
    enqueue(stream, [=] { run(grid, block, shared_bytes, cluster, [&] { kernel(args...); }); });
  };
}

}  // namespace emulator
